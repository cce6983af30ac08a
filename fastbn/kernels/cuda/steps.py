"""What a call does besides normalizing and differentiating, as device functions of a group.

Kernels call them with ``at``, where the group begins in x, and with ``more``, a tuple that is their
last argument:

==========  ======================================================================================
forward     ``(slope,)`` of an activation, and after it the residual if there is one
backward    ``(bias, slope)``, and after them the residual and where its gradient goes
forward     of a norm with parameters of its own: ``(weight, span, count)``, and after them the bias
            if there is one
backward    of such a norm: ``(weight, span, count)``
==========  ======================================================================================

Channels of such a norm are not those of its weight and bias: ``count`` parameters belong to one
value after the other, or to ``span`` values each, over and over again.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import cuda, float32, float64, uint32

from fastbn.kernels import activations, formulas
from fastbn.kernels.cuda.compile import device, device_formula
from fastbn.kernels.cuda.helpers import across_of, helpers_of
from fastbn.kernels.cuda.memory import load_of, store_of

_normalize_each = device_formula(formulas.normalize_each)


class Extra(NamedTuple):
    """What a call does besides: with its way of reading, what its kernels are kept by."""

    activation: str | None = None
    residual: bool = False
    #: Whose weight and bias are not those of a channel: "column", of each value along a row, or
    #: "span", of all values of a group.
    own: str | None = None
    #: Whether there is such a bias; there always is a weight.
    shifts: bool = False
    #: Else the mean of squares stands for the variance, and 0 for the mean.
    centered: bool = True


#: Normalize and nothing else; the same without a mean.
PLAIN, UNCENTERED = Extra(), Extra(centered=False)


class Steps(NamedTuple):
    """Device functions for one way of reading and computing."""

    #: ``finish(values, at, terms, more)`` makes the output of a group of x, in place; `terms` are
    #: center, scale, shift.
    finish: Any
    #: ``enter(dy, x, at, inside, more)`` makes the gradient in what is normalized, in place.
    enter: Any
    #: Whether `enter` takes the terms that x was normalized with, ``inside``; ``more`` has the bias
    #: first then.
    inside: bool


@lru_cache
def steps_of(wide: bool, lanes: int, width: int, extra: Extra) -> Steps:
    """The steps of a call."""
    way = wide, lanes, width
    if extra in (PLAIN, UNCENTERED):
        return Steps(_normalize_with(*way), _nothing, inside=False)
    if extra.own:
        parameter = _parameter_with(*way, extra.own)
        return Steps(
            _weigh_with(*way, parameter, extra.shifts), _weighed_with(*way, parameter), inside=False
        )
    if extra.activation is None:
        return Steps(_finish_with(*way, extra), _nothing, inside=False)
    return Steps(_finish_with(*way, extra), _enter_with(*way, extra), inside=True)


@device
def _nothing(dy, x, at, inside, more):
    """The gradient is that in what is normalized."""


def _normalize_with(wide, lanes, width):
    normalize_group = helpers_of(wide, lanes, width).normalize_group

    @device
    def finish(values, at, terms, more):
        normalize_group(values, terms)

    return finish


def _constants(wide):
    """The type that formulas compute in."""
    return np.float64 if wide else np.float32


def _parameters(extra):
    """How many more numbers an activation takes."""
    name = extra.activation
    return 0 if name is None else activations.ACTIVATIONS[name].parameters


def _finish_with(wide, lanes, width, extra):
    """Normalize, add the residual if there is one, and apply the activation."""
    kind, across, load = float64 if wide else float32, across_of(lanes, width), load_of(lanes)
    act = device_formula(activations.fused(extra.activation, extra.residual), _constants(wide))
    call = (_with_slope if _parameters(extra) else _without_slope)(act)

    @device
    def plain(values, at, terms, more):
        for k in range(lanes):
            c = k % across
            values[k] = call(
                (values[k],), (terms[c], terms[across + c], terms[2 * across + c]), kind(more[0])
            )

    @device
    def added(values, at, terms, more):
        other = cuda.local.array(lanes, kind)
        load(other, more[1], at)
        for k in range(lanes):
            c = k % across
            values[k] = call(
                (values[k], other[k]), (terms[c], terms[across + c], terms[2 * across + c]),
                kind(more[0]),
            )  # fmt: skip

    return added if extra.residual else plain


def _enter_with(wide, lanes, width, extra):
    """Through the activation; with a residual, whose gradient is the same, that is written."""
    kind, across = float64 if wide else float32, across_of(lanes, width)
    load, store = load_of(lanes), store_of(lanes)
    gradient = device_formula(
        activations.activation_gradient(extra.activation, extra.residual), _constants(wide)
    )
    call = (_with_slope if _parameters(extra) else _without_slope)(gradient)

    @device
    def plain(dy, x, at, inside, more):
        for k in range(lanes):
            c = k % across
            dy[k] = call(
                (dy[k], x[k]), (inside[c], inside[across + c], inside[2 * across + c]),
                kind(more[1]),
            )  # fmt: skip

    @device
    def added(dy, x, at, inside, more):
        other = cuda.local.array(lanes, kind)
        load(other, more[2], at)
        for k in range(lanes):
            c = k % across
            dy[k] = call(
                (dy[k], x[k], other[k]), (inside[c], inside[across + c], inside[2 * across + c]),
                kind(more[1]),
            )  # fmt: skip
        store(more[3], at, dy)

    return added if extra.residual else plain


def _with_slope(formula):
    """A formula of values, terms, and one more number."""

    @device
    def call(values, terms, slope):
        return formula(*values, *terms, slope)

    return call


def _without_slope(formula):
    @device
    def call(values, terms, slope):
        return formula(*values, *terms)

    return call


# --- norms whose parameters are not those of a channel --------------------------------------------


def _parameter_with(wide, lanes, width, own):
    """The parameters of a group. Places are 32 bits: to divide by 64 takes three times as long."""
    kind = float64 if wide else float32
    at_once = min(lanes, 2 if wide else 4)  # 16 bytes
    load = load_of(at_once)

    @device
    def of_columns(buffer, array, at, span, count):
        some, first = cuda.local.array(at_once, kind), uint32(at) % uint32(count)
        for j in range(lanes // at_once):
            load(some, array, first + j * at_once)
            for k in range(at_once):
                buffer[j * at_once + k] = some[k]

    @device
    def of_span(buffer, array, at, span, count):
        value = array[uint32(at) // uint32(span) % uint32(count)]
        for k in range(lanes):
            buffer[k] = value

    return of_columns if own == "column" else of_span


def _weigh_with(wide, lanes, width, parameter, shifts):
    """Normalize, and scale and shift by the parameters of each value."""
    kind, across = float64 if wide else float32, across_of(lanes, width)

    @device
    def scaled(values, at, terms, more):
        weight = cuda.local.array(lanes, kind)
        parameter(weight, more[0], at, more[1], more[2])
        for k in range(lanes):
            c = k % across
            values[k] = _normalize_each(
                values[k], weight[k], kind(0.0), terms[c], terms[across + c],
                terms[2 * across + c],
            )  # fmt: skip

    @device
    def shifted(values, at, terms, more):
        weight, bias = cuda.local.array(lanes, kind), cuda.local.array(lanes, kind)
        parameter(weight, more[0], at, more[1], more[2])
        parameter(bias, more[3], at, more[1], more[2])
        for k in range(lanes):
            c = k % across
            values[k] = _normalize_each(
                values[k], weight[k], bias[k], terms[c], terms[across + c], terms[2 * across + c]
            )

    return shifted if shifts else scaled


def _weighed_with(wide, lanes, width, parameter):
    """Through the scale of each value."""
    kind = float64 if wide else float32

    @device
    def enter(dy, x, at, inside, more):
        weight = cuda.local.array(lanes, kind)
        parameter(weight, more[0], at, more[1], more[2])
        for k in range(lanes):
            dy[k] *= weight[k]

    return enter
