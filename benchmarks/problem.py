"""What is computed: one operation on one case of the table that tests and benchmarks share."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tests.cases import Case

#: Operations, and how often each must at least move the bytes of x.
OPERATIONS = {"evaluation": 2, "training": 2, "backward": 3, "statistics": 1}
EPS = 1e-5
MOMENTUM = 0.1


@dataclass(frozen=True, eq=False)
class Problem:
    """Input, gradient, parameters and running statistics of one case."""

    case: Case
    dtype: np.dtype
    x: np.ndarray
    dy: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    var: np.ndarray

    @property
    def axis(self) -> int:
        """The channel axis, not negative."""
        return self.case.axis % len(self.case.shape)

    @property
    def others(self) -> tuple[int, ...]:
        """All axes but the channel's."""
        return tuple(k for k in range(self.x.ndim) if k != self.axis)

    def per_channel(self, vector: np.ndarray) -> np.ndarray:
        """``vector`` in a shape that broadcasts along the channels of x."""
        return vector.reshape([-1 if k == self.axis else 1 for k in range(self.x.ndim)])


@lru_cache(maxsize=1)
def problem(case: Case, dtype: str) -> Problem:
    """The problem of a case; always the same numbers. One at a time is kept."""
    rng = np.random.default_rng(0)
    kind = np.dtype(dtype)
    x, dy = (rng.standard_normal(case.shape, np.float32).astype(kind, copy=False) for _ in "xy")
    x += 2
    mean, var, weight, bias = (rng.uniform(0.5, 2, case.channels).astype(kind) for _ in range(4))
    return Problem(case, kind, case.array(x), case.array(dy), weight, bias, mean, var)
