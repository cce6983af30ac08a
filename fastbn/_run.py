"""Which kernel runs on which view of which array.

The arrays of one call are walked together. Where their strides do not allow it (a
reversed axis, a transposed gradient), one input is first copied into the output, which
is needed anyway, and the walk goes over the output in place. So there is no temporary of
the size of x, but for an ``out`` that no kernel can walk, and for the backward of an x that
none can.
"""

from types import ModuleType

import numpy as np

from fastbn import _checks, _fast, _pool, _threads
from fastbn._memory import assign_all, flat
from fastbn._plan import Plan, make_plan
from fastbn.kernels import cpu_channels, cpu_first, cpu_last

_MODULES: dict[str, ModuleType] = {"first": cpu_first, "last": cpu_last}


def _kernels(plan: Plan) -> tuple[ModuleType, int]:
    """Kernels for the plan's layout, and how many threads they may use."""
    return _MODULES[plan.layout], _threads.available(plan.large)


def walk(axis: int, *arrays: np.ndarray) -> tuple[Plan, list[np.ndarray]] | None:
    """Plan and flat views of arrays of one shape and dtype; None if they cannot be walked."""
    first = arrays[0]
    for array in arrays:
        if not array.flags.aligned or array.dtype != first.dtype or not array.dtype.isnative:
            return None
    plan = make_plan(first.shape, first.itemsize, axis, tuple(a.strides for a in arrays))
    if plan is None:
        return None
    return plan, [flat(a, n) for a, n in zip(arrays, plan.extents, strict=True)]


def _walk_to(out: np.ndarray, axis: int, *inputs: np.ndarray):
    """`walk` over inputs and output; inputs are copied where their strides do not fit.

    Returns the plan, the views, and the array that holds the result.
    """
    found = walk(axis, *inputs, out)
    if found:
        return *found, out
    if walk(axis, out) is None:
        out = _pool.new_output(np.broadcast_to(out.dtype.type(0), out.shape), out.dtype)
    # one input fits into the output itself: the first, unless out already is another one
    held = next((k for k, a in enumerate(inputs) if _checks.same_elements(a, out)), 0)
    operands = []
    for k, array in enumerate(inputs):
        if k == held:
            if not _checks.same_elements(array, out):
                np.copyto(out, array)
            operands.append(out)
        elif walk(axis, array, out):
            operands.append(array)
        else:
            copy = _pool.new_output(out, out.dtype)
            np.copyto(copy, array)
            operands.append(copy)
    found = walk(axis, *operands, out)
    assert found  # the operands now lie as the output does
    return *found, out


def normalize(x, out, axis, mean, var, weight, bias, eps) -> None:
    """Write ``x`` normalized with the given statistics to ``out``."""
    plan, (source, target), result = _walk_to(out, axis, x)
    kernels, threads = _kernels(plan)
    _threads.launch(
        kernels.normalize, threads,
        source, target, plan.geometry, _streaming(plan, result, x), mean, var, weight, bias, eps,
    )  # fmt: skip
    if result is not out:
        np.copyto(out, result)
    elif mean.dtype == x.dtype:
        _fast.remember(axis, plan, kernels.normalize, x, out)


def forward(x, out, axis, weight, bias, eps) -> np.ndarray:
    """Write ``x`` normalized with its own statistics to ``out``.

    Returns the statistics: rows of mean, variance and ``1 / sqrt(variance + eps)``.
    """
    plan, (source, target), result = _walk_to(out, axis, x)
    kernels, threads = _kernels(plan)
    statistics = np.empty((3, plan.channels))
    _threads.launch(
        kernels.forward, threads, source, target, plan.geometry, plan.tile_for(threads),
        _streaming(plan, result, x), weight, bias, eps, statistics,
    )  # fmt: skip
    if result is not out:
        np.copyto(out, result)
    else:
        _fast.remember(axis, plan, kernels.forward, x, out)
    return statistics


def backward(dy, x, dx, axis, statistics, weight, batch_statistics):
    """Write the gradient of ``x`` to ``dx``; return those of weight and bias."""
    plan, (gradient, source, target), result = _walk_to(dx, axis, dy, x)
    kernels, threads = _kernels(plan)
    d_weight, d_bias = np.empty(plan.channels, dx.dtype), np.empty(plan.channels, dx.dtype)
    _threads.launch(
        kernels.backward, threads, gradient, source, target, plan.geometry,
        plan.tile_for(threads), _streaming(plan, result, dy, x),
        statistics, weight, d_weight, d_bias, batch_statistics,
    )  # fmt: skip
    if result is not dx:
        np.copyto(dx, result)
    else:
        _fast.remember(axis, plan, kernels.backward, dy, x, dx)
    return d_weight, d_bias


def _streaming(plan: Plan, out: np.ndarray, *inputs: np.ndarray) -> bool:
    """Whether to store past the caches: not where that would throw out what was just read."""
    return plan.streaming and not any(out is array for array in inputs)


def moments(x: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean and m2 of every channel; None if ``x`` cannot be walked as it is."""
    found = walk(axis, x)
    if found is None:
        return None
    plan, (source,) = found
    mean, m2 = np.empty(plan.channels), np.empty(plan.channels)
    kernels, threads = _kernels(plan)
    _threads.launch(kernels.moments, threads, source, plan.geometry, mean, m2)
    return mean, m2


def update_running(running_mean, running_var, counter, statistics, count, momentum) -> None:
    """Move running statistics towards the batch's, and count it: whole, one call at a time.

    ``momentum`` None is the cumulative average, by the counter.
    """
    if counter is None:
        counter = np.zeros((), np.int64)
    pair = running_mean, running_var
    dtype = np.result_type(*pair)
    cumulative = momentum is None
    with _threads.updating():
        whole = all(v.dtype == dtype and v.flags.carray for v in pair)
        targets = pair if whole else tuple(np.array(v, dtype) for v in pair)
        count_to = counter.reshape(1) if whole else counter.reshape(1).copy()
        cpu_channels.update_running.serial(
            *targets,
            count_to,
            statistics,
            float(count),
            0.0 if cumulative else momentum,
            cumulative,
        )
        if not whole:
            assign_all((*pair, counter), (*targets, count_to[0]))
