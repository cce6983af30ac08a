"""Channels-first, innermost: vectors along rows. A row is contiguous and has one channel."""

import numpy as np

from fastbn.kernels import cpu_formulas as formulas
from fastbn.kernels.compile import inlined, inner
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
    store_first,
    store_streaming,
    to_boundary,
    total,
)

#: Values from which on a row is worth aligned stores.
ALIGN = 256

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
        return wide_products(dy, i, 0, x, j, 0, 1, size, shift)
    return sum_dy, sum_dy_xc


@inner
def add_row_sums(x, start, rows, stride, row, shift, vectors):
    """Add `row_sums` of each channel and row to two vectors for each channel.

    Sample by sample, as the rows lie in memory.
    """
    length, distance = row
    data, to, step = pointer(x), pointer(vectors), lanes(x)
    for n in range(rows):
        for c in range(shift.size):
            i = start + n * stride + c * distance
            s, q = row_sums(data, i, length, broadcast(data, shift[c]))
            k = 2 * c * step
            store(to, k, load(to, k) + s)
            store(to, k + step, load(to, k + step) + q)


@inner
def block_sums(x, start, rows, stride, row, shift, sums, squares):
    """Sums of ``d`` and ``d * d``, ``d = x - shift``, of each channel over its short rows."""
    length, distance = row
    step = lanes(x)
    vectors = np.zeros(2 * shift.size * step, x.dtype)
    add_row_sums(x, start, rows, stride, row, shift, vectors)
    for c in range(shift.size):
        sums[c] = total(load(vectors, 2 * c * step))
        squares[c] = total(load(vectors, (2 * c + 1) * step))
        if narrow(x) and out_of_range(squares[c]):
            unit = better_unit(squares[c])
            sums[c] = squares[c] = 0.0
            for n in range(rows):
                i = start + n * stride + c * distance
                s, q = scaled_row_sums(x, i, length, shift[c], unit)
                sums[c] += s
                squares[c] += q


@inner
def add_row_products(dy, i, dy_stride, x, j, x_stride, rows, row, shift, vectors):
    """Add `row_products` of each channel and row to two vectors for each channel."""
    length, dy_distance, x_distance = row
    gradient, data, to, step = pointer(dy), pointer(x), pointer(vectors), lanes(x)
    for n in range(rows):
        for c in range(shift.size):
            s, p = row_products(
                gradient, i + n * dy_stride + c * dy_distance,
                data, j + n * x_stride + c * x_distance, length, broadcast(data, shift[c]),
            )  # fmt: skip
            k = 2 * c * step
            store(to, k, load(to, k) + s)
            store(to, k + step, load(to, k + step) + p)


@inner
def block_products(dy, i, dy_stride, x, j, x_stride, rows, row, shift, sums, products):
    """Sums of ``dy`` and ``dy * (x - shift)`` of each channel over its short rows."""
    step = lanes(x)
    vectors = np.zeros(2 * shift.size * step, x.dtype)
    add_row_products(dy, i, dy_stride, x, j, x_stride, rows, row, shift, vectors)
    for c in range(shift.size):
        sums[c] = total(load(vectors, 2 * c * step))
        products[c] = total(load(vectors, (2 * c + 1) * step))


# --- elementwise ------------------------------------------------------------------------------


@inner
def scaled_normalize_row(x, i, out, j, size, center, scale, shift, down, up):
    """`normalize_row` where ``scale`` is that of ``(x - center) * unit``."""
    step = lanes(x)
    c, a, b = broadcast(x, center), broadcast(x, scale), broadcast(x, shift)
    zero, below, above = broadcast(x, 0.0), broadcast(x, down), broadcast(x, up)
    end = i + size
    while i < end:
        d = scaled_difference(load_first(x, i, end - i, c), c, below, above)
        store_first(out, j, end - i, formulas.normalize(d, zero, a, b))
        i += step
        j += step


def normalize_row_with(put, least):
    """Make `normalize_row`; rows of ``least`` values begin where ``put`` is aligned."""

    @inlined
    def normalize_row(x, i, out, j, size, center, scale, shift):
        """One row."""
        step = lanes(x)
        c, a, b = broadcast(x, center), broadcast(x, scale), broadcast(x, shift)
        end = i + size
        head = min(to_boundary(out, j), size) if size >= least else 0
        if head > 0:
            store_first(out, j, head, formulas.normalize(load_first(x, i, head, c), c, a, b))
            i += head
            j += head
        while i + step <= end:
            put(out, j, formulas.normalize(load(x, i), c, a, b))
            i += step
            j += step
        if i < end:
            store_first(out, j, end - i, formulas.normalize(load_first(x, i, end - i, c), c, a, b))

    return normalize_row


@inner
def scaled_gradient_row(dy, i, x, j, dx, k, size, center, scale, slope, offset, down, up):
    """`gradient_row` where ``slope`` is that of ``(x - center) * unit``."""
    step = lanes(x)
    c, a, zero = broadcast(x, center), broadcast(x, scale), broadcast(x, 0.0)
    b, e = broadcast(x, slope), broadcast(x, offset)
    below, above = broadcast(x, down), broadcast(x, up)
    end = i + size
    while i < end:
        rest = end - i
        d = scaled_difference(load_first(x, j, rest, c), c, below, above)
        g = load_first(dy, i, rest, zero)
        store_first(dx, k, rest, formulas.input_gradient(g, d, zero, a, b, e))
        i += step
        j += step
        k += step


def gradient_row_with(put, least):
    """Make `gradient_row`; rows of ``least`` values begin where ``put`` is aligned."""

    @inlined
    def gradient_row(dy, i, x, j, dx, k, size, center, scale, slope, offset):
        """One row."""
        step = lanes(x)
        c, a = broadcast(x, center), broadcast(x, scale)
        b, d = broadcast(x, slope), broadcast(x, offset)
        end = i + size
        head = min(to_boundary(dx, k), size) if size >= least else 0
        if head > 0:
            g, v = load_first(dy, i, head, c), load_first(x, j, head, c)
            store_first(dx, k, head, formulas.input_gradient(g, v, c, a, b, d))
            i += head
            j += head
            k += head
        while i + step <= end:
            put(dx, k, formulas.input_gradient(load(dy, i), load(x, j), c, a, b, d))
            i += step
            j += step
            k += step
        if i < end:
            rest = end - i
            g, v = load_first(dy, i, rest, c), load_first(x, j, rest, c)
            store_first(dx, k, rest, formulas.input_gradient(g, v, c, a, b, d))

    return gradient_row


@inner
def scale_row(dy, i, dx, k, size, scale):
    """``dx = dy * scale``: the gradient where the statistics are constants."""
    step = lanes(dy)
    a = broadcast(dy, scale)
    end = i + size
    while i < end:
        rest = min(end - i, step)
        store_first(dx, k, rest, load_first(dy, i, rest, a) * a)
        i += step
        k += step


# streaming stores have to be aligned
normalize_row, stream_row = (
    normalize_row_with(store, ALIGN),
    normalize_row_with(store_streaming, 0),
)
gradient_row, stream_gradient_row = (
    gradient_row_with(store, ALIGN),
    gradient_row_with(store_streaming, 0),
)
