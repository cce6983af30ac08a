"""How arrays are walked, and how work is cut: decided once, and cached.

Kernels know two layouts. *first*: each channel's values lie in contiguous rows (NCHW, NCL, slices
of them). *last*: the channels lie next to each other (NHWC, (N, C)). What decides is the strides,
not the axis: a transposed view of an NHWC array is read in place.

`walk_of` says how arrays of one shape are walked together, a `Plan` what an operation does on that
way: which parts run, how work is cut, on how many threads, past the caches or not.
"""

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from fastbn._system import processor
from fastbn.kernels import entries, parts
from fastbn.kernels.channels_first.cut import cut as cut_first
from fastbn.kernels.channels_last.cut import cut as cut_last
from fastbn.kernels.channels_last.cut import fold_of
from fastbn.kernels.compile import Entry
from fastbn.kernels.frame import new_frame, set_fields
from fastbn.kernels.held import FLOAT16, computed
from fastbn.kernels.moments import HEADER
from fastbn.kernels.simd import CONVERTS_FLOAT16

Strides = tuple[int, ...]

#: Part of the last-level cache, and bytes at most, of channels that go through an operation
#: together, so that the second read comes from there. Long runs count for more than a nearer
#: cache: 4 MiB was up to 1.5 times as fast as half of an L2.
TILE_SHARE, TILE_BYTES = 8, 4 * 1024 * 1024
#: The same where each channel lies in one piece, and a tile too: the next cache is worth more then.
ONE_ROW_BYTES = 512 * 1024
#: Bytes below which waking threads costs more than it saves.
PARALLEL_BYTES = 256 * 1024
#: Samples from which on each thread sums and normalizes some of them, where all is in cache.
#: Tiles would have threads store close to each other: a processor fetches some lines more than a
#: sequence of stores asks for, and where these are another thread's, they go back and forth.
SHARED_ROWS = 8
#: Values of a row from which on it is stored past the caches, if the array is large.
STREAM_VALUES = 512
VECTOR_BYTES = 64
#: Walks that are kept with their plans, the latest.
KEPT = 4096


@dataclass(frozen=True, slots=True)
class Walk:
    """How kernels walk arrays of one shape together; sizes and distances in values.

    Attributes
    ----------
    layout : "first" or "last"
    rows, channels, length : a channel has ``rows`` rows of ``length`` contiguous values
    steps : for each array, the distances of rows and of channels
    extents : for each array, the length of its flat view
    per_group, per_sample : where each channel is a group of a group norm, channels of a group, and
        groups of a sample; else 0
    of_group : channels whose gradients have statistics in common; or 0
    plans : what has been planned on this walk, by operation and dtype
    """

    layout: str
    rows: int
    channels: int
    length: int
    steps: tuple[tuple[int, int], ...]
    extents: tuple[int, ...]
    per_group: int = 0
    per_sample: int = 0
    of_group: int = 0
    plans: "dict[tuple[str, np.dtype], Plan]" = field(default_factory=dict, compare=False)

    @property
    def count(self) -> int:
        """Values of a channel."""
        return self.rows * self.length

    def plan(self, operation: str, dtype: np.dtype) -> "Plan":
        """The plan of an operation, made once."""
        found = self.plans.get((operation, dtype))
        if found is None:
            found = self.plans[operation, dtype] = Plan(operation, dtype, self)
        return found

    def is_dense(self, arrays: slice = slice(None)) -> bool:
        """Whether rows follow each other in memory (channels last), in some of the arrays."""
        return self.rows == 1 or all(row == self.channels for row, _ in self.steps[arrays])

    def sums_like(self, alone: "Walk", summed: int) -> bool:
        """Whether the first ``summed`` arrays are summed in the order of one array alone."""
        return (
            (self.layout, self.rows, self.length) == (alone.layout, alone.rows, alone.length)
            and (self.layout == "first" or self.is_dense(slice(summed)) == alone.is_dense())
        )  # fmt: skip


@lru_cache(maxsize=KEPT)
def walk_of(
    shape: tuple[int, ...], itemsize: int, axis: int, operands: tuple[Strides, ...]
) -> Walk | None:
    """Walk of arrays that are not empty; None where no layout fits them all.

    ``axis`` is the channel axis, not negative; ``operands`` are the strides of each array in bytes.
    """
    if any(stride % itemsize for strides in operands for stride in strides):
        return None
    channels = shape[axis]
    channel_steps = tuple(strides[axis] // itemsize for strides in operands)
    # (size, stride in each operand) of the other dimensions, outermost first
    dims = sorted(
        (
            (n, tuple(strides[k] // itemsize for strides in operands))
            for k, n in enumerate(shape)
            if k != axis and n > 1
        ),
        key=lambda dim: dim[1],
        reverse=True,
    )
    length = _pop_contiguous(dims)
    rows, row_steps = _collapse(dims) or (0, ())
    if rows == 0 or (rows > 1 and min(row_steps) < 1):
        return None
    if channels > 1 and min(channel_steps) < 1:
        return None
    layout = "first"
    if length == 1 and channels > 1 and all(step == 1 for step in channel_steps):
        layout = "last"
    elif length == 1 and rows > 1:
        return None  # single values far apart: a copy is faster than a walk
    if rows == 1:
        row_steps = (channels if layout == "last" else 0,) * len(operands)
    steps = tuple(zip(row_steps, channel_steps, strict=True))
    extents = tuple((rows - 1) * row + (channels - 1) * step + length for row, step in steps)
    return Walk(layout, rows, channels, length, steps, extents)


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


class Plan:
    """What one operation does on arrays of one walk and dtype.

    Attributes
    ----------
    walk : Walk
    dtype : of x, as `held` has it
    entry : what Python calls for the operation
    large : worth more than one thread
    serial : the only frame of a small plan; None for a large one
    """

    __slots__ = (
        "_frames", "_operation", "_streaming", "_tile", "dtype", "entry", "large", "serial", "walk",
    )  # fmt: skip

    def __init__(self, operation: str, dtype: np.dtype, walk: Walk) -> None:
        exact = operation in parts.EXACT_OPERATIONS  # where 16 bits are an integer
        if dtype == FLOAT16 and not CONVERTS_FLOAT16 and not exact:
            raise NotImplementedError(
                "float16 needs a processor with F16C, or Numba to make use of it "
                "(NUMBA_CPU_NAME, NUMBA_CPU_FEATURES); convert x: x.astype(np.float32)"
            )
        self.walk, self.dtype = walk, dtype
        self._operation = parts.operation_of(operation)
        self.entry: Entry = getattr(entries, self._operation.entries[0])
        self._frames: dict[tuple[int, bool], np.ndarray] = {}
        bytes_each = walk.count * walk.channels * dtype.itemsize
        cache, arrays = processor.last_level_cache(), sum(step != (0, 0) for step in walk.steps)
        self.large = bytes_each >= PARALLEL_BYTES
        fits = bytes_each * arrays <= cache
        self._tile = 0  # channels that go through all steps while they are in cache
        two_passes = self._operation.reduce and self._operation.apply
        shared = fits and walk.rows >= SHARED_ROWS
        if two_passes and self.large and walk.layout == "first" and not shared:
            of_channel = walk.count * dtype.itemsize * max(1, arrays - 1)
            tile_bytes = TILE_BYTES if walk.rows > 1 else ONE_ROW_BYTES
            self._tile = min(tile_bytes, cache // TILE_SHARE) // of_channel
        long = walk.length >= STREAM_VALUES if walk.layout == "first" else walk.is_dense()
        self._streaming = not fits and long
        self.serial = None if self.large else self.frame(1, in_place=False)

    @property
    def count(self) -> int:
        """Values of a channel."""
        return self.walk.count

    def frame(self, threads: int, in_place: bool) -> np.ndarray:
        """What the parts are told, on so many threads; parts that it names are compiled.

        In place nothing is stored past the caches, which hold what has just been read.
        """
        in_place = in_place and self.large  # what is small is the same in place or not
        found = self._frames.get((threads, in_place))
        if found is None:
            found = self._frames[threads, in_place] = self._new_frame(threads, in_place)
        return found

    def _new_frame(self, threads: int, in_place: bool) -> np.ndarray:
        walk, value_bytes = self.walk, computed(self.dtype).itemsize
        lanes = VECTOR_BYTES // value_bytes
        tile, of_group = self._tile_for(threads), walk.of_group
        tiles = -(-walk.channels // tile) if tile else 1
        if walk.layout == "first":
            fields = cut_first(walk.rows, walk.channels, walk.length, self._operation.row_chain)
        else:
            summed = walk.is_dense(self._operation.summed)
            fold = fold_of(walk.rows, walk.channels, lanes) if summed else 1
            fields = cut_last(
                walk.rows, walk.channels, fold, self._operation.column_chain, walk.is_dense(), lanes
            )
        columns, terms = (tile or fields[name] for name in ("columns", "terms"))
        terms *= max(1, walk.per_group)
        fields["terms"] = terms
        fields |= _scratch(tile or walk.channels, fields["segments"], columns, terms)
        for name, step in zip(self._operation.arrays, walk.steps, strict=True):
            fields[f"{name}_row"], fields[f"{name}_channel"] = step
        streaming = self._streaming and not in_place and bool(fields.get("aligned", True))
        addresses = parts.addresses(
            self._operation, walk.layout, self.dtype, threads > 1, tile > 0, streaming,
            # a call that has written over its input in some tiles cannot be made again
            with_wide=tile > 0 and in_place,
        )  # fmt: skip
        return new_frame(
            **fields, **addresses, rows=walk.rows, length=walk.length, channels=walk.channels,
            all_channels=walk.channels, count=walk.count * max(1, of_group),
            item_bytes=self.dtype.itemsize, value_bytes=value_bytes, tile=tile, tiles=tiles,
            scratch_bytes=fields["tile_bytes"] * tiles, frozen=self._operation.frozen,
            per_group=walk.per_group, per_sample=walk.per_sample, of_group=of_group,
        )  # fmt: skip

    def add_wide_parts(self) -> None:
        """Compile the parts that work in float64, and name them in all frames."""
        addresses = parts.wide_addresses(self._operation, self.walk.layout, self.dtype)
        for key, frame in list(self._frames.items()):
            changed = frame.copy()  # calls may be reading the frame itself
            set_fields(changed, addresses)
            self._frames[key] = changed
        if self.serial is not None:
            self.serial = self._frames[1, False]

    def _tile_for(self, threads: int) -> int:
        """Channels of a tile such that all threads have as many; 0 without tiles."""
        channels = self.walk.channels
        if self._tile == 0 or channels < 2 * threads:
            tile = 0 if threads > 1 else min(self._tile, channels)
        else:
            tiles = threads * -(-channels // (self._tile * threads))
            tile = -(-channels // tiles)
        whole = max(1, self.walk.of_group)
        return -(-tile // whole) * whole


def _scratch(channels: int, segments: int, columns: int, terms: int) -> dict[str, int]:
    """Where in its memory each step of a tile has its own, in bytes; and how many these are."""
    words = {
        "partial": segments * (HEADER + 3 * columns),
        "marks": channels,
        "sums": 2 * channels,
        "parameters": 4 * channels,
        "table": 5 * terms,
        "wide_table": 4 * terms,
    }
    places, end = laid_out({name: 8 * size for name, size in words.items()})
    return {**places, "tile_bytes": end}


def laid_out(sizes: dict[str, int]) -> tuple[dict[str, int], int]:
    """Where each begins that takes so many bytes, one after the other; and where all end."""
    places, end = {}, 0
    for name, size in sizes.items():
        places[name] = end
        end += -(-size // VECTOR_BYTES) * VECTOR_BYTES
    return places, end
