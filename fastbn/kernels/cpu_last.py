"""Channels-last loops: x[r, c] at ``r * stride + c``; (N, C) is the plain case.

``geometry`` is (rows, channels, fold) followed by the row stride of each array,
in elements. Few channels would leave most of a vector empty, so ``fold`` rows
that follow each other in memory are read as one *line* of ``fold * channels``
columns; the statistics of the ``fold`` columns of a channel are merged at the
end. Rows that do not fill a line come last, one short line.

How work is cut follows from the shape alone: `BLOCK` lines are summed in x's
precision, segments have their own shift and are merged in order, columns never
mix. So neither threads nor the choice of columns to do together change a bit.
"""

import numpy as np
from numba import prange

from fastbn.kernels import cpu_formulas as formulas
from fastbn.kernels.compile import inner, kernel
from fastbn.kernels.cpu_last_channels import (
    add_segments,
    center_products,
    fill_centers,
    fill_gradient_terms,
    fill_terms,
    merge_segments,
    plain_means,
)
from fastbn.kernels.cpu_last_cut import (
    BLOCK,
    COLUMNS,
    count_segments,
    line_width,
    segment_bounds,
    tasks_of,
)
from fastbn.kernels.cpu_last_loops import (
    block_products,
    gradient_line,
    normalize_line,
    safe_block_sums,
    wide_column_products,
)
from fastbn.kernels.cpu_range import narrow

# --- statistics and sums of one segment -----------------------------------------------------


@inner
def set_finite(shift, value):
    """``shift = value`` where that is finite."""
    for c in range(shift.size):
        if np.isfinite(value[c]):
            shift[c] = value[c]


@inner
def segment_moments(x, start, lines, stride, mean, m2):
    """Mean and m2 of each column over ``lines`` lines.

    The shift starts at the first line, goes to the first block's means and then
    follows the running means. A constant column has sums of exactly zero.
    """
    width = mean.size
    shift = np.zeros(width, x.dtype)
    narrow_sums = np.empty(width, x.dtype)
    narrow_squares = np.empty(width, x.dtype)
    sums = np.empty(width)
    squares = np.empty(width)
    set_finite(shift, x[start : start + width])
    n = min(lines, BLOCK)
    safe_block_sums(x, start, n, stride, shift, narrow_sums, narrow_squares, sums, squares)
    for c in range(width):
        mean[c] = shift[c] + sums[c] / n
    set_finite(shift, mean)
    mean[:] = 0.0
    m2[:] = 0.0
    count = 0.0
    for line in range(0, lines, BLOCK):
        n = min(lines - line, BLOCK)
        safe_block_sums(
            x, start + line * stride, n, stride, shift, narrow_sums, narrow_squares, sums, squares
        )
        for c in range(width):
            block_mean, block_m2 = formulas.moments_from_sums(
                np.float64(n), np.float64(shift[c]), sums[c], squares[c]
            )
            _, mean[c], m2[c] = formulas.merge(
                count, mean[c], m2[c], np.float64(n), block_mean, block_m2
            )
        count += n
        set_finite(shift, mean)


@inner
def segment_products(dy, i, dy_stride, x, k, x_stride, lines, center, unit, sum_dy, sum_dy_xc):
    """Sums of ``dy`` and ``dy * (x - center)`` of each column over ``lines`` lines."""
    sums = np.empty(center.size, x.dtype)
    products = np.empty(center.size, x.dtype)
    sum_dy[:] = 0.0
    sum_dy_xc[:] = 0.0
    for line in range(0, lines, BLOCK):
        n = min(lines - line, BLOCK)
        block_products(
            dy, i + line * dy_stride, dy_stride, x, k + line * x_stride, x_stride,
            n, center, sums, products,
        )  # fmt: skip
        for c in range(center.size):
            s, p = np.float64(sums[c]), np.float64(products[c])
            if narrow(x) and not (unit[c] == 1.0 and np.isfinite(s) and np.isfinite(p)):
                s, p = wide_column_products(
                    dy, i + line * dy_stride + c, dy_stride,
                    x, k + line * x_stride + c, x_stride, n, np.float64(center[c]),
                )  # fmt: skip
            sum_dy[c] += s
            sum_dy_xc[c] += p


# --- kernels --------------------------------------------------------------------------------


@kernel
def moments(x, geometry, mean, m2):
    """Mean and m2 of every channel; a task is a segment of some columns."""
    rows, channels, fold, stride = geometry
    segments = count_segments(rows, channels, fold)
    partial = np.empty((segments, 2, fold * channels))
    tiles = (fold * channels + COLUMNS - 1) // COLUMNS
    for task in prange(segments * tiles):
        segment = task // tiles
        lo = (task - segment * tiles) * COLUMNS
        row, lines, columns = segment_bounds(segment, rows, channels, fold)
        if lo < columns:
            hi = min(lo + COLUMNS, columns)
            segment_moments(
                x, row * stride + lo, lines, fold * stride,
                partial[segment, 0, lo:hi], partial[segment, 1, lo:hi],
            )  # fmt: skip
    merge_segments(partial, rows, channels, fold, 0, channels, mean, m2)
    plain_means(x, rows, stride, 0, channels, mean)


@inner
def normalize_task(x, out, geometry, table, plain, task):
    rows, channels, fold, x_stride, out_stride = geometry
    _, per_task = tasks_of(rows, channels, fold)
    lines = (rows + fold - 1) // fold
    for line in range(task * per_task, min((task + 1) * per_task, lines)):
        row = line * fold
        width = line_width(line, rows, channels, fold)
        normalize_line(x, row * x_stride, out, row * out_stride, width, table, plain)


@kernel
def normalize(x, out, geometry, mean, var, weight, bias, eps, by_channel):
    """Normalize with given statistics; ``by_channel``: backwards, after `moments`."""
    rows, channels, fold = geometry[:3]
    table = np.empty((5, fold * channels), x.dtype)
    plain = fill_terms(table, x, 0, channels, mean, var, weight, bias, eps)
    tasks, _ = tasks_of(rows, channels, fold)
    for i in prange(tasks):
        normalize_task(x, out, geometry, table, plain, tasks - 1 - i if by_channel else i)


@inner
def forward_tile(x, out, geometry, lo, hi, weight, bias, eps, mean, var, partial):
    rows, channels, fold, x_stride, out_stride = geometry
    width = hi - lo if fold == 1 else fold * channels
    for segment in range(partial.shape[0]):
        row, lines, columns = segment_bounds(segment, rows, channels, fold)
        end = min(lo + width, columns)
        segment_moments(
            x, row * x_stride + lo, lines, fold * x_stride,
            partial[segment, 0, lo:end], partial[segment, 1, lo:end],
        )  # fmt: skip
    merge_segments(partial, rows, channels, fold, lo, hi, mean, var)
    plain_means(x, rows, x_stride, lo, hi, mean)
    for c in range(lo, hi):
        var[c] /= rows
    table = np.empty((5, width), x.dtype)
    plain = fill_terms(table, x, lo, hi, mean, var, weight, bias, eps)
    for line in range((rows + fold - 1) // fold - 1, -1, -1):
        i = line * fold * x_stride + lo
        k = line * fold * out_stride + lo
        size = width if fold == 1 else line_width(line, rows, channels, fold)
        normalize_line(x, i, out, k, size, table, plain)


@kernel
def forward(x, out, geometry, tile, weight, bias, eps, mean, var):
    """Batch statistics, then normalize, ``tile`` channels at a time while they are in cache."""
    rows, channels, fold = geometry[:3]
    partial = np.empty((count_segments(rows, channels, fold), 2, fold * channels))
    for task in prange((channels + tile - 1) // tile):
        lo = task * tile
        hi = min(lo + tile, channels)
        forward_tile(x, out, geometry, lo, hi, weight, bias, eps, mean, var, partial)


@kernel
def gradient_sums(dy, x, geometry, mean, rstd, sum_dy, sum_dy_xm):
    """Sums of ``dy`` and ``dy * (x - mean)`` of every channel; tasks as in `moments`."""
    rows, channels, fold, dy_stride, x_stride = geometry
    segments = count_segments(rows, channels, fold)
    partial = np.empty((segments, 2, fold * channels))
    centers = np.empty((2, fold * channels), x.dtype)
    fill_centers(centers, x, mean, rstd, 0, channels)
    tiles = (fold * channels + COLUMNS - 1) // COLUMNS
    for task in prange(segments * tiles):
        segment = task // tiles
        lo = (task - segment * tiles) * COLUMNS
        row, lines, columns = segment_bounds(segment, rows, channels, fold)
        if lo < columns:
            hi = min(lo + COLUMNS, columns)
            segment_products(
                dy, row * dy_stride + lo, fold * dy_stride,
                x, row * x_stride + lo, fold * x_stride, lines,
                centers[0, lo:hi], centers[1, lo:hi],
                partial[segment, 0, lo:hi], partial[segment, 1, lo:hi],
            )  # fmt: skip
    add_segments(partial, rows, channels, fold, 0, channels, sum_dy, sum_dy_xm)
    center_products(sum_dy_xm, sum_dy, mean, centers[0], 0, channels)


@inner
def gradient_task(dy, x, dx, geometry, table, plain, task, batch_statistics):
    rows, channels, fold, dy_stride, x_stride, dx_stride = geometry
    _, per_task = tasks_of(rows, channels, fold)
    lines = (rows + fold - 1) // fold
    for line in range(task * per_task, min((task + 1) * per_task, lines)):
        row = line * fold
        width = line_width(line, rows, channels, fold)
        gradient_line(
            dy, row * dy_stride, x, row * x_stride, dx, row * dx_stride,
            width, table, plain, batch_statistics,
        )  # fmt: skip


@kernel
def input_gradient(dy, x, dx, geometry, mean, rstd, weight, sum_dy, sum_dy_xm, batch_statistics):
    """Gradient of x from the sums of `gradient_sums`, backwards: its last reads first."""
    rows, channels, fold = geometry[:3]
    table = np.empty((6, fold * channels), x.dtype)
    plain = fill_gradient_terms(table, x, 0, channels, rows, mean, rstd, weight, sum_dy, sum_dy_xm)
    tasks, _ = tasks_of(rows, channels, fold)
    for i in prange(tasks):
        gradient_task(dy, x, dx, geometry, table, plain, tasks - 1 - i, batch_statistics)


@inner
def backward_tile(
    dy, x, dx, geometry, lo, hi, mean, rstd, weight, sum_dy, sum_dy_xm, partial, batch_statistics
):
    rows, channels, fold, dy_stride, x_stride, dx_stride = geometry
    width = hi - lo if fold == 1 else fold * channels
    centers = np.empty((2, width), x.dtype)
    fill_centers(centers, x, mean, rstd, lo, hi)
    for segment in range(partial.shape[0]):
        row, lines, columns = segment_bounds(segment, rows, channels, fold)
        end = min(lo + width, columns)
        segment_products(
            dy, row * dy_stride + lo, fold * dy_stride,
            x, row * x_stride + lo, fold * x_stride, lines,
            centers[0, : end - lo], centers[1, : end - lo],
            partial[segment, 0, lo:end], partial[segment, 1, lo:end],
        )  # fmt: skip
    add_segments(partial, rows, channels, fold, lo, hi, sum_dy, sum_dy_xm)
    center_products(sum_dy_xm, sum_dy, mean, centers[0], lo, hi)
    table = np.empty((6, width), x.dtype)
    plain = fill_gradient_terms(table, x, lo, hi, rows, mean, rstd, weight, sum_dy, sum_dy_xm)
    for line in range((rows + fold - 1) // fold - 1, -1, -1):
        row = line * fold
        size = width if fold == 1 else line_width(line, rows, channels, fold)
        gradient_line(
            dy, row * dy_stride + lo, x, row * x_stride + lo, dx, row * dx_stride + lo,
            size, table, plain, batch_statistics,
        )  # fmt: skip


@kernel
def backward(dy, x, dx, geometry, tile, mean, rstd, weight, sum_dy, sum_dy_xm, batch_statistics):
    """Both sums and the gradient of x, ``tile`` channels at a time while they are in cache."""
    rows, channels, fold = geometry[:3]
    partial = np.empty((count_segments(rows, channels, fold), 2, fold * channels))
    for task in prange((channels + tile - 1) // tile):
        lo = task * tile
        hi = min(lo + tile, channels)
        backward_tile(
            dy, x, dx, geometry, lo, hi, mean, rstd, weight,
            sum_dy, sum_dy_xm, partial, batch_statistics,
        )  # fmt: skip
