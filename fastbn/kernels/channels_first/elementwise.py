"""Channels first: elementwise passes. A task is some values in the order of memory, row by row."""

from functools import cache

from fastbn.kernels import loops, pointwise
from fastbn.kernels.compile import part
from fastbn.kernels.simd import data_at, fence, frame_at, stores, stores_streaming


def rows_part(name, operation, stores_whole=stores):
    """The part that runs an elementwise operation on the rows of a task."""
    pointers_of, steps_of, starts_of = operation.pointers, operation.steps, operation.starts
    table_of, constant_terms = operation.table, operation.constant_terms
    row = loops.rows_with(operation.compute, stores_whole)
    streaming = stores_whole is stores_streaming

    @part(name)
    def rows(frame, task, like):
        f = frame_at(frame)
        pointers, steps, table = pointers_of(f, like), steps_of(f), table_of(f, like)
        out, out_row, out_channel = data_at(f.out, like), f.out_row, f.out_channel
        channels, length = f.channels, f.length
        of_sample = channels * length
        value = task * f.task_size
        left = min(f.task_size, f.rows * of_sample - value)
        n = value // of_sample
        value -= n * of_sample
        c = value // length
        value -= c * length
        while left > 0:
            size = min(length - value, left)
            row(
                pointers, starts_of(steps, n, c, value),
                out, n * out_row + c * out_channel + value, size, constant_terms(table, c, like),
            )  # fmt: skip
            left -= size
            value = 0
            c += 1
            if c == channels:
                n, c = n + 1, 0
        if streaming:
            fence()

    return rows


@cache
def part_of(name, streaming=False):
    """The part of an elementwise pass; if ``streaming``, one that stores past the caches."""
    if streaming:
        return rows_part(f"first_{name}_streaming", pointwise.plain(name), stores_streaming)
    return rows_part(f"first_{name}", pointwise.plain(name))


@cache
def wide_part_of(name):
    """The part that serves marked channels as well."""
    return rows_part(f"first_wide_{name}", pointwise.wide(name))
