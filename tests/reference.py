"""Batch normalization as the textbook has it: NumPy in float64 or better, nothing of fastbn.

Every function takes the channel axis. Sums run in long double, so that the last digit of a
float64 result can be judged. Ioffe & Szegedy 2015.
"""

import math
from fractions import Fraction

import numpy as np


def other_axes(ndim, axis):
    return tuple(k for k in range(ndim) if k != axis % ndim)


def per_channel(vector, ndim, axis):
    """A (C,) vector in the shape that broadcasts along ``axis``."""
    shape = [1] * ndim
    shape[axis % ndim] = -1
    return np.asarray(vector, np.longdouble).reshape(shape)


def mean_and_var(x, axis):
    """Mean and biased variance over everything but the channel axis, in two passes."""
    x = np.asarray(x, np.longdouble)
    axes = other_axes(x.ndim, axis)
    mean = x.mean(axes)
    var = ((x - per_channel(mean, x.ndim, axis)) ** 2).mean(axes)
    return mean, var


def normalize(x, mean, var, weight, bias, eps, axis):
    x = np.asarray(x, np.longdouble)
    mean, var, weight, bias = (per_channel(v, x.ndim, axis) for v in (mean, var, weight, bias))
    return weight * (x - mean) / np.sqrt(var + eps) + bias


def forward(x, weight, bias, eps, axis):
    """Output, mean and biased variance with the statistics of the batch."""
    mean, var = mean_and_var(x, axis)
    return normalize(x, mean, var, weight, bias, eps, axis), mean, var


def running_step(running_mean, running_var, x, momentum, axis):
    """Running statistics after one more batch; the variance that goes in is unbiased."""
    mean, var = mean_and_var(x, axis)
    m = x.size // x.shape[axis]
    return (
        (1 - momentum) * np.asarray(running_mean, np.longdouble) + momentum * mean,
        (1 - momentum) * np.asarray(running_var, np.longdouble) + momentum * var * m / (m - 1),
    )


def backward(dy, x, mean, var, weight, eps, axis, batch_statistics):
    """Gradients in x, weight and bias, step by step as in section 3 of the paper."""
    dy, x = np.asarray(dy, np.longdouble), np.asarray(x, np.longdouble)
    axes = other_axes(x.ndim, axis)
    m = x.size // x.shape[axis]
    mean, var, weight = (per_channel(v, x.ndim, axis) for v in (mean, var, weight))
    std = np.sqrt(var + eps)
    x_hat = (x - mean) / std
    d_x_hat = dy * weight
    dx = d_x_hat / std
    if batch_statistics:
        d_var = (d_x_hat * (x - mean)).sum(axes, keepdims=True) * -0.5 * (var + eps) ** -1.5
        d_mean = (-d_x_hat / std).sum(axes, keepdims=True)
        d_mean = d_mean + d_var * (-2 * (x - mean)).mean(axes, keepdims=True)
        dx = dx + d_var * 2 * (x - mean) / m + d_mean / m
    return dx, (dy * x_hat).sum(axes), dy.sum(axes)


def numerical_gradient(loss, values, step=1e-6):
    """Central differences of a scalar function, one element at a time."""
    gradient = np.empty_like(values)
    for index in np.ndindex(values.shape):
        kept = values[index]
        values[index] = kept + step
        high = loss(values)
        values[index] = kept - step
        low = loss(values)
        values[index] = kept
        gradient[index] = (high - low) / (2 * step)
    return gradient


def numerical_gradient_by_channel(loss, values, axis, step=1e-6):
    """The same of a loss for each channel, where no channel has a part in another's.

    One element of every channel is moved at a time. If channels did mix, it would show.
    """
    gradient = np.empty_like(values)
    there, found = (np.moveaxis(array, axis, -1) for array in (values, gradient))
    for index in np.ndindex(there.shape[:-1]):
        kept = there[index].copy()
        there[index] = kept + step
        high = loss(values)
        there[index] = kept - step
        low = loss(values)
        there[index] = kept
        found[index] = (high - low) / (2 * step)
    return gradient


# --- norms whose statistics are each sample's own -------------------------------------------------


def norm(x, axes, weight, bias, eps, centered=True):
    """``(x - mean) / sqrt(var + eps) * weight + bias`` over some axes; parameters broadcast.

    Not ``centered``: no mean is subtracted, and the mean of squares stands for the variance.
    """
    x = np.asarray(x, np.longdouble)
    mean = x.mean(axes, keepdims=True) if centered else 0
    var = ((x - mean) ** 2).mean(axes, keepdims=True)
    return (x - mean) / np.sqrt(var + eps) * weight + bias


def norm_backward(dy, x, weight, eps, centered=True):
    """Gradients of `norm` over the last axis in x, weight and bias, step by step."""
    dy, x = np.asarray(dy, np.longdouble), np.asarray(x, np.longdouble)
    mean = x.mean(-1, keepdims=True) if centered else 0
    std = np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + eps)
    x_hat = (x - mean) / std
    d_hat = dy * weight
    d_var = (d_hat * x_hat).mean(-1, keepdims=True)
    d_mean = d_hat.mean(-1, keepdims=True) if centered else 0
    dx = (d_hat - d_mean - x_hat * d_var) / std
    rows = tuple(range(x.ndim - 1))
    return dx, (dy * x_hat).sum(rows), dy.sum(rows)


def group_norm(x, groups, weight, bias, eps, axis=1):
    """Wu & He 2018: channels in ``groups``, each normalized by itself in each sample."""
    x = np.moveaxis(np.asarray(x, np.longdouble), axis, 1)
    grouped = x.reshape(len(x), groups, -1)
    y = norm(grouped, -1, 1, 0, eps).reshape(x.shape)
    y = y * per_channel(weight, x.ndim, 1) + per_channel(bias, x.ndim, 1)
    return np.moveaxis(y, 1, axis)


def group_norm_backward(dy, x, groups, weight, eps, axis=1):
    """Gradients of `group_norm` in x, weight and bias."""
    dy, x = (np.moveaxis(np.asarray(v, np.longdouble), axis, 1) for v in (dy, x))
    grouped, d_hat = (
        v.reshape(len(x), groups, -1) for v in (x, dy * per_channel(weight, x.ndim, 1))
    )
    dx = norm_backward(d_hat, grouped, 1, eps)[0].reshape(x.shape)
    x_hat = norm(grouped, -1, 1, 0, eps).reshape(x.shape)
    others = other_axes(x.ndim, 1)
    return np.moveaxis(dx, 1, axis), (dy * x_hat).sum(others), dy.sum(others)


# --- activations: functions of a long double, or of an array of them ----------------------------


def _where(z, *pieces):
    """``value`` of the first ``(condition, value)`` that holds, else the last; NaN stays NaN."""
    *conditions, rest = pieces
    found = np.select([c for c, _ in conditions], [v for _, v in conditions], rest)
    return np.where(np.isnan(z), z, found)


def sigmoid(z):
    return np.exp(-np.logaddexp(np.longdouble(0), -z))


def bell(z):
    """The derivative of `sigmoid`."""
    return 1 / (4 * np.cosh(z / 2) ** 2)


def gelu_argument(z):
    """Whose sigmoid gelu (tanh form) multiplies z with, and its derivative."""
    factor = 2 * np.sqrt(2 / (4 * np.arctan(np.longdouble(1))))
    cube = np.longdouble(0.044715)
    return factor * (z + cube * z**3), factor * (1 + 3 * cube * z**2)


def gelu_derivative(z):
    z = np.clip(z, -150, 150)  # beyond, it is 0 or 1
    inside, slope = gelu_argument(z)
    return sigmoid(inside) + z * bell(inside) * slope


#: By name: the function, and its derivative (at a kink, that of torch).
ACTIVATIONS = {
    "relu": (lambda z: _where(z, (z < 0, 0), z), lambda z: _where(z, (z <= 0, 0), 1)),
    "relu6": (
        lambda z: _where(z, (z < 0, 0), (z > 6, 6), z),
        lambda z: _where(z, (z <= 0, 0), (z >= 6, 0), 1),
    ),
    "leaky_relu": (
        lambda z, slope: _where(z, (z > 0, z), slope * z),
        lambda z, slope: _where(z, (z > 0, 1), slope),
    ),
    "hardswish": (
        lambda z: _where(z, (z < -3, 0 * z), (z > 3, z), z * (z + 3) / 6),
        lambda z: _where(z, (z <= -3, 0), (z >= 3, 1), (2 * z + 3) / 6),
    ),
    "silu": (lambda z: z * sigmoid(z), lambda z: sigmoid(z) + z * bell(z)),
    "sigmoid": (sigmoid, bell),
    "tanh": (np.tanh, lambda z: 1 / np.cosh(z) ** 2),
    "gelu_tanh": (lambda z: z * sigmoid(gelu_argument(z)[0]), gelu_derivative),
}


def exponential_coefficients(degree, width):
    """The polynomial that is ``(e**r - 1 - r) / r**2`` at the Chebyshev nodes of -width to width.

    In exact fractions, but for the places of the nodes: Newton's divided differences.
    """
    nodes = [
        Fraction(width) * Fraction(math.cos(math.pi * (k + 0.5) / (degree + 1)))
        for k in range(degree + 1)
    ]
    factors = [sum(r**k / math.factorial(k + 2) for k in range(30)) for r in nodes]
    for order in range(1, degree + 1):
        for k in range(degree, order - 1, -1):
            factors[k] = (factors[k] - factors[k - 1]) / (nodes[k] - nodes[k - order])
    found = [Fraction(0)]
    for factor, node in zip(reversed(factors), reversed(nodes), strict=True):
        moved = [Fraction(0), *found]
        found = [up - node * own for up, own in zip(moved, [*found, Fraction(0)], strict=True)]
        found[0] += factor
    return [float(coefficient) for coefficient in found[: degree + 1]]


# --- batch norm for small batches -----------------------------------------------------------------


def renorm_terms(x, running_mean, running_var, r_max, d_max, eps, axis):
    """r and d of Ioffe 2017, algorithm 1."""
    mean, var = mean_and_var(x, axis)
    sigma_batch, sigma = np.sqrt(var + eps), np.sqrt(np.asarray(running_var, np.longdouble) + eps)
    r = np.clip(sigma_batch / sigma, 1 / np.longdouble(r_max), r_max)
    return r, np.clip((mean - running_mean) / sigma, -d_max, d_max)


def renorm(x, r, d, weight, bias, eps, axis):
    """Output of batch renormalization in training."""
    x_hat = forward(x, np.ones(x.shape[axis]), np.zeros(x.shape[axis]), eps, axis)[0]
    r, d, weight, bias = (per_channel(v, x.ndim, axis) for v in (r, d, weight, bias))
    return (x_hat * r + d) * weight + bias


def renorm_backward(dy, x, r, d, weight, eps, axis):
    """Gradients in x, weight and bias: r and d are constants."""
    mean, var = mean_and_var(x, axis)
    dx, d_weight, d_bias = backward(dy, x, mean, var, np.multiply(weight, r), eps, axis, True)
    return dx, d_weight * r + d_bias * d, d_bias


def renorm_running_step(running_mean, running_var, x, momentum, eps, axis):
    """Running mean and sigma**2 - eps after one more batch: the average is of sigma."""
    mean, var = mean_and_var(x, axis)
    sigma = np.sqrt(np.asarray(running_var, np.longdouble) + eps)
    sigma = (1 - momentum) * sigma + momentum * np.sqrt(var + eps)
    return (1 - momentum) * np.asarray(running_mean, np.longdouble) + momentum * mean, (
        sigma**2 - eps
    )


def ghost(x, groups, weight, bias, eps, axis):
    """Hoffer et al. 2017, algorithm 1: each of some slices of samples by itself."""
    return np.concatenate([forward(x[some], weight, bias, eps, axis)[0] for some in groups])


def ghost_backward(dy, x, groups, weight, eps, axis):
    """Gradients in x, weight and bias: those of parameters are of all groups."""
    each = [
        backward(dy[some], x[some], *mean_and_var(x[some], axis), weight, eps, axis, True)
        for some in groups
    ]
    dx, d_weight, d_bias = zip(*each, strict=True)
    return np.concatenate(dx), sum(d_weight), sum(d_bias)


def standardize(x, mean, std, scale, axis):
    """``(x * scale - mean) / std``, and the size of what the mean is taken from."""
    x = np.asarray(x).astype(np.longdouble) * np.longdouble(scale)
    mean, std = (per_channel(v, x.ndim, axis) for v in (mean, std))
    return (x - mean) / std, np.abs(x / std)


def destandardize(y, mean, std, scale, axis):
    """``(y * std + mean) / scale``, and the larger of the sizes of both summands."""
    y = np.asarray(y).astype(np.longdouble)
    mean, std = (per_channel(v, y.ndim, axis) for v in (mean, std))
    return (y * std + mean) / scale, np.maximum(abs(y * std), abs(mean)) / abs(scale)
