"""Batch norms by the names of their arrays, their dimensions by the convolutions before them."""

import bisect
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastbn.checkpoint import keras_layers, made
from fastbn.checkpoint.contents import Checkpoint, Norm, Tensors
from fastbn.checkpoint.settings import NAMES
from fastbn.layers.names import BIAS, GLUON, KERAS, MEAN, TORCH, VAR, WEIGHT

_TORCH = {**{name: name for name in TORCH}, **GLUON}
#: Flax's defaults, which arrays do not tell; its momentum is the old value's weight, as Keras's.
_FLAX_EPS, _FLAX_MOMENTUM = 1e-5, 0.99
#: The last name of a weight; torch's weight norm takes it apart.
_WEIGHT = re.compile(r"(weight|kernel)[^./]*$|\bweight\.original[01]$")
#: Keys of a norm's arrays by our names: one, or two whose product it is.
_Keys = dict[str, tuple[str, ...]]
#: Dimensions of a layer by those of the weight before it.
_DIMENSIONS = {2: 1, 3: 1, 4: 2, 5: 3}


def norms_of(checkpoint: Checkpoint) -> list[Norm]:
    """Every batch norm of a checkpoint, in its order; arrays as they are, unchecked.

    One of which no layer can be made is among them, and says why: who loads refuses it, who
    inspects lists it.
    """
    if checkpoint.norms is not None:
        return checkpoint.norms
    tensors, ordered = checkpoint.tensors, checkpoint.ordered
    weights = _Weights(tensors, ordered, last=False)
    norms = []
    found, faults = _by_last_name(tensors, _TORCH)
    _add_parts(found, faults, tensors)
    for name, keys in found.items():
        norm = _norm(tensors, name, keys, weights.dimensions(name, keys))
        norms.append(norm._replace(invalid=faults[name]) if name in faults else norm)
    weights = _Weights(tensors, ordered, last=True)
    keras = keras_layers.EPSILON, keras_layers.momentum(keras_layers.MOMENTUM)
    found, faults = _by_last_name(tensors, KERAS)
    for name, keys in found.items():
        size = weights.dimensions(name, keys)
        norm = _norm(tensors, name, keys, size, *keras, channels_last=True)
        norms.append(norm._replace(invalid=faults[name]) if name in faults else norm)
    weights = _Weights(tensors, False, last=True)  # nested dictionaries that JAX has sorted
    flax = _FLAX_EPS, keras_layers.momentum(_FLAX_MOMENTUM)
    for name, keys in _of_flax(tensors).items():
        size = weights.dimensions(f"params.{name}", keys)
        norms.append(_norm(tensors, name, keys, size, *flax, channels_last=True))
    return [_with_settings(norm, checkpoint.settings.get(norm.name, {})) for norm in norms]


def _norm(
    tensors: Mapping[str, np.ndarray], name: str, keys: _Keys, dimensions: int | None,
    eps: float | None = None, momentum: float | None = None, channels_last: bool = False,
) -> Norm:  # fmt: skip
    """A norm of the arrays that go under some keys."""
    read = {ours: _read(tensors, *of_one) for ours, of_one in keys.items()}
    arrays = {ours: found for ours, found in read.items() if not isinstance(found, ValueError)}
    invalid = next((str(found) for found in read.values() if isinstance(found, ValueError)), "")
    every = tuple(key for of_one in keys.values() for key in of_one)
    axis = -1 if channels_last else 1
    return Norm(name, arrays, eps, momentum, dimensions, axis, every, channels_last, True, invalid)


def _read(
    tensors: Mapping[str, np.ndarray], key: str, mask: str | None = None
) -> np.ndarray | ValueError:
    """An array, or why there is none: it is damaged, or its mask has another shape."""
    try:
        return tensors[key] if mask is None else made.product(tensors, key, mask)
    except ValueError as error:
        return error


def _with_settings(norm: Norm, settings: Mapping[str, Any]) -> Norm:
    """What `fastbn.save` has noted comes before what was guessed."""
    known = {k: v for k, v in settings.items() if k in Norm._fields and k in NAMES}
    return norm._replace(**known, eps_assumed="eps" not in known)


# --- names ----------------------------------------------------------------------------------------


def _by_last_name(
    tensors: Mapping[str, np.ndarray], names: Mapping[str, str]
) -> tuple[dict[str, _Keys], dict[str, str]]:
    """Keys by our names, by the layer: what stands before the last dot or slash; and faults."""
    groups: dict[str, dict[str, list[str]]] = {}
    for key in tensors:
        match = re.fullmatch(r"(?:(.*)[./])?([^./]*?)(?::0)?", key, re.DOTALL)
        if match and match[2] in names:
            group = groups.setdefault(match[1] or "", {})
            group.setdefault(names[match[2]], []).append(key)
    found: dict[str, _Keys] = {}
    faults = {}
    for layer, keys in groups.items():
        statistics = [name for name in (MEAN, VAR) if name in keys]
        if not statistics:
            continue
        found[layer] = {name: (keys[name][0],) for name in TORCH if name in keys}
        twice = next((several for several in keys.values() if len(several) > 1), None)
        if len(statistics) == 1:
            faults[layer] = (
                f"has {keys[statistics[0]][0]!r}, and no other half of the running statistics "
                "beside it: a batch norm needs mean and variance"
            )
        elif twice:
            faults[layer] = f"has both {twice[0]!r} and {twice[1]!r}; expected one"
    return found, faults


def _add_parts(
    found: dict[str, _Keys], faults: dict[str, str], tensors: Mapping[str, np.ndarray]
) -> None:
    """Add what a weight or bias is made of, where torch has taken it apart."""
    for (layer, name), parts in made.parts_of(tensors).items():
        if layer in found and name not in found[layer]:
            try:
                found[layer][name] = made.keys_of(layer, name, parts)
            except ValueError as error:
                faults.setdefault(layer, str(error))


def _of_flax(tensors: Mapping[str, np.ndarray]) -> dict[str, _Keys]:
    """Flax keeps statistics apart: batch_stats.X.mean and .var, params.X.scale and .bias."""
    found: dict[str, _Keys] = {}
    for key in tensors:
        match = re.fullmatch(r"batch_stats\.(?:(.*)\.)?mean", key, re.DOTALL)
        layer = match[1] if match else None
        if not layer or f"batch_stats.{layer}.var" not in tensors:
            continue
        keys = {
            WEIGHT: f"params.{layer}.scale", BIAS: f"params.{layer}.bias",
            MEAN: key, VAR: f"batch_stats.{layer}.var",
        }  # fmt: skip
        found[layer] = {name: (key,) for name, key in keys.items() if key in tensors}
    return found


# --- dimensions -----------------------------------------------------------------------------------


class _Weights:
    """Weights of convolutions and linear layers, by the number of channels they may put out."""

    def __init__(self, tensors: Mapping[str, np.ndarray], ordered: bool, last: bool) -> None:
        self._tensors, self._ordered = tensors, ordered
        order = list(tensors) if ordered else sorted(tensors, key=_natural)
        self._position = {key: k for k, key in enumerate(order)}
        self._by_channels: dict[int, list[tuple[int, str, int]]] = {}
        for k, key in enumerate(order):
            if not _WEIGHT.search(key):
                continue
            shape = _shape(tensors, key)
            if len(shape) in _DIMENSIONS:
                # output channels come first, or last; those of a transposed one are beside them
                sizes = shape[-2:] if last else shape[:2]
                own = sizes[-1:] if last else sizes[:1]
                for channels in set(sizes if len(shape) > 2 else own):
                    found = self._by_channels.setdefault(channels, [])
                    found.append((k, key, _DIMENSIONS[len(shape)]))

    def dimensions(self, name: str, keys: _Keys) -> int | None:
        """Of the layer that feeds a norm, as far as names and shapes tell.

        Where the order of the file is that of the network, it is the nearest one before the norm
        whose output channels match; otherwise one that shares most of the norm's path, and then
        the nearest one.
        """
        mean = (keys.get(MEAN) or keys[VAR])[0]
        channels, position = math.prod(_shape(self._tensors, mean)), self._position[mean]
        matching = self._by_channels.get(channels, [])
        if self._ordered:
            before = bisect.bisect(matching, (position, "", 0))
            return matching[before - 1][2] if before else None

        def farness(weight: tuple[int, str, int]) -> tuple[int, bool, int]:
            k, key, _ = weight
            return -_likeness(name, key), k > position, abs(k - position)

        return min(matching, key=farness)[2] if matching else None


def _shape(tensors: Mapping[str, np.ndarray], key: str) -> tuple[int, ...]:
    return tensors.shape(key) if isinstance(tensors, Tensors) else tensors[key].shape


def _likeness(name: str, key: str) -> int:
    """How many parts at the beginning of two paths are the same."""
    common = 0
    for mine, theirs in zip(re.split("[./]", name), re.split("[./]", key), strict=False):
        if mine != theirs:
            break
        common += 1
    return common


def _natural(key: str) -> list[Any]:
    """Sort key in which 10 comes after 9."""
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in re.split(r"(\d+)", key)]
