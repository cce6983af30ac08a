"""Channels-last, innermost: vectors along lines. Each column of a line is a channel of its own."""

import numpy as np

from fastbn.kernels import cpu_formulas as formulas
from fastbn.kernels.compile import inner
from fastbn.kernels.cpu_last_cut import CHAIN
from fastbn.kernels.cpu_range import (
    DOWN,
    UP,
    better_unit,
    narrow,
    out_of_range,
    scaled_difference,
)
from fastbn.kernels.vector import broadcast, lanes, load, load_first, store, store_first


@inner
def block_sums(x, start, lines, stride, shift, sums, squares):
    """Sums of ``d`` and ``d * d``, ``d = x - shift``, for each column.

    In two steps, so that no sum goes through more than `CHAIN` additions in each.
    """
    step = lanes(x)
    zero = broadcast(x, 0.0)
    width = shift.size
    j = 0
    while j + 4 * step <= width:
        c0, c1 = load(shift, j), load(shift, j + step)
        c2, c3 = load(shift, j + 2 * step), load(shift, j + 3 * step)
        s0 = s1 = s2 = s3 = q0 = q1 = q2 = q3 = zero
        for first in range(0, lines, CHAIN):
            t0 = t1 = t2 = t3 = r0 = r1 = r2 = r3 = zero
            for line in range(first, min(first + CHAIN, lines)):
                i = start + line * stride + j
                d0 = load(x, i) - c0
                d1 = load(x, i + step) - c1
                d2 = load(x, i + 2 * step) - c2
                d3 = load(x, i + 3 * step) - c3
                t0, r0 = t0 + d0, r0 + d0 * d0
                t1, r1 = t1 + d1, r1 + d1 * d1
                t2, r2 = t2 + d2, r2 + d2 * d2
                t3, r3 = t3 + d3, r3 + d3 * d3
            s0, s1, s2, s3 = s0 + t0, s1 + t1, s2 + t2, s3 + t3
            q0, q1, q2, q3 = q0 + r0, q1 + r1, q2 + r2, q3 + r3
        store(sums, j, s0)
        store(sums, j + step, s1)
        store(sums, j + 2 * step, s2)
        store(sums, j + 3 * step, s3)
        store(squares, j, q0)
        store(squares, j + step, q1)
        store(squares, j + 2 * step, q2)
        store(squares, j + 3 * step, q3)
        j += 4 * step
    while j < width:
        n = min(step, width - j)
        c0 = load_first(shift, j, n, zero)
        s0 = q0 = zero
        for first in range(0, lines, CHAIN):
            t0 = r0 = zero
            for line in range(first, min(first + CHAIN, lines)):
                d0 = load_first(x, start + line * stride + j, n, c0) - c0
                t0, r0 = t0 + d0, r0 + d0 * d0
            s0, q0 = s0 + t0, q0 + r0
        store_first(sums, j, n, s0)
        store_first(squares, j, n, q0)
        j += step


@inner
def scaled_block_sums(x, start, lines, stride, shift, j, unit, sums, squares):
    """`block_sums` of ``(x - shift) * unit`` for the columns of one vector from ``j`` on."""
    step = lanes(x)
    n = min(step, shift.size - j)
    s = q = zero = broadcast(x, 0.0)
    down, up = broadcast(x, min(unit, 1.0)), broadcast(x, max(unit, 1.0))
    center = load_first(shift, j, n, zero)
    for first in range(0, lines, CHAIN):
        t = r = zero
        for line in range(first, min(first + CHAIN, lines)):
            value = load_first(x, start + line * stride + j, n, center)
            d = scaled_difference(value, center, down, up)
            t, r = t + d, r + d * d
        s, q = s + t, q + r
    store_first(sums, 0, n, s)
    store_first(squares, 0, n, q)


@inner
def rescue_sums(x, start, lines, stride, shift, sums, squares):
    """Take again, in other units, the sums of columns that float32 could not hold."""
    step = lanes(x)
    s = np.empty(step, x.dtype)
    q = np.empty(step, x.dtype)
    for j in range(0, shift.size, step):
        end = min(j + step, shift.size)
        for unit in (UP, DOWN):
            wanted = False
            for c in range(j, end):
                wanted |= out_of_range(squares[c]) and better_unit(squares[c]) == unit
            if not wanted:
                continue
            scaled_block_sums(x, start, lines, stride, shift, j, unit, s, q)
            for c in range(j, end):
                if out_of_range(squares[c]) and better_unit(squares[c]) == unit:
                    sums[c] = np.float64(s[c - j]) / unit
                    squares[c] = np.float64(q[c - j]) / (unit * unit)


@inner
def safe_block_sums(x, start, lines, stride, shift, narrow_sums, narrow_squares, sums, squares):
    """`block_sums` as float64, once more in other units where x's dtype could not hold them."""
    block_sums(x, start, lines, stride, shift, narrow_sums, narrow_squares)
    lost = False
    for c in range(shift.size):
        sums[c] = narrow_sums[c]
        squares[c] = narrow_squares[c]
        lost |= out_of_range(squares[c])
    if narrow(x) and lost:
        rescue_sums(x, start, lines, stride, shift, sums, squares)


@inner
def wide_column_products(dy, i, dy_stride, x, k, x_stride, lines, shift):
    """Sums of ``dy`` and ``dy * (x - shift)`` of one column, in float64."""
    s = p = 0.0
    for line in range(lines):
        g = np.float64(dy[i + line * dy_stride])
        s += g
        p += g * (np.float64(x[k + line * x_stride]) - shift)
    return s, p


@inner
def block_products(dy, dy_start, dy_stride, x, x_start, x_stride, lines, shift, sums, products):
    """Sums of ``dy`` and ``dy * (x - shift)`` for each column, in two steps as `block_sums`."""
    step = lanes(x)
    zero = broadcast(x, 0.0)
    width = shift.size
    j = 0
    while j + 2 * step <= width:
        c0, c1 = load(shift, j), load(shift, j + step)
        s0 = s1 = p0 = p1 = zero
        for first in range(0, lines, CHAIN):
            t0 = t1 = r0 = r1 = zero
            for line in range(first, min(first + CHAIN, lines)):
                i = dy_start + line * dy_stride + j
                k = x_start + line * x_stride + j
                g0 = load(dy, i)
                g1 = load(dy, i + step)
                t0, r0 = t0 + g0, r0 + g0 * (load(x, k) - c0)
                t1, r1 = t1 + g1, r1 + g1 * (load(x, k + step) - c1)
            s0, s1, p0, p1 = s0 + t0, s1 + t1, p0 + r0, p1 + r1
        store(sums, j, s0)
        store(sums, j + step, s1)
        store(products, j, p0)
        store(products, j + step, p1)
        j += 2 * step
    while j < width:
        n = min(step, width - j)
        c0 = load_first(shift, j, n, zero)
        s0 = p0 = zero
        for first in range(0, lines, CHAIN):
            t0 = r0 = zero
            for line in range(first, min(first + CHAIN, lines)):
                g0 = load_first(dy, dy_start + line * dy_stride + j, n, zero)
                value = load_first(x, x_start + line * x_stride + j, n, c0)
                t0, r0 = t0 + g0, r0 + g0 * (value - c0)
            s0, p0 = s0 + t0, p0 + r0
        store_first(sums, j, n, s0)
        store_first(products, j, n, p0)
        j += step


@inner
def load_scaled(x, i, j, n, center, down, up):
    """``(x - center) * unit`` of ``n`` columns from ``j`` on."""
    zero = broadcast(x, 0.0)
    c = load_first(center, j, n, zero)
    d, u = load_first(down, j, n, zero), load_first(up, j, n, zero)
    return scaled_difference(load_first(x, i + j, n, c), c, d, u)


@inner
def scaled_normalize_line(x, i, out, k, width, table):
    """`normalize_line` where some columns have a unit."""
    step = lanes(x)
    zero = broadcast(x, 0.0)
    j = 0
    while j < width:
        n = min(step, width - j)
        a, b = load_first(table[1], j, n, zero), load_first(table[2], j, n, zero)
        d = load_scaled(x, i, j, n, table[0], table[3], table[4])
        store_first(out, k + j, n, formulas.normalize(d, zero, a, b))
        j += step


@inner
def normalize_line(x, i, out, k, width, table, plain):
    """One line; the rows of ``table`` are center, scale, shift and both parts of the unit.

    ``plain``: every unit is 1.
    """
    if not plain:
        scaled_normalize_line(x, i, out, k, width, table)
        return
    step = lanes(x)
    center, scale, shift = table[0], table[1], table[2]
    j = 0
    while j + step <= width:
        c, a, b = load(center, j), load(scale, j), load(shift, j)
        store(out, k + j, formulas.normalize(load(x, i + j), c, a, b))
        j += step
    if j < width:
        n = width - j
        zero = broadcast(x, 0.0)
        c = load_first(center, j, n, zero)
        a = load_first(scale, j, n, zero)
        b = load_first(shift, j, n, zero)
        store_first(out, k + j, n, formulas.normalize(load_first(x, i + j, n, c), c, a, b))


@inner
def scaled_input_gradient_line(dy, i, x, k, dx, m, width, table):
    """`input_gradient_line` where some columns have a unit."""
    step = lanes(x)
    zero = broadcast(x, 0.0)
    j = 0
    while j < width:
        n = min(step, width - j)
        a, b = load_first(table[1], j, n, zero), load_first(table[2], j, n, zero)
        e, g = load_first(table[3], j, n, zero), load_first(dy, i + j, n, zero)
        d = load_scaled(x, k, j, n, table[0], table[4], table[5])
        store_first(dx, m + j, n, formulas.input_gradient(g, d, zero, a, b, e))
        j += step


@inner
def input_gradient_line(dy, i, x, k, dx, m, width, table):
    step = lanes(x)
    center, scale, slope, offset = table[0], table[1], table[2], table[3]
    j = 0
    while j + step <= width:
        c, a, b, d = load(center, j), load(scale, j), load(slope, j), load(offset, j)
        store(dx, m + j, formulas.input_gradient(load(dy, i + j), load(x, k + j), c, a, b, d))
        j += step
    if j < width:
        n = width - j
        zero = broadcast(x, 0.0)
        c = load_first(center, j, n, zero)
        a = load_first(scale, j, n, zero)
        b = load_first(slope, j, n, zero)
        d = load_first(offset, j, n, zero)
        g = load_first(dy, i + j, n, zero)
        v = load_first(x, k + j, n, c)
        store_first(dx, m + j, n, formulas.input_gradient(g, v, c, a, b, d))


@inner
def scale_line(dy, i, dx, m, width, table):
    """``dx = dy * scale``, the second row of ``table``: x is a constant of the statistics."""
    step = lanes(dy)
    zero = broadcast(dy, 0.0)
    scale = table[1]
    j = 0
    while j < width:
        n = min(step, width - j)
        a = load_first(scale, j, n, zero)
        store_first(dx, m + j, n, load_first(dy, i + j, n, zero) * a)
        j += step


@inner
def gradient_line(dy, i, x, k, dx, m, width, table, plain, batch_statistics):
    """One line; the rows of ``table`` are center, scale, slope, offset, and parts of the unit.

    ``plain``: every unit is 1.
    """
    if not batch_statistics:
        scale_line(dy, i, dx, m, width, table)
    elif plain:
        input_gradient_line(dy, i, x, k, dx, m, width, table)
    else:
        scaled_input_gradient_line(dy, i, x, k, dx, m, width, table)
