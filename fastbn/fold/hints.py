"""What the caller knows of a checkpoint that is folded, checked against what is in it."""

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fastbn.checkpoint.names import shortenings

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
    stay = frozenset(_norm("skip", name, norms) for name in _names("skip", skip))
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
        norm, layer = _norm("pairs", norm, norms), _layer("pairs", layer, tensors)
        if norm in found:
            raise ValueError(f"pairs names {norm!r} twice")
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


def _norm(argument: str, name: str, norms: Collection[str]) -> str:
    """The name of a norm, with or without what wrappers such as DataParallel put before it."""
    known = next((short for short in shortenings(name) if short in norms), None)
    return _known(argument, name, known, norms, "batch norm")


def _layer(argument: str, name: str, tensors: _Tensors) -> str:
    """The name of a layer, given as such or as that of its weight."""
    weights = [key for key, array in tensors.items() if key.endswith(".weight") and array.ndim > 1]
    possible = (each for short in shortenings(name) for each in (short, f"{short}.weight"))
    weight = next((each for each in possible if each in weights), None)
    what = "weight of a convolution or linear layer"
    return _known(argument, name, weight, weights, what).removesuffix(".weight")


def _known(argument: str, name: str, found: str | None, known: Collection[str], what: str) -> str:
    """What was found under a name; ValueError where it was nothing."""
    if found is not None:
        return found
    near = difflib.get_close_matches(name, known, _SHOWN)
    listed = ", ".join(map(repr, near or list(known)[:_SHOWN])) or "none at all"
    raise ValueError(
        f"{argument} names {name[:200]!r}, which is no {what} here; "
        f"{'nearest:' if near else 'there are'} {listed} ({len(known)} in all)"
    )
