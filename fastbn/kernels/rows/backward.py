"""Gradients of rows, and of a weight and a bias for each column."""

from functools import cache

import numpy as np

from fastbn.kernels import formulas
from fastbn.kernels.compile import inlined, inner, part
from fastbn.kernels.merge import holds_products
from fastbn.kernels.moments import is_finite
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
    folded,
    frame_at,
    loads,
    loads_first,
    memory,
    stores,
    stores_first,
    stores_streaming,
    terms_along,
    to_boundary,
    total,
    values_at,
)
from fastbn.kernels.terms import (
    center_of,
    centered_product_sum,
    holds_two,
    input_gradient_terms,
    largest_of,
    residual,
    three_rows,
    two_rows,
)

CHAIN = 64  # additions to one sum, at most; and of such sums to one

normalize = compiled_formula(formulas.normalize)
input_gradient = compiled_formula(formulas.input_gradient)
broadcast, load, store = broadcasts(), loads(), stores()


def weighted_of(count):
    """What the gradients of rows are sums of: ``dy * weight``, ``x - center``, and ``dy``."""
    whole_rows, edge_rows, along = loads(count), loads_first(count), terms_along(1, count)

    @inlined
    def weighted(operands, j, step, center, zero):
        dy, i, i_apart, x, k, k_apart, weight = operands
        g, w = whole_rows(dy, i + j, i_apart), along(weight, 0, j, step, x)[0]
        return g * w, whole_rows(x, k + j, k_apart) - center, g

    @inlined
    def weighted_edge(operands, j, number, center, zero):
        dy, i, i_apart, x, k, k_apart, weight = operands
        g = edge_rows(dy, i + j, i_apart, number, 0, zero)
        w = along(weight, 0, j, number, x)[0]
        return g * w, edge_rows(x, k + j, k_apart, number, 0, center) - center, g

    return weighted, weighted_edge


def row_terms_of(count):
    """Make ``terms_of(f, row, terms, totals, like)``: whether float32 holds the terms of rows.

    Those are center, 1 / std, what rounding the center takes from x_hat, slope and offset, each a
    vector for each of ``count`` rows. A row with NaN is NaN in any precision.
    """
    add, sums_of = sums_of_rows(count, CHAIN, *weighted_of(count)), memory(3 * count * LANES)

    @inner
    def terms_of(f, row, terms, totals, like):
        x, step, good = data_at(f.second, like), lanes_of(terms), True
        means, _, rstds = three_rows(f.statistics, 8 * f.rows, like)
        sums, largest, narrow = sums_of(like), largest_of(f.value_bytes), f.value_bytes == 4
        for r in range(count):
            center = center_of(means[row + r], largest)
            store(terms, r * step, 0, broadcast(terms, center))
        operands = (
            data_at(f.first, like), row * f.first_row, f.first_row,
            x, row * f.second_row, f.second_row, values_at(f.weight, like),
        )  # fmt: skip
        for k in range(3 * count):
            totals[k] = 0.0
        for begin in range(0, f.length, CHAIN * CHAIN * step):
            add(operands, begin, min(begin + CHAIN * CHAIN * step, f.length), terms, sums)
            for k in range(3 * count):
                totals[k] += total(load(sums, k * step, 0))
        for r in range(count):
            mean, rstd = means[row + r], rstds[row + r]
            rounding = residual(mean, np.float64(terms[r * step]))
            sum_g, squares = totals[r], totals[2 * count + r]
            product = centered_product_sum(sum_g, totals[count + r], rounding)
            holds = holds_products(mean, rstd, sum_g, product)
            if f.uncentered != 0:
                sum_g = 0.0  # a change of the mean changes nothing
            scale, slope, offset = input_gradient_terms(
                f.count, sum_g, product, rounding, rstd, 1.0
            )
            # with squares of dy in range, so are sums down the columns
            holds &= holds_two(mean, rstd, scale, slope) & is_finite(squares)
            good &= not narrow or holds or np.isnan(rstd) or np.isnan(squares)
            for place, value in ((1, rstd), (2, -rounding * rstd), (3, slope), (4, offset)):
                store(terms, (place * count + r) * step, 0, broadcast(terms, value))
        return good

    return terms_of


@inlined
def same(vector):
    return vector


def row_gradients_of(count, stores_whole):
    """Make ``write(f, row, terms, sums, bias_sums, like)``: gradients of ``count`` rows.

    That of x is written; what rows add to those of weight and bias goes to sums of columns.
    """
    whole_rows, edge_rows, at_rows = loads(count), loads_first(count), loads(count)
    store_rows, store_edge = stores_whole(count), stores_first(count)
    along, zeros, of_rows = terms_along(1, count), broadcasts(count), folded if count == 4 else same

    @inlined
    def write(f, row, terms, sums, bias_sums, like):
        dy, x, out = data_at(f.first, like), data_at(f.second, like), data_at(f.out, like)
        i, k, o = row * f.first_row, row * f.second_row, row * f.out_row
        i_apart, k_apart, o_apart = f.first_row, f.second_row, f.out_row
        weight, columns = values_at(f.weight, like), f.length
        step, zero = lanes_of(terms), zeros(terms, 0.0)
        vectors = count * step
        center, rstd = at_rows(terms, 0, step), at_rows(terms, vectors, step)
        shift = at_rows(terms, 2 * vectors, step)
        slope, offset = at_rows(terms, 3 * vectors, step), at_rows(terms, 4 * vectors, step)
        head = min(to_boundary(out, o), columns) if f.aligned != 0 else 0
        j = 0
        while j < columns:
            number = head if j < head else columns - j
            if number >= step:
                for r in range(AHEAD, AHEAD + count):
                    fetch(dy, i + j + r * i_apart)
                    fetch(x, k + j + r * k_apart)
                g, d = whole_rows(dy, i + j, i_apart), whole_rows(x, k + j, k_apart)
                w, number = along(weight, 0, j, step, x)[0], step
            else:
                g = edge_rows(dy, i + j, i_apart, number, 0, zero)
                d = edge_rows(x, k + j, k_apart, number, 0, center)
                w = along(weight, 0, j, number, x)[0]
            x_hat = normalize(d, center, rstd, shift)
            dx = input_gradient(g * w, d, center, rstd, slope, offset)
            if number == step:
                store_rows(out, o + j, o_apart, dx)
            else:
                store_edge(out, o + j, o_apart, number, dx)
            store(sums, j, 0, load(sums, j, 0) + of_rows(g * x_hat))
            store(bias_sums, j, 0, load(bias_sums, j, 0) + of_rows(g))
            j += number

    return write


@inlined
def empty_sums(columns, sums, of_columns):
    """Add both sums of columns in x's precision to those of float64, and begin anew."""
    for c in range(2 * columns):
        of_columns[c] += np.float64(sums[c])
        sums[c] = 0.0


def gradient_part(name, stores_whole=stores):
    """The part of gradients: that of x in the rows of a task, what they add to the others."""
    terms_of_four, terms_of_one = row_terms_of(4), row_terms_of(1)
    write_four, write_one = row_gradients_of(4, stores_whole), row_gradients_of(1, stores_whole)
    terms_at, streaming = memory(5 * 4 * LANES), stores_whole is stores_streaming

    @inner
    def gradient_of_one(f, row, terms, totals, sums, bias_sums, like):
        """Gradients of one row; how many rows are left."""
        if not terms_of_one(f, row, terms, totals, like):
            doubles_at(f.left, like)[row] = 1.0
            return 1
        write_one(f, row, terms, sums, bias_sums, like)
        return 0

    @part(name)
    def gradient(frame, task, like):
        f = frame_at(frame)
        columns, terms = f.columns, terms_at(like)
        totals = doubles_at(f.row_sums + ROW_SUMS_BYTES * task, like)
        of_columns = doubles_at(f.wide_column_sums + 2 * task * columns * 8, like)
        at = f.column_sums + 2 * task * columns * f.value_bytes
        sums, bias_sums = values_at(at, like), values_at(at + columns * f.value_bytes, like)
        for c in range(2 * columns):
            of_columns[c] = sums[c] = 0.0
        begin = task * f.task_size
        end = min(begin + f.task_size, f.rows)
        fours, added, left = begin + (end - begin) // 4 * 4, 0, 0
        for row in range(begin, fours, 4):
            if terms_of_four(f, row, terms, totals, like):
                write_four(f, row, terms, sums, bias_sums, like)
                added += 1
            else:
                for one in range(row, row + 4):
                    left += gradient_of_one(f, one, terms, totals, sums, bias_sums, like)
                added += 4
            if added >= CHAIN:
                empty_sums(columns, sums, of_columns)
                added = 0
        for row in range(fours, end):
            left += gradient_of_one(f, row, terms, totals, sums, bias_sums, like)
        empty_sums(columns, sums, of_columns)
        doubles_at(f.rows_left, like)[task] = left
        if streaming:
            fence()

    return gradient


@cache
def gradient_part_of(streaming=False):
    """The part of gradients; if ``streaming``, one that stores past the caches."""
    if streaming:
        return gradient_part("row_gradient_streaming", stores_streaming)
    return gradient_part("row_gradient")


@part("row_gradient_sums")
def gradient_sums(frame, task, like):
    """Gradients of weight and bias: the tasks' parts, in order. And whether rows are left."""
    f = frame_at(frame)
    d_weight, d_bias = doubles_at(f.d_weight, like), doubles_at(f.d_bias, like)
    for c in range(f.length):
        d_weight[c] = d_bias[c] = 0.0
    for of_task in range(f.reduce_tasks):
        of_weight, of_bias = two_rows(
            f.wide_column_sums + 2 * of_task * f.columns * 8, 8 * f.columns, like
        )
        for c in range(f.length):
            d_weight[c] += of_weight[c]
            d_bias[c] += of_bias[c]
    count_left(f, like)
