"""Calls that cost a few microseconds: those like one that has been checked before.

The long way through `operations` checks everything and says what is wrong. When it has
succeeded, the plan and the entry for arrays of that shape, strides and dtype are `known`. A later
call finds them by one look-up; if its arrays are all of the plain kind that entries take, it goes
straight there, and the entry refuses flags that it has not been compiled for (it does not look at
the order of bytes). None means: not such a call, go the long way.
"""

from typing import Any

import numpy as np
from numpy import empty, ndarray

from fastbn._call.known import Known, known
from fastbn._call.overlap import lies_as, may_share
from fastbn._call.plan import Plan
from fastbn._call.run import launch
from fastbn._call.work import move
from fastbn._system import outputs, threads
from fastbn.kernels.activations import FUSED
from fastbn.kernels.formulas import bessel

_NO_COUNTER = np.zeros(1, np.int64)
_INT64 = np.dtype(np.int64)
_INFINITY = float("inf")

_Table = dict[tuple, Known]
_evaluations, _trainings = known["normalize"], known["forward"]
_gradients, _frozen_gradients = known["backward"], known["frozen_backward"]
_moments = known["moments"]


def evaluate(
    x: Any, mean: Any, var: Any, weight: Any, bias: Any, eps: Any, axis: Any, out: Any,
    activation: Any, slope: Any, residual: Any,
) -> np.ndarray | None:  # fmt: skip
    """``x`` normalized with running statistics, plus a residual, through an activation."""
    if type(x) is not ndarray or type(axis) is not int or type(eps) is not float:
        return None
    shape, strides = x.shape, x.strides
    plain = activation is None and residual is None
    of_operation = _evaluations if plain else _fused("normalize", x, activation, slope, residual)
    found = of_operation.get((shape, strides, x.dtype, axis if axis >= 0 else axis + x.ndim))
    if found is None or not 0.0 < eps < _INFINITY:
        return None
    dtype, channels, absent, plan, entry = found
    if not (
        type(mean) is ndarray and mean.dtype is dtype and mean.size == channels
        and type(var) is ndarray and var.dtype is dtype and var.size == channels
        and (weight is None or (type(weight) is ndarray and weight.dtype is dtype
             and weight.size == channels))
        and (bias is None or (type(bias) is ndarray and bias.dtype is dtype
             and bias.size == channels))
    ):  # fmt: skip
        return None
    if out is None:
        out = _new_output(plan, x, dtype)
    elif not (
        type(out) is ndarray and out.dtype is dtype and out.shape == shape
        and out.strides == strides and _apart(out, x, mean, var, weight, bias, residual)
    ):  # fmt: skip
        return None
    if weight is None:
        weight = absent
    if bias is None:
        bias = absent
    arguments: tuple[Any, ...]
    if plain:
        arguments = plan.serial, x.ravel(), out.ravel(), mean, var, weight, bias, eps
    else:
        added = absent if residual is None else residual.ravel()
        arguments = plan.serial, x.ravel(), added, out.ravel(), mean, var, weight, bias, eps, slope
    try:
        if plan.large or entry(*arguments):
            launch(plan, entry, out is x or out is residual, *arguments[1:])
    except TypeError:
        return None  # a kind of array that the entry has not been compiled for
    return out


def train(
    x: Any, mean: Any, var: Any, weight: Any, bias: Any, momentum: Any, eps: Any, axis: Any,
    out: Any, activation: Any, slope: Any, residual: Any, counter: Any = None,
) -> tuple[np.ndarray, np.ndarray, int] | None:  # fmt: skip
    """As `evaluate`, with the statistics of ``x``: the output, these, and the axis.

    Updates the running statistics and the counter.
    """
    if type(x) is not ndarray or type(axis) is not int or type(eps) is not float:
        return None
    if axis < 0:
        axis += x.ndim
    plain = activation is None and residual is None
    of_operation = _trainings if plain else _fused("forward", x, activation, slope, residual)
    found = of_operation.get((x.shape, x.strides, x.dtype, axis))
    if found is None or not 0.0 < eps < _INFINITY:
        return None
    dtype, channels, absent, plan, entry = found
    if not (
        (weight is None or _is_vector(weight, dtype, channels))
        and (bias is None or _is_vector(bias, dtype, channels))
    ):
        return None
    update = mean is not None or var is not None
    if update and not (
        type(mean) is ndarray and mean.dtype is dtype and mean.shape == (channels,)
        and type(var) is ndarray and var.dtype is dtype and var.shape == (channels,)
        and _updatable(mean, var, x, weight, bias) and _countable(counter, momentum)
    ):  # fmt: skip
        return None
    if out is None:
        out = _new_output(plan, x, dtype)
    elif not (lies_as(out, x) and _apart(out, x, mean, var, weight, bias, residual)):
        return None
    if weight is None:
        weight = absent
    if bias is None:
        bias = absent
    statistics = empty(3 * channels)
    arguments: tuple[Any, ...]
    if plain:
        arguments = plan.serial, x.ravel(), out.ravel(), weight, bias, statistics, eps
    else:
        added = absent if residual is None else residual.ravel()
        arguments = plan.serial, x.ravel(), added, out.ravel(), weight, bias, statistics, eps, slope
    try:
        if plan.large or entry(*arguments):
            launch(plan, entry, out is x or out is residual, *arguments[1:])
    except TypeError:
        return None  # a kind of array that the entry has not been compiled for
    if update:
        with threads.updating():
            number = _NO_COUNTER if counter is None else counter.reshape(1)
            move(mean, var, number, statistics, bessel(plan.count), momentum)
    return out, statistics, axis


def differentiate(
    dy: Any, cache: Any, out: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None] | None:
    """Gradients of x, weight, bias and residual, from the cache of a forward without a mask."""
    x, axis, statistics = cache.x, cache.axis, cache.statistics
    gradients = _gradients if cache.batch_statistics else _frozen_gradients
    found = gradients.get((x.shape, x.strides, x.dtype, axis))
    if found is None or type(dy) is not ndarray or not lies_as(dy, x):
        return None
    dtype, channels, absent, plan, entry = found
    if statistics.size != 3 * channels:
        return None  # x has got another shape
    if out is None:
        out = _new_output(plan, x, dtype)
    elif not lies_as(out, x) or any(a is not out and may_share(out, a) for a in (dy, x)):
        return None
    weight, d_residual = absent if cache.weight is None else cache.weight, None
    if cache.epilogue is not None:
        added = cache.epilogue.epilogue.residual is not None
        own = added or out is x  # x is needed once more
        target = _new_output(plan, x, dtype) if own else out
        dy = _through_epilogue(dy, cache, weight, target)
        if dy is None:
            return None
        d_residual = target if added else None
    d_weight, d_bias = empty(channels, dtype), empty(channels, dtype)
    arguments = (
        plan.serial, dy.ravel(), x.ravel(), out.ravel(), statistics, weight, d_weight, d_bias
    )  # fmt: skip
    try:
        if plan.large or entry(*arguments):
            launch(plan, entry, out is x or out is dy, *arguments[1:])
    except TypeError:
        return None  # a kind of array that the entry has not been compiled for
    return out, d_weight, d_bias, d_residual


def _through_epilogue(
    dy: np.ndarray, cache: Any, weight: np.ndarray, target: np.ndarray
) -> np.ndarray | None:
    """The gradient in the normalized values, which is also that in a residual: ``target``.

    What this entry takes, that of the backward takes too: when an output that is dy has been
    written to, there is no way back.
    """
    x, (epilogue, bias, eps) = cache.x, cache.epilogue
    activation, slope, residual = epilogue
    if activation is None:
        np.copyto(target, dy)
        return dy
    of_operation = _fused("gradient", x, activation, slope, residual)
    found = of_operation.get((x.shape, x.strides, x.dtype, cache.axis))
    if found is None:
        return None
    _, _, absent, plan, entry = found
    added = absent if residual is None else residual.ravel()
    if bias is None:
        bias = absent
    arguments = (
        plan.serial, dy.ravel(), x.ravel(), added, target.ravel(), cache.statistics, weight, bias,
        eps, slope,
    )  # fmt: skip
    try:
        if plan.large or entry(*arguments):
            launch(plan, entry, target is dy, *arguments[1:])
    except TypeError:
        return None  # a kind of array that the entry has not been compiled for
    return target


def moments(x: Any, axis: Any) -> tuple[float, np.ndarray] | None:
    """Values per channel, and all means and all sums of squared deviations."""
    if type(x) is not ndarray or type(axis) is not int:
        return None
    found = _moments.get((x.shape, x.strides, x.dtype, axis if axis >= 0 else axis + x.ndim))
    if found is None:
        return None
    _, channels, _, plan, entry = found
    statistics = empty(2 * channels)
    try:
        if plan.large or entry(plan.serial, x.ravel(), statistics):
            launch(plan, entry, False, x.ravel(), statistics)
    except TypeError:
        return None  # a kind of array that the entry has not been compiled for
    return plan.count, statistics


def _fused(operation: str, x: np.ndarray, activation: Any, slope: Any, residual: Any) -> _Table:
    """What is known of an operation with these; nothing if one of them is unusual."""
    if (
        type(slope) is not float or not -_INFINITY < slope < _INFINITY
        or (activation is not None and type(activation) is not str)
        or (residual is not None and not lies_as(residual, x))
    ):  # fmt: skip
        return {}
    names = FUSED.get((activation, residual is not None))
    return {} if names is None else known[getattr(names, operation)]


def _new_output(plan: Plan, x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return outputs.new_output(x, dtype) if plan.large else empty(x.shape, dtype)


def _is_vector(vector: Any, dtype: np.dtype, channels: int) -> bool:
    return type(vector) is ndarray and vector.dtype is dtype and vector.size == channels


def _apart(
    out: np.ndarray, x: np.ndarray, mean: Any, var: Any, weight: Any, bias: Any, residual: Any
) -> bool:
    """Whether ``out`` is x or the residual itself, and shares no memory with any other input.

    Arrays that own their memory share none, which is quick to see.
    """
    if (
        out.base is None and x.base is None
        and (weight is None or weight.base is None) and (bias is None or bias.base is None)
        and (mean is None or mean.base is None) and (var is None or var.base is None)
        and (residual is None or residual.base is None)
    ):  # fmt: skip
        return out is not weight and out is not bias and out is not mean and out is not var
    others = [v for v in (mean, var, weight, bias) if v is not None]
    others += [a for a in (x, residual) if a is not None and a is not out]
    return not any(may_share(out, other) for other in others)


def _updatable(mean: np.ndarray, var: np.ndarray, *inputs: np.ndarray | None) -> bool:
    """Whether running statistics are plain and writable, in memory of their own."""
    if mean is var or may_share(mean, var):
        return False
    for array in inputs:
        if array is not None and (may_share(mean, array) or may_share(var, array)):
            return False
    return mean.flags.carray and var.flags.carray


def _countable(counter: Any, momentum: Any) -> bool:
    """Whether the counter is a layer's, and the momentum a number that needs no check."""
    if counter is None:
        return type(momentum) is float and 0.0 <= momentum <= 1.0
    return (
        (momentum is None or (type(momentum) is float and 0.0 <= momentum <= 1.0))
        and type(counter) is ndarray and counter.dtype is _INT64
        and counter.shape == () and counter.flags.carray
    )  # fmt: skip
