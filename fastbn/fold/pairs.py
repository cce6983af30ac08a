"""Which convolution or linear layer a batch norm follows, by names, order and shapes."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from fastbn.checkpoint.contents import Norm
from fastbn.fold.hints import Hints

_CONVOLUTION = re.compile(r"conv|fc|linear|proj|dense|^dw$|^pw$")
_NORM = re.compile(r"bn|norm")
#: Words of what is transposed, or may be.
_TRANSPOSED = re.compile(r"(^|[._])(t_?conv|de_?conv|conv_?transpose|up_?conv|transpose)")
#: Words of tables, whose rows are looked up: nothing is summed there as in a linear layer.
_EMBEDDING = re.compile(r"(^|[._])(emb|wte|wpe|tok|vocab)|embed|token")
#: Beside a weight that is made of others when it is used: pruned, or normalized itself.
_MADE = "weight_orig", "bias_orig", "weight_g", "parametrizations"
_NO_TELLING = "a weight of as many input as output channels does not tell"
_LAST = (
    "it has its channels last, as Keras does: fold.fold_conv_bn takes kernel.transpose(3, 2, 0, 1)"
)


class Pair(NamedTuple):
    """A norm, and the layer that it follows: the name of its weight without ``.weight``."""

    norm: str
    layer: str
    transposed: bool
    #: What neither the file nor the caller has said.
    assumed: str = ""

    def groups(self, shape: tuple[int, ...], channels: int) -> int:
        """Groups of a transposed convolution with ``channels`` outputs; 1 for any other layer."""
        number, rest = divmod(channels, max(shape[1], 1)) if self.transposed else (1, 0)
        return number if number and not rest and shape[0] % number == 0 else 1


class Single(NamedTuple):
    """A norm that nothing can be folded into, and why."""

    norm: str
    why: str


def pairs_of(
    tensors: Mapping[str, np.ndarray], norms: list[Norm], ordered: bool, hints: Hints
) -> tuple[list[Pair], list[Single]]:
    """Norms that directly follow a convolution or linear layer, and the others.

    They have one parent, and names that go together: numbers next to each other (``0`` and ``1`` of
    a Sequential), or ``conv2`` and ``bn2``, or ``conv`` and ``norm``. In an ``ordered`` file the
    norm comes later, with no other weight of that parent in between. Another file does not tell
    ``conv1, bn1`` from ``bn1, conv1``, so there pairs of names are believed only if one of them
    fits the output of its layer and not the input, and none does not fit the output. Whoever sorts
    names loses the order, whatever the file.

    A checkpoint does not say what happens between two layers: with an activation or a sum there,
    the result is wrong. ``hints`` come before all of this.
    """
    ordered = ordered and list(tensors) != sorted(tensors)
    layers = _Layers(tensors, ordered, hints.transposed)
    given: list[Pair] = []
    found: list[Pair] = []
    singles: list[Single] = []
    for norm in norms:
        told = hints.pairs.get(norm.name)
        result = layers.before(norm) if told is None else layers.told(norm, told)
        if isinstance(result, Single):
            singles.append(result)
        else:
            (found if told is None else given).append(result)
    refused = {}
    taken = {layer: norm for norm, layer in hints.pairs.items()}
    if not ordered and not layers.follow:
        why = "it may come before its convolution: this file does not keep the order"
        refused = {pair: why for pair in found if not _numbered(pair.norm)}
    times = Counter(pair.layer for pair in found)
    transposed = hints.transposed is None and any(pair.transposed for pair in found)
    for pair in found:
        shape = layers.shapes[pair.layer]
        if pair.layer in taken:
            refused[pair] = f"pairs gives {pair.layer} to {taken[pair.layer]}"
        elif times[pair.layer] > 1:
            refused[pair] = f"several norms may follow {pair.layer}"
        elif transposed and not pair.transposed and len(shape) > 2 and shape[0] == shape[1]:
            refused[pair] = f"{pair.layer} may be transposed, as others of the file are"
    singles += [Single(pair.norm, why) for pair, why in refused.items()]
    return given + [pair for pair in found if pair not in refused], singles


class _Layers:
    """Convolutions and linear layers of a checkpoint."""

    def __init__(
        self,
        tensors: Mapping[str, np.ndarray],
        ordered: bool,
        transposed: frozenset[str] | None,
    ) -> None:
        self._transposed = transposed
        self._position = {name: k for k, name in enumerate(tensors)}
        self._ordered = ordered
        arrays = {name: tensors[name] for name in tensors if name.endswith(".weight")}
        self.shapes = {
            name.removesuffix(".weight"): array.shape
            for name, array in arrays.items()
            if array.ndim >= 2
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
        if self._is_made(layer):
            return self._made(norm.name, layer)
        if self._is_embedding(layer):
            return Single(
                norm.name,
                f"{layer} may be an embedding, a table, and no linear layer; pairs says "
                "if it is one",
            )
        between = self._between(layer, norm.name, end)
        if between:
            return Single(norm.name, f"{between} may stand between {layer} and it")
        shape, numbered = self.shapes[layer], _numbered(norm.name)
        transposed = self._is_transposed(layer, channels, numbered and self._ordered)
        if transposed is None:
            self.follow = self.follow if numbered else False
            text = "x".join(map(str, shape))
            return Single(
                norm.name, f"{layer} of shape {text} may not have its {channels} channels"
            )
        if self.follow is None and not numbered and shape[1] != channels:
            self.follow = True
        return self._pair(norm.name, layer, transposed)

    def told(self, norm: Norm, layer: str) -> Pair:
        """The pair that the caller knows of; ValueError where it cannot be."""
        start = f"pairs gives {norm.name!r} to {layer!r}, and "
        if self._is_made(layer):
            raise ValueError(f"{start}{self._made(norm.name, layer).why}")
        channels, shape = len(norm.arrays["running_mean"]), self.shapes[layer]
        if len(shape) < 3:
            return self._pair(norm.name, layer, False)
        if layer in (self._transposed or ()):
            if shape[0] == channels and channels % max(shape[1], 1):
                raise ValueError(
                    f"{start}transposed names {layer}, whose shape {shape} has the norm's "
                    f"{channels} channels of output as a usual convolution only; leave it out of "
                    "transposed"
                )
            return self._pair(norm.name, layer, True)
        may_be = self._transposed is None and sounds_transposed(layer)
        ways = (
            f"transposed=[{layer!r}] (--transposed {layer}) says that it is, transposed=[] "
            "(--not-transposed) that it is not"
        )
        if may_be and shape[1] == channels != shape[0]:
            return self._pair(norm.name, layer, True)
        if may_be and shape[0] == channels and channels % max(shape[1], 1) == 0:
            raise ValueError(
                f"{start}by its name {layer} may be a transposed convolution, which its shape "
                f"{shape} does not tell; {ways}"
            )
        if shape[1] == channels != shape[0]:
            raise ValueError(
                f"{start}{layer} of shape {shape} has {channels} channels of input, not of output: "
                "a norm before a convolution goes into it by fold.fold_bn_conv; if it is a "
                f"transposed one, transposed=[{layer!r}] (--transposed {layer}) says so"
            )
        return self._pair(norm.name, layer, False)

    def _pair(self, norm: str, layer: str, transposed: bool) -> Pair:
        shape = self.shapes.get(layer, ())
        told = transposed or self._transposed is not None
        if told or len(shape) < 3 or shape[0] != shape[1]:
            return Pair(norm, layer, transposed)
        return Pair(norm, layer, transposed, f"{layer} is not transposed, which {_NO_TELLING}")

    def _is_made(self, layer: str) -> bool:
        return any(f"{layer}.{name}" in key for key in self._position for name in _MADE)

    def _made(self, norm: str, layer: str) -> Single:
        return Single(norm, f"the weight of {layer} is made of others when it is used")

    def _is_embedding(self, layer: str) -> bool:
        """Whether it may be a table, by its name; tables have no bias."""
        table = len(self.shapes[layer]) == 2 and f"{layer}.bias" not in self._position
        return table and bool(_EMBEDDING.search(layer.lower()))

    def _is_transposed(self, layer: str, channels: int, guess: bool) -> bool | None:
        """Whether a weight is a transposed convolution's; None if it does not fit, or may not.

        ``guess``: one of another name is, if the channels say so.
        """
        shape = self.shapes[layer]
        if layer in (self._transposed or ()):
            return True if len(shape) > 2 and channels % max(shape[1], 1) == 0 else None
        named = sounds_transposed(layer)
        if len(shape) > 2 and shape[1] == channels != shape[0] and (named or guess):
            return True
        usual = not named or self._transposed is not None
        return False if shape[0] == channels and usual else None

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


def sounds_transposed(layer: str) -> bool:
    """Whether the name of a layer has a word of transposed convolutions, or of what may be one."""
    return bool(_TRANSPOSED.search(layer.lower()))


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
