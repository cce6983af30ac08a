"""Group, layer, instance and RMS norm as pure functions: statistics of each sample, not of a batch.

Names and meanings are those of ``torch.nn.functional``. Each has a variant that returns what
`norm_backward` needs for gradients.
"""

from typing import Any, NoReturn

import numpy as np

from fastbn._call import backend
from fastbn._call.caches import NormCache
from fastbn._call.groups import GroupCache
from fastbn._call.keywords import hide_foreign, refuse
from fastbn._call.operations import ForwardCache
from fastbn._call.rows import RowCache
from fastbn.functional import Gradients, batch_norm_backward

__all__ = [
    "NormCache",
    "group_norm",
    "group_norm_forward",
    "instance_norm",
    "instance_norm_forward",
    "layer_norm",
    "layer_norm_forward",
    "norm_backward",
    "rms_norm",
    "rms_norm_forward",
]

_RAISES = """
    Raises
    ------
    TypeError
        If an array is not one of such numbers, or a number is not one.
    ValueError
        If a shape does not fit, ``eps`` is not positive, or ``out`` is read-only or overlaps
        ``x`` in part. Nothing has been changed then.
"""
_COMMON = """
    eps : float
        Added to the variance inside the root.
    out : ndarray, optional
        Where to write; shape and dtype of ``x``; ``out=x`` works in place.

    Returns
    -------
    y : ndarray
        Shape, dtype and memory order of ``x``; ``out`` if that was given.
"""


def _documented(function):
    """Complete a docstring with what all of these functions share."""
    doc = function.__doc__ or ""
    function.__doc__ = doc.replace("{common}", _COMMON.strip()).replace("{raises}", _RAISES.strip())
    return function


@hide_foreign
@_documented
def group_norm(
    x: np.ndarray,
    num_groups: int,
    weight: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    eps: float = 1e-5,
    *,
    axis: int = 1,
    out: np.ndarray | None = None,
    **foreign: NoReturn,
) -> np.ndarray:
    """Normalize each group of channels of each sample: for batches too small for batch norm.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``, with mean and biased variance of
    the ``C / num_groups`` channels of a group and of all their positions, in one sample.

    Parameters
    ----------
    x : ndarray of float32, float64, float16 or bfloat16
        ``(N, C)`` or ``(N, C, ...)``; samples on axis 0.
    num_groups : int
        Divides C. 1: all channels together; C: each channel, which is `instance_norm`.
    weight, bias : ndarray of shape (C,), optional
        Scale and shift; 1 and 0 where absent.
    axis : int
        Where ``x`` has its channels; -1 for channels last.
    {common}

    {raises}

    References
    ----------
    Wu & He, "Group Normalization", 2018, eqs. 1, 2 and 7.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> x = np.array([[1.0, 3.0, 10.0, 30.0]])
    >>> fastbn.group_norm(x, 2).round(3)
    array([[-1.,  1., -1.,  1.]])
    """
    if foreign:
        refuse(group_norm, foreign, norm=True)
    return backend.group_norm(x, num_groups, weight, bias, eps, axis, out).run()


@hide_foreign
def group_norm_forward(
    x: np.ndarray,
    num_groups: int,
    weight: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    eps: float = 1e-5,
    *,
    axis: int = 1,
    out: np.ndarray | None = None,
    **foreign: NoReturn,
) -> tuple[np.ndarray, GroupCache]:
    """`group_norm`, and what `norm_backward` needs to differentiate it."""
    if foreign:
        refuse(group_norm_forward, foreign, norm=True)
    call = backend.group_norm(x, num_groups, weight, bias, eps, axis, out)
    return call.run(), call.cache()


@hide_foreign
@_documented
def instance_norm(
    x: np.ndarray,
    running_mean: np.ndarray | None = None,
    running_var: np.ndarray | None = None,
    weight: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    axis: int = 1,
    out: np.ndarray | None = None,
    **foreign: NoReturn,
) -> np.ndarray:
    """Normalize each channel of each sample, as in style transfer.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``, with mean and biased variance of
    the positions of one channel in one sample.

    Parameters
    ----------
    x : ndarray of float32, float64, float16 or bfloat16
        ``(N, C, ...)``; samples on axis 0.
    running_mean, running_var : ndarray of shape (C,), optional
        Updated in place with the averages over the samples of their means and unbiased
        variances; used instead of them without ``use_input_stats``.
    weight, bias : ndarray of shape (C,), optional
        Scale and shift; 1 and 0 where absent.
    use_input_stats : bool
        False: `batch_norm` with the running statistics.
    momentum : float
        Weight of the new batch in the running statistics.
    axis : int
        Where ``x`` has its channels; -1 for channels last.
    {common}

    {raises}

    References
    ----------
    Ulyanov, Vedaldi & Lempitsky, "Instance Normalization", 2016.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> x = np.array([[[1.0, 3.0], [10.0, 30.0]]])
    >>> fastbn.instance_norm(x).round(3)
    array([[[-1.,  1.],
            [-1.,  1.]]])
    """
    if foreign:
        refuse(instance_norm, foreign, norm=True)
    return backend.instance_norm(
        x, running_mean, running_var, weight, bias, use_input_stats, momentum, eps, axis, out
    ).run()


@hide_foreign
def instance_norm_forward(
    x: np.ndarray,
    running_mean: np.ndarray | None = None,
    running_var: np.ndarray | None = None,
    weight: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    axis: int = 1,
    out: np.ndarray | None = None,
    **foreign: NoReturn,
) -> tuple[np.ndarray, NormCache]:
    """`instance_norm`, and what `norm_backward` needs to differentiate it."""
    if foreign:
        refuse(instance_norm_forward, foreign, norm=True)
    call = backend.instance_norm(
        x, running_mean, running_var, weight, bias, use_input_stats, momentum, eps, axis, out
    )
    return call.run(), call.cache()


@hide_foreign
@_documented
def layer_norm(
    x: np.ndarray,
    normalized_shape: int | tuple[int, ...],
    weight: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    eps: float = 1e-5,
    *,
    out: np.ndarray | None = None,
    **foreign: NoReturn,
) -> np.ndarray:
    """Normalize over the last axes: each token of a transformer by itself.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``, with mean and biased variance over
    the last axes.

    Parameters
    ----------
    x : ndarray of float32, float64, float16 or bfloat16
        ``(..., *normalized_shape)``.
    normalized_shape : int or tuple of int
        Sizes of the last axes; a number is the size of the last one.
    weight, bias : ndarray of shape normalized_shape, optional
        Scale and shift of each position; 1 and 0 where absent.
    {common}

    {raises}

    References
    ----------
    Ba, Kiros & Hinton, "Layer Normalization", 2016, eqs. 3 and 4.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> fastbn.layer_norm(np.array([[1.0, 3.0], [10.0, 30.0]]), 2).round(3)
    array([[-1.,  1.],
           [-1.,  1.]])
    """
    if foreign:
        refuse(layer_norm, foreign, norm=True)
    return backend.row_norm(x, normalized_shape, weight, bias, eps, out).run()


@hide_foreign
def layer_norm_forward(
    x: np.ndarray,
    normalized_shape: int | tuple[int, ...],
    weight: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    eps: float = 1e-5,
    *,
    out: np.ndarray | None = None,
    **foreign: NoReturn,
) -> tuple[np.ndarray, RowCache]:
    """`layer_norm`, and what `norm_backward` needs to differentiate it."""
    if foreign:
        refuse(layer_norm_forward, foreign, norm=True)
    call = backend.row_norm(x, normalized_shape, weight, bias, eps, out)
    return call.run(), call.cache()


@hide_foreign
@_documented
def rms_norm(
    x: np.ndarray,
    normalized_shape: int | tuple[int, ...],
    weight: np.ndarray | None = None,
    eps: float | None = None,
    *,
    out: np.ndarray | None = None,
    **foreign: NoReturn,
) -> np.ndarray:
    """Divide by the root mean square over the last axes: layer norm without a mean.

    ``y = x / sqrt(mean(x * x) + eps) * weight``. Without ``eps`` it is the distance from 1 to the
    next number of the dtype that x is computed in, as in torch.

    Parameters
    ----------
    x : ndarray of float32, float64, float16 or bfloat16
        ``(..., *normalized_shape)``.
    normalized_shape : int or tuple of int
        Sizes of the last axes; a number is the size of the last one.
    weight : ndarray of shape normalized_shape, optional
        Scale of each position; 1 where absent.
    {common}

    {raises}

    References
    ----------
    Zhang & Sennrich, "Root Mean Square Layer Normalization", 2019, eq. 4.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> fastbn.rms_norm(np.array([[3.0, 4.0]]), 2).round(3)
    array([[0.849, 1.131]])
    """
    if foreign:
        refuse(rms_norm, foreign, norm=True)
    return backend.row_norm(x, normalized_shape, weight, None, eps, out, uncentered=True).run()


@hide_foreign
def rms_norm_forward(
    x: np.ndarray,
    normalized_shape: int | tuple[int, ...],
    weight: np.ndarray | None = None,
    eps: float | None = None,
    *,
    out: np.ndarray | None = None,
    **foreign: NoReturn,
) -> tuple[np.ndarray, RowCache]:
    """`rms_norm`, and what `norm_backward` needs to differentiate it."""
    if foreign:
        refuse(rms_norm_forward, foreign, norm=True)
    call = backend.row_norm(x, normalized_shape, weight, None, eps, out, uncentered=True)
    return call.run(), call.cache()


def norm_backward(
    dy: np.ndarray,
    cache: NormCache,
    *,
    out: np.ndarray | None = None,
) -> Gradients:
    """Gradients of a loss in ``x``, ``weight`` and ``bias``, given its gradient in ``y``.

    With ``x_hat = (x - mean) * rstd``, and means over the values that were normalized together::

        d_bias   = sum(dy)
        d_weight = sum(dy * x_hat)
        d_x      = rstd * (g - mean(g) - x_hat * mean(g * x_hat)),  g = dy * weight

    RMS norm has no mean: ``x_hat = x * rstd``, and ``mean(g)`` is left out.

    Parameters
    ----------
    dy : ndarray
        Gradient of the loss in ``y``; shape and dtype of ``x``, any strides.
    cache : NormCache
        From any of the functions ``..._norm_forward``; not changed. `NormCache` is the type of all
        caches, that of batch norm (`ForwardCache`) among them.
    out : ndarray, optional
        Where to write the gradient of ``x``; ``out=dy`` works in place.

    Returns
    -------
    Gradients
        ``x`` in the shape, dtype and memory order of x; ``weight`` and ``bias`` in their shapes
        and x's dtype, None without such a parameter.

    Raises
    ------
    TypeError
        If ``dy`` is not an array of such numbers, or ``cache`` is not one.
    ValueError
        If ``dy`` or ``out`` do not fit the shape or dtype of x.
    RuntimeError
        If the forward wrote over its own input (``out=x``).

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> x = np.array([[1.0, 2.0, 3.0], [4.0, 8.0, 6.0]])
    >>> y, cache = fastbn.layer_norm_forward(x, 3, weight=np.ones(3))
    >>> gradients = fastbn.norm_backward(np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]), cache)
    >>> gradients.x.round(4)[0], gradients.weight.round(4), gradients.bias
    (array([ 0.2041, -0.4082,  0.2041]), array([-1.2247,  0.    ,  0.    ]), None)
    """
    if isinstance(cache, (GroupCache, RowCache)):
        return _gradients(cache, backend.norm_backward(dy, cache, out))
    if cache is None or isinstance(cache, ForwardCache):
        return batch_norm_backward(dy, cache, out=out)
    raise TypeError(
        f"cache must come from a forward, got {type(cache).__name__}; "
        "y, cache = layer_norm_forward(x, ...)"
    )


def _gradients(cache: GroupCache | RowCache, found: tuple[Any, Any, Any]) -> Gradients:
    """Those of parameters that there are."""
    dx, d_weight, d_bias = found
    return Gradients(
        dx, None if cache.weight is None else d_weight, d_bias if cache.has_bias else None
    )
