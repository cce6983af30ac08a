"""Which convolution or linear layer a batch norm follows, by names, order and shapes."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from fastbn.checkpoint.contents import Norm

_CONVOLUTION = re.compile(r"conv|fc|linear|proj|dense|^dw$|^pw$")
_NORM = re.compile(r"bn|norm")
#: Names of what may be transposed, where the shape does not tell.
_TRANSPOSED = re.compile(r"transpose|deconv|upconv|tconv")
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
    norm comes later. Another file does not tell ``conv1, bn1`` from ``bn1, conv1``, so there pairs
    of names are believed only if one of them fits the output of its layer and not the input, and
    none does not fit the output.

    A file does not say what happens between two layers: an activation there would make it wrong.
    """
    position = {name: k for k, name in enumerate(tensors)}
    weights = {
        name.removesuffix(".weight"): tensors[name].shape
        for name in tensors
        if name.endswith(".weight") and tensors[name].ndim >= 2
    }
    found: list[Pair] = []
    singles: list[Single] = []
    told = None  # whether norms follow their layers, by the channels of one of them
    for norm in norms:
        if norm.axis != 1:
            singles.append(Single(norm.name, _LAST))
            continue
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
            told = told if _numbered(norm.name) else False
            shape = "x".join(map(str, weights[layer]))
            why = f"{layer} of shape {shape} does not have its {channels} channels, or may not"
            singles.append(Single(norm.name, why))
            continue
        found.append(Pair(norm.name, layer, transposed))
        if told is None and not _numbered(norm.name) and weights[layer][1] != channels:
            told = True
    refused = {}
    if not told and not ordered:
        why = "it may come before its convolution: this file does not keep the order"
        refused = {pair: why for pair in found if not _numbered(pair.norm)}
    times = Counter(pair.layer for pair in found)
    refused |= {
        pair: f"several norms may follow {pair.layer}" for pair in found if times[pair.layer] > 1
    }
    singles += [Single(pair.norm, why) for pair, why in refused.items()]
    return [pair for pair in found if pair not in refused], singles


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
