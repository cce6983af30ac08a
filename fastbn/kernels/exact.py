"""Statistics without rounding: sums of integers, extremes, and copies in which no value is NaN.

Integers are added exactly, in any order. So these are plain loops over values, which LLVM makes
vectors of as it likes; threads, layouts and processors change no bit. Sums have 64 bits: a
square is below ``2**32``, so those of `MOST` values, the most that a call takes of a channel, fit.
Those of 8 bits are first added in 32, which is faster, `SHORT` values at a time.

Floating-point numbers are told by their bits. As a signed integer, a float is ordered by its *key*:
its bits, with all but the sign turned over where that is set. Every NaN has a key outside of
those of the two infinities, ``lowest`` to ``highest``. An integer is its own key: there ``flip``
is 0, and nothing lies outside.
"""

import numpy as np

from fastbn.kernels import formulas
from fastbn.kernels.compile import inlined, part
from fastbn.kernels.moments import COLUMNS, COUNT, HEADER, header_of
from fastbn.kernels.simd import frame_at, words_at

#: Values of a channel that a call takes at most: their squares must fit in 63 bits.
MOST = 1 << 31
#: Values of 8 bits whose squares 32 bits with a sign hold the sum of, and of a line.
SHORT = 1 << 15

key_of = inlined(formulas.ordering_key)
is_nan = inlined(formulas.is_nan)


@inlined
def begin_segment(f, segment, lo, sizes, like):
    """Write a segment's header: by one of its tasks, as no other thread is to store there."""
    if lo == 0:
        header = header_of(f, segment, like)
        header[COUNT], header[COLUMNS] = sizes


@inlined
def rows_of(f, segment, column, like):
    """The three rows of a segment's integers, from a column on."""
    start = f.partial + 8 * (HEADER + segment * (HEADER + 3 * f.columns) + column)
    return (
        words_at(start, like),
        words_at(start + 8 * f.columns, like),
        words_at(start + 16 * f.columns, like),
    )


@inlined
def totals_of(f, like):
    """The three rows of each channel."""
    return (
        words_at(f.statistics, like),
        words_at(f.statistics + 8 * f.channels, like),
        words_at(f.statistics + 16 * f.channels, like),
    )


@part("merge_integer_sums")
def merge_sums(frame, again, like):
    """Add all segments into three rows of numbers of each channel."""
    f = frame_at(frame)
    a, b, d = totals_of(f, like)
    for c in range(f.channels):
        a[c], b[c], d[c] = 0, 0, 0
    for segment in range(f.segments):
        columns = np.int64(header_of(f, segment, like)[COLUMNS])
        for first in range(0, columns, f.channels):
            rows = rows_of(f, segment, first, like)
            for c in range(f.channels):
                a[c] += rows[0][c]
                b[c] += rows[1][c]
                d[c] += rows[2][c]


@part("merge_extremes")
def merge_extremes(frame, again, like):
    """Merge all segments into smallest key, largest key and number of NaN of each channel."""
    f = frame_at(frame)
    low, high, missing = totals_of(f, like)
    for c in range(f.channels):
        low[c], high[c], missing[c] = f.highest, f.lowest, 0
    for segment in range(f.segments):
        columns = np.int64(header_of(f, segment, like)[COLUMNS])
        for first in range(0, columns, f.channels):
            rows = rows_of(f, segment, first, like)
            for c in range(f.channels):
                low[c], high[c] = min(low[c], rows[0][c]), max(high[c], rows[1][c])
                missing[c] += rows[2][c]
