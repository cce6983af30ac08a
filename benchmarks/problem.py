"""What is computed: one operation on one case of the table that tests and benchmarks share."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tests.cases import SPEED, Case

#: Operations, and how often each must at least move the bytes of x.
OPERATIONS = {"evaluation": 2, "training": 2, "backward": 3, "statistics": 1}
#: Cases that reach every way of walking an array, in cache and out of it.
QUICK = tuple(case for case in SPEED if case.name in (
    "ResNet-50 batch 32: 32x64x56x56", "ResNet-50 batch 32: 32x64x56x56 last",
    "ResNet-50 batch 32: 32x2048x7x7", "ResNet-50 batch 32: 32x512x7x7",
    "ResNet-50 batch 1: 1x256x56x56", "ResNet-50 batch 1: 1x256x56x56 last",
    "ResNet-50 batch 1: 1x512x14x14", "ResNet-50 batch 1: 1x2048x7x7 last",
    "MobileNetV2 batch 32: 32x24x56x56 last", "audio: 8x512x399",
    "segmentation: 1x16x1024x1024", "small: 1x64x1x1", "table: 8x16", "table: 256x10",
    "table: 1024x128", "table: 10000x100", "table: 100000x64",
))  # fmt: skip
#: Above this float64 adds nothing but time, and NumPy takes seconds.
LARGE = 2**23
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
