"""What folding starts from and ends with: terms of a layer, weights of a neighbour, rounding."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import numpy as np

from fastbn._call import arguments, backend, places
from fastbn._call.settings import check_bool
from fastbn.kernels import formulas
from fastbn.layers.state import LayerState

__all__ = ["Terms", "Weights", "rounded", "shaped", "terms_of", "weights_of"]


class Terms(NamedTuple):
    """Of evaluation, ``y = (x - mean) * scale + bias``, each float64 of shape (C,)."""

    mean: np.ndarray
    scale: np.ndarray
    bias: np.ndarray


class Weights(NamedTuple):
    """Of a convolution or a linear layer, in float64."""

    weight: np.ndarray
    bias: np.ndarray
    dtype: np.dtype  # what results are rounded to
    groups: int
    transposed: bool

    @property
    def channels_in(self) -> int:
        """Of the input."""
        first, second = self.weight.shape[:2]
        return first if self.transposed else second * self.groups

    @property
    def channels_out(self) -> int:
        """Of the output."""
        return _channels_out(self.weight.shape, self.groups, self.transposed)

    @property
    def grouped(self) -> np.ndarray:
        """The weight as ``(groups, out, in, *kernel)``, in and out of one group: a view."""
        first, second, *kernel = self.weight.shape
        grouped = self.weight.reshape(self.groups, first // self.groups, second, *kernel)
        return grouped.swapaxes(1, 2) if self.transposed else grouped


def terms_of(bn: Any) -> Terms:
    """What evaluation of a batch norm layer does, without its activation."""
    if not isinstance(bn, LayerState):
        kind = type(bn).__name__
        way = "fastbn.BatchNorm2d, with bn.load_state_dict(...) for arrays from elsewhere"
        if kind in ("GroupNorm", "LayerNorm", "RMSNorm"):
            way = f"{kind} takes the statistics of each sample, and cannot be folded"
        raise TypeError(f"bn must be a batch norm layer of fastbn, got {kind}; {way}")
    if bn.running_mean is None:
        raise ValueError(
            "bn has no running statistics (track_running_stats=False): its scale depends on each "
            "batch, so there is nothing to fold; train a layer with them, or take them from data: "
            "fastbn.recalibrate"
        )
    arrays = {name: array.astype(np.float64) for name, array in bn.state_dict().items()}
    channels = bn.num_features
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        rstd = formulas.reciprocal_std(arrays["running_var"], bn.eps)
        scale = rstd * arrays.get("weight", 1.0)
    return Terms(arrays["running_mean"], scale, arrays.get("bias", np.zeros(channels)))


def weights_of(weight: Any, bias: Any, groups: Any, transposed: Any, linear: bool) -> Weights:
    """The arrays of a convolution or linear layer, checked against each other."""
    weight, transposed = _real("weight", weight), check_bool("transposed", transposed)
    expected = "(out, in)" if linear else "(out, in / groups, *kernel)"
    if transposed:
        expected = "(in, out / groups, *kernel)"
    if (weight.ndim != 2) if linear else (weight.ndim < 3):
        other = "conv" if linear else "linear"
        raise ValueError(
            f"weight must be {expected}, got shape {weight.shape}; for the other kind of layer "
            f"there is the function with {other!r} in its name"
        )
    groups = _checked_groups(groups, weight, expected)
    channels = _channels_out(weight.shape, groups, transposed)
    given = np.zeros(channels) if bias is None else _real("bias", bias)
    if given.shape != (channels,):
        raise ValueError(
            f"bias must have shape ({channels},), one for each output channel of a weight "
            f"{expected} of shape {weight.shape} with groups={groups}, got {given.shape}"
        )
    dtype = arguments.native(weight.dtype)
    return Weights(
        weight.astype(np.float64), given.astype(np.float64), dtype, groups, transposed
    )  # fmt: skip


def _real(name: str, value: Any) -> np.ndarray:
    """``value`` as an array of floats, from anywhere."""
    if places.on_device(value):
        value = backend.to_numpy(value, name)
    try:
        array = np.asarray(value)
    except Exception as error:
        raise TypeError(f"{name} cannot be read as an array: {error}") from error
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise TypeError(
            f"{name} must be an array of floats, got dtype {array.dtype} of "
            f"{type(value).__name__}; convert it, of quantized numbers to what they stand for: "
            f"np.asarray({name}, np.float32)"
        )
    return array


def _checked_groups(groups: Any, weight: np.ndarray, expected: str) -> int:
    if isinstance(groups, bool) or not hasattr(type(groups), "__index__"):
        raise TypeError(f"groups must be an integer, got {groups!r}")
    number = operator.index(groups)
    if number < 1 or weight.shape[0] % number:
        raise ValueError(
            f"groups must divide the first axis of a weight {expected} of shape {weight.shape}, "
            f"got groups={groups!r}"
        )
    return number


def _channels_out(shape: tuple[int, ...], groups: int, transposed: bool) -> int:
    return shape[1] * groups if transposed else shape[0]


def check_channels(bn: LayerState, weights: Weights, side: str) -> None:
    """Raise where the layer has not as many channels as that side of the weight."""
    channels = weights.channels_out if side == "output" else weights.channels_in
    wanted, shape = bn.num_features, weights.weight.shape
    if channels == wanted:
        return
    way = ""
    other = not weights.transposed
    if len(shape) > 2 and _fits(shape, weights.groups, other, side, wanted):
        way = f"; it fits with transposed={other}"
    elif len(shape) > 2 and shape[-1 if side == "output" else -2] == wanted:
        order = (len(shape) - 1, len(shape) - 2, *range(len(shape) - 2))
        way = f"; is it a kernel of Keras or Flax? weight.transpose{order} is in torch's layout"
    elif len(shape) == 2 and shape[0 if side == "input" else 1] == wanted:
        way = "; is it (in, out)? then pass weight.T"
    elif side == "input" and len(shape) == 2 and channels % wanted == 0:
        way = (
            "; for a norm before a flatten, take the linear layer as the convolution that it is: "
            f"fold_bn_conv(bn, weight.reshape({shape[0]}, {wanted}, {channels // wanted}), bias)"
        )
    elif side == "input" and len(shape) > 2 and wanted % shape[1] == 0:
        way = f"; it fits with groups={wanted // shape[1]}"
    raise ValueError(
        f"bn has num_features={wanted}, and a weight of shape {shape} with groups="
        f"{weights.groups}, transposed={weights.transposed} has {channels} {side} channels{way}"
    )


def _fits(shape: tuple[int, ...], groups: int, transposed: bool, side: str, wanted: int) -> bool:
    """Whether a weight has so many channels there."""
    if side == "output":
        return _channels_out(shape, groups, transposed) == wanted
    return (shape[0] if transposed else shape[1] * groups) == wanted


def shaped(vector: np.ndarray, weights: Weights, side: str) -> np.ndarray:
    """A value for each channel of one side, to be multiplied with `Weights.grouped`."""
    kernel = (1,) * (weights.weight.ndim - 2)
    per_group = vector.reshape(weights.groups, -1)
    return per_group.reshape(
        (weights.groups, -1, 1, *kernel) if side == "output" else (weights.groups, 1, -1, *kernel)
    )


def rounded(name: str, values: np.ndarray, dtype: np.dtype, *origin: np.ndarray) -> np.ndarray:
    """``values`` in ``dtype``; ValueError if they leave its range and what they come from did
    not."""
    with np.errstate(over="ignore"):
        result = nearest(values, dtype)
    if np.isfinite(result.astype(np.float64)).all():
        return result
    if all(np.isfinite(array).all() for array in origin):
        raise ValueError(
            f"the folded {name} does not fit {dtype.name}: its largest value is "
            f"{np.abs(values).max():.3g}; pass weight.astype(np."
            f"{'float32' if dtype.itemsize == 2 else 'float64'}), or leave this layer as it is"
        )
    return result  # NaN and infinity of the network itself stay what they are


def nearest(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """``values`` of float64 rounded once."""
    if dtype.name != "bfloat16":
        return values.astype(dtype, order="C")
    # ml_dtypes goes by float32, and what is halfway there would be rounded twice: so to float32
    # towards zero, with the last bit set where something was cut off
    single = values.astype(np.float32, order="C")
    bits = single.view(np.uint32)
    too_large = np.abs(single) > np.abs(values)
    inexact = single != values
    bits -= too_large
    bits |= inexact
    return single.astype(dtype)
