"""Channels first: elementwise passes. A task is some values in the order of memory, row by row."""

from fastbn.kernels import loops, operations
from fastbn.kernels.compile import part
from fastbn.kernels.simd import fence, frame_at, stores, stores_streaming, values_at


def rows_part(name, operation, stores_whole=stores):
    """The part that runs an elementwise operation on the rows of a task."""
    pointers_of, starts_of = operation.pointers, operation.starts
    constant_terms = operation.constant_terms
    row = loops.rows_with(operation.compute, stores_whole)
    streaming = stores_whole is stores_streaming

    @part(name)
    def rows(frame, task, like):
        f = frame_at(frame)
        pointers, out, length = pointers_of(f, like), values_at(f.out, like), f.length
        of_sample = f.channels * length
        value = task * f.task_size
        left = min(f.task_size, f.rows * of_sample - value)
        n = value // of_sample
        value -= n * of_sample
        c = value // length
        value -= c * length
        while left > 0:
            size = min(length - value, left)
            row(
                pointers, starts_of(f, n, c, value),
                out, n * f.out_row + c * f.out_channel + value, size, constant_terms(f, like, c),
            )  # fmt: skip
            left -= size
            value = 0
            c += 1
            if c == f.channels:
                n, c = n + 1, 0
        if streaming:
            fence()

    return rows


normalize = rows_part("first_normalize", operations.NORMALIZE)
normalize_streaming = rows_part("first_normalize_streaming", operations.NORMALIZE, stores_streaming)
wide_normalize = rows_part("first_wide_normalize", operations.WIDE_NORMALIZE)
gradient = rows_part("first_gradient", operations.GRADIENT)
gradient_streaming = rows_part("first_gradient_streaming", operations.GRADIENT, stores_streaming)
wide_gradient = rows_part("first_wide_gradient", operations.WIDE_GRADIENT)
