"""Whether results on a device are right: beside the float64 reference of the tests."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import fastbn
from benchmarks.device_more import more
from benchmarks.device_peers import Library
from tests import reference
from tests.cases import Case

EPS = 1e-5
#: Largest errors of tensors, of running means, of other numbers per channel. A tensor of 16 bits
#: is rounded once, and what is kept per channel is float32.
BARS = {
    "float64": (1e-11, 1e-13, 1e-11),
    "float32": (1e-5, 1e-6, 1e-5),
    "float16": (1e-3, 1e-6, 1e-5),
    "bfloat16": (4e-3, 1e-6, 1e-5),
}
#: Mean over standard deviation of the cases "far". float16 has no more digits.
FAR = {"float64": 1e4, "float32": 1e4, "float16": 1e2, "bfloat16": 1e2}

#: Rows, and neighbouring channels, that can and cannot be read 16 bytes at once; by one block per
#: channel, and by several.
CASES = (
    Case("rows aligned", (16, 6, 32, 32)),
    Case("rows unaligned", (7, 5, 33, 31)),
    Case("rows aligned, several blocks", (16, 2, 96, 96)),
    Case("rows unaligned, several blocks", (16, 2, 97, 95)),
    Case("(N, C)", (50, 37)),
    Case("(N, C), several blocks", (9001, 33)),
    Case("channels last", (4, 9, 11, 35), -1),
    Case("channels last, several blocks", (16, 32, 32, 16), -1),
    Case("channels last, threads idle", (5, 7, 11, 12), -1),
    Case("channels last, two launches", (64, 32, 32, 24), -1),
    Case("far", (8, 3, 16, 16)),
    Case("far, several blocks", (16, 2, 96, 96)),
    Case("far, (N, C), several blocks", (9001, 33)),
)
#: For a simulated device, which has a Python thread for each of its threads.
TINY = (
    Case("rows aligned", (3, 2, 8)),
    Case("rows unaligned", (3, 2, 5)),
    Case("far, (N, C)", (7, 3)),
)


@dataclass(frozen=True)
class Check:
    """A quantity's largest error, relative to its size."""

    arrays: str
    dtype: str
    case: str
    quantity: str
    error: float
    bar: float
    note: str = ""

    @property
    def met(self) -> bool:
        return self.error <= self.bar  # which no NaN is


def error_of(found: np.ndarray, expected: np.ndarray, size: np.ndarray) -> float:
    """The largest difference, relative to ``size``, which broadcasts."""
    if found.shape != expected.shape:
        return math.inf
    return float(np.max(np.abs(found - expected) / size))


def checks(libraries: Iterable[Library], cases: Iterable[Case], dtypes: tuple) -> Iterator[Check]:
    """Everything of all cases; what raises an error is a check that is not met."""
    for library in libraries:
        for dtype in (dtype for dtype in library.dtypes if dtype in dtypes):
            for case in cases:
                yield from _tried(library, case, dtype)


def _tried(library: Library, case: Case, dtype: str) -> list[Check]:
    try:
        return list(_checks_of(library, case, dtype))
    except Exception as error:  # the other cases are still worth knowing
        note = f"{type(error).__name__}: {error}"
        return [Check(library.name, dtype, case.name, "runs", math.inf, 0.0, note)]


def _checks_of(library: Library, case: Case, dtype: str) -> Iterator[Check]:
    problem = _problem(case, dtype)
    there = {name: library.put(values, _kept(name, dtype)) for name, values in problem.items()}
    here = {name: library.get(array) for name, array in there.items()}  # rounded
    nothing = np.full(case.shape, np.nan)
    # what is not written shows, and memory that is used again may hold the right result
    found = _found(library, case, dtype, there, here, lambda: library.put(nothing, dtype))
    again = _found(library, case, dtype, there, here, lambda: None)
    tensors, means, others = BARS[dtype]
    for name, (expected, size) in _expected(case, **here).items():
        quantity = name.split(", ")[1]
        bar = {"y": tensors, "dx": tensors, "running mean": means}.get(quantity, others)
        error = error_of(found[name], expected, size)
        yield Check(library.name, dtype, case.name, name, error, bar)
    same = all(found[name].tobytes() == again[name].tobytes() for name in found)
    yield Check(library.name, dtype, case.name, "same bits in two runs", 0.0 if same else 1.0, 0.0)
    if not case.name.startswith("far"):
        for one in more(library, case, dtype):
            yield Check(library.name, dtype, case.name, one.name, one.error, one.bar)


def _kept(name: str, dtype: str) -> str:
    """The dtype of an argument."""
    wide = name in ("x", "dy") or dtype in ("float32", "float64")
    return dtype if wide else "float32"


def _problem(case: Case, dtype: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    far = case.name.startswith("far")
    center, std = (FAR[dtype], 1.0) if far else (2.0, 3.0)
    return {
        "x": rng.normal(center, std, case.shape),
        "dy": rng.normal(size=case.shape),
        "weight": rng.normal(size=case.channels),
        "bias": rng.normal(size=case.channels),
        "mean": rng.normal(center, std, case.channels),
        "var": rng.uniform(0.5, 2, case.channels) * std**2,
    }


def _momentum(case: Case) -> float:
    return 1.0 if case.name.startswith("far") else 0.1  # 1: the batch's own variance is seen


def _found(
    library: Library, case: Case, dtype: str, there: dict, here: dict, out: Callable[[], Any]
) -> dict[str, np.ndarray]:
    """All that fastbn computes."""
    results = {}
    for training in (False, True):
        mode = "training" if training else "evaluation"
        running = [library.put(here[name], _kept(name, dtype)) for name in ("mean", "var")]
        y, cache = fastbn.batch_norm_forward(
            there["x"], *running, there["weight"], there["bias"], training, _momentum(case), EPS,
            axis=case.axis, out=out(),
        )  # fmt: skip
        gradients = fastbn.batch_norm_backward(there["dy"], cache, out=out())
        arrays = {"y": y, "dx": gradients.x, "d weight": gradients.weight, "d bias": gradients.bias}
        if training:
            arrays |= {"running mean": running[0], "running var": running[1]}
        for name, array in arrays.items():
            results[f"{mode}, {name}"] = library.get(array)
    return results


def _expected(case: Case, x, dy, weight, bias, mean, var) -> dict[str, tuple]:
    """What is right, and the size that an error is relative to."""
    axis, ndim = case.axis, len(case.shape)
    axes = reference.other_axes(ndim, axis)
    batch = reference.mean_and_var(x, axis)
    results = {}
    for mode, (m, v) in {"evaluation": (mean, var), "training": batch}.items():
        plain = reference.normalize(x, m, v, np.ones_like(m), np.zeros_like(m), EPS, axis)
        y = reference.normalize(x, m, v, weight, bias, EPS, axis)
        dx, d_weight, d_bias = reference.backward(
            dy, x, m, v, weight, EPS, axis, mode == "training"
        )
        # sums and differences lose digits where they cancel: sizes are those of their terms
        y_size = np.abs(weight) * np.abs(plain).max(axes) + np.abs(bias)
        dx_size = np.abs(weight) / np.sqrt(v + EPS) * np.abs(dy).max(axes)
        results |= {
            f"{mode}, y": (y, reference.per_channel(y_size, ndim, axis)),
            f"{mode}, dx": (dx, reference.per_channel(dx_size, ndim, axis)),
            f"{mode}, d weight": (d_weight, np.abs(dy * plain).sum(axes)),
            f"{mode}, d bias": (d_bias, np.abs(dy).sum(axes)),
        }
    new_mean, new_var = reference.running_step(mean, var, x, _momentum(case), axis)
    results["training, running mean"] = new_mean, np.sqrt(batch[1]) + 0.1 * np.abs(new_mean)
    results["training, running var"] = new_var, new_var
    return results


def worst(found: Iterable[Check]) -> list[Check]:
    """Of each kind of arrays, dtype and quantity the worst: of several cases the failed ones."""
    kept: dict[tuple, Check] = {}
    for check in found:
        key = check.arrays, check.dtype, check.quantity
        if not check.met:
            key += (check.case,)
        if key not in kept or check.error > kept[key].error:
            kept[key] = check
    return list(kept.values())
