"""How `standardize` walks two arrays, and how its work is cut: by shape and strides alone."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fastbn._call.plan import STREAM_VALUES, VECTOR_BYTES, Strides
from fastbn._call.standardize_terms import Affine
from fastbn._system import processor
from fastbn.kernels.frame import new_frame
from fastbn.kernels.simd import CONVERTS_FLOAT16
from fastbn.kernels.standardize import parts
from fastbn.kernels.standardize.runs import RUNS, Kinds

#: Bytes of both arrays from which on threads are worth waking. An image of 224 x 224 pixels takes
#: 10 microseconds on one, and 9 on two; one of 320 x 320 takes 18 and 13.
PARALLEL_BYTES = 1024 * 1024
#: Values of a task, by how much there is to share.
TASK, LARGE_TASK = 16384, 65536
#: Columns of a line's terms: at least, so that few lines begin anew, and at most.
LEAST_WIDTH, WIDEST = 384, 4096
#: Channels that vectors are taken apart into, or put together from.
TURNED = 2, 3, 4
#: Values of a row and channel below which all channels together make a line.
SHORT = 64
#: Tables of terms that a plan keeps, if they are of no more channels than this.
TABLES, KEPT_CHANNELS = 4, 1024


class Dim(NamedTuple):
    """A dimension of both arrays: its size, and the distances in each."""

    size: int
    x: int
    out: int


@dataclass(frozen=True)
class Walk:
    """The way along rows (`runs`), and where rows lie; distances in values of each array.

    Attributes
    ----------
    way : which of `RUNS`
    row : positions of a row
    outer : samples, and rows of a sample
    channel : the channel dimension
    repeats : columns of a line that follow each other and have one channel
    """

    way: str
    row: Dim
    outer: tuple[Dim, Dim]
    channel: Dim
    repeats: int = 1


def walk_of(
    shape: tuple[int, ...], axis: int, x: Strides, out: Strides, sizes: tuple[int, int]
) -> Walk | None:
    """Walk of two arrays that are not empty, of one order of axes; None if there is none.

    ``x`` and ``out`` are their strides in bytes, ``sizes`` the bytes of a value.
    """
    if any(stride % sizes[0] for stride in x) or any(stride % sizes[1] for stride in out):
        return None
    dims = [Dim(n, a // sizes[0], b // sizes[1]) for n, a, b in zip(shape, x, out, strict=True)]
    channel = dims.pop(axis)
    dims = _merged(sorted((d for d in dims if d.size > 1), key=lambda d: (-abs(d.out), -abs(d.x))))
    row = dims.pop() if dims else Dim(1, channel.size * channel.x, channel.size * channel.out)
    way, repeats = _way(channel, row), 1
    if way == "rows" and channel.size > 1 and row.size < SHORT:
        size = row.size
        if channel.x == channel.out == size:  # few values of each channel, then the next channel's
            way, repeats = "lines", size
            row = dims.pop() if dims else Dim(1, channel.size * size, channel.size * size)
    columns = channel.size * repeats
    if way == "lines" and not (
        row.x == row.out == columns and math.lcm(columns, VECTOR_BYTES // 4) <= WIDEST
    ):
        if row.size > 1:
            dims.append(row)
        row = Dim(1, columns, columns)
    if len(dims) > 2:
        return None
    nothing = Dim(1, 0, 0)
    outer = (*[nothing] * (2 - len(dims)), *dims)
    return Walk(way, row, (outer[0], outer[1]), channel, repeats)


def _merged(dims: list[Dim]) -> list[Dim]:
    """Outer dimensions first; those that are one in both arrays become one."""
    found: list[Dim] = []
    for dim in dims:
        last = found[-1] if found else None
        if last and last.x == dim.size * dim.x and last.out == dim.size * dim.out:
            found[-1] = Dim(last.size * dim.size, dim.x, dim.out)
        else:
            found.append(dim)
    return found


def _way(channel: Dim, row: Dim) -> str:
    n, side_by_side = channel.size, (channel.x, channel.out)
    if row.x == row.out == 1 and row.size > 1:
        return "rows"
    if n > 1 and side_by_side == (1, 1) and ((row.x, row.out) == (n, n) or n >= SHORT):
        return "lines"
    if n in TURNED and (channel.x, row.x, row.out) == (1, n, 1):
        return "split"
    if n in TURNED and (channel.out, row.out, row.x) == (1, n, 1):
        return "joined"
    return "anyhow"


class Plan:
    """What a call does on arrays of one walk and kinds.

    Attributes
    ----------
    large : worth more than one thread
    serial : the only frame of a small plan; None for a large one
    """

    __slots__ = (
        "_cut", "_frames", "_streaming", "_tables", "entry", "kinds", "large", "serial", "walk"
    )  # fmt: skip

    def __init__(self, walk: Walk, kinds: Kinds, sizes: tuple[int, int], aligned: bool) -> None:
        if "float16" in (kinds.read, kinds.written) and not CONVERTS_FLOAT16:
            raise NotImplementedError(
                "float16 needs a processor with F16C, or Numba to make use of it "
                "(NUMBA_CPU_NAME, NUMBA_CPU_FEATURES); convert it: astype(np.float32)"
            )
        self.walk, self.kinds = walk, kinds
        self.entry = parts.entry()
        self._tables: dict[tuple, tuple[np.ndarray, int]] = {}
        self._cut, values = _cut(walk, kinds)
        self.large = values * sum(sizes) >= PARALLEL_BYTES
        self._streaming = (
            aligned and RUNS[walk.way].streaming and kinds.written in ("float32", "float64")
            and values * sum(sizes) > processor.last_level_cache()
            and self._cut["length"] >= STREAM_VALUES
            # rows of all channels begin at one place of their cache lines
            and (walk.way != "split" or walk.channel.out * sizes[1] % VECTOR_BYTES == 0)
        )  # fmt: skip
        self._frames: dict[tuple[int, bool], np.ndarray] = {}
        self.serial = None if self.large else self.frame(1, in_place=False)

    def frame(self, threads: int, in_place: bool) -> np.ndarray:
        """What the parts are told, on so many threads; parts that it names are compiled."""
        streaming = self._streaming and not in_place
        found = self._frames.get((threads, streaming))
        if found is None:
            channels = self.walk.channel.size
            addresses = parts.addresses(self.walk.way, self.kinds, streaming, channels, threads > 1)
            found = self._frames[threads, streaming] = new_frame(**self._cut, **addresses)
        return found

    def table(self, affine: Affine) -> tuple[np.ndarray, int]:
        """The table of terms as the walk has them, and where it lies."""
        key = tuple(row.tobytes() for row in affine)
        found = self._tables.get(key)
        if found is None:
            if len(self._tables) >= TABLES:
                self._tables.clear()
            walk, terms = self.walk, affine.table(np.dtype(self.kinds.working))
            if walk.way in ("split", "joined"):
                terms = terms.repeat(self.kinds.lanes, axis=1)
            elif walk.way == "lines":
                terms = terms.repeat(walk.repeats, axis=1)
                terms = terms[:, np.arange(self._cut["terms"]) % terms.shape[1]]
            table = np.ascontiguousarray(terms)
            found = table, table.__array_interface__["data"][0]
            if walk.channel.size <= KEPT_CHANNELS:
                self._tables[key] = found
        return found


def _cut(walk: Walk, kinds: Kinds) -> tuple[dict[str, int], int]:
    """Fields of the frame that say where all lies and how work is cut; the number of values."""
    (samples, rows), row, channel = walk.outer, walk.row, walk.channel
    columns = channel.size * walk.repeats
    in_line = columns if walk.way == "lines" else 1
    length, looped = row.size * in_line, channel.size if walk.way == "rows" else 1
    positions = samples.size * rows.size * looped * length
    each = columns if walk.way in ("split", "joined", "anyhow") else 1  # values of a position
    size = LARGE_TASK if positions * each >= 16 * LARGE_TASK else TASK
    task_size = max(VECTOR_BYTES, size // each // VECTOR_BYTES * VECTOR_BYTES)
    width = width_of(columns, row.size, kinds.lanes)
    fields = {
        "rows": samples.size * rows.size,
        "sample_rows": rows.size,
        "length": length,
        "channels": looped,
        "columns": columns,
        "width": width,
        "terms": terms_of(walk, width, kinds.lanes),
        "first_sample": samples.x, "first_row": rows.x, "first_channel": channel.x,
        "first_position": row.x,
        "out_sample": samples.out, "out_row": rows.out, "out_channel": channel.out,
        "out_position": row.out,
        "task_size": task_size,
        "apply_tasks": -(-positions // task_size),
    }  # fmt: skip
    return fields, positions * each


def width_of(columns: int, positions: int, lanes: int) -> int:
    """Columns of a line: whole vectors, after which channels begin anew; or one row of them."""
    if positions == 1:
        return columns
    whole = math.lcm(columns, lanes)
    return whole * max(1, LEAST_WIDTH // whole)


def terms_of(walk: Walk, width: int, lanes: int) -> int:
    """Columns of the table of terms."""
    columns = walk.channel.size * walk.repeats
    if walk.way == "lines":
        return columns + width  # a line may begin at any column
    return columns * lanes if walk.way in ("split", "joined") else columns
