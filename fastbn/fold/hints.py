"""What the caller knows of a checkpoint that is folded, checked against what is in it."""

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

#: Arrays of a checkpoint by name.
_Tensors = Mapping[str, np.ndarray]
#: Names that a message shows; there may be hundreds.
_SHOWN = 3


class Hints(NamedTuple):
    """Of layers, by their names without ``.weight``, and of norms."""

    #: Into which layer a norm goes.
    pairs: Mapping[str, str] = {}
    #: Norms that stay.
    skip: frozenset[str] = frozenset()
    #: Transposed convolutions; None: nobody has said which are.
    transposed: frozenset[str] | None = None


def hints_of(
    pairs: Any,
    skip: Any,
    transposed: Any,
    norms: Collection[str],
    tensors: _Tensors,
) -> Hints:
    """The arguments of `fold_checkpoint`; TypeError or ValueError if they do not fit it."""
    stay = frozenset(_names("skip", skip))
    for name in stay:
        _check("skip", name, name in norms, norms, "batch norm")
    of_pairs = _checked_pairs({} if pairs is None else pairs, norms, tensors)
    both = [name for name in of_pairs if name in stay]
    if both:
        raise ValueError(f"both pairs and skip name {both[0]!r}; it is folded or stays")
    if transposed is None:
        return Hints(of_pairs, stay)
    names = [_layer("transposed", name, tensors) for name in _names("transposed", transposed)]
    return Hints(of_pairs, stay, frozenset(names))


def _checked_pairs(pairs: Any, norms: Collection[str], tensors: _Tensors) -> dict[str, str]:
    kind = "pairs must be a mapping of norms to weights, such as {'bn1': 'conv1.weight'}"
    if not isinstance(pairs, Mapping):
        raise TypeError(f"{kind}, got {type(pairs).__name__}")
    found: dict[str, str] = {}
    for norm, layer in pairs.items():
        for name in (norm, layer):
            if not isinstance(name, str):
                raise TypeError(f"{kind}, got {name!r}")
        _check("pairs", norm, norm in norms, norms, "batch norm")
        layer = _layer("pairs", layer, tensors)
        if layer in found.values():
            other = next(name for name, taken in found.items() if taken == layer)
            raise ValueError(
                f"pairs gives {layer} to both {other!r} and {norm!r}, and a layer can take one norm"
            )
        found[norm] = layer
    return found


def _names(argument: str, names: Any) -> Iterable[str]:
    if isinstance(names, str):
        raise TypeError(f"{argument} must be several names, got one string; {argument}=[{names!r}]")
    if not isinstance(names, Iterable):
        raise TypeError(f"{argument} must be names, got {type(names).__name__}")
    found = list(names)
    for name in found:
        if not isinstance(name, str):
            raise TypeError(f"{argument} must be names, got {name!r}")
    return found


def _layer(argument: str, name: str, tensors: _Tensors) -> str:
    """The name of a layer, given as such or as that of its weight."""
    weights = [key for key, array in tensors.items() if key.endswith(".weight") and array.ndim > 1]
    weight = name if name in weights else f"{name}.weight"
    _check(argument, name, weight in weights, weights, "weight of a convolution or linear layer")
    return weight.removesuffix(".weight")


def _check(argument: str, name: str, there: bool, known: Collection[str], what: str) -> None:
    if not there:
        near = difflib.get_close_matches(name, known, _SHOWN) or list(known)[:_SHOWN]
        shown = ", ".join(map(repr, near)) or "none at all"
        raise ValueError(
            f"{argument} names {name[:200]!r}, which is no {what} here; there are {shown}, "
            f"{len(known)} in all"
        )
