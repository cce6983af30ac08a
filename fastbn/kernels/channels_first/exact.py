"""Channels first: sums of integers, extremes, and copies without NaN, of one segment.

See `fastbn.kernels.exact`.
"""

import numpy as np

from fastbn.kernels.channels_first.sums import line_size, line_start, size_of, work_of
from fastbn.kernels.compile import inner, part
from fastbn.kernels.exact import begin_segment, is_nan, key_of, rows_of
from fastbn.kernels.simd import as_held, as_short, data_at, frame_at


@inner
def sums_of_row(x, i, size):
    """Sums of ``x`` and ``x * x``; 32 bits hold those of 8, of `SHORT` values."""
    s, q = as_short(0, x), as_short(0, x)
    for n in range(i, i + size):
        value = np.int64(x[n])
        s, q = as_short(s + value, x), as_short(q + value * value, x)
    return np.int64(s), np.int64(q)


@part("first_integer_sums")
def integer_sums(frame, task, like):
    """Sums of ``x`` and ``x * x`` of some channels of one segment."""
    f = frame_at(frame)
    segment, begin, lines, lo, channels = work_of(f, task)
    begin_segment(f, segment, lo, size_of(f, begin, lines), like)
    x, (sums, squares, _) = data_at(f.first, like), rows_of(f, segment, lo, like)
    for c in range(channels):
        sums[c], squares[c] = 0, 0
    for line in range(begin, begin + lines):
        i, size = lo * f.first_channel + line_start(f, f.first_row, line), line_size(f, line)
        for c in range(channels):
            s, q = sums_of_row(x, i + c * f.first_channel, size)
            sums[c] += s
            squares[c] += q


@inner
def extremes_of_row(x, i, size, flip, lowest, highest):
    """The smallest key, the largest, and how many values are NaN."""
    flip, lowest, highest = as_held(flip, x), as_held(lowest, x), as_held(highest, x)
    low, high, missing = highest, lowest, np.int64(0)
    for n in range(i, i + size):
        key = as_held(key_of(np.int64(x[n]), flip), x)
        nan = (key < lowest) | (key > highest)
        low = as_held(min(low, highest if nan else key), x)
        high = as_held(max(high, lowest if nan else key), x)
        missing += nan
    return np.int64(low), np.int64(high), missing


@inner
def limits_of_row(x, i, size):
    """The smallest value and the largest, where none is NaN."""
    low = high = x[i]
    for n in range(i, i + size):
        low, high = as_held(min(low, x[n]), x), as_held(max(high, x[n]), x)
    return np.int64(low), np.int64(high), np.int64(0)


@part("first_extremes")
def extremes(frame, task, like):
    """Smallest and largest key of some channels of one segment, and the number of NaN."""
    f = frame_at(frame)
    segment, begin, lines, lo, channels = work_of(f, task)
    begin_segment(f, segment, lo, size_of(f, begin, lines), like)
    x, (lows, highs, missing) = data_at(f.first, like), rows_of(f, segment, lo, like)
    for c in range(channels):
        lows[c], highs[c], missing[c] = f.highest, f.lowest, 0
    for line in range(begin, begin + lines):
        start, size = lo * f.first_channel + line_start(f, f.first_row, line), line_size(f, line)
        for c in range(channels):
            i = start + c * f.first_channel
            if f.flip == 0:
                low, high, nan = limits_of_row(x, i, size)
            else:
                low, high, nan = extremes_of_row(x, i, size, f.flip, f.lowest, f.highest)
            lows[c], highs[c] = min(lows[c], low), max(highs[c], high)
            missing[c] += nan


@inner
def fill_row(x, i, out, k, size, flip, highest, value):
    """Copy a row with ``value`` for NaN; how many these are."""
    flip, highest, missing = as_held(flip, x), as_held(highest, x), np.int64(0)
    for n in range(size):
        held = x[i + n]
        nan = is_nan(np.int64(held), flip, highest)
        out[k + n] = value if nan else held
        missing += nan
    return missing


@part("first_filled")
def filled(frame, task, like):
    """Copy some channels of one segment, with a value of each channel's for NaN."""
    f = frame_at(frame)
    segment, begin, lines, lo, channels = work_of(f, task)
    begin_segment(f, segment, lo, size_of(f, begin, lines), like)
    x, out, values = data_at(f.first, like), data_at(f.out, like), data_at(f.weight, like)
    rows = rows_of(f, segment, lo, like)
    for c in range(channels):
        rows[0][c], rows[1][c], rows[2][c] = 0, 0, 0
    for line in range(begin, begin + lines):
        size = line_size(f, line)
        i = lo * f.first_channel + line_start(f, f.first_row, line)
        k = lo * f.out_channel + line_start(f, f.out_row, line)
        for c in range(channels):
            rows[0][c] += fill_row(x, i, out, k, size, f.flip, f.highest, values[lo + c])
            i, k = i + f.first_channel, k + f.out_channel
