"""Channels-first kernels: x[n, c, l] at ``n * outer_stride + c * channel_stride + l``.

Every array is seen as flat memory; ``geometry`` is (outer, channels, length)
followed by (outer stride, channel stride) of each array, in elements. A *row* is
the ``length`` contiguous values of one sample and one channel.

How work is cut follows from the shape alone. A channel is read in blocks of at most
4096 values; 32 blocks make a segment, whose statistics have
their own shift; segments are merged in order. Whichever thread takes which
segment, the bits of the result are the same.

``tile`` channels at a time go through a whole operation, while they are in cache; if it is 0,
each pass goes over all channels before the next. ``streaming`` stores go past the caches.
"""

import numpy as np
from numba import prange

from fastbn.kernels.compile import inlined, inner, kernel
from fastbn.kernels.cpu_first_cut import (
    count_segments,
    count_tasks,
    group_size,
    next_row,
    sample_and_channel,
    task_bounds,
    values_of_segment,
)
from fastbn.kernels.cpu_first_loops import (
    gradient_row,
    normalize_row,
    scale_row,
    scaled_gradient_row,
    scaled_normalize_row,
    stream_gradient_row,
    stream_row,
)
from fastbn.kernels.cpu_first_sums import segment_moments, segment_products
from fastbn.kernels.cpu_groups import mend_means, merge_segment
from fastbn.kernels.cpu_terms import (
    center_products,
    fill_centers,
    fill_gradient_terms,
    fill_normalizing_terms,
    fill_statistics,
    parameter_gradients,
)
from fastbn.kernels.vector import fence, pointer

# --- one row, by pointers (see `vector`) --------------------------------------------------------


@inlined
def normalize_one(x, i, out, j, size, table, columns, c, plain, streaming):
    """A row of channel ``c``; its terms are ``columns`` apart in ``table``."""
    center, scale, shift = table[c], table[columns + c], table[2 * columns + c]
    if not plain:
        down, up = table[3 * columns + c], table[4 * columns + c]
        scaled_normalize_row(x, i, out, j, size, center, scale, shift, down, up)
    elif streaming:
        stream_row(x, i, out, j, size, center, scale, shift)
    else:
        normalize_row(x, i, out, j, size, center, scale, shift)


@inlined
def gradient_one(dy, i, x, j, dx, k, size, table, columns, c, plain, streaming, batch_statistics):
    """A row of channel ``c``; its terms are ``columns`` apart in ``table``."""
    center, scale = table[c], table[columns + c]
    slope, offset = table[2 * columns + c], table[3 * columns + c]
    if not batch_statistics:
        scale_row(dy, i, dx, k, size, scale)
    elif not plain:
        down, up = table[4 * columns + c], table[5 * columns + c]
        scaled_gradient_row(dy, i, x, j, dx, k, size, center, scale, slope, offset, down, up)
    elif streaming:
        stream_gradient_row(dy, i, x, j, dx, k, size, center, scale, slope, offset)
    else:
        gradient_row(dy, i, x, j, dx, k, size, center, scale, slope, offset)


# --- one task of a pass over all channels -----------------------------------------------------


@inner
def moments_task(x, geometry, task, partial):
    """Statistics of one segment of one group of channels."""
    channels, size = geometry[1], group_size(geometry[2])
    groups = (channels + size - 1) // size
    segment = task // groups
    lo = (task - segment * groups) * size
    hi = min(lo + size, channels)
    segment_moments(
        x, geometry, segment, lo, hi, partial[segment, 0, lo:hi], partial[segment, 1, lo:hi]
    )


@inner
def merge_segments(x, geometry, partial, mean, m2):
    """Merge the segments of all channels, in order."""
    outer, _, length, stride, distance = geometry
    mean[:] = 0.0
    m2[:] = 0.0
    count = 0.0
    for segment in range(partial.shape[0]):
        n = np.float64(values_of_segment(segment, outer, length))
        merge_segment(count, mean, m2, n, partial[segment, 0], partial[segment, 1])
        count += n
    mend_means(x, 0, outer, stride, (length, distance), mean)


@inner
def products_task(dy, x, geometry, centers, task, partial):
    """Gradient sums of one segment of one group of channels."""
    channels, size = geometry[1], group_size(geometry[2])
    groups = (channels + size - 1) // size
    segment = task // groups
    lo = (task - segment * groups) * size
    hi = min(lo + size, channels)
    segment_products(
        dy, x, geometry, segment, lo, hi, centers[0, lo:hi], centers[1, lo:hi],
        partial[segment, 0, lo:hi], partial[segment, 1, lo:hi],
    )  # fmt: skip


@inner
def add_segments(partial, sum_dy, sum_dy_xc):
    """Add the segments of all channels, in order."""
    sum_dy[:] = 0.0
    sum_dy_xc[:] = 0.0
    for segment in range(partial.shape[0]):
        for c in range(sum_dy.size):
            sum_dy[c] += partial[segment, 0, c]
            sum_dy_xc[c] += partial[segment, 1, c]


@inner
def normalize_task(x, out, geometry, table, plain, task, by_channel, streaming):
    outer, channels, length, x_outer, x_channel, out_outer, out_channel = geometry
    source, target, terms = pointer(x), pointer(out), pointer(table)
    first, end, start, size = task_bounds(task, outer * channels, length)
    n, c = sample_and_channel(first, outer, channels, by_channel)
    for _ in range(first, end):
        normalize_one(
            source, n * x_outer + c * x_channel + start,
            target, n * out_outer + c * out_channel + start,
            size, terms, channels, c, plain, streaming,
        )  # fmt: skip
        n, c = next_row(n, c, outer, channels, by_channel)


@inner
def gradient_task(dy, x, dx, geometry, table, plain, task, streaming, batch_statistics):
    outer, channels, length = geometry[:3]
    dy_outer, dy_channel, x_outer, x_channel, dx_outer, dx_channel = geometry[3:]
    gradient, source, target, terms = pointer(dy), pointer(x), pointer(dx), pointer(table)
    first, end, start, size = task_bounds(task, outer * channels, length)
    n, c = sample_and_channel(first, outer, channels, True)
    for _ in range(first, end):
        gradient_one(
            gradient, n * dy_outer + c * dy_channel + start,
            source, n * x_outer + c * x_channel + start,
            target, n * dx_outer + c * dx_channel + start,
            size, terms, channels, c, plain, streaming, batch_statistics,
        )  # fmt: skip
        n, c = next_row(n, c, outer, channels, True)


# --- one tile: all passes over a few channels, the last one backwards ---------------------------


@inner
def normalize_tile(x, out, geometry, lo, table, plain, streaming):
    """All rows of the channels from ``lo`` on that ``table`` has terms of."""
    outer, _, length, x_outer, x_channel, out_outer, out_channel = geometry
    source, target, terms, columns = pointer(x), pointer(out), pointer(table), table.shape[1]
    for n in range(outer - 1, -1, -1):
        for c in range(columns):
            normalize_one(
                source, n * x_outer + (lo + c) * x_channel,
                target, n * out_outer + (lo + c) * out_channel,
                length, terms, columns, c, plain, streaming,
            )  # fmt: skip


@inner
def gradient_tile(dy, x, dx, geometry, lo, table, plain, streaming, batch_statistics):
    """All rows of the channels from ``lo`` on that ``table`` has terms of."""
    outer, _, length, dy_outer, dy_channel, x_outer, x_channel, dx_outer, dx_channel = geometry
    gradient, source, target, terms = pointer(dy), pointer(x), pointer(dx), pointer(table)
    columns = table.shape[1]
    for n in range(outer - 1, -1, -1):
        for c in range(columns):
            gradient_one(
                gradient, n * dy_outer + (lo + c) * dy_channel,
                source, n * x_outer + (lo + c) * x_channel,
                target, n * dx_outer + (lo + c) * dx_channel,
                length, terms, columns, c, plain, streaming, batch_statistics,
            )  # fmt: skip


@inner
def forward_tile(x, out, geometry, lo, hi, streaming, weight, bias, eps, statistics):
    outer, _, length, x_outer, x_channel = geometry[:5]
    partial = np.empty((count_segments(outer, length), 2, hi - lo))
    size = group_size(length)
    for segment in range(partial.shape[0]):
        for first in range(lo, hi, size):
            end = min(first + size, hi)
            segment_moments(
                x, geometry[:5], segment, first, end,
                partial[segment, 0, first - lo : end - lo],
                partial[segment, 1, first - lo : end - lo],
            )  # fmt: skip
    mean, var = statistics[0, lo:hi], statistics[1, lo:hi]
    tile_geometry = (outer, hi - lo, length, x_outer, x_channel)
    merge_segments(x[lo * x_channel :], tile_geometry, partial, mean, var)
    fill_statistics(statistics, lo, hi, outer * length, eps)
    table = np.empty((5, hi - lo), x.dtype)
    plain = fill_normalizing_terms(table, x, mean, var, weight[lo:hi], bias[lo:hi], eps)
    normalize_tile(x, out, geometry, lo, table, plain, streaming)


@inner
def backward_tile(
    dy, x, dx, geometry, lo, hi, streaming, statistics, weight, d_weight, d_bias, batch_statistics
):
    outer, _, length = geometry[:3]
    mean, rstd = statistics[0, lo:hi], statistics[2, lo:hi]
    centers = np.empty((2, hi - lo), x.dtype)
    fill_centers(centers, x, mean, rstd)
    partial = np.empty((count_segments(outer, length), 2, hi - lo))
    size = group_size(length)
    for segment in range(partial.shape[0]):
        for first in range(lo, hi, size):
            end = min(first + size, hi)
            segment_products(
                dy, x, geometry[:7], segment, first, end,
                centers[0, first - lo : end - lo], centers[1, first - lo : end - lo],
                partial[segment, 0, first - lo : end - lo],
                partial[segment, 1, first - lo : end - lo],
            )  # fmt: skip
    sums = np.empty((2, hi - lo))
    add_segments(partial, sums[0], sums[1])
    center_products(sums[1], sums[0], mean, centers[0])
    parameter_gradients(sums[0], sums[1], rstd, d_weight[lo:hi], d_bias[lo:hi])
    table = np.empty((6, hi - lo), x.dtype)
    plain = fill_gradient_terms(
        table, x, outer * length, mean, rstd, weight[lo:hi], sums[0], sums[1]
    )
    gradient_tile(dy, x, dx, geometry, lo, table, plain, streaming, batch_statistics)


# --- kernels ------------------------------------------------------------------------------------


@kernel
def moments(x, geometry, mean, m2):
    """Mean and m2 of every channel; a task is a segment of a group of channels."""
    outer, channels, length = geometry[:3]
    size, segments = group_size(length), count_segments(outer, length)
    partial = np.empty((segments, 2, channels))
    for task in prange(segments * ((channels + size - 1) // size)):
        moments_task(x, geometry, task, partial)
    merge_segments(x, geometry, partial, mean, m2)


@kernel
def normalize(x, out, geometry, streaming, mean, var, weight, bias, eps):
    """Normalize with given statistics, in the order of memory."""
    outer, channels, length = geometry[:3]
    table = np.empty((5, channels), x.dtype)
    plain = fill_normalizing_terms(table, x, mean, var, weight, bias, eps)
    for task in prange(count_tasks(outer * channels, length)):
        normalize_task(x, out, geometry, table, plain, task, False, streaming)
        fence()


@kernel
def forward(x, out, geometry, tile, streaming, weight, bias, eps, statistics):
    """Batch statistics (mean, variance and 1 / std), then normalize."""
    outer, channels, length = geometry[:3]
    if tile > 0:
        for i in prange((channels + tile - 1) // tile):
            lo, hi = i * tile, min((i + 1) * tile, channels)
            forward_tile(x, out, geometry, lo, hi, streaming, weight, bias, eps, statistics)
            fence()
        return
    size, segments = group_size(length), count_segments(outer, length)
    partial = np.empty((segments, 2, channels))
    for task in prange(segments * ((channels + size - 1) // size)):
        moments_task(x, geometry[:5], task, partial)
    merge_segments(x, geometry[:5], partial, statistics[0], statistics[1])
    fill_statistics(statistics, 0, channels, outer * length, eps)
    table = np.empty((5, channels), x.dtype)
    plain = fill_normalizing_terms(table, x, statistics[0], statistics[1], weight, bias, eps)
    tasks = count_tasks(outer * channels, length)
    for i in prange(tasks):  # backwards: first what was read last
        normalize_task(x, out, geometry, table, plain, tasks - 1 - i, True, streaming)
        fence()


@kernel
def backward(
    dy, x, dx, geometry, tile, streaming, statistics, weight, d_weight, d_bias, batch_statistics
):
    """Gradients of weight, bias and x; ``statistics`` as `forward` fills them."""
    outer, channels, length = geometry[:3]
    if tile > 0:
        for i in prange((channels + tile - 1) // tile):
            lo, hi = i * tile, min((i + 1) * tile, channels)
            backward_tile(
                dy, x, dx, geometry, lo, hi, streaming,
                statistics, weight, d_weight, d_bias, batch_statistics,
            )  # fmt: skip
            fence()
        return
    mean, rstd = statistics[0], statistics[2]
    centers = np.empty((2, channels), x.dtype)
    fill_centers(centers, x, mean, rstd)
    size, segments = group_size(length), count_segments(outer, length)
    partial = np.empty((segments, 2, channels))
    for task in prange(segments * ((channels + size - 1) // size)):
        products_task(dy, x, geometry[:7], centers, task, partial)
    sums = np.empty((2, channels))
    add_segments(partial, sums[0], sums[1])
    center_products(sums[1], sums[0], mean, centers[0])
    parameter_gradients(sums[0], sums[1], rstd, d_weight, d_bias)
    table = np.empty((6, channels), x.dtype)
    plain = fill_gradient_terms(table, x, outer * length, mean, rstd, weight, sums[0], sums[1])
    tasks = count_tasks(outer * channels, length)
    for i in prange(tasks):  # backwards: first what was read last
        gradient_task(dy, x, dx, geometry, table, plain, tasks - 1 - i, streaming, batch_statistics)
        fence()
