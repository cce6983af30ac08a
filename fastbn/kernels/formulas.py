"""The mathematics of batch normalization, each formula once.

Plain Python without branches on types: the same functions run on Python
floats, on NumPy arrays, on SIMD vectors inside a CPU kernel and on scalars
inside a GPU kernel. Statistics are float64 everywhere.
"""

import numpy as np


def merge(count_a, mean_a, m2_a, count_b, mean_b, m2_b):
    """Statistics of two samples taken together (Chan, Golub & LeVeque 1979, eq. 2.1).

    ``m2`` is the sum of squared deviations from the mean. The combined count
    must be positive.
    """
    count = count_a + count_b
    weight = count_b / count
    delta = mean_b - mean_a
    return count, mean_a + delta * weight, m2_a + m2_b + delta * (delta * (count_a * weight))


def moments_from_sums(count, shift, total, squares):
    """Mean and m2 of a block from its sums of ``d`` and ``d * d``, with ``d = x - shift``."""
    offset = total / count
    return shift + offset, np.maximum(squares - offset * total, 0.0)


def median(a, b, c):
    """The middle one of three."""
    return np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c))


def reciprocal_std(var, eps):
    """``1 / sqrt(var + eps)``: eps stands inside the root (Ioffe & Szegedy 2015, alg. 1)."""
    return 1.0 / np.sqrt(var + eps)


def mean_square(mean, var):
    """The mean of ``x * x`` from mean and variance of x."""
    return mean * mean + var


def is_finite(value):
    """Neither infinite nor NaN."""
    return abs(value) < np.inf


def ordering_key(bits, flip):
    """A float's bits as an integer that orders floats, ``flip`` being all but the sign.

    Its own reverse.
    """
    return bits ^ ((bits >> 63) & flip)


def is_nan(bits, flip, infinity):
    """Whether the bits are those of no number, by the bits of infinity and all but the sign."""
    return (bits & flip) > infinity


def center_of(mean, largest):
    """What is subtracted for ``mean``: it itself, but finite where it is; to be rounded."""
    return np.where(is_finite(mean), np.minimum(np.maximum(mean, -largest), largest), mean)


def residual(mean, center):
    """What rounding has left of the mean; nothing if there is no finite center."""
    return np.where(is_finite(center), mean - center, 0.0)


def affine_terms(residual, rstd, weight, bias):
    """Scale and shift for `normalize`, which subtracts ``center`` instead of the mean.

    ``center`` is the mean rounded to the precision of the data, ``residual`` is
    ``mean - center``: the shift makes up for the rounding, so nothing is lost when the
    mean is far from zero.
    """
    scale = weight * rstd
    return scale, bias - residual * scale


def normalize(x, center, scale, shift):
    """``y = (x - center) * scale + shift``."""
    return (x - center) * scale + shift


def normalize_each(x, weight, bias, center, scale, shift):
    """`normalize`, with a weight and a bias for each value along a row: as layer norm has them."""
    return normalize(x, center, scale, shift) * weight + bias


def centered_product_sum(sum_dy, sum_dy_xc, residual):
    """``sum(dy * (x - mean))`` from ``sum(dy * (x - center))``."""
    return sum_dy_xc - residual * sum_dy


def weight_gradient(sum_dy_xm, rstd):
    """``sum(dy * x_hat)``, where ``sum_dy_xm`` is ``sum(dy * (x - mean))``."""
    return sum_dy_xm * rstd


def input_gradient_terms(count, sum_dy, sum_dy_xm, residual, rstd, weight):
    """Scale, slope and offset for `input_gradient` under batch statistics.

    From ``dx = weight * rstd * (dy - mean(dy) - x_hat * mean(dy * x_hat))``
    (Ioffe & Szegedy 2015, section 3, with the sums carried out).
    """
    scale = weight * rstd
    slope = -scale * (rstd * (rstd * (sum_dy_xm / count)))  # no power of rstd by itself
    return scale, slope, -scale * (sum_dy / count) - slope * residual


def input_gradient(dy, x, center, scale, slope, offset):
    """``dx = dy * scale + (x - center) * slope + offset``."""
    return dy * scale + ((x - center) * slope + offset)


def bessel(count):
    """Bessel's correction: what makes the variance of so many values unbiased."""
    return count / (count - 1.0)


def unbiased(var, count):
    """Variance with Bessel's correction: ``var * count / (count - 1)``."""
    return var * bessel(count)


def running_update(running, batch, momentum):
    """Exponential average in torch's sense: ``momentum`` is the weight of the new batch."""
    return (1.0 - momentum) * running + momentum * batch


def renorm_terms(mean, rstd, running_mean, running_rstd, r_max, d_max):
    """``r`` and ``d`` of batch renormalization (Ioffe 2017, algorithm 1), each within its limits.

    ``r = sigma_batch / sigma`` and ``d = (mean - running_mean) / sigma``, with ``sigma`` the
    running one and ``rstd = 1 / sigma``: ``x_hat * r + d`` is x normalized with running statistics.
    """
    r, d = running_rstd / rstd, (mean - running_mean) * running_rstd
    return (
        np.minimum(np.maximum(r, 1.0 / r_max), r_max),
        np.minimum(np.maximum(d, -d_max), d_max),
    )


def renorm_affine(r, d, weight, bias):
    """Weight and bias for x_hat that are ``(x_hat * r + d) * weight + bias``."""
    return weight * r, bias + weight * d


def renorm_weight_gradient(r, d, d_weight, d_bias):
    """``sum(dy * (x_hat * r + d))``, where ``d_weight`` is ``sum(dy * x_hat)``."""
    return r * d_weight + d * d_bias


def mean_error(count):
    """Standard error of the mean of so many independent values, in their standard deviations."""
    return 1.0 / np.sqrt(count)


def variance_error(count):
    """Relative standard error of the unbiased variance of so many independent normal values."""
    return np.sqrt(2.0 / (count - 1.0))
