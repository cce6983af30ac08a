"""Channels last: sums of integers, extremes, and copies without NaN, of some columns of a segment.

See `fastbn.kernels.exact`. What is added to lies in memory of a task's own: LLVM makes vectors of
a loop over columns where it sees that no two of its arrays overlap.
"""

import numpy as np

from fastbn.kernels.channels_last.cut import COLUMNS
from fastbn.kernels.channels_last.sums import line_start, size_of, work_of
from fastbn.kernels.compile import inner, part
from fastbn.kernels.exact import SHORT, begin_segment, is_nan, key_of, rows_of
from fastbn.kernels.simd import (
    as_held,
    data_at,
    frame_at,
    held_memory,
    short_memory,
)

FEW = 64  # lines whose numbers of NaN are counted in x's dtype, which may have 8 bits

values_of_columns, short_of_columns = held_memory(COLUMNS), short_memory(COLUMNS)


@inner
def add_four_lines(x, i, step, columns, sums, squares):
    """Add four lines, ``step`` apart: what is added to is loaded and stored once for all."""
    for c in range(columns):
        v, w = np.int64(x[i + c]), np.int64(x[i + step + c])
        y, z = np.int64(x[i + 2 * step + c]), np.int64(x[i + 3 * step + c])
        sums[c] += (v + w) + (y + z)
        squares[c] += (v * v + w * w) + (y * y + z * z)


@inner
def add_line(x, i, columns, sums, squares):
    for c in range(columns):
        value = np.int64(x[i + c])
        sums[c] += value
        squares[c] += value * value


@part("last_integer_sums")
def integer_sums(frame, task, like):
    """Sums of ``x`` and ``x * x`` of some columns of one segment."""
    f = frame_at(frame)
    segment, begin, lines, lo, columns = work_of(f, task)
    begin_segment(f, segment, lo, size_of(f, begin, lines), like)
    x, rows = data_at(f.first, like), rows_of(f, segment, lo, like)
    sums, squares = short_of_columns(like), short_of_columns(like)
    for c in range(columns):
        rows[0][c], rows[1][c], rows[2][c] = 0, 0, 0
    step, end = f.fold * f.first_row, begin + lines
    i = lo * f.first_channel + line_start(f, f.first_row, begin)
    for block in range(begin, end, SHORT):
        for c in range(columns):
            sums[c], squares[c] = 0, 0
        some = min(SHORT, end - block)
        for _ in range(some // 4):
            add_four_lines(x, i, step, columns, sums, squares)
            i += 4 * step
        for _ in range(some % 4):
            add_line(x, i, columns, sums, squares)
            i += step
        for c in range(columns):
            rows[0][c] += sums[c]
            rows[1][c] += squares[c]


@inner
def extremes_of_lines(x, i, step, lines, columns, flip, lowest, highest, low, high, missing):
    """Of few lines: their numbers of NaN must fit into x's dtype."""
    flip, lowest, highest = as_held(flip, x), as_held(lowest, x), as_held(highest, x)
    for c in range(columns):
        missing[c] = 0
    for line in range(lines):
        start = i + line * step
        for c in range(columns):
            key = as_held(key_of(np.int64(x[start + c]), flip), x)
            nan = (key < lowest) | (key > highest)
            low[c] = min(low[c], highest if nan else key)
            high[c] = max(high[c], lowest if nan else key)
            missing[c] += nan


@inner
def limits_of_lines(x, i, step, lines, columns, low, high):
    """`extremes_of_lines` where nothing is NaN."""
    for line in range(lines):
        start = i + line * step
        for c in range(columns):
            low[c], high[c] = min(low[c], x[start + c]), max(high[c], x[start + c])


@part("last_extremes")
def extremes(frame, task, like):
    """Smallest and largest key of some columns of one segment, and the number of NaN."""
    f = frame_at(frame)
    segment, begin, lines, lo, columns = work_of(f, task)
    begin_segment(f, segment, lo, size_of(f, begin, lines), like)
    x, rows = data_at(f.first, like), rows_of(f, segment, lo, like)
    low, high, missing = (
        values_of_columns(like), values_of_columns(like), values_of_columns(like)
    )  # fmt: skip
    for c in range(columns):
        low[c], high[c], missing[c] = f.highest, f.lowest, 0
        rows[2][c] = 0
    step = f.fold * f.first_row
    for line in range(begin, begin + lines, FEW):
        i, some = lo * f.first_channel + line * step, min(FEW, begin + lines - line)
        if f.flip == 0:
            limits_of_lines(x, i, step, some, columns, low, high)
        else:
            extremes_of_lines(
                x, i, step, some, columns, f.flip, f.lowest, f.highest, low, high, missing
            )
        for c in range(columns):
            rows[2][c] += missing[c]
    for c in range(columns):
        rows[0][c], rows[1][c] = low[c], high[c]


@inner
def fill_lines(
    x, i, i_step, out, k, k_step, lines, columns, flip, highest, values, missing, filled_line
):  # fmt: skip
    """As `extremes_of_lines`. Each line goes through memory that cannot be x's."""
    flip, highest = as_held(flip, x), as_held(highest, x)
    for c in range(columns):
        missing[c] = 0
    for line in range(lines):
        start, to = i + line * i_step, k + line * k_step
        for c in range(columns):
            held, value = x[start + c], values[c]  # loads without a condition make vectors
            nan = is_nan(np.int64(held), flip, highest)
            filled_line[c] = value if nan else held
            missing[c] += nan
        for c in range(columns):
            out[to + c] = filled_line[c]


@part("last_filled")
def filled(frame, task, like):
    """Copy some columns of one segment, with a value of each channel's for NaN."""
    f = frame_at(frame)
    segment, begin, lines, lo, columns = work_of(f, task)
    begin_segment(f, segment, lo, size_of(f, begin, lines), like)
    x, out, given = data_at(f.first, like), data_at(f.out, like), data_at(f.weight, like)
    values, missing = values_of_columns(like), values_of_columns(like)
    filled_line = values_of_columns(like)
    rows, channel = rows_of(f, segment, lo, like), lo % f.channels
    for c in range(columns):
        values[c] = given[channel]
        rows[0][c], rows[1][c], rows[2][c] = 0, 0, 0
        channel = channel + 1 if channel < f.channels - 1 else 0
    i_step, k_step = f.fold * f.first_row, f.fold * f.out_row
    for line in range(begin, begin + lines, FEW):
        i, k = lo * f.first_channel + line * i_step, lo * f.out_channel + line * k_step
        some = min(FEW, begin + lines - line)
        fill_lines(
            x, i, i_step, out, k, k_step, some, columns, f.flip, f.highest, values, missing,
            filled_line,
        )  # fmt: skip
        for c in range(columns):
            rows[0][c] += missing[c]
