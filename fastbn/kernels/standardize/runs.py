"""The ways along a row, from memory of one kind to memory of another. Each is a `Run`.

==========  =======================================================================================
`rows`      values of one channel follow each other in both arrays
`lines`     all channels of a position follow each other in both arrays: a table has their terms
            over and over
`split`     channels side by side become a row each (NHWC to NCHW)
`joined`    the reverse
`anyhow`    positions and channels lie anywhere
==========  =======================================================================================

These are not the loops of `loops`, because bytes have no masked loads and stores before AVX-512.
What is less than a vector at the end of a row is done with the vector that ends there, and once
more where both overlap; a row that is shorter than a vector goes value by value.

A table of 256 results per channel took 32 microseconds for an image of 224 x 224, where converting
and computing takes 10: bytes are looked up one by one.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from fastbn.kernels import formulas
from fastbn.kernels.compile import inlined
from fastbn.kernels.simd import (
    compiled_formula,
    reads,
    reads_apart,
    reads_one,
    reads_terms,
    reads_turned,
    terms_of_channel,
    to_boundary,
    writes,
    writes_apart,
    writes_one,
    writes_turned,
)

#: Values of a row from which on aligned stores are worth a few single values before them.
ALIGN = 2048

compute = compiled_formula(formulas.normalize, "values", "terms")
terms_of = terms_of_channel(3)


class Kinds(NamedTuple):
    """How memory has what is read and what is written, and what is computed in."""

    read: str
    written: str
    working: str

    @property
    def lanes(self) -> int:
        """Values of a vector."""
        return 16 if self.working == "float32" else 8


class Run(NamedTuple):
    """``along(f, x, out, i, k, start, size, channel, table, like)``.

    Computes ``size`` positions (values, in rows and lines) of a row from its ``start`` on; the row
    begins at ``i`` in x and at ``k`` in out. ``streaming``: can it store past the caches?
    """

    make: Callable
    streaming: bool
    counts: bool = False  # whether it is made for a number of channels


def single_with(kinds: Kinds) -> Callable:
    """Make ``single(x, i, out, k, columns, column, table, like)``: one value."""
    read, write = reads_one(kinds.read, kinds.working), writes_one(kinds.written, kinds.working)

    @inlined
    def single(x, i, out, k, columns, column, table, like):
        terms = terms_of(table, columns, column, like)
        write(out, k, compute((read(x, i),), terms))

    return single


def rows_with(kinds: Kinds, streaming: bool, count: int) -> Callable:
    read, single = reads(kinds.read, kinds.working), single_with(kinds)
    write, last_write = (writes(kinds.written, kinds.working, 1, past) for past in (streaming, 0))
    step = kinds.lanes

    @inlined
    def along(f, x, out, i, k, start, size, channel, table, like):
        i, k, columns, n = i + start, k + start, f.terms, 0
        if streaming or size >= ALIGN:
            n = to_boundary(out, k)
        singles = size if size < n + step else n
        for j in range(singles):
            single(x, i + j, out, k + j, columns, channel, table, like)
        if singles == size:
            return
        terms, end = terms_of(table, columns, channel, like), size - step
        while n + step <= end:
            write(out, k + n, 0, compute((read(x, i + n, 0),), terms))
            n += step
        # both are read before either is written: it may be in place
        values, last = read(x, i + n, 0), read(x, i + end, 0)
        last_write(out, k + n, 0, compute((values,), terms))
        last_write(out, k + end, 0, compute((last,), terms))

    return along


def lines_with(kinds: Kinds, streaming: bool, count: int) -> Callable:
    read, single = reads(kinds.read, kinds.working), single_with(kinds)
    write, last_write = (writes(kinds.written, kinds.working, 1, past) for past in (streaming, 0))
    terms_at, step = reads_terms(3, kinds.working), kinds.lanes
    # four lines at a time, for which terms are read once
    four_read = reads(kinds.read, kinds.working, 4)
    four_write = writes(kinds.written, kinds.working, 4, streaming)
    four_terms = reads_terms(3, kinds.working, 4, True)

    @inlined
    def along(f, x, out, i, k, start, size, channel, table, like):
        i, k, columns, width, period, n = i + start, k + start, f.terms, f.width, f.columns, 0
        if streaming or size >= ALIGN:
            n = to_boundary(out, k)
        singles = size if size < n + step else n
        for j in range(singles):
            single(x, i + j, out, k + j, columns, (start + j) % period, table, like)
        if singles == size:
            return
        first, end = (start + n) % period, size - step
        while n + 4 * width <= end:
            for j in range(0, width, step):
                terms = four_terms(table, columns, first + j)
                values = four_read(x, i + n + j, width)
                four_write(out, k + n + j, width, compute((values,), terms))
            n += 4 * width
        while n + step <= end:
            some, j = min(width, end - n), 0
            while j + step <= some:
                terms = terms_at(table, columns, first + j)
                write(out, k + n + j, 0, compute((read(x, i + n + j, 0),), terms))
                j += step
            n += j
        values, last = read(x, i + n, 0), read(x, i + end, 0)
        terms = terms_at(table, columns, (start + n) % period)
        last_write(out, k + n, 0, compute((values,), terms))
        terms = terms_at(table, columns, (start + end) % period)
        last_write(out, k + end, 0, compute((last,), terms))

    return along


def split_with(kinds: Kinds, streaming: bool, count: int) -> Callable:
    read, single = reads_turned(kinds.read, kinds.working, count), single_with(kinds)
    write, last_write = (
        writes(kinds.written, kinds.working, count, past) for past in (streaming, 0)
    )
    terms_at, step = reads_terms(3, kinds.working, count), kinds.lanes

    @inlined
    def along(f, x, out, i, k, start, size, channel, table, like):
        apart, columns, n = f.out_channel, f.terms, 0
        i, k = i + start * count, k + start
        if streaming or size >= ALIGN:
            n = to_boundary(out, k)
        singles = size if size < n + step else n
        for j in range(singles):
            for c in range(count):
                at, to = i + j * count + c, k + j + c * apart
                single(x, at, out, to, columns, c * step, table, like)
        if singles == size:
            return
        terms, end = terms_at(table, columns, 0), size - step
        while n + step <= end:
            write(out, k + n, apart, compute((read(x, i + n * count),), terms))
            n += step
        last_write(out, k + n, apart, compute((read(x, i + n * count),), terms))
        last_write(out, k + end, apart, compute((read(x, i + end * count),), terms))

    return along


def joined_with(kinds: Kinds, streaming: bool, count: int) -> Callable:
    read, single = reads(kinds.read, kinds.working, count), single_with(kinds)
    write = writes_turned(kinds.written, kinds.working, count)
    terms_at, step = reads_terms(3, kinds.working, count), kinds.lanes

    @inlined
    def along(f, x, out, i, k, start, size, channel, table, like):
        apart, columns, n = f.first_channel, f.terms, 0
        i, k = i + start, k + start * count
        if size < step:
            for j in range(size):
                for c in range(count):
                    at, to = i + j + c * apart, k + j * count + c
                    single(x, at, out, to, columns, c * step, table, like)
            return
        terms, end = terms_at(table, columns, 0), size - step
        while n < size:
            n = min(n, end)
            write(out, k + n * count, compute((read(x, i + n, apart),), terms))
            n += step

    return along


def anyhow_with(kinds: Kinds, streaming: bool, count: int) -> Callable:
    """In place nothing may be done twice: what is less than a vector goes value by value."""
    read, single = reads_apart(kinds.read, kinds.working), single_with(kinds)
    write, step = writes_apart(kinds.written, kinds.working), kinds.lanes

    @inlined
    def along(f, x, out, i, k, start, size, channel, table, like):
        channels, columns = f.columns, f.terms
        x_step, x_channel = f.first_position, f.first_channel
        out_step, out_channel = f.out_position, f.out_channel
        n = 0
        while n < size:
            at, to = i + (start + n) * x_step, k + (start + n) * out_step
            whole = n + step <= size
            for c in range(channels):
                if whole:
                    terms = terms_of(table, columns, c, like)
                    write(out, to, out_step, compute((read(x, at, x_step),), terms))
                else:
                    single(x, at, out, to, columns, c, table, like)
                at += x_channel
                to += out_channel
            n += step if whole else 1

    return along


RUNS = {
    "rows": Run(rows_with, streaming=True),
    "lines": Run(lines_with, streaming=True),
    "split": Run(split_with, streaming=True, counts=True),
    "joined": Run(joined_with, streaming=False, counts=True),
    "anyhow": Run(anyhow_with, streaming=False),
}


@cache
def run_of(way: str, kinds: Kinds, streaming: bool, count: int) -> Callable:
    """The run of a way, made once."""
    return RUNS[way].make(kinds, streaming, count)
