"""How an array is walked: (shape, strides, dtype, axis) -> a frozen, cached `Plan`.

Kernels know two layouts. *first*: each channel's values lie in contiguous rows
(NCHW, NCL, slices of them). *last*: the channels lie next to each other (NHWC,
(N, C)). What decides is the strides, not the axis: a transposed view of an
NHWC array is read in place. Every error message about ``x`` itself is here.
"""

import contextlib
import math
import operator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

Strides = tuple[int, ...]

#: Part of the last-level cache, and bytes at most, of channels that go through an operation
#: together, so that the second read comes from there. Long runs count for more than a nearer
#: cache: 4 MiB was up to 1.5 times as fast as half of an L2.
TILE_SHARE, TILE_BYTES = 8, 4 * 1024 * 1024
#: Bytes below which waking threads costs more than it saves.
PARALLEL_BYTES = 256 * 1024
#: Columns that make channels-last lines worth a vector loop of their own.
FOLD_COLUMNS = 64
#: Samples from which on each thread sums and normalizes some of them, where all is in cache.
SHARED_ROWS = 8
#: Values of a row from which on it is stored past the caches, if the array is large.
STREAM_VALUES = 512


@dataclass(frozen=True, slots=True)
class Plan:
    """How kernels walk the arrays of one operation together.

    Attributes
    ----------
    layout : "first" or "last"
    geometry : sizes and strides in elements, as the kernels of the layout expect them
    channels : number of channels
    count : values per channel
    tile : channels that go through an operation together, as many as fit in a cache; 0 if not
        even one does, or if all do and samples can be shared among threads
    large : worth more than one thread
    streaming : worth storing past the caches, which could not hold all of it
    extents : for each array, the length of its flat view
    """

    layout: str
    geometry: tuple[int, ...]
    channels: int
    count: int
    tile: int
    large: bool
    streaming: bool
    extents: tuple[int, ...]

    def tile_for(self, threads: int) -> int:
        """Channels of a tile such that all threads have as many; 0 without tiles."""
        if self.tile == 0 or self.channels < 2 * threads:
            return 0 if threads > 1 else self.tile
        tiles = threads * -(-self.channels // (self.tile * threads))
        return -(-self.channels // tiles)


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
    fits = bytes_each * len(operands) <= last_level_cache()
    if length == 1 and channels > 1 and all(c == 1 for c in channel_strides):
        geometry = _last(rows, channels, strides, itemsize)
        return Plan("last", geometry, channels, rows, 0, large, not fits, extents)
    if length == 1 and rows > 1:
        return None  # single values far apart: a copy is faster than a walk
    pairs = tuple(v for pair in zip(strides, channel_strides, strict=True) for v in pair)
    tile = min(TILE_BYTES, last_level_cache() // TILE_SHARE)
    tile //= rows * length * itemsize * max(1, len(operands) - 1)
    if fits and rows >= SHARED_ROWS:
        tile = 0  # tiles would have threads store close to each other (see `cpu_first`)
    streaming = not fits and length >= STREAM_VALUES
    geometry = (rows, channels, length, *pairs)
    return Plan("first", geometry, channels, rows * length, tile, large, streaming, extents)


def last_level_cache() -> int:
    """Bytes of the largest cache of a processor; the usual size if the system does not say."""
    return known_cache() or 32 * 1024 * 1024


@lru_cache(maxsize=1)
def known_cache() -> int:
    """Bytes of the largest cache of a processor; 0 if the system does not say."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        with contextlib.suppress(OSError, ValueError):
            sizes.append(int(path.read_text().strip().removesuffix("K")) * 1024)
    return max(sizes, default=0)


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


def _last(rows: int, channels: int, strides: Strides, itemsize: int) -> tuple[int, ...]:
    """Geometry for the channels-last layout."""
    lanes = 64 // itemsize
    fold = 1
    dense = rows == 1 or all(stride == channels for stride in strides)
    if dense and channels < FOLD_COLUMNS:
        fold = lanes // math.gcd(channels, lanes)
        fold *= max(1, FOLD_COLUMNS // (fold * channels))
        fold = max(1, min(fold, rows))
    if rows == 1:
        strides = (channels,) * len(strides)
    return (rows, channels, fold, *strides)
