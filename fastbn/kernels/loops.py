"""The few loops that every kernel is made of. A maker takes what differs between kernels.

`rows_with`      elementwise along a row of one channel
`lines_with`     elementwise along lines whose columns are channels of their own
`row_sums_with`  two sums along rows, one vector each
`column_sums_with`  two sums of each column over lines, one lane each
`wide_sums_with` two sums in float64, for channels that float32 cannot hold

``compute(values, terms)`` is a formula on vectors, ``store`` one of `simd`'s. A `Pair` reads what
goes into two sums: ``a`` into one, ``a * b`` into the other.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from fastbn.kernels.compile import inlined, inner
from fastbn.kernels.simd import (
    broadcasts,
    folded,
    folded_products,
    lanes,
    loads,
    loads_each,
    loads_each_first,
    loads_first,
    narrowed,
    stores,
    stores_first,
    terms_along,
    to_boundary,
    widened,
)

#: Values from which on a row is worth aligned stores.
ALIGN = 256

# --- elementwise ----------------------------------------------------------------------------------


def rows_with(compute: Callable, stores_whole: Callable) -> Callable:
    """Make ``row(pointers, starts, out, k, size, terms)``: one row of one channel."""
    load, load_first = loads_each(), loads_each_first()
    store, store_first, lanes_of = stores_whole(), stores_first(), lanes()
    streaming = stores_whole is not stores

    @inlined
    def some(pointers, starts, out, k, n, size, terms):
        """Less than a vector, ``n`` values after the row's first."""
        values = load_first(pointers, starts, starts, n, size)
        store_first(out, k + n, 0, size, compute(values, terms))

    @inlined
    def row(pointers, starts, out, k, size, terms):
        step, n = lanes_of(out), 0
        if size < step:
            some(pointers, starts, out, k, 0, size, terms)
            return
        if streaming or size >= ALIGN:
            n = to_boundary(out, k)
            if n > 0:
                some(pointers, starts, out, k, 0, n, terms)
        end = size - step
        while n + step <= end:
            store(out, k + n, 0, compute(load(pointers, starts, starts, n), terms))
            n += step
        if streaming:
            while n < size:
                some(pointers, starts, out, k, n, size - n, terms)
                n += step
            return
        # The last two vectors overlap, which takes less time than a part of a vector. Both are
        # loaded before either is stored: it may be in place.
        values, last = load(pointers, starts, starts, n), load(pointers, starts, starts, end)
        store(out, k + n, 0, compute(values, terms))
        store(out, k + end, 0, compute(last, terms))

    return row


def lines_with(
    count: int, compute: Callable, terms_at: Callable, stores_whole: Callable,
    loads_whole: Callable = loads_each,
):  # fmt: skip
    """Make ``lines(table, like, pointers, starts, aparts, out, k, apart, width, column)``.

    ``count`` lines at a time, which begin ``aparts`` from each other; ``column`` is the first's.
    All are loaded before any is stored: a load from the same place of a page as a store that is
    still under way waits for it (4 KiB aliasing).
    """
    load, load_first = loads_whole(count), loads_each_first(count)
    store, store_first, lanes_of = stores_whole(count), stores_first(count), lanes()

    @inlined
    def lines(table, like, pointers, starts, aparts, out, k, apart, width, column):
        step, j = lanes_of(out), 0
        while j + step <= width:
            values = load(pointers, starts, aparts, j)
            store(out, k + j, apart, compute(values, terms_at(table, column + j, step, like)))
            j += step
        if j < width:
            n = width - j
            values = load_first(pointers, starts, aparts, j, n)
            terms = terms_at(table, column + j, n, like)
            store_first(out, k + j, apart, n, compute(values, terms))

    return lines


# --- sums -----------------------------------------------------------------------------------------


class Pair(NamedTuple):
    """What goes into two sums, read ``count`` vectors, or shares of them, at a time.

    ``whole(first, i, i_apart, second, k, k_apart, center)`` and ``edge``, which takes
    ``number, less, center, zero``, return ``a`` and ``b``.
    """

    whole: Callable
    edge: Callable


@cache
def deviations(count: int = 4, share: int = 1) -> Pair:
    """``d`` and ``d``, with ``d = x - center``: for sums of ``d`` and ``d * d``."""
    load, load_first = loads(count, share), loads_first(count)

    @inlined
    def deviation(first, i, i_apart, second, k, k_apart, center):
        d = load(first, i, i_apart) - center
        return d, d

    @inlined
    def deviation_edge(first, i, i_apart, second, k, k_apart, number, less, center, zero):
        d = load_first(first, i, i_apart, number, less, center) - center
        return d, d

    return Pair(deviation, deviation_edge)


@cache
def products(count: int = 4, share: int = 1) -> Pair:
    """``dy`` and ``x - center``: for sums of ``dy`` and of their product."""
    load, load_first = loads(count, share), loads_first(count)

    @inlined
    def product(first, i, i_apart, second, k, k_apart, center):
        return load(first, i, i_apart), load(second, k, k_apart) - center

    @inlined
    def product_edge(first, i, i_apart, second, k, k_apart, number, less, center, zero):
        g = load_first(first, i, i_apart, number, less, zero)
        return g, load_first(second, k, k_apart, number, less, center) - center

    return Pair(product, product_edge)


def row_sums_with(pair: Pair, share: int) -> Callable:
    """Make ``add(..., sums, at)``: add to two vectors of sums, ``at`` and one further on.

    Four sequences side by side: vectors ``apart`` from each other, then those ``stride`` further
    on, ``size`` values in all; each later sequence ends ``less`` values earlier. So one loop sums
    four rows (``stride`` a vector) and four vectors of one row (``stride`` four of them).
    """
    whole, edge = pair.whole, pair.edge
    lanes_of, lanes_of_share = lanes(), lanes(share)
    broadcast, load, store = broadcasts(4, share), loads(1, share), stores()

    @inlined
    def add(first, i, i_apart, second, k, k_apart, size, stride, less, center, sums, at):
        step, width = lanes_of(sums), lanes_of_share(sums)
        center, zero = broadcast(sums, center), broadcast(sums, 0.0)
        for offset in range(0, step, width):
            s = p = zero
            n = 0
            while n + stride <= size:
                a, b = whole(
                    first, i + n + offset, i_apart, second, k + n + offset, k_apart, center
                )
                s, p = s + a, p + a * b
                n += stride
            # What is left: whole vectors, each added to its own quarter of the sums; then less than
            # a vector, added to the last quarter (`edge` takes four; the first three are empty).
            full = size - n if less == 0 else (size - n) // step * step
            part_start, part_size = n + full - 3 * step, size - n - full - 3 * step
            for start, number, fewer in ((n, full, less), (part_start, part_size, -step)):
                if number > -3 * step and number != 0:
                    a, b = edge(
                        first, i + start + offset, i_apart, second, k + start + offset, k_apart,
                        number - offset, fewer, center, zero,
                    )  # fmt: skip
                    s, p = s + a, p + a * b
            to = at + offset
            store(sums, to, 0, load(sums, to, 0) + folded(s))
            to += step
            store(sums, to, 0, load(sums, to, 0) + folded(p))

    return add


@inlined
def one_added(s, p, a, b):
    return s + a, p + a * b


@inlined
def four_added(s, p, a, b):
    return s + folded(a), p + folded_products(a, b)


def column_sums_with(count: int, pair: Pair) -> Callable:
    """Make ``add(..., columns, center, sums, products)``: add ``count`` lines, one or four.

    ``center`` and both sums are memory of whole vectors.
    """
    whole, edge, added = pair.whole, pair.edge, four_added if count == 4 else one_added
    lanes_of, broadcast, load, store = lanes(), broadcasts(count), loads(), stores()
    centers = terms_along(1, count)

    @inlined
    def add(first, i, i_apart, second, k, k_apart, columns, center, sums, products):
        step, zero = lanes_of(first), broadcast(first, 0.0)
        for j in range(0, columns, step):
            around = centers(center, 0, j, step, first)[0]
            if j + step <= columns:
                a, b = whole(first, i + j, i_apart, second, k + j, k_apart, around)
            else:
                a, b = edge(
                    first, i + j, i_apart, second, k + j, k_apart, columns - j, 0, around, zero
                )
            s, p = added(load(sums, j, 0), load(products, j, 0), a, b)
            store(sums, j, 0, s)
            store(products, j, 0, p)

    return add


_load_first = loads_first()


@inlined
def wide_deviation(first, i, second, k, number, center, zero):
    """A vector of `deviations` as float64; ``center`` holds values of x."""
    d = widened((_load_first(first, i, 0, number, 0, narrowed(center, zero)),))[0] - center
    return d, d


@inlined
def wide_product(first, i, second, k, number, center, zero):
    """A vector of `products` as float64."""
    g = _load_first(first, i, 0, number, 0, zero)
    g, x = widened((g, _load_first(second, k, 0, number, 0, zero)))
    return g, x - center


def wide_sums_with(read: Callable, line_start: Callable, line_size: Callable) -> Callable:
    """Make ``sums(f, first, i, second, k, begin, lines, width, center)``: two vectors of float64.

    Over lines of at most ``width`` values; ``center`` is a vector of float64.
    """
    lanes_of, broadcast, broadcast_wide = lanes(), broadcasts(), broadcasts(wide=True)

    @inner
    def wide_sums(f, first, i, second, k, begin, lines, width, center):
        step, zero = lanes_of(first), broadcast(first, 0.0)
        s = p = broadcast_wide(first, 0.0)
        for line in range(begin, begin + lines):
            i_start = i + line_start(f, f.first_row, line)
            k_start = k + line_start(f, f.second_row, line)
            size = min(width, line_size(f, line))
            for n in range(0, size, step):
                a, b = read(first, i_start + n, second, k_start + n, size - n, center, zero)
                s, p = s + a, p + a * b
        return s, p

    return wide_sums
