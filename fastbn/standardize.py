"""Standardize images and tables in one pass, and take it back: signatures and documentation."""

from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from fastbn._call import standardize as _call
from fastbn._call.keywords import hide_foreign, refuse

__all__ = ["destandardize", "standardize"]


@hide_foreign
def standardize(
    x: np.ndarray,
    mean: ArrayLike,
    std: ArrayLike,
    *,
    scale: float = 1.0,
    axis: int = 1,
    dtype: DTypeLike = np.float32,
    out: np.ndarray | None = None,
    out_axis: int | None = None,
    zero_std: float | None = None,
    **foreign: NoReturn,
) -> np.ndarray:
    """Bring each channel of ``x`` to mean 0 and standard deviation 1, in one pass.

    ``y = (x * scale - mean) / std``, with the mean and the standard deviation that you have. It
    takes bytes as they come from a file, and can put the channels elsewhere on the way: what
    image networks want of ``(N, H, W, 3)`` uint8 is ``axis=-1, out_axis=1, scale=1 / 255``.

    Each value is worked out as ``(x - mean / scale) * (scale / std)``, and what rounding leaves of
    ``mean / scale`` is not lost. So the relative error in float32 is at most 2.4e-7, also where the
    mean is far from 0. There is no eps: `batch_norm` has one.

    Dask's ``map_blocks`` keeps ``dtype=`` for itself; there, give
    ``functools.partial(standardize, dtype=...)``.

    Parameters
    ----------
    x : ndarray of uint8, int8, uint16, int16, float32, float64, float16 or bfloat16
        Two or more dimensions, one of which has the channels: ``(N, C)``, ``(N, C, H, W)``,
        ``(N, H, W, C)`` and ``(H, W, C)`` with ``axis=-1``, or any strided view of them.
    mean, std : numbers, or one for each channel
        Of ``x * scale``; all finite, the standard deviations positive.
    scale : float
        What x is multiplied by first: 1 / 255 for bytes, where mean and std are of values from 0
        to 1. Any finite number but 0.
    axis : int
        Which axis of ``x`` holds the channels; negative counts from the end.
    dtype : float32, float64, float16 or bfloat16
        Of the result. It is computed in float64 if x or the result is float64, or if float32
        cannot hold ``scale / std``; else in float32.
    out : ndarray, optional
        Where to write: of that dtype, and of the shape of x, with its channels at ``out_axis``.
        ``out=x`` works in place where dtype and shape are the same; any other overlap is refused.
    out_axis : int, optional
        Which axis of the result holds the channels; the others keep their order. A new result is
        then C-contiguous. By default it is ``axis``, and a new result lies in memory as x does.
    zero_std : float, optional
        What stands for a std of 0, 1.0 for instance. By default a std of 0 is an error.

    Returns
    -------
    y : ndarray
        ``out``, or a new array.

    Raises
    ------
    ValueError, TypeError
        If an argument is not as described. Nothing has been written then.

    See Also
    --------
    destandardize : the inverse.
    channel_stats : mean and standard deviation of an array.

    Examples
    --------
    An image to what a network takes:

    >>> import fastbn, numpy as np
    >>> image = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    >>> mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    >>> y = fastbn.standardize(image, mean, std, scale=1 / 255, axis=-1, out_axis=0)
    >>> y.shape, y.dtype
    ((3, 224, 224), dtype('float32'))
    >>> back = fastbn.destandardize(
    ...     y, mean, std, scale=1 / 255, axis=0, out_axis=-1, dtype=np.uint8)
    >>> np.array_equal(back, image)
    True

    The columns of a table:

    >>> table = np.array([[1.0, 10.0], [3.0, 30.0]])
    >>> fastbn.standardize(table, [2, 20], [1, 10], dtype=np.float64)
    array([[-1., -1.],
           [ 1.,  1.]])
    """
    if foreign:
        refuse(standardize, foreign)
    call: Any = _call.STANDARDIZE
    y = _call.known_call(call, x, mean, std, scale, axis, dtype, out, out_axis, zero_std)
    if y is None:
        y = _call.checked_call(call, x, mean, std, scale, axis, dtype, out, out_axis, zero_std)
    return y


@hide_foreign
def destandardize(
    y: np.ndarray,
    mean: ArrayLike,
    std: ArrayLike,
    *,
    scale: float = 1.0,
    axis: int = 1,
    dtype: DTypeLike = np.float32,
    out: np.ndarray | None = None,
    out_axis: int | None = None,
    **foreign: NoReturn,
) -> np.ndarray:
    """Take back what `standardize` did: ``x = (y * std + mean) / scale``, in one pass.

    Into integers the result is rounded to the nearest, halves to the even one, and clipped at the
    ends of their range: what was bytes before `standardize` is the same bytes again.

    Parameters
    ----------
    y : ndarray of float32, float64, float16 or bfloat16
        Two or more dimensions, one of which has the channels.
    mean, std, scale
        As `standardize` had them. A std of 0 is what ``zero_std`` was: it is an error here.
    axis : int
        Which axis of ``y`` holds the channels; negative counts from the end.
    dtype : float32, float64, float16, bfloat16, uint8, int8, uint16 or int16
        Of the result. It is computed in float64 if y or the result is float64, or if float32
        cannot hold ``std / scale``; else in float32.
    out : ndarray, optional
        Where to write: of that dtype, and of the shape of y, with its channels at ``out_axis``.
    out_axis : int, optional
        Which axis of the result holds the channels; the others keep their order.

    Returns
    -------
    x : ndarray
        ``out``, or a new array.

    Raises
    ------
    ValueError, TypeError
        If an argument is not as described, or if the result is to be integers and ``y`` holds NaN.
        Infinity is clipped. Nothing has been written then.

    Examples
    --------
    >>> import fastbn, numpy as np
    >>> y = np.array([[-2.0, 0.5], [3.0, 1.5]], np.float32)
    >>> fastbn.destandardize(y, 100, 50, dtype=np.uint8)
    array([[  0, 125],
           [250, 175]], dtype=uint8)
    """
    if foreign:
        refuse(destandardize, foreign)
    call: Any = _call.DESTANDARDIZE
    x = _call.known_call(call, y, mean, std, scale, axis, dtype, out, out_axis, None)
    if x is None:
        x = _call.checked_call(call, y, mean, std, scale, axis, dtype, out, out_axis, None)
    return x
