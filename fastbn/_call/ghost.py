"""Ghost batch norm on the CPU: batch norm of each group of samples, one after the other."""

from dataclasses import dataclass, fields
from functools import reduce
from itertools import pairwise
from typing import Any

import numpy as np

from fastbn._call import arguments, pieces, work
from fastbn._call.blocks import checked_gradient
from fastbn._call.operations import Forward, ForwardCache
from fastbn.kernels import formulas
from fastbn.kernels.held import computed


@dataclass(slots=True, eq=False, kw_only=True)
class GhostCache(ForwardCache):
    """What the gradients of a ghost batch norm take as well."""

    shape: tuple[int, ...]
    #: Samples, and their statistics.
    groups: list[tuple[slice, np.ndarray]]


def split(samples: int, size: int, positions: int) -> list[slice]:
    """Consecutive groups of ``size`` samples, the last one smaller where they do not come out even.

    One value per channel has no variance, so such a last group joins the one before.
    """
    starts = list(range(0, samples, size))
    if positions == 1 and len(starts) > 1 and samples - starts[-1] == 1:
        starts.pop()
    return [slice(*pair) for pair in pairwise([*starts, samples])]


class Ghost(Forward):
    """One training call: every check first, then the computation, then the update."""

    def __init__(
        self, x, running_mean, running_var, weight, bias, momentum, eps, axis, out, on_nonfinite,
        counter, size,
    ):  # fmt: skip
        super().__init__(
            x, running_mean, running_var, weight, bias, True, momentum, eps, axis, out,
            on_nonfinite, counter,
        )  # fmt: skip
        self.groups = []
        if not self.x.size:
            return
        samples = self.x.shape[0]
        self.groups = split(samples, size, self.count // samples)
        if size == self.count // samples == 1:
            raise ValueError(
                f"virtual_batch_size=1 leaves 1 value per channel to take statistics of, in x of "
                f"shape {self.x.shape}: their variance would be 0 and the output just the bias; "
                "take 2 or more"
            )

    def run(self) -> Any:
        """Normalize group by group, then move the running statistics by all of them together."""
        if len(self.groups) < 2:
            return super().run()
        weight, bias = self._for_kernel(self.weight), self._for_kernel(self.bias)
        self.of_groups = [
            work.forward(self.x[some], self.out[some], self.axis, weight, bias, self.eps)
            for some in self.groups
        ]
        self.statistics = self._merged()
        if self.update:
            work.update_running(*self._running(self.statistics), self.on_nonfinite)
        return self.returned

    def _merged(self) -> np.ndarray:
        """Statistics of the whole batch, as `work.forward` gives them."""
        each = self.count // self.x.shape[0]
        moments = []
        with np.errstate(invalid="ignore", over="ignore"):
            for some, statistics in zip(self.groups, self.of_groups, strict=True):
                mean, var, _ = statistics.reshape(3, -1)
                count = np.full(self.channels, float(each * (some.stop - some.start)))
                moments.append((count, mean, var * count))
            count, mean, m2 = reduce(pieces.merged, moments)
            var = m2 / count
            return np.concatenate([mean, var, formulas.reciprocal_std(var, self.eps)])

    def cache(self) -> ForwardCache:
        """For `backward`; that of a batch norm where there is one group."""
        plain = super().cache()
        if len(self.groups) < 2:
            return plain
        return GhostCache(
            **{field.name: getattr(plain, field.name) for field in fields(plain)},
            shape=self.x.shape, groups=list(zip(self.groups, self.of_groups, strict=True)),
        )  # fmt: skip


def backward(dy: Any, cache: GhostCache, out: Any) -> tuple[Any, np.ndarray, np.ndarray]:
    """Gradients in x, weight and bias: group by group, those of the parameters added up."""
    x = cache.x
    arguments.check_same_shape(x, cache.shape)
    dy, returned, dx = checked_gradient(dy, x, cache.overwritten, out)
    sums = np.zeros((2, x.shape[cache.axis]))
    with np.errstate(invalid="ignore", over="ignore"):
        for some, statistics in cache.groups:
            sums += work.backward(
                dy[some], x[some], dx[some], cache.axis, statistics, cache.weight
            )  # fmt: skip
        d_weight, d_bias = sums.astype(computed(dx.dtype))
    return returned, d_weight, d_bias
