"""fastbn against NumPy on one activation of a large network."""

import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fastbn.layers import BatchNorm2d

__all__ = ["COMPARISONS", "Comparison", "compare", "fitting_shape", "free_memory"]

REPEATS = 7
EPS = np.float32(1e-5)
MOMENTUM = np.float32(0.1)

Vectors = tuple[np.ndarray, ...]  # mean, variance, weight and bias, each (C,)
Call = Callable[[], np.ndarray]


@dataclass(frozen=True)
class Comparison:
    """What one computation takes in NumPy and in fastbn, in seconds, and how they differ."""

    name: str
    numpy_seconds: float
    fastbn_seconds: float
    largest_difference: float

    @property
    def ratio(self) -> float:
        """How many times as fast fastbn is."""
        return self.numpy_seconds / self.fastbn_seconds


def numpy_formula(x: np.ndarray, vectors: Vectors) -> np.ndarray:
    """Normalize (N, C, H, W) as the formula says."""
    mean, var, weight, bias = (v[:, np.newaxis, np.newaxis] for v in vectors)
    return (x - mean) / np.sqrt(var + EPS) * weight + bias


def numpy_scale_shift(x: np.ndarray, vectors: Vectors) -> np.ndarray:
    """The same, with all that is per channel worked out first: two steps over x, not four."""
    mean, var, weight, bias = (v[:, np.newaxis, np.newaxis] for v in vectors)
    scale = weight / np.sqrt(var + EPS)
    y = x * scale
    y += bias - mean * scale
    return y


def numpy_training(x: np.ndarray, vectors: Vectors) -> np.ndarray:
    """Normalize with the batch's statistics and move the running ones, as in training."""
    running_mean, running_var, weight, bias = vectors
    mean, var = x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3))
    count = x.size // x.shape[1]
    running_mean += MOMENTUM * (mean - running_mean)
    running_var += MOMENTUM * (var * np.float32(count / (count - 1)) - running_var)
    return numpy_scale_shift(x, (mean, var, weight, bias))


#: Name and NumPy version of what is timed. Training is last: it moves the running statistics.
COMPARISONS: dict[str, Callable[[np.ndarray, Vectors], np.ndarray]] = {
    "evaluation, as the formula": numpy_formula,
    "evaluation, x * scale + shift": numpy_scale_shift,
    "training, forward": numpy_training,
}


def compare(shape: Sequence[int]) -> Iterator[Comparison]:
    """Time evaluation and the forward of training on a random (N, C, H, W) in float32.

    Every call allocates its result, in NumPy and in fastbn alike. Times are medians of
    interleaved repeats, after one call of each that compiles, warms up and is compared.
    """
    x, layer, vectors = _operands(shape)

    def evaluation() -> np.ndarray:
        return layer.eval()(x)

    def training() -> np.ndarray:
        return layer.train()(x)

    for name, numpy_function in COMPARISONS.items():
        in_fastbn = training if numpy_function is numpy_training else evaluation
        in_numpy = functools.partial(numpy_function, x, vectors)
        difference = _largest_difference(in_numpy, in_fastbn)
        numpy_seconds, fastbn_seconds = _medians(in_numpy, in_fastbn)
        yield Comparison(name, numpy_seconds, fastbn_seconds, difference)


def fitting_shape(shape: Sequence[int], free_bytes: float) -> tuple[int, ...]:
    """``shape`` in float32, its batch halved until `compare` has room for it."""
    batch, *rest = shape
    # x, the results of both and two temporaries of the formula, and one to spare
    while batch > 1 and 6 * 4 * batch * math.prod(rest) > free_bytes:
        batch //= 2
    return batch, *rest


def free_memory() -> float:
    """Bytes to be had without swapping; infinity where the system does not tell as Linux does."""
    try:
        with open("/proc/meminfo") as file:
            kilobytes = dict(line.split()[:2] for line in file)
        return 1024 * int(kilobytes["MemAvailable:"])
    except (OSError, KeyError, ValueError):
        return math.inf


def _operands(shape: Sequence[int]) -> tuple[np.ndarray, BatchNorm2d, Vectors]:
    """An activation, and a layer that has seen such activations, with its vectors' copies."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(tuple(shape), dtype=np.float32)
    x *= 3
    x += 1
    layer = BatchNorm2d(shape[1], eps=float(EPS), momentum=float(MOMENTUM))
    layer.load_state_dict(
        {
            "weight": rng.uniform(0.5, 1.5, shape[1]),
            "bias": rng.normal(size=shape[1]),
            "running_mean": rng.normal(1, 0.1, shape[1]),
            "running_var": rng.uniform(8, 10, shape[1]),
            "num_batches_tracked": 1,
        }
    )
    state = layer.state_dict()
    names = ("running_mean", "running_var", "weight", "bias")
    return x, layer, tuple(state[name] for name in names)


def _largest_difference(in_numpy: Call, in_fastbn: Call) -> float:
    difference = in_numpy()
    difference -= in_fastbn()
    return float(np.abs(difference, out=difference).max())


def _medians(*calls: Call) -> list[float]:
    """Median seconds of each call, made by turns so that all see the same machine."""
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(REPEATS):
        for call, its_seconds in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call()
            its_seconds.append(time.perf_counter() - start)
    return [statistics.median(its_seconds) for its_seconds in seconds]
