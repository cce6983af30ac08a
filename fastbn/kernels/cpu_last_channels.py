"""Channels-last: from the columns of lines to channels, and back to columns of terms."""

import numpy as np

from fastbn.kernels.compile import inner
from fastbn.kernels.cpu_groups import merge_segment
from fastbn.kernels.cpu_last_cut import segment_bounds


@inner
def merge_segments(partial, rows, channels, fold, mean, m2):
    """Merge segments and folds, in order, into channels; ``m2`` over all rows."""
    mean[:] = 0.0
    m2[:] = 0.0
    count = 0.0
    for segment in range(partial.shape[0]):
        _, lines, columns = segment_bounds(segment, rows, channels, fold)
        for first in range(0, columns, channels):
            end = first + channels
            mu, q = partial[segment, 0, first:end], partial[segment, 1, first:end]
            merge_segment(count, mean, m2, np.float64(lines), mu, q)
            count += lines


@inner
def add_segments(partial, rows, channels, fold, sums):
    """Add segments and folds, in order, into channels."""
    sums[:] = 0.0
    for segment in range(partial.shape[0]):
        _, _, columns = segment_bounds(segment, rows, channels, fold)
        for first in range(0, columns, channels):
            s, p = partial[segment, 0, first:], partial[segment, 1, first:]
            for c in range(channels):
                sums[0, c] += s[c]
                sums[1, c] += p[c]


@inner
def repeat_columns(table, channels):
    """Copy the first ``channels`` columns to all further ones."""
    for row in range(table.shape[0]):
        for c in range(channels, table.shape[1]):
            table[row, c] = table[row, c - channels]
