"""One forward call: every check first, then the computation, then the update."""

from dataclasses import dataclass

import numpy as np

from fastbn import _checks, _plan, _run
from fastbn.kernels import formulas
from fastbn.stats import ChannelStats


@dataclass(frozen=True, slots=True, eq=False)
class ForwardCache:
    """What a backward needs of its forward. Opaque: fields may change between versions.

    It refers to ``x`` and does not copy it: change ``x`` and the gradients are
    those of the changed values.
    """

    x: np.ndarray
    axis: int
    mean: np.ndarray
    rstd: np.ndarray
    weight: np.ndarray | None
    has_bias: bool
    batch_statistics: bool
    overwritten: bool


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
            self.returned = np.empty_like(self.x, dtype=self.dtype)
            return self.returned
        inputs = {
            "x": self.x, "weight": self.weight, "bias": self.bias,
            "running_mean": self.running_mean, "running_var": self.running_var,
        }  # fmt: skip
        return _checks.check_out(out, self.x.shape, self.dtype, inputs)

    def run(self) -> np.ndarray:
        if self.x.size == 0:
            self.mean, self.var = np.zeros(self.channels), np.zeros(self.channels)
            return self.returned
        weight = self._for_kernel(self.weight, 1.0)
        bias = self._for_kernel(self.bias, 0.0)
        if self.batch_statistics:
            self.mean, self.var = _run.forward(self.x, self.out, self.axis, weight, bias, self.eps)
        else:
            self.mean, self.var = self._running_for_kernel()
            _run.normalize(self.x, self.out, self.axis, self.mean, self.var, weight, bias, self.eps)
        if self.update and self._may_update():
            _run.update_running(
                self.running_mean, self.running_var, self.counter,
                self.mean, self.var, self.count, self.momentum,
            )  # fmt: skip
        return self.returned

    def _may_update(self) -> bool:
        if self.on_nonfinite == "propagate":
            return True
        return bool(np.isfinite(self.mean).all() and np.isfinite(self.var).all())

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
        if self.batch_statistics:  # computed for this call alone, and never negative
            mean, rstd = self.mean, formulas.reciprocal_std(self.var, self.eps)
        else:
            mean = np.array(self.mean, np.float64)
            with np.errstate(invalid="ignore", divide="ignore"):
                rstd = formulas.reciprocal_std(np.array(self.var, np.float64), self.eps)
        return ForwardCache(
            self.x,
            self.axis,
            mean,
            rstd,
            None if self.weight is None else np.array(self.weight, np.float64),
            self.bias is not None,
            self.batch_statistics,
            self.given and self.x.size > 0 and _checks.same_elements(self.out, self.x),
        )
