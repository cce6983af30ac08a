"""A layer of the arrays of a batch norm, after every check."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastbn.checkpoint.contents import Norm
from fastbn.checkpoint.settings import ATTRIBUTES, RENORM, limit_of
from fastbn.layers import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    BatchRenorm1d,
    BatchRenorm2d,
    BatchRenorm3d,
)
from fastbn.layers.base import BatchNorm
from fastbn.layers.names import COUNTER, MEAN, VAR

#: By what a note says of the kind, and by dimensions.
_LAYERS: dict[str, dict[int, type[BatchNorm]]] = {
    "": {1: BatchNorm1d, 2: BatchNorm2d, 3: BatchNorm3d},
    RENORM: {1: BatchRenorm1d, 2: BatchRenorm2d, 3: BatchRenorm3d},
}


def layer_of(
    norm: Norm, eps: float | None, dimensions: int | None, settings: Mapping[str, Any]
) -> BatchNorm:
    """A layer in evaluation mode with copies of the arrays; ValueError if they are no batch norm.

    ``eps`` and ``dimensions`` come before what the file says.
    """
    if norm.invalid:
        raise ValueError(norm.invalid)
    arrays = {name: np.asarray(array) for name, array in norm.arrays.items()}
    channels = _channels(norm.name, arrays)
    state = {
        name: _checked(f"{norm.name}.{name}", array, channels)
        for name, array in arrays.items()
        if name != COUNTER
    }
    if (state[VAR] < 0).any():
        raise ValueError(
            f"{norm.name}.running_var holds negative values, which no variance can be: "
            f"{state['running_var'].min()}"
        )
    state[COUNTER] = counter_of(norm.name, arrays.get(COUNTER, np.zeros((), np.int64)))
    if "bias" in state and "weight" not in state:
        if not norm.scale_left_out:
            raise ValueError(
                f"{norm.name!r} has a bias and no weight, as batch norms of torch never have: is "
                f"it under another name? Where ones are meant, add them as {norm.name}.weight"
            )
        state["weight"] = np.ones(channels, state["bias"].dtype)
    wide = any(array.dtype == np.float64 for array in state.values())
    momentum = settings.get("momentum", 0.1) if norm.momentum is None else norm.momentum
    if eps is None:
        eps = 1e-5 if norm.eps is None else norm.eps
    kind = _LAYERS.get(settings.get("kind", ""), {}).get(dimensions or norm.dimensions or 2)
    if kind is None:
        raise ValueError(
            f"{norm.name!r} is of kind {settings.get('kind', '')!r:.80} and has dimensions "
            f"{norm.dimensions!r}, expected 1, 2 or 3 of {RENORM!r} or no kind"
        )
    try:
        layer = kind(
            channels, eps, momentum, affine="weight" in state, bias="bias" in state,
            axis=norm.axis, dtype=np.float64 if wide else np.float32,
        )  # fmt: skip
        layer.load_state_dict(state)
        layer.eval()  # where it may have what goes together only there
        for name in ATTRIBUTES:
            if name in settings:
                setattr(layer, name, limit_of(settings[name]))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{norm.name!r} cannot be made: {error.args[0]}") from error
    return layer


def _channels(name: str, arrays: Mapping[str, np.ndarray]) -> int:
    for needed in (MEAN, VAR):
        if needed not in arrays:
            raise ValueError(f"{name!r} has no {needed}, which a batch norm needs")
    shape = arrays[MEAN].shape
    if len(shape) != 1 or not shape[0]:
        raise ValueError(
            f"{name}.running_mean has shape {shape}, expected one value for each channel, (C,)"
        )
    return shape[0]


def _checked(name: str, array: np.ndarray, channels: int) -> np.ndarray:
    """In float32 or float64; 16 bits become 32."""
    bfloat16 = array.dtype.name == "bfloat16"
    if array.dtype.kind != "f" and not bfloat16:
        raise ValueError(f"{name} has dtype {array.dtype}, expected a floating-point one")
    if array.shape != (channels,):
        raise ValueError(
            f"{name} has shape {array.shape}, expected that of running_mean, ({channels},)"
        )
    if array.dtype != np.float64:
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError(
            f"{name} holds NaN or infinity: the network has diverged, or the file is damaged; "
            "fastbn.load_tensors gives the values as they are"
        )
    return array


def counter_of(name: str, array: np.ndarray) -> np.ndarray:
    """Number of batches; some tools make all arrays of a file float16 or give it shape (1,)."""
    fits = array.size == 1 and (array.dtype.kind in "iuf" or array.dtype.name == "bfloat16")
    value = float(array.reshape(())) if fits else -1.0
    if not 0 <= value < 2**63 or value != int(value):
        raise ValueError(
            f"{name}.{COUNTER} is no number of batches: dtype {array.dtype}, shape {array.shape}"
        )
    exact = array.reshape(()) if array.dtype.kind in "iu" else np.asarray(int(value))
    return exact.astype(np.int64)
