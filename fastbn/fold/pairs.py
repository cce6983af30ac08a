"""Which convolution or linear layer a batch norm follows, by names, order and shapes."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from fastbn.checkpoint.contents import Norm

_CONVOLUTION = re.compile(r"conv|fc|linear|proj|dense|^dw$|^pw$")
_NORM = re.compile(r"bn|norm")
#: Words of what is transposed, or may be.
_TRANSPOSED = re.compile(r"(^|[._])(t_?conv|de_?conv|conv_?transpose|up_?conv|transpose)")
#: Beside a weight that is made of others when it is used: pruned, or normalized itself.
_MADE = "weight_orig", "bias_orig", "weight_g", "parametrizations"
_LAST = (
    "it has its channels last, as Keras does: fold.fold_conv_bn takes kernel.transpose(3, 2, 0, 1)"
)


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
    norm comes later, with no other weight of that parent in between. Another file does not tell
    ``conv1, bn1`` from ``bn1, conv1``, so there pairs of names are believed only if one of them
    fits the output of its layer and not the input, and none does not fit the output. Whoever sorts
    names loses the order, whatever the file.

    A checkpoint does not say what happens between two layers: with an activation or a sum there,
    the result is wrong.
    """
    ordered = ordered and list(tensors) != sorted(tensors)
    layers = _Layers(tensors, ordered)
    found: list[Pair] = []
    singles: list[Single] = []
    for norm in norms:
        result = layers.before(norm)
        (found if isinstance(result, Pair) else singles).append(result)  # type: ignore[arg-type]
    refused = {}
    if not ordered and not layers.follow:
        why = "it may come before its convolution: this file does not keep the order"
        refused = {pair: why for pair in found if not _numbered(pair.norm)}
    times = Counter(pair.layer for pair in found)
    transposed = any(pair.transposed for pair in found)
    for pair in found:
        shape = layers.shapes[pair.layer]
        if times[pair.layer] > 1:
            refused[pair] = f"several norms may follow {pair.layer}"
        elif transposed and not pair.transposed and len(shape) > 2 and shape[0] == shape[1]:
            refused[pair] = f"{pair.layer} may be transposed, as others of the file are"
    singles += [Single(pair.norm, why) for pair, why in refused.items()]
    return [pair for pair in found if pair not in refused], singles


class _Layers:
    """Convolutions and linear layers of a checkpoint."""

    def __init__(self, tensors: Mapping[str, np.ndarray], ordered: bool) -> None:
        self._position = {name: k for k, name in enumerate(tensors)}
        self._ordered = ordered
        arrays = {name: tensors[name] for name in tensors if name.endswith(".weight")}
        self.shapes = {
            name.removesuffix(".weight"): array.shape
            for name, array in arrays.items()
            if array.ndim >= 2 and array.dtype.kind not in "biu"
        }
        #: Whether norms follow their layers, by the channels of pairs of names.
        self.follow: bool | None = None

    def before(self, norm: Norm) -> Pair | Single:
        """The layer that a norm follows, or why none is known."""
        if norm.axis != 1:
            return Single(norm.name, _LAST)
        channels, end = len(norm.arrays["running_mean"]), self._end(norm)
        names = [
            layer for layer in self.shapes
            if _go_together(layer, norm.name) and (not self._ordered or self._at(layer) < end)
        ]  # fmt: skip
        if len(names) != 1:
            several = f"several may be before it: {', '.join(names)}"
            return Single(
                norm.name, several if names else "no layer of a fitting name is before it"
            )
        (layer,) = names
        if any(f"{layer}.{name}" in key for key in self._position for name in _MADE):
            return Single(norm.name, f"the weight of {layer} is made of others when it is used")
        between = self._between(layer, norm.name, end)
        if between:
            return Single(norm.name, f"{between} may stand between {layer} and it")
        shape, numbered = self.shapes[layer], _numbered(norm.name)
        transposed = _is_transposed(layer, shape, channels, numbered and self._ordered)
        if transposed is None:
            self.follow = self.follow if numbered else False
            text = "x".join(map(str, shape))
            return Single(
                norm.name, f"{layer} of shape {text} may not have its {channels} channels"
            )
        if self.follow is None and not numbered and shape[1] != channels:
            self.follow = True
        return Pair(norm.name, layer, transposed)

    def _at(self, layer: str) -> int:
        return self._position[f"{layer}.weight"]

    def _end(self, norm: Norm) -> int:
        names = norm.keys or [f"{norm.name}.{name}" for name in norm.arrays]
        return min((self._position[name] for name in names if name in self._position), default=0)

    def _between(self, layer: str, norm: str, end: int) -> str | None:
        """Another layer of the same parent that may lie between the two."""
        parent = _split(layer)[0]
        for other in self.shapes:
            if other == layer or _split(other)[0] != parent:
                continue
            if self._ordered and self._at(layer) < self._at(other) < end:
                return other
            if not self._ordered and not _numbered(norm) and not _known(other):
                return other
        return None


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


def _known(layer: str) -> bool:
    """Whether a layer's name is one that norms go together with."""
    last = _split(layer)[1].lower()
    return last.isdecimal() or bool(_CONVOLUTION.search(last))


def _is_transposed(layer: str, shape: tuple[int, ...], channels: int, guess: bool) -> bool | None:
    """Whether a weight is a transposed convolution's; None where it does not fit, or may not.

    ``guess``: one of another name is, if the channels say so.
    """
    named = bool(_TRANSPOSED.search(layer.lower()))
    if len(shape) > 2 and shape[1] == channels != shape[0] and (named or guess):
        return True
    return False if shape[0] == channels and not named else None
