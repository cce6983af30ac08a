"""Batch norm folded into the convolution or linear layer before it, or behind it."""

from __future__ import annotations  # so that `help` shows types as they are written here

import warnings
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fastbn.fold import terms
from fastbn.fold.terms import Terms, Weights
from fastbn.layers.state import LayerState

__all__ = [
    "Folded", "FoldedBefore", "fold_bn_conv", "fold_bn_linear", "fold_conv_bn", "fold_linear_bn",
]  # fmt: skip


class Folded(NamedTuple):
    """A convolution or linear layer that does the batch norm's work as well."""

    weight: np.ndarray
    bias: np.ndarray


class FoldedBefore(NamedTuple):
    """A convolution that does the work of the batch norm before it."""

    weight: np.ndarray
    bias: np.ndarray
    #: What to pad each channel of the batch norm's input with, instead of zeros behind it.
    padding: np.ndarray


def fold_conv_bn(
    weight: ArrayLike,
    bias: ArrayLike | None,
    bn: LayerState,
    *,
    transposed: bool = False,
    groups: int = 1,
) -> Folded:
    """Fold a batch norm into the convolution before it: ``conv'(x) == bn(conv(x))``.

    ``weight' = weight * scale`` and ``bias' = (bias - running_mean) * scale + bn.bias``, for each
    output channel, with ``scale = bn.weight / sqrt(running_var + eps)``. Exact for every stride,
    dilation and padding.

    Parameters
    ----------
    weight : array of floats
        ``(out, in / groups, *kernel)``, or transposed ``(in, out / groups, *kernel)``; 1-, 2- and
        3-d, or more. float16 and bfloat16 too, and tensors of torch on the CPU.
    bias : array of shape (out,), or None
        Of the convolution.
    bn : BatchNorm or BatchRenorm layer
        As it is in evaluation, in whichever mode it is now.
    transposed : bool
        Whether it is the weight of a transposed convolution.
    groups : int
        As many as there are input channels, for a depthwise convolution.

    Returns
    -------
    Folded
        ``(weight, bias)``: new arrays, float64 rounded once to the dtype of ``weight``.

    Warns
    -----
    UserWarning
        If the layer has an activation: that stays, behind the folded convolution. So does a
        residual, before the activation.

    Raises
    ------
    TypeError
        If ``bn`` is no such layer, or ``weight`` or ``bias`` no array of floats.
    ValueError
        If shapes do not fit, if ``bn`` has no running statistics, or if a result does not fit
        the dtype.

    Notes
    -----
    Where the mean of a channel is thousands of standard deviations, the convolution in float32
    has lost the digits that `BatchNorm2d` would have kept: folding cannot bring them back.

    References
    ----------
    Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", 2018, section 3.2, equation 14.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> bn = fastbn.BatchNorm2d(2, eps=0.25)
    >>> bn.running_mean[:], bn.running_var[:], bn.bias[:] = (1, 2), (3.75, 15.75), (0.5, 0)
    >>> weight, bias = fastbn.fold.fold_conv_bn(np.ones((2, 1, 1, 1), np.float32), None, bn)
    >>> weight.ravel(), bias
    (array([0.5 , 0.25], dtype=float32), array([ 0. , -0.5], dtype=float32))
    """
    return _fold_after(bn, terms.weights_of(weight, bias, groups, transposed, linear=False))


def fold_linear_bn(weight: ArrayLike, bias: ArrayLike | None, bn: LayerState) -> Folded:
    """Fold a batch norm into the linear layer before it: ``x @ weight'.T + bias'``.

    As `fold_conv_bn`, for a weight of shape ``(out, in)``; the same are results, warnings and
    errors.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> bn, rng = fastbn.BatchNorm1d(3), np.random.default_rng(0)
    >>> w, x = rng.normal(size=(3, 5)), rng.normal(size=(8, 5))
    >>> _ = bn(x @ w.T)                                     # a training step
    >>> weight, bias = fastbn.fold.fold_linear_bn(w, None, bn)
    >>> np.allclose(x @ weight.T + bias, bn.eval()(x @ w.T), rtol=1e-12)
    True
    """
    return _fold_after(bn, terms.weights_of(weight, bias, 1, False, linear=True))


def fold_bn_conv(
    bn: LayerState,
    weight: ArrayLike,
    bias: ArrayLike | None,
    *,
    transposed: bool = False,
    groups: int = 1,
    stride: int | tuple[int, ...] | None = None,
) -> FoldedBefore:
    """Fold a batch norm into the convolution behind it: ``conv'(x) == conv(bn(x))``.

    ``weight' = weight * scale`` for each input channel, and ``bias' = bias`` plus the sum of
    ``weight * shift`` over input channels and kernel, where ``bn(x) = x * scale + shift``. That is
    exact where the convolution does not pad, and where it pads with values of the image
    ("reflect", "replicate", "circular").

    **With zeros around the image** it is not, because they are put there behind the batch norm.
    Pad its input with ``padding`` instead, the value of each channel that it makes 0:
    ``running_mean - bn.bias * sqrt(running_var + eps) / bn.weight``.

    Parameters
    ----------
    bn : BatchNorm or BatchRenorm layer
        As it is in evaluation, in whichever mode it is now.
    weight, bias, transposed, groups
        As for `fold_conv_bn`.
    stride : int or tuple of int
        Of a transposed convolution, which needs it: with a stride of 1 the fold is exact once
        ``x`` is padded with ``padding`` by ``dilation * (kernel - 1)`` on each side and the
        convolution's own padding is larger by as much. With more, each output sees other parts
        of the kernel, and no one bias fits. Other convolutions do not need it.

    Returns
    -------
    FoldedBefore
        ``(weight, bias, padding)``, in the dtype of ``weight``. A channel that batch norm makes
        constant (``bn.weight`` 0) and not 0 has no value to pad with: its ``padding`` is NaN, so
        that nobody pads with it unaware. Without padding the fold is exact for it too.

    Raises
    ------
    TypeError
        If ``bn`` is no such layer, ``weight`` or ``bias`` no array of floats, or ``stride`` of a
        transposed convolution is missing.
    ValueError
        If shapes do not fit, if ``bn`` has no running statistics, or an activation, which stands
        between the two; if a result does not fit the dtype; if a transposed convolution has a
        stride of 2 or more, and the batch norm a shift.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> bn = fastbn.BatchNorm1d(1, eps=0.25)
    >>> bn.running_mean[:], bn.running_var[:], bn.bias[:] = 3, 3.75, -1
    >>> kernel = np.array([[[1, 2, 1]]], np.float32)
    >>> folded = fastbn.fold.fold_bn_conv(bn, kernel, None)
    >>> folded.weight.ravel(), folded.bias, folded.padding.item()
    (array([0.5, 1. , 0.5], dtype=float32), array([-10.], dtype=float32), 5.0)
    >>> bn.eval()(np.full((1, 1), 5, np.float32)).item()    # what padding is made into
    0.0
    """
    weights = terms.weights_of(weight, bias, groups, transposed, linear=False)
    found = _terms_before(bn, weights)
    if weights.transposed:
        _check_stride(stride, weights, found)
    result, new_bias = _fold_before(found, weights)
    return FoldedBefore(result, new_bias, _padding(found, weights.dtype))


def fold_bn_linear(bn: LayerState, weight: ArrayLike, bias: ArrayLike | None) -> Folded:
    """Fold a batch norm into the linear layer behind it.

    As `fold_bn_conv`, for a weight of shape ``(out, in)``, where there is nothing to pad; the same
    are results and errors. Where the image is flattened in between, the linear layer is a
    convolution as large as the image: ``fold_bn_conv(bn, weight.reshape(out, C, -1), bias)``.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> bn, rng = fastbn.BatchNorm1d(5), np.random.default_rng(0)
    >>> w, x = rng.normal(size=(3, 5)), rng.normal(size=(8, 5))
    >>> _ = bn(x)                                           # a training step
    >>> weight, bias = fastbn.fold.fold_bn_linear(bn, w, None)
    >>> np.allclose(x @ weight.T + bias, bn.eval()(x) @ w.T, rtol=1e-12)
    True
    """
    weights = terms.weights_of(weight, bias, 1, False, linear=True)
    return Folded(*_fold_before(_terms_before(bn, weights), weights))


# --- the arithmetic -------------------------------------------------------------------------------


def _fold_after(bn: LayerState, weights: Weights) -> Folded:
    found = terms.terms_of(bn)
    terms.check_channels(bn, weights, "output")
    with np.errstate(invalid="ignore", over="ignore"):
        weight = weights.grouped * terms.shaped(found.scale, weights, "output")
        bias = (weights.bias - found.mean) * found.scale + found.bias
    folded = Folded(*_in_dtype(weight, bias, weights, found))
    activation = getattr(bn, "activation", None)
    if activation is not None:
        warnings.warn(
            f"the layer's activation {activation!r} is not folded: it stays behind the "
            "convolution, and you apply it to what that gives",
            stacklevel=3,
        )
    return folded


def _terms_before(bn: LayerState, weights: Weights) -> Terms:
    """What the layer does, if it can be folded into what is behind it."""
    found = terms.terms_of(bn)
    activation = getattr(bn, "activation", None)
    if activation is not None:
        raise ValueError(
            f"bn has activation={activation!r}, which stands between it and the layer behind it: "
            "no weight can do its work. Fold bn into the layer before it (fold_conv_bn), or leave "
            "it as it is"
        )
    terms.check_channels(bn, weights, "input")
    return found


def _fold_before(found: Terms, weights: Weights) -> tuple[np.ndarray, np.ndarray]:
    axes = (2, *range(3, weights.grouped.ndim))  # input channels and kernel
    with np.errstate(invalid="ignore", over="ignore"):
        weight = weights.grouped * terms.shaped(found.scale, weights, "input")
        shift = terms.shaped(_shift(found), weights, "input")
        bias = weights.bias + (weights.grouped * shift).sum(axes).ravel()
    return _in_dtype(weight, bias, weights, found)


def _shift(found: Terms) -> np.ndarray:
    """What the layer gives for 0."""
    return found.bias - found.mean * found.scale


def _in_dtype(
    weight: np.ndarray, bias: np.ndarray, weights: Weights, found: Terms
) -> tuple[np.ndarray, np.ndarray]:
    """Weight, from ``(groups, out, in, *kernel)`` back to its shape, and bias, rounded."""
    if weights.transposed:
        weight = weight.swapaxes(1, 2)
    origin = (weights.weight, weights.bias, *found)
    shape, dtype = weights.weight.shape, weights.dtype
    return (
        terms.rounded("weight", weight.reshape(shape), dtype, *origin),
        terms.rounded("bias", bias, dtype, *origin),
    )


def _padding(found: Terms, dtype: np.dtype) -> np.ndarray:
    """What evaluation makes 0; NaN where it makes nothing 0, or nothing that ``dtype`` holds."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        offset = np.where(found.bias == 0, 0.0, found.bias / found.scale)
        values = terms.nearest(found.mean - offset, dtype)
    values[~np.isfinite(values.astype(np.float64))] = np.nan
    return values


def _check_stride(stride: Any, weights: Weights, found: Terms) -> None:
    """Refuse a transposed convolution whose outputs do not all see the whole kernel."""
    if stride is None:
        raise TypeError(
            "a transposed convolution needs its stride here: fold_bn_conv(..., transposed=True, "
            "stride=1); with more than 1 the shift of bn cannot be folded"
        )
    strides = tuple(stride) if isinstance(stride, (tuple, list)) else (stride,)
    if not all(type(n).__name__ != "bool" and hasattr(type(n), "__index__") for n in strides):
        raise TypeError(f"stride must be an integer or a tuple of them, got {stride!r}")
    dimensions = weights.weight.ndim - 2
    if len(strides) not in (1, dimensions) or min(strides) < 1:
        raise ValueError(f"stride must be positive, one or {dimensions} numbers, got {stride!r}")
    if max(strides) > 1 and _shift(found).any():
        raise ValueError(
            f"a transposed convolution with stride={stride!r} gives each output other parts of "
            "its kernel, so that the shift of bn reaches them in different amounts, and no bias "
            "per channel makes up for it: leave bn as it is, or fold it into the layer before it"
        )
