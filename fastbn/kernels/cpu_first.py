"""Channels-first kernels: x[n, c, l] at ``n * outer_stride + c * channel_stride + l``.

Every array is seen as flat memory; ``geometry`` is (outer, channels, length)
followed by (outer stride, channel stride) of each array, in elements. A *row* is
the ``length`` contiguous values of one sample and one channel.

How work is cut follows from shape and strides alone. A channel is read in blocks of at
most 4096 values; up to 32 blocks make a segment, whose statistics have their own shift; segments
are merged in order. Whichever thread takes which segment, the bits of the result are the same.

``tile`` channels at a time go through a whole operation, while they are in cache. If it is 0,
each pass goes over all channels before the next, and all passes in the order of memory: with
several segments a thread finds in its own cache what it has summed, and two threads hardly ever
store close to each other. (A processor fetches some lines more than a sequence of stores asks for.
Where these are another thread's, they go back and forth.) ``streaming`` stores go past the caches.
"""

import numpy as np
from numba import prange

from fastbn.kernels.compile import inner, kernel
from fastbn.kernels.cpu_first_cut import (
    GROUP,
    count_groups,
    count_runs_of_task,
    count_segments,
    count_tasks,
    group_bounds,
    group_size,
    run_of_task,
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
def moments_task(x, geometry, size, task, partial):
    """Statistics of one segment of one group of ``size`` channels."""
    groups = count_groups(geometry[1], size)
    segment = task // groups
    lo, hi = group_bounds(task - segment * groups, geometry[1], size)
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
def products_task(dy, x, geometry, size, centers, task, partial):
    """Gradient sums of one segment of one group of ``size`` channels."""
    groups = count_groups(geometry[1], size)
    segment = task // groups
    lo, hi = group_bounds(task - segment * groups, geometry[1], size)
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


# --- elementwise: a run (see `cpu_first_cut`); the table of terms begins with channel ``lo`` -----


@inner
def normalize_run(x, out, geometry, run, table, lo, plain, streaming):
    length, x_outer, x_channel, out_outer, out_channel = geometry[2:]
    source, target, terms, columns = pointer(x), pointer(out), pointer(table), table.shape[1]
    n, value, end = run
    c = value // length
    first = value - c * length
    while value < end:
        size = min(length - first, end - value)
        i = n * x_outer + c * x_channel + first
        k = n * out_outer + c * out_channel + first
        if not plain:
            scaled_row(source, i, target, k, size, terms, columns, c - lo)
        elif streaming:
            stream_row(source, i, target, k, size, terms, columns, c - lo)
        else:
            normalize_row(source, i, target, k, size, terms, columns, c - lo)
        value += size
        c, first = c + 1, 0


@inner
def gradient_run(dy, x, dx, geometry, run, table, lo, plain, streaming, batch_statistics):
    length, dy_outer, dy_channel, x_outer, x_channel, dx_outer, dx_channel = geometry[2:]
    gradient, source, target, terms = pointer(dy), pointer(x), pointer(dx), pointer(table)
    columns = table.shape[1]
    n, value, end = run
    c = value // length
    first = value - c * length
    while value < end:
        size = min(length - first, end - value)
        i = n * dy_outer + c * dy_channel + first
        j = n * x_outer + c * x_channel + first
        k = n * dx_outer + c * dx_channel + first
        if not batch_statistics:
            scale_row(gradient, i, target, k, size, terms, columns, c - lo)
        elif not plain:
            scaled_gradient_row(gradient, i, source, j, target, k, size, terms, columns, c - lo)
        elif streaming:
            stream_gradient_row(gradient, i, source, j, target, k, size, terms, columns, c - lo)
        else:
            gradient_row(gradient, i, source, j, target, k, size, terms, columns, c - lo)
        value += size
        c, first = c + 1, 0


# --- one task of a pass over all channels -------------------------------------------------------


@inner
def normalize_task(x, out, geometry, table, plain, streaming, task):
    outer, values = geometry[0], geometry[1] * geometry[2]
    for k in range(count_runs_of_task(task, outer, values)):
        run = run_of_task(task, k, outer, values)
        normalize_run(x, out, geometry, run, table, 0, plain, streaming)


@inner
def gradient_task(dy, x, dx, geometry, table, plain, streaming, batch_statistics, task):
    outer, values = geometry[0], geometry[1] * geometry[2]
    for k in range(count_runs_of_task(task, outer, values)):
        run = run_of_task(task, k, outer, values)
        gradient_run(dy, x, dx, geometry, run, table, 0, plain, streaming, batch_statistics)


# --- one tile: all passes over a few channels ---------------------------------------------------


@inner
def forward_tile(x, out, geometry, lo, hi, streaming, weight, bias, eps, statistics):
    outer, _, length, _, x_channel = geometry[:5]
    partial = np.empty((count_segments(outer, length), 2, hi - lo))
    for segment in range(partial.shape[0]):
        for group in range(count_groups(hi - lo, GROUP)):
            first, end = group_bounds(group, hi - lo, GROUP)
            segment_moments(
                x, geometry[:5], segment, lo + first, lo + end,
                partial[segment, 0, first:end], partial[segment, 1, first:end],
            )  # fmt: skip
    mean, var = statistics[0, lo:hi], statistics[1, lo:hi]
    merge_segments(x, lo * x_channel, geometry[:5], partial, mean, var)
    fill_statistics(statistics, lo, hi, outer * length, eps)
    table = np.empty((5, hi - lo), x.dtype)
    plain = fill_normalizing_terms(table, x, mean, var, weight[lo:hi], bias[lo:hi], eps)
    for n in range(outer):
        run = n, lo * length, hi * length
        normalize_run(x, out, geometry, run, table, lo, plain, streaming)


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
        for group in range(count_groups(hi - lo, GROUP)):
            first, end = group_bounds(group, hi - lo, GROUP)
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
    for n in range(outer):
        run = n, lo * length, hi * length
        gradient_run(dy, x, dx, geometry, run, table, lo, plain, streaming, batch_statistics)


# --- kernels ------------------------------------------------------------------------------------


@kernel
def moments(x, geometry, mean, m2):
    """Mean and m2 of every channel; a task is a segment of a group of channels."""
    outer, channels, length = geometry[:3]
    segments = count_segments(outer, length)
    size = group_size(channels, segments, length)
    partial = np.empty((segments, 2, channels))
    for task in prange(segments * count_groups(channels, size)):
        moments_task(x, geometry, size, task, partial)
    merge_segments(x, 0, geometry, partial, mean, m2)


@kernel
def normalize(x, out, geometry, streaming, mean, var, weight, bias, eps):
    """Normalize with given statistics, in the order of memory."""
    outer, channels, length = geometry[:3]
    table = np.empty((5, channels), x.dtype)
    plain = fill_normalizing_terms(table, x, mean, var, weight, bias, eps)
    for task in prange(count_tasks(outer, channels * length)):
        normalize_task(x, out, geometry, table, plain, streaming, task)
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
    size = group_size(channels, segments, length)
    partial = np.empty((segments, 2, channels))
    for task in prange(segments * count_groups(channels, size)):
        moments_task(x, geometry[:5], size, task, partial)
    merge_segments(x, 0, geometry[:5], partial, statistics[0], statistics[1])
    fill_statistics(statistics, 0, channels, outer * length, eps)
    table = np.empty((5, channels), x.dtype)
    plain = fill_normalizing_terms(table, x, statistics[0], statistics[1], weight, bias, eps)
    for task in prange(count_tasks(outer, channels * length)):
        normalize_task(x, out, geometry, table, plain, streaming, task)
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
    size = group_size(channels, segments, length)
    partial = np.empty((segments, 2, channels))
    for task in prange(segments * count_groups(channels, size)):
        products_task(dy, x, geometry[:7], size, centers, task, partial)
    sums = np.empty((2, channels))
    add_segments(partial, sums)
    table = np.empty((6, channels), x.dtype)
    plain = fill_gradients(
        table, x, outer * length, mean, rstd, weight, centers[0], sums, d_weight, d_bias
    )
    for task in prange(count_tasks(outer, channels * length)):
        gradient_task(dy, x, dx, geometry, table, plain, streaming, batch_statistics, task)
        if streaming:
            fence()
