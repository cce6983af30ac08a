"""Channels-first: statistics and gradient sums of one segment of a group of channels.

Short rows: many channels together, sample by sample. Long rows: channel by channel, a part
of a row at a time. Which it is follows from the shape.
"""

import numpy as np

from fastbn.kernels import cpu_formulas as formulas
from fastbn.kernels.compile import inner
from fastbn.kernels.cpu_first_cut import (
    BLOCK,
    SEGMENT,
    count_pieces,
    piece_bounds,
    rows_of_block,
    rows_of_segment,
)
from fastbn.kernels.cpu_first_row_sums import (
    block_products,
    block_sums,
    piece_products,
    piece_sums,
)
from fastbn.kernels.cpu_groups import is_far, segment_moments_of, segment_products_of
from fastbn.kernels.cpu_range import finite_or
from fastbn.kernels.vector import rounded

FIRST = 256  # values that the first shift of a long row is the mean of

short_moments = segment_moments_of(block_sums)
short_products = segment_products_of(block_products)


@inner
def long_moments(x, base, outer, length, stride, segment):
    """Mean and m2 of one segment of one channel; the shift as with short rows."""
    first = segment * SEGMENT
    row, start, size = piece_bounds(first, length)
    position = base + row * stride + start
    shift = finite_or(np.float64(x[position]), 0.0)
    n = min(size, FIRST)
    sums, _ = piece_sums(x, position, n, shift)
    shift = finite_or(rounded(x, shift + sums / n), 0.0)
    count, mean, m2 = 0.0, 0.0, 0.0
    for piece in range(first, min(first + SEGMENT, count_pieces(outer, length))):
        row, start, size = piece_bounds(piece, length)
        position = base + row * stride + start
        n = np.float64(size)
        sums, squares = piece_sums(x, position, size, shift)
        if piece == first and is_far(sums, squares, n):
            shift = finite_or(rounded(x, shift + sums / n), shift)
            sums, squares = piece_sums(x, position, size, shift)
        piece_mean, piece_m2 = formulas.moments_from_sums(n, shift, sums, squares)
        count, mean, m2 = formulas.merge(count, mean, m2, n, piece_mean, piece_m2)
        shift = finite_or(rounded(x, mean), shift)
    return mean, m2


@inner
def segment_moments(x, geometry, segment, lo, hi, mean, m2):
    """Mean and m2 of channels lo to hi over one segment."""
    outer, _, length, stride, distance = geometry
    if length <= BLOCK:
        block = rows_of_block(length)
        size = rows_of_segment(outer, length)
        first = segment * size
        rows = min(size, outer - first)
        start = first * stride + lo * distance
        short_moments(x, start, rows, stride, (length, distance), block, mean, m2)
        return
    for c in range(hi - lo):
        mean[c], m2[c] = long_moments(x, (lo + c) * distance, outer, length, stride, segment)


@inner
def segment_products(dy, x, geometry, segment, lo, hi, center, unit, sum_dy, sum_dy_xc):
    """Sums of ``dy`` and ``dy * (x - center)`` of channels lo to hi over one segment."""
    outer, _, length, dy_stride, dy_distance, x_stride, x_distance = geometry
    if length <= BLOCK:
        block = rows_of_block(length)
        size = rows_of_segment(outer, length)
        first = segment * size
        short_products(
            dy, first * dy_stride + lo * dy_distance, dy_stride,
            x, first * x_stride + lo * x_distance, x_stride,
            min(size, outer - first), (length, dy_distance, x_distance), block,
            center, unit, sum_dy, sum_dy_xc,
        )  # fmt: skip
        return
    first = segment * SEGMENT
    for c in range(hi - lo):
        sum_dy[c], sum_dy_xc[c] = 0.0, 0.0
        for piece in range(first, min(first + SEGMENT, count_pieces(outer, length))):
            row, start, size = piece_bounds(piece, length)
            s, p = piece_products(
                dy, (lo + c) * dy_distance + row * dy_stride + start,
                x, (lo + c) * x_distance + row * x_stride + start,
                size, center[c], unit[c],
            )  # fmt: skip
            sum_dy[c] += s
            sum_dy_xc[c] += p
