"""Statistics of a group of channels, over one segment; sums come from a layout's own loops.

A *line* is what one step along the outer dimension adds to each channel of the group: one
value (channels last) or a short row (channels first). Lines are summed in blocks around a
shift per channel, and blocks merged in order: all channels of the group at once, so that
LLVM makes vectors of what is done per channel.

Lines go four at a time, a quarter of the segment apart: what belongs to a channel is loaded
once for four lines, and memory sees four long sequences, which it is read faster by than by one.
(Four lines next to each other are no sequence: the processor would stop to read ahead.)
A *block* is (line, fours, quarter, single, singles): ``fours`` lines of each quarter, the first
four being ``line``, ``line + quarter`` and so on; or ``singles`` lines from ``single`` on, which
are left over by quarters.
"""

import numpy as np

from fastbn.kernels import cpu_formulas as formulas
from fastbn.kernels.compile import inner
from fastbn.kernels.cpu_range import narrow, wide_products

#: Values of a channel that its first shift is the mean of.
FIRST = 8
#: A first shift farther from the mean than about three standard deviations costs digits:
#: this part of the sum of squares is then due to the shift. The block is summed once more.
SHARE = 8 / 9


@inner
def set_finite(shift, value):
    """``shift = value`` where that is finite."""
    for c in range(shift.size):
        if np.isfinite(value[c]):
            shift[c] = value[c]


@inner
def set_means(shift, sums, n):
    """Move each shift to the mean of the values that were summed around it."""
    for c in range(shift.size):
        mean = np.float64(shift[c]) + sums[c] / n
        if np.isfinite(mean):
            shift[c] = mean


@inner
def is_far(sums, squares, n):
    """Whether the shift that ``n`` values were summed around was far from their mean."""
    return sums * sums > SHARE * n * squares


@inner
def mend_far(shift, sums, squares, n):
    """Move the shifts that were far from their channel's mean; how many these are.

    No other moves: the bits of a channel must not depend on which others are in its group.
    """
    moved = 0
    for c in range(shift.size):
        if is_far(sums[c], squares[c], n):
            mean = np.float64(shift[c]) + sums[c] / n
            if np.isfinite(mean):
                shift[c] = mean
                moved += 1
    return moved


@inner
def merge_block(count, n, shift, sums, squares, mean, m2):
    """Merge a block of ``n`` values a channel into the ``count`` before it, in place."""
    for c in range(mean.size):
        block_mean, block_m2 = formulas.moments_from_sums(
            n, np.float64(shift[c]), sums[c], squares[c]
        )
        _, mean[c], m2[c] = formulas.merge(count, mean[c], m2[c], n, block_mean, block_m2)


@inner
def merge_segment(count, mean, m2, n, segment_mean, segment_m2):
    """Merge ``n`` values a channel into the ``count`` before them, in place."""
    for c in range(mean.size):
        _, mean[c], m2[c] = formulas.merge(count, mean[c], m2[c], n, segment_mean[c], segment_m2[c])


@inner
def blocks_of_quarters(lines, size):
    """Blocks of ``size`` lines from all quarters; none if a block or a quarter has no line."""
    return (lines // 4 + size // 4 - 1) // (size // 4) if size >= 4 else 0


@inner
def count_blocks(lines, size):
    """Blocks of a segment, with those of the lines that quarters leave."""
    rest = lines % 4 if size >= 4 else lines
    return blocks_of_quarters(lines, size) + (rest + size - 1) // size


@inner
def block_of(k, lines, size):
    """The ``k``-th block of a segment."""
    quarter, fours, before = lines // 4, size // 4, blocks_of_quarters(lines, size)
    if k < before:
        line = k * fours
        return line, min(fours, quarter - line), quarter, 0, 0
    single = (4 * quarter if before > 0 else 0) + (k - before) * size
    return 0, 0, 0, single, min(size, lines - single)


@inner
def lines_of(block):
    return 4 * block[1] + block[4]


@inner
def line_of(k, block):
    """Which line is the ``k``-th of a block."""
    line, fours, quarter, single, _ = block
    if k >= 4 * fours:
        return single + k - 4 * fours
    return line + (k >> 2) + (k & 3) * quarter


def segment_moments_of(block_sums):
    """Make the function that takes a segment's statistics.

    ``block_sums(x, start, stride, block, row, shift, sums, squares)`` sums ``d = x - shift``
    and ``d * d`` of each channel; ``row`` is (values per line, distance of channels).
    """

    @inner
    def segment_moments(x, start, lines, stride, row, size, mean, m2):
        """Mean and m2 of each channel over ``lines`` lines, ``size`` lines at a time.

        The shift starts at the channel's first value, goes to the mean of the first few
        and then follows the running mean. A constant channel has sums of exactly zero.
        """
        length, distance = row
        shift = np.zeros(mean.size, x.dtype)
        sums, squares = np.empty(mean.size), np.empty(mean.size)
        step = max(1, distance)  # a single channel may have distance 0
        set_finite(shift, x[start : start + (mean.size - 1) * step + 1 : step])
        few, values = min(lines, (FIRST + length - 1) // length), min(length, FIRST)
        if few < lines:
            block = 0, 0, 0, 0, few
            block_sums(x, start, stride, block, (values, distance), shift, sums, squares)
            set_means(shift, sums, np.float64(few * values))
        mean[:] = 0.0
        m2[:] = 0.0
        count = 0.0
        for k in range(count_blocks(lines, size)):
            block = block_of(k, lines, size)
            n = np.float64(lines_of(block) * length)
            block_sums(x, start, stride, block, row, shift, sums, squares)
            if k == 0 and mend_far(shift, sums, squares, n) > 0:
                block_sums(x, start, stride, block, row, shift, sums, squares)
            merge_block(count, n, shift, sums, squares, mean, m2)
            count += n
            set_finite(shift, mean)

    return segment_moments


@inner
def wide_block_products(dy, i, dy_stride, x, k, x_stride, block, length, shift):
    """Sums of ``dy`` and ``dy * (x - shift)`` of one channel over a block, in float64."""
    s = p = 0.0
    for m in range(lines_of(block)):
        line = line_of(m, block)
        more_s, more_p = wide_products(
            dy, i + line * dy_stride, x, k + line * x_stride, length, shift
        )
        s += more_s
        p += more_p
    return s, p


def segment_products_of(block_products):
    """Make the function that takes a segment's sums for gradients.

    ``block_products(dy, i, dy_stride, x, k, x_stride, block, rows, shift, sums, products)``
    sums ``dy`` and ``dy * (x - shift)`` of each channel. ``rows`` is (values per line, distance
    of channels in dy, in x).
    """

    @inner
    def segment_products(
        dy, i, dy_stride, x, k, x_stride, lines, rows, size, center, unit, sum_dy, sum_dy_xc
    ):
        """Sums of ``dy`` and ``dy * (x - center)`` of each channel over ``lines`` lines."""
        sums, products = np.empty(center.size), np.empty(center.size)
        sum_dy[:] = 0.0
        sum_dy_xc[:] = 0.0
        for number in range(count_blocks(lines, size)):
            block = block_of(number, lines, size)
            block_products(dy, i, dy_stride, x, k, x_stride, block, rows, center, sums, products)
            if narrow(x):
                for c in range(center.size):
                    if not (unit[c] == 1.0 and np.isfinite(sums[c]) and np.isfinite(products[c])):
                        sums[c], products[c] = wide_block_products(
                            dy, i + c * rows[1], dy_stride, x, k + c * rows[2], x_stride,
                            block, rows[0], np.float64(center[c]),
                        )  # fmt: skip
            for c in range(center.size):
                sum_dy[c] += sums[c]
                sum_dy_xc[c] += products[c]

    return segment_products


@inner
def mend_means(x, start, lines, stride, row, mean):
    """Means of channels with infinities in them: infinity or NaN, as a plain sum has it."""
    length, distance = row
    for c in range(mean.size):
        if not np.isfinite(mean[c]):
            total = 0.0
            for line in range(lines):
                first = start + line * stride + c * distance
                for i in range(first, first + length):
                    total += np.float64(x[i])
            mean[c] = total / (lines * length)
