"""Layer norm and root mean square norm of arrays on the CPU: each row is a channel to the kernels.

Weight and bias belong to the columns.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastbn._call import arguments, settings, work
from fastbn._call.blocks import (
    block_bytes,
    blocks,
    checked_gradient,
    checked_input,
    checked_output,
    overwrites,
)
from fastbn._call.groups import NO_EPS
from fastbn.kernels.held import computed


@dataclass(slots=True, eq=False)
class RowCache:
    """What the gradients of a layer norm or RMS norm take. Opaque.

    It refers to ``x`` and does not copy it: change ``x`` and the gradients are those of the
    changed values.
    """

    x: np.ndarray
    shape: tuple[int, ...]
    normalized_shape: tuple[int, ...]
    eps: float
    uncentered: bool
    statistics: np.ndarray
    weight: np.ndarray | None
    has_bias: bool
    overwritten: bool


class RowNorm:
    """One forward call: every check first, then the computation."""

    def __init__(self, x, normalized_shape, weight, bias, eps, out, uncentered=False):
        self.x = checked_input(x)
        self.shape = settings.check_normalized_shape(normalized_shape)
        if self.x.shape[-len(self.shape) :] != self.shape:
            raise ValueError(
                f"x has shape {self.x.shape}, and its last axes must be normalized_shape, "
                f"{self.shape}"
            )
        self.weight, self.bias = (
            None
            if value is None
            else arguments.check_parameter(
                name, value, self.shape, f"normalized_shape is {self.shape}"
            )
            for name, value in (("weight", weight), ("bias", bias))
        )
        if eps is None and uncentered:
            eps = float(np.finfo(computed(arguments.native(self.x.dtype))).eps)
        self.eps = settings.check_eps(eps)
        self.uncentered, self.values = uncentered, math.prod(self.shape)
        inputs = {"x": self.x, "weight": self.weight, "bias": self.bias}
        self.returned, self.out = checked_output(out, self.x, inputs)
        if self.weight is not None and overwrites(self.out, self.weight):
            self.weight = self.weight.copy()  # gradients take it as it is now

    def run(self) -> Any:
        """Normalize; returns the output."""
        if self.x.size == 0:
            self.statistics = np.zeros((3, 0))
            return self.returned
        parameters = self._parameters()
        found = [
            self._block(x.reshape(-1, self.values), out.reshape(-1, self.values), parameters)
            for _, (x, out) in blocks(None, *_with_rows(len(self.shape), self.out, self.x))
        ]
        self.statistics = found[0] if len(found) == 1 else np.concatenate(found, axis=1)
        return self.returned

    def _parameters(self) -> list[np.ndarray] | None:
        """Weight and bias of each column; None without either."""
        if self.weight is None and self.bias is None:
            return None
        dtype = computed(self.out.dtype)
        weight = np.ones(self.values, dtype) if self.weight is None else self.weight
        bias = np.zeros(self.values, dtype) if self.bias is None else self.bias
        return [arguments.kernel_vector(v.reshape(-1), dtype) for v in (weight, bias)]

    def _block(self, x, out, parameters) -> np.ndarray:
        """Normalize some rows; rows of their statistics."""
        if parameters is not None:
            weight, bias = parameters
            found = work.forward_each(x, out, weight, bias, self.eps, self.uncentered)
        else:
            operation = "uncentered_forward" if self.uncentered else "forward"
            found = work.forward(x[None], out[None], 1, None, None, self.eps, operation)
        return found.reshape(3, -1)

    def cache(self) -> RowCache:
        """For `backward`."""
        weight = None if self.weight is None else np.array(self.weight, computed(self.out.dtype))
        return RowCache(
            self.x, self.x.shape, self.shape, self.eps, self.uncentered, self.statistics, weight,
            self.bias is not None, overwrites(self.out, self.x),
        )  # fmt: skip


def backward(dy: Any, cache: RowCache, out: Any) -> tuple[Any, np.ndarray, np.ndarray]:
    """Gradients in x, weight and bias."""
    dy, returned, dx = checked_gradient(dy, cache.x, cache.overwritten, out)
    arguments.check_same_shape(cache.x, cache.shape)
    values = math.prod(cache.normalized_shape)
    sums, start = np.zeros((2, values)), 0
    if cache.x.size:
        weight = None if cache.weight is None else cache.weight.reshape(-1)
        arrays = _with_rows(len(cache.normalized_shape), dx, dy, cache.x)
        for _, block in blocks(block_bytes() // 2, *arrays):
            dy, x, dx_block = (a.reshape(-1, values) for a in block)
            statistics = cache.statistics[:, start : start + len(x)]
            sums += _block_backward(dy, x, dx_block, statistics, weight, cache)
            start += len(x)
    with np.errstate(over="ignore"):
        gradients = (d.astype(computed(dx.dtype)).reshape(cache.normalized_shape) for d in sums)
    return returned, *gradients


def _block_backward(dy, x, dx, statistics, weight, cache):
    """Some rows: their part of the gradients of weight and bias; dx is written."""
    columns = x.shape[1]
    mean, var, _ = statistics
    found = np.zeros((2, columns))
    if weight is not None or cache.has_bias:
        x_hat = np.empty_like(x)
        work.normalize(x[None], x_hat[None], 1, mean, var, None, None, cache.eps)
        plain = np.concatenate([np.zeros(columns), np.ones(2 * columns)])
        found = work.products(dy, x_hat, 1, plain)
    if weight is not None:
        zeros, ones = np.zeros(columns, x.dtype), np.ones(columns, x.dtype)
        gradient = np.empty_like(dx) if overwrites(dx, x) else dx  # x is read once more
        work.normalize(dy, gradient, 1, zeros, ones, weight, None, NO_EPS)
        dy = gradient
    operation = "uncentered_backward" if cache.uncentered else "backward"
    work.backward(dy[None], x[None], dx[None], 1, statistics.ravel(), None, operation)
    return found


def _with_rows(dimensions: int, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """Arrays with an axis of rows, if they have none but those that are normalized."""
    return tuple(a[None] if a.ndim == dimensions else a for a in arrays)
