"""Channels-last, innermost: vectors along lines. Each column of a line is a channel of its own.

A few lines are gone through column by column: what belongs to a column stays in registers,
and memory is still read nearly in its order.
"""

import numpy as np

from fastbn.kernels import cpu_formulas as formulas
from fastbn.kernels.compile import inlined, inner
from fastbn.kernels.cpu_last_cut import NEAR
from fastbn.kernels.cpu_range import (
    DOWN,
    UP,
    better_unit,
    narrow,
    out_of_range,
    scaled_difference,
)
from fastbn.kernels.vector import (
    broadcast,
    lanes,
    load,
    load_first,
    pointer,
    prefetch,
    store,
    store_first,
    store_streaming,
)


@inlined
def ahead_of(stride, j):
    """From the first of `NEAR` lines to what to prefetch while its column ``j`` is at work.

    In the order of memory, two steps ahead: the processor's own prefetcher gives up on
    several lines in turn, and then memory is read at a third of its speed.
    """
    return NEAR * (2 * stride + j)


# --- sums -----------------------------------------------------------------------------------


@inner
def add_column_sums(x, start, lines, stride, shift, sums, squares):
    """Add sums of ``d`` and ``d * d``, ``d = x - shift``, for each column, `NEAR` lines at a time.

    So no sum goes through more than `NEAR` additions, and then one for each of these.
    """
    step, zero, width = lanes(x), broadcast(x, 0.0), shift.size
    x, shift, sums, squares = pointer(x), pointer(shift), pointer(sums), pointer(squares)
    for first in range(0, lines, NEAR):
        near = min(NEAR, lines - first)
        i = start + first * stride
        j = 0
        while j + 2 * step <= width:
            n = j + step
            c0, c1 = load(shift, j), load(shift, n)
            s0 = s1 = q0 = q1 = zero
            ahead = i + ahead_of(stride, j)
            for line in range(near):
                prefetch(x, ahead + 2 * line * step)
                prefetch(x, ahead + (2 * line + 1) * step)
                d0 = load(x, i + line * stride + j) - c0
                d1 = load(x, i + line * stride + n) - c1
                s0, q0 = s0 + d0, q0 + d0 * d0
                s1, q1 = s1 + d1, q1 + d1 * d1
            store(sums, j, load(sums, j) + s0)
            store(sums, n, load(sums, n) + s1)
            store(squares, j, load(squares, j) + q0)
            store(squares, n, load(squares, n) + q1)
            j += 2 * step
        while j < width:
            n = min(step, width - j)
            c0 = load_first(shift, j, n, zero)
            s0 = q0 = zero
            for line in range(near):
                d0 = load_first(x, i + line * stride + j, n, c0) - c0
                s0, q0 = s0 + d0, q0 + d0 * d0
            store_first(sums, j, n, load_first(sums, j, n, zero) + s0)
            store_first(squares, j, n, load_first(squares, j, n, zero) + q0)
            j += step


@inner
def scaled_column_sums(x, start, lines, stride, shift, j, unit, sums, squares):
    """Sums of ``(x - shift) * unit`` and its square for columns of one vector, from ``j`` on."""
    step = lanes(x)
    n = min(step, shift.size - j)
    s = q = zero = broadcast(x, 0.0)
    down, up = broadcast(x, min(unit, 1.0)), broadcast(x, max(unit, 1.0))
    center = load_first(shift, j, n, zero)
    for line in range(lines):
        value = load_first(x, start + line * stride + j, n, center)
        d = scaled_difference(value, center, down, up)
        s, q = s + d, q + d * d
    store_first(sums, 0, n, s)
    store_first(squares, 0, n, q)


@inner
def rescue_sums(x, start, lines, stride, shift, sums, squares):
    """Take again, in other units, the sums of columns that float32 could not hold."""
    step = lanes(x)
    s, q = np.empty(step), np.empty(step)
    for j in range(0, shift.size, step):
        end = min(j + step, shift.size)
        for unit in (UP, DOWN):
            wanted = False
            for c in range(j, end):
                wanted |= out_of_range(squares[c]) and better_unit(squares[c]) == unit
            if not wanted:
                continue
            scaled_column_sums(x, start, lines, stride, shift, j, unit, s, q)
            for c in range(j, end):
                if out_of_range(squares[c]) and better_unit(squares[c]) == unit:
                    sums[c] = s[c - j] / unit
                    squares[c] = q[c - j] / (unit * unit)


@inner
def block_sums(x, start, lines, stride, row, shift, sums, squares):
    """Sums of ``d`` and ``d * d``, ``d = x - shift``, for each column, in x's precision.

    Once more in other units where that could not hold them.
    """
    narrow_sums = np.zeros((2, shift.size), x.dtype)
    add_column_sums(x, start, lines, stride, shift, narrow_sums[0], narrow_sums[1])
    lost = 0
    for c in range(shift.size):
        sums[c], squares[c] = narrow_sums[0, c], narrow_sums[1, c]
        lost += out_of_range(squares[c])
    if narrow(x) and lost > 0:
        rescue_sums(x, start, lines, stride, shift, sums, squares)


@inner
def add_column_products(dy, i, dy_stride, x, k, x_stride, lines, shift, sums, products):
    """Add sums of ``dy`` and ``dy * (x - shift)`` for each column, as `add_column_sums`."""
    step, zero, width = lanes(x), broadcast(x, 0.0), shift.size
    dy, x, shift = pointer(dy), pointer(x), pointer(shift)
    sums, products = pointer(sums), pointer(products)
    for first in range(0, lines, NEAR):
        near = min(NEAR, lines - first)
        p, q = i + first * dy_stride, k + first * x_stride
        j = 0
        while j + 2 * step <= width:
            n = j + step
            c0, c1 = load(shift, j), load(shift, n)
            s0 = s1 = p0 = p1 = zero
            ahead, x_ahead = p + ahead_of(dy_stride, j), q + ahead_of(x_stride, j)
            for line in range(near):
                prefetch(dy, ahead + 2 * line * step)
                prefetch(dy, ahead + (2 * line + 1) * step)
                prefetch(x, x_ahead + 2 * line * step)
                prefetch(x, x_ahead + (2 * line + 1) * step)
                g0 = load(dy, p + line * dy_stride + j)
                g1 = load(dy, p + line * dy_stride + n)
                s0, p0 = s0 + g0, p0 + g0 * (load(x, q + line * x_stride + j) - c0)
                s1, p1 = s1 + g1, p1 + g1 * (load(x, q + line * x_stride + n) - c1)
            store(sums, j, load(sums, j) + s0)
            store(sums, n, load(sums, n) + s1)
            store(products, j, load(products, j) + p0)
            store(products, n, load(products, n) + p1)
            j += 2 * step
        while j < width:
            n = min(step, width - j)
            c0 = load_first(shift, j, n, zero)
            s0 = p0 = zero
            for line in range(near):
                g0 = load_first(dy, p + line * dy_stride + j, n, zero)
                value = load_first(x, q + line * x_stride + j, n, c0)
                s0, p0 = s0 + g0, p0 + g0 * (value - c0)
            store_first(sums, j, n, load_first(sums, j, n, zero) + s0)
            store_first(products, j, n, load_first(products, j, n, zero) + p0)
            j += step


@inner
def block_products(dy, i, dy_stride, x, k, x_stride, lines, row, shift, sums, products):
    """Sums of ``dy`` and ``dy * (x - shift)`` for each column, in x's precision."""
    narrow_sums = np.zeros((2, shift.size), x.dtype)
    add_column_products(
        dy, i, dy_stride, x, k, x_stride, lines, shift, narrow_sums[0], narrow_sums[1]
    )
    for c in range(shift.size):
        sums[c], products[c] = narrow_sums[0, c], narrow_sums[1, c]


# --- elementwise, by pointers (see `vector`) ----------------------------------------------------
# ``terms`` are (pointer, distance of its rows, first column): a table with a row for each kind
# of term and a column for each column of a line.


def normalize_lines_with(put, far):
    """Make `normalize_lines`; ``put`` stores a whole vector, ``far``: x comes from memory."""

    @inner
    def normalize_lines(x, i, x_stride, out, k, out_stride, lines, width, terms):
        """Some lines; the rows of terms are center, scale and shift."""
        step, zero = lanes(x), broadcast(x, 0.0)
        table, columns, center = terms
        scale, shift = center + columns, center + 2 * columns
        j = 0
        while j + 4 * step <= width:
            c0, a0, b0 = load(table, center + j), load(table, scale + j), load(table, shift + j)
            n = j + step
            c1, a1, b1 = load(table, center + n), load(table, scale + n), load(table, shift + n)
            n += step
            c2, a2, b2 = load(table, center + n), load(table, scale + n), load(table, shift + n)
            n += step
            c3, a3, b3 = load(table, center + n), load(table, scale + n), load(table, shift + n)
            ahead = i + ahead_of(x_stride, j)
            for line in range(lines):
                if far:
                    prefetch(x, ahead + 4 * line * step)
                    prefetch(x, ahead + (4 * line + 1) * step)
                    prefetch(x, ahead + (4 * line + 2) * step)
                    prefetch(x, ahead + (4 * line + 3) * step)
                p, q = i + line * x_stride + j, k + line * out_stride + j
                put(out, q, formulas.normalize(load(x, p), c0, a0, b0))
                put(out, q + step, formulas.normalize(load(x, p + step), c1, a1, b1))
                put(out, q + 2 * step, formulas.normalize(load(x, p + 2 * step), c2, a2, b2))
                put(out, q + 3 * step, formulas.normalize(load(x, p + 3 * step), c3, a3, b3))
            j += 4 * step
        while j + step <= width:
            c, a, b = load(table, center + j), load(table, scale + j), load(table, shift + j)
            for line in range(lines):
                p, q = i + line * x_stride + j, k + line * out_stride + j
                put(out, q, formulas.normalize(load(x, p), c, a, b))
            j += step
        if j < width:
            n = width - j
            c = load_first(table, center + j, n, zero)
            a = load_first(table, scale + j, n, zero)
            b = load_first(table, shift + j, n, zero)
            for line in range(lines):
                p, q = i + line * x_stride + j, k + line * out_stride + j
                store_first(out, q, n, formulas.normalize(load_first(x, p, n, c), c, a, b))

    return normalize_lines


def gradient_lines_with(put, far):
    """Make `gradient_lines`; ``put`` stores a whole vector, ``far``: x comes from memory."""

    @inner
    def gradient_lines(dy, i, dy_stride, x, k, x_stride, dx, m, dx_stride, lines, width, terms):
        """Some lines; the rows of terms are center, scale, slope and offset."""
        step, zero = lanes(x), broadcast(x, 0.0)
        table, columns, center = terms
        scale, slope, offset = center + columns, center + 2 * columns, center + 3 * columns
        j = 0
        while j + 2 * step <= width:
            n = j + step
            c0, c1 = load(table, center + j), load(table, center + n)
            a0, a1 = load(table, scale + j), load(table, scale + n)
            b0, b1 = load(table, slope + j), load(table, slope + n)
            e0, e1 = load(table, offset + j), load(table, offset + n)
            ahead, x_ahead = i + ahead_of(dy_stride, j), k + ahead_of(x_stride, j)
            for line in range(lines):
                if far:
                    prefetch(dy, ahead + 2 * line * step)
                    prefetch(dy, ahead + (2 * line + 1) * step)
                    prefetch(x, x_ahead + 2 * line * step)
                    prefetch(x, x_ahead + (2 * line + 1) * step)
                p, q = i + line * dy_stride + j, k + line * x_stride + j
                r = m + line * dx_stride + j
                g0, g1 = load(dy, p), load(dy, p + step)
                v0, v1 = load(x, q), load(x, q + step)
                put(dx, r, formulas.input_gradient(g0, v0, c0, a0, b0, e0))
                put(dx, r + step, formulas.input_gradient(g1, v1, c1, a1, b1, e1))
            j += 2 * step
        while j < width:
            n = min(step, width - j)
            c = load_first(table, center + j, n, zero)
            a = load_first(table, scale + j, n, zero)
            b = load_first(table, slope + j, n, zero)
            e = load_first(table, offset + j, n, zero)
            for line in range(lines):
                g = load_first(dy, i + line * dy_stride + j, n, zero)
                v = load_first(x, k + line * x_stride + j, n, c)
                value = formulas.input_gradient(g, v, c, a, b, e)
                store_first(dx, m + line * dx_stride + j, n, value)
            j += step

    return gradient_lines


# streaming stores are for lines whose vectors are all at multiples of their size
normalize_lines, stream_lines = (
    normalize_lines_with(store, False),
    normalize_lines_with(store_streaming, True),
)
gradient_lines, stream_gradient_lines = (
    gradient_lines_with(store, False),
    gradient_lines_with(store_streaming, True),
)


@inner
def scale_lines(dy, i, dy_stride, dx, m, dx_stride, lines, width, terms):
    """``dx = dy * scale``, the second row of terms: the statistics are constants."""
    step, zero = lanes(dy), broadcast(dy, 0.0)
    table, columns, first = terms
    j = 0
    while j < width:
        n = min(step, width - j)
        a = load_first(table, first + columns + j, n, zero)
        for line in range(lines):
            g = load_first(dy, i + line * dy_stride + j, n, zero)
            store_first(dx, m + line * dx_stride + j, n, g * a)
        j += step


@inner
def load_scaled(x, i, n, table, center, down, up):
    """``(x - center) * unit`` of ``n`` columns, from where their terms are in ``table``."""
    zero = broadcast(x, 0.0)
    c = load_first(table, center, n, zero)
    d, u = load_first(table, down, n, zero), load_first(table, up, n, zero)
    return scaled_difference(load_first(x, i, n, c), c, d, u)


@inner
def scaled_normalize_line(x, i, out, k, width, terms):
    """`normalize_lines` of one line, where some columns have a unit."""
    step, zero = lanes(x), broadcast(x, 0.0)
    table, columns, first = terms
    j = 0
    while j < width:
        n, at = min(step, width - j), first + j
        a = load_first(table, at + columns, n, zero)
        b = load_first(table, at + 2 * columns, n, zero)
        d = load_scaled(x, i + j, n, table, at, at + 3 * columns, at + 4 * columns)
        store_first(out, k + j, n, formulas.normalize(d, zero, a, b))
        j += step


@inner
def scaled_gradient_line(dy, i, x, k, dx, m, width, terms):
    """`gradient_lines` of one line, where some columns have a unit."""
    step, zero = lanes(x), broadcast(x, 0.0)
    table, columns, first = terms
    j = 0
    while j < width:
        n, at = min(step, width - j), first + j
        a = load_first(table, at + columns, n, zero)
        b = load_first(table, at + 2 * columns, n, zero)
        e = load_first(table, at + 3 * columns, n, zero)
        d = load_scaled(x, k + j, n, table, at, at + 4 * columns, at + 5 * columns)
        g = load_first(dy, i + j, n, zero)
        store_first(dx, m + j, n, formulas.input_gradient(g, d, zero, a, b, e))
        j += step
