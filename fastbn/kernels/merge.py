"""From the sums of segments to those of channels, and which channels float32 cannot hold.

A channel is *marked* where its sums have left the range of float32 or lost digits, or where its
terms would. Marked channels are summed once more in float64, and merged again.
"""

import numpy as np

from fastbn.kernels.compile import inner, part
from fastbn.kernels.moments import COLUMNS, COUNT, header_of, is_finite, merge, rows_of
from fastbn.kernels.simd import compiled_formula, double_rows, doubles_at, frame_at
from fastbn.kernels.terms import holds_deviations

SMALLEST_POWER = 1e-30  # a smaller sum of squares may have lost terms to underflow
MOST_POWER = 3.0  # times m2: beyond it, rounding may have cost more than 1e-5 of the variance

two_rows, three_rows = double_rows(2), double_rows(3)


@compiled_formula
def holds_moments(power, m2):
    """Whether a sum of squares around shifts has kept the digits of m2."""
    return (power > SMALLEST_POWER) & (power <= MOST_POWER * m2) & (power < np.inf)


@compiled_formula
def holds_products(mean, rstd, sum_dy, sum_dy_xc):
    """Whether both sums for gradients have stayed in range, and what went into them."""
    in_range = (abs(sum_dy) < np.inf) & (abs(sum_dy_xc) < np.inf)
    return holds_deviations(mean, rstd) & in_range


@part("merge_moments")
def merge_moments(frame, again, like):
    """Merge all segments, in order, into mean and m2 of each channel, and mark channels.

    ``again``: marked channels have been summed in float64, and nothing is left to be marked.
    """
    f = frame_at(frame)
    channels = f.channels
    mean, m2 = two_rows(f.statistics, 8 * f.all_channels, like)
    power = doubles_at(f.sums, like)
    for c in range(channels):
        mean[c], m2[c], power[c] = 0.0, 0.0, 0.0
    count = 0.0
    for segment in range(f.segments):
        header = header_of(f, segment, like)
        n = header[COUNT]
        for first in range(0, np.int64(header[COLUMNS]), channels):
            segment_mean, segment_m2, segment_power = rows_of(f, segment, first, like)
            for c in range(channels):
                merged = merge(count, mean[c], m2[c], n, segment_mean[c], segment_m2[c])
                mean[c], m2[c], power[c] = merged[1], merged[2], power[c] + segment_power[c]
            count += n
    if again:
        take_plain_means(f, count, mean, like)
        return
    marks, marked, narrow = doubles_at(f.marks, like), 0, f.value_bytes == 4
    for c in range(channels):
        good = holds_moments(power[c], m2[c]) if narrow else is_finite(mean[c])
        marks[c] = 0.0 if good else 1.0
        marked += not good
    f.marked = marked


@inner
def take_plain_means(f, count, mean, like):
    """Means of channels with infinities in them: infinity or NaN, as a plain sum has it."""
    for c in range(f.channels):
        if not is_finite(mean[c]):
            total = 0.0
            for segment in range(f.segments):
                header = header_of(f, segment, like)
                segment_mean, _, _ = rows_of(f, segment, c, like)
                for column in range(0, np.int64(header[COLUMNS]) - c, f.channels):
                    total += header[COUNT] * segment_mean[column]
            mean[c] = total / count


@part("merge_products")
def merge_products(frame, again, like):
    """Add all segments, in order, into two sums of each channel, and mark channels."""
    f = frame_at(frame)
    channels = f.channels
    mean, _, rstd = three_rows(f.statistics, 8 * f.all_channels, like)
    sums, products = two_rows(f.sums, 8 * channels, like)
    for c in range(channels):
        sums[c], products[c] = 0.0, 0.0
    for segment in range(f.segments):
        columns = np.int64(header_of(f, segment, like)[COLUMNS])
        for first in range(0, columns, channels):
            segment_sums, segment_products, _ = rows_of(f, segment, first, like)
            for c in range(channels):
                sums[c] += segment_sums[c]
                products[c] += segment_products[c]
    if again:
        return
    marks, marked, narrow = doubles_at(f.marks, like), 0, f.value_bytes == 4
    for c in range(channels):
        good = not narrow or holds_products(mean[c], rstd[c], sums[c], products[c])
        marks[c] = 0.0 if good else 1.0
        marked += not good
    f.marked = marked
