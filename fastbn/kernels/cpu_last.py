"""Channels-last kernels: x[r, c] at ``r * stride + c``; (N, C) is the plain case.

``geometry`` is (rows, channels, fold) followed by the row stride of each array,
in elements. Few channels would leave most of a vector empty, so ``fold`` rows
that follow each other in memory are read as one *line* of ``fold * channels``
columns; the statistics of the ``fold`` columns of a channel are merged at the
end. Rows that do not fill a line come last, one short line.

How work is cut follows from the shape alone: blocks of lines are summed in x's
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
from fastbn.kernels.cpu_last_cut import (
    BLOCK,
    NEAR,
    column_task,
    count_column_tasks,
    count_line_tasks,
    count_segments,
    elementwise_width,
    lines_per_task,
    segment_bounds,
)
from fastbn.kernels.cpu_last_loops import (
    block_products,
    block_sums,
    gradient_lines,
    normalize_lines,
    scale_lines,
    scaled_gradient_line,
    scaled_normalize_line,
    stream_gradient_lines,
    stream_lines,
)
from fastbn.kernels.cpu_range import wide_products
from fastbn.kernels.cpu_terms import (
    center_products,
    fill_centers,
    fill_gradient_terms,
    fill_normalizing_terms,
    fill_statistics,
    parameter_gradients,
)
from fastbn.kernels.vector import fence, lanes, pointer, to_boundary

segment_moments = segment_moments_of(block_sums)
segment_products = segment_products_of(block_products, wide_products)

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
def walk_of(out, rows, channels, dense):
    """Values before the first line, number of lines, columns, and whether lines are aligned."""
    width = elementwise_width(out, rows, channels, dense)
    if not dense or width % lanes(out) > 0:
        return 0, rows, channels, False
    head = min(to_boundary(out, 0), rows * channels)
    return head, (rows * channels - head) // width, width, True


@inner
def normalize_some(x, i, x_step, out, k, out_step, lines, width, table, first, plain, streaming):
    """Some lines, in pieces that stay near while they are gone through column by column."""
    source, target, terms = pointer(x), pointer(out), (pointer(table), table.shape[1], first)
    near = NEAR if plain else 1
    for line in range(0, lines, near):
        n = min(near, lines - line)
        p, q = i + line * x_step, k + line * out_step
        if not plain:
            scaled_normalize_line(source, p, target, q, width, terms)
        elif streaming:
            stream_lines(source, p, x_step, target, q, out_step, n, width, terms)
        else:
            normalize_lines(source, p, x_step, target, q, out_step, n, width, terms)


@inner
def normalize_edges(x, out, total, walk, table, plain):
    """What comes before the first line and after the last."""
    head, lines, width, _ = walk
    i = head + lines * width
    normalize_some(x, 0, 0, out, 0, 0, 1, head, table, 0, plain, False)
    normalize_some(x, i, 0, out, i, 0, 1, total - i, table, head, plain, False)


@inner
def normalize_task(x, x_step, out, out_step, walk, table, plain, streaming, task):
    head, lines, width, aligned = walk
    size = lines_per_task(width)
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
    """Some lines, in pieces that stay near while they are gone through column by column."""
    gradient, source, target = pointer(dy), pointer(x), pointer(dx)
    terms = (pointer(table), table.shape[1], first)
    near = NEAR if plain else 1
    for line in range(0, lines, near):
        n = min(near, lines - line)
        p, q, r = i + line * dy_step, k + line * x_step, m + line * dx_step
        if not batch_statistics:
            scale_lines(gradient, p, dy_step, target, r, dx_step, n, width, terms)
        elif not plain:
            scaled_gradient_line(gradient, p, source, q, target, r, width, terms)
        elif streaming:
            stream_gradient_lines(
                gradient, p, dy_step, source, q, x_step, target, r, dx_step, n, width, terms
            )
        else:
            gradient_lines(
                gradient, p, dy_step, source, q, x_step, target, r, dx_step, n, width, terms
            )


@inner
def gradient_edges(dy, x, dx, total, walk, table, plain, batch_statistics):
    """What comes before the first line and after the last."""
    head, lines, width, _ = walk
    i = head + lines * width
    gradient_some(dy, 0, 0, x, 0, 0, dx, 0, 0, 1, head, table, 0, plain, False, batch_statistics)
    gradient_some(
        dy, i, 0, x, i, 0, dx, i, 0, 1, total - i, table, head, plain, False, batch_statistics
    )


@inner
def gradient_task(
    dy, dy_step, x, x_step, dx, dx_step, walk, table, plain, streaming, batch_statistics, task
):
    head, lines, width, aligned = walk
    size = lines_per_task(width)
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
    rows, channels, _, x_stride, out_stride = geometry
    dense = x_stride == channels and out_stride == channels
    walk = walk_of(out, rows, channels, dense)
    table = np.empty((5, walk[2] + lanes(x)), x.dtype)
    plain = fill_normalizing_terms(table, x, mean, var, weight, bias, eps)
    repeat_columns(table, channels)
    x_step, out_step = (walk[2], walk[2]) if dense else (x_stride, out_stride)
    for task in prange(count_line_tasks(walk[1], walk[2])):
        normalize_task(x, x_step, out, out_step, walk, table, plain, streaming, task)
        fence()
    normalize_edges(x, out, rows * channels, walk, table, plain)


@kernel
def forward(x, out, geometry, tile, streaming, weight, bias, eps, statistics):
    """Batch statistics (mean, variance and 1 / std), then normalize."""
    rows, channels, fold, x_stride, out_stride = geometry
    partial = np.empty((count_segments(rows, channels, fold), 2, fold * channels))
    for task in prange(count_column_tasks(rows, channels, fold)):
        moments_task(x, geometry[:4], task, partial)
    mean, var = statistics[0], statistics[1]
    merge_moments(x, geometry[:4], partial, mean, var)
    fill_statistics(statistics, 0, channels, rows, eps)
    dense = x_stride == channels and out_stride == channels
    walk = walk_of(out, rows, channels, dense)
    table = np.empty((5, walk[2] + lanes(x)), x.dtype)
    plain = fill_normalizing_terms(table, x, mean, var, weight, bias, eps)
    repeat_columns(table, channels)
    x_step, out_step = (walk[2], walk[2]) if dense else (x_stride, out_stride)
    tasks = count_line_tasks(walk[1], walk[2])
    for i in prange(tasks):  # backwards: first what was read last
        normalize_task(x, x_step, out, out_step, walk, table, plain, streaming, tasks - 1 - i)
        fence()
    normalize_edges(x, out, rows * channels, walk, table, plain)


@kernel
def backward(
    dy, x, dx, geometry, tile, streaming, statistics, weight, d_weight, d_bias, batch_statistics
):
    """Gradients of weight, bias and x; ``statistics`` as `forward` fills them."""
    rows, channels, fold, dy_stride, x_stride, dx_stride = geometry
    mean, rstd = statistics[0], statistics[2]
    centers = np.empty((2, fold * channels), x.dtype)
    fill_centers(centers, x, mean, rstd)
    repeat_columns(centers, channels)
    partial = np.empty((count_segments(rows, channels, fold), 2, fold * channels))
    for task in prange(count_column_tasks(rows, channels, fold)):
        products_task(dy, x, geometry[:5], centers, task, partial)
    sums = np.empty((2, channels))
    add_segments(partial, rows, channels, fold, sums[0], sums[1])
    center_products(sums[1], sums[0], mean, centers[0])
    parameter_gradients(sums[0], sums[1], rstd, d_weight, d_bias)
    dense = dy_stride == channels and x_stride == channels and dx_stride == channels
    walk = walk_of(dx, rows, channels, dense)
    table = np.empty((6, walk[2] + lanes(x)), x.dtype)
    plain = fill_gradient_terms(table, x, rows, mean, rstd, weight, sums[0], sums[1])
    repeat_columns(table, channels)
    width = walk[2]
    dy_step, x_step, dx_step = (width, width, width) if dense else (dy_stride, x_stride, dx_stride)
    tasks = count_line_tasks(walk[1], width)
    for i in prange(tasks):  # backwards: first what was read last
        gradient_task(
            dy, dy_step, x, x_step, dx, dx_step, walk, table, plain, streaming, batch_statistics,
            tasks - 1 - i,
        )  # fmt: skip
        fence()
    gradient_edges(dy, x, dx, rows * channels, walk, table, plain, batch_statistics)
