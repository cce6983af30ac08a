"""What runs in compiled code of users: a row or a line normalized, the moments of a row.

The formulas, loops and parts are those of fastbn's own operations, and so are the bits. They are
linked into the code that calls them: no address is kept, and Numba may store it on disk.
"""

import numpy as np
from numba import types

from fastbn.kernels import formulas, loops, pointwise
from fastbn.kernels.channels_first import cut, sums
from fastbn.kernels.compile import inlined, inner, offered_inside
from fastbn.kernels.frame import WORDS
from fastbn.kernels.merge import merge_moments as merging
from fastbn.kernels.moments import HEADER
from fastbn.kernels.parts import OPERATIONS
from fastbn.kernels.simd import (
    address_of,
    allocate,
    compiled_formula,
    doubles_at,
    frame_at,
    free,
    stores,
    values_at,
    words_at,
)

#: Rows of the table of terms.
ROWS = 3
#: Bytes of float64 results between the frame and the segments.
RESULTS = 8 * 8

operation = pointwise.plain("normalize")
row_loop = loops.rows_with(operation.compute, stores)
line_loop = loops.lines_with(1, operation.compute, operation.terms_along(1), stores)
constant_terms = operation.constant_terms

chain = OPERATIONS["moments"].row_chain
lines_of = offered_inside(cut.lines_of)
rows_of_block = offered_inside(cut.rows_of_block)
rows_of_segment = offered_inside(cut.rows_of_segment)
moments_of_segment, wide_moments_of_segment = sums.moments.inside, sums.wide_moments.inside
merge_segments = merging.inside
merge = compiled_formula(formulas.merge)
is_finite = compiled_formula(formulas.is_finite)


# --- normalize ------------------------------------------------------------------------------------


@inlined
def check_apart(row, out):
    """Refuse memory that is shared, but for the same array."""
    distance, size = address_of(out) - address_of(row), row.size * row.itemsize
    if distance != 0 and -size < distance and distance < size:
        raise ValueError("out overlaps what is read without being the same array")


@inner
def run_row(row, terms, channel, out):
    pointer, table = values_at(address_of(row), row), values_at(address_of(terms), terms)
    row_loop(
        (pointer,), (0,), values_at(address_of(out), out), 0, row.size,
        constant_terms((table, terms.shape[1]), channel, pointer),
    )  # fmt: skip


@inner
def run_line(line, terms, out):
    pointer, table = values_at(address_of(line), line), values_at(address_of(terms), terms)
    line_loop(
        (table, terms.shape[1]), pointer, (pointer,), (0,), (0,),
        values_at(address_of(out), out), 0, 0, line.size, 0,
    )  # fmt: skip


def normalize_row(row, terms, channel, out):
    if terms.shape[0] != 3:
        raise ValueError("terms must have 3 rows: center, scale and shift of each channel")
    if channel < 0 or channel >= terms.shape[1]:
        raise IndexError("channel is out of the bounds of terms")
    if row.shape != out.shape:
        raise ValueError("row and out must have the same shape")
    check_apart(row, out)
    run_row(row, terms, np.int64(channel), out)


def normalize_line(line, terms, out):
    if terms.shape[0] != 3:
        raise ValueError("terms must have 3 rows: center, scale and shift of each channel")
    if line.size != terms.shape[1]:
        raise ValueError("line must have as many values as terms has channels")
    if line.size != out.size:
        raise ValueError("line and out must have the same size")
    check_apart(line, out)
    run_line(line, terms, out)


# --- moments --------------------------------------------------------------------------------------


@inlined
def lay_out(address, row, lines):
    """A frame that says: one channel, one row, and where its sums go."""
    words = words_at(address, row)
    for k in range(WORDS):
        words[k] = 0
    f = frame_at(address)
    f.first, f.item_bytes, f.value_bytes = address_of(row), row.itemsize, row.itemsize
    f.rows, f.length, f.channels, f.all_channels = 1, row.size, 1, 1
    f.group, f.groups, f.columns, f.terms = 1, 1, 1, 1
    f.pieces, f.piece, f.block, f.segment_lines, f.segments = lines
    f.statistics = address + 8 * WORDS
    f.sums, f.marks = f.statistics + 24, f.statistics + 40
    f.partial = f.statistics + RESULTS


def moments_of_row(row):
    """All steps of the operation ``moments``; what is marked is summed and merged once more."""
    if row.size == 0:
        return 0.0, 0.0, 0.0
    lines = lines_of(1, row.size, chain)
    address = allocate(8 * WORDS + RESULTS + 8 * lines[4] * (HEADER + 3))
    if address == 0:
        raise MemoryError("no memory for the sums of a row")
    lay_out(address, row, lines)
    f, pointer = frame_at(address), values_at(address_of(row), row)
    found = doubles_at(f.statistics, row)
    for again in range(2):
        if again > 0 and f.marked == 0:
            break
        for segment in range(f.segments):
            if again > 0:
                wide_moments_of_segment(address, segment, pointer)
            else:
                moments_of_segment(address, segment, pointer)
        merge_segments(address, again, found)
    mean, m2 = found[0], found[1]
    free(address)
    return float(row.size), float(mean), float(m2)


def merged_moments(count_a, mean_a, m2_a, count_b, mean_b, m2_b):
    a, b = np.float64(count_a), np.float64(count_b)
    if a + b == 0.0:
        return 0.0, 0.0, 0.0
    count, mean, m2 = merge(
        a, np.float64(mean_a), np.float64(m2_a), b, np.float64(mean_b), np.float64(m2_b)
    )
    if not is_finite(mean):  # infinity stays infinity
        mean = (a * mean_a + b * mean_b) / count
    return float(count), float(mean), float(m2)


# --- which types they take ------------------------------------------------------------------------


def _check(name, kind, dimensions=None, like=None, written=False):
    """TypeError for what is no such array; each message says the way out."""
    if not isinstance(kind, types.Array):
        raise TypeError(f"{name} must be an array of float32 or float64, got {kind}")
    if kind.dtype not in (types.float32, types.float64):
        raise TypeError(
            f"{name} must be of float32 or float64, got {kind.dtype}; {name}.astype(np.float32)"
        )
    if like is not None and kind.dtype != like.dtype:
        raise TypeError(
            f"{name} is of {kind.dtype}, and the values to normalize are of {like.dtype}; make "
            f"terms with normalizing_terms(..., dtype=np.{like.dtype})"
        )
    if dimensions is not None and kind.ndim != dimensions:
        raise TypeError(f"{name} must have {dimensions} dimensions, got {kind.ndim}")
    if kind.layout != "C" and not (kind.ndim == 1 and kind.layout == "F"):
        raise TypeError(
            f"{name} must be C-contiguous, which is known of it when code is compiled, got "
            f"{kind}; np.ascontiguousarray({name}), or that of the array that it is a slice of"
        )
    if written and not kind.mutable:
        raise TypeError(f"{name} is read-only, expected a writable array")


def check_row(row, terms, channel, out):
    _check("row", row)
    _check("terms", terms, 2, row)
    if not isinstance(channel, types.Integer):
        raise TypeError(f"channel must be an integer, got {channel}")
    _check("out", out, row.ndim, row, written=True)


def check_line(line, terms, out):
    _check("line", line, 1)
    _check("terms", terms, 2, line)
    _check("out", out, 1, line, written=True)


def check_moments(row):
    _check("row", row)


def check_numbers(*numbers):
    for number in numbers:
        if not isinstance(number, (types.Float, types.Integer)):
            raise TypeError(f"counts, means and m2 must be numbers, got {number}")
