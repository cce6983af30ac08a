"""Channels last: statistics and gradient sums of some columns of one segment."""

from fastbn.kernels import formulas, loops
from fastbn.kernels.channels_last.cut import COLUMNS
from fastbn.kernels.compile import inlined, inner, part
from fastbn.kernels.moments import (
    Segments,
    is_finite,
    moments_from_sums,
    moments_part,
    products_part,
    rows_of,
)
from fastbn.kernels.simd import (
    broadcasts,
    compiled_formula,
    data_at,
    doubles_at,
    frame_at,
    lanes,
    loads_first,
    memory,
    stores,
    terms_along,
    value_at,
)

SAMPLED = 8  # lines at each of three places that the first shift is taken from

median = compiled_formula(formulas.median)
lanes_of, broadcast, load_first, store = lanes(), broadcasts(), loads_first(), stores()
wide_terms, doubles_of_vector = terms_along(1), memory(16)


# --- lines ----------------------------------------------------------------------------------------


@inlined
def line_start(f, row_distance, line):
    """Where a line begins."""
    return line * f.fold * row_distance


@inlined
def line_size(f, line):
    """Columns of a line, at least as many as any task takes."""
    return COLUMNS


@inlined
def work_of(f, task):
    """Segment, its first line, lines, the first column and number of columns of a task."""
    segment = task // f.groups
    lo = (task - segment * f.groups) * f.group
    whole = f.rows // f.fold  # lines; rows that do not fill one are a segment of their own
    begin = min(segment * f.segment_lines, whole)
    lines = min(f.segment_lines, whole - begin) if begin < whole else 1
    return segment, begin, lines, lo, min(f.group, size_of(f, begin, lines)[1] - lo)


@inlined
def size_of(f, begin, lines):
    """Values of each column in a segment, and columns."""
    whole = f.rows // f.fold
    return lines, f.columns if begin < whole else (f.rows - whole * f.fold) * f.channels


@inlined
def count_of(f, begin, lines):
    """Values of a column in some lines: one each."""
    return lines


SEGMENTS = Segments(work_of, size_of, count_of, COLUMNS)


# --- sums -----------------------------------------------------------------------------------------


def block_sums_with(pair_of):
    """Make the function that takes two sums of a block for each column, in x's precision."""
    add_four = loops.column_sums_with(4, pair_of(4))
    add_one = loops.column_sums_with(1, pair_of(1))

    @inner
    def block_sums(f, first, i, second, k, begin, block, columns, center, sums, products):
        line, fours, quarter, single, singles = block
        for j in range(0, columns, lanes_of(first)):
            store(sums, j, 0, broadcast(first, 0.0))
            store(products, j, 0, broadcast(first, 0.0))
        i_step, k_step = f.fold * f.first_row, f.fold * f.second_row
        for n in range(begin + line, begin + line + fours):
            add_four(
                first, i + n * i_step, quarter * i_step, second, k + n * k_step, quarter * k_step,
                columns, center, sums, products,
            )  # fmt: skip
        for n in range(begin + single, begin + single + singles):
            add_one(
                first, i + n * i_step, 0, second, k + n * k_step, 0,
                columns, center, sums, products,
            )  # fmt: skip

    return block_sums


@inner
def first_shifts(f, x, i, begin, lines, columns, shift):
    """The mean of medians of three lines: from the segment's beginning, its middle and its end.

    No single outlier moves it far, and a constant channel has it exactly.
    """
    step, few = lanes_of(x), min(lines, SAMPLED)
    apart = f.fold * f.first_row
    middle, last = (lines - few) // 2 * apart, (lines - few) * apart
    share, zero = broadcast(x, 1.0 / few), broadcast(x, 0.0)
    for j in range(0, columns, step):
        n, start = columns - j, i + begin * apart + j
        rest = load_first(x, start, 0, n, 0, zero)
        s = zero
        for line in range(few):
            at = start + line * apart
            middling = median(
                load_first(x, at, 0, n, 0, rest),
                load_first(x, at + middle, 0, n, 0, rest),
                load_first(x, at + last, 0, n, 0, rest),
            )
            s = s + (middling - rest)
        store(shift, j, 0, rest + s * share)
    for c in range(columns):
        if not is_finite(shift[c]):
            value = value_at(x, i + begin * apart + c)
            shift[c] = value if is_finite(value) else 0.0


moments = moments_part("last_moments", SEGMENTS, block_sums_with(loops.deviations), first_shifts)
products = products_part("last_products", SEGMENTS, block_sums_with(loops.products))


# --- channels that float32 cannot hold ------------------------------------------------------------

wide_deviation_sums = loops.wide_sums_with(loops.wide_deviation, line_start, line_size)
wide_product_sums = loops.wide_sums_with(loops.wide_product, line_start, line_size)


@inlined
def any_marked(f, marks, lo, columns):
    found = False
    for column in range(lo, lo + columns):
        found |= marks[column % f.channels] > 0.0
    return found


@part("last_wide_moments")
def wide_moments(frame, task, like):
    """`moments` in float64, of the channels that are marked, a vector of columns at a time."""
    f = frame_at(frame)
    segment, begin, lines, lo, some = work_of(f, task)
    x, marks = data_at(f.first, like), doubles_at(f.marks, like)
    center, s, q = doubles_of_vector(marks), doubles_of_vector(marks), doubles_of_vector(marks)
    mean, m2, _ = rows_of(f, segment, 0, like)
    step = lanes_of(like)
    for j in range(lo, lo + some, step):
        n = min(step, lo + some - j)
        if any_marked(f, marks, j, n):
            for k in range(n):
                value = value_at(x, j + k + line_start(f, f.first_row, begin))
                center[k] = value if is_finite(value) else 0.0
            around = wide_terms(center, 0, 0, n, like)[0]
            sums, squares = wide_deviation_sums(f, x, j, x, j, begin, lines, n, around)
            store(s, 0, 0, sums)
            store(q, 0, 0, squares)
            for k in range(n):
                if marks[(j + k) % f.channels] > 0.0:
                    mean[j + k], m2[j + k] = moments_from_sums(lines, center[k], s[k], q[k])


@part("last_wide_products")
def wide_products(frame, task, like):
    """`products` in float64, around the mean itself, of the channels that are marked."""
    f = frame_at(frame)
    segment, begin, lines, lo, some = work_of(f, task)
    dy, x, marks = data_at(f.first, like), data_at(f.second, like), doubles_at(f.marks, like)
    mean, center = doubles_at(f.statistics, like), doubles_of_vector(marks)
    s, p = doubles_of_vector(marks), doubles_of_vector(marks)
    sums, sums_of_products, _ = rows_of(f, segment, 0, like)
    step = lanes_of(like)
    for j in range(lo, lo + some, step):
        n = min(step, lo + some - j)
        if any_marked(f, marks, j, n):
            for k in range(n):
                center[k] = mean[(j + k) % f.channels]
            around = wide_terms(center, 0, 0, n, like)[0]
            added = wide_product_sums(f, dy, j, x, j, begin, lines, n, around)
            store(s, 0, 0, added[0])
            store(p, 0, 0, added[1])
            for k in range(n):
                if marks[(j + k) % f.channels] > 0.0:
                    sums[j + k], sums_of_products[j + k] = s[k], p[k]
