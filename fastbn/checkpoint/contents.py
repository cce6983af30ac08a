"""What a reader of files hands over: arrays by name, and norms where a file describes them."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np


class Norm(NamedTuple):
    """A batch norm that a file describes itself."""

    name: str
    #: weight, bias, running_mean, running_var, num_batches_tracked: those there are.
    arrays: dict[str, np.ndarray]
    eps: float | None = None
    #: In torch's meaning.
    momentum: float | None = None
    #: 1, 2 or 3, where it is known.
    dimensions: int | None = None
    #: -1: channels last.
    axis: int = 1
    #: Names of the arrays in the file, where they are among its tensors.
    keys: tuple[str, ...] = ()
    #: Whether it may have a bias and no weight, which then is 1: Keras's ``scale=False``.
    scale_left_out: bool = False
    #: Whether eps is what layers of the kind have by default: the file does not say it.
    eps_assumed: bool = False
    #: Why no layer can be made of what the file has under its name; ``arrays`` are those there are.
    invalid: str = ""


class Checkpoint(NamedTuple):
    """What a file holds. Arrays are read when they are asked for."""

    tensors: Mapping[str, np.ndarray]
    #: None: to be recognized by names.
    norms: list[Norm] | None
    #: Whether the order of the tensors is that of the network.
    ordered: bool = True
    #: What `fastbn.save` has noted of layers, by name: arguments of their constructors.
    settings: Mapping[str, Mapping[str, Any]] = {}
    #: Where ``norms`` is empty: why, and what to do.
    no_norms: str = ""


class Lazy(NamedTuple):
    """An array that was not read yet."""

    read: Callable[[], np.ndarray]
    #: None: known when it is read.
    shape: tuple[int, ...] | None = None


class Tensors(Mapping[str, np.ndarray]):
    """Arrays by name, each read when it is asked for, and each time anew."""

    def __init__(self, entries: Mapping[str, Lazy]) -> None:
        self._entries = entries

    def __getitem__(self, name: str) -> np.ndarray:
        return self._entries[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an array; most readers know it without reading the values."""
        entry = self._entries[name]
        return entry.read().shape if entry.shape is None else entry.shape
