"""Batch norm whose batch is spread over several processes, each of which has a part of it.

Whoever calls hands in an *exchange* (`fastbn.distributed`), which is asked once in each direction:
it takes the statistics or sums of this part and gives back those of all parts together. All checks
are made before it is asked, so that it can tell the other processes. What may still fail on one
process alone after that is to get memory, for arrays in layouts that no kernel walks; the exchange
then finds the processes apart in the next call.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np

from fastbn._call import arguments, masked, operations, pieces, work
from fastbn._call.operations import Forward, ForwardCache
from fastbn._system import outputs
from fastbn.kernels import formulas
from fastbn.kernels.held import computed


class Share(Protocol):
    """What one process gives to an exchange."""

    dtype: np.dtype
    #: Values of each channel.
    count: int
    #: Forward: mean and m2 of each channel; backward: sums of ``dy * x_hat`` and of ``dy``.
    rows: np.ndarray

    def finish(self, whole: "Whole") -> Any:
        """What the call is for, from all shares together."""


class Whole(NamedTuple):
    """What comes back: number of values and rows of all shares together."""

    values: int
    rows: np.ndarray


class Exchange(Protocol):
    """What gets all parts together."""

    def together(self, call: str, prepare: Callable[[], Share], settings: Any = ()) -> Any:
        """What the share that ``prepare`` makes finishes with; an error of any is one of all.

        ``settings`` must be alike.
        """


@dataclass(slots=True, eq=False, kw_only=True)
class SyncCache(ForwardCache):
    """What the gradients of a part take as well."""

    exchange: Exchange
    #: Values of each channel in the whole batch.
    count: int
    #: Whether gradients of weight and bias are those of the whole batch.
    total: bool
    #: Whether this is of an evaluation call, whose statistics are no function of the whole batch.
    evaluated: bool = False


class Sync(Forward):
    """One training call on a part of a batch: checks and statistics, then `finish`."""

    def __init__(
        self, x, running_mean, running_var, weight, bias, momentum, eps, axis, out, on_nonfinite,
        counter, fused, exchange, total,
    ):  # fmt: skip
        self.exchange, self.total = exchange, total
        super().__init__(
            x, running_mean, running_var, weight, bias, True, momentum, eps, axis, out,
            on_nonfinite, counter, fused,
        )  # fmt: skip

    def _check_count(self):
        """Only the whole batch needs more than one value: `finish` looks."""

    @cached_property
    def rows(self) -> np.ndarray:
        """Mean and m2 of the channels of this part."""
        if self.x.size == 0:
            return np.zeros((2, self.channels))
        return np.stack(pieces.moments(self.x, self.axis)[1:])

    def _refuse_nonfinite(self):
        """Of this part alone, so that the process which has NaN or infinity says so."""
        arguments.check_finite(self.x, self.axis, {"x": ~np.isfinite(self.rows).all(axis=0)})

    def finish(self, whole: Whole) -> Any:
        """Normalize with the statistics of the whole batch, then move the running ones."""
        self.count, (mean, m2) = whole
        if self.count == 0:
            self.statistics = np.zeros(3 * self.channels)
            return self.returned
        if self.count == 1:
            raise ValueError(
                "expected more than 1 value per channel to take batch statistics of, got 1 in the "
                "batches of all ranks together: its variance would be 0 and the output just the "
                "bias; use running statistics (eval()) or a larger batch"
            )
        with np.errstate(invalid="ignore", over="ignore"):
            var = m2 / self.count
            self.statistics = np.concatenate([mean, var, formulas.reciprocal_std(var, self.eps)])
        if self.update and self.on_nonfinite == "raise":
            after = work.step(*self._running(self.statistics))
            arguments.check_finite(self.x, self.axis, after.not_finite)
        if self.x.size:
            weight, bias = self._for_kernel(self.weight), self._for_kernel(self.bias)
            work.normalize(
                self.x, self.out, self.axis, mean, var, weight, bias, self.eps, self.epilogue
            )
        if self.update:
            work.update_running(*self._running(self.statistics), self.on_nonfinite)
        return self.returned

    def cache(self) -> ForwardCache:
        """For `backward`."""
        return _with(super().cache(), exchange=self.exchange, count=self.count, total=self.total)


class Evaluation(Forward):
    """An evaluation call on a part of a batch, whose parameters get gradients of the whole.

    It exchanges nothing; its backward does, the two sums.
    """

    def __init__(self, exchange: Exchange, *arguments: Any):
        self.exchange = exchange
        super().__init__(*arguments)

    def cache(self) -> ForwardCache:
        """For `backward`."""
        plain = super().cache()
        if self.tracked:
            plain.statistics = self._running_statistics()  # of no samples too: all parts compare
        return _with(plain, exchange=self.exchange, count=self.count, total=True, evaluated=True)


def _with(plain: ForwardCache, **more: Any) -> SyncCache:
    return SyncCache(**{f.name: getattr(plain, f.name) for f in fields(plain)}, **more)


def backward(dy: Any, cache: SyncCache, out: Any) -> tuple[Any, ...]:
    """Gradients in x, weight and bias, and in the residual if there was one."""
    kind: Any = _Evaluated if cache.evaluated else _Gradient
    # alike, unless parts are of different forwards: but an evaluation without running statistics
    # takes those of each part
    own = cache.evaluated and cache.batch_statistics
    alike = None if own else zlib.crc32(cache.statistics.tobytes())
    return cache.exchange.together("backward", lambda: kind(dy, cache, out), alike)


class _Gradient:
    """One backward call on a part: checks and sums, then `finish`. Until then no output changes."""

    def __init__(self, dy, cache, out):
        dy = operations.checked_gradient(dy, cache)
        self.cache, x, axis = cache, cache.x, cache.axis
        self.dtype, self.count = arguments.native(x.dtype), x.size // x.shape[axis]
        if out is None:
            self.returned = self.dx = outputs.new_output(x, self.dtype)
        else:
            inputs = {"dy": dy, "x": x}
            self.returned, self.dx = out, arguments.check_out(out, x.shape, self.dtype, inputs)
        self.residual: tuple[np.ndarray, ...] = ()
        if cache.epilogue is not None and cache.epilogue.epilogue.residual is not None:
            self.residual = (outputs.new_output(x, self.dtype),)
        if x.size == 0:
            self.rows = np.zeros((2, x.shape[axis]))
            return
        if cache.epilogue is not None:
            own = self.dx if out is None else None
            target = self.residual[0] if self.residual else own
            if target is None:
                target = outputs.new_output(x, self.dtype)
            dy = operations.through_epilogue(dy, x, cache, target)
        self.alike = masked.lying_alike(dy, x, self.dx, axis)
        self.rows = work.products(*self.alike[:2], axis, cache.statistics)

    def finish(self, whole: Whole) -> tuple[Any, ...]:
        """The gradients, from the sums over the whole batch."""
        cache = self.cache
        if cache.x.size:
            dy, x, target = self.alike
            terms = masked.gradient_terms(
                cache.statistics, cache.weight, float(cache.count), *whole.rows
            )
            work.given_gradient(dy, x, target, cache.axis, terms)
            if target is not self.dx:
                np.copyto(self.dx, target)
        with np.errstate(over="ignore", under="ignore"):
            of_parameters = whole.rows if cache.total else self.rows
            return self.returned, *of_parameters.astype(computed(self.dtype)), *self.residual


class _Evaluated:
    """The same after an evaluation call: the gradient in x needs this part alone."""

    def __init__(self, dy, cache, out):
        dy, x = operations.checked_gradient(dy, cache), cache.x
        self.dtype, self.count = arguments.native(x.dtype), x.size // x.shape[cache.axis]
        self.out = self.target = out
        if out is not None:
            self.target = arguments.check_out(out, x.shape, self.dtype, {"dy": dy, "x": x})
        self.dx, *sums_and_residual = operations.backward(dy, cache, None)
        self.rows = np.array(sums_and_residual[:2], np.float64)
        self.residual = sums_and_residual[2:]

    def finish(self, whole: Whole) -> tuple[Any, ...]:
        """The gradients, those of parameters summed over all parts."""
        if self.out is not None:
            np.copyto(self.target, self.dx)
        with np.errstate(over="ignore", under="ignore"):
            sums = whole.rows.astype(computed(self.dtype))
        return self.dx if self.out is None else self.out, *sums, *self.residual
