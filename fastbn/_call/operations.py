"""One call: every check first, then the computation, then the update."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastbn._call import arguments, overlap, pieces, settings, work
from fastbn._system import outputs
from fastbn.kernels import formulas
from fastbn.kernels.held import computed


@dataclass(slots=True, eq=False)
class ForwardCache:
    """What a backward needs of its forward. Opaque: fields may change between versions.

    It refers to ``x`` and does not copy it: change ``x`` and the gradients are
    those of the changed values.
    """

    x: np.ndarray
    axis: int
    statistics: np.ndarray
    weight: np.ndarray | None
    has_bias: bool
    batch_statistics: bool
    overwritten: bool


def cache_of(
    x: np.ndarray, axis: int, statistics: np.ndarray, weight: np.ndarray | None, bias: object,
    y: np.ndarray,
) -> ForwardCache:  # fmt: skip
    """The cache of a training call by `prepared`, whose arrays are all plain."""
    weight = None if weight is None else weight.copy()
    return ForwardCache(x, axis, statistics, weight, bias is not None, True, y is x)


class Forward:
    """One forward call: every check first, then the computation, then the update."""

    def __init__(
        self, x, running_mean, running_var, weight, bias, training, momentum, eps, axis, out,
        on_nonfinite="propagate", counter=None,
    ):  # fmt: skip
        x = arguments.as_array("x", x)
        self.x = x
        self.axis, self.channels, self.count = arguments.describe(
            x.shape, x.dtype, arguments.as_axis(axis)
        )
        self.dtype = arguments.native(x.dtype)
        self.weight = self._vector("weight", weight)
        self.bias = self._vector("bias", bias)
        self.tracked = arguments.check_running(running_mean, running_var)
        self.running_mean, self.running_var = (
            None if value is None else arguments.check_statistics(name, self._vector(name, value))
            for name, value in (("running_mean", running_mean), ("running_var", running_var))
        )
        self.eps = settings.check_eps(eps)
        training = settings.check_bool("training", training)
        self.update = training and self.tracked
        self.batch_statistics = training or not self.tracked
        self.counter = counter
        self.on_nonfinite = settings.check_on_nonfinite(on_nonfinite)
        if self.update:
            cumulative = momentum is None and counter is not None
            self.momentum = None if cumulative else settings.check_momentum(momentum)
            inputs = {"x": x, "weight": self.weight, "bias": self.bias}
            arguments.check_updatable(self.running_mean, self.running_var, counter, inputs)
        if self.batch_statistics and x.size:
            arguments.check_batch_count(x.shape, self.count)
        self.out = self._output(out)
        if self.update and x.size and self.on_nonfinite == "raise":
            self._refuse_nonfinite()

    def _vector(self, name, value):
        if value is None:
            return None
        of = f"x of shape {self.x.shape} has {self.channels} channels"
        return arguments.check_parameter(name, value, (self.channels,), of)

    def _output(self, out):
        self.returned, self.given = out, out is not None
        if out is None:
            self.returned = outputs.new_output(self.x, self.dtype)
            return self.returned
        inputs = {
            "x": self.x, "weight": self.weight, "bias": self.bias,
            "running_mean": self.running_mean, "running_var": self.running_var,
        }  # fmt: skip
        return arguments.check_out(out, self.x.shape, self.dtype, inputs)

    def run(self) -> np.ndarray:
        if self.x.size == 0:
            self.statistics = np.zeros(3 * self.channels)
            return self.returned
        weight, bias = self._for_kernel(self.weight), self._for_kernel(self.bias)
        if self.batch_statistics:
            self.statistics = work.forward(self.x, self.out, self.axis, weight, bias, self.eps)
        else:
            mean, var = self._running_for_kernel()
            work.normalize(self.x, self.out, self.axis, mean, var, weight, bias, self.eps)
        if self.update:
            work.update_running(*self._running(self.statistics), self.on_nonfinite)
        return self.returned

    def _running(self, statistics) -> tuple[Any, Any, Any, np.ndarray, int, float | None]:
        """What an update of the running statistics takes."""
        return (
            self.running_mean, self.running_var, self.counter,
            statistics, self.count, self.momentum,
        )  # fmt: skip

    def _refuse_nonfinite(self):
        """Look at the batch's statistics, and at the running ones after it, before the work."""
        _, mean, m2 = pieces.moments(self.x, self.axis)
        after = work.step(*self._running(np.concatenate([mean, m2 / self.count])))
        arguments.check_finite(self.x, self.axis, after.not_finite)

    def _for_kernel(self, vector):
        return None if vector is None else arguments.kernel_vector(vector, computed(self.dtype))

    def _running_for_kernel(self):
        """Running statistics of the dtype x is computed in as they are; others in float64."""
        pair = self.running_mean, self.running_var
        same = all(vector.dtype == computed(self.dtype) for vector in pair)
        dtype = computed(self.dtype) if same else np.dtype(np.float64)
        return tuple(arguments.kernel_vector(vector, dtype) for vector in pair)

    def cache(self) -> ForwardCache:
        """For `batch_norm_backward`: nothing in it changes with the arrays of the caller but x."""
        return ForwardCache(
            self.x,
            self.axis,
            self.statistics if self.batch_statistics else self._running_statistics(),
            None if self.weight is None else self._for_kernel(self.weight).copy(),
            self.bias is not None,
            self.batch_statistics,
            self.given and self.x.size > 0 and overlap.same_elements(self.out, self.x),
        )

    def _running_statistics(self):
        """As `work.forward` gives those of a batch."""
        mean, var = (np.array(v, np.float64) for v in self._running_for_kernel())
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.concatenate([mean, var, formulas.reciprocal_std(var, self.eps)])


def backward(dy: Any, cache: Any, out: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients in x, weight and bias."""
    dy = _checked_gradient(dy, cache)
    x = cache.x
    dtype, inputs = arguments.native(x.dtype), {"dy": dy, "x": x}
    if out is None:
        returned = dx = outputs.new_output(x, dtype)
    else:
        returned, dx = out, arguments.check_out(out, x.shape, dtype, inputs)
    if x.size == 0:
        return returned, *np.zeros((2, cache.statistics.size // 3), computed(dtype))
    operation = "backward" if cache.batch_statistics else "frozen_backward"
    d_weight, d_bias = work.backward(
        dy, x, dx, cache.axis, cache.statistics, cache.weight, operation
    )
    return returned, d_weight, d_bias


def _checked_gradient(dy: Any, cache: Any) -> np.ndarray:
    if cache is None:
        raise RuntimeError(
            "there is no cache to differentiate with; y, cache = batch_norm_forward(x, ...)"
        )
    if not isinstance(cache, ForwardCache):
        raise TypeError(
            f"cache must come from batch_norm_forward, got {type(cache).__name__}; "
            "y, cache = batch_norm_forward(x, ...)"
        )
    if cache.x.dtype.kind not in "fV":
        raise RuntimeError(f"x has been given another dtype since the forward, {cache.x.dtype}")
    dy = arguments.as_array("dy", dy)
    arguments.check_gradient(dy, cache.x, cache.overwritten)
    if cache.x.shape[cache.axis : cache.axis + 1] != (cache.statistics.size // 3,):
        raise RuntimeError(
            f"x has been given another shape since the forward, {cache.x.shape}; "
            "reshape a view of it (x.reshape), or run the forward again"
        )
    return dy
