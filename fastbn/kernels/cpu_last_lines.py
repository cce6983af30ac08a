"""Channels-last, innermost: elementwise along lines. Each column is a channel of its own.

Four lines at a time, a quarter of a task's lines apart, for the reasons in `cpu_groups`.

``terms`` are (pointer, distance of its rows, first column): a table with a row for each kind
of term and a column for each column of a line.
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
)


@inlined
def first_three(terms, j, n):
    """Center, scale and shift (or slope) of ``n`` columns, at most a vector, from ``j`` on."""
    table, columns, first = terms
    zero, at = broadcast(table, 0.0), first + j
    return (
        load_first(table, at, n, zero),
        load_first(table, at + columns, n, zero),
        load_first(table, at + 2 * columns, n, zero),
    )


@inlined
def fourth(terms, j, n):
    """Offset of ``n`` columns, at most a vector, from ``j`` on."""
    table, columns, first = terms
    return load_first(table, first + j + 3 * columns, n, broadcast(table, 0.0))


# --- normalize --------------------------------------------------------------------------------


def normalize_lines_with(put):
    """Make `normalize_lines`; ``put`` stores a whole vector."""

    @inlined
    def normalize_four(x, i, x_apart, out, k, out_apart, width, terms):
        """Four lines, all loaded before any is stored.

        A load from the same place of a page as a store that is still under way waits for it.
        """
        step = lanes(x)
        i1, i2, i3 = i + x_apart, i + 2 * x_apart, i + 3 * x_apart
        k1, k2, k3 = k + out_apart, k + 2 * out_apart, k + 3 * out_apart
        j = 0
        while j + step <= width:
            c, a, b = first_three(terms, j, step)
            x0, x1, x2, x3 = load(x, i + j), load(x, i1 + j), load(x, i2 + j), load(x, i3 + j)
            put(out, k + j, formulas.normalize(x0, c, a, b))
            put(out, k1 + j, formulas.normalize(x1, c, a, b))
            put(out, k2 + j, formulas.normalize(x2, c, a, b))
            put(out, k3 + j, formulas.normalize(x3, c, a, b))
            j += step
        if j < width:
            n = width - j
            c, a, b = first_three(terms, j, n)
            x0, x1 = load_first(x, i + j, n, c), load_first(x, i1 + j, n, c)
            x2, x3 = load_first(x, i2 + j, n, c), load_first(x, i3 + j, n, c)
            store_first(out, k + j, n, formulas.normalize(x0, c, a, b))
            store_first(out, k1 + j, n, formulas.normalize(x1, c, a, b))
            store_first(out, k2 + j, n, formulas.normalize(x2, c, a, b))
            store_first(out, k3 + j, n, formulas.normalize(x3, c, a, b))

    @inlined
    def normalize_one(x, i, out, k, width, terms):
        step, j = lanes(x), 0
        while j + step <= width:
            c, a, b = first_three(terms, j, step)
            put(out, k + j, formulas.normalize(load(x, i + j), c, a, b))
            j += step
        if j < width:
            n = width - j
            c, a, b = first_three(terms, j, n)
            store_first(out, k + j, n, formulas.normalize(load_first(x, i + j, n, c), c, a, b))

    @inner
    def normalize_lines(x, i, x_stride, out, k, out_stride, lines, width, terms):
        """Some lines."""
        quarter = lines // 4
        for line in range(quarter):
            normalize_four(
                x, i + line * x_stride, quarter * x_stride,
                out, k + line * out_stride, quarter * out_stride, width, terms,
            )  # fmt: skip
        for line in range(4 * quarter, lines):
            normalize_one(x, i + line * x_stride, out, k + line * out_stride, width, terms)

    return normalize_lines


# streaming stores are for lines whose vectors are all at multiples of their size
normalize_lines, stream_lines = (
    normalize_lines_with(store),
    normalize_lines_with(store_streaming),
)


# --- gradient ---------------------------------------------------------------------------------


def gradient_lines_with(put):
    """Make `gradient_lines`; ``put`` stores a whole vector."""

    @inlined
    def gradient_four(dy, i, dy_apart, x, k, x_apart, dx, m, dx_apart, width, terms):
        """Four lines; all are loaded before any is stored."""
        step = lanes(x)
        i1, i2, i3 = i + dy_apart, i + 2 * dy_apart, i + 3 * dy_apart
        k1, k2, k3 = k + x_apart, k + 2 * x_apart, k + 3 * x_apart
        m1, m2, m3 = m + dx_apart, m + 2 * dx_apart, m + 3 * dx_apart
        j = 0
        while j + step <= width:
            c, a, b = first_three(terms, j, step)
            e = fourth(terms, j, step)
            g0, g1, g2, g3 = load(dy, i + j), load(dy, i1 + j), load(dy, i2 + j), load(dy, i3 + j)
            x0, x1, x2, x3 = load(x, k + j), load(x, k1 + j), load(x, k2 + j), load(x, k3 + j)
            put(dx, m + j, formulas.input_gradient(g0, x0, c, a, b, e))
            put(dx, m1 + j, formulas.input_gradient(g1, x1, c, a, b, e))
            put(dx, m2 + j, formulas.input_gradient(g2, x2, c, a, b, e))
            put(dx, m3 + j, formulas.input_gradient(g3, x3, c, a, b, e))
            j += step
        if j < width:
            n = width - j
            c, a, b = first_three(terms, j, n)
            e = fourth(terms, j, n)
            g0, g1 = load_first(dy, i + j, n, c), load_first(dy, i1 + j, n, c)
            g2, g3 = load_first(dy, i2 + j, n, c), load_first(dy, i3 + j, n, c)
            x0, x1 = load_first(x, k + j, n, c), load_first(x, k1 + j, n, c)
            x2, x3 = load_first(x, k2 + j, n, c), load_first(x, k3 + j, n, c)
            store_first(dx, m + j, n, formulas.input_gradient(g0, x0, c, a, b, e))
            store_first(dx, m1 + j, n, formulas.input_gradient(g1, x1, c, a, b, e))
            store_first(dx, m2 + j, n, formulas.input_gradient(g2, x2, c, a, b, e))
            store_first(dx, m3 + j, n, formulas.input_gradient(g3, x3, c, a, b, e))

    @inlined
    def gradient_one(dy, i, x, k, dx, m, width, terms):
        step, j = lanes(x), 0
        while j + step <= width:
            c, a, b = first_three(terms, j, step)
            e = fourth(terms, j, step)
            g, v = load(dy, i + j), load(x, k + j)
            put(dx, m + j, formulas.input_gradient(g, v, c, a, b, e))
            j += step
        if j < width:
            n = width - j
            c, a, b = first_three(terms, j, n)
            e = fourth(terms, j, n)
            g, v = load_first(dy, i + j, n, c), load_first(x, k + j, n, c)
            store_first(dx, m + j, n, formulas.input_gradient(g, v, c, a, b, e))

    @inner
    def gradient_lines(dy, i, dy_stride, x, k, x_stride, dx, m, dx_stride, lines, width, terms):
        """Some lines."""
        quarter = lines // 4
        for line in range(quarter):
            gradient_four(
                dy, i + line * dy_stride, quarter * dy_stride,
                x, k + line * x_stride, quarter * x_stride,
                dx, m + line * dx_stride, quarter * dx_stride, width, terms,
            )  # fmt: skip
        for line in range(4 * quarter, lines):
            gradient_one(
                dy, i + line * dy_stride, x, k + line * x_stride, dx, m + line * dx_stride,
                width, terms,
            )  # fmt: skip

    return gradient_lines


gradient_lines, stream_gradient_lines = (
    gradient_lines_with(store),
    gradient_lines_with(store_streaming),
)


# --- lines of their own kind ------------------------------------------------------------------


@inner
def scale_line(dy, i, dx, m, width, terms):
    """``dx = dy * scale``, the second row of terms: the statistics are constants."""
    for j in range(0, width, lanes(dy)):
        n = width - j
        _, a, _ = first_three(terms, j, n)
        store_first(dx, m + j, n, load_first(dy, i + j, n, a) * a)


@inlined
def load_scaled(x, i, n, center, terms, j, row):
    """``(x - center) * unit``, whose two parts are in the terms from ``row`` on."""
    table, columns, first = terms
    down = load_first(table, first + j + row * columns, n, center)
    up = load_first(table, first + j + (row + 1) * columns, n, center)
    return scaled_difference(load_first(x, i, n, center), center, down, up)


@inner
def scaled_line(x, i, out, k, width, terms):
    """A line where some columns have a unit."""
    zero = broadcast(x, 0.0)
    for j in range(0, width, lanes(x)):
        n = width - j
        c, a, b = first_three(terms, j, n)
        d = load_scaled(x, i + j, n, c, terms, j, 3)
        store_first(out, k + j, n, formulas.normalize(d, zero, a, b))


@inner
def scaled_gradient_line(dy, i, x, k, dx, m, width, terms):
    """A line where some columns have a unit."""
    zero = broadcast(x, 0.0)
    for j in range(0, width, lanes(x)):
        n = width - j
        c, a, b = first_three(terms, j, n)
        g, e = load_first(dy, i + j, n, zero), fourth(terms, j, n)
        d = load_scaled(x, k + j, n, c, terms, j, 4)
        store_first(dx, m + j, n, formulas.input_gradient(g, d, zero, a, b, e))
