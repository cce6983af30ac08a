"""What is fused with batch norm on a device, and norms of each sample: whether they are right."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import fastbn
from benchmarks.device_peers import Library
from tests import reference
from tests.cases import Case

EPS, SLOPE = 1e-5, 0.1
#: What is quick, what takes long, what has a number more, what has no activation.
FUSED = (("relu", True), ("silu", False), ("gelu_tanh", True), ("leaky_relu", False), (None, True))
#: Largest errors of tensors and of sums, relative to their sizes. Between two launches, the
#: gradient in a residual is rounded to the dtype.
BARS = {
    "float64": (1e-11, 1e-11), "float32": (2e-5, 2e-5), "float16": (4e-3, 4e-3),
    "bfloat16": (2e-2, 2e-2),
}  # fmt: skip


@dataclass(frozen=True)
class Found:
    """A quantity: its name, what was computed, what is right, and the largest error."""

    name: str
    found: np.ndarray
    right: np.ndarray
    bar: float

    @property
    def error(self) -> float:
        """Relative to the largest value: sums lose digits where they cancel."""
        if self.found.shape != self.right.shape:
            return np.inf
        size = max(1.0, float(np.abs(self.right).max()))
        return float(np.max(np.abs(self.found - self.right)) / size)


@dataclass(frozen=True)
class Arrays:
    """Those of a call: on the device, and in float64 as they are there."""

    there: dict[str, Any]
    here: dict[str, np.ndarray]

    def given(self, *names: str) -> list[Any]:
        return [self.there[name] for name in names]


def more(library: Library, case: Case, dtype: str) -> Iterator[Found]:
    """Everything of a case, with the values that it has there."""
    rng = np.random.default_rng(0)
    parameters = dtype if dtype in ("float32", "float64") else "float32"
    wide = {name: rng.normal(size=case.shape) for name in ("x", "dy", "residual")}
    last = {name: rng.normal(size=case.shape[-1:]) for name in ("last weight", "last bias")}
    vectors = {name: rng.normal(size=case.channels) for name in ("weight", "bias")} | last
    there = {name: library.put(values, dtype) for name, values in wide.items()}
    there |= {name: library.put(values, parameters) for name, values in vectors.items()}
    arrays = Arrays(there, {name: library.get(array) for name, array in there.items()})
    for activation, residual in FUSED:
        yield from _fused(library, case, dtype, arrays, activation, residual)
    yield from _rows(library, dtype, arrays)
    if case.shape[0] * case.channels < arrays.here["x"].size:  # not (N, C)
        yield from _groups(library, case, dtype, arrays)


def _compared(
    library: Library, dtype: str, name: str, found: dict[str, Any], right: dict[str, np.ndarray]
) -> Iterator[Found]:
    tensors, sums = BARS[dtype]
    for quantity, array in found.items():
        bar = sums if quantity.startswith(("d weight", "d bias")) else tensors
        yield Found(f"{name}, {quantity}", library.get(array), right[quantity], bar)


def _gradients(y: Any, gradients: Any) -> dict[str, Any]:
    return {"y": y, "dx": gradients.x, "d weight": gradients.weight, "d bias": gradients.bias}


def _fused(
    library: Library, case: Case, dtype: str, arrays: Arrays, activation: Any, residual: bool
) -> Iterator[Found]:
    here, name = arrays.here, f"{activation}{' + residual' * residual}"
    x, weight, bias = arrays.given("x", "weight", "bias")
    y, cache = fastbn.batch_norm_forward(
        x, None, None, weight, bias, True, eps=EPS, axis=case.axis, activation=activation,
        negative_slope=SLOPE, residual=arrays.there["residual"] if residual else None,
    )  # fmt: skip
    gradients = fastbn.batch_norm_backward(arrays.there["dy"], cache)
    z, mean, var = reference.forward(here["x"], here["weight"], here["bias"], EPS, case.axis)
    z = z + here["residual"] if residual else z
    right_y, dy = z, here["dy"]
    if activation:
        value, derivative = reference.ACTIVATIONS[activation]
        parameters = (SLOPE,) if activation == "leaky_relu" else ()
        right_y, dy = value(z, *parameters), dy * derivative(z, *parameters)
    dx, d_weight, d_bias = reference.backward(
        dy, here["x"], mean, var, here["weight"], EPS, case.axis, True
    )
    right = {"y": right_y, "dx": dx, "d weight": d_weight, "d bias": d_bias, "d residual": dy}
    found = _gradients(y, gradients) | ({"d residual": gradients.residual} if residual else {})
    yield from _compared(library, dtype, name, found, right)


def _right(
    x: np.ndarray, dy: np.ndarray, weight: np.ndarray, bias: np.ndarray,
    sums: Callable[[np.ndarray], np.ndarray], centered: bool = True,
) -> dict[str, np.ndarray]:  # fmt: skip
    """A norm over the last axis; weight and bias broadcast, their gradients are ``sums``."""
    mean = x.mean(-1, keepdims=True) if centered else 0.0
    rstd = 1 / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + EPS)
    x_hat, g = (x - mean) * rstd, dy * weight
    left_out = g.mean(-1, keepdims=True) if centered else 0.0
    dx = rstd * (g - left_out - x_hat * (g * x_hat).mean(-1, keepdims=True))
    return {"y": x_hat * weight + bias, "dx": dx, "d weight": sums(dy * x_hat), "d bias": sums(dy)}


def _rows(library: Library, dtype: str, arrays: Arrays) -> Iterator[Found]:
    """Layer norm and RMS norm over the last axis."""
    here, (x, weight, bias) = arrays.here, arrays.given("x", "last weight", "last bias")
    last = here["x"].shape[-1]

    def sums(values: np.ndarray) -> np.ndarray:
        return values.reshape(-1, last).sum(0)

    known = here["x"], here["dy"], here["last weight"]
    y, cache = fastbn.layer_norm_forward(x, last, weight, bias, EPS)
    found = _gradients(y, fastbn.norm_backward(arrays.there["dy"], cache))
    right = _right(*known, here["last bias"], sums)
    yield from _compared(library, dtype, "layer norm", found, right)
    y, cache = fastbn.rms_norm_forward(x, last, weight, EPS)
    found = _gradients(y, fastbn.norm_backward(arrays.there["dy"], cache))
    del found["d bias"]
    right = _right(*known, np.zeros(1), sums, centered=False)
    yield from _compared(library, dtype, "RMS norm", found, right)


def _groups(library: Library, case: Case, dtype: str, arrays: Arrays) -> Iterator[Found]:
    """Groups of several channels, if they can be made, and of one."""
    here, (x, weight, bias) = arrays.here, arrays.given("x", "weight", "bias")
    first = {name: np.moveaxis(here[name], case.axis, 1) for name in ("x", "dy")}
    shape, ndim = first["x"].shape, len(case.shape)
    samples, channels = shape[:2]

    def sums(values: np.ndarray) -> np.ndarray:
        return values.reshape(samples, channels, -1).sum((0, 2))

    each = [n for n in range(2, channels + 1) if channels % n == 0][:1]
    for groups in (*(channels // n for n in each), channels):
        if groups == channels:
            y, cache = fastbn.instance_norm_forward(
                x, weight=weight, bias=bias, eps=EPS, axis=case.axis
            )
        else:
            y, cache = fastbn.group_norm_forward(x, groups, weight, bias, EPS, axis=case.axis)
        found = _gradients(y, fastbn.norm_backward(arrays.there["dy"], cache))

        def grouped(values: np.ndarray, groups: int = groups) -> np.ndarray:
            return np.broadcast_to(values, shape).reshape(samples, groups, -1)

        vectors = (
            reference.per_channel(here[name], ndim, 1).astype(float) for name in ("weight", "bias")
        )
        right = _right(*map(grouped, (first["x"], first["dy"], *vectors)), sums)
        for name in ("y", "dx"):
            right[name] = np.moveaxis(right[name].reshape(shape), 1, case.axis)
        name = "instance norm" if groups == channels else "group norm"
        yield from _compared(library, dtype, name, found, right)
