"""How an array is walked: (shape, strides, dtype, axis) -> a frozen, cached `Plan`.

Kernels know two layouts. *first*: each channel's values lie in contiguous rows
(NCHW, NCL, slices of them). *last*: the channels lie next to each other (NHWC,
(N, C)). What decides is the strides, not the axis: a transposed view of an
NHWC array is read in place. Every error message about ``x`` itself is here.
"""

import math
import operator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

Strides = tuple[int, ...]

#: Bytes that a tile may take, a core's share of a last-level cache, so that its second read
#: comes from there. Channels first, 4 MiB was 1.3 to 1.5 times as fast as half of an L2.
CACHE_BYTES = 4 * 1024 * 1024
#: The same channels last, where a tile of some channels is a walk of short steps: up to
#: 2.5 times slower than two passes over whole rows, unless all of it fits in an L2.
ROWS_BYTES = CACHE_BYTES // 8
#: Bytes below which waking threads costs more than it saves.
PARALLEL_BYTES = 256 * 1024
#: Columns that make channels-last lines worth a vector loop of their own.
FOLD_COLUMNS = 64


@dataclass(frozen=True, slots=True)
class Plan:
    """How kernels walk the arrays of one operation together.

    Attributes
    ----------
    layout : "first" or "last"
    geometry : sizes and strides in elements, as the kernels of the layout expect them
    channels : number of channels
    count : values per channel
    tile : channels whose values fit in a core's cache together; 0 if not even the
        smallest group does
    large : worth more than one thread
    extents : for each array, the length of its flat view
    """

    layout: str
    geometry: tuple[int, ...]
    channels: int
    count: int
    tile: int
    large: bool
    extents: tuple[int, ...]

    def geometry_of(self, operands: int) -> tuple[int, ...]:
        """Geometry of the first ``operands`` arrays alone."""
        return self.geometry[: 3 + operands * (2 if self.layout == "first" else 1)]


def as_array(name: str, x: Any) -> np.ndarray:
    """``x`` as a plain ndarray that shares its memory, or TypeError."""
    if type(x) is np.ndarray:
        return x
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(
            f"{name} is a masked array, whose mask would be ignored; "
            f"pass a plain array ({name}.filled(...) or np.asarray({name}))"
        )
    if not isinstance(x, np.ndarray):
        raise TypeError(
            f"{name} must be a numpy.ndarray, got {type(x).__name__}; "
            f"np.asarray({name}) converts array-likes"
        )
    return x.view(np.ndarray)


def native(dtype: np.dtype) -> np.dtype:
    """``dtype`` in the byte order of the machine."""
    return np.dtype(dtype.type)


def check_dtype(name: str, dtype: np.dtype) -> None:
    """Refuse what is neither float32 nor float64, and name the fix."""
    if dtype.type in (np.float32, np.float64):
        return
    if dtype.kind in "iub":
        fix = f"convert it first: {name}.astype(np.float32)"
    elif dtype.kind == "c":
        fix = f"normalize {name}.real and {name}.imag, or convert it: {name}.real"
    elif dtype.kind == "f":
        fix = f"convert it: {name}.astype(np.float{32 if dtype.itemsize < 4 else 64})"
    else:
        fix = f"convert it to numbers: {name}.astype(np.float32)"
    raise TypeError(f"{name} must be float32 or float64, got dtype {dtype}; {fix}")


def as_axis(axis: Any) -> int:
    """``axis`` as an int; whether there is such an axis is for `describe` to say."""
    if type(axis) is int:
        return axis
    try:
        if isinstance(axis, (bool, np.bool_)):
            raise TypeError
        return operator.index(axis)
    except TypeError:
        raise TypeError(f"axis must be an integer, got {axis!r}") from None


def channel_axis(shape: tuple[int, ...], axis: int) -> int:
    """``axis`` as a non-negative number, or an error that shows the shape."""
    if len(shape) < 2:
        raise ValueError(
            f"x must have at least 2 dimensions, samples and channels, got shape {shape}; "
            "a single sample of C channels is x[None]"
        )
    if not -len(shape) <= axis < len(shape):
        raise ValueError(
            f"axis {axis} is out of bounds for x of shape {shape}; "
            f"expected {-len(shape)} to {len(shape) - 1}"
        )
    return axis % len(shape)


def check_batch_count(shape: tuple[int, ...], count: int) -> None:
    """Batch statistics of one value per channel mean nothing: its variance is zero."""
    if count == 1:
        raise ValueError(
            f"expected more than 1 value per channel to take batch statistics of, got x of "
            f"shape {shape}: its variance would be 0 and the output just the bias; "
            "use running statistics (eval(), or training=False) or a larger batch"
        )


@lru_cache(maxsize=4096)
def describe(shape: tuple[int, ...], dtype: np.dtype, axis: int) -> tuple[int, int, int]:
    """Check ``x``; return its channel axis, number of channels, and values per channel."""
    check_dtype("x", dtype)
    position = channel_axis(shape, axis)
    channels = shape[position]
    count = math.prod(n for k, n in enumerate(shape) if k != position)
    return position, channels, count


@lru_cache(maxsize=4096)
def make_plan(
    shape: tuple[int, ...], itemsize: int, axis: int, operands: tuple[Strides, ...]
) -> Plan | None:
    """Plan for arrays of one shape and dtype that are walked together, not empty.

    ``axis`` is the channel axis, not negative; ``operands`` are the strides of
    each array in bytes. None where no layout fits them all: then one of them has
    to be copied into the order of another.
    """
    channels = shape[axis]
    channel_strides = tuple(s[axis] // itemsize for s in operands)
    if any(stride % itemsize for strides in operands for stride in strides):
        return None
    # (size, stride in each operand) of the other dimensions, outermost first
    dims = sorted(
        (
            (n, tuple(s[k] // itemsize for s in operands))
            for k, n in enumerate(shape)
            if k != axis and n > 1
        ),
        key=lambda dim: dim[1],
        reverse=True,
    )
    length = _pop_contiguous(dims)
    rows, strides = _collapse(dims) or (0, ())
    if rows == 1:
        strides = (0,) * len(operands)
    if rows == 0 or (rows > 1 and min(strides) < 1) or (channels > 1 and min(channel_strides) < 1):
        return None
    bytes_each = channels * rows * length * itemsize
    extents = tuple(
        (rows - 1) * s + (channels - 1) * c + length
        for s, c in zip(strides, channel_strides, strict=True)
    )
    large = bytes_each >= PARALLEL_BYTES
    if length == 1 and channels > 1 and all(c == 1 for c in channel_strides):
        geometry, tile = _last(rows, channels, strides, itemsize)
        return Plan("last", geometry, channels, rows, tile, large, extents)
    if length == 1 and rows > 1:
        return None  # single values far apart: a copy is faster than a walk
    pairs = tuple(v for pair in zip(strides, channel_strides, strict=True) for v in pair)
    tile = CACHE_BYTES // (rows * length * itemsize * max(1, len(operands) - 1))
    tile = min(tile, -(-channels // 32))  # leave something for many cores
    return Plan(
        "first", (rows, channels, length, *pairs), channels, rows * length, tile, large, extents
    )


def _pop_contiguous(dims: list[tuple[int, Strides]]) -> int:
    """Take the innermost dimensions that are contiguous in every operand; their size."""
    length = 1
    while dims and all(stride == length for stride in dims[-1][1]):
        length *= dims.pop()[0]
    return length


def _collapse(dims: list[tuple[int, Strides]]) -> tuple[int, Strides] | None:
    """Size and strides of ``dims`` seen as one dimension; None if they are not one."""
    if not dims:
        return 1, ()
    size, strides = dims[-1]
    for outer_size, outer_strides in reversed(dims[:-1]):
        if any(o != size * s for o, s in zip(outer_strides, strides, strict=True)):
            return None
        size *= outer_size
    return size, strides


def _last(rows: int, channels: int, strides: Strides, itemsize: int) -> tuple[tuple[int, ...], int]:
    """Geometry and tile for the channels-last layout."""
    lanes = 64 // itemsize
    fold = 1
    dense = rows == 1 or all(stride == channels for stride in strides)
    if dense and channels < FOLD_COLUMNS:
        fold = lanes // math.gcd(channels, lanes)
        fold *= max(1, FOLD_COLUMNS // (fold * channels))
        fold = max(1, min(fold, rows))
    fits = rows * channels * itemsize * max(1, len(strides) - 1) <= ROWS_BYTES
    if rows == 1:
        strides = (channels,) * len(strides)
    return (rows, channels, fold, *strides), channels if fits else 0
