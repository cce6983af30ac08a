"""Batch renormalization of arrays on the CPU: batch norm with another weight and bias.

``(x_hat * r + d) * weight + bias`` is a normalization with ``weight * r`` and
``bias + weight * d``, and r and d are constants to the gradients.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from fastbn._call import operations, pieces, settings, work
from fastbn._call.arguments import check_finite
from fastbn._call.operations import Forward, ForwardCache
from fastbn._call.views import assign_all
from fastbn._system import threads
from fastbn.kernels import formulas
from fastbn.kernels.held import computed


@dataclass(slots=True, eq=False, kw_only=True)
class RenormCache(ForwardCache):
    """What the gradients of a batch renormalization take as well."""

    #: ``weight * r``, in the dtype that x is computed in.
    scale: np.ndarray
    r: np.ndarray
    d: np.ndarray


class Renorm(Forward):
    """One training call: every check first, then the computation, then the update."""

    def __init__(
        self, x, running_mean, running_var, weight, bias, momentum, eps, axis, out, on_nonfinite,
        counter, r_max, d_max,
    ):  # fmt: skip
        step = max(0, int(counter))
        self.r_max = settings.check_limit("r_max", r_max(step) if callable(r_max) else r_max, step)
        self.d_max = settings.check_limit("d_max", d_max(step) if callable(d_max) else d_max, step)
        super().__init__(
            x, running_mean, running_var, weight, bias, True, momentum, eps, axis, out,
            on_nonfinite, counter,
        )  # fmt: skip

    def run(self) -> Any:
        """Normalize, then move the running averages; returns the output."""
        self.r = self.d = None  # 1 and 0
        if self.x.size == 0:
            self.statistics = np.zeros(3 * self.channels)
            return self.returned
        weight, bias = self._for_kernel(self.weight), self._for_kernel(self.bias)
        if self.r_max == 1 and self.d_max == 0:
            self.statistics = work.forward(self.x, self.out, self.axis, weight, bias, self.eps)
        else:
            self._renormalize(weight, bias)
        with threads.updating():
            mean, var, number, not_finite = self._after(self.statistics)
            if self.on_nonfinite == "propagate" or not any(map(np.any, not_finite.values())):
                assign_all((self.running_mean, self.running_var, self.counter), (mean, var, number))
        return self.returned

    def _renormalize(self, weight, bias):
        """The statistics of the batch, r and d from them, and the output."""
        _, mean, m2 = pieces.moments(self.x, self.axis)
        with threads.updating():
            running_mean, running_var = (
                np.array(v, np.float64) for v in (self.running_mean, self.running_var)
            )
        with np.errstate(all="ignore"):
            var = m2 / self.count
            rstd = formulas.reciprocal_std(var, self.eps)
            self.r, self.d = formulas.renorm_terms(
                mean, rstd, running_mean, formulas.reciprocal_std(running_var, self.eps),
                self.r_max, self.d_max,
            )  # fmt: skip
            pair = formulas.renorm_affine(
                self.r, self.d, 1.0 if weight is None else weight, 0.0 if bias is None else bias
            )
            self.scale, shift = (v.astype(computed(self.dtype)) for v in pair)
        self.statistics = np.concatenate([mean, var, rstd])
        work.normalize(self.x, self.out, self.axis, mean, var, self.scale, shift, self.eps)

    def _after(self, statistics) -> work.Step:
        """Running averages of mean and sigma after this batch; nothing is changed.

        ``running_var`` has ``sigma**2 - eps``, so that an evaluation divides by sigma.
        """
        mean, var = statistics[: 2 * self.channels].reshape(2, -1)
        with np.errstate(all="ignore"):
            sigma = np.sqrt(np.array(self.running_var, np.float64) + self.eps)
            batch = np.concatenate([mean, np.sqrt(var + self.eps)])
            # the averages are of sigma, uncorrected
            after = work.step(self.running_mean, sigma, self.counter, batch, 1.0, self.momentum)
            new = np.maximum(after.var**2 - self.eps, 0.0).astype(self.running_var.dtype)
        overflows = np.isfinite(self.running_var) & ~np.isfinite(new)
        not_finite = {**after.not_finite, "running_var": overflows}
        return work.Step(after.mean, new, after.number, not_finite)

    def _refuse_nonfinite(self):
        """As `Forward` does, before the work, with this norm's averages."""
        _, mean, m2 = pieces.moments(self.x, self.axis)
        after = self._after(np.concatenate([mean, m2 / self.count]))
        check_finite(self.x, self.axis, after.not_finite)

    def cache(self) -> ForwardCache:
        """For `backward`; that of a batch norm where r is 1 and d is 0."""
        plain = super().cache()
        if self.r is None:
            return plain
        return RenormCache(
            **{field.name: getattr(plain, field.name) for field in fields(plain)},
            scale=self.scale, r=self.r, d=self.d,
        )  # fmt: skip


def backward(dy: Any, cache: RenormCache, out: Any) -> tuple[Any, np.ndarray, np.ndarray]:
    """Gradients in x, weight and bias."""
    of_x_hat = ForwardCache(
        cache.x, cache.axis, cache.statistics, cache.scale, True, True, cache.overwritten
    )
    dx, d_weight, d_bias = operations.backward(dy, of_x_hat, out)
    with np.errstate(invalid="ignore", over="ignore"):
        of_weight = formulas.renorm_weight_gradient(
            cache.r, cache.d, d_weight.astype(np.float64), d_bias.astype(np.float64)
        )
        return dx, of_weight.astype(d_weight.dtype), d_bias
