"""Per-channel terms in the precision of the data: what the loops multiply and add."""

import numpy as np

from fastbn.kernels import cpu_formulas as formulas
from fastbn.kernels.compile import inner
from fastbn.kernels.cpu_range import center_of, unit_of


@inner
def residual(mean, center):
    """What rounding has left of the mean; none if there is no finite center."""
    return mean - center if np.isfinite(center) else 0.0


@inner
def normalizing_terms(x, mean, var, weight, bias, eps):
    """Center, scale, shift and unit of one channel; the scale is that of units."""
    rstd = formulas.reciprocal_std(var, eps)
    center = center_of(x, mean)
    scale, shift = formulas.affine_terms(residual(mean, center), rstd, weight, bias)
    unit = unit_of(x, mean, rstd)
    return center, scale / unit, shift, unit


@inner
def gradient_terms(x, count, sum_dy, sum_dy_xm, mean, rstd, weight):
    """Center, scale, slope, offset and unit of one channel; the slope is that of units."""
    center = center_of(x, mean)
    scale, slope, offset = formulas.input_gradient_terms(
        count, sum_dy, sum_dy_xm, residual(mean, center), rstd, weight
    )
    unit = unit_of(x, mean, rstd)
    return center, scale, slope / unit, offset, unit
