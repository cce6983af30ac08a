"""Statistics of arrays that no kernel can walk: in pieces, which are copied and merged."""

from collections.abc import Iterator

import numpy as np

from fastbn._call import arguments, work
from fastbn.kernels import formulas

#: Values of a piece: 4 MiB of float32.
PIECE = 1 << 20

Moments = tuple[np.ndarray, np.ndarray, np.ndarray]


def moments(x: np.ndarray, axis: int) -> Moments:
    """Count, mean and m2 of every channel of an array that is not empty.

    An array that cannot be walked is halved along its longest other axis until a piece is worth
    a copy. Where a broadcast view repeats its values, they are read once.
    """
    found = work.moments(x, axis)
    if found is not None:
        walk, mean, m2 = found
        return np.full(walk.channels, float(walk.count)), mean, m2
    x, repeats = once(x, axis)
    if repeats > 1:
        count, mean, m2 = moments(x, axis)
        return count * float(repeats), mean, m2 * float(repeats)
    along = longest(x, axis)
    if x.size <= PIECE or x.shape[along] < 2:
        return moments(np.array(x, arguments.native(x.dtype), order="C"), axis)
    low, high = np.array_split(x, 2, axis=along)
    return merged(moments(low, axis), moments(high, axis))


def longest(x: np.ndarray, axis: int) -> int:
    """The longest axis that is not the channels'."""
    return max((k for k in range(x.ndim) if k != axis), key=lambda k: x.shape[k])


def once(x: np.ndarray, axis: int) -> tuple[np.ndarray, int]:
    """Without the repetitions of a broadcast view, but for those of channels; and their number."""
    some = tuple(
        slice(0, 1) if k != axis and stride == 0 else slice(None)
        for k, stride in enumerate(x.strides)
    )
    return x[some], x.size // x[some].size


def halved(axis: int, *arrays: np.ndarray) -> Iterator[list[np.ndarray]]:
    """Arrays of one shape in pieces of about `PIECE` values, which have all channels."""
    if arrays[0].size <= PIECE:
        yield list(arrays)
        return
    several = list(zip(*(halves(a, axis, arrays[0]) for a in arrays), strict=True))
    for parts in several:
        yield from [list(parts)] if len(several) < 2 else halved(axis, *parts)


def halves(x: np.ndarray, axis: int, like: np.ndarray | None = None) -> list[np.ndarray]:
    """Both halves along the outermost axis, in memory, that is not the channels'.

    That of ``like``, if given. What is walked then stays walked. Where nothing is to be halved,
    ``x`` alone.
    """
    like = x if like is None else like
    steps = [abs(s) if k != axis and like.shape[k] > 1 else -1 for k, s in enumerate(like.strides)]
    outermost = int(np.argmax(steps))
    return np.array_split(x, 2, axis=outermost) if steps[outermost] >= 0 else [x]


def merged(one: Moments, other: Moments) -> Moments:
    """Statistics of both samples together; of nothing where both counts are 0."""
    count = one[0] + other[0]
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        _, mean, m2 = formulas.merge(*one, *other)
        plain = (one[0] * one[1] + other[0] * other[1]) / count
    mean = np.where(np.isfinite(mean), mean, plain)  # infinity stays infinity
    return count, np.where(count > 0, mean, 0.0), np.where(count > 0, m2, 0.0)
