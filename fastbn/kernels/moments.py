"""Statistics of segments, for both layouts: a shift for each channel, and the merge of blocks.

A segment is summed block by block, each around a shift that follows the channel's mean, and the
blocks are merged in order. Every channel goes its own way: no bit depends on its neighbours.

Lines go four at a time, a quarter of the segment apart: what belongs to a channel is loaded once
for four lines, and memory is read as four long sequences, faster than as one. (Four lines next to
each other are no sequence: the processor would stop to read ahead.)
"""

from collections.abc import Callable

import numpy as np

from fastbn.kernels import formulas
from fastbn.kernels.compile import inlined, inner
from fastbn.kernels.simd import compiled_formula, double_rows, doubles_at, memory

#: Places of a segment's header, before its sums: how many values each column has, and columns.
COUNT, COLUMNS, HEADER = 0, 1, 8

merge = compiled_formula(formulas.merge)
moments_from_sums = compiled_formula(formulas.moments_from_sums)
is_finite = compiled_formula(formulas.is_finite)
three_rows = double_rows(3)


@inlined
def header_of(f, segment, like):
    """A segment's header in ``partial``."""
    return doubles_at(f.partial + 8 * segment * (HEADER + 3 * f.columns), like)


@inlined
def rows_of(f, segment, column, like):
    """The three rows of a segment's sums, from a column on."""
    start = HEADER + segment * (HEADER + 3 * f.columns) + column
    return three_rows(f.partial + 8 * start, 8 * f.columns, like)


# --- blocks -------------------------------------------------------------------------------------------


@inner
def count_blocks(lines, size):
    """Blocks of a segment: of lines of all quarters, then of those that quarters leave."""
    if size < 4:
        return (lines + size - 1) // size
    quarter, fours = lines // 4, size // 4
    return (quarter + fours - 1) // fours + (lines % 4 + size - 1) // size


@inner
def block_of(number, lines, size):
    """A block: (line, fours, quarter, single, singles).

    ``fours`` lines of each quarter, the first four being ``line``, ``line + quarter`` and so on;
    or ``singles`` lines from ``single`` on.
    """
    quarter, fours, before = lines // 4, size // 4, 0
    if size >= 4:
        before = (quarter + fours - 1) // fours
    if number < before:
        line = number * fours
        return line, min(fours, quarter - line), quarter, 0, 0
    single = (number - before) * size
    if size >= 4:
        single += 4 * quarter
    return 0, 0, 0, single, min(size, lines - single)


@inlined
def merge_block(count, n, columns, shift, sums, squares, mean, m2, power):
    """Merge a block of ``n`` values a channel into the ``count`` before it; move the shift.

    ``power`` is the sum of all squares of deviations from shifts: what of it is not in ``m2``
    has been lost to rounding in part.
    """
    for c in range(columns):
        center, squared = np.float64(shift[c]), np.float64(squares[c])
        block_mean, block_m2 = moments_from_sums(n, center, np.float64(sums[c]), squared)
        merged = merge(count, mean[c], m2[c], n, block_mean, block_m2)
        mean[c], m2[c], power[c] = merged[1], merged[2], power[c] + squared
        if is_finite(merged[1]):
            shift[c] = merged[1]


def moments_with(block_sums: Callable, first_shifts: Callable, count_of: Callable, most: int):
    """Make ``segment_moments``: mean, m2 and power of each of ``most`` columns at most.

    ``block_sums(f, first, i, second, k, begin, block, columns, center, sums, products)`` takes a
    block's sums, ``count_of(f, begin, block)`` says of how many values.
    """
    columns_of = memory(most)

    @inner
    def segment_moments(f, x, i, begin, lines, columns, rows):
        mean, m2, power = rows
        shift, sums, squares = columns_of(x), columns_of(x), columns_of(x)
        first_shifts(f, x, i, begin, lines, columns, shift)
        for c in range(columns):
            mean[c], m2[c], power[c] = 0.0, 0.0, 0.0
        count = 0.0
        for number in range(count_blocks(lines, f.block)):
            block = block_of(number, lines, f.block)
            block_sums(f, x, i, x, i, begin, block, columns, shift, sums, squares)
            n = np.float64(count_of(f, begin, block))
            merge_block(count, n, columns, shift, sums, squares, mean, m2, power)
            count += n

    return segment_moments


def products_with(block_sums: Callable, most: int):
    """Make ``segment_products``: sums of ``dy`` and ``dy * (x - center)`` of each column."""
    columns_of = memory(most)

    @inner
    def segment_products(f, dy, i, x, k, begin, lines, columns, center, rows):
        sum_dy, sum_dy_xc, _ = rows
        sums, products = columns_of(x), columns_of(x)
        for c in range(columns):
            sum_dy[c], sum_dy_xc[c] = 0.0, 0.0
        for number in range(count_blocks(lines, f.block)):
            block = block_of(number, lines, f.block)
            block_sums(f, dy, i, x, k, begin, block, columns, center, sums, products)
            for c in range(columns):
                sum_dy[c] += np.float64(sums[c])
                sum_dy_xc[c] += np.float64(products[c])

    return segment_products
