"""Channels-first loops: x[n, c, l] at ``n * outer_stride + c * channel_stride + l``.

Every array is seen as flat memory; ``geometry`` is (outer, channels, length)
followed by (outer stride, channel stride) of each array, in elements. A *row* is
the ``length`` contiguous values of one sample and one channel.

How work is cut follows from the shape alone. A channel is read in blocks of
about 4096 values; 32 blocks make a segment, whose statistics have
their own shift; segments are merged in order. Whichever thread takes which
segment, the bits of the result are the same.
"""

import numpy as np
from numba import prange

from fastbn.kernels import cpu_formulas as formulas
from fastbn.kernels.compile import inner, kernel
from fastbn.kernels.cpu_first_cut import (
    SEGMENT,
    block_bounds,
    count_blocks,
    count_segments,
    count_tasks,
    sample_and_channel,
    task_bounds,
)
from fastbn.kernels.cpu_first_loops import (
    gradient_row,
    normalize_row,
    safe_block_products,
    safe_block_sums,
)
from fastbn.kernels.cpu_range import center_of, finite_or, unit_of
from fastbn.kernels.cpu_terms import gradient_terms, normalizing_terms, residual
from fastbn.kernels.vector import rounded

# --- statistics and sums of one channel -----------------------------------------------------


@inner
def segment_moments(x, base, outer, length, stride, segment):
    """Count, mean and m2 of one segment of a channel.

    The shift starts at the segment's first value, goes to the first block's mean
    and then follows the running mean, so that the sums stay small. A constant
    channel has sums of exactly zero.
    """
    first = segment * SEGMENT
    end = min(first + SEGMENT, count_blocks(outer, length))
    row, rows, start, size = block_bounds(first, outer, length)
    position = base + row * stride + start
    shift = finite_or(np.float64(x[position]), 0.0)
    sums, _ = safe_block_sums(x, position, rows, stride, size, shift)
    shift = finite_or(rounded(x, shift + sums / (rows * size)), 0.0)
    count, mean, m2 = 0.0, 0.0, 0.0
    for block in range(first, end):
        row, rows, start, size = block_bounds(block, outer, length)
        sums, squares = safe_block_sums(x, base + row * stride + start, rows, stride, size, shift)
        n = np.float64(rows * size)
        block_mean, block_m2 = formulas.moments_from_sums(n, shift, sums, squares)
        count, mean, m2 = formulas.merge(count, mean, m2, n, block_mean, block_m2)
        shift = finite_or(rounded(x, mean), shift)
    return count, mean, m2


@inner
def plain_mean(x, base, outer, length, stride):
    """Mean of a channel with infinities in it: infinity or NaN, as a plain sum has it."""
    mean = 0.0
    for row in range(outer):
        for i in range(base + row * stride, base + row * stride + length):
            mean += np.float64(x[i])
    return mean / (outer * length)


@inner
def channel_moments(x, base, outer, length, stride):
    """Count, mean and m2 of one channel."""
    count, mean, m2 = 0.0, 0.0, 0.0
    for segment in range(count_segments(outer, length)):
        n, segment_mean, segment_m2 = segment_moments(x, base, outer, length, stride, segment)
        count, mean, m2 = formulas.merge(count, mean, m2, n, segment_mean, segment_m2)
    if not np.isfinite(mean):
        mean = plain_mean(x, base, outer, length, stride)
    return count, mean, m2


@inner
def segment_products(
    dy, dy_base, dy_stride, x, x_base, x_stride, outer, length, segment, center, unit
):
    """Sums of ``dy`` and ``dy * (x - center)`` over one segment of a channel."""
    sum_dy, sum_dy_xc = 0.0, 0.0
    first = segment * SEGMENT
    for block in range(first, min(first + SEGMENT, count_blocks(outer, length))):
        row, rows, start, size = block_bounds(block, outer, length)
        i = dy_base + row * dy_stride + start
        j = x_base + row * x_stride + start
        s, p = safe_block_products(dy, i, dy_stride, x, j, x_stride, rows, size, center, unit)
        sum_dy += s
        sum_dy_xc += p
    return sum_dy, sum_dy_xc


# --- kernels --------------------------------------------------------------------------------


@kernel
def moments(x, geometry, mean, m2):
    """Mean and m2 of every channel; a task is a segment."""
    outer, channels, length, outer_stride, channel_stride = geometry
    segments = count_segments(outer, length)
    partial = np.empty((channels * segments, 3))
    for task in prange(channels * segments):
        channel = task // segments
        partial[task, 0], partial[task, 1], partial[task, 2] = segment_moments(
            x, channel * channel_stride, outer, length, outer_stride, task - channel * segments
        )
    for channel in range(channels):
        count, mu, q = 0.0, 0.0, 0.0
        for task in range(channel * segments, (channel + 1) * segments):
            count, mu, q = formulas.merge(
                count, mu, q, partial[task, 0], partial[task, 1], partial[task, 2]
            )
        if not np.isfinite(mu):
            mu = plain_mean(x, channel * channel_stride, outer, length, outer_stride)
        mean[channel] = mu
        m2[channel] = q


@inner
def fill_terms(table, x, mean, var, weight, bias, eps):
    """Rows of ``table``: center, scale, shift and unit of every channel, in x's dtype."""
    for c in range(table.shape[1]):
        table[0, c], table[1, c], table[2, c], table[3, c] = normalizing_terms(
            x,
            np.float64(mean[c]),
            np.float64(var[c]),
            np.float64(weight[c]),
            np.float64(bias[c]),
            eps,
        )


@inner
def normalize_task(x, out, geometry, table, task, by_channel):
    outer, channels, length, x_outer, x_channel, out_outer, out_channel = geometry
    first, end, start, size = task_bounds(task, outer * channels, length)
    for row in range(first, end):
        n, c = sample_and_channel(row, outer, channels, by_channel)
        i = n * x_outer + c * x_channel + start
        j = n * out_outer + c * out_channel + start
        normalize_row(x, i, out, j, size, table[0, c], table[1, c], table[2, c], table[3, c])


@kernel
def normalize(x, out, geometry, mean, var, weight, bias, eps, by_channel):
    """Normalize with given statistics.

    ``by_channel`` walks channel by channel and backwards, to begin with what
    `moments` has read last; otherwise in the order of memory.
    """
    rows = geometry[0] * geometry[1]
    tasks = count_tasks(rows, geometry[2])
    table = np.empty((4, geometry[1]), x.dtype)
    fill_terms(table, x, mean, var, weight, bias, eps)
    for i in prange(tasks):
        task = tasks - 1 - i if by_channel else i
        normalize_task(x, out, geometry, table, task, by_channel)


@inner
def forward_channel(x, out, geometry, channel, weight, bias, eps, mean, var):
    outer, _, length, x_outer, x_channel, out_outer, out_channel = geometry
    base = channel * x_channel
    count, mu, m2 = channel_moments(x, base, outer, length, x_outer)
    mean[channel] = mu
    var[channel] = m2 / count
    center, scale, shift, unit = normalizing_terms(
        x, mu, m2 / count, np.float64(weight[channel]), np.float64(bias[channel]), eps
    )
    for n in range(outer - 1, -1, -1):
        i = base + n * x_outer
        j = channel * out_channel + n * out_outer
        normalize_row(x, i, out, j, length, center, scale, shift, unit)


@kernel
def forward(x, out, geometry, tile, weight, bias, eps, mean, var):
    """Batch statistics, then normalize, ``tile`` channels at a time while they are in cache."""
    channels = geometry[1]
    for task in prange((channels + tile - 1) // tile):
        for channel in range(task * tile, min((task + 1) * tile, channels)):
            forward_channel(x, out, geometry, channel, weight, bias, eps, mean, var)


@kernel
def gradient_sums(dy, x, geometry, mean, rstd, sum_dy, sum_dy_xm):
    """Sums of ``dy`` and ``dy * (x - mean)`` of every channel; a task is a segment."""
    outer, channels, length, dy_outer, dy_channel, x_outer, x_channel = geometry
    segments = count_segments(outer, length)
    partial = np.empty((channels * segments, 2))
    for task in prange(channels * segments):
        c = task // segments
        partial[task, 0], partial[task, 1] = segment_products(
            dy, c * dy_channel, dy_outer, x, c * x_channel, x_outer,
            outer, length, task - c * segments, center_of(x, mean[c]), unit_of(x, mean[c], rstd[c]),
        )  # fmt: skip
    for c in range(channels):
        s, p = 0.0, 0.0
        for task in range(c * segments, (c + 1) * segments):
            s += partial[task, 0]
            p += partial[task, 1]
        sum_dy[c] = s
        sum_dy_xm[c] = formulas.centered_product_sum(s, p, residual(mean[c], center_of(x, mean[c])))


@inner
def gradient_task(dy, x, dx, geometry, table, task, batch_statistics):
    outer, channels, length = geometry[:3]
    dy_outer, dy_channel, x_outer, x_channel, dx_outer, dx_channel = geometry[3:]
    first, end, start, size = task_bounds(task, outer * channels, length)
    for row in range(first, end):
        n, c = sample_and_channel(row, outer, channels, True)
        gradient_row(
            dy, n * dy_outer + c * dy_channel + start,
            x, n * x_outer + c * x_channel + start,
            dx, n * dx_outer + c * dx_channel + start,
            size, table[0, c], table[1, c], table[2, c], table[3, c], table[4, c], batch_statistics,
        )  # fmt: skip


@inner
def fill_gradient_terms(table, x, count, mean, rstd, weight, sum_dy, sum_dy_xm):
    """Rows of ``table``: center, scale, slope, offset, unit of every channel, in x's dtype."""
    for c in range(table.shape[1]):
        table[0, c], table[1, c], table[2, c], table[3, c], table[4, c] = gradient_terms(
            x, count, sum_dy[c], sum_dy_xm[c], mean[c], rstd[c], weight[c]
        )


@kernel
def input_gradient(dy, x, dx, geometry, mean, rstd, weight, sum_dy, sum_dy_xm, batch_statistics):
    """Gradient of x from the sums of `gradient_sums`, backwards: its last reads first."""
    outer, channels, length = geometry[:3]
    table = np.empty((5, channels), x.dtype)
    fill_gradient_terms(table, x, outer * length, mean, rstd, weight, sum_dy, sum_dy_xm)
    tasks = count_tasks(outer * channels, length)
    for i in prange(tasks):
        gradient_task(dy, x, dx, geometry, table, tasks - 1 - i, batch_statistics)


@inner
def backward_channel(dy, x, dx, geometry, c, mean, rstd, weight, batch_statistics):
    """Sums, then the gradient of x, of one channel; returns the two sums."""
    outer, _, length = geometry[:3]
    dy_outer, dy_channel, x_outer, x_channel, dx_outer, dx_channel = geometry[3:]
    center, unit = center_of(x, mean), unit_of(x, mean, rstd)
    s, p = 0.0, 0.0
    for segment in range(count_segments(outer, length)):
        segment_s, segment_p = segment_products(
            dy, c * dy_channel, dy_outer, x, c * x_channel, x_outer,
            outer, length, segment, center, unit,
        )  # fmt: skip
        s += segment_s
        p += segment_p
    p = formulas.centered_product_sum(s, p, residual(mean, center))
    center, scale, slope, offset, unit = gradient_terms(x, outer * length, s, p, mean, rstd, weight)
    for n in range(outer - 1, -1, -1):
        gradient_row(
            dy, c * dy_channel + n * dy_outer,
            x, c * x_channel + n * x_outer,
            dx, c * dx_channel + n * dx_outer,
            length, center, scale, slope, offset, unit, batch_statistics,
        )  # fmt: skip
    return s, p


@kernel
def backward(dy, x, dx, geometry, tile, mean, rstd, weight, sum_dy, sum_dy_xm, batch_statistics):
    """Both sums and the gradient of x, ``tile`` channels at a time while they are in cache."""
    channels = geometry[1]
    for task in prange((channels + tile - 1) // tile):
        for c in range(task * tile, min((task + 1) * tile, channels)):
            sum_dy[c], sum_dy_xm[c] = backward_channel(
                dy, x, dx, geometry, c, mean[c], rstd[c], weight[c], batch_statistics
            )
