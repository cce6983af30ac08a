"""Channels-first, innermost: sums along rows. A row is contiguous and has one channel.

Short rows go four at a time, as lines of `cpu_groups`.
"""

import numpy as np

from fastbn.kernels.compile import inlined, inner
from fastbn.kernels.cpu_groups import line_of, lines_of
from fastbn.kernels.cpu_range import (
    better_unit,
    narrow,
    out_of_range,
    scaled_difference,
    wide_products,
)
from fastbn.kernels.vector import (
    broadcast,
    lanes,
    load,
    load_first,
    pointer,
    store,
    total,
)

# --- sums -----------------------------------------------------------------------------------


@inlined
def row_sums(x, i, size, center):
    """Sums of ``d`` and ``d * d``, ``d = x - center``, lane by lane, over a row."""
    step = lanes(x)
    s0 = s1 = s2 = s3 = q0 = q1 = q2 = q3 = broadcast(x, 0.0)
    end = i + size
    while i + 4 * step <= end:
        d0 = load(x, i) - center
        d1 = load(x, i + step) - center
        d2 = load(x, i + 2 * step) - center
        d3 = load(x, i + 3 * step) - center
        s0, q0 = s0 + d0, q0 + d0 * d0
        s1, q1 = s1 + d1, q1 + d1 * d1
        s2, q2 = s2 + d2, q2 + d2 * d2
        s3, q3 = s3 + d3, q3 + d3 * d3
        i += 4 * step
    if i + step <= end:
        d0 = load(x, i) - center
        s0, q0 = s0 + d0, q0 + d0 * d0
        i += step
    if i + step <= end:
        d1 = load(x, i) - center
        s1, q1 = s1 + d1, q1 + d1 * d1
        i += step
    if i + step <= end:
        d2 = load(x, i) - center
        s2, q2 = s2 + d2, q2 + d2 * d2
        i += step
    if i < end:
        d3 = load_first(x, i, end - i, center) - center
        s3, q3 = s3 + d3, q3 + d3 * d3
    return (s0 + s1) + (s2 + s3), (q0 + q1) + (q2 + q3)


@inlined
def four_row_sums(x, i, apart, size, center):
    """`row_sums` of four rows of one channel, ``apart`` from each other."""
    step = lanes(x)
    s0 = s1 = s2 = s3 = q0 = q1 = q2 = q3 = broadcast(x, 0.0)
    j, k, m = i + apart, i + 2 * apart, i + 3 * apart
    n = 0
    while n + step <= size:
        d0, d1 = load(x, i + n) - center, load(x, j + n) - center
        d2, d3 = load(x, k + n) - center, load(x, m + n) - center
        s0, q0 = s0 + d0, q0 + d0 * d0
        s1, q1 = s1 + d1, q1 + d1 * d1
        s2, q2 = s2 + d2, q2 + d2 * d2
        s3, q3 = s3 + d3, q3 + d3 * d3
        n += step
    if n < size:
        rest = size - n
        d0 = load_first(x, i + n, rest, center) - center
        d1 = load_first(x, j + n, rest, center) - center
        d2 = load_first(x, k + n, rest, center) - center
        d3 = load_first(x, m + n, rest, center) - center
        s0, q0 = s0 + d0, q0 + d0 * d0
        s1, q1 = s1 + d1, q1 + d1 * d1
        s2, q2 = s2 + d2, q2 + d2 * d2
        s3, q3 = s3 + d3, q3 + d3 * d3
    return (s0 + s1) + (s2 + s3), (q0 + q1) + (q2 + q3)


@inner
def scaled_row_sums(x, i, size, shift, unit):
    """`row_sums` of ``(x - shift) * unit``, added up, in the units of x again."""
    step = lanes(x)
    center = broadcast(x, shift)
    down, up = broadcast(x, min(unit, 1.0)), broadcast(x, max(unit, 1.0))
    s = q = broadcast(x, 0.0)
    end = i + size
    while i < end:
        d = scaled_difference(load_first(x, i, end - i, center), center, down, up)
        s, q = s + d, q + d * d
        i += step
    return total(s) / unit, total(q) / (unit * unit)


@inlined
def row_products(dy, i, x, j, size, center):
    """Sums of ``dy`` and ``dy * (x - center)``, lane by lane, over a row."""
    step = lanes(x)
    s0 = s1 = s2 = s3 = p0 = p1 = p2 = p3 = zero = broadcast(x, 0.0)
    end = i + size
    while i + 4 * step <= end:
        g0, g1 = load(dy, i), load(dy, i + step)
        g2, g3 = load(dy, i + 2 * step), load(dy, i + 3 * step)
        s0, p0 = s0 + g0, p0 + g0 * (load(x, j) - center)
        s1, p1 = s1 + g1, p1 + g1 * (load(x, j + step) - center)
        s2, p2 = s2 + g2, p2 + g2 * (load(x, j + 2 * step) - center)
        s3, p3 = s3 + g3, p3 + g3 * (load(x, j + 3 * step) - center)
        i += 4 * step
        j += 4 * step
    if i + step <= end:
        g0 = load(dy, i)
        s0, p0 = s0 + g0, p0 + g0 * (load(x, j) - center)
        i += step
        j += step
    if i + step <= end:
        g1 = load(dy, i)
        s1, p1 = s1 + g1, p1 + g1 * (load(x, j) - center)
        i += step
        j += step
    if i + step <= end:
        g2 = load(dy, i)
        s2, p2 = s2 + g2, p2 + g2 * (load(x, j) - center)
        i += step
        j += step
    if i < end:
        g3 = load_first(dy, i, end - i, zero)
        s3, p3 = s3 + g3, p3 + g3 * (load_first(x, j, end - i, center) - center)
    return (s0 + s1) + (s2 + s3), (p0 + p1) + (p2 + p3)


@inlined
def four_row_products(dy, i, dy_apart, x, k, x_apart, size, center):
    """`row_products` of four rows of one channel, which are ``apart`` from each other."""
    step = lanes(x)
    s0 = s1 = s2 = s3 = p0 = p1 = p2 = p3 = zero = broadcast(x, 0.0)
    i1, i2, i3 = i + dy_apart, i + 2 * dy_apart, i + 3 * dy_apart
    k1, k2, k3 = k + x_apart, k + 2 * x_apart, k + 3 * x_apart
    n = 0
    while n + step <= size:
        g0, g1, g2, g3 = load(dy, i + n), load(dy, i1 + n), load(dy, i2 + n), load(dy, i3 + n)
        s0, p0 = s0 + g0, p0 + g0 * (load(x, k + n) - center)
        s1, p1 = s1 + g1, p1 + g1 * (load(x, k1 + n) - center)
        s2, p2 = s2 + g2, p2 + g2 * (load(x, k2 + n) - center)
        s3, p3 = s3 + g3, p3 + g3 * (load(x, k3 + n) - center)
        n += step
    if n < size:
        rest = size - n
        g0, g1 = load_first(dy, i + n, rest, zero), load_first(dy, i1 + n, rest, zero)
        g2, g3 = load_first(dy, i2 + n, rest, zero), load_first(dy, i3 + n, rest, zero)
        s0, p0 = s0 + g0, p0 + g0 * (load_first(x, k + n, rest, center) - center)
        s1, p1 = s1 + g1, p1 + g1 * (load_first(x, k1 + n, rest, center) - center)
        s2, p2 = s2 + g2, p2 + g2 * (load_first(x, k2 + n, rest, center) - center)
        s3, p3 = s3 + g3, p3 + g3 * (load_first(x, k3 + n, rest, center) - center)
    return (s0 + s1) + (s2 + s3), (p0 + p1) + (p2 + p3)


# --- blocks: a part of one long row, or several short rows of a group of channels -------------


@inner
def piece_sums(x, i, size, shift):
    """Sums of ``d`` and ``d * d``, ``d = x - shift``, over a part of a long row."""
    s, q = row_sums(x, i, size, broadcast(x, shift))
    squares = total(q)
    if narrow(x) and out_of_range(squares):
        return scaled_row_sums(x, i, size, shift, better_unit(squares))
    return total(s), squares


@inner
def piece_products(dy, i, x, j, size, shift, unit):
    """Sums of ``dy`` and ``dy * (x - shift)`` over a part of a long row."""
    s, p = row_products(dy, i, x, j, size, broadcast(x, shift))
    sum_dy, sum_dy_xc = total(s), total(p)
    if narrow(x) and not (unit == 1.0 and np.isfinite(sum_dy) and np.isfinite(sum_dy_xc)):
        return wide_products(dy, i, x, j, size, shift)
    return sum_dy, sum_dy_xc


@inlined
def add_vectors(to, c, first, second):
    """Add to the two vectors of channel ``c``."""
    step = lanes(to)
    k = 2 * c * step
    store(to, k, load(to, k) + first)
    store(to, k + step, load(to, k + step) + second)


@inner
def add_row_sums(x, start, stride, block, row, shift, vectors):
    """Add `row_sums` of each channel and row to two vectors for each channel."""
    length, distance = row
    line, fours, quarter, single, singles = block
    data, to = pointer(x), pointer(vectors)
    for n in range(line, line + fours):
        for c in range(shift.size):
            i, center = start + n * stride + c * distance, broadcast(data, shift[c])
            s, q = four_row_sums(data, i, quarter * stride, length, center)
            add_vectors(to, c, s, q)
    for n in range(single, single + singles):
        for c in range(shift.size):
            i, center = start + n * stride + c * distance, broadcast(data, shift[c])
            s, q = row_sums(data, i, length, center)
            add_vectors(to, c, s, q)


@inner
def block_sums(x, start, stride, block, row, shift, sums, squares):
    """Sums of ``d`` and ``d * d``, ``d = x - shift``, of each channel over its short rows."""
    length, distance = row
    step = lanes(x)
    vectors = np.zeros(2 * shift.size * step, x.dtype)
    add_row_sums(x, start, stride, block, row, shift, vectors)
    for c in range(shift.size):
        sums[c] = total(load(vectors, 2 * c * step))
        squares[c] = total(load(vectors, (2 * c + 1) * step))
        if narrow(x) and out_of_range(squares[c]):
            unit = better_unit(squares[c])
            sums[c] = squares[c] = 0.0
            for k in range(lines_of(block)):
                i = start + line_of(k, block) * stride + c * distance
                s, q = scaled_row_sums(x, i, length, shift[c], unit)
                sums[c] += s
                squares[c] += q


@inner
def add_row_products(dy, i, dy_stride, x, j, x_stride, block, row, shift, vectors):
    """Add `row_products` of each channel and row to two vectors for each channel."""
    length, dy_distance, x_distance = row
    line, fours, quarter, single, singles = block
    gradient, data, to = pointer(dy), pointer(x), pointer(vectors)
    for n in range(line, line + fours):
        for c in range(shift.size):
            s, p = four_row_products(
                gradient, i + n * dy_stride + c * dy_distance, quarter * dy_stride,
                data, j + n * x_stride + c * x_distance, quarter * x_stride,
                length, broadcast(data, shift[c]),
            )  # fmt: skip
            add_vectors(to, c, s, p)
    for n in range(single, single + singles):
        for c in range(shift.size):
            s, p = row_products(
                gradient, i + n * dy_stride + c * dy_distance,
                data, j + n * x_stride + c * x_distance, length, broadcast(data, shift[c]),
            )  # fmt: skip
            add_vectors(to, c, s, p)


@inner
def block_products(dy, i, dy_stride, x, j, x_stride, block, row, shift, sums, products):
    """Sums of ``dy`` and ``dy * (x - shift)`` of each channel over its short rows."""
    step = lanes(x)
    vectors = np.zeros(2 * shift.size * step, x.dtype)
    add_row_products(dy, i, dy_stride, x, j, x_stride, block, row, shift, vectors)
    for c in range(shift.size):
        sums[c] = total(load(vectors, 2 * c * step))
        products[c] = total(load(vectors, (2 * c + 1) * step))
