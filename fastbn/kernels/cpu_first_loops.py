"""Channels-first, innermost: vectors along rows. A row is contiguous and has one channel."""

import numpy as np

from fastbn.kernels import cpu_formulas as formulas
from fastbn.kernels.compile import inner
from fastbn.kernels.cpu_range import better_unit, narrow, out_of_range, scaled_difference
from fastbn.kernels.vector import broadcast, lanes, load, load_first, store, store_first, total


@inner
def block_sums(x, start, rows, stride, size, shift):
    """Sums of ``d`` and ``d * d``, ``d = x - shift``, over ``rows`` runs of ``size`` values."""
    step = lanes(x)
    center = broadcast(x, shift)
    s0 = s1 = s2 = s3 = q0 = q1 = q2 = q3 = broadcast(x, 0.0)
    for row in range(rows):
        i = start + row * stride
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
    return total((s0 + s1) + (s2 + s3)), total((q0 + q1) + (q2 + q3))


@inner
def scaled_block_sums(x, start, rows, stride, size, shift, unit):
    """`block_sums` of ``(x - shift) * unit``, in the units of x again."""
    step = lanes(x)
    center = broadcast(x, shift)
    down, up = broadcast(x, min(unit, 1.0)), broadcast(x, max(unit, 1.0))
    s = q = broadcast(x, 0.0)
    for row in range(rows):
        i = start + row * stride
        end = i + size
        while i < end:
            d = scaled_difference(load_first(x, i, end - i, center), center, down, up)
            s, q = s + d, q + d * d
            i += step
    return total(s) / unit, total(q) / (unit * unit)


@inner
def safe_block_sums(x, start, rows, stride, size, shift):
    """`block_sums`, and once more in other units if float32 could not hold them."""
    sums, squares = block_sums(x, start, rows, stride, size, shift)
    if narrow(x) and out_of_range(squares):
        unit = better_unit(squares)
        return scaled_block_sums(x, start, rows, stride, size, shift, unit)
    return sums, squares


@inner
def block_products(dy, dy_start, dy_stride, x, x_start, x_stride, rows, size, shift):
    """Sums of ``dy`` and ``dy * (x - shift)`` over ``rows`` runs of ``size`` values."""
    step = lanes(x)
    center = broadcast(x, shift)
    s0 = s1 = s2 = s3 = p0 = p1 = p2 = p3 = zero = broadcast(x, 0.0)
    for row in range(rows):
        i = dy_start + row * dy_stride
        j = x_start + row * x_stride
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
    return total((s0 + s1) + (s2 + s3)), total((p0 + p1) + (p2 + p3))


@inner
def wide_block_products(dy, dy_start, dy_stride, x, x_start, x_stride, rows, size, shift):
    """`block_products` in float64, one value at a time."""
    s = p = 0.0
    for row in range(rows):
        i = dy_start + row * dy_stride
        j = x_start + row * x_stride
        for k in range(size):
            g = np.float64(dy[i + k])
            s += g
            p += g * (np.float64(x[j + k]) - shift)
    return s, p


@inner
def safe_block_products(dy, dy_start, dy_stride, x, x_start, x_stride, rows, size, shift, unit):
    """`block_products`, or in float64 where float32 cannot hold them."""
    s, p = block_products(dy, dy_start, dy_stride, x, x_start, x_stride, rows, size, shift)
    if narrow(x) and not (unit == 1.0 and np.isfinite(s) and np.isfinite(p)):
        return wide_block_products(dy, dy_start, dy_stride, x, x_start, x_stride, rows, size, shift)
    return s, p


@inner
def scaled_normalize_row(x, i, out, j, size, center, scale, shift, unit):
    """`normalize_row` where ``scale`` is that of ``(x - center) * unit``."""
    step = lanes(x)
    c, a, b, zero = (
        broadcast(x, center),
        broadcast(x, scale),
        broadcast(x, shift),
        broadcast(x, 0.0),
    )
    down, up = broadcast(x, min(unit, 1.0)), broadcast(x, max(unit, 1.0))
    end = i + size
    while i < end:
        d = scaled_difference(load_first(x, i, end - i, c), c, down, up)
        store_first(out, j, end - i, formulas.normalize(d, zero, a, b))
        i += step
        j += step


@inner
def normalize_row(x, i, out, j, size, center, scale, shift, unit):
    if unit != 1.0:
        scaled_normalize_row(x, i, out, j, size, center, scale, shift, unit)
        return
    step = lanes(x)
    c, a, b = broadcast(x, center), broadcast(x, scale), broadcast(x, shift)
    end = i + size
    while i + step <= end:
        store(out, j, formulas.normalize(load(x, i), c, a, b))
        i += step
        j += step
    if i < end:
        store_first(out, j, end - i, formulas.normalize(load_first(x, i, end - i, c), c, a, b))


@inner
def scaled_input_gradient_row(dy, i, x, j, dx, k, size, center, scale, slope, offset, unit):
    """`input_gradient_row` where ``slope`` is that of ``(x - center) * unit``."""
    step = lanes(x)
    c, a, zero = broadcast(x, center), broadcast(x, scale), broadcast(x, 0.0)
    b, e = broadcast(x, slope), broadcast(x, offset)
    down, up = broadcast(x, min(unit, 1.0)), broadcast(x, max(unit, 1.0))
    end = i + size
    while i < end:
        rest = end - i
        d = scaled_difference(load_first(x, j, rest, c), c, down, up)
        g = load_first(dy, i, rest, zero)
        store_first(dx, k, rest, formulas.input_gradient(g, d, zero, a, b, e))
        i += step
        j += step
        k += step


@inner
def input_gradient_row(dy, i, x, j, dx, k, size, center, scale, slope, offset):
    step = lanes(x)
    c, a = broadcast(x, center), broadcast(x, scale)
    b, d = broadcast(x, slope), broadcast(x, offset)
    end = i + size
    while i + step <= end:
        store(dx, k, formulas.input_gradient(load(dy, i), load(x, j), c, a, b, d))
        i += step
        j += step
        k += step
    if i < end:
        rest = end - i
        g = load_first(dy, i, rest, c)
        store_first(dx, k, rest, formulas.input_gradient(g, load_first(x, j, rest, c), c, a, b, d))


@inner
def scale_row(dy, i, dx, k, size, scale):
    step = lanes(dy)
    a = broadcast(dy, scale)
    end = i + size
    while i < end:
        rest = min(end - i, step)
        store_first(dx, k, rest, load_first(dy, i, rest, a) * a)
        i += step
        k += step


@inner
def gradient_row(dy, i, x, j, dx, k, size, center, scale, slope, offset, unit, batch_statistics):
    if not batch_statistics:
        scale_row(dy, i, dx, k, size, scale)
    elif unit != 1.0:
        scaled_input_gradient_row(dy, i, x, j, dx, k, size, center, scale, slope, offset, unit)
    else:
        input_gradient_row(dy, i, x, j, dx, k, size, center, scale, slope, offset)
