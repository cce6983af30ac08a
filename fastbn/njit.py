"""Batch norm inside of Numba functions of your own: a row or a line at a time, and its moments.

Call these from your own ``@njit`` functions, also with ``parallel=True``, ``nogil=True``,
``cache=True`` or ``fastmath=True``. They give the bits of `fastbn.batch_norm` and
`fastbn.channel_stats`, keep no state, allocate nothing that outlives a call, and start no threads.
Rows are float32 or float64 and C-contiguous, and Numba must know that when it compiles: that of a
slice ``x[n, c]`` is known where that of ``x`` is.

This module is not imported with ``fastbn``: ``import fastbn.njit``.
"""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from fastbn._call import arguments, settings
from fastbn.kernels import formulas, user_code
from fastbn.kernels.compile import offered
from fastbn.kernels.terms import holds_deviations, holds_factor

__all__ = [
    "batch_norm_line",
    "batch_norm_row",
    "merge_moments",
    "normalizing_terms",
    "row_moments",
]


def normalizing_terms(
    running_mean: np.ndarray,
    running_var: np.ndarray,
    weight: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    eps: float = 1e-5,
    dtype: DTypeLike = np.float32,
) -> np.ndarray:
    """Terms of an evaluation, for `batch_norm_row` and `batch_norm_line`: make them once.

    ``y = (x - center) * scale + shift`` with ``center`` the mean rounded to ``dtype``,
    ``scale = weight / sqrt(var + eps)`` and ``shift = bias - (mean - center) * scale``, worked out
    in float64.

    Parameters
    ----------
    running_mean, running_var : ndarray of float32 or float64, shape (C,)
        Not changed, and not referred to: make the terms anew when they have moved.
    weight, bias : ndarray of floating-point numbers, shape (C,), optional
    eps : float
    dtype : float32 or float64
        That of the rows to be normalized.

    Returns
    -------
    terms : ndarray of ``dtype``, shape (3, C), C-contiguous
        Rows of center, scale and shift.

    Raises
    ------
    TypeError, ValueError
        If an argument is not one of these; and if float32 cannot hold the terms of a channel (a
        mean beyond 1e37, a standard deviation beyond 1e15), which `fastbn.batch_norm` works out
        in float64.

    Examples
    --------
    >>> import numpy as np, fastbn.njit
    >>> fastbn.njit.normalizing_terms(np.array([1.0, 2.0]), np.array([4.0, 1.0]), eps=1e-12)
    array([[1. , 2. ],
           [0.5, 1. ],
           [0. , 0. ]], dtype=float32)
    """
    kind = _dtype_of_rows(dtype)
    arguments.check_running(running_mean, running_var)
    mean = arguments.as_array("running_mean", running_mean)
    if mean.ndim != 1:
        raise ValueError(f"running_mean must have shape (C,), got {mean.shape}")
    of = f"running_mean has {mean.size} channels"
    vectors = {"running_mean": mean, "running_var": running_var, "weight": weight, "bias": bias}
    checked = {
        name: arguments.check_parameter(name, value, mean.shape, of)
        for name, value in vectors.items()
        if value is not None
    }
    mean, var = (
        arguments.check_statistics(name, checked[name]).astype(np.float64)
        for name in ("running_mean", "running_var")
    )
    # rounded as `batch_norm` rounds them
    scale_by, add = (
        arguments.kernel_vector(checked[name], kind).astype(np.float64)
        if name in checked else np.full(mean.shape, absent)
        for name, absent in (("weight", 1.0), ("bias", 0.0))
    )  # fmt: skip
    eps = settings.check_eps(eps)
    with np.errstate(all="ignore"):
        rstd = formulas.reciprocal_std(var, eps)
        center = mean.astype(kind)
        left = formulas.residual(mean, center.astype(np.float64))
        scale, shift = formulas.affine_terms(left, rstd, scale_by, add)
        if kind == np.float32:
            holds = holds_deviations(mean, rstd) & holds_factor(scale)
            _check_held(holds | np.isnan(mean + rstd + scale))
        return np.stack([center, scale.astype(kind), shift.astype(kind)])


def _dtype_of_rows(dtype: Any) -> np.dtype:
    try:
        kind = np.dtype(dtype)
    except TypeError:
        kind = None
    if kind is None or kind.type not in (np.float32, np.float64) or not kind.isnative:
        raise TypeError(
            f"dtype must be float32 or float64, got {dtype!r}; convert rows of 16 bits: "
            "row.astype(np.float32)"
        )
    return kind


def _check_held(holds: np.ndarray) -> None:
    if not holds.all():
        raise ValueError(
            f"float32 cannot hold the terms of channel {int(np.flatnonzero(~holds)[0])}: its mean, "
            "standard deviation or weight is too far from 1; take float64 rows "
            "(dtype=np.float64), or fastbn.batch_norm, which works such channels out in float64"
        )


@offered(user_code.normalize_row, user_code.check_row)
def batch_norm_row(row: np.ndarray, terms: np.ndarray, channel: int, out: np.ndarray) -> None:
    """Normalize values of one channel, as an evaluation of `fastbn.batch_norm` does.

    ``out = (row - center) * scale + shift``, to the bit what `fastbn.batch_norm` gives.

    Parameters
    ----------
    row : array of float32 or float64, C-contiguous, any number of dimensions
        Values of one channel, such as ``x[n, c]`` of an (N, C, H, W) array; not changed.
    terms : array of the same dtype, shape (3, C)
        From `normalizing_terms`.
    channel : int
        Which channel they are of.
    out : array of the same dtype and shape, C-contiguous
        Where to write; ``out`` may be ``row`` itself.

    Raises
    ------
    TypeError
        From Python, for other types; compiled code does not compile then (Numba's TypingError).
    ValueError, IndexError
        If shapes do not fit, ``out`` partly overlaps ``row``, or there is no such channel. (Numba
        makes a SystemError of what is raised within `numba.prange`.)

    Examples
    --------
    >>> import numba, numpy as np, fastbn.njit
    >>> from fastbn.njit import batch_norm_row
    >>> @numba.njit
    ... def normalize(x, terms):
    ...     for n in range(x.shape[0]):
    ...         for c in range(x.shape[1]):
    ...             batch_norm_row(x[n, c], terms, c, x[n, c])
    >>> terms = fastbn.njit.normalizing_terms(np.ones(1), np.full(1, 4.0), eps=1e-12)
    >>> x = np.array([[[1.0, 3.0, 5.0]]], np.float32)
    >>> normalize(x, terms)
    >>> x
    array([[[0., 1., 2.]]], dtype=float32)
    """


@offered(user_code.normalize_line, user_code.check_line)
def batch_norm_line(line: np.ndarray, terms: np.ndarray, out: np.ndarray) -> None:
    """Normalize one value of each channel, as an evaluation of `fastbn.batch_norm` does.

    Parameters
    ----------
    line : array of float32 or float64, shape (C,), contiguous
        One position of an array with channels last, such as ``x[n]`` of (N, C); not changed.
    terms : array of the same dtype, shape (3, C)
        From `normalizing_terms`.
    out : array of the same dtype, shape (C,), contiguous
        Where to write; ``out`` may be ``line`` itself.

    Raises
    ------
    TypeError, ValueError
        As `batch_norm_row`.

    Examples
    --------
    >>> import numpy as np, fastbn.njit
    >>> terms = fastbn.njit.normalizing_terms(np.array([1.0, 2.0]), np.array([4.0, 1.0]), eps=1e-12)
    >>> out = np.empty(2, np.float32)
    >>> fastbn.njit.batch_norm_line(np.array([3.0, 3.0], np.float32), terms, out)
    >>> out
    array([1., 1.], dtype=float32)
    """


@offered(user_code.moments_of_row, user_code.check_moments)
def row_moments(row: np.ndarray) -> tuple[float, float, float]:
    """Count, mean and sum of squared deviations of some values, in one pass.

    To the bit those of ``fastbn.channel_stats(row.reshape(1, 1, -1))``, with its accuracy: of
    float32 the relative error of the variance stays below 1e-5 for |mean| / std up to 1e4.

    Parameters
    ----------
    row : array of float32 or float64, C-contiguous, any number of dimensions

    Returns
    -------
    count, mean, m2 : float
        float64; the variance is ``m2 / count``. Zeros of no values.

    Examples
    --------
    >>> import numpy as np, fastbn.njit
    >>> fastbn.njit.row_moments(np.array([1.0, 2.0, 6.0]))
    (3.0, 3.0, 14.0)
    """
    raise NotImplementedError  # what runs is offered


@offered(user_code.merged_moments, user_code.check_numbers)
def merge_moments(
    count_a: float, mean_a: float, m2_a: float, count_b: float, mean_b: float, m2_b: float
) -> tuple[float, float, float]:
    """Count, mean and m2 of two samples together; of nothing, where both counts are 0.

    Merge in a fixed order where the last bit matters: each row into the sums of its channel, and
    not thread by thread.

    References
    ----------
    Chan, Golub & LeVeque, "Updating Formulae and a Pairwise Algorithm for
    Computing Sample Variances", 1979.

    Examples
    --------
    >>> import fastbn.njit
    >>> fastbn.njit.merge_moments(2, 1.5, 0.5, 1, 6.0, 0.0)
    (3.0, 3.0, 14.0)
    """
    raise NotImplementedError  # what runs is offered
