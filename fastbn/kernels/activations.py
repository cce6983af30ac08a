"""Activations and their gradients, each formula once; and what is fused with normalizing.

Plain Python without branches on types, as in `formulas`. ``z`` is what goes into an activation,
``dy`` the gradient in what comes out of it; ``<name>_gradient`` is ``dy * act'(z)``.

Values and gradients are those of torch 2.13, where these have kinks and at plus and minus infinity
too: silu, hardswish and gelu_tanh of minus infinity are NaN, and so are the gradients of silu and
gelu_tanh at both. What differs, to the better:

- numbers that are finite: hardswish does not overflow, and no gradient of gelu_tanh is NaN;
- what is almost 0 keeps its digits: sigmoid and silu of numbers far below zero, the gradients of
  sigmoid and tanh far from it; of gelu_tanh far below zero, all but one or two are left.

NaN stays NaN. The gradients of relu, relu6 and leaky_relu there are those of one of their sides,
``dy``, ``dy`` and ``dy * slope``, so that nothing that is wrong vanishes (torch: relu6 ``dy`` or 0,
as it happens to be read; hardswish ``dy`` or NaN, here NaN).
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np

from fastbn.kernels.formulas import normalize

SIXTH = 1.0 / 6.0
#: Hendrycks & Gimpel 2016, section 2: ``gelu(z) = z * sigmoid(CURVE * (z + CUBE * z**3))``,
#: with ``CURVE = 2 * sqrt(2 / pi)``. And factors of its powers, in it and in its derivative.
CURVE, CUBE = 1.5957691216057308, 0.044715
CUBE_FACTOR, SQUARE_FACTOR = CURVE * CUBE, 3.0 * CURVE * CUBE


# --- of straight pieces ---------------------------------------------------------------------------


def relu(z):
    """``max(z, 0)``."""
    return np.where(z < 0.0, 0.0, z)


def relu_gradient(dy, z):
    return np.where(z <= 0.0, 0.0, dy)


def relu6(z):
    """``min(max(z, 0), 6)``."""
    return np.where(z < 0.0, 0.0, np.where(z > 6.0, 6.0, z))


def relu6_gradient(dy, z):
    return np.where(z <= 0.0, 0.0, np.where(z >= 6.0, 0.0, dy))


def leaky_relu(z, slope):
    """``z``, times ``slope`` where it is negative."""
    return np.where(z > 0.0, z, z * slope)


def leaky_relu_gradient(dy, z, slope):
    return np.where(z > 0.0, dy, dy * slope)


def hardswish(z):
    """``z * relu6(z + 3) / 6`` (Howard et al. 2019, section 5.2)."""
    return z * (relu6(z + 3.0) * SIXTH)


def hardswish_gradient(dy, z):
    inside = dy * ((z + z + 3.0) * SIXTH)
    return np.where(z <= -3.0, 0.0, np.where(z >= 3.0, dy, inside))


# --- of exponentials ------------------------------------------------------------------------------
# With e = exp(-|z|), which never overflows, sigmoid(|z|) is 1 / (1 + e) and sigmoid(-|z|) is
# e / (1 + e): nothing is subtracted from 1, which would leave few digits.


def sigmoid(z):
    """``1 / (1 + exp(-z))``."""
    e = np.exp(-abs(z))
    return np.where(z < 0.0, e, 1.0) / (1.0 + e)


def sigmoid_slope(z):
    """``sigmoid(z) * sigmoid(-z)``."""
    e = np.exp(-abs(z))
    return e / ((1.0 + e) * (1.0 + e))


def sigmoid_gradient(dy, z):
    return dy * sigmoid_slope(z)


def tanh(z):
    """The hyperbolic tangent."""
    return np.tanh(z)


def tanh_gradient(dy, z):
    return dy * (4.0 * sigmoid_slope(z + z))


def gated_derivative(z, inside, slope):
    """The derivative of ``z * sigmoid(inside)``, where ``slope`` is that of ``inside``."""
    return sigmoid(inside) + z * sigmoid_slope(inside) * slope


def silu(z):
    """``z * sigmoid(z)``."""
    return z * sigmoid(z)


def silu_gradient(dy, z):
    return dy * gated_derivative(z, z, 1.0)


def curved(z):
    """What gelu_tanh takes the sigmoid of."""
    return z * (CURVE + CUBE_FACTOR * (z * z))


def gelu_tanh(z):
    """``z / 2 * (1 + tanh(sqrt(2 / pi) * (z + 0.044715 * z**3)))``."""
    return z * sigmoid(curved(z))


def gelu_tanh_gradient(dy, z):
    size = abs(z)
    near = np.where(size > 99.0, 99.0, size)  # beyond, the derivative is 0 or 1
    slope = CURVE + SQUARE_FACTOR * (near * near)
    return dy * gated_derivative(z, curved(z), slope)


# --- by name, and fused with normalizing ----------------------------------------------------------


class Activation(NamedTuple):
    """An activation and its gradient, which both take ``parameters`` more numbers."""

    value: Callable
    gradient: Callable
    parameters: int = 0
    exponential: bool = False  # long to compute: on a device what is kept leaves too few registers


ACTIVATIONS = {
    "relu": Activation(relu, relu_gradient),
    "relu6": Activation(relu6, relu6_gradient),
    "leaky_relu": Activation(leaky_relu, leaky_relu_gradient, 1),
    "hardswish": Activation(hardswish, hardswish_gradient),
    "silu": Activation(silu, silu_gradient, exponential=True),
    "sigmoid": Activation(sigmoid, sigmoid_gradient, exponential=True),
    "tanh": Activation(tanh, tanh_gradient, exponential=True),
    "gelu_tanh": Activation(gelu_tanh, gelu_tanh_gradient, exponential=True),
}


class Names(NamedTuple):
    """Names of what normalizes and of what follows it in the same pass, taken together.

    Those of operations; ``normalize`` and ``gradient`` are names of formulas and passes as well.
    """

    normalize: str
    forward: str
    gradient: str


#: By activation (or None), and by whether a residual is added before it.
FUSED = {
    (activation, residual): Names(
        *(
            kind + f"_{activation}" * (activation is not None) + "_residual" * residual
            for kind in Names._fields
        )
    )
    for activation in (None, *ACTIVATIONS)
    for residual in (False, True)
}
#: Of what nothing follows.
UNFUSED = FUSED.pop((None, False))


def fused(activation: str | None, residual: bool = False) -> Callable:
    """The formula ``act(normalize(x, center, scale, shift))``; with a residual of x plus that.

    It takes x, the residual, the terms and the activation's parameters, in this order.
    """
    return _fused(activation, residual)


def activation_gradient(activation: str, residual: bool = False) -> Callable:
    """The formula ``dy * act'(z)`` for `fused`, with ``z`` worked out again from x.

    It takes dy and then what `fused` takes.
    """
    return _activation_gradient(activation, residual)


# No two formulas may have one name, so each is made once, however it is asked for.


@cache
def _fused(activation, residual):
    act = _itself if activation is None else ACTIVATIONS[activation].value

    def plain(x, center, scale, shift, *parameters):
        return act(normalize(x, center, scale, shift), *parameters)

    def added(x, other, center, scale, shift, *parameters):
        return act(normalize(x, center, scale, shift) + other, *parameters)

    return _named(added if residual else plain, FUSED[activation, residual].normalize)


@cache
def _activation_gradient(activation, residual):
    gradient = ACTIVATIONS[activation].gradient

    def plain(dy, x, center, scale, shift, *parameters):
        return gradient(dy, normalize(x, center, scale, shift), *parameters)

    def added(dy, x, other, center, scale, shift, *parameters):
        return gradient(dy, normalize(x, center, scale, shift) + other, *parameters)

    return _named(added if residual else plain, FUSED[activation, residual].gradient)


def _itself(z):
    return z


def _named(formula: Callable, name: str) -> Callable:
    formula.__name__ = name
    return formula
