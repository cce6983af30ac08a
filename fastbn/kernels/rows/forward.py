"""Normalize rows, with a weight and a bias for each column."""

from functools import cache

import numpy as np

from fastbn.kernels import formulas, loops
from fastbn.kernels.channels_first.sums import shift_from
from fastbn.kernels.compile import inlined, inner, part
from fastbn.kernels.merge import holds_moments
from fastbn.kernels.moments import is_finite, merge, moments_from_sums
from fastbn.kernels.rows.sums import (
    AHEAD,
    LANES,
    ROW_SUMS_BYTES,
    count_left,
    lanes_of,
    sums_of_rows,
)
from fastbn.kernels.simd import (
    broadcasts,
    compiled_formula,
    data_at,
    doubles_at,
    fence,
    fetch,
    frame_at,
    loads,
    loads_each,
    loads_first,
    memory,
    stores,
    stores_streaming,
    to_boundary,
    total,
    value_at,
    values_at,
)
from fastbn.kernels.terms import (
    affine_terms,
    holds_one,
    reciprocal_std,
    residual,
    three_rows,
)

BLOCK = 2048  # values of a row that are summed around one shift
CHAIN = 32  # additions to one sum, at most: squares round in one direction

mean_square = compiled_formula(formulas.mean_square)
normalize_each = compiled_formula(formulas.normalize_each, "values", "terms")
broadcast, broadcast_wide, load, store = broadcasts(), broadcasts(wide=True), loads(), stores()


def deviations_of(count):
    """What the moments of rows are sums of: ``d = x - center`` and its square."""
    whole_rows, edge_rows = loads(count), loads_first(count)

    @inlined
    def deviation(operands, j, step, center, zero):
        x, i, apart = operands
        d = whole_rows(x, i + j, apart) - center
        return d, d, zero

    @inlined
    def deviation_edge(operands, j, number, center, zero):
        x, i, apart = operands
        d = edge_rows(x, i + j, apart, number, 0, center) - center
        return d, d, zero

    return deviation, deviation_edge


def row_moments_of(count):
    """Make ``moments_of(x, i, apart, length, centers, sums, found)``: of ``count`` rows.

    Block by block, around the mean so far. Mean, m2 and power of each row, next to each other, go
    to ``found``; the other two are memory, vectors of each row.
    """
    add = sums_of_rows(count, CHAIN, *deviations_of(count))

    @inner
    def moments_of(x, i, apart, length, centers, sums, found):
        step = lanes_of(x)
        size, before = min(step, length), 0.0
        for r in range(count):
            at = i + r * apart
            shift = shift_from(x, at, at + (length - size) // 2, at + length - size, size)
            store(centers, r * step, 0, broadcast(x, shift))
            found[3 * r] = found[3 * r + 1] = found[3 * r + 2] = 0.0
        for begin in range(0, length, BLOCK):
            end = min(begin + BLOCK, length)
            add((x, i, apart), begin, end, centers, sums)
            n = np.float64(end - begin)
            for r in range(count):
                squares = total(load(sums, (count + r) * step, 0))
                block = moments_from_sums(
                    n, np.float64(centers[r * step]), total(load(sums, r * step, 0)), squares
                )
                merged = merge(before, found[3 * r], found[3 * r + 1], n, *block)
                found[3 * r], found[3 * r + 1] = merged[1], merged[2]
                found[3 * r + 2] += squares
                if is_finite(merged[1]):
                    store(centers, r * step, 0, broadcast(x, merged[1]))
            before += n

    return moments_of


@inner
def wide_row_moments(x, i, length):
    """Mean and m2 of a row in float64, around its first value."""
    center = value_at(x, i)
    if not is_finite(center):
        center = 0.0
    step, zero = lanes_of(x), broadcast(x, 0.0)
    around = broadcast_wide(x, center)
    s = q = broadcast_wide(x, 0.0)
    for n in range(0, length, step):
        a, b = loops.wide_deviation(x, i + n, x, i + n, length - n, around, zero)
        s, q = s + a, q + a * b
    return moments_from_sums(np.float64(length), center, total(s), total(q))


@inner
def normalizing_terms_of(f, row, found, terms, r, apart, like):
    """Statistics and terms of a row, the ``r``-th of some; whether float32 holds them.

    From its mean, m2 and power in ``found``. Its center, scale and shift are ``apart`` in
    ``terms``.
    """
    means, variances, rstds = three_rows(f.statistics, 8 * f.rows, like)
    narrow, at = f.value_bytes == 4, r * lanes_of(terms)
    mean, m2 = found[3 * r], found[3 * r + 1]
    if narrow and not holds_moments(found[3 * r + 2], m2):
        mean, m2 = wide_row_moments(data_at(f.first, like), row * f.first_row, f.length)
    var = m2 / f.count
    if f.uncentered != 0:
        mean, var = 0.0, mean_square(mean, var) if is_finite(mean) else abs(mean)
    rstd = reciprocal_std(var, f.eps)
    means[row], variances[row], rstds[row] = mean, var, rstd
    store(terms, at, 0, broadcast(terms, mean))
    scale, shift = affine_terms(residual(mean, np.float64(terms[at])), rstd, 1.0, 0.0)
    store(terms, at + apart, 0, broadcast(terms, scale))
    store(terms, at + 2 * apart, 0, broadcast(terms, shift))
    if narrow and is_finite(var) and not holds_one(mean, rstd, rstd):
        rstds[row] = -1.0
        return False
    return True


@inlined
def given(table, column, number, like):
    """Terms that are the same in all columns."""
    return table


@cache
def loads_ahead(count):
    """`loads_each`, and the first array is fetched some rows ahead.

    One line after the other, between stores: all of a row at once would hold everything up.
    """
    load_each = loads_each(count)

    @inlined
    def load_ahead(pointers, starts, aparts, offset):
        for r in range(AHEAD, AHEAD + count):
            fetch(pointers[0], starts[0] + offset + r * aparts[0])
        return load_each(pointers, starts, aparts, offset)

    return load_ahead


def forward_of_rows(count, stores_whole):
    """Make ``rows(f, row, found, like)``: normalize ``count`` rows, if float32 holds them."""
    moments_of, at_rows = row_moments_of(count), loads(count)
    lines = loops.lines_with(count, normalize_each, given, stores_whole, loads_ahead)
    terms_of, sums_of = memory(3 * count * LANES), memory(3 * count * LANES)

    @inner
    def rows(f, row, found, like):
        x, out, length = data_at(f.first, like), data_at(f.out, like), f.length
        terms, step, good = terms_of(like), lanes_of(x), True
        i, all_rows = row * f.first_row, count * step
        moments_of(x, i, f.first_row, length, terms, sums_of(like), found)
        for r in range(count):
            good &= normalizing_terms_of(f, row + r, found, terms, r, all_rows, like)
        if not good:
            return False
        table = (
            at_rows(terms, 0, step), at_rows(terms, all_rows, step),
            at_rows(terms, 2 * all_rows, step),
        )  # fmt: skip
        pointers = x, values_at(f.weight, like), values_at(f.bias, like)
        aparts, o, o_apart = (f.first_row, 0, 0), row * f.out_row, f.out_row
        head = min(to_boundary(out, o), length) if f.aligned != 0 else 0
        for begin, size in ((0, head), (head, length - head)):  # one call, compiled once
            lines(
                table, like, pointers, (i + begin, begin, begin), aparts,
                out, o + begin, o_apart, size, 0,
            )  # fmt: skip
        return True

    return rows


def forward_part(name, stores_whole=stores):
    """The part that normalizes the rows of a task."""
    four, one = forward_of_rows(4, stores_whole), forward_of_rows(1, stores_whole)
    streaming = stores_whole is stores_streaming

    @part(name)
    def forward(frame, task, like):
        f, left = frame_at(frame), 0
        found = doubles_at(f.row_sums + ROW_SUMS_BYTES * task, like)
        begin = task * f.task_size
        end = min(begin + f.task_size, f.rows)
        fours = begin + (end - begin) // 4 * 4
        for row in range(begin, fours, 4):
            if not four(f, row, found, like):
                for alone in range(row, row + 4):
                    left += not one(f, alone, found, like)
        for row in range(fours, end):
            left += not one(f, row, found, like)
        doubles_at(f.rows_left, like)[task] = left
        if streaming:
            fence()

    return forward


@cache
def forward_part_of(streaming=False):
    """The part of a forward; if ``streaming``, one that stores past the caches."""
    if streaming:
        return forward_part("row_forward_streaming", stores_streaming)
    return forward_part("row_forward")


@part("row_forward_left")
def forward_left(frame, task, like):
    """Whether rows are left."""
    count_left(frame_at(frame), like)
