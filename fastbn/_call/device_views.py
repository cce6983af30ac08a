"""What norms of each sample see in an array on a device: channels of a view for batch norm."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from fastbn._call import arguments
from fastbn._call.device_arrays import DeviceArray
from fastbn.kernels.cuda.steps import Extra


class View(NamedTuple):
    """What is normalized together, and where weight and bias belong."""

    axis: int
    #: What is normalized together, of a sample.
    groups: int
    #: Launches, each of a part of memory; and its view, as kernels take it.
    outer: int
    samples: int
    channels: int
    length: int
    #: Whose weight and bias kernels find by a value's place (`steps`); None: each of a channel.
    own: str | None
    #: Weights, and how many values one after the other have the same.
    weights: int
    span: int
    #: The view in which they are the channels.
    batch: tuple[int, int, int]

    @property
    def size(self) -> int:
        """Values of a launch."""
        return self.samples * self.channels * self.length

    @property
    def place(self) -> tuple[int, ...]:
        """What `norms.parameters_of` finds a value's statistics by."""
        per_sample = self.outer * self.size * self.groups // max(1, self.outer * self.channels)
        each = self.weights // max(1, self.groups)
        return per_sample, self.span, self.weights, max(1, each), self.groups, self.channels

    def fits(self, lanes: int, extra: Extra) -> bool:
        """Whether so many values, read at once, have their parameters side by side, or the same."""
        if self.samples == self.length == 1:  # channels side by side have the same ones
            return lanes == 1
        return not extra.own or (self.span if self.span > 1 else self.weights) % lanes == 0

    def launches(self, statistics: Any, *arrays: Any) -> Iterator[list[Any]]:
        """The part of each launch."""
        for k in range(self.outer):
            if self.outer == 1:
                yield [statistics, *arrays]
                return
            three = 3 * self.channels
            parts = [array[k * self.size : (k + 1) * self.size] for array in arrays]
            yield [statistics[k * three : (k + 1) * three], *parts]


def of_groups(x: DeviceArray, axis: int, groups: int) -> View:
    """Groups of channels of each sample."""
    arguments.check_groups(x.shape, axis, groups)
    samples, channels = x.shape[0], x.shape[axis]
    length = math.prod(n for k, n in enumerate(x.shape) if k not in (0, axis))
    each = channels // max(1, groups)
    order = [k for k in x.order if x.shape[k] != 1 and k != 0]
    _check_order(x, samples == 1 or _outermost(x) == 0, "samples come first")
    if order[:1] == [axis] or axis not in order:
        own: str | None = "span" if length > 1 else "column"
        view, batch = (1, samples * groups, each * length), (samples, channels, length)
        return View(axis, groups, 1, *view, own, channels, length, batch)
    _check_order(x, order[-1] == axis, "channels come first or last of what a sample has")
    own = None if each == 1 else "column"
    batch = samples * length, channels, 1
    return View(axis, groups, samples, length, groups, each, own, channels, 1, batch)


def of_rows(x: DeviceArray, shape: tuple[int, ...]) -> View:
    """The last axes."""
    arguments.check_last_axes(x.shape, shape)
    order = [k for k in x.order if x.shape[k] != 1]
    _check_order(x, order == sorted(order), "axes lie as they are named, the last one side by side")
    values = math.prod(shape)
    rows = math.prod(x.shape[: -len(shape)])
    return View(len(x.shape) - 1, 1, 1, 1, rows, values, "column", values, 1, (rows, values, 1))


def _outermost(x: DeviceArray) -> int | None:
    return next((k for k in x.order if x.shape[k] != 1), None)


def _check_order(x: DeviceArray, fits: bool, what: str) -> None:
    if not fits and 0 not in x.shape:
        raise NotImplementedError(
            f"x of shape {x.shape} lies in memory with its axes in the order {x.order}; on a "
            f"device this norm takes arrays in which {what}: copy it (torch: x.contiguous(); CuPy: "
            "cupy.ascontiguousarray(x))"
        )
