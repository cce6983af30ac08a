"""Channels last: elementwise passes over lines, whose columns are channels of their own.

Four lines at a time, a quarter of a task's lines apart, for the reasons in `moments`. Where rows
follow each other in memory, lines are as wide as vectors like them, and begin where the output is
aligned: what comes before the first line and after the last is done by the first and last task.
"""

from fastbn.kernels import loops, operations
from fastbn.kernels.compile import inlined, part
from fastbn.kernels.simd import (
    fence,
    frame_at,
    stores,
    stores_streaming,
    to_boundary,
    values_at,
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
    pointers_of, starts_of = operation.pointers, operation.starts
    four, one = (
        loops.lines_with(n, operation.compute, operation.terms_along(n), stores_whole)
        for n in (4, 1)
    )
    streaming = stores_whole is stores_streaming

    @part(name)
    def lines(frame, task, like):
        f = frame_at(frame)
        pointers, out, width = pointers_of(f, like), values_at(f.out, like), f.width
        head, all_lines = grid_of(f, out)
        first = task * f.task_size
        some = max(0, min(f.task_size, all_lines - first))
        rows, step = f.line_rows, f.line_rows * f.out_row
        quarter = some // 4
        for n in range(first, first + quarter):
            four(
                f, like, pointers, starts_of(f, n * rows, 0, head),
                starts_of(f, quarter * rows, 0, 0),
                out, head + n * step, quarter * step, width, head,
            )  # fmt: skip
        for n in range(first + 4 * quarter, first + some):
            at = starts_of(f, n * rows, 0, head)
            one(f, like, pointers, at, at, out, head + n * step, 0, width, head)
        if task == 0 and head > 0:
            at = starts_of(f, 0, 0, 0)
            one(f, like, pointers, at, at, out, 0, 0, head, 0)
        end = head + all_lines * width
        rest = f.rows * f.channels - end
        if task == f.apply_tasks - 1 and rest > 0:
            at = starts_of(f, 0, 0, end)
            one(f, like, pointers, at, at, out, end, 0, rest, head)
        if streaming:
            fence()

    return lines


normalize = lines_part("last_normalize", operations.NORMALIZE)
normalize_streaming = lines_part("last_normalize_streaming", operations.NORMALIZE, stores_streaming)
wide_normalize = lines_part("last_wide_normalize", operations.WIDE_NORMALIZE)
gradient = lines_part("last_gradient", operations.GRADIENT)
gradient_streaming = lines_part("last_gradient_streaming", operations.GRADIENT, stores_streaming)
wide_gradient = lines_part("last_wide_gradient", operations.WIDE_GRADIENT)
