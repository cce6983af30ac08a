"""Channels-first, innermost: elementwise along rows. A row is contiguous and has one channel.

``table`` has a row for each kind of term and a column for each channel, ``columns`` in all.
"""

from fastbn.kernels import cpu_formulas as formulas
from fastbn.kernels.compile import inlined, inner
from fastbn.kernels.cpu_range import scaled_difference
from fastbn.kernels.vector import (
    broadcast,
    lanes,
    load,
    load_first,
    store,
    store_first,
    store_streaming,
    to_boundary,
)

#: Values from which on a row is worth aligned stores.
ALIGN = 256


@inlined
def normalizing_terms(x, table, columns, c):
    """Center, scale and shift of channel ``c``, in every lane; rows are ``columns`` apart."""
    return (
        broadcast(x, table[c]),
        broadcast(x, table[columns + c]),
        broadcast(x, table[2 * columns + c]),
    )


@inlined
def gradient_terms(x, table, columns, c):
    """Center, scale, slope and offset of channel ``c``, in every lane."""
    center, scale, slope = normalizing_terms(x, table, columns, c)
    return center, scale, slope, broadcast(x, table[3 * columns + c])


# --- normalize --------------------------------------------------------------------------------


@inlined
def normalize_part(x, i, out, k, size, terms):
    """A row, or a part of one, of less than a vector."""
    center, scale, shift = terms
    value = load_first(x, i, size, center)
    store_first(out, k, size, formulas.normalize(value, center, scale, shift))


@inlined
def normalize_row(x, i, out, k, size, table, columns, c):
    """A row of channel ``c``.

    The last two vectors overlap, which takes less time than a part of a vector. Both are
    loaded before either is stored: it may be in place.
    """
    step, terms = lanes(x), normalizing_terms(x, table, columns, c)
    center, scale, shift = terms
    if size < step:
        normalize_part(x, i, out, k, size, terms)
        return
    end = size - step
    n = to_boundary(out, k) if size >= ALIGN else 0
    if n > 0:
        normalize_part(x, i, out, k, n, terms)
    while n + step <= end:
        store(out, k + n, formulas.normalize(load(x, i + n), center, scale, shift))
        n += step
    value, last = load(x, i + n), load(x, i + end)
    store(out, k + n, formulas.normalize(value, center, scale, shift))
    store(out, k + end, formulas.normalize(last, center, scale, shift))


@inlined
def stream_row(x, i, out, k, size, table, columns, c):
    """`normalize_row` past the caches."""
    step, terms = lanes(x), normalizing_terms(x, table, columns, c)
    center, scale, shift = terms
    n = min(to_boundary(out, k), size)
    if n > 0:
        normalize_part(x, i, out, k, n, terms)
    while n + step <= size:
        store_streaming(out, k + n, formulas.normalize(load(x, i + n), center, scale, shift))
        n += step
    if n < size:
        normalize_part(x, i + n, out, k + n, size - n, terms)


@inner
def scaled_row(x, i, out, k, size, table, columns, c):
    """`normalize_row` of a channel with a unit: ``scale`` is that of ``(x - center) * unit``."""
    step, zero = lanes(x), broadcast(x, 0.0)
    center, scale, shift = normalizing_terms(x, table, columns, c)
    down, up = broadcast(x, table[3 * columns + c]), broadcast(x, table[4 * columns + c])
    for n in range(0, size, step):
        d = scaled_difference(load_first(x, i + n, size - n, center), center, down, up)
        store_first(out, k + n, size - n, formulas.normalize(d, zero, scale, shift))


# --- gradient ---------------------------------------------------------------------------------


@inlined
def gradient_part(dy, i, x, j, dx, k, size, terms):
    """A row, or a part of one, of less than a vector."""
    center, scale, slope, offset = terms
    g, v = load_first(dy, i, size, center), load_first(x, j, size, center)
    store_first(dx, k, size, formulas.input_gradient(g, v, center, scale, slope, offset))


@inlined
def gradient_row(dy, i, x, j, dx, k, size, table, columns, c):
    """A row of channel ``c``; its end as that of `normalize_row`."""
    step, terms = lanes(x), gradient_terms(x, table, columns, c)
    center, scale, slope, offset = terms
    if size < step:
        gradient_part(dy, i, x, j, dx, k, size, terms)
        return
    end = size - step
    n = to_boundary(dx, k) if size >= ALIGN else 0
    if n > 0:
        gradient_part(dy, i, x, j, dx, k, n, terms)
    while n + step <= end:
        g, v = load(dy, i + n), load(x, j + n)
        store(dx, k + n, formulas.input_gradient(g, v, center, scale, slope, offset))
        n += step
    g, v = load(dy, i + n), load(x, j + n)
    last_g, last = load(dy, i + end), load(x, j + end)
    store(dx, k + n, formulas.input_gradient(g, v, center, scale, slope, offset))
    store(dx, k + end, formulas.input_gradient(last_g, last, center, scale, slope, offset))


@inlined
def stream_gradient_row(dy, i, x, j, dx, k, size, table, columns, c):
    """`gradient_row` past the caches."""
    step, terms = lanes(x), gradient_terms(x, table, columns, c)
    center, scale, slope, offset = terms
    n = min(to_boundary(dx, k), size)
    if n > 0:
        gradient_part(dy, i, x, j, dx, k, n, terms)
    while n + step <= size:
        g, v = load(dy, i + n), load(x, j + n)
        store_streaming(dx, k + n, formulas.input_gradient(g, v, center, scale, slope, offset))
        n += step
    if n < size:
        gradient_part(dy, i + n, x, j + n, dx, k + n, size - n, terms)


@inner
def scaled_gradient_row(dy, i, x, j, dx, k, size, table, columns, c):
    """`gradient_row` of a channel with a unit: ``slope`` is that of ``(x - center) * unit``."""
    step, zero = lanes(x), broadcast(x, 0.0)
    center, scale, slope, offset = gradient_terms(x, table, columns, c)
    down, up = broadcast(x, table[4 * columns + c]), broadcast(x, table[5 * columns + c])
    for n in range(0, size, step):
        rest = size - n
        d = scaled_difference(load_first(x, j + n, rest, center), center, down, up)
        g = load_first(dy, i + n, rest, zero)
        store_first(dx, k + n, rest, formulas.input_gradient(g, d, zero, scale, slope, offset))


@inner
def scale_row(dy, i, dx, k, size, table, columns, c):
    """``dx = dy * scale``: the gradient where the statistics are constants."""
    step, zero, scale = lanes(dy), broadcast(dy, 0.0), broadcast(dy, table[columns + c])
    for n in range(0, size, step):
        store_first(dx, k + n, size - n, load_first(dy, i + n, size - n, zero) * scale)
