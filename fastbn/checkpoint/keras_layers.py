"""The configuration of a Keras model: which layers there are, with which arguments."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from fastbn.layers.names import KERAS

BATCH_NORMS = ("BatchNormalization", "BatchNormalizationV1", "SyncBatchNormalization")
#: Spatial dimensions of a batch norm, by the number of axes of its input.
DIMENSIONS = {2: 1, 3: 1, 4: 2, 5: 3}
#: What "layers" was called by TensorFlow 2.12.
OLD_CONTAINER = "_layer_checkpoint_dependencies"
#: What Keras takes where nothing else is said. Its momentum is the weight of the old value.
EPSILON, MOMENTUM = 1e-3, 0.99
#: Layers whose output has as many axes as their input.
_SAME_RANK = {
    *("BatchNormalization", "LayerNormalization", "GroupNormalization", "UnitNormalization"),
    *("Activation", "ReLU", "LeakyReLU", "PReLU", "ELU", "ThresholdedReLU", "Softmax", "Dense"),
    *("Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "GaussianNoise"),
    *("Add", "Average", "Multiply", "Subtract", "Maximum", "Minimum", "Concatenate", "Permute"),
    *("Rescaling", "Normalization", "ActivityRegularization", "Masking", "Identity"),
}
_SPATIAL = re.compile(r"(.*Conv|.*Pooling|UpSampling|ZeroPadding|Cropping)([123])D(Transpose)?$")


class Described(NamedTuple):
    """A layer of a configuration."""

    #: With the models around it, dotted.
    path: str
    #: Of its group in the files of Keras 3.
    place: str
    class_name: str
    config: Mapping[str, Any]
    #: Axes of its input, where that is known.
    rank: int | None

    @property
    def name(self) -> str:
        """What the model calls it, without the models around it."""
        return self.path.rpartition(".")[2]


def described(config: Any) -> dict[str, Described]:
    """Layers by dotted name, in the model's order; of what it does not know it says nothing."""
    try:
        found: dict[str, Described] = {}
        for layer in _walk(config, "", ""):
            found.setdefault(layer.path, layer)
        return found
    except RecursionError as error:
        raise ValueError("its configuration nests too deep") from error


def _walk(model: Any, path: str, place: str) -> Iterator[Described]:
    """Layers of a model, and of models and wrapped layers within it."""
    inner = _dict(model).get("config")
    # Keras 1 and 2.0 wrote the layers of a Sequential without its name
    layers = inner if isinstance(inner, list) else _dict(inner).get("layers")
    used: dict[str, int] = {}
    ranks: dict[str, int | None] = {}
    before: int | None = None
    for layer in layers if isinstance(layers, list) else ():
        arguments, kind = _dict(_dict(layer).get("config")), _dict(layer).get("class_name")
        name = _dict(layer).get("name") or arguments.get("name")
        if not isinstance(kind, str) or not isinstance(name, str):
            continue
        rank = _rank_of_input(layer, ranks) or before
        ranks[name] = before = _rank_of_output(kind, arguments, rank)
        own = _join(path, name, "."), f"{_join(place, 'layers', '/')}/{_unique(kind, used)}"
        yield Described(*own, kind, arguments, rank)
        yield from _walk(layer, *own)
    for key, wrapped in _dict(inner).items():  # TimeDistributed, Bidirectional, one's own
        name = _dict(_dict(wrapped).get("config")).get("name")
        kind = _dict(wrapped).get("class_name")
        if isinstance(name, str) and isinstance(kind, str) and kind != "DTypePolicy":
            own = _join(path, name, "."), _join(place, key, "/")
            yield Described(*own, kind, _dict(_dict(wrapped).get("config")), None)
            yield from _walk(wrapped, *own)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _join(before: str, after: str, by: str) -> str:
    return f"{before}{by}{after}" if before else after


def _unique(kind: str, used: dict[str, int]) -> str:
    """How Keras 3 calls the groups of its files: classes, and numbers from the second on."""
    name = snake_case(kind)
    count = used[name] = used.get(name, -1) + 1
    return f"{name}_{count}" if count else name


def snake_case(name: str) -> str:
    """``keras.src.utils.naming.to_snake_case``."""
    name = re.sub(r"\W+", "", name)
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


# --- axes -----------------------------------------------------------------------------------------


def _rank_of_input(layer: Any, ranks: Mapping[str, int | None]) -> int | None:
    shape = _dict(_dict(layer).get("build_config")).get("input_shape")
    if isinstance(shape, list) and not any(isinstance(length, (list, dict)) for length in shape):
        return len(shape)
    return _rank_of_inbound(_dict(layer).get("inbound_nodes"), ranks)


def _rank_of_inbound(nodes: Any, ranks: Mapping[str, int | None]) -> int | None:
    """Of the first tensor that goes in: Keras 3 writes its shape, Keras 2 where it comes from."""
    while isinstance(nodes, (list, dict)) and nodes:
        if isinstance(nodes, list) and isinstance(nodes[0], str):
            return ranks.get(nodes[0])
        if isinstance(nodes, list):
            nodes = nodes[0]
        elif nodes.get("class_name") == "__keras_tensor__":
            shape = _dict(nodes.get("config")).get("shape")
            return len(shape) if isinstance(shape, list) else None
        else:
            nodes = nodes.get("args")
    return None


def _rank_of_output(kind: str, arguments: Mapping[str, Any], rank: int | None) -> int | None:
    shape = arguments.get("batch_shape") or arguments.get("batch_input_shape")
    if kind == "InputLayer":
        return len(shape) if isinstance(shape, list) else None
    if kind == "Flatten" or (kind.startswith("Global") and not arguments.get("keepdims")):
        return 2
    if kind == "Reshape" and isinstance(arguments.get("target_shape"), list):
        return len(arguments["target_shape"]) + 1
    spatial = _SPATIAL.match(kind)
    if spatial:
        return int(spatial[2]) + 2
    return rank if kind in _SAME_RANK else None


def axis(value: Any, rank: int | None, name: str) -> int:
    """The axis of the channels as fastbn wants it: -1 for the last, whatever its number."""
    if isinstance(value, list) and len(value) == 1:  # Keras 2
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"batch norm {name!r} has axis {value!r:.80}, expected one integer")
    if value in (1, -1) or rank is None:
        return value if value in (1, -1) else -1
    return -1 if value == rank - 1 else value


def momentum(value: float) -> float:
    """Keras's momentum as torch means it: the weight of the new value."""
    return round(1 - value, 12)


# --- variables ------------------------------------------------------------------------------------


def variables(
    kind: str, shapes: Sequence[tuple[int, ...]], config: Mapping[str, Any] | None
) -> list[str]:
    """Names of the arrays that Keras 3 has numbered, in their order; numbers where none is known.

    ``config`` is that of the layer, None if only its class ``kind`` is known, or guessed.
    """
    count = len(shapes)
    equal = len(set(shapes)) == 1 and len(shapes[0]) == 1
    if kind in ("batch_normalization", "sync_batch_normalization") and config is not None:
        names = of_batch_norm(config)
        fits = count == len(names) or (count > len(names) and config.get("renorm"))
        return _numbered(names if fits else (), count)
    if config is None and equal and (count == 4 or (kind == "batch_normalization" and count == 2)):
        return list(KERAS)[-count:]
    if kind.startswith("separable_conv"):
        return _numbered(("depthwise_kernel", "pointwise_kernel", "bias"), count)
    plain = count <= 2 and len(shapes[0]) >= 2 and all(len(shape) == 1 for shape in shapes[1:])
    return _numbered(("kernel", "bias") if plain and kind != "embedding" else (), count)


def of_batch_norm(config: Mapping[str, Any]) -> list[str]:
    """Names of the arrays that a batch norm has, in their order."""
    flags = {"gamma": "scale", "beta": "center"}
    return [name for name in KERAS if config.get(flags.get(name, ""), True)]


def _numbered(names: Sequence[str], count: int) -> list[str]:
    return [*names[:count], *map(str, range(len(names), count))]
