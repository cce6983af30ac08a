"""Exact statistics: sums of integers as Python's, smallest and largest values, where NaN is.

What kernels take is an array of integers: x itself, or the bits of floating-point numbers.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastbn._call import arguments, pieces, work
from fastbn._call.run import launch
from fastbn.kernels import exact, formulas

#: Values of a channel that one call takes.
MOST = exact.MOST
#: Bits of infinity, by dtype.
_INFINITY = {
    "float16": 0x7C00, "bfloat16": 0x7F80, "float32": 0x7F800000, "float64": 0x7FF0 << 48,
}  # fmt: skip


def walkable(x: np.ndarray, axis: int) -> Iterator[np.ndarray]:
    """``x`` in pieces of at most `MOST` values a channel that a kernel can walk.

    Where none can, they are copies of `pieces.PIECE` values.
    """
    whole = work.walked(axis, x) is not None
    large = x.size > (MOST * x.shape[axis] if whole else pieces.PIECE)
    several = pieces.halves(x, axis) if large else [x]
    if len(several) > 1:
        for part in several:
            yield from walkable(part, axis)
    else:
        yield x if whole else np.array(x, arguments.native(x.dtype), order="C")


# --- sums -----------------------------------------------------------------------------------------


class Sums(NamedTuple):
    """Of each channel: how many values, their sum and that of their squares, as Python's ints."""

    number: list[int]
    total: list[int]
    squares: list[int]


def sums(x: np.ndarray, axis: int, kept: np.ndarray | None = None) -> Sums:
    """Sums of an array of integers that is not empty, or of what is kept of it."""
    if kept is not None:
        return _sums_of_kept(x, axis, kept)
    x, repeats = pieces.once(x, axis)
    found: Any = np.zeros((2, x.shape[axis]), object)
    for part in walkable(x, axis):
        found += _run("integer_sums", axis, [part])[:2].astype(object) * repeats
    count = x.size // x.shape[axis] * repeats
    return Sums([count] * x.shape[axis], *found.tolist())


def statistics(found: Sums) -> np.ndarray:
    """Rows of count, mean and m2 of each channel, and what rounding has left of these two.

    Zeros for nothing.
    """
    rows = np.zeros((5, len(found.number)))
    for c, (n, total, squares) in enumerate(zip(*found, strict=True)):
        if n:
            mean, mean_low = quotient(total, n)
            m2, m2_low = quotient(n * squares - total * total, n)
            rows[:, c] = n, mean, m2, mean_low, m2_low
    return rows


def quotient(number: int, by: int) -> tuple[float, float]:
    """A quotient of integers of any size: rounded, and what that has left, rounded."""
    high = number / by
    over, under = high.as_integer_ratio()
    return high, (number * under - over * by) / (by * under)


def _sums_of_kept(x: np.ndarray, axis: int, kept: np.ndarray) -> Sums:
    """In pieces that have a zero, which adds nothing, where a value is left out."""
    found: Any = np.zeros((2, x.shape[axis]), object)
    count = np.zeros(x.shape[axis], np.int64)
    others = tuple(k for k in range(x.ndim) if k != axis)
    for part, of_part in pieces.halved(axis, x, kept):
        filled = np.where(of_part, part, part.dtype.type(0)).astype(arguments.native(x.dtype))
        found += _run("integer_sums", axis, [np.ascontiguousarray(filled)])[:2].astype(object)
        count += of_part.sum(axis=others)
    return Sums(count.tolist(), *found.tolist())


# --- extremes and NaN -----------------------------------------------------------------------------


class Extremes(NamedTuple):
    """Smallest and largest value of each channel but for NaN, and how many are NaN, as float64.

    Of nothing: infinity and minus infinity.
    """

    min: np.ndarray
    max: np.ndarray
    nan_count: np.ndarray

    @classmethod
    def of_nothing(cls, channels: int) -> "Extremes":
        """What changes nothing when it is merged."""
        return cls(np.full(channels, np.inf), np.full(channels, -np.inf), np.zeros(channels))

    def merge(self, other: "Extremes") -> "Extremes":
        """Those of both together."""
        return Extremes(
            np.minimum(self.min, other.min), np.maximum(self.max, other.max),
            self.nan_count + other.nan_count,
        )  # fmt: skip


def extremes(x: np.ndarray, axis: int, kept: np.ndarray | None = None) -> Extremes:
    """Extremes of an array that is not empty, or of what is kept of it."""
    found = Extremes.of_nothing(x.shape[axis])
    if kept is not None:
        for part, of_part in pieces.halved(axis, x, kept):
            found = found.merge(_extremes_of_kept(part, axis, of_part))
        return found
    x, repeats = pieces.once(x, axis)
    flip, lowest, highest = _order(x.dtype)
    for part in walkable(x, axis):
        low, high, missing = _run("extremes", axis, [_bits(part)], flip, lowest, highest)
        least, most = (_values(formulas.ordering_key(k, flip), x.dtype) for k in (low, high))
        found = found.merge(Extremes(least, most, missing * float(repeats)))
    return found


def _extremes_of_kept(x: np.ndarray, axis: int, kept: np.ndarray) -> Extremes:
    others, values = tuple(k for k in range(x.ndim) if k != axis), x.astype(np.float64)
    nan = np.isnan(values)
    there = kept & ~nan
    return Extremes(
        values.min(axis=others, where=there, initial=np.inf),
        values.max(axis=others, where=there, initial=-np.inf),
        (kept & nan).sum(axis=others, dtype=np.float64),
    )


def fill(x: np.ndarray, out: np.ndarray, axis: int, values: np.ndarray) -> np.ndarray:
    """Copy ``x`` to ``out`` with ``values`` of each channel for NaN; how many these are.

    ``values`` has x's dtype. `walkable` has given ``x``; ``out`` lies alike, or is x itself.
    """
    flip, _, highest = _order(x.dtype)
    found = _run(
        "filled", axis, [_bits(x), _bits(out)], flip, highest, given=[values.view(np.uint8)]
    )
    return found[0].astype(np.float64)


def _order(dtype: np.dtype) -> tuple[int, int, int]:
    """What `fastbn.kernels.exact` calls flip, lowest and highest."""
    if arguments.is_small_integer(dtype):
        return 0, int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    infinity = _INFINITY[dtype.name]
    return (1 << 8 * dtype.itemsize - 1) - 1, ~infinity, infinity


def _bits(x: np.ndarray) -> np.ndarray:
    """As integers; of those kernels take one of each size, and none is told from another."""
    return x if arguments.is_small_integer(x.dtype) else x.view(f"i{x.itemsize}")


def _values(bits: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The reverse, in float64."""
    if arguments.is_small_integer(dtype):
        return bits.astype(np.float64)
    native = arguments.native(dtype)
    return bits.astype(f"i{native.itemsize}").view(native).astype(np.float64)


def _run(
    operation: str, axis: int, arrays: list[np.ndarray], *numbers: int,
    given: Sequence[np.ndarray] = (),
) -> np.ndarray:  # fmt: skip
    """Three rows of numbers of each channel."""
    together = work.walked(axis, *arrays)
    assert together
    plan = together.walk.plan(operation, arrays[0].dtype)
    found = np.empty((3, together.walk.channels), np.int64)
    entry = plan.entry.of(plan.dtype, plan.dtype)
    views = [view.view(np.uint8) for view in together.views]
    launch(plan, entry, False, *views, *given, found.reshape(-1), *numbers)
    return found
