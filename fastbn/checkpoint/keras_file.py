"""Files of Keras: ``.keras``, and HDF5 with a whole model or its weights alone."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastbn.checkpoint import hdf5, keras_layers
from fastbn.checkpoint.contents import Checkpoint, Lazy, Norm, Tensors
from fastbn.checkpoint.keras_layers import Described
from fastbn.checkpoint.keras_zip import opened
from fastbn.layers.names import KERAS

__all__ = ["read"]


def read(path: Path) -> Checkpoint:
    """Batch norms and other arrays of a Keras file; needs ``pip install 'fastbn[keras]'``.

    It takes ``.keras`` files, HDF5 files of whole models (``model.save("model.h5")``) and of
    weights (``.weights.h5``), as Keras 3 and Keras 2 write them.

    Tensors are named by layer and variable, ``block.conv.kernel``, where ``block`` is a model
    within the model. A kernel of a convolution is ``(height, width, in, out)``, of a depthwise one
    ``(height, width, in, multiplier)``: ``kernel.transpose(3, 2, 0, 1)`` is the former as torch
    has it. A layer that leaves out gamma or beta (``scale=False``, ``center=False``) leaves out
    ``weight`` or ``bias``. Momentum is converted: 0.99, the weight of the old value, is 0.01, that
    of the new one. Keras's running variance averages *biased* variances, ``/ m``, where torch
    takes ``/ (m - 1)``: evaluation is the same as in Keras, further training here mixes the two.

    A file of weights does not hold the arguments of layers. There, and for layers that a model of
    one's own class makes inside, ``eps`` is 1e-3, ``momentum`` 0.01 and the channels are last, as
    Keras has them by default; layers are then recognized by their arrays. Pass ``eps=`` to
    `fastbn.load_batch_norms` if the model had another one.

    Where a batch norm has other arrays than its arguments say, or a file of weights does not tell
    whether it leaves out gamma or beta, there are no norms, and ``no_norms`` says why.

    Raises
    ------
    ImportError
        Without h5py.
    ValueError
        If the file is damaged or not Keras's; if it links to other files; if arrays claim more
        than the file holds.

    References
    ----------
    https://keras.io/api/layers/normalization_layers/batch_normalization/
    """
    with opened(path) as (stream, config):
        contents = hdf5.survey(stream)
    if config is None:
        config = _parsed(contents.config) if contents.config else None
    described = keras_layers.described(config) if config is not None else {}
    layers = list(_layers(contents, described))
    if described:
        order = {name: at for at, name in enumerate(described)}
        layers.sort(key=lambda layer: order.get(layer.name, len(order)))
    entries = {
        f"{layer.name}.{variable}".lstrip("."): _lazy(path, place, contents.arrays[place])
        for layer in layers
        for variable, place in layer.variables.items()
    }
    ordered = bool(described) or contents.layer_names is not None
    norms, missing = _norms(layers, entries, ordered)
    return Checkpoint(Tensors(entries), norms, ordered=ordered, no_norms=missing)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its configuration is no JSON: {error}") from error


def _lazy(path: Path, place: str, found: hdf5.Found) -> Lazy:
    def values() -> np.ndarray:
        with opened(path, config=False) as (stream, _):
            return hdf5.read(stream, place)

    return Lazy(values, found.shape)


# --- layers ---------------------------------------------------------------------------------------


class _Layer(NamedTuple):
    """A layer with arrays: its dotted name, its class where it is known, places of its arrays."""

    name: str
    kind: str
    variables: dict[str, str]
    shapes: list[tuple[int, ...]]
    described: Described | None


def _layers(contents: hdf5.Contents, described: Mapping[str, Described]) -> Iterator[_Layer]:
    if contents.layer_names is not None:
        found = _layers_by_name(contents, described)
    else:
        found = _layers_by_number(contents, described)
    for name, kind, places, description in found:
        shapes = [contents.arrays[place].shape for place in places.values()]
        yield _Layer(name, kind, places, shapes, description)


_Found = tuple[str, str, dict[str, str], Described | None]


def _layers_by_name(
    contents: hdf5.Contents, described: Mapping[str, Described]
) -> Iterable[_Found]:
    """Keras 2, and HDF5 files of whole models: layer_names and weight_names list everything."""
    layers: dict[str, dict[str, str]] = {}
    for layer, weights in (contents.layer_names or {}).items():
        scopes = {weight.rpartition("/")[0] for weight in weights}
        for weight in weights:
            place = f"{contents.root}{layer}/{weight}"
            if place not in contents.arrays:
                raise ValueError(f"lists an array {place!r}, which is not in it")
            scope, _, variable = weight.rpartition("/")
            # of a model in the model, the scope says which layer; else it repeats the name, or
            # has a number at its end that another session of Keras had counted
            inner = scope.split("/")[-1] if len(scopes) > 1 else layer
            if inner == layer or f"{layer}.{inner}" in described or len(scopes) > 1:
                name = layer if inner == layer else f"{layer}.{_inner(scope, layer)}"
            layers.setdefault(name, {})[variable.removesuffix(":0")] = place
    by_last = _by_last_name(described)
    for name, places in layers.items():
        description = described.get(name) or by_last.get(name.rpartition(".")[2])
        yield name, "", places, description


def _inner(scope: str, layer: str) -> str:
    parts = scope.split("/")
    at = len(parts) - parts[::-1].index(layer) if layer in parts else 0
    return ".".join(parts[at:])


def _layers_by_number(
    contents: hdf5.Contents, described: Mapping[str, Described]
) -> Iterable[_Found]:
    """Keras 3: groups "vars" with arrays "0", "1", ...; groups have names of classes."""
    by_last, by_place = _by_last_name(described), {d.place: d for d in described.values()}
    groups: dict[str, list[str]] = {}
    for place in contents.arrays:
        group, _, last = place.rpartition("/")
        if last.isdecimal() and f"/{group}".endswith("/vars"):
            groups.setdefault(group, []).append(place)
    if not groups:
        raise ValueError(
            "is HDF5, and not of Keras: there is neither an attribute 'layer_names' nor a group "
            "'vars' in it"
        )
    for group, places in groups.items():
        place = group.removesuffix("vars").rstrip("/").replace(keras_layers.OLD_CONTAINER, "layers")
        own = contents.group_names.get(group)
        description = by_place.get(place)
        if description is None or own not in (None, description.name):
            description = by_last.get(own or "")
        name = description.path if description else _readable(place, contents)
        kind = _kind(place, own, description)
        places.sort(key=lambda place: int(place.rpartition("/")[2]))
        shapes = [contents.arrays[place].shape for place in places]
        variables = keras_layers.variables(kind, shapes, description and description.config)
        yield name, kind, dict(zip(variables, places, strict=True)), description


def _kind(place: str, own: str | None, description: Described | None) -> str:
    """The class, with underscores; else what the layer is called without its number."""
    if description:
        return keras_layers.snake_case(description.class_name)
    kind = re.sub(r"_\d+$", "", place.rpartition("/")[2])
    guess = re.sub(r"_\d+$", "", own or "")
    return guess if guess == "batch_normalization" else kind


def _readable(place: str, contents: hdf5.Contents) -> str:
    """Names that the layers of a model have, names of attributes elsewhere."""
    parts, names, so_far = place.split("/"), [], ""
    for before, part in zip(["", *parts], parts, strict=False):
        so_far = f"{so_far}/{part}".lstrip("/")
        if part != "layers":
            own = contents.group_names.get(f"{so_far}/vars")
            names.append(own if own and before == "layers" else part)
    return ".".join(names)


def _by_last_name(described: Mapping[str, Described]) -> dict[str, Described]:
    """Those whose own name is that of no other layer."""
    found: dict[str, Described | None] = {}
    for layer in described.values():
        found[layer.name] = None if layer.name in found else layer
    return {name: layer for name, layer in found.items() if layer}


# --- norms ----------------------------------------------------------------------------------------


def _norms(
    layers: list[_Layer], entries: Mapping[str, Lazy], ordered: bool
) -> tuple[list[Norm], str]:
    """All norms, or none and the reason; other arrays of the file can be loaded all the same."""
    try:
        norms = [_norm(layer, entries, layers, ordered) for layer in layers if _is_norm(layer)]
    except ValueError as error:
        return [], str(error)
    return norms, "" if norms else f"has no batch norm among its {len(layers)} layers with arrays"


def _is_norm(layer: _Layer) -> bool:
    if layer.described:
        return layer.described.class_name in keras_layers.BATCH_NORMS
    statistics = {"moving_mean", "moving_variance"} <= layer.variables.keys()
    return statistics or layer.kind == "batch_normalization"


def _norm(layer: _Layer, entries: Mapping[str, Lazy], layers: list[_Layer], ordered: bool) -> Norm:
    """A layer as a norm; its values are small, so they are read at once."""
    config = layer.described.config if layer.described else {}
    names = [name for name in KERAS if name in layer.variables]
    _check_names(layer, names)
    rank = layer.described.rank if layer.described else None
    keys = {name: f"{layer.name}.{name}".lstrip(".") for name in names}
    momentum = _number(config, "momentum", keras_layers.MOMENTUM, layer.name)
    return Norm(
        layer.name,
        {KERAS[name]: entries[key].read() for name, key in keys.items()},
        eps=_number(config, "epsilon", keras_layers.EPSILON, layer.name),
        momentum=keras_layers.momentum(momentum),
        dimensions=keras_layers.DIMENSIONS.get(rank or 0)
        or _dimensions_by_kernels(layer, layers, ordered),
        axis=keras_layers.axis(config.get("axis", -1), rank, layer.name),
        keys=tuple(keys.values()),
        scale_left_out=True,
    )


def _check_names(layer: _Layer, names: list[str]) -> None:
    found = f"batch norm {layer.name!r} has the arrays {list(layer.variables)}"
    if layer.described:
        expected = keras_layers.of_batch_norm(layer.described.config)
        if sorted(names) != sorted(expected):
            raise ValueError(f"{found}, and by its configuration {expected}")
    elif not {"moving_mean", "moving_variance"} <= set(names):
        raise ValueError(
            f"{found}, and a file of weights does not say whether gamma or beta is left out; load "
            "the .keras file of the whole model, or these arrays with fastbn.load_tensors"
        )


def _number(config: Mapping[str, Any], key: str, default: float, name: str) -> float:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"batch norm {name!r} has {key} {value!r:.80}, expected a number")
    return float(value)


def _dimensions_by_kernels(layer: _Layer, layers: list[_Layer], ordered: bool) -> int | None:
    """Those of the convolution or dense layer before it, or of all, where they have as many."""
    if ordered:
        before = layers[: layers.index(layer)]
        ranks = [len(other.shapes[0]) for other in before if len(other.shapes[0]) > 1][-1:]
    else:
        ranks = list({len(other.shapes[0]) for other in layers} & {3, 4, 5})
    return keras_layers.DIMENSIONS.get(ranks[0]) if len(ranks) == 1 else None
