"""Channels-last kernels: x[r, c] at ``r * stride + c``; (N, C) is the plain case.

``geometry`` is (rows, channels, fold) followed by the row stride of each array,
in elements. Few channels would leave most of a vector empty, so ``fold`` rows
that follow each other in memory are read as one *line* of ``fold * channels``
columns; the statistics of the ``fold`` columns of a channel are merged at the
end. Rows that do not fill a line come last, one short line.

How work is cut follows from shape and strides alone: blocks of lines are summed in x's
precision, segments have their own shift and are merged in order, columns never
mix. So threads do not change a bit.

Elementwise passes have lines of their own, as wide as vectors like them; where rows follow
each other, they begin where the output is aligned.
"""

import numpy as np
from numba import prange

from fastbn.kernels.compile import inner, kernel
from fastbn.kernels.cpu_groups import mend_means, segment_moments_of, segment_products_of
from fastbn.kernels.cpu_last_channels import add_segments, merge_segments, repeat_columns
from fastbn.kernels.cpu_last_column_sums import block_products, block_sums
from fastbn.kernels.cpu_last_cut import (
    BLOCK,
    column_task,
    count_column_tasks,
    count_line_tasks,
    count_segments,
    elementwise_width,
    lines_per_task,
    segment_bounds,
)
from fastbn.kernels.cpu_last_lines import (
    gradient_lines,
    normalize_lines,
    scale_line,
    scaled_gradient_line,
    scaled_line,
    stream_gradient_lines,
    stream_lines,
)
from fastbn.kernels.cpu_terms import (
    fill_centers,
    fill_gradients,
    fill_normalizing_terms,
    fill_statistics,
)
from fastbn.kernels.vector import fence, lanes, pointer, to_boundary

segment_moments = segment_moments_of(block_sums)
segment_products = segment_products_of(block_products)

# --- sums -----------------------------------------------------------------------------------


@inner
def moments_task(x, geometry, task, partial):
    """Statistics of some columns of one segment."""
    rows, channels, fold, stride = geometry
    segment, lo, hi = column_task(task, rows, channels, fold)
    if lo < hi:
        row, lines, _ = segment_bounds(segment, rows, channels, fold)
        segment_moments(
            x, row * stride + lo, lines, fold * stride, (1, 1), BLOCK,
            partial[segment, 0, lo:hi], partial[segment, 1, lo:hi],
        )  # fmt: skip


@inner
def merge_moments(x, geometry, partial, mean, m2):
    rows, channels, fold, stride = geometry
    merge_segments(partial, rows, channels, fold, mean, m2)
    mend_means(x, 0, rows, stride, (1, 1), mean)


@inner
def products_task(dy, x, geometry, centers, task, partial):
    """Gradient sums of some columns of one segment."""
    rows, channels, fold, dy_stride, x_stride = geometry
    segment, lo, hi = column_task(task, rows, channels, fold)
    if lo < hi:
        row, lines, _ = segment_bounds(segment, rows, channels, fold)
        segment_products(
            dy, row * dy_stride + lo, fold * dy_stride, x, row * x_stride + lo, fold * x_stride,
            lines, (1, 1, 1), BLOCK, centers[0, lo:hi], centers[1, lo:hi],
            partial[segment, 0, lo:hi], partial[segment, 1, lo:hi],
        )  # fmt: skip


# --- elementwise ----------------------------------------------------------------------------


@inner
def walk_of(out, geometry):
    """Values before the first line, number of lines, columns, and whether lines are aligned."""
    rows, channels = geometry[:2]
    dense = True
    for stride in geometry[3:]:
        dense &= stride == channels
    width = elementwise_width(out, rows, channels, dense)
    if not dense or width % lanes(out) > 0:
        return 0, rows, channels, False
    head = min(to_boundary(out, 0), rows * channels)
    return head, (rows * channels - head) // width, width, True


@inner
def normalize_some(x, i, x_step, out, k, out_step, lines, width, table, first, plain, streaming):
    """Some lines; their first column is the table's column ``first``."""
    source, target, terms = pointer(x), pointer(out), (pointer(table), table.shape[1], first)
    if not plain:
        for line in range(lines):
            scaled_line(source, i + line * x_step, target, k + line * out_step, width, terms)
    elif streaming:
        stream_lines(source, i, x_step, target, k, out_step, lines, width, terms)
    else:
        normalize_lines(source, i, x_step, target, k, out_step, lines, width, terms)


@inner
def normalize_edges(x, out, geometry, walk, table, plain):
    """What comes before the first line and after the last."""
    head, lines, width, _ = walk
    i = head + lines * width
    rest = geometry[0] * geometry[1] - i
    normalize_some(x, 0, 0, out, 0, 0, 1, head, table, 0, plain, False)
    normalize_some(x, i, 0, out, i, 0, 1, rest, table, head, plain, False)


@inner
def normalize_task(x, out, geometry, walk, table, plain, streaming, task):
    head, lines, width, aligned = walk
    fold, size = width // geometry[1], lines_per_task(lines, width)
    x_step, out_step = fold * geometry[3], fold * geometry[4]
    first = task * size
    normalize_some(
        x, head + first * x_step, x_step, out, head + first * out_step, out_step,
        min(size, lines - first), width, table, head, plain, streaming and aligned,
    )  # fmt: skip


@inner
def gradient_some(
    dy, i, dy_step, x, k, x_step, dx, m, dx_step, lines, width, table, first, plain, streaming,
    batch_statistics,
):  # fmt: skip
    """Some lines; their first column is the table's column ``first``."""
    gradient, source, target = pointer(dy), pointer(x), pointer(dx)
    terms = (pointer(table), table.shape[1], first)
    if not batch_statistics:
        for line in range(lines):
            scale_line(gradient, i + line * dy_step, target, m + line * dx_step, width, terms)
    elif not plain:
        for line in range(lines):
            p, q, r = i + line * dy_step, k + line * x_step, m + line * dx_step
            scaled_gradient_line(gradient, p, source, q, target, r, width, terms)
    elif streaming:
        stream_gradient_lines(
            gradient, i, dy_step, source, k, x_step, target, m, dx_step, lines, width, terms
        )
    else:
        gradient_lines(
            gradient, i, dy_step, source, k, x_step, target, m, dx_step, lines, width, terms
        )


@inner
def gradient_edges(dy, x, dx, geometry, walk, table, plain, batch_statistics):
    """What comes before the first line and after the last."""
    head, lines, width, _ = walk
    i = head + lines * width
    rest = geometry[0] * geometry[1] - i
    gradient_some(dy, 0, 0, x, 0, 0, dx, 0, 0, 1, head, table, 0, plain, False, batch_statistics)
    gradient_some(dy, i, 0, x, i, 0, dx, i, 0, 1, rest, table, head, plain, False, batch_statistics)


@inner
def gradient_task(dy, x, dx, geometry, walk, table, plain, streaming, batch_statistics, task):
    head, lines, width, aligned = walk
    fold, size = width // geometry[1], lines_per_task(lines, width)
    dy_step, x_step, dx_step = fold * geometry[3], fold * geometry[4], fold * geometry[5]
    first = task * size
    gradient_some(
        dy, head + first * dy_step, dy_step, x, head + first * x_step, x_step,
        dx, head + first * dx_step, dx_step, min(size, lines - first), width,
        table, head, plain, streaming and aligned, batch_statistics,
    )  # fmt: skip


# --- kernels --------------------------------------------------------------------------------


@kernel
def moments(x, geometry, mean, m2):
    """Mean and m2 of every channel; a task is a segment of some columns."""
    rows, channels, fold = geometry[:3]
    partial = np.empty((count_segments(rows, channels, fold), 2, fold * channels))
    for task in prange(count_column_tasks(rows, channels, fold)):
        moments_task(x, geometry, task, partial)
    merge_moments(x, geometry, partial, mean, m2)


@kernel
def normalize(x, out, geometry, streaming, mean, var, weight, bias, eps):
    """Normalize with given statistics, in the order of memory."""
    walk = walk_of(out, geometry)
    table = np.empty((5, walk[2] + lanes(x)), x.dtype)
    plain = fill_normalizing_terms(table, x, mean, var, weight, bias, eps)
    repeat_columns(table, geometry[1])
    for task in prange(count_line_tasks(walk[1], walk[2])):
        normalize_task(x, out, geometry, walk, table, plain, streaming, task)
        if streaming:
            fence()
    normalize_edges(x, out, geometry, walk, table, plain)


@kernel
def forward(x, out, geometry, tile, streaming, weight, bias, eps, statistics):
    """Batch statistics (mean, variance and 1 / std), then normalize.

    ``tile`` is for the other layout, whose kernel this one stands in for.
    """
    rows, channels, fold = geometry[:3]
    partial = np.empty((count_segments(rows, channels, fold), 2, fold * channels))
    for task in prange(count_column_tasks(rows, channels, fold)):
        moments_task(x, geometry[:4], task, partial)
    mean, var = statistics[0], statistics[1]
    merge_moments(x, geometry[:4], partial, mean, var)
    fill_statistics(statistics, 0, channels, rows, eps)
    walk = walk_of(out, geometry)
    table = np.empty((5, walk[2] + lanes(x)), x.dtype)
    plain = fill_normalizing_terms(table, x, mean, var, weight, bias, eps)
    repeat_columns(table, channels)
    for task in prange(count_line_tasks(walk[1], walk[2])):
        normalize_task(x, out, geometry, walk, table, plain, streaming, task)
        if streaming:
            fence()
    normalize_edges(x, out, geometry, walk, table, plain)


@kernel
def backward(
    dy, x, dx, geometry, tile, streaming, statistics, weight, d_weight, d_bias, batch_statistics
):
    """Gradients of weight, bias and x; ``statistics`` as `forward` fills them, no ``tile``."""
    rows, channels, fold = geometry[:3]
    mean, rstd = statistics[0], statistics[2]
    centers = np.empty((2, fold * channels), x.dtype)
    fill_centers(centers, x, mean, rstd)
    repeat_columns(centers, channels)
    partial = np.empty((count_segments(rows, channels, fold), 2, fold * channels))
    for task in prange(count_column_tasks(rows, channels, fold)):
        products_task(dy, x, geometry[:5], centers, task, partial)
    sums = np.empty((2, channels))
    add_segments(partial, rows, channels, fold, sums)
    walk = walk_of(dx, geometry)
    table = np.empty((6, walk[2] + lanes(x)), x.dtype)
    plain = fill_gradients(table, x, rows, mean, rstd, weight, centers[0], sums, d_weight, d_bias)
    repeat_columns(table, channels)
    for task in prange(count_line_tasks(walk[1], walk[2])):
        gradient_task(dy, x, dx, geometry, walk, table, plain, streaming, batch_statistics, task)
        if streaming:
            fence()
    gradient_edges(dy, x, dx, geometry, walk, table, plain, batch_statistics)
