"""Channels last: elementwise passes over lines, whose columns are channels of their own.

Four lines at a time, a quarter of a task's lines apart, for the reasons in `moments`. Where rows
follow each other in memory, lines are as wide as vectors like them, and begin where the output is
aligned: what comes before the first line and after the last is done by the first and last task.
"""

from functools import cache

from fastbn.kernels import loops, pointwise
from fastbn.kernels.compile import inlined, part
from fastbn.kernels.simd import (
    data_at,
    fence,
    frame_at,
    stores,
    stores_streaming,
    to_boundary,
)


@inlined
def grid_of(f, out):
    """Values before the first line, and number of lines."""
    if f.aligned == 0:
        return 0, f.rows // f.line_rows
    head = min(to_boundary(out, 0), f.rows * f.channels)
    return head, (f.rows * f.channels - head) // f.width


def lines_part(name, operation, stores_whole=stores):
    """The part that runs an elementwise operation on the lines of a task."""
    pointers_of, steps_of, starts_of = operation.pointers, operation.steps, operation.starts
    table_of = operation.table
    four, one = (
        loops.lines_with(n, operation.compute, operation.terms_along(n), stores_whole)
        for n in (4, 1)
    )
    streaming = stores_whole is stores_streaming

    @part(name)
    def lines(frame, task, like):
        f = frame_at(frame)
        pointers, steps, table = pointers_of(f, like), steps_of(f), table_of(f, like)
        out, width, values = data_at(f.out, like), f.width, f.rows * f.channels
        head, all_lines = grid_of(f, out)
        first = task * f.task_size
        some = max(0, min(f.task_size, all_lines - first))
        last_task = task == f.apply_tasks - 1
        rows, step = f.line_rows, f.line_rows * f.out_row
        quarter = some // 4
        aparts = starts_of(steps, quarter * rows, 0, 0)
        for n in range(first, first + quarter):
            at = starts_of(steps, n * rows, 0, head)
            four(
                table, like, pointers, at, aparts,
                out, head + n * step, quarter * step, width, head,
            )  # fmt: skip
        for n in range(first + 4 * quarter, first + some):
            at = starts_of(steps, n * rows, 0, head)
            one(table, like, pointers, at, at, out, head + n * step, 0, width, head)
        if task == 0 and head > 0:
            at = starts_of(steps, 0, 0, 0)
            one(table, like, pointers, at, at, out, 0, 0, head, 0)
        end = head + all_lines * width
        if last_task and end < values:
            at = starts_of(steps, 0, 0, end)
            one(table, like, pointers, at, at, out, end, 0, values - end, head)
        if streaming:
            fence()

    return lines


@cache
def part_of(name, streaming=False):
    """The part of an elementwise pass; if ``streaming``, one that stores past the caches."""
    if streaming:
        return lines_part(f"last_{name}_streaming", pointwise.plain(name), stores_streaming)
    return lines_part(f"last_{name}", pointwise.plain(name))


@cache
def wide_part_of(name):
    """The part that serves marked channels as well."""
    return lines_part(f"last_wide_{name}", pointwise.wide(name))
