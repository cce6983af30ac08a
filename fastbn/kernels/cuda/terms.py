"""What is worked out once per channel: statistics and gradients from sums, terms from those.

Per channel, ``statistics`` has the mean, the variance and ``1 / sqrt(var + eps)``, all means first,
in float64, as on the CPU. Every thread works its channel's terms out for itself.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import float64

from fastbn.kernels import formulas
from fastbn.kernels.cuda.compile import device, device_formula

_moments_from_sums = device_formula(formulas.moments_from_sums)
_reciprocal_std = device_formula(formulas.reciprocal_std)
_running_update = device_formula(formulas.running_update)
_unbiased = device_formula(formulas.unbiased)
_center_of = device_formula(formulas.center_of)
_residual = device_formula(formulas.residual)
_affine_terms = device_formula(formulas.affine_terms)
_centered_product_sum = device_formula(formulas.centered_product_sum)
_weight_gradient = device_formula(formulas.weight_gradient)
_input_gradient_terms = device_formula(formulas.input_gradient_terms)


@device
def value_or(array, channel, otherwise):
    """A parameter that may be absent, which is an array of no values."""
    return float64(array[channel]) if array.size > 0 else float64(otherwise)


@device
def finish_moments(u, v, shift, channel, channels, count, eps, statistics):
    """A channel's statistics from its sums around a shift."""
    mean, m2 = _moments_from_sums(float64(count), shift, u, v)
    var = m2 / count
    statistics[channel] = mean
    statistics[channels + channel] = var
    statistics[2 * channels + channel] = _reciprocal_std(var, eps)


@device
def update_running(channel, channels, count, momentum, statistics, running_mean, running_var):
    """Move a channel's running statistics, if there are any, towards the batch's."""
    if running_mean.size > 0:
        running_mean[channel] = _running_update(
            float64(running_mean[channel]), statistics[channel], momentum
        )
        var = _unbiased(statistics[channels + channel], float64(count))
        running_var[channel] = _running_update(float64(running_var[channel]), var, momentum)


class Terms(NamedTuple):
    """Device functions that work out a channel's terms, for data that is computed in one type."""

    center: object
    normalizing: object
    gradient: object
    finish_products: object


@lru_cache
def terms_of(kind) -> Terms:
    """Terms for data that is computed in float32 or float64."""
    largest = float(np.finfo(str(kind)).max)

    @device
    def center_of(mean):
        return kind(_center_of(mean, largest))

    @device
    def normalizing_terms(mean, rstd, weight, bias):
        """Center, scale and shift."""
        center = center_of(mean)
        scale, shift = _affine_terms(_residual(mean, float64(center)), rstd, weight, bias)
        return center, kind(scale), kind(shift)

    @device
    def gradient_terms(count, sum_dy, sum_dy_xc, mean, rstd, weight):
        """Center, scale, slope and offset."""
        center = center_of(mean)
        rest = _residual(mean, float64(center))
        sum_dy_xm = _centered_product_sum(sum_dy, sum_dy_xc, rest)
        scale, slope, offset = _input_gradient_terms(
            float64(count), sum_dy, sum_dy_xm, rest, rstd, weight
        )
        return center, kind(scale), kind(slope), kind(offset)

    @device
    def finish_products(sum_dy, sum_dy_xc, channel, mean, rstd, d_weight, d_bias):
        """A channel's gradients of weight and bias."""
        rest = _residual(mean, float64(center_of(mean)))
        d_weight[channel] = _weight_gradient(_centered_product_sum(sum_dy, sum_dy_xc, rest), rstd)
        d_bias[channel] = sum_dy

    return Terms(center_of, normalizing_terms, gradient_terms, finish_products)
