"""Statistics of the values that a mask keeps, and gradients through them.

In pieces of float64, so that no temporary is large: where a value is left out there is a zero,
which adds nothing to sums around a shift. The shift is the mean of what is kept.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from fastbn._call import arguments, neighbours, overlap, pieces, work
from fastbn._system import outputs
from fastbn.kernels import formulas
from fastbn.kernels.held import computed

#: Values of a piece.
PIECE = 1 << 18


def split(x: Any, mask: Any) -> tuple[Any, Any]:
    """``x`` without a mask of its own, and what of it is kept by that and ``mask``.

    A masked array of NumPy's says what is left out, ``mask`` what is kept.
    """
    if not isinstance(x, np.ma.MaskedArray):
        return x, mask
    own = np.ma.getmaskarray(x)
    kept = ~own
    if mask is not None:
        kept &= check_mask(mask, x.shape)
    return x.data, kept


def check_mask(mask: Any, shape: tuple[int, ...]) -> np.ndarray:
    """``mask`` as an array of bools of that shape."""
    if not isinstance(mask, np.ndarray) and neighbours.lends(mask):
        mask = neighbours.borrowed("mask", mask)
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
        kind = f"dtype {mask.dtype}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise TypeError(
            f"mask must be a numpy.ndarray of bools, True where a value counts, got {kind}; "
            "np.asarray(mask, bool)"
        )
    if len(mask.shape) == len(shape) and all(
        m in (1, n) for m, n in zip(mask.shape, shape, strict=True)
    ):
        return np.broadcast_to(mask, shape)
    raise ValueError(
        f"mask has shape {mask.shape}, expected as many axes as x of shape {shape} has, each as "
        "long or 1: for x of (N, C, L), a mask of (N, L) is mask[:, None], with channels last "
        "mask[..., None]; one of samples has 1 everywhere else"
    )


def kept_of(mask: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """What is kept; None if that is everything."""
    if mask is None:
        return None
    kept = check_mask(mask, shape)
    return None if kept.all() else kept


def moments(x: np.ndarray, axis: int, kept: np.ndarray) -> pieces.Moments:
    """Count, mean and m2 of what is kept of each channel; zeros where nothing is."""
    longest = pieces.longest(x, axis)
    if x.size > PIECE and x.shape[longest] > 1:
        halves = zip(*(np.array_split(a, 2, axis=longest) for a in (x, kept)), strict=True)
        return pieces.merged(*(moments(part, axis, of_part) for part, of_part in halves))
    others = tuple(k for k in range(x.ndim) if k != axis)
    count = kept.sum(axis=others, dtype=np.float64)
    some = np.maximum(count, 1.0)
    along = [-1 if k == axis else 1 for k in range(x.ndim)]
    with np.errstate(all="ignore"):
        center = _sum(np.where(kept, x, 0.0), axis)[0] / some
        center = np.where(np.isfinite(center), center, 0.0).astype(x.dtype).astype(np.float64)
        total, squares = _sum(np.where(kept, x - center.reshape(along), 0.0), axis)
        offset = total / some
        m2 = np.maximum(squares - offset * total, 0.0)
    return count, np.where(count > 0, center + offset, 0.0), m2


def _sum(values: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the values of each channel, and of their squares."""
    found = work.moments(values, axis)
    assert found  # of a new array, which is contiguous
    walk, mean, m2 = found
    return mean * walk.count, m2 + walk.count * (mean * mean)


def check_counts(count: np.ndarray, shape: tuple[int, ...]) -> None:
    """Batch statistics of one value or none mean nothing."""
    if not count.any():
        raise ValueError(
            f"mask keeps nothing of x of shape {shape}; True is what counts: ~mask, where True "
            "marks padding"
        )
    few = np.flatnonzero(count < 2)
    if few.size:
        shown = arguments.some_of(few)
        raise ValueError(
            f"mask keeps {int(count[few[0]])} values of channel {shown} of x of shape {shape}; "
            "expected more than 1 to take statistics of: use running statistics (eval(), or "
            "training=False), or a larger batch"
        )


def unbiased(statistics: np.ndarray, count: np.ndarray) -> np.ndarray:
    """All means, and all variances with the correction of each channel's count."""
    mean, var = statistics[: 2 * count.size].reshape(2, -1)
    with np.errstate(over="ignore", under="ignore"):
        return np.concatenate([mean, formulas.unbiased(var, count)])


def backward(dy, x, dx, axis, statistics, weight, kept, count) -> tuple[np.ndarray, np.ndarray]:
    """As `work.backward`.

    Values that are left out are normalized with the statistics and did not go into them, so their
    gradient is ``dy * scale`` alone.
    """
    dy, x, target = lying_alike(dy, x, dx, axis)
    d_weight, d_bias = work.products(dy, x, axis, statistics)
    terms = gradient_terms(statistics, weight, count, d_weight, d_bias)
    with np.errstate(all="ignore"):
        for some in _samples(x, axis):
            _given_gradient(dy[some], x[some], target[some], axis, terms, ~kept[some])
        if target is not dx:
            np.copyto(dx, target)
        dtype = computed(arguments.native(x.dtype))
        return d_weight.astype(dtype), d_bias.astype(dtype)


def lying_alike(dy, x, dx, axis) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``dy``, ``x`` and ``dx`` themselves, or arrays in their place, that are walked together."""
    alike = [a if work.walked(axis, a, dx) else _copy_as(dx, a) for a in (dy, x)]
    target = dx if work.walked(axis, *alike, dx) else outputs.new_output(x, dx.dtype)
    dy, x = (a if work.walked(axis, a, target) else _copy_as(target, a) for a in alike)
    return dy, x, target


def gradient_terms(statistics, weight, count, d_weight, d_bias) -> np.ndarray:
    """What `work.given_gradient` takes: mean, scale, slope and offset of each channel."""
    mean, _, rstd = statistics.reshape(3, -1)
    factor = 1.0 if weight is None else weight.astype(np.float64)
    with np.errstate(all="ignore"):
        scale, slope, offset = formulas.input_gradient_terms(
            count, d_bias, d_weight / rstd, 0.0, rstd, factor
        )
        return np.concatenate(np.broadcast_arrays(mean, scale, slope, offset))


def _samples(x: np.ndarray, axis: int) -> Iterator[slice]:
    """Samples that go together, so that what is kept of ``dy`` meanwhile is not large."""
    if axis == 0:
        return iter([slice(None)])
    step = max(1, PIECE * len(x) // x.size)
    return (slice(start, start + step) for start in range(0, len(x), step))


def _given_gradient(dy, x, dx, axis, terms, left_out) -> None:
    """`work.given_gradient`; where a value is left out, ``dy * scale``. In place, if need be."""
    along = [-1 if k == axis else 1 for k in range(x.ndim)]
    scale = terms.reshape(4, -1)[1]
    through = dy[left_out] * np.broadcast_to(scale.reshape(along), x.shape)[left_out]
    work.given_gradient(dy, x, dx, axis, terms)
    dx[left_out] = through


def finite_where_left_out(x, axis, statistics, kept):
    """``x`` itself, or with the mean for NaN and infinity that do not count.

    A loss leaves such places out, and 0 * NaN would spoil the sums of all others.
    """
    spoiled = ~kept & ~np.isfinite(x)
    if not spoiled.any():
        return x
    mean = statistics[: x.shape[axis]].reshape([-1 if k == axis else 1 for k in range(x.ndim)])
    return np.where(spoiled, mean, x).astype(arguments.native(x.dtype))


def _copy_as(like: np.ndarray, array: np.ndarray) -> np.ndarray:
    if overlap.same_elements(like, array):
        return like
    copy = outputs.new_output(like, arguments.native(array.dtype))
    np.copyto(copy, array)
    return copy
