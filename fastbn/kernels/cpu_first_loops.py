"""Channels-first, innermost: vectors along rows. A row is contiguous and has one channel."""

from fastbn.kernels import cpu_formulas as formulas
from fastbn.kernels.compile import inner
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
        while i + step <= end:
            d0 = load(x, i) - center
            s0, q0 = s0 + d0, q0 + d0 * d0
            i += step
        if i < end:
            d1 = load_first(x, i, end - i, center) - center
            s1, q1 = s1 + d1, q1 + d1 * d1
    return total((s0 + s1) + (s2 + s3)), total((q0 + q1) + (q2 + q3))


@inner
def block_products(dy, dy_start, dy_stride, x, x_start, x_stride, rows, size, shift):
    """Sums of ``dy`` and ``dy * (x - shift)`` over ``rows`` runs of ``size`` values."""
    step = lanes(x)
    center = broadcast(x, shift)
    zero = broadcast(x, 0.0)
    s0 = s1 = p0 = p1 = zero
    for row in range(rows):
        i = dy_start + row * dy_stride
        j = x_start + row * x_stride
        end = i + size
        while i + 2 * step <= end:
            g0 = load(dy, i)
            g1 = load(dy, i + step)
            s0, p0 = s0 + g0, p0 + g0 * (load(x, j) - center)
            s1, p1 = s1 + g1, p1 + g1 * (load(x, j + step) - center)
            i += 2 * step
            j += 2 * step
        while i < end:
            g0 = load_first(dy, i, end - i, zero)
            s0, p0 = s0 + g0, p0 + g0 * (load_first(x, j, end - i, center) - center)
            i += step
            j += step
    return total(s0 + s1), total(p0 + p1)


@inner
def normalize_row(x, i, out, j, size, center, scale, shift):
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
def gradient_row(dy, i, x, j, dx, k, size, center, scale, slope, offset, batch_statistics):
    if batch_statistics:
        input_gradient_row(dy, i, x, j, dx, k, size, center, scale, slope, offset)
    else:
        scale_row(dy, i, dx, k, size, scale)
