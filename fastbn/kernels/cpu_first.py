"""Channels-first kernels: x[n, c, l] at ``n * outer_stride + c * channel_stride + l``.

Every array is seen as flat memory; ``geometry`` is (outer, channels, length)
followed by (outer stride, channel stride) of each array, in elements. A *row* is
the ``length`` contiguous values of one sample and one channel.

How work is cut follows from shape and strides alone. A channel is read in blocks of at
most 4096 values; 32 blocks make a segment, whose statistics have their own shift; segments
are merged in order. Whichever thread takes which segment, the bits of the result are the same.

``tile`` channels at a time go through a whole operation, while they are in cache; if it is 0,
each pass goes over all channels before the next. ``streaming`` stores go past the caches.
"""

import numpy as np
from numba import prange

from fastbn.kernels.compile import inner, kernel
from fastbn.kernels.cpu_first_cut import (
    count_groups,
    count_segments,
    count_tasks,
    group_bounds,
    next_row,
    sample_and_channel,
    task_bounds,
    values_of_segment,
)
from fastbn.kernels.cpu_first_rows import (
    gradient_row,
    normalize_row,
    scale_row,
    scaled_gradient_row,
    scaled_row,
    stream_gradient_row,
    stream_row,
)
from fastbn.kernels.cpu_first_segments import segment_moments, segment_products
from fastbn.kernels.cpu_groups import mend_means, merge_segment
from fastbn.kernels.cpu_terms import (
    fill_centers,
    fill_gradients,
    fill_normalizing_terms,
    fill_statistics,
)
from fastbn.kernels.vector import fence, pointer

# --- sums: of all channels (a task at a time), or of the channels of one tile -------------------


@inner
def moments_task(x, geometry, task, partial):
    """Statistics of one segment of one group of channels."""
    channels, length = geometry[1], geometry[2]
    groups = count_groups(channels, length)
    segment = task // groups
    lo, hi = group_bounds(task - segment * groups, channels, length)
    mean, m2 = partial[segment, 0, lo:hi], partial[segment, 1, lo:hi]
    segment_moments(x, geometry, segment, lo, hi, mean, m2)


@inner
def merge_segments(x, start, geometry, partial, mean, m2):
    """Merge the segments of all channels, in order."""
    outer, _, length, stride, distance = geometry
    mean[:] = 0.0
    m2[:] = 0.0
    count = 0.0
    for segment in range(partial.shape[0]):
        n = np.float64(values_of_segment(segment, outer, length))
        merge_segment(count, mean, m2, n, partial[segment, 0], partial[segment, 1])
        count += n
    mend_means(x, start, outer, stride, (length, distance), mean)


@inner
def products_task(dy, x, geometry, centers, task, partial):
    """Gradient sums of one segment of one group of channels."""
    channels, length = geometry[1], geometry[2]
    groups = count_groups(channels, length)
    segment = task // groups
    lo, hi = group_bounds(task - segment * groups, channels, length)
    segment_products(
        dy, x, geometry, segment, lo, hi, centers[0, lo:hi], centers[1, lo:hi],
        partial[segment, 0, lo:hi], partial[segment, 1, lo:hi],
    )  # fmt: skip


@inner
def add_segments(partial, sums):
    """Add the segments of all channels, in order."""
    sums[:] = 0.0
    for segment in range(partial.shape[0]):
        for c in range(sums.shape[1]):
            sums[0, c] += partial[segment, 0, c]
            sums[1, c] += partial[segment, 1, c]


# --- rows: some rows of all channels, or all rows of one tile -----------------------------------
# ``start`` says where the first row of the first channel begins in each array, ``rows`` are
# (first, one past the last): in memory order or, ``by_channel``, all rows of a channel together.


@inner
def normalize_rows(x, out, geometry, start, rows, size, table, plain, by_channel, streaming):
    outer, channels, _, x_outer, x_channel, out_outer, out_channel = geometry
    source, target, terms = pointer(x), pointer(out), pointer(table)
    n, c = sample_and_channel(rows[0], outer, channels, by_channel)
    for _ in range(rows[0], rows[1]):
        i, k = start[0] + n * x_outer + c * x_channel, start[1] + n * out_outer + c * out_channel
        if not plain:
            scaled_row(source, i, target, k, size, terms, channels, c)
        elif streaming:
            stream_row(source, i, target, k, size, terms, channels, c)
        else:
            normalize_row(source, i, target, k, size, terms, channels, c)
        n, c = next_row(n, c, outer, channels, by_channel)


@inner
def gradient_rows(
    dy, x, dx, geometry, start, rows, size, table, plain, by_channel, streaming, batch_statistics
):
    outer, channels = geometry[:2]
    dy_outer, dy_channel, x_outer, x_channel, dx_outer, dx_channel = geometry[3:]
    gradient, source, target, terms = pointer(dy), pointer(x), pointer(dx), pointer(table)
    n, c = sample_and_channel(rows[0], outer, channels, by_channel)
    for _ in range(rows[0], rows[1]):
        i = start[0] + n * dy_outer + c * dy_channel
        j = start[1] + n * x_outer + c * x_channel
        k = start[2] + n * dx_outer + c * dx_channel
        if not batch_statistics:
            scale_row(gradient, i, target, k, size, terms, channels, c)
        elif not plain:
            scaled_gradient_row(gradient, i, source, j, target, k, size, terms, channels, c)
        elif streaming:
            stream_gradient_row(gradient, i, source, j, target, k, size, terms, channels, c)
        else:
            gradient_row(gradient, i, source, j, target, k, size, terms, channels, c)
        n, c = next_row(n, c, outer, channels, by_channel)


# --- one task of a pass over all channels -------------------------------------------------------


@inner
def normalize_task(x, out, geometry, table, plain, task, by_channel, streaming):
    first, end, start, size = task_bounds(task, geometry[0] * geometry[1], geometry[2])
    normalize_rows(
        x, out, geometry, (start, start), (first, end), size, table, plain, by_channel, streaming
    )


@inner
def gradient_task(dy, x, dx, geometry, table, plain, task, streaming, batch_statistics):
    first, end, start, size = task_bounds(task, geometry[0] * geometry[1], geometry[2])
    gradient_rows(
        dy, x, dx, geometry, (start, start, start), (first, end), size, table, plain, True,
        streaming, batch_statistics,
    )  # fmt: skip


# --- one tile: all passes over a few channels ---------------------------------------------------


@inner
def forward_tile(x, out, geometry, lo, hi, streaming, weight, bias, eps, statistics):
    outer, _, length, x_outer, x_channel, out_outer, out_channel = geometry
    partial = np.empty((count_segments(outer, length), 2, hi - lo))
    for segment in range(partial.shape[0]):
        for group in range(count_groups(hi - lo, length)):
            first, end = group_bounds(group, hi - lo, length)
            segment_moments(
                x, geometry[:5], segment, lo + first, lo + end,
                partial[segment, 0, first:end], partial[segment, 1, first:end],
            )  # fmt: skip
    mean, var = statistics[0, lo:hi], statistics[1, lo:hi]
    merge_segments(x, lo * x_channel, geometry[:5], partial, mean, var)
    fill_statistics(statistics, lo, hi, outer * length, eps)
    table = np.empty((5, hi - lo), x.dtype)
    plain = fill_normalizing_terms(table, x, mean, var, weight[lo:hi], bias[lo:hi], eps)
    tile = outer, hi - lo, length, x_outer, x_channel, out_outer, out_channel
    start = lo * x_channel, lo * out_channel
    rows = 0, outer * (hi - lo)
    normalize_rows(x, out, tile, start, rows, length, table, plain, False, streaming)


@inner
def backward_tile(
    dy, x, dx, geometry, lo, hi, streaming, statistics, weight, d_weight, d_bias, batch_statistics
):
    outer, _, length = geometry[:3]
    mean, rstd = statistics[0, lo:hi], statistics[2, lo:hi]
    centers = np.empty((2, hi - lo), x.dtype)
    fill_centers(centers, x, mean, rstd)
    partial = np.empty((count_segments(outer, length), 2, hi - lo))
    for segment in range(partial.shape[0]):
        for group in range(count_groups(hi - lo, length)):
            first, end = group_bounds(group, hi - lo, length)
            segment_products(
                dy, x, geometry[:7], segment, lo + first, lo + end,
                centers[0, first:end], centers[1, first:end],
                partial[segment, 0, first:end], partial[segment, 1, first:end],
            )  # fmt: skip
    sums = np.empty((2, hi - lo))
    add_segments(partial, sums)
    table = np.empty((6, hi - lo), x.dtype)
    plain = fill_gradients(
        table, x, outer * length, mean, rstd, weight[lo:hi], centers[0], sums,
        d_weight[lo:hi], d_bias[lo:hi],
    )  # fmt: skip
    tile = (outer, hi - lo, *geometry[2:])
    start = lo * geometry[4], lo * geometry[6], lo * geometry[8]
    rows = 0, outer * (hi - lo)
    gradient_rows(
        dy, x, dx, tile, start, rows, length, table, plain, False, streaming, batch_statistics
    )


# --- kernels ------------------------------------------------------------------------------------


@kernel
def moments(x, geometry, mean, m2):
    """Mean and m2 of every channel; a task is a segment of a group of channels."""
    outer, channels, length = geometry[:3]
    segments = count_segments(outer, length)
    partial = np.empty((segments, 2, channels))
    for task in prange(segments * count_groups(channels, length)):
        moments_task(x, geometry, task, partial)
    merge_segments(x, 0, geometry, partial, mean, m2)


@kernel
def normalize(x, out, geometry, streaming, mean, var, weight, bias, eps):
    """Normalize with given statistics, in the order of memory."""
    outer, channels, length = geometry[:3]
    table = np.empty((5, channels), x.dtype)
    plain = fill_normalizing_terms(table, x, mean, var, weight, bias, eps)
    for task in prange(count_tasks(outer * channels, length)):
        normalize_task(x, out, geometry, table, plain, task, False, streaming)
        if streaming:
            fence()


@kernel
def forward(x, out, geometry, tile, streaming, weight, bias, eps, statistics):
    """Batch statistics (mean, variance and 1 / std), then normalize."""
    outer, channels, length = geometry[:3]
    if tile > 0:
        for i in prange((channels + tile - 1) // tile):
            lo, hi = i * tile, min((i + 1) * tile, channels)
            forward_tile(x, out, geometry, lo, hi, streaming, weight, bias, eps, statistics)
            if streaming:
                fence()
        return
    segments = count_segments(outer, length)
    partial = np.empty((segments, 2, channels))
    for task in prange(segments * count_groups(channels, length)):
        moments_task(x, geometry[:5], task, partial)
    merge_segments(x, 0, geometry[:5], partial, statistics[0], statistics[1])
    fill_statistics(statistics, 0, channels, outer * length, eps)
    table = np.empty((5, channels), x.dtype)
    plain = fill_normalizing_terms(table, x, statistics[0], statistics[1], weight, bias, eps)
    tasks = count_tasks(outer * channels, length)
    for i in prange(tasks):  # backwards: first what was read last
        normalize_task(x, out, geometry, table, plain, tasks - 1 - i, True, streaming)
        if streaming:
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
            if streaming:
                fence()
        return
    mean, rstd = statistics[0], statistics[2]
    centers = np.empty((2, channels), x.dtype)
    fill_centers(centers, x, mean, rstd)
    segments = count_segments(outer, length)
    partial = np.empty((segments, 2, channels))
    for task in prange(segments * count_groups(channels, length)):
        products_task(dy, x, geometry[:7], centers, task, partial)
    sums = np.empty((2, channels))
    add_segments(partial, sums)
    table = np.empty((6, channels), x.dtype)
    plain = fill_gradients(
        table, x, outer * length, mean, rstd, weight, centers[0], sums, d_weight, d_bias
    )
    tasks = count_tasks(outer * channels, length)
    for i in prange(tasks):  # backwards: first what was read last
        gradient_task(dy, x, dx, geometry, table, plain, tasks - 1 - i, streaming, batch_statistics)
        if streaming:
            fence()
