"""Per-channel terms in the precision of the data: what the loops multiply and add.

All channels of a group at once: the first loops have no branches, and LLVM makes vectors
of them. Terms of extreme channels are then worked out again, in units (see `cpu_range`).
"""

import numpy as np

from fastbn.kernels import cpu_formulas as formulas
from fastbn.kernels.compile import inner
from fastbn.kernels.cpu_range import FAR, LEAST_RSTD, MOST_RSTD, center_of, narrow, unit_of


@inner
def residual(mean, center):
    """What rounding has left of the mean; none if there is no finite center."""
    return mean - center if np.isfinite(center) else 0.0


@inner
def may_have_unit(mean, rstd):
    """Whether `unit_of` may not be 1 or there is no finite center; also of a NaN."""
    return not (LEAST_RSTD <= rstd <= MOST_RSTD and abs(mean) <= FAR)


@inner
def fill_normalizing_terms(table, x, mean, var, weight, bias, eps):
    """Rows of ``table``: center, scale, shift of every channel, and both parts of its unit.

    Returns whether every unit is 1; then their rows are not filled.
    """
    center, scale, shift = table[0], table[1], table[2]
    odd = 0
    for c in range(mean.size):
        mu, rstd = np.float64(mean[c]), formulas.reciprocal_std(np.float64(var[c]), eps)
        center[c] = mu
        scale[c], shift[c] = formulas.affine_terms(
            mu - np.float64(center[c]), rstd, np.float64(weight[c]), np.float64(bias[c])
        )
        odd += may_have_unit(mu, rstd)
    if odd == 0 or not narrow(x):
        return True
    for c in range(mean.size):
        mu, rstd = np.float64(mean[c]), formulas.reciprocal_std(np.float64(var[c]), eps)
        center[c] = center_of(x, mu)
        a, shift[c] = formulas.affine_terms(
            residual(mu, np.float64(center[c])), rstd, np.float64(weight[c]), np.float64(bias[c])
        )
        unit = unit_of(x, mu, rstd)
        scale[c] = a / unit
        table[3, c], table[4, c] = min(unit, 1.0), max(unit, 1.0)
    return False


@inner
def fill_gradient_terms(table, x, count, mean, rstd, weight, sum_dy, sum_dy_xm):
    """Rows of ``table``: center, scale, slope, offset of every channel, and parts of its unit.

    Returns whether every unit is 1; then their rows are not filled.
    """
    center, scale, slope, offset = table[0], table[1], table[2], table[3]
    odd = 0
    for c in range(mean.size):
        center[c] = mean[c]
        scale[c], slope[c], offset[c] = formulas.input_gradient_terms(
            count, sum_dy[c], sum_dy_xm[c], mean[c] - np.float64(center[c]), rstd[c],
            np.float64(weight[c]),
        )  # fmt: skip
        odd += may_have_unit(mean[c], rstd[c])
    if odd == 0 or not narrow(x):
        return True
    for c in range(mean.size):
        center[c] = center_of(x, mean[c])
        scale[c], slope_of_one, offset[c] = formulas.input_gradient_terms(
            count, sum_dy[c], sum_dy_xm[c], residual(mean[c], np.float64(center[c])), rstd[c],
            np.float64(weight[c]),
        )  # fmt: skip
        unit = unit_of(x, mean[c], rstd[c])
        slope[c] = slope_of_one / unit
        table[4, c], table[5, c] = min(unit, 1.0), max(unit, 1.0)
    return False


@inner
def fill_centers(centers, x, mean, rstd):
    """Rows of ``centers``: mean in x's dtype, and unit, of every channel."""
    for c in range(mean.size):
        centers[0, c] = center_of(x, mean[c])
        centers[1, c] = unit_of(x, mean[c], rstd[c])


@inner
def fill_statistics(statistics, lo, hi, count, eps):
    """The second row of channels lo to hi from m2 to variance; the third: 1 / std."""
    var, rstd = statistics[1, lo:hi], statistics[2, lo:hi]
    for c in range(var.size):
        var[c] /= count
        rstd[c] = formulas.reciprocal_std(var[c], eps)


@inner
def center_products(sum_dy_xm, sum_dy, mean, center):
    """From sums of ``dy * (x - center)`` to sums of ``dy * (x - mean)``, in place."""
    for c in range(mean.size):
        sum_dy_xm[c] = formulas.centered_product_sum(
            sum_dy[c], sum_dy_xm[c], residual(mean[c], np.float64(center[c]))
        )


@inner
def fill_gradients(table, x, count, mean, rstd, weight, center, sums, d_weight, d_bias):
    """Gradients of weight and bias, and `fill_gradient_terms`, which it returns.

    ``sums`` has rows of ``dy`` and of ``dy * (x - center)``.
    """
    sum_dy, sum_dy_xm = sums[0], sums[1]
    center_products(sum_dy_xm, sum_dy, mean, center)
    for c in range(mean.size):
        d_weight[c] = formulas.weight_gradient(sum_dy_xm[c], rstd[c])
        d_bias[c] = sum_dy[c]
    return fill_gradient_terms(table, x, count, mean, rstd, weight, sum_dy, sum_dy_xm)
