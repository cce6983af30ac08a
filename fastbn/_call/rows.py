"""Layer norm and root mean square norm of arrays on the CPU: each row is a channel to the kernels.

Weight and bias belong to the columns.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from fastbn._call import arguments, known_rows, overlap, settings
from fastbn._call.blocks import (
    block_bytes,
    blocks,
    checked_gradient,
    checked_input,
    checked_output,
    overwrites,
)
from fastbn._call.row_plan import RowPlan, row_plan
from fastbn._call.run import launch
from fastbn._call.views import flat
from fastbn.kernels.frame import LEFT
from fastbn.kernels.held import computed, held


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
        self.uncentered = uncentered
        self.known = known_rows.find(x, normalized_shape, weight, bias, eps, out)
        if self.known is None:
            self._check(x, normalized_shape, weight, bias, eps, out)
            return
        self.x, self.weight, self.bias, self.eps = x, weight, bias, eps
        known, self.out = self.known
        self.shape, self.returned = known.shape, self.out

    def _check(self, x, normalized_shape, weight, bias, eps, out):
        self.x = checked_input(x)
        self.shape = settings.check_normalized_shape(normalized_shape)
        arguments.check_last_axes(self.x.shape, self.shape)
        self.weight, self.bias = (
            None
            if value is None
            else arguments.check_parameter(
                name, value, self.shape, f"normalized_shape is {self.shape}"
            )
            for name, value in (("weight", weight), ("bias", bias))
        )
        if eps is None and self.uncentered:
            eps = float(np.finfo(computed(arguments.native(self.x.dtype))).eps)
        self.eps = settings.check_eps(eps)
        self.values = math.prod(self.shape)
        inputs = {"x": self.x, "weight": self.weight, "bias": self.bias}
        self.returned, self.out = checked_output(out, self.x, inputs)
        if self.weight is not None and overwrites(self.out, self.weight):
            self.weight = self.weight.copy()  # gradients take it as it is now

    def run(self) -> Any:
        """Normalize; returns the output."""
        if self.known is not None:
            known, out = self.known
            weight = known.ones if self.weight is None else self.weight
            bias = known.zeros if self.bias is None else self.bias
            x_rows, out_rows = (a.reshape(known.rows, -1) for a in (self.x, out))
            self.statistics = self._rows(known.forward, x_rows, out_rows, weight, bias)
            return out
        if self.x.size == 0:
            self.statistics = np.zeros((3, 0))
            return self.returned
        dtype = computed(self.out.dtype)
        weight, bias = (
            _constant(absent, self.values, dtype) if v is None
            else arguments.kernel_vector(v.reshape(-1), dtype)
            for v, absent in ((self.weight, 1.0), (self.bias, 0.0))
        )  # fmt: skip
        found = [
            self._rows(_plan("row_forward", x, out), x, out, weight, bias)
            for _, (x, out) in _tables(self.values, len(self.shape), self.out, self.x)
        ]
        self.statistics = found[0] if len(found) == 1 else np.concatenate(found, axis=1)
        known_rows.remember(self.x, self.shape, self.out, self.weight, self.bias)
        return self.returned

    def _rows(self, plan, x, out, weight, bias) -> np.ndarray:
        """Normalize a table of rows; rows of their statistics.

        What float32 cannot hold is done once more, in float64.
        """
        statistics, entry = np.empty((3, len(x))), plan.entry.of(plan.dtype, computed(plan.dtype))
        in_cache = not plan.streams_to(out) or overlap.same_elements(x, out)
        outcome = launch(
            plan, entry, in_cache, *_views(plan, x, out), weight, bias, statistics.reshape(-1),
            self.eps, self.uncentered,
        )  # fmt: skip
        if outcome == LEFT:
            vectors = _wide(weight), _wide(bias)
            for some in _pieces(statistics[2] < 0.0, x.shape[1]):
                wide = x[some].astype(np.float64)
                again = _plan("row_forward", wide, wide)
                statistics[:, some] = self._rows(again, wide, wide, *vectors)
                with np.errstate(over="ignore", under="ignore"):
                    out[some] = wide
        return statistics

    def cache(self) -> RowCache:
        """For `backward`."""
        dtype = computed(self.out.dtype)
        weight = None if self.weight is None else arguments.converted(self.weight, dtype)
        return RowCache(
            self.x, self.x.shape, self.shape, self.eps, self.uncentered, self.statistics, weight,
            self.bias is not None, overwrites(self.out, self.x),
        )  # fmt: skip


def backward(dy: Any, cache: RowCache, out: Any) -> tuple[Any, np.ndarray, np.ndarray]:
    """Gradients in x, weight and bias."""
    known = None
    if not cache.overwritten and cache.x.shape == cache.shape:
        known = known_rows.find_gradient(dy, cache.x, cache.normalized_shape, out)
    if known is not None:
        how, dx = known
        dy, x, dx_rows = (a.reshape(how.rows, -1) for a in (dy, cache.x, dx))
        found = _gradients(
            how.backward, dy, x, dx_rows, cache.statistics, cache.weight, cache.uncentered
        )
        with np.errstate(over="ignore", under="ignore"):
            return dx, *found.astype(how.dtype)
    dy, returned, dx = checked_gradient(dy, cache.x, cache.overwritten, out)
    arguments.check_same_shape(cache.x, cache.shape)
    values, start = math.prod(cache.normalized_shape), 0
    sums = np.zeros((2, values))
    weight = None if cache.weight is None else cache.weight.reshape(-1)
    if cache.x.size:
        for _, (dy_rows, x, dx_rows) in _tables(
            values, len(cache.normalized_shape), dx, dy, cache.x
        ):
            statistics = cache.statistics[:, start : start + len(x)]
            plan = _plan("row_gradient", dy_rows, x, dx_rows)
            sums += _gradients(plan, dy_rows, x, dx_rows, statistics, weight, cache.uncentered)
            start += len(x)
    with np.errstate(over="ignore", under="ignore"):
        gradients = (d.astype(computed(dx.dtype)).reshape(cache.normalized_shape) for d in sums)
    return returned, *gradients


def _gradients(plan, dy, x, dx, statistics, weight, uncentered) -> np.ndarray:
    """Write dx of a table of rows; their part of the gradients of weight and bias.

    What float32 cannot hold is done once more, in float64.
    """
    (rows, columns), dtype = x.shape, computed(plan.dtype)
    of_columns = _constant(1.0, columns, dtype) if weight is None else weight
    found, left = np.empty((2, columns)), np.zeros(rows)
    in_cache = not plan.streams_to(dx) or any(overlap.same_elements(dx, a) for a in (dy, x))
    outcome = launch(
        plan, plan.entry.of(plan.dtype, dtype), in_cache, *_views(plan, dy, x, dx),
        np.ascontiguousarray(statistics).reshape(-1), of_columns, *found, left, uncentered,
    )  # fmt: skip
    if outcome == LEFT:
        wide = None if weight is None else _wide(weight)
        for some in _pieces(left > 0.0, columns):
            wide_dy, wide_x = (a[some].astype(np.float64) for a in (dy, x))
            again, of_rows = _plan("row_gradient", wide_dy, wide_x, wide_dy), statistics[:, some]
            found += _gradients(again, wide_dy, wide_x, wide_dy, of_rows, wide, uncentered)
            with np.errstate(over="ignore", under="ignore"):
                dx[some] = wide_dy
    return found


# --- tables ---------------------------------------------------------------------------------------


def _tables(
    values: int, dimensions: int, written: np.ndarray, *read: np.ndarray
) -> Iterable[tuple[slice, list[np.ndarray]]]:
    """Arrays as tables of rows, as `blocks` gives them: all at once if kernels can walk them.

    ``dimensions``: how many of the last axes make a row.
    """
    arrays = (*read, written)
    if all(_is_table(a, values) and a.dtype == written.dtype for a in arrays):
        # only what is contiguous has another shape
        return [(slice(None), [a.reshape(-1, values) for a in arrays])]
    arrays = tuple(a[None] if a.ndim == dimensions else a for a in (written, *read))
    return ((some, [a.reshape(-1, values) for a in block]) for some, block in blocks(None, *arrays))


def _is_table(array: np.ndarray, values: int) -> bool:
    """Whether rows of so many values are contiguous, and equally far apart."""
    if not array.flags.aligned or not array.dtype.isnative:
        return False
    if array.flags.c_contiguous:
        return True
    row, value = array.strides if array.ndim == 2 else (0, 0)
    nbytes = values * array.itemsize
    return (
        array.shape[-1] == values and value == array.itemsize
        and row >= nbytes and row % array.itemsize == 0
    )  # fmt: skip


def _plan(name: str, *tables: np.ndarray) -> RowPlan:
    """The plan of tables of one shape and dtype."""
    steps = tuple(table.strides[0] // table.itemsize for table in tables)
    return row_plan(name, held(tables[0].dtype), *tables[0].shape, steps)


def _views(plan: RowPlan, *tables: np.ndarray) -> list[np.ndarray]:
    """From the first to the last value of each."""
    views = [flat(table, n) for table, n in zip(tables, plan.extents, strict=True)]
    if views[0].dtype == plan.dtype:
        return views
    return [view.view(plan.dtype) for view in views]


def _pieces(left: np.ndarray, columns: int) -> Iterator[np.ndarray]:
    """Which rows are left, some at a time: no temporary is large."""
    rows, step = np.flatnonzero(left), max(1, block_bytes() // (8 * columns))
    return (rows[start : start + step] for start in range(0, len(rows), step))


def _wide(vector: np.ndarray) -> np.ndarray:
    return np.array(vector, np.float64, order="C")


@lru_cache(maxsize=8)
def _constant(value: float, size: int, dtype: np.dtype) -> np.ndarray:
    """A weight or bias that changes nothing; nobody writes to it."""
    return np.full(size, value, dtype)
