"""Speed of the three operations, as ratios to a plain copy of the same bytes.

Absolute times say little on a shared machine. Each benchmark times a copy in turn
with the operation, in the same run, and puts the ratio into ``extra_info``.
"""

import statistics
import time

import numpy as np
import pytest

import fastbn

SHAPES = [(32, 256, 56, 56), (32, 2048, 7, 7), (100_000, 64), (1, 64, 1, 1)]


def _call(operation, x, dy):
    c = x.shape[1]
    mean, var = np.zeros(c, x.dtype), np.ones(c, x.dtype)
    weight, bias = np.ones((2, c), x.dtype)
    out = np.empty_like(x)
    if operation == "evaluation":
        return lambda: fastbn.batch_norm(x, mean, var, weight, bias, out=out)
    if operation == "training":
        return lambda: fastbn.batch_norm(x, mean, var, weight, bias, True, out=out)
    _, cache = fastbn.batch_norm_forward(x, None, None, weight, bias)
    return lambda: fastbn.batch_norm_backward(dy, cache, out=out)


def _seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@pytest.mark.parametrize("operation", ["evaluation", "training", "backward"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_speed(benchmark, shape, operation):
    if operation != "evaluation" and np.prod(shape) == shape[1]:
        shape = (8, 16)  # one value per channel has no batch statistics
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, *shape), np.float32)
    call, target = _call(operation, x, dy), np.empty_like(x)
    call()
    ratios = []
    for _ in range(9):
        copy = _seconds(lambda: np.copyto(target, x))
        ratios.append(_seconds(call) / copy)
    benchmark.extra_info["bytes"] = x.nbytes
    benchmark.extra_info["ratio_to_copy"] = statistics.median(ratios)
    benchmark(call)
