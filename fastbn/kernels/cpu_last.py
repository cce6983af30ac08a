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
from fastbn.kernels.cpu_last_loops import (
    block_products,
    block_sums,
    gradient_line,
    normalize_line,
)

BLOCK = 256  # lines whose sums are kept in x's precision, one lane each
SEGMENT = 131072  # values of a segment, at least
SEGMENTS = 256  # segments at most, so that their partial results stay small
COLUMNS = 1024  # columns of a statistics task: 4 KiB of each line of float32
TASK = 65536  # values of an elementwise task

# --- how the rows are cut -------------------------------------------------------------------


@inner
def lines_per_segment(lines, width):
    size = max(SEGMENT // width, (lines + SEGMENTS - 1) // SEGMENTS)
    return ((size + BLOCK - 1) // BLOCK) * BLOCK


@inner
def count_segments(rows, channels, fold):
    """Segments of whole lines, and one more for the rows that do not fill a line."""
    lines = rows // fold
    size = lines_per_segment(lines, fold * channels)
    return (lines + size - 1) // size + (1 if rows > lines * fold else 0)


@inner
def segment_bounds(segment, rows, channels, fold):
    """First row, number of lines, columns of a line."""
    lines = rows // fold
    size = lines_per_segment(lines, fold * channels)
    first = segment * size
    if first < lines:
        return first * fold, min(size, lines - first), fold * channels
    return lines * fold, 1, (rows - lines * fold) * channels


@inner
def tasks_of(rows, channels, fold):
    """Elementwise tasks, and the lines of each."""
    lines = (rows + fold - 1) // fold
    per_task = max(1, TASK // (fold * channels))
    return (lines + per_task - 1) // per_task, per_task


@inner
def line_width(line, rows, channels, fold):
    return min(fold, rows - line * fold) * channels


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
    sums = np.empty(width, x.dtype)
    squares = np.empty(width, x.dtype)
    set_finite(shift, x[start : start + width])
    n = min(lines, BLOCK)
    block_sums(x, start, n, stride, shift, sums, squares)
    for c in range(width):
        mean[c] = shift[c] + float(sums[c]) / n
    set_finite(shift, mean)
    mean[:] = 0.0
    m2[:] = 0.0
    count = 0.0
    for line in range(0, lines, BLOCK):
        n = min(lines - line, BLOCK)
        block_sums(x, start + line * stride, n, stride, shift, sums, squares)
        for c in range(width):
            block_mean, block_m2 = formulas.moments_from_sums(
                float(n), float(shift[c]), float(sums[c]), float(squares[c])
            )
            _, mean[c], m2[c] = formulas.merge(
                count, mean[c], m2[c], float(n), block_mean, block_m2
            )
        count += n
        set_finite(shift, mean)


@inner
def segment_products(dy, i, dy_stride, x, k, x_stride, lines, center, sum_dy, sum_dy_xc):
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
            sum_dy[c] += sums[c]
            sum_dy_xc[c] += products[c]


# --- columns to channels --------------------------------------------------------------------


@inner
def merge_segments(partial, rows, channels, fold, lo, hi, mean, m2):
    """Merge segments and folds, in order, into channels lo to hi; ``m2`` over all rows."""
    mean[lo:hi] = 0.0
    m2[lo:hi] = 0.0
    count = 0.0
    for segment in range(partial.shape[0]):
        _, lines, columns = segment_bounds(segment, rows, channels, fold)
        for first in range(0, columns, channels):
            mu, q = partial[segment, 0, first:], partial[segment, 1, first:]
            for c in range(lo, hi):
                _, mean[c], m2[c] = formulas.merge(count, mean[c], m2[c], float(lines), mu[c], q[c])
            count += lines


@inner
def add_segments(partial, rows, channels, fold, lo, hi, sum_dy, sum_dy_xc):
    """Add segments and folds, in order, into channels lo to hi."""
    sum_dy[lo:hi] = 0.0
    sum_dy_xc[lo:hi] = 0.0
    for segment in range(partial.shape[0]):
        _, _, columns = segment_bounds(segment, rows, channels, fold)
        for first in range(0, columns, channels):
            s, p = partial[segment, 0, first:], partial[segment, 1, first:]
            for c in range(lo, hi):
                sum_dy[c] += s[c]
                sum_dy_xc[c] += p[c]


@inner
def fill_terms(table, lo, hi, mean, var, weight, bias, eps):
    """Rows of ``table``: center, scale, shift of channels lo to hi, repeated to its width."""
    channels = hi - lo
    for c in range(channels):
        table[0, c] = mean[lo + c]
        table[1, c], table[2, c] = formulas.affine_terms(
            float(mean[lo + c]),
            formulas.reciprocal_std(float(var[lo + c]), eps),
            float(weight[lo + c]),
            float(bias[lo + c]),
            float(table[0, c]),
        )
    repeat_columns(table, channels)


@inner
def fill_gradient_terms(table, lo, hi, count, mean, rstd, weight, sum_dy, sum_dy_xm):
    """Rows of ``table``: center, scale, slope, offset of channels lo to hi, repeated."""
    channels = hi - lo
    for c in range(channels):
        table[0, c] = mean[lo + c]
        table[1, c], table[2, c], table[3, c] = formulas.input_gradient_terms(
            count, sum_dy[lo + c], sum_dy_xm[lo + c], mean[lo + c], rstd[lo + c],
            weight[lo + c], float(table[0, c]),
        )  # fmt: skip
    repeat_columns(table, channels)


@inner
def repeat_columns(table, channels):
    """Copy the first ``channels`` columns to all further ones."""
    for row in range(table.shape[0]):
        for c in range(channels, table.shape[1]):
            table[row, c] = table[row, c - channels]


@inner
def fill_centers(center, mean, lo, hi):
    """``mean`` of channels lo to hi in x's precision, repeated to the width of ``center``."""
    channels = hi - lo
    for c in range(channels):
        center[c] = mean[lo + c]
    for c in range(channels, center.size):
        center[c] = center[c - channels]


@inner
def center_products(sum_dy_xm, sum_dy, mean, center, lo, hi):
    """From sums of ``dy * (x - center)`` to sums of ``dy * (x - mean)``, in place."""
    for c in range(lo, hi):
        sum_dy_xm[c] = formulas.centered_product_sum(
            sum_dy[c], sum_dy_xm[c], mean[c], float(center[c - lo])
        )


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


@inner
def normalize_task(x, out, geometry, table, task):
    rows, channels, fold, x_stride, out_stride = geometry
    _, per_task = tasks_of(rows, channels, fold)
    lines = (rows + fold - 1) // fold
    for line in range(task * per_task, min((task + 1) * per_task, lines)):
        row = line * fold
        width = line_width(line, rows, channels, fold)
        normalize_line(x, row * x_stride, out, row * out_stride, width, table)


@kernel
def normalize(x, out, geometry, mean, var, weight, bias, eps, by_channel):
    """Normalize with given statistics; ``by_channel``: backwards, after `moments`."""
    rows, channels, fold = geometry[:3]
    table = np.empty((3, fold * channels), x.dtype)
    fill_terms(table, 0, channels, mean, var, weight, bias, eps)
    tasks, _ = tasks_of(rows, channels, fold)
    for i in prange(tasks):
        normalize_task(x, out, geometry, table, tasks - 1 - i if by_channel else i)


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
    for c in range(lo, hi):
        var[c] /= rows
    table = np.empty((3, width), x.dtype)
    fill_terms(table, lo, hi, mean, var, weight, bias, eps)
    for line in range((rows + fold - 1) // fold - 1, -1, -1):
        i = line * fold * x_stride + lo
        k = line * fold * out_stride + lo
        size = width if fold == 1 else line_width(line, rows, channels, fold)
        normalize_line(x, i, out, k, size, table)


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
def gradient_sums(dy, x, geometry, mean, sum_dy, sum_dy_xm):
    """Sums of ``dy`` and ``dy * (x - mean)`` of every channel; tasks as in `moments`."""
    rows, channels, fold, dy_stride, x_stride = geometry
    segments = count_segments(rows, channels, fold)
    partial = np.empty((segments, 2, fold * channels))
    center = np.empty(fold * channels, x.dtype)
    fill_centers(center, mean, 0, channels)
    tiles = (fold * channels + COLUMNS - 1) // COLUMNS
    for task in prange(segments * tiles):
        segment = task // tiles
        lo = (task - segment * tiles) * COLUMNS
        row, lines, columns = segment_bounds(segment, rows, channels, fold)
        if lo < columns:
            hi = min(lo + COLUMNS, columns)
            segment_products(
                dy, row * dy_stride + lo, fold * dy_stride,
                x, row * x_stride + lo, fold * x_stride, lines, center[lo:hi],
                partial[segment, 0, lo:hi], partial[segment, 1, lo:hi],
            )  # fmt: skip
    add_segments(partial, rows, channels, fold, 0, channels, sum_dy, sum_dy_xm)
    center_products(sum_dy_xm, sum_dy, mean, center, 0, channels)


@inner
def gradient_task(dy, x, dx, geometry, table, task, batch_statistics):
    rows, channels, fold, dy_stride, x_stride, dx_stride = geometry
    _, per_task = tasks_of(rows, channels, fold)
    lines = (rows + fold - 1) // fold
    for line in range(task * per_task, min((task + 1) * per_task, lines)):
        row = line * fold
        width = line_width(line, rows, channels, fold)
        gradient_line(
            dy, row * dy_stride, x, row * x_stride, dx, row * dx_stride,
            width, table, batch_statistics,
        )  # fmt: skip


@kernel
def input_gradient(dy, x, dx, geometry, mean, rstd, weight, sum_dy, sum_dy_xm, batch_statistics):
    """Gradient of x from the sums of `gradient_sums`, backwards: its last reads first."""
    rows, channels, fold = geometry[:3]
    table = np.empty((4, fold * channels), x.dtype)
    fill_gradient_terms(table, 0, channels, rows, mean, rstd, weight, sum_dy, sum_dy_xm)
    tasks, _ = tasks_of(rows, channels, fold)
    for i in prange(tasks):
        gradient_task(dy, x, dx, geometry, table, tasks - 1 - i, batch_statistics)


@inner
def backward_tile(
    dy, x, dx, geometry, lo, hi, mean, rstd, weight, sum_dy, sum_dy_xm, partial, batch_statistics
):
    rows, channels, fold, dy_stride, x_stride, dx_stride = geometry
    width = hi - lo if fold == 1 else fold * channels
    center = np.empty(width, x.dtype)
    fill_centers(center, mean, lo, hi)
    for segment in range(partial.shape[0]):
        row, lines, columns = segment_bounds(segment, rows, channels, fold)
        end = min(lo + width, columns)
        segment_products(
            dy, row * dy_stride + lo, fold * dy_stride,
            x, row * x_stride + lo, fold * x_stride, lines, center[: end - lo],
            partial[segment, 0, lo:end], partial[segment, 1, lo:end],
        )  # fmt: skip
    add_segments(partial, rows, channels, fold, lo, hi, sum_dy, sum_dy_xm)
    center_products(sum_dy_xm, sum_dy, mean, center, lo, hi)
    table = np.empty((4, width), x.dtype)
    fill_gradient_terms(table, lo, hi, rows, mean, rstd, weight, sum_dy, sum_dy_xm)
    for line in range((rows + fold - 1) // fold - 1, -1, -1):
        row = line * fold
        size = width if fold == 1 else line_width(line, rows, channels, fold)
        gradient_line(
            dy, row * dy_stride + lo, x, row * x_stride + lo, dx, row * dx_stride + lo,
            size, table, batch_statistics,
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
