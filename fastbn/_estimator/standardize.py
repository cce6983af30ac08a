"""Statistics and the passes over memory: what the scaler needs of the kernels."""

from typing import Any

import numpy as np

from fastbn._call import arguments, work
from fastbn.kernels.held import computed
from fastbn.stats import ChannelStats

#: Values of a block of samples that is weighted at a time.
BLOCK = 1 << 18


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
        some = ", ".join(map(str, infinite[:5])) + (", ..." if len(infinite) > 5 else "")
        raise ValueError(
            f"Input X contains infinity in feature {some}; clean X, or mark what is missing with "
            "NaN"
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
        rows = np.moveaxis(x[start : start + step], axis, -1)
        block = rows.astype(np.float64).reshape(-1, channels)
        each = np.repeat(weights[start : start + step], len(block) // len(rows))
        shift = np.nan_to_num(block[0])  # a constant feature then has deviations of exactly 0
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


def standardized(x: np.ndarray, mean: Any, scale: Any, axis: int, out: np.ndarray) -> None:
    """Write ``(x - mean) / scale`` to ``out``, which may be ``x``; None leaves a step out.

    float64 terms, and the centred form: float32 keeps its digits far from zero.
    """
    zeros, ones = np.zeros(x.shape[axis]), np.ones(x.shape[axis])
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        var = ones if scale is None else np.square(scale)
    work.normalize(x, out, axis, zeros if mean is None else mean, var, None, None, 0.0)


def restored(y: np.ndarray, mean: Any, scale: Any, axis: int, out: np.ndarray) -> None:
    """Write ``y * scale + mean`` to ``out``, which may be ``y``; None leaves a step out."""
    zeros, ones = np.zeros(y.shape[axis]), np.ones(y.shape[axis])
    dtype = computed(arguments.native(y.dtype))
    bias = None if mean is None else arguments.converted(mean, dtype)
    if scale is not None and dtype == np.float64:  # as a weight: it is not squared, nor rounded
        work.normalize(y, out, axis, zeros, ones, scale, bias, 0.0)
        return
    with np.errstate(all="ignore"):
        var = ones if scale is None else 1 / np.square(scale)
    work.normalize(y, out, axis, zeros, var, None, bias, 0.0)
