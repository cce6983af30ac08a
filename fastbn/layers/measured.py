"""What `fastbn.recalibrate` knows of its layers while it goes over the data, pass by pass."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from fastbn._call import backend
from fastbn.layers.base import BatchNorm
from fastbn.layers.renorm import BatchRenorm
from fastbn.stats import ChannelStats


class Measured:
    """What is known so far: the statistics of some layers, and of one that is being measured."""

    def __init__(self, layers: list[BatchNorm]) -> None:
        self.layers = layers
        self.found: dict[int, ChannelStats] = {}
        self.batches = [0] * len(layers)
        #: What each layer evaluates with: its own statistics until there are new ones.
        self.running = [(each.running_mean, each.running_var) for each in layers]
        #: The layer that is measured, on top of those that were found to come after it.
        self.stack: list[int] = []
        self.stats: ChannelStats | None = None
        #: Layers without new statistics that this batch came to before the one on top.
        self.passed: list[int] = []
        self.reached = False
        #: The layer that must be measured before the one on top; then this pass is in vain.
        self.first: int | None = None

    @property
    def now(self) -> int | None:
        """The layer that is measured."""
        return self.stack[-1] if self.stack else None

    def next_batch(self) -> None:
        """Forward is about to be called."""
        self.passed, self.reached = [], False

    def see(self, number: int, x: Any, axis: int, mask: Any) -> tuple[Any, Any]:
        """A layer is called: measure, if it is its turn, and say what normalizes."""
        self.called(number, partial(ChannelStats.from_array, x, axis, mask=mask))
        return self.running[number]

    def called(self, number: int, statistics: Callable[[], ChannelStats]) -> None:
        """A layer is called, with an input of these statistics, which are taken in its turn."""
        if number in self.found or self.first is not None:
            return
        if not self.stack:
            self.stack.append(number)
        if number != self.stack[-1]:
            self.passed.append(number)
        elif self.passed and not self.reached:  # what it gets may depend on that layer's
            self.first = self.passed[0]
        else:
            self.reached = True
            self._add(statistics())

    def begin_anew(self, first: int) -> None:
        """Measure another layer before the one that was to be measured now."""
        last = self.stack[-1]
        if first in self.stack:
            raise ValueError(
                f"forward comes to {_name(self.layers, first)} before "
                f"{_name(self.layers, last)} in one batch, and after it (perhaps by way of others) "
                "in another, so that neither can be measured first; no layer was changed. Where "
                "they do not depend on each other, recalibrate them one at a time"
            )
        self.stack.append(first)
        self.batches[last] = 0
        self.stats = self.first = None

    def _add(self, batch: ChannelStats) -> None:
        if not batch.count.any():
            return
        now = self.stack[-1]
        if not (np.isfinite(batch.mean).all() and np.isfinite(batch.m2).all()):
            if self.layers[now].on_nonfinite == "skip":
                return
            raise ValueError(
                f"{_name(self.layers, now)} got a batch with NaN or infinity, the one after "
                f"{self.batches[now]} others; no layer was changed. A layer with on_nonfinite="
                "'skip' passes over such"
            )
        self.stats = batch if self.stats is None else self.stats.merge(batch)
        self.batches[now] += 1

    def finish(self) -> None:
        """A pass is over."""
        if self.now is None:
            missing = [k for k in range(len(self.layers)) if k not in self.found]
            raise ValueError(
                f"forward has not called {_name(self.layers, missing[0])}; no layer was changed"
            )
        layer, name = self.layers[self.now], _name(self.layers, self.now)
        if self.stats is None:
            raise ValueError(f"{name} got no batch that counts; no layer was changed")
        if self.stats.count.min() < 2:
            raise ValueError(
                f"{name} got one value per channel in all, which has no variance; no layer was "
                "changed: pass more data"
            )
        arrays = []
        dtype = layer.running_mean.dtype, layer.running_var.dtype
        with np.errstate(over="ignore"):
            for value, kind in zip((self.stats.mean, self.stats.var(ddof=1)), dtype, strict=True):
                arrays.append(value.astype(kind))
        if not all(np.isfinite(array).all() for array in arrays):
            raise ValueError(
                f"the statistics of {name} do not fit {dtype[0]}; no layer was changed: make the "
                "layer with dtype='float64'"
            )
        mean, var = (backend.moved(array, layer._device) for array in arrays)
        self.running[self.now] = mean, var
        self.found[self.stack.pop()] = self.stats
        self.stats = None

    def store(self) -> list[ChannelStats]:
        """Write all that was found, at once, and return it."""
        arrays, values = [], []
        for k, layer in enumerate(self.layers):
            arrays += [layer.running_mean, layer.running_var]
            values += [backend.to_numpy(array) for array in self.running[k]]
            if not isinstance(layer, BatchRenorm):  # whose counter is a step of its schedule
                arrays.append(layer.num_batches_tracked)
                values.append(np.array(self.batches[k]))
        backend.assign_all(arrays, values)
        for layer in self.layers:
            layer._cache = None
        return [self.found[k] for k in range(len(self.layers))]


def _name(layers: list[BatchNorm], number: int) -> str:
    return "the layer" if len(layers) == 1 else f"layer[{number}], {layers[number]!r},"
