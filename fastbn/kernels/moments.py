"""Sums of segments, for both layouts: the walk over blocks, and the shift that follows the mean.

A segment is summed block by block, each around a shift per channel that follows the channel's
mean, and the blocks are merged in order. Every channel goes its own way: no bit depends on its
neighbours, and so on how channels are grouped into tasks.

Lines go four at a time, a quarter of the segment apart: what belongs to a channel is loaded once
for four lines, and memory is read as four long sequences, faster than as one. (Four lines next to
each other are no sequence: the processor would stop to read ahead.) A *block* is (line, fours,
quarter, single, singles): ``fours`` lines of each quarter, the first four being ``line``,
``line + quarter`` and so on; or ``singles`` lines from ``single`` on, which quarters leave.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fastbn.kernels import formulas
from fastbn.kernels.compile import Part, inlined
from fastbn.kernels.simd import (
    compiled_formula,
    data_at,
    double_rows,
    doubles_at,
    frame_at,
    memory,
)
from fastbn.kernels.terms import center_of, largest_of

#: Places of a segment's header, before its sums: how many values each column has, and columns.
COUNT, COLUMNS, HEADER = 0, 1, 8

merge = compiled_formula(formulas.merge)
moments_from_sums = compiled_formula(formulas.moments_from_sums)
is_finite = compiled_formula(formulas.is_finite)
three_rows = double_rows(3)


class Segments(NamedTuple):
    """What a layout says of its segments.

    Attributes
    ----------
    work_of : (f, task) -> segment, its first line, lines, first column and columns of the task
    size_of : (f, begin, lines) -> values of each column, and columns, of a segment
    count_of : (f, begin, lines) -> values of each column in some lines
    most : columns that a task has at most
    """

    work_of: Callable
    size_of: Callable
    count_of: Callable
    most: int


@inlined
def header_of(f, segment, like):
    """A segment's header in ``partial``."""
    return doubles_at(f.partial + 8 * segment * (HEADER + 3 * f.columns), like)


@inlined
def rows_of(f, segment, column, like):
    """The three rows of a segment's sums, from a column on."""
    start = HEADER + segment * (HEADER + 3 * f.columns) + column
    return three_rows(f.partial + 8 * start, 8 * f.columns, like)


@inlined
def merge_block(count, n, columns, shift, sums, squares, rows):
    """Merge a block of ``n`` values a channel into the ``count`` before it; move the shift.

    ``power`` is the sum of all squares of deviations from shifts: where it is much larger than
    ``m2``, rounding has cost digits.
    """
    mean, m2, power = rows
    for c in range(columns):
        block_mean, block_m2 = moments_from_sums(n, shift[c], sums[c], squares[c])
        merged = merge(count, mean[c], m2[c], n, block_mean, block_m2)
        mean[c], m2[c], power[c] = merged[1], merged[2], power[c] + squares[c]
        if is_finite(merged[1]):
            shift[c] = merged[1]


@inlined
def next_block(f, lines, quarter, line, single):
    """The block that begins with a line of each quarter, or with one that quarters leave."""
    fours = min(f.block // 4, quarter - line)
    return line, fours, quarter, single, 0 if fours > 0 else min(f.block, lines - single)


def moments_part(name: str, segments: Segments, block_sums: Callable, first_shifts: Callable):
    """The part that takes mean, m2 and power of some columns of one segment.

    ``block_sums(f, first, i, second, k, begin, block, columns, center, sums, products)`` takes
    two sums of a block, ``first_shifts(f, x, i, begin, lines, columns, shift)`` the first shift.
    """
    work_of, size_of, count_of, most = segments
    columns_of = memory(most)

    def moments(frame, task, like):
        f = frame_at(frame)
        segment, begin, lines, lo, columns = work_of(f, task)
        if lo == 0:  # one task of a segment: no other thread is to store there
            header = header_of(f, segment, like)
            header[COUNT], header[COLUMNS] = size_of(f, begin, lines)
        if columns <= 0:
            return
        x, i = data_at(f.first, like), lo * f.first_channel
        shift, sums, squares = columns_of(like), columns_of(like), columns_of(like)
        first_shifts(f, x, i, begin, lines, columns, shift)
        rows = rows_of(f, segment, lo, like)
        for c in range(columns):
            rows[0][c], rows[1][c], rows[2][c] = 0.0, 0.0, 0.0
        count = 0.0
        quarter = lines // 4 if f.block >= 4 else 0
        line, single = 0, 4 * quarter
        while single < lines or line < quarter:
            block = next_block(f, lines, quarter, line, single)
            fours, singles = block[1], block[4]
            block_sums(f, x, i, x, i, begin, block, columns, shift, sums, squares)
            n = np.float64(count_of(f, begin + single, 4 * fours + singles))
            merge_block(count, n, columns, shift, sums, squares, rows)
            count += n
            line, single = line + fours, single + singles

    return Part(moments, name)


def products_part(name: str, segments: Segments, block_sums: Callable):
    """The part that takes sums of ``dy`` and ``dy * (x - center)`` of some columns."""
    work_of, size_of, _, most = segments
    columns_of = memory(most)

    def products(frame, task, like):
        f = frame_at(frame)
        segment, begin, lines, lo, columns = work_of(f, task)
        if lo == 0:  # one task of a segment: no other thread is to store there
            header = header_of(f, segment, like)
            header[COUNT], header[COLUMNS] = size_of(f, begin, lines)
        if columns <= 0:
            return
        mean, largest = doubles_at(f.statistics, like), largest_of(f.value_bytes)
        center, sums, more = columns_of(like), columns_of(like), columns_of(like)
        sum_dy, sum_dy_xc, _ = rows_of(f, segment, lo, like)
        channel = lo % f.channels
        for c in range(columns):
            sum_dy[c], sum_dy_xc[c] = 0.0, 0.0
            center[c] = center_of(mean[channel], largest)
            channel = channel + 1 if channel < f.channels - 1 else 0
        dy, x = data_at(f.first, like), data_at(f.second, like)
        i, k = lo * f.first_channel, lo * f.second_channel
        quarter = lines // 4 if f.block >= 4 else 0
        line, single = 0, 4 * quarter
        while single < lines or line < quarter:
            block = next_block(f, lines, quarter, line, single)
            fours, singles = block[1], block[4]
            block_sums(f, dy, i, x, k, begin, block, columns, center, sums, more)
            for c in range(columns):
                sum_dy[c] += sums[c]
                sum_dy_xc[c] += more[c]
            line, single = line + fours, single + singles

    return Part(products, name)
