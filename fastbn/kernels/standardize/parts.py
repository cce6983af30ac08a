"""Parts of `standardize`: the loop over the rows of a task, for each way along a row."""

from collections.abc import Callable, Iterable, Iterator
from functools import cache

import numpy as np

from fastbn.kernels import entries
from fastbn.kernels.compile import Part, Unit, loop_address, loop_unit, part
from fastbn.kernels.passes import run_tasks
from fastbn.kernels.simd import fence, frame_at, pointers_of, values_at
from fastbn.kernels.standardize.runs import RUNS, Kinds, run_of

_ANY, _ENTRY = np.dtype(np.float64), np.dtype(np.float32)
#: Ways that arrays of a layout go, and for how many channels, if that must be known.
_USUAL = {"first": (("rows", 1),), "last": (("lines", 1), ("split", 3))}


@part("standardize_tasks")
def all_tasks(frame, task, like):
    """All tasks of the only pass; `passes` has more steps than that."""
    f = frame_at(frame)
    run_tasks(f, frame, f.apply, f.apply_tasks)


@cache
def part_of(way: str, kinds: Kinds, streaming: bool = False, channels: int = 1) -> Part:
    """The part for a way along rows and three kinds.

    ``channels``: how many a part is made for that takes channels apart, or puts them together.
    """
    count = channels if RUNS[way].counts else 1
    along = run_of(way, kinds, streaming, count)
    x_at, out_at = pointers_of(kinds.read), pointers_of(kinds.written)
    suffix = ("_streaming" if streaming else "") + (f"_{count}" if RUNS[way].counts else "")

    @part(f"standardize_{way}_{'_'.join(kinds)}{suffix}")
    def rows(frame, task, like):
        f = frame_at(frame)
        x, out, table = x_at(f.first), out_at(f.out), values_at(f.table, like)
        channels, rows_each, length = f.channels, f.sample_rows, f.length
        value = task * f.task_size
        left = min(f.task_size, f.rows * channels * length - value)
        row = value // length
        value -= row * length
        sample = row // (rows_each * channels)
        row -= sample * rows_each * channels
        c = row // rows_each
        row -= c * rows_each
        while left > 0:
            size = min(length - value, left)
            i = sample * f.first_sample + row * f.first_row
            k = sample * f.out_sample + row * f.out_row
            if channels > 1:
                i += c * f.first_channel
                k += c * f.out_channel
            along(f, x, out, i, k, value, size, c, table, like)
            left -= size
            value = 0
            row += 1
            if row == rows_each:
                row, c = 0, c + 1
            if c == channels:
                c, sample = 0, sample + 1
        if streaming:
            fence()

    return rows


def addresses(
    way: str, kinds: Kinds, streaming: bool, channels: int, threads: bool
) -> dict[str, int]:
    """Fields of the frame that name parts."""
    working = np.dtype(kinds.working)
    found = {
        "run": all_tasks.address(_ANY),
        "apply": part_of(way, kinds, streaming, channels).address(working),
    }
    if threads:
        found["loop"] = loop_address()
    return found


def entry() -> Callable[..., int]:
    """What Python calls, the same for all kinds."""
    return entries.standardize.of(_ENTRY, _ENTRY)


def units(kinds: Iterable[str], layouts: Iterable[str]) -> Iterator[Unit]:
    """What usual calls need that read some kinds and write float32."""
    yield loop_unit()
    yield all_tasks.unit(_ANY)
    yield entries.standardize.unit(_ENTRY, _ENTRY)
    ways = [way for layout in layouts for way in _USUAL[layout]]
    for read in kinds:
        working = "float64" if read == "float64" else "float32"
        for way, channels in ways:
            for streaming in (False, True):
                made = part_of(way, Kinds(read, "float32", working), streaming, channels)
                yield made.unit(np.dtype(working))
