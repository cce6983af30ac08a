"""The passes over memory: statistics, and the two ways that values are scaled."""

from typing import Any

import numpy as np

from fastbn._call import arguments, work
from fastbn._call.standardize import affine_pass
from fastbn._call.standardize_terms import EXACT, Affine
from fastbn.kernels.held import computed
from fastbn.stats import ChannelStats

#: Values of a block of samples that is weighted at a time.
BLOCK = 1 << 18
#: Scales from which on squares of them, and 1 by these, have all digits.
LEAST_SCALE = 1e-150


def statistics(x: np.ndarray, axis: int, weights: np.ndarray | None) -> ChannelStats:
    """Statistics of each channel, without NaN; infinity is refused."""
    found = _finite_statistics(x, axis)
    return found if weights is None else _weighted(x, axis, weights)


def check_no_infinity(x: np.ndarray, axis: int) -> None:
    """Refuse infinity."""
    _finite_statistics(x, axis)


def _finite_statistics(x: np.ndarray, axis: int) -> ChannelStats:
    """Statistics without NaN. A channel whose mean is finite holds no infinity."""
    found = ChannelStats.from_array(x, axis, skipna=True)
    broken = np.flatnonzero(~np.isfinite(found.mean))
    if broken.size:
        refuse_infinity(x, axis, broken)
    return found


def refuse_infinity(x: np.ndarray, axis: int, channels: np.ndarray) -> None:
    """Look at channels whose sum is not finite, because of NaN or infinity."""
    others = tuple(k for k in range(x.ndim) if k != axis)
    with np.errstate(invalid="ignore"):
        ends = np.fmax.reduce(x, others), np.fmin.reduce(x, others)
    infinite = [c for c in channels if any(np.isinf(end[c]) for end in ends)]
    if infinite:
        raise ValueError(
            f"Input X contains infinity in feature {arguments.some_of(infinite)}; clean X, or mark "
            "what is missing with NaN"
        )


def check_no_overflow(stats: ChannelStats) -> None:
    """Refuse statistics of finite values that float64 does not hold."""
    broken = np.flatnonzero(~(np.isfinite(stats.mean) & np.isfinite(stats.m2)))
    if broken.size:
        raise ValueError(
            f"the variance of feature {broken[0]} is too large for dtype float64, though X is "
            "finite; divide X by a number first"
        )


def _weighted(x: np.ndarray, axis: int, weights: np.ndarray) -> ChannelStats:
    """Statistics in which each sample counts ``weights`` times, in float64, block by block."""
    channels = x.shape[axis]
    found = ChannelStats.empty(channels)
    step = max(1, BLOCK * len(x) // x.size)
    for start in range(0, len(x), step):
        counted = weights[start : start + step]
        rows = np.moveaxis(x[start : start + step], axis, -1)
        if not counted.all():  # what does not count may be anything
            rows, counted = rows[counted > 0], counted[counted > 0]
            if not counted.size:
                continue
        block = rows.astype(np.float64).reshape(-1, channels)
        each = np.repeat(counted, len(block) // len(rows))
        shift = _heaviest(block, each)
        block -= shift
        there = ~np.isnan(block)
        if there.all():
            count = np.full(channels, each.sum())
        else:
            count, block = each @ there, np.where(there, block, 0.0)
        safe = np.where(count > 0, count, 1.0)
        with np.errstate(over="ignore", invalid="ignore"):
            mean = each @ block / safe
            block -= mean
            block *= there
            rest = each @ block
            m2 = each @ np.square(block, out=block) - rest * rest / safe
        mean = np.where(count > 0, mean + shift, 0.0)
        found = found.merge(ChannelStats(count, mean, np.maximum(m2, 0)))
    return found


def _heaviest(block: np.ndarray, each: np.ndarray) -> np.ndarray:
    """The value of most weight of each channel, 0 where all are NaN.

    So a constant feature has deviations of exactly 0, and one value far off costs no digits.
    """
    row = block[int(each.argmax())].copy()
    for channel in np.flatnonzero(np.isnan(row)):
        values = block[:, channel]
        row[channel] = values[int(np.where(np.isnan(values), -1.0, each).argmax())]
    return np.nan_to_num(row)


def standardized(x: np.ndarray, mean: Any, scale: Any, axis: int, out: np.ndarray) -> None:
    """Write ``(x - mean) / scale`` to ``out``, which may be ``x``; None leaves a step out.

    float64 terms, and the centred form: float32 keeps its digits far from zero.
    """
    center, scales = _terms(x.shape[axis], mean, scale)
    if _has_square(scales):
        work.normalize(x, out, axis, center, np.square(scales), None, None, 0.0)
        return
    with np.errstate(all="ignore"):
        factor = 1 / scales.astype(EXACT)
        ends, size = np.finfo(np.float64), abs(factor)
        if ((size > ends.max) | (size < ends.smallest_normal)).any():  # float64 cannot hold them
            shape = [-1 if k == axis else 1 for k in range(x.ndim)]
            y = (x.astype(np.float64) - center.reshape(shape)) / scales.reshape(shape)
            np.copyto(out, y, casting="same_kind")
            return
    affine_pass(x, out, axis, Affine(center.astype(EXACT), factor, np.zeros_like(factor)))


def restored(y: np.ndarray, mean: Any, scale: Any, axis: int, out: np.ndarray) -> None:
    """Write ``y * scale + mean`` to ``out``, which may be ``y``; None leaves a step out."""
    shift, scales = _terms(y.shape[axis], mean, scale)
    dtype = computed(arguments.native(y.dtype))
    if not _has_square(scales):
        factor = scales.astype(EXACT)
        affine_pass(y, out, axis, Affine(np.zeros_like(factor), factor, shift.astype(EXACT)))
        return
    weight, var = None, 1 / np.square(scales)
    if dtype == np.float64:  # as a weight: it is not squared, nor rounded
        weight, var = scales, np.ones(scales.size)
    bias = arguments.converted(shift, dtype)
    work.normalize(y, out, axis, np.zeros(scales.size), var, weight, bias, 0.0)


def _terms(channels: int, mean: Any, scale: Any) -> tuple[np.ndarray, np.ndarray]:
    """What there is of the two."""
    return (
        np.zeros(channels) if mean is None else mean, np.ones(channels) if scale is None else scale
    )  # fmt: skip


def _has_square(scales: np.ndarray) -> bool:
    """Whether float64 holds their squares, and 1 by these: `work.normalize` is faster on tables.

    So are NaN: that of features in which nothing was seen stays NaN.
    """
    return not ((scales < LEAST_SCALE) | (scales > 1 / LEAST_SCALE)).any()
