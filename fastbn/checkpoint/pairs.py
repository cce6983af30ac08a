"""Which convolution or linear layer a batch norm follows, by names, order and shapes."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from fastbn.checkpoint.contents import Norm

_CONVOLUTION = re.compile(r"conv|fc|linear|proj|dense|^dw$|^pw$")
_NORM = re.compile(r"bn|norm")
#: Names of what may be transposed, where the shape does not tell.
_TRANSPOSED = re.compile(r"transpose|deconv|upconv|tconv")


class Pair(NamedTuple):
    """A norm, and the layer that it follows: the name of its weight without ``.weight``."""

    norm: str
    layer: str
    transposed: bool


class Single(NamedTuple):
    """A norm that nothing can be folded into, and why."""

    norm: str
    why: str


def pairs_of(
    tensors: Mapping[str, np.ndarray], norms: list[Norm], ordered: bool
) -> tuple[list[Pair], list[Single]]:
    """Norms that directly follow a convolution or linear layer, and the others.

    They have one parent, and names that go together: numbers next to each other (``0`` and ``1`` of
    a Sequential), or ``conv2`` and ``bn2``, or ``conv`` and ``norm``. In an ``ordered`` file the
    norm comes later. Where one pair of names does not fit by its channels, the network normalizes
    *before* its convolutions, and no pair of that kind is believed.

    A file does not say what happens between two layers: an activation there would make it wrong.
    """
    position = {name: k for k, name in enumerate(tensors)}
    weights = {
        name.removesuffix(".weight"): tensors[name].shape
        for name in tensors
        if name.endswith(".weight") and tensors[name].ndim >= 2
    }
    found, singles, by_name, contradicted = [], [], set(), False
    for norm in norms:
        channels = len(norm.arrays["running_mean"])
        later = position.get(f"{norm.name}.running_mean", len(position))
        names = [
            layer for layer in weights
            if _go_together(layer, norm.name)
            and not (ordered and position[f"{layer}.weight"] > later)
        ]  # fmt: skip
        if len(names) != 1:
            why = "no layer of a fitting name comes before it" if not names else (
                f"several may be before it: {', '.join(names)}"
            )  # fmt: skip
            singles.append(Single(norm.name, why))
            continue
        (layer,) = names
        transposed = _is_transposed(layer, weights[layer], channels, ordered)
        if transposed is None:
            contradicted |= not _numbered(norm.name)
            shape = "x".join(map(str, weights[layer]))
            why = f"{layer} of shape {shape} does not have its {channels} channels, or may not"
            singles.append(Single(norm.name, why))
            continue
        found.append(Pair(norm.name, layer, transposed))
        by_name.add(norm.name) if not _numbered(norm.name) else None
    if contradicted and not ordered:
        why = "other norms of the file come before their convolutions; this one may, too"
        singles += [Single(pair.norm, why) for pair in found if pair.norm in by_name]
        found = [pair for pair in found if pair.norm not in by_name]
    return found, singles


def _split(name: str) -> tuple[str, str]:
    parent, _, last = name.rpartition(".")
    return parent, last


def _numbered(name: str) -> bool:
    return _split(name)[1].isdecimal()


def _go_together(layer: str, norm: str) -> bool:
    parent, first = _split(layer)
    of_norm, second = _split(norm)
    if parent != of_norm:
        return False
    if first.isdecimal() and second.isdecimal():
        return int(second) == int(first) + 1
    numbers = [re.sub(r"\D", "", name) for name in (first, second)]
    return (
        numbers[0] == numbers[1]
        and bool(_CONVOLUTION.search(first.lower()))
        and bool(_NORM.search(second.lower()))
    )


def _is_transposed(layer: str, shape: tuple[int, ...], channels: int, ordered: bool) -> bool | None:
    """Whether a weight is a transposed convolution's; None where it does not fit, or may not.

    One of another name may be: if the file's order says that the norm comes after it.
    """
    named = bool(_TRANSPOSED.search(layer.lower()))
    if len(shape) > 2 and shape[1] == channels and (named or (ordered and shape[0] != channels)):
        return True
    return False if shape[0] == channels and not named else None
