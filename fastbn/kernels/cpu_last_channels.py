"""Channels-last: from the columns of lines to channels, and back to columns of terms."""

import numpy as np

from fastbn.kernels import cpu_formulas as formulas
from fastbn.kernels.compile import inner
from fastbn.kernels.cpu_last_cut import segment_bounds
from fastbn.kernels.cpu_range import center_of, unit_of
from fastbn.kernels.cpu_terms import gradient_terms, normalizing_terms, residual


@inner
def merge_segments(partial, rows, channels, fold, lo, hi, mean, m2):
    """Merge segments and folds, in order, into channels lo to hi; ``m2`` over all rows."""
    mean[lo:hi] = 0.0
    m2[lo:hi] = 0.0
    count = 0.0
    for segment in range(partial.shape[0]):
        _, lines, columns = segment_bounds(segment, rows, channels, fold)
        for first in range(0, columns, channels):
            mu, q = partial[segment, 0, first:], partial[segment, 1, first:]
            for c in range(lo, hi):
                _, mean[c], m2[c] = formulas.merge(
                    count, mean[c], m2[c], np.float64(lines), mu[c], q[c]
                )
            count += lines


@inner
def plain_means(x, rows, stride, lo, hi, mean):
    """Mean of channels with infinities in them: infinity or NaN, as a plain sum has it."""
    for c in range(lo, hi):
        if not np.isfinite(mean[c]):
            mean[c] = 0.0
            for row in range(rows):
                mean[c] += np.float64(x[row * stride + c])
            mean[c] /= rows


@inner
def add_segments(partial, rows, channels, fold, lo, hi, sum_dy, sum_dy_xc):
    """Add segments and folds, in order, into channels lo to hi."""
    sum_dy[lo:hi] = 0.0
    sum_dy_xc[lo:hi] = 0.0
    for segment in range(partial.shape[0]):
        _, _, columns = segment_bounds(segment, rows, channels, fold)
        for first in range(0, columns, channels):
            s, p = partial[segment, 0, first:], partial[segment, 1, first:]
            for c in range(lo, hi):
                sum_dy[c] += s[c]
                sum_dy_xc[c] += p[c]


@inner
def fill_terms(table, x, lo, hi, mean, var, weight, bias, eps):
    """Rows of ``table``: center, scale, shift, parts of the unit, of channels lo to hi, repeated.

    Returns whether every unit is 1.
    """
    channels = hi - lo
    plain = True
    for c in range(channels):
        k = lo + c
        table[0, c], table[1, c], table[2, c], unit = normalizing_terms(
            x,
            np.float64(mean[k]),
            np.float64(var[k]),
            np.float64(weight[k]),
            np.float64(bias[k]),
            eps,
        )
        table[3, c], table[4, c] = min(unit, 1.0), max(unit, 1.0)
        plain &= unit == 1.0
    repeat_columns(table, channels)
    return plain


@inner
def fill_gradient_terms(table, x, lo, hi, count, mean, rstd, weight, sum_dy, sum_dy_xm):
    """Rows of ``table``: center, scale, slope, offset, parts of the unit, repeated.

    Returns whether every unit is 1.
    """
    channels = hi - lo
    plain = True
    for c in range(channels):
        k = lo + c
        table[0, c], table[1, c], table[2, c], table[3, c], unit = gradient_terms(
            x, count, sum_dy[k], sum_dy_xm[k], mean[k], rstd[k], weight[k]
        )
        table[4, c], table[5, c] = min(unit, 1.0), max(unit, 1.0)
        plain &= unit == 1.0
    repeat_columns(table, channels)
    return plain


@inner
def repeat_columns(table, channels):
    """Copy the first ``channels`` columns to all further ones."""
    for row in range(table.shape[0]):
        for c in range(channels, table.shape[1]):
            table[row, c] = table[row, c - channels]


@inner
def fill_centers(centers, x, mean, rstd, lo, hi):
    """Rows of ``centers``: mean of channels lo to hi in x's dtype, and unit, repeated."""
    for c in range(hi - lo):
        centers[0, c] = center_of(x, mean[lo + c])
        centers[1, c] = unit_of(x, mean[lo + c], rstd[lo + c])
    repeat_columns(centers, hi - lo)


@inner
def center_products(sum_dy_xm, sum_dy, mean, center, lo, hi):
    """From sums of ``dy * (x - center)`` to sums of ``dy * (x - mean)``, in place."""
    for c in range(lo, hi):
        sum_dy_xm[c] = formulas.centered_product_sum(
            sum_dy[c], sum_dy_xm[c], residual(mean[c], np.float64(center[c - lo]))
        )
