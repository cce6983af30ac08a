"""One forward call: every check first, then the computation, then the update."""

from dataclasses import dataclass

import numpy as np

from fastbn import _checks, _plan, _pool, _run
from fastbn.kernels import formulas
from fastbn.stats import ChannelStats


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


def remembered(
    x: np.ndarray, axis: int, statistics: np.ndarray, weight: np.ndarray | None, bias: object,
    y: np.ndarray,
) -> ForwardCache:  # fmt: skip
    """The cache of a training call by `_fast`, whose arrays are of the kinds that kernels take."""
    weight = None if weight is None else weight.copy()
    return ForwardCache(x, axis, statistics, weight, bias is not None, True, y is x)


class Forward:
    """One forward call: every check first, then the computation, then the update."""

    def __init__(
        self, x, running_mean, running_var, weight, bias, training, momentum, eps, axis, out,
        on_nonfinite="propagate", counter=None,
    ):  # fmt: skip
        x = _plan.as_array("x", x)
        self.x = x
        self.axis, self.channels, self.count = _plan.describe(x.shape, x.dtype, _plan.as_axis(axis))
        self.dtype = _plan.native(x.dtype)
        self.weight = self._vector("weight", weight)
        self.bias = self._vector("bias", bias)
        self.tracked = _checks.check_running(running_mean, running_var)
        self.running_mean = self._vector("running_mean", running_mean)
        self.running_var = self._vector("running_var", running_var)
        self.eps = _checks.check_eps(eps)
        training = _checks.check_bool("training", training)
        self.update = training and self.tracked
        self.batch_statistics = training or not self.tracked
        self.counter = counter
        self.on_nonfinite = _checks.check_on_nonfinite(on_nonfinite)
        if self.update:
            cumulative = momentum is None and counter is not None
            self.momentum = None if cumulative else _checks.check_momentum(momentum)
            inputs = {"x": x, "weight": self.weight, "bias": self.bias}
            _checks.check_updatable(self.running_mean, self.running_var, counter, inputs)
        if self.batch_statistics and x.size:
            _plan.check_batch_count(x.shape, self.count)
        self.out = self._output(out)
        if self.update and self.on_nonfinite == "raise":
            stats = ChannelStats.from_array(x, self.axis)
            _checks.check_finite(stats.mean, stats.m2, x.shape)

    def _vector(self, name, value):
        if value is None:
            return None
        return _checks.check_vector(name, value, self.channels, self.x.shape)

    def _output(self, out):
        self.returned, self.given = out, out is not None
        if out is None:
            self.returned = _pool.new_output(self.x, self.dtype)
            return self.returned
        inputs = {
            "x": self.x, "weight": self.weight, "bias": self.bias,
            "running_mean": self.running_mean, "running_var": self.running_var,
        }  # fmt: skip
        return _checks.check_out(out, self.x.shape, self.dtype, inputs)

    def run(self) -> np.ndarray:
        if self.x.size == 0:
            self.statistics = np.zeros((3, self.channels))
            return self.returned
        weight = self._for_kernel(self.weight, 1.0)
        bias = self._for_kernel(self.bias, 0.0)
        if self.batch_statistics:
            self.statistics = _run.forward(self.x, self.out, self.axis, weight, bias, self.eps)
        else:
            mean, var = self._running_for_kernel()
            _run.normalize(self.x, self.out, self.axis, mean, var, weight, bias, self.eps)
        if self.update and self._may_update():
            _run.update_running(
                self.running_mean, self.running_var, self.counter,
                self.statistics, self.count, self.momentum,
            )  # fmt: skip
        return self.returned

    def _may_update(self) -> bool:
        if self.on_nonfinite == "propagate":
            return True
        return bool(np.isfinite(self.statistics[:2]).all())

    def _for_kernel(self, vector, default):
        if vector is None:
            return np.full(self.channels, default, self.dtype)
        return _checks.kernel_vector(vector, self.dtype)

    def _running_for_kernel(self):
        """Running statistics of x's dtype as they are; others in float64, to lose nothing."""
        pair = self.running_mean, self.running_var
        same = all(vector.dtype == self.dtype for vector in pair)
        dtype = self.dtype if same else np.dtype(np.float64)
        return tuple(_checks.kernel_vector(vector, dtype) for vector in pair)

    def cache(self) -> ForwardCache:
        """For `batch_norm_backward`: nothing in it changes with the arrays of the caller but x."""
        return ForwardCache(
            self.x,
            self.axis,
            self.statistics if self.batch_statistics else self._running_statistics(),
            None if self.weight is None else self._for_kernel(self.weight, 1.0).copy(),
            self.bias is not None,
            self.batch_statistics,
            self.given and self.x.size > 0 and _checks.same_elements(self.out, self.x),
        )

    def _running_statistics(self):
        """As `_run.forward` gives those of a batch."""
        mean, var = (np.array(v, np.float64) for v in self._running_for_kernel())
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.stack([mean, var, formulas.reciprocal_std(var, self.eps)])
