"""Channels first: statistics and gradient sums of one segment of a group of channels."""

from fastbn.kernels import formulas, loops
from fastbn.kernels.channels_first.cut import GROUP
from fastbn.kernels.compile import inlined, inner, part
from fastbn.kernels.moments import (
    COUNT,
    Segments,
    header_of,
    is_finite,
    moments_from_sums,
    moments_part,
    products_part,
    rows_of,
)
from fastbn.kernels.simd import (
    SHARE,
    broadcasts,
    compiled_formula,
    data_at,
    doubles_at,
    frame_at,
    lanes,
    loads,
    loads_first,
    memory,
    stores,
    total,
    value_at,
)

_LANES = 16  # of the narrowest dtype

median = compiled_formula(formulas.median)
load_first, store, lanes_of = loads_first(), stores(), lanes()
load, broadcast, broadcast_wide = loads(), broadcasts(), broadcasts(wide=True)
vectors_of_group = memory(2 * GROUP * _LANES)


# --- lines ----------------------------------------------------------------------------------------


@inlined
def line_start(f, row_distance, line):
    """Where a line begins, from the channel's first value on."""
    if f.pieces == 1:
        return line * row_distance
    row = line // f.pieces
    return row * row_distance + (line - row * f.pieces) * f.piece


@inlined
def line_size(f, line):
    """Values of a line: the last piece of a row may have fewer."""
    if f.pieces == 1:
        return f.length
    return min(f.piece, f.length - line % f.pieces * f.piece)


@inlined
def values_of_lines(f, begin, lines):
    """Values of a channel in some lines: whole pieces, less what each row's last one lacks."""
    ends = (begin + lines) // f.pieces - begin // f.pieces
    return lines * f.piece - ends * (f.pieces * f.piece - f.length)


@inlined
def work_of(f, task):
    """Segment, its first line, lines, the first channel and number of channels of a task."""
    segment = task // f.groups
    lo = (task - segment * f.groups) * f.group
    begin = segment * f.segment_lines
    lines = min(f.segment_lines, f.rows * f.pieces - begin)
    return segment, begin, lines, lo, min(f.group, f.channels - lo)


@inlined
def size_of(f, begin, lines):
    """Values of each channel in a segment, and channels."""
    return values_of_lines(f, begin, lines), f.channels


SEGMENTS = Segments(work_of, size_of, values_of_lines, GROUP)


# --- sums -----------------------------------------------------------------------------------------


def block_sums_with(pair):
    """Make the function that takes two sums of a block for each channel of a group."""
    add = loops.row_sums_with(pair, SHARE)

    @inner
    def block_sums(f, first, i, second, k, begin, block, channels, center, sums, products):
        line, fours, quarter, single, singles = block
        step, vectors = lanes_of(first), vectors_of_group(first)
        for n in range(0, 2 * channels * step, step):
            store(vectors, n, 0, broadcast(first, 0.0))
        for number in range(fours + singles):
            if number < fours:  # four rows side by side
                n, size, stride, less = begin + line + number, f.length, step, 0
                i_apart, k_apart = quarter * f.first_row, quarter * f.second_row
            else:  # four vectors of one line
                n = begin + single + number - fours
                size, stride, less = line_size(f, n), 4 * step, step
                i_apart = k_apart = step
            i_line, k_line = i + line_start(f, f.first_row, n), k + line_start(f, f.second_row, n)
            for c in range(channels):
                add(
                    first, i_line + c * f.first_channel, i_apart,
                    second, k_line + c * f.second_channel, k_apart,
                    size, stride, less, center[c], vectors, 2 * c * step,
                )  # fmt: skip
        for c in range(channels):
            sums[c] = total(load(vectors, 2 * c * step, 0))
            products[c] = total(load(vectors, (2 * c + 1) * step, 0))

    return block_sums


@inlined
def shift_from(x, first, middle, last, size):
    """The mean of medians of three vectors, of which ``size`` values count.

    No single outlier moves it far, and a constant channel has it exactly.
    """
    center = value_at(x, first)
    if not is_finite(center):
        center = 0.0
    rest = broadcast(x, center)
    middling = median(
        load_first(x, first, 0, size, 0, rest),
        load_first(x, middle, 0, size, 0, rest),
        load_first(x, last, 0, size, 0, rest),
    )
    mean = center + total(middling - rest) / size
    return mean if is_finite(mean) else center


@inner
def first_shifts(f, x, i, begin, lines, channels, shift):
    """`shift_from` a segment's first vector, a middle one and its last."""
    middle, last = begin + lines // 2, begin + lines - 1
    size = min(lanes_of(x), line_size(f, begin), line_size(f, middle), line_size(f, last))
    starts = (
        i + line_start(f, f.first_row, begin),
        i + line_start(f, f.first_row, middle) + (line_size(f, middle) - size) // 2,
        i + line_start(f, f.first_row, last) + line_size(f, last) - size,
    )
    for c in range(channels):
        at = c * f.first_channel
        shift[c] = shift_from(x, starts[0] + at, starts[1] + at, starts[2] + at, size)


moments = moments_part(
    "first_moments", SEGMENTS, block_sums_with(loops.deviations(4, SHARE)), first_shifts
)
products = products_part("first_products", SEGMENTS, block_sums_with(loops.products(4, SHARE)))


# --- channels that float32 cannot hold ------------------------------------------------------------

wide_deviation_sums = loops.wide_sums_with(loops.wide_deviation, line_start, line_size)
wide_product_sums = loops.wide_sums_with(loops.wide_product, line_start, line_size)


@part("first_wide_moments")
def wide_moments(frame, task, like):
    """`moments` in float64, of the channels that are marked."""
    f = frame_at(frame)
    segment, begin, lines, lo, channels = work_of(f, task)
    x, marks, n = data_at(f.first, like), doubles_at(f.marks, like), header_of(f, segment, like)
    mean, m2, _ = rows_of(f, segment, 0, like)
    for c in range(lo, lo + channels):
        if marks[c] > 0.0:
            i = c * f.first_channel
            center = value_at(x, i + line_start(f, f.first_row, begin))
            if not is_finite(center):
                center = 0.0
            s, q = wide_deviation_sums(
                f, x, i, x, i, begin, lines, f.length, broadcast_wide(x, center)
            )
            mean[c], m2[c] = moments_from_sums(n[COUNT], center, total(s), total(q))


@part("first_wide_products")
def wide_products(frame, task, like):
    """`products` in float64, around the mean itself, of the channels that are marked."""
    f = frame_at(frame)
    segment, begin, lines, lo, channels = work_of(f, task)
    dy, x = data_at(f.first, like), data_at(f.second, like)
    mean, marks = doubles_at(f.statistics, like), doubles_at(f.marks, like)
    sums, sums_of_products, _ = rows_of(f, segment, 0, like)
    for c in range(lo, lo + channels):
        if marks[c] > 0.0:
            s, p = wide_product_sums(
                f, dy, c * f.first_channel, x, c * f.second_channel, begin, lines, f.length,
                broadcast_wide(x, mean[c]),
            )  # fmt: skip
            sums[c], sums_of_products[c] = total(s), total(p)
