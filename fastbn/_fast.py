"""Calls that cost a few microseconds: those like one that has been checked before.

The long way through `functional` checks everything and says what is wrong. When it has
succeeded, it leaves here how arrays of that shape, strides and dtype are walked. A later
call finds that by one look-up; if its arrays are all of the plain kind that kernels take,
it goes straight to the kernel, which refuses flags and ranks that it has not been compiled for
(it does not look at the order of bytes). Whatever is not goes the long way, and that is what
None means here.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy import empty, ndarray

from fastbn import _pool, _threads
from fastbn._plan import Plan
from fastbn.kernels import cpu_channels
from fastbn.kernels.compile import Kernel

#: Forget everything when there are more shapes than this: somebody has a new one every time.
_MOST = 4096
_NO_COUNTER = np.zeros(1, np.int64)
_INT64 = np.dtype(np.int64)
_INFINITY = float("inf")
_update = cpu_channels.update_running.serial


class Known(NamedTuple):
    """How arrays of one shape, strides and dtype go through one operation."""

    dtype: np.dtype
    channels: int
    plan: Plan
    kernel: Kernel


_known: dict[str, dict[tuple, Known]] = {"normalize": {}, "forward": {}, "backward": {}}
_evaluations, _trainings, _gradients = _known.values()


def remember(axis: int, plan: Plan, kernel: Kernel, *arrays: np.ndarray) -> None:
    """Keep how ``arrays`` went through the operation, if they are plain and alike."""
    first = arrays[-1]
    dtype = np.dtype(first.dtype.type)  # NumPy's own: unpickled arrays have another of the kind
    if not all(array.flags.carray and array.dtype == dtype for array in arrays):
        return
    known = _known[kernel.name]
    key = first.shape, first.strides, dtype, axis
    kernel.learn()
    if key not in known:
        if len(known) >= _MOST:
            known.clear()
        known[key] = Known(dtype, plan.channels, plan, kernel)


def evaluate(
    x: Any, mean: Any, var: Any, weight: Any, bias: Any, eps: Any, axis: Any, out: Any
) -> np.ndarray | None:
    """``x`` normalized with running statistics."""
    if type(x) is not ndarray or type(axis) is not int or type(eps) is not float:
        return None
    shape, strides = x.shape, x.strides
    known = _evaluations.get((shape, strides, x.dtype, axis if axis >= 0 else axis + x.ndim))
    if known is None or not 0.0 < eps < _INFINITY:
        return None
    dtype, channels, plan, kernel = known
    if weight is None:
        weight = _constant(channels, dtype, 1)
    if bias is None:
        bias = _constant(channels, dtype, 0)
    if not (
        type(mean) is ndarray and mean.dtype is dtype and mean.size == channels
        and type(var) is ndarray and var.dtype is dtype and var.size == channels
        and type(weight) is ndarray and weight.dtype is dtype and weight.size == channels
        and type(bias) is ndarray and bias.dtype is dtype and bias.size == channels
    ):  # fmt: skip
        return None
    if out is None:
        out = empty(shape, dtype) if not plan.large else _pool.new_output(x, dtype)
    elif not (
        type(out) is ndarray and out.dtype is dtype and out.shape == shape
        and out.strides == strides and _apart(out, x, mean, var, weight, bias)
    ):  # fmt: skip
        return None
    try:
        if not plan.large:
            kernel.repeat.serial(
                x.ravel(), out.ravel(), plan.geometry, False, mean, var, weight, bias, eps
            )
        else:
            _threads.launch(
                kernel.repeat, _threads.get_num_threads(), x.ravel(), out.ravel(), plan.geometry,
                plan.streaming and out is not x, mean, var, weight, bias, eps,
            )  # fmt: skip
    except TypeError:
        return None  # a kind of array that the kernel has not been compiled for
    return out


def train(
    x: Any, mean: Any, var: Any, weight: Any, bias: Any, momentum: Any, eps: Any, axis: Any,
    out: Any, counter: Any = None,
) -> tuple[np.ndarray, np.ndarray, int] | None:  # fmt: skip
    """``x`` normalized with its own statistics, these, and the axis.

    Updates the running statistics and the counter.
    """
    if type(x) is not ndarray or type(axis) is not int or type(eps) is not float:
        return None
    if axis < 0:
        axis += x.ndim
    known = _trainings.get((x.shape, x.strides, x.dtype, axis))
    if known is None or not 0.0 < eps < _INFINITY:
        return None
    dtype, channels, plan, kernel = known
    if weight is None:
        weight = _constant(channels, dtype, 1)
    if bias is None:
        bias = _constant(channels, dtype, 0)
    if not (
        type(weight) is ndarray and weight.dtype is dtype and weight.size == channels
        and type(bias) is ndarray and bias.dtype is dtype and bias.size == channels
    ):  # fmt: skip
        return None
    update = mean is not None or var is not None
    if update and not (
        type(mean) is ndarray and mean.dtype is dtype and mean.shape == weight.shape
        and type(var) is ndarray and var.dtype is dtype and var.shape == weight.shape
        and _updatable(mean, var, x, weight, bias) and _countable(counter, momentum)
    ):  # fmt: skip
        return None
    if out is None:
        out = empty(x.shape, dtype) if not plan.large else _pool.new_output(x, dtype)
    elif not (_like(out, x) and _apart(out, x, mean, var, weight, bias)):
        return None
    statistics = empty((3, channels))
    try:
        if not plan.large:
            kernel.repeat.serial(
                x.ravel(), out.ravel(), plan.geometry, plan.tile, False,
                weight, bias, eps, statistics,
            )  # fmt: skip
        else:
            threads = _threads.get_num_threads()
            _threads.launch(
                kernel.repeat, threads, x.ravel(), out.ravel(), plan.geometry,
                plan.tile_for(threads), plan.streaming and out is not x,
                weight, bias, eps, statistics,
            )  # fmt: skip
    except TypeError:
        return None  # a kind of array that the kernel has not been compiled for
    if update:
        with _threads.updating():
            _update(
                mean, var, _NO_COUNTER if counter is None else counter.reshape(1), statistics,
                float(plan.count), 0.0 if momentum is None else momentum, momentum is None,
            )  # fmt: skip
    return out, statistics, axis


def differentiate(
    dy: Any, x: np.ndarray, axis: int, statistics: np.ndarray, weight: Any, batch_statistics: bool,
    out: Any,
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:  # fmt: skip
    """Gradients of ``x``, weight and bias, from the fields of a cache."""
    known = _gradients.get((x.shape, x.strides, x.dtype, axis))
    if known is None or type(dy) is not ndarray or not _like(dy, x):
        return None
    dtype, channels, plan, kernel = known
    if statistics.shape[1] != channels:
        return None  # x has got another shape
    if out is None:
        out = empty(x.shape, dtype) if not plan.large else _pool.new_output(x, dtype)
    elif not _like(out, x) or any(a is not out and _may_share(out, a) for a in (dy, x)):
        return None
    d_weight, d_bias = empty(channels, dtype), empty(channels, dtype)
    if weight is None:
        weight = _constant(channels, dtype, 1)
    try:
        if not plan.large:
            kernel.repeat.serial(
                dy.ravel(), x.ravel(), out.ravel(), plan.geometry, plan.tile, False,
                statistics, weight, d_weight, d_bias, batch_statistics,
            )  # fmt: skip
        else:
            threads = _threads.get_num_threads()
            _threads.launch(
                kernel.repeat, threads, dy.ravel(), x.ravel(), out.ravel(), plan.geometry,
                plan.tile_for(threads), plan.streaming and out is not x and out is not dy,
                statistics, weight, d_weight, d_bias, batch_statistics,
            )  # fmt: skip
    except TypeError:
        return None  # a kind of array that the kernel has not been compiled for
    return out, d_weight, d_bias


@lru_cache(maxsize=64)
def _constant(channels: int, dtype: np.dtype, value: int) -> np.ndarray:
    return np.full(channels, value, dtype.type)


def _like(array: Any, x: np.ndarray) -> bool:
    """Whether ``array`` is an ndarray that lies as ``x`` does."""
    return (
        type(array) is ndarray and (array.dtype is x.dtype or array.dtype == x.dtype)
        and array.shape == x.shape and array.strides == x.strides
    )  # fmt: skip


def _apart(out: np.ndarray, x: np.ndarray, mean: Any, var: Any, weight: Any, bias: Any) -> bool:
    """Whether ``out`` is x itself or shares no memory with any input.

    Arrays that own their memory share none, which is quick to see.
    """
    if (
        out.base is None and x.base is None and weight.base is None and bias.base is None
        and (mean is None or mean.base is None) and (var is None or var.base is None)
    ):  # fmt: skip
        return True
    inputs = [v for v in (mean, var, weight, bias) if v is not None]
    if out is not x:
        inputs.append(x)
    return not any(_may_share(out, v) for v in inputs)


def _may_share(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays might share memory; those that own theirs do not."""
    if a.base is None and b.base is None:
        return a is b
    return np.may_share_memory(a, b)


def _updatable(mean: np.ndarray, var: np.ndarray, *inputs: np.ndarray) -> bool:
    """Whether running statistics are plain and writable, in memory of their own."""
    if mean is var or _may_share(mean, var):
        return False
    for array in inputs:
        if _may_share(mean, array) or _may_share(var, array):
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
