"""Channels-last, innermost: vectors along lines. Each column of a line is a channel of its own.

Four lines at a time, as `cpu_groups` says.
"""

import numpy as np

from fastbn.kernels.compile import inlined, inner
from fastbn.kernels.cpu_groups import line_of, lines_of
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
    store,
    store_first,
)

# --- sums -----------------------------------------------------------------------------------


@inlined
def sum_of_products(zero, a0, b0, a1, b1, a2, b2, a3, b3):
    """Of four pairs; from ``zero`` on, so that there is one way alone to fuse * and +."""
    return ((zero + a0 * b0) + a1 * b1) + ((zero + a2 * b2) + a3 * b3)


@inlined
def sum_of_squares(zero, d0, d1, d2, d3):
    """`sum_of_products` of each with itself."""
    return sum_of_products(zero, d0, d0, d1, d1, d2, d2, d3, d3)


@inner
def add_four_lines(x, i, apart, shift, sums, squares):
    """`add_line` of four lines."""
    step, zero, width = lanes(x), broadcast(x, 0.0), shift.size
    x, shift, sums, squares = pointer(x), pointer(shift), pointer(sums), pointer(squares)
    i1, i2, i3 = i + apart, i + 2 * apart, i + 3 * apart
    j = 0
    while j + step <= width:
        c = load(shift, j)
        d0, d1 = load(x, i + j) - c, load(x, i1 + j) - c
        d2, d3 = load(x, i2 + j) - c, load(x, i3 + j) - c
        store(sums, j, load(sums, j) + ((d0 + d1) + (d2 + d3)))
        store(squares, j, load(squares, j) + sum_of_squares(zero, d0, d1, d2, d3))
        j += step
    if j < width:
        n = width - j
        c = load_first(shift, j, n, zero)
        d0, d1 = load_first(x, i + j, n, c) - c, load_first(x, i1 + j, n, c) - c
        d2, d3 = load_first(x, i2 + j, n, c) - c, load_first(x, i3 + j, n, c) - c
        s, q = (d0 + d1) + (d2 + d3), sum_of_squares(zero, d0, d1, d2, d3)
        store_first(sums, j, n, load_first(sums, j, n, zero) + s)
        store_first(squares, j, n, load_first(squares, j, n, zero) + q)


@inner
def add_line(x, i, shift, sums, squares):
    """Add ``d`` and ``d * d``, ``d = x - shift``, for each column of a line."""
    step, zero, width = lanes(x), broadcast(x, 0.0), shift.size
    x, shift, sums, squares = pointer(x), pointer(shift), pointer(sums), pointer(squares)
    for j in range(0, width, step):
        n = width - j
        c = load_first(shift, j, n, zero)
        d = load_first(x, i + j, n, c) - c
        store_first(sums, j, n, load_first(sums, j, n, zero) + d)
        store_first(squares, j, n, load_first(squares, j, n, zero) + d * d)


@inner
def add_column_sums(x, start, stride, block, shift, sums, squares):
    """Add sums of ``d`` and ``d * d``, ``d = x - shift``, for each column."""
    first, fours, quarter, single, singles = block
    for line in range(first, first + fours):
        add_four_lines(x, start + line * stride, quarter * stride, shift, sums, squares)
    for line in range(single, single + singles):
        add_line(x, start + line * stride, shift, sums, squares)


@inner
def scaled_column_sums(x, start, stride, block, shift, j, unit, sums, squares):
    """Sums of ``(x - shift) * unit`` and its square for columns of one vector, from ``j`` on."""
    step = lanes(x)
    n = min(step, shift.size - j)
    s = q = zero = broadcast(x, 0.0)
    down, up = broadcast(x, min(unit, 1.0)), broadcast(x, max(unit, 1.0))
    center = load_first(shift, j, n, zero)
    for k in range(lines_of(block)):
        value = load_first(x, start + line_of(k, block) * stride + j, n, center)
        d = scaled_difference(value, center, down, up)
        s, q = s + d, q + d * d
    store_first(sums, 0, n, s)
    store_first(squares, 0, n, q)


@inner
def rescue_sums(x, start, stride, block, shift, sums, squares):
    """Take again, in other units, the sums of columns that float32 could not hold."""
    step = lanes(x)
    s, q = np.empty(step, x.dtype), np.empty(step, x.dtype)
    for j in range(0, shift.size, step):
        end = min(j + step, shift.size)
        for unit in (UP, DOWN):
            wanted = False
            for c in range(j, end):
                wanted |= out_of_range(squares[c]) and better_unit(squares[c]) == unit
            if not wanted:
                continue
            scaled_column_sums(x, start, stride, block, shift, j, unit, s, q)
            for c in range(j, end):
                if out_of_range(squares[c]) and better_unit(squares[c]) == unit:
                    sums[c] = np.float64(s[c - j]) / unit
                    squares[c] = np.float64(q[c - j]) / (unit * unit)


@inner
def block_sums(x, start, stride, block, row, shift, sums, squares):
    """Sums of ``d`` and ``d * d``, ``d = x - shift``, for each column, in x's precision.

    Once more in other units where that could not hold them.
    """
    own_sums = np.zeros((2, shift.size), x.dtype)
    add_column_sums(x, start, stride, block, shift, own_sums[0], own_sums[1])
    lost = 0
    for c in range(shift.size):
        sums[c], squares[c] = own_sums[0, c], own_sums[1, c]
        lost += out_of_range(squares[c])
    if narrow(x) and lost > 0:
        rescue_sums(x, start, stride, block, shift, sums, squares)


@inner
def add_four_products(dy, i, dy_apart, x, k, x_apart, shift, sums, products):
    """`add_products` of four lines."""
    step, zero, width = lanes(x), broadcast(x, 0.0), shift.size
    dy, x, shift = pointer(dy), pointer(x), pointer(shift)
    sums, products = pointer(sums), pointer(products)
    i1, i2, i3 = i + dy_apart, i + 2 * dy_apart, i + 3 * dy_apart
    k1, k2, k3 = k + x_apart, k + 2 * x_apart, k + 3 * x_apart
    j = 0
    while j + step <= width:
        c = load(shift, j)
        g0, g1, g2, g3 = load(dy, i + j), load(dy, i1 + j), load(dy, i2 + j), load(dy, i3 + j)
        d0, d1 = load(x, k + j) - c, load(x, k1 + j) - c
        d2, d3 = load(x, k2 + j) - c, load(x, k3 + j) - c
        store(sums, j, load(sums, j) + ((g0 + g1) + (g2 + g3)))
        store(
            products, j, load(products, j) + sum_of_products(zero, g0, d0, g1, d1, g2, d2, g3, d3)
        )
        j += step
    if j < width:
        n = width - j
        c = load_first(shift, j, n, zero)
        g0, g1 = load_first(dy, i + j, n, zero), load_first(dy, i1 + j, n, zero)
        g2, g3 = load_first(dy, i2 + j, n, zero), load_first(dy, i3 + j, n, zero)
        d0, d1 = load_first(x, k + j, n, c) - c, load_first(x, k1 + j, n, c) - c
        d2, d3 = load_first(x, k2 + j, n, c) - c, load_first(x, k3 + j, n, c) - c
        s, p = (g0 + g1) + (g2 + g3), sum_of_products(zero, g0, d0, g1, d1, g2, d2, g3, d3)
        store_first(sums, j, n, load_first(sums, j, n, zero) + s)
        store_first(products, j, n, load_first(products, j, n, zero) + p)


@inner
def add_products(dy, i, x, k, shift, sums, products):
    """Add ``dy`` and ``dy * (x - shift)`` for each column of a line."""
    step, zero, width = lanes(x), broadcast(x, 0.0), shift.size
    dy, x, shift = pointer(dy), pointer(x), pointer(shift)
    sums, products = pointer(sums), pointer(products)
    for j in range(0, width, step):
        n = width - j
        c, g = load_first(shift, j, n, zero), load_first(dy, i + j, n, zero)
        p = g * (load_first(x, k + j, n, c) - c)
        store_first(sums, j, n, load_first(sums, j, n, zero) + g)
        store_first(products, j, n, load_first(products, j, n, zero) + p)


@inner
def add_column_products(dy, i, dy_stride, x, k, x_stride, block, shift, sums, products):
    """Add sums of ``dy`` and ``dy * (x - shift)`` for each column."""
    first, fours, quarter, single, singles = block
    for line in range(first, first + fours):
        add_four_products(
            dy, i + line * dy_stride, quarter * dy_stride,
            x, k + line * x_stride, quarter * x_stride, shift, sums, products,
        )  # fmt: skip
    for line in range(single, single + singles):
        add_products(dy, i + line * dy_stride, x, k + line * x_stride, shift, sums, products)


@inner
def block_products(dy, i, dy_stride, x, k, x_stride, block, row, shift, sums, products):
    """Sums of ``dy`` and ``dy * (x - shift)`` for each column, in x's precision."""
    own_sums = np.zeros((2, shift.size), x.dtype)
    add_column_products(dy, i, dy_stride, x, k, x_stride, block, shift, own_sums[0], own_sums[1])
    for c in range(shift.size):
        sums[c], products[c] = own_sums[0, c], own_sums[1, c]
