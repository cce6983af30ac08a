"""One call: every check first, then the computation, then the update."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fastbn._call import arguments, masked, neighbours, overlap, pieces, settings, work
from fastbn._call.epilogue import NOTHING, Epilogue, checked
from fastbn._system import outputs
from fastbn.kernels import formulas
from fastbn.kernels.activations import UNFUSED
from fastbn.kernels.held import computed


@dataclass(slots=True, eq=False)
class ForwardCache:
    """What a backward needs of its forward. Opaque: fields may change between versions.

    It refers to ``x`` and the residual and does not copy them: change one and the
    gradients are those of the changed values.
    """

    x: np.ndarray
    axis: int
    statistics: np.ndarray
    weight: np.ndarray | None
    has_bias: bool
    batch_statistics: bool
    overwritten: bool
    epilogue: "FusedCache | None" = None
    #: Which values went into the statistics, and how many of each channel; None: all of them.
    kept: tuple[np.ndarray, np.ndarray] | None = None


class FusedCache(NamedTuple):
    """What the gradient of an epilogue takes besides."""

    epilogue: Epilogue
    bias: np.ndarray | None
    eps: float


def cache_of(
    x: np.ndarray, axis: int, statistics: np.ndarray, weight: Any, bias: Any, eps: float,
    y: np.ndarray, activation: Any, slope: float, residual: Any,
) -> ForwardCache:  # fmt: skip
    """The cache of a training call by `prepared`, whose arrays are all plain."""
    weight = None if weight is None else weight.copy()
    cache = ForwardCache(x, axis, statistics, weight, bias is not None, True, y is x)
    if activation is not None or residual is not None:
        bias = None if bias is None else bias.copy()
        cache.epilogue = FusedCache(Epilogue(activation, slope, residual), bias, eps)
        cache.overwritten |= activation is not None and y is residual
    return cache


class Forward:
    """One forward call: every check first, then the computation, then the update."""

    def __init__(
        self, x, running_mean, running_var, weight, bias, training, momentum, eps, axis, out,
        on_nonfinite="propagate", counter=None, fused=None, mask=None,
    ):  # fmt: skip
        self.masked_array = isinstance(x, np.ma.MaskedArray) and out is None
        x, mask = masked.split(x, mask)
        x = arguments.as_input(x)
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
            neighbours.check_lent("running_mean", running_mean, self.running_mean)
            neighbours.check_lent("running_var", running_var, self.running_var)
            inputs = {"x": x, "weight": self.weight, "bias": self.bias}
            arguments.check_updatable(self.running_mean, self.running_var, counter, inputs)
        self.given_mask, kept = mask, masked.kept_of(mask, x.shape)
        self.kept = None  # with what it keeps of each channel, where that is not everything
        if self.batch_statistics and x.size:
            self._check_count()
            if kept is not None:
                self.kept, self.moments = kept, masked.moments(x, self.axis, kept)
                masked.check_counts(self.moments[0], x.shape)
        self.epilogue = NOTHING if fused is None else checked(*fused, x)
        self.out = self._output(out)
        if self.update and x.size and self.on_nonfinite == "raise":
            self._refuse_nonfinite()

    def _check_count(self):
        arguments.check_batch_count(self.x.shape, self.count)

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
            "residual": self.epilogue.residual,
        }  # fmt: skip
        return arguments.check_out(out, self.x.shape, self.dtype, inputs)

    def run(self) -> np.ndarray:
        if self.x.size == 0:
            self.statistics = np.zeros(3 * self.channels)
            return self.returned
        weight, bias = self._for_kernel(self.weight), self._for_kernel(self.bias)
        if self.kept is not None:
            self.statistics = self._normalize_masked(weight, bias)
        elif self.batch_statistics:
            self.statistics = work.forward(
                self.x, self.out, self.axis, weight, bias, self.eps, epilogue=self.epilogue
            )
        else:
            mean, var = self._running_for_kernel()
            work.normalize(
                self.x, self.out, self.axis, mean, var, weight, bias, self.eps, self.epilogue
            )
        if self.update:
            work.update_running(*self._running(self.statistics), self.on_nonfinite)
        if self.masked_array:
            return np.ma.MaskedArray(
                self.returned, ~masked.check_mask(self.given_mask, self.x.shape)
            )
        return self.returned

    def _normalize_masked(self, weight, bias):
        """With the statistics of what is kept, which it returns."""
        count, mean, m2 = self.moments
        with np.errstate(invalid="ignore"):
            var = m2 / count
            statistics = np.concatenate([mean, var, formulas.reciprocal_std(var, self.eps)])
        work.normalize(
            self.x, self.out, self.axis, mean, var, weight, bias, self.eps, self.epilogue
        )
        return statistics

    def _running(self, statistics) -> tuple[Any, Any, Any, np.ndarray, float, float | None]:
        """What an update of the running statistics takes."""
        if self.kept is None:
            correction = formulas.bessel(self.count)
        else:  # each channel has a count of its own
            statistics, correction = masked.unbiased(statistics, self.moments[0]), 1.0
        return (
            self.running_mean, self.running_var, self.counter, statistics, correction, self.momentum
        )  # fmt: skip

    def _refuse_nonfinite(self):
        """Look at the batch's statistics, and at the running ones after it, before the work."""
        count, mean, m2 = pieces.moments(self.x, self.axis) if self.kept is None else self.moments
        after = work.step(*self._running(np.concatenate([mean, m2 / count])))
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
            self.statistics
            if self.batch_statistics or self.x.size == 0
            else self._running_statistics(),
            None if self.weight is None else self._for_kernel(self.weight).copy(),
            self.bias is not None,
            self.batch_statistics,
            self._overwrites(self.x) or self._overwrites(self.epilogue.residual),
            self._fused_cache(),
            None if self.kept is None else (self.kept.copy(), self.moments[0]),
        )

    def _overwrites(self, array):
        """Whether the output was written over an array that gradients take."""
        if array is None or not self.given or self.x.size == 0:
            return False
        if array is not self.x and self.epilogue.activation is None:
            return False  # without an activation the gradients do not need the residual
        return overlap.same_elements(self.out, array)

    def _fused_cache(self):
        if self.epilogue.names is UNFUSED:
            return None
        bias = None if self.bias is None else self._for_kernel(self.bias).copy()
        return FusedCache(self.epilogue, bias, self.eps)

    def _running_statistics(self):
        """As `work.forward` gives those of a batch."""
        mean, var = (np.array(v, np.float64) for v in self._running_for_kernel())
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.concatenate([mean, var, formulas.reciprocal_std(var, self.eps)])


def backward(dy: Any, cache: Any, out: Any) -> tuple[Any, ...]:
    """Gradients in x, weight and bias, and in the residual if there was one."""
    dy = checked_gradient(dy, cache)
    x = cache.x
    dtype, inputs = arguments.native(x.dtype), {"dy": dy, "x": x}
    if out is None:
        returned = dx = outputs.new_output(x, dtype)
    else:
        returned, dx = out, arguments.check_out(out, x.shape, dtype, inputs)
    residual: tuple[np.ndarray, ...] = ()
    if cache.epilogue is not None and cache.epilogue.epilogue.residual is not None:
        residual = (outputs.new_output(x, dtype),)
    if x.size == 0:
        return returned, *np.zeros((2, cache.statistics.size // 3), computed(dtype)), *residual
    if cache.kept is not None:
        x = masked.finite_where_left_out(x, cache.axis, cache.statistics, cache.kept[0])
    if cache.epilogue is not None:
        dy = through_epilogue(dy, x, cache, *(residual or (dx,)))
    if cache.kept is not None:
        gradients = masked.backward(
            dy, x, dx, cache.axis, cache.statistics, cache.weight, *cache.kept
        )
        return returned, *gradients, *residual
    operation = "backward" if cache.batch_statistics else "frozen_backward"
    d_weight, d_bias = work.backward(
        dy, x, dx, cache.axis, cache.statistics, cache.weight, operation
    )
    return returned, d_weight, d_bias, *residual


def through_epilogue(dy, x, cache, target):
    """The gradient in the normalized values, which is also that in the residual: ``target``."""
    epilogue, bias, eps = cache.epilogue
    if epilogue.activation is None:
        np.copyto(target, dy)
        return dy
    if epilogue.residual is None and (  # else the target is an array of its own
        work.walked(cache.axis, target) is None or overlap.shares_memory(target, x)
    ):
        target = outputs.new_output(x, target.dtype)  # x is needed once more
    work.activation_gradient(
        dy, x, target, cache.axis, cache.statistics, cache.weight, bias, eps, epilogue
    )
    return target


def check_cache(cache: Any) -> None:
    """Refuse what no forward has given."""
    if cache is None:
        raise RuntimeError(
            "there is no cache to differentiate with; y, cache = batch_norm_forward(x, ...)"
        )
    if not isinstance(cache, ForwardCache):
        raise TypeError(
            f"cache must come from batch_norm_forward, got {type(cache).__name__}; "
            "y, cache = batch_norm_forward(x, ...)"
        )


def checked_gradient(dy: Any, cache: Any) -> np.ndarray:
    """``dy`` as an array that fits the forward of ``cache``."""
    check_cache(cache)
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
