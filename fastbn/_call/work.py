"""The work of each operation, on arrays that have been checked: which views, copied or not.

How the values of a channel are summed follows from ``x`` alone, so that the bits do not depend on
``out`` or ``dy``. Where no kernel can walk the arrays of a call together (a reversed axis, a
transposed gradient), one is first copied into the output, which is needed anyway, and the walk
goes over the output in place. So there is no temporary of the size of x, but for an ``x`` or an
``out`` that no kernel can walk.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from fastbn._call import arguments, overlap
from fastbn._call.epilogue import NOTHING, Epilogue
from fastbn._call.known import remember
from fastbn._call.plan import KEPT, Walk, walk_of
from fastbn._call.run import ABSENT, launch
from fastbn._call.views import assign_all, flat
from fastbn._system import outputs, threads
from fastbn.kernels import entries, formulas
from fastbn.kernels.activations import UNFUSED
from fastbn.kernels.held import computed, held


class Walked(NamedTuple):
    """Arrays that are walked together: how, and their flat views."""

    walk: Walk
    views: list[np.ndarray]


def walked(axis: int, *arrays: np.ndarray) -> Walked | None:
    """How arrays of one shape and dtype are walked together; None if they cannot be."""
    first = arrays[0]
    for array in arrays:
        if not array.flags.aligned or array.dtype != first.dtype or not array.dtype.isnative:
            return None
    walk = walk_of(first.shape, first.itemsize, axis, tuple(a.strides for a in arrays))
    if walk is None:
        return None
    dtype = held(first.dtype)
    views = [flat(a, n) for a, n in zip(arrays, walk.extents, strict=True)]
    return Walked(walk, views if dtype is first.dtype else [view.view(dtype) for view in views])


def _summed_alike(axis: int, x: np.ndarray, summed: int, *arrays: np.ndarray) -> Walked | None:
    """`walked`, if the first ``summed`` arrays are then summed in the order of x alone."""
    alone, together = walked(axis, x), walked(axis, *arrays)
    if alone and together and together.walk.sums_like(alone.walk, summed):
        return together
    return None


def _copy_of(x: np.ndarray, like: np.ndarray) -> np.ndarray:
    """A copy in the memory order of ``like``."""
    copy = outputs.new_output(like, arguments.native(x.dtype))
    np.copyto(copy, x)
    return copy


def normalize(x, out, axis, mean, var, weight, bias, eps, epilogue=NOTHING) -> None:
    """Write ``x`` normalized with the given statistics to ``out``."""
    target, residual = out, epilogue.residual
    together = _walked_with(axis, x, residual, out)
    if together is None:
        if walked(axis, out) is None:
            target = np.empty(out.shape, out.dtype)
        residual = _lying_as(target, residual)
        if not overlap.same_elements(x, target):
            np.copyto(target, x)
        x = target
        together = _walked_with(axis, x, residual, target)
        assert together
    plan = together.walk.plan(epilogue.names.normalize, held(target.dtype))
    dtype = computed(plan.dtype)
    entry = plan.entry.of(plan.dtype, mean.dtype)
    weight, bias = (ABSENT[dtype] if v is None else v for v in (weight, bias))
    in_place = _is_one_of(target, x, residual)
    launch(
        plan, entry, in_place, *_views(together, epilogue), mean, var, weight, bias, eps,
        *_slope(epilogue),
    )  # fmt: skip
    if target is not out:
        np.copyto(out, target)
    elif mean.dtype == dtype:
        arrays = (x, out) if residual is None else (x, residual, out)
        remember(epilogue.names.normalize, axis, plan, entry, *arrays)


def _walked_with(axis: int, x: np.ndarray, residual: Any, out: np.ndarray) -> Walked | None:
    return walked(axis, x, out) if residual is None else walked(axis, x, residual, out)


def _views(together: Walked, epilogue: Epilogue) -> list[np.ndarray]:
    """What an entry takes: of a fused operation three arrays, of which the second may be absent."""
    views = together.views
    if epilogue.names is not UNFUSED and epilogue.residual is None:
        return [views[0], np.empty(0, views[0].dtype), views[1]]
    return views


def _slope(epilogue: Epilogue) -> tuple[float, ...]:
    return () if epilogue.names is UNFUSED else (epilogue.negative_slope,)


def _lying_as(like: np.ndarray, array: Any) -> Any:
    """An array itself, or a copy that lies in memory as ``like`` does, and apart from it."""
    if array is None or (
        array.strides == like.strides and array.dtype == like.dtype
        and array.flags.aligned and not overlap.shares_memory(array, like)
    ):  # fmt: skip
        return array
    return _copy_of(array, like)


def _is_one_of(array: np.ndarray, *others: Any) -> bool:
    return any(other is not None and overlap.same_elements(array, other) for other in others)


def forward(x, out, axis, weight, bias, eps, operation="forward", epilogue=NOTHING) -> np.ndarray:
    """Write ``x`` normalized with its own statistics to ``out``.

    Returns the statistics: all means, all variances and all ``1 / sqrt(variance + eps)``.
    """
    residual = epilogue.residual
    if walked(axis, x) is None:  # in the memory order of an output of its own
        target = out
        if out.strides != outputs.strides_like(x, out.itemsize) or walked(axis, out) is None:
            target = outputs.new_output(x, out.dtype)
        epilogue = epilogue._replace(residual=_lying_as(target, residual))
        if not overlap.same_elements(x, target):
            np.copyto(target, x)
        statistics = forward(target, target, axis, weight, bias, eps, operation, epilogue)
        if target is not out:
            np.copyto(out, target)
        return statistics
    others = (out,) if residual is None else (residual, out)
    together = _summed_alike(axis, x, 1, x, *others)
    if together is None:
        assert operation == "forward"  # the others come with arrays that lie alike
        return _forward_in_two(x, out, axis, weight, bias, eps, epilogue)
    if operation == "forward":
        operation = epilogue.names.forward
    plan = together.walk.plan(operation, held(out.dtype))
    dtype = computed(plan.dtype)
    entry = plan.entry.of(plan.dtype, dtype)
    absent, statistics = ABSENT[dtype], np.empty(3 * plan.walk.channels)
    launch(
        plan, entry, _is_one_of(out, x, residual), *_views(together, epilogue),
        absent if weight is None else weight, absent if bias is None else bias, statistics, eps,
        *_slope(epilogue),
    )  # fmt: skip
    remember(operation, axis, plan, entry, x, *others)
    return statistics


def activation_gradient(dy, x, out, axis, statistics, weight, bias, eps, epilogue) -> None:
    """Write the gradient in what went into the activation to ``out``, which lies as x does."""
    residual = epilogue.residual
    arrays = [dy, x, *(() if residual is None else (residual,)), out]
    together = walked(axis, *arrays)
    if together is None:
        arrays = [a if a is out else _lying_as(out, a) for a in arrays]
        together = walked(axis, *arrays)
        assert together
    plan = together.walk.plan(epilogue.names.gradient, held(out.dtype))
    dtype, views = computed(plan.dtype), together.views
    if residual is None:
        views = [*views[:2], np.empty(0, views[0].dtype), views[2]]
    weight, bias = (ABSENT[dtype] if v is None else v for v in (weight, bias))
    entry = plan.entry.of(plan.dtype, dtype)
    launch(
        plan, entry, _is_one_of(out, *arrays[:-1]), *views, statistics, weight, bias, eps,
        epilogue.negative_slope,
    )  # fmt: skip
    remember(epilogue.names.gradient, axis, plan, entry, *arrays)


def group_forward(x, out, groups, weight, bias, eps) -> np.ndarray:
    """`forward` of each group of channels of each sample of contiguous (N, C, L)."""
    plan = _walk_of_groups(*x.shape, groups).plan("group_forward", x.dtype)
    statistics, views = np.empty(3 * len(x) * groups), (flat(a, a.size) for a in (x, out))
    entry = plan.entry.of(plan.dtype, plan.dtype)
    in_place = overlap.same_elements(x, out)
    launch(plan, entry, in_place, *views, weight, bias, statistics, eps)
    return statistics


def group_backward(dy, x, dx, groups, statistics, weight) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of `group_forward`: of x to ``dx``, those of weight and bias for each sample.

    ``statistics`` and ``weight`` are those of each channel of each sample.
    """
    plan = _walk_of_channels(*x.shape, x.shape[1] // groups).plan("group_backward", x.dtype)
    d_weight, d_bias = np.empty((2, *x.shape[:2]), x.dtype)
    in_place = any(overlap.same_elements(dx, array) for array in (dy, x))
    launch(
        plan, plan.entry.of(plan.dtype, plan.dtype), in_place,
        *(flat(a, a.size) for a in (dy, x, dx)), statistics,
        ABSENT[x.dtype] if weight is None else weight, d_weight.reshape(-1), d_bias.reshape(-1),
    )  # fmt: skip
    return d_weight, d_bias


@lru_cache(maxsize=KEPT)
def _walk_of_channels(samples: int, channels: int, length: int, of_group: int) -> Walk:
    """Each channel of each sample."""
    steps, extents = ((0, length),) * 3, (samples * channels * length,) * 3
    return Walk(
        "first", 1, samples * channels, length, steps, extents, of_group=of_group
    )  # fmt: skip


@lru_cache(maxsize=KEPT)
def _walk_of_groups(samples: int, channels: int, length: int, groups: int) -> Walk:
    """Each group a channel."""
    size = channels // groups * length
    steps, extents = ((0, size),) * 2, (samples * channels * length,) * 2
    return Walk(
        "first", 1, samples * groups, size, steps, extents, channels // groups, groups
    )  # fmt: skip


def products(dy, x, axis, statistics) -> np.ndarray:
    """Gradients of weight and bias alone, in float64."""
    together = walked(axis, dy, x)
    assert together
    plan = together.walk.plan("products", held(x.dtype))
    found = np.empty((2, plan.walk.channels))
    launch(
        plan, plan.entry.of(plan.dtype, computed(plan.dtype)), False, *together.views,
        statistics, *found,
    )  # fmt: skip
    return found


def given_gradient(dy, x, dx, axis, terms) -> None:
    """Write ``dy * scale + (x - mean) * slope + offset``; ``terms``: mean, scale, slope, offset."""
    together = walked(axis, dy, x, dx)
    assert together
    plan = together.walk.plan("given_gradient", held(dx.dtype))
    in_place = any(overlap.same_elements(dx, array) for array in (dy, x))
    entry = plan.entry.of(plan.dtype, computed(plan.dtype))
    launch(plan, entry, in_place, *together.views, terms)


def _forward_in_two(x, out, axis, weight, bias, eps, epilogue) -> np.ndarray:
    """`forward` where ``out`` lies otherwise than ``x``: statistics, then `normalize`."""
    found = moments(x, axis)
    assert found  # x can be walked
    walk, mean, m2 = found
    with np.errstate(invalid="ignore"):
        var = m2 / walk.count
        statistics = np.concatenate([mean, var, formulas.reciprocal_std(var, eps)])
    normalize(x, out, axis, mean, var, weight, bias, eps, epilogue)
    return statistics


def backward(dy, x, dx, axis, statistics, weight, operation="backward"):
    """Write the gradient of ``x`` to ``dx``; return those of weight and bias.

    ``operation`` "frozen_backward" takes the statistics for constants.
    """
    if walked(axis, x) is None:
        x = _copy_of(x, x)
    target = dx
    together = _summed_alike(axis, x, 2, dy, x, target)
    if together is None and _summed_alike(axis, x, 1, x, target) is None:
        target = outputs.new_output(x, dx.dtype)
        together = _summed_alike(axis, x, 2, dy, x, target)
    if together is None:
        fits = _summed_alike(axis, x, 2, target, x, target) is not None
        own = fits and not overlap.shares_memory(target, x)
        gradient = target if own else outputs.new_output(x, dx.dtype)
        if not overlap.same_elements(dy, gradient):
            np.copyto(gradient, dy)
        dy = gradient
        together = _summed_alike(axis, x, 2, dy, x, target)
        assert together  # the gradient now lies as x does
    plan = together.walk.plan(operation, held(dx.dtype))
    dtype, channels = computed(plan.dtype), plan.walk.channels
    entry = plan.entry.of(plan.dtype, dtype)
    d_weight, d_bias = np.empty(channels, dtype), np.empty(channels, dtype)
    in_place = any(overlap.same_elements(target, array) for array in (dy, x))
    launch(
        plan, entry, in_place, *together.views, statistics,
        ABSENT[dtype] if weight is None else weight, d_weight, d_bias,
    )  # fmt: skip
    if target is not dx:
        np.copyto(dx, target)
    else:
        remember(operation, axis, plan, entry, dy, x, dx)
    return d_weight, d_bias


def moments(x: np.ndarray, axis: int) -> tuple[Walk, np.ndarray, np.ndarray] | None:
    """Walk, mean and m2 of every channel; None if ``x`` cannot be walked as it is."""
    alone = walked(axis, x)
    if alone is None:
        return None
    plan = alone.walk.plan("moments", held(x.dtype))
    statistics = np.empty((2, alone.walk.channels))
    entry = plan.entry.of(plan.dtype, computed(plan.dtype))
    launch(plan, entry, False, *alone.views, statistics.reshape(-1))
    remember("moments", axis, plan, entry, x)
    return alone.walk, statistics[0], statistics[1]


class Step(NamedTuple):
    """Running statistics and counter after one more batch."""

    mean: np.ndarray
    var: np.ndarray
    number: np.ndarray
    #: Of the batch ("x") and of each running statistic that was finite: channels where it is not.
    not_finite: dict[str, np.ndarray]


def step(running_mean, running_var, counter, statistics, correction, momentum) -> Step:
    """What an update would make of running statistics; nothing is changed.

    ``correction`` is what the batch's variances are multiplied by, Bessel's or 1; ``momentum`` None
    is the cumulative average, by the counter.
    """
    dtype = np.result_type(running_mean, running_var)
    mean, var = np.array(running_mean, dtype), np.array(running_var, dtype)
    number = np.zeros(1, np.int64) if counter is None else counter.reshape(1).copy()
    move(mean, var, number, statistics, correction, momentum)
    with np.errstate(over="ignore", under="ignore"):
        mean, var = mean.astype(running_mean.dtype), var.astype(running_var.dtype)
    batch = statistics[: 2 * mean.size].reshape(2, -1)
    not_finite = {
        "x": ~np.isfinite(batch).all(axis=0),
        "running_mean": np.isfinite(running_mean) & ~np.isfinite(mean),
        "running_var": np.isfinite(running_var) & ~np.isfinite(var),
    }
    return Step(mean, var, number[0], not_finite)


def move(mean, var, number, statistics, correction, momentum) -> None:
    """Move plain running statistics of one dtype, in place, and count the batch."""
    entry = entries.update_running.of(mean.dtype, mean.dtype)
    cumulative = momentum is None
    entry(mean, var, number, statistics, correction, 0.0 if cumulative else momentum, cumulative)


def update_running(
    running_mean, running_var, counter, statistics, correction, momentum, on_nonfinite
) -> None:
    """Move running statistics towards the batch's, and count it: whole, one call at a time.

    ``correction`` and ``momentum`` are those of `step`. Unless ``on_nonfinite`` is "propagate", a
    batch is left out after which they would not be finite. ("raise" has refused it before; if
    another thread has moved them since, out it stays.)
    """
    if counter is None:
        counter = np.zeros((), np.int64)
    with threads.updating():
        dtype = np.result_type(running_mean, running_var)
        whole = all(v.dtype == dtype and v.flags.carray for v in (running_mean, running_var))
        if whole and on_nonfinite == "propagate":
            move(running_mean, running_var, counter.reshape(1), statistics, correction, momentum)
            return
        after = step(running_mean, running_var, counter, statistics, correction, momentum)
        if on_nonfinite == "propagate" or not any(map(np.any, after.not_finite.values())):
            assign_all((running_mean, running_var, counter), after[:3])
