"""Group norm and instance norm of arrays on the CPU: batch norm over another view.

A group of channels of one sample is contiguous, and so a channel of its own to the kernels: one
sample with ``N * G`` channels. Weight and bias belong to the channels within.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastbn._call import arguments, neighbours, settings, work
from fastbn._call.blocks import (
    block_bytes,
    blocks,
    checked_gradient,
    checked_input,
    checked_output,
    overwrites,
)
from fastbn.kernels import formulas
from fastbn.kernels.held import computed

#: Values of a channel from which on it has terms of its own in each sample. Shorter ones are
#: normalized without weight and bias, which are applied in a second pass.
_ROW = 16
#: An eps so small that ``1 / sqrt(1 + eps)`` is 1.
NO_EPS = 1e-300


@dataclass(slots=True, eq=False)
class GroupCache:
    """What the gradients of a group or instance norm take. Opaque.

    It refers to ``x`` and does not copy it: change ``x`` and the gradients are those of the
    changed values.
    """

    x: np.ndarray
    shape: tuple[int, ...]
    axis: int
    groups: int
    statistics: np.ndarray
    weight: np.ndarray | None
    has_bias: bool
    overwritten: bool


class GroupNorm:
    """One forward call: every check first, then the computation."""

    def __init__(self, x, num_groups, weight, bias, eps, axis, out):
        self.x = checked_input(x)
        self.axis = arguments.channel_axis(self.x.shape, arguments.as_axis(axis))
        self.channels = self.x.shape[self.axis]
        self.groups = self._checked_groups(num_groups)
        arguments.check_groups(self.x.shape, self.axis, self.groups)
        of_x = f"x of shape {self.x.shape} has {self.channels} channels"
        self.inputs = {
            name: None if value is None
            else arguments.check_parameter(name, value, (self.channels,), of_x)
            for name, value in (("weight", weight), ("bias", bias))
        }  # fmt: skip
        dtype = computed(arguments.native(self.x.dtype))
        self.weight, self.bias = (
            None if value is None else arguments.kernel_vector(value, dtype)
            for value in self.inputs.values()
        )
        self.eps = settings.check_eps(eps)
        arguments.check_group_size(self.x.shape, self.groups)
        self.inputs["x"] = self.x
        self.returned, self.out = checked_output(out, self.x, self.inputs)

    def _checked_groups(self, num_groups: Any) -> int:
        return settings.check_num_groups(num_groups)

    def run(self) -> Any:
        """Normalize; returns the output."""
        samples = self.x.shape[0]
        self.statistics = np.zeros((3, samples, self.groups))
        if self.x.size == 0:
            return self.returned
        x, out = _channels_second(self.axis, self.x, self.out)
        way, size = self._way(x[0, 0].size)
        for some, (x_block, out_block) in blocks(size, out, x):
            statistics = self.statistics[:, some]
            shape = len(x_block), self.channels, -1
            statistics[...] = way(x_block.reshape(shape), out_block.reshape(shape))
        return self.returned

    def _way(self, length: int):
        """How a block is done, and its bytes, if several operations go over it."""
        if self.weight is None and self.bias is None:
            return self._plain, None
        if self.groups == self.channels:
            return self._each_channel, None
        return (self._each_group, None) if length >= _ROW else (self._in_two, block_bytes())

    def _plain(self, x, out):
        """Without weight and bias."""
        groups = len(x) * self.groups
        x, out = x.reshape(1, groups, -1), out.reshape(1, groups, -1)
        statistics = work.forward(x, out, 1, None, None, self.eps)
        return statistics.reshape(3, -1, self.groups)

    def _each_channel(self, x, out):
        """Each channel is a group."""
        weight, bias = self._repeated(len(x))
        x, out = x.reshape(1, len(weight), -1), out.reshape(1, len(weight), -1)
        statistics = work.forward(x, out, 1, weight, bias, self.eps)
        return statistics.reshape(3, -1, self.groups)

    def _each_group(self, x, out):
        """Each channel of each sample with terms of its own, from those of its group."""
        weight, bias = self._repeated(1)
        statistics = work.group_forward(x, out, self.groups, weight, bias, self.eps)
        return statistics.reshape(3, -1, self.groups)

    def _in_two(self, x, out):
        """`_plain`, and then weight and bias, as in an evaluation."""
        statistics = self._plain(x, out)
        mean, var = np.zeros(self.channels, x.dtype), np.ones(self.channels, x.dtype)
        work.normalize(out, out, 1, mean, var, self.weight, self.bias, NO_EPS)
        return statistics

    def _repeated(self, samples):
        """Weight and bias for each channel of each sample."""
        dtype = computed(self.out.dtype)
        weight = np.ones(self.channels, dtype) if self.weight is None else self.weight
        bias = np.zeros(self.channels, dtype) if self.bias is None else self.bias
        return [arguments.kernel_vector(np.tile(v, samples), dtype) for v in (weight, bias)]

    def cache(self) -> GroupCache:
        """For `backward`."""
        return GroupCache(
            self.x, self.x.shape, self.axis, self.groups, self.statistics,
            None if self.weight is None else self.weight.copy(), self.bias is not None,
            overwrites(self.out, self.x),
        )  # fmt: skip


class InstanceNorm(GroupNorm):
    """`GroupNorm` of each channel by itself, which may move running statistics."""

    def __init__(
        self, x, running_mean, running_var, weight, bias, momentum, eps, axis, out, counter=None
    ):
        super().__init__(x, "all", weight, bias, eps, axis, out)
        self.update = arguments.check_running(running_mean, running_var)
        if self.update:
            of_x = f"x of shape {self.x.shape} has {self.channels} channels"
            self.running = [
                arguments.check_statistics(
                    name, arguments.check_parameter(name, value, (self.channels,), of_x)
                )
                for name, value in (("running_mean", running_mean), ("running_var", running_var))
            ]
            cumulative = momentum is None and counter is not None
            self.momentum = None if cumulative else settings.check_momentum(momentum)
            neighbours.check_lent("running_mean", running_mean, self.running[0])
            neighbours.check_lent("running_var", running_var, self.running[1])
            inputs = {**self.inputs, "out": self.out}
            arguments.check_updatable(*self.running, counter, inputs)
            self.counter = counter

    def _checked_groups(self, num_groups: Any) -> int:
        return self.channels  # each is a group

    def run(self) -> Any:
        """Normalize, then move the running statistics by the averages over samples."""
        y = super().run()
        if self.update and self.x.size:
            count = self.x.size // (self.x.shape[0] * self.channels)
            with np.errstate(invalid="ignore"):
                means = self.statistics[:2].mean(axis=1).reshape(-1)
            mean, var = self.running
            correction = formulas.bessel(count)
            work.update_running(
                mean, var, self.counter, means, correction, self.momentum, "propagate"
            )
        return y


def backward(dy: Any, cache: GroupCache, out: Any) -> tuple[Any, np.ndarray, np.ndarray]:
    """Gradients in x, weight and bias."""
    dy, returned, dx = checked_gradient(dy, cache.x, cache.overwritten, out)
    arguments.check_same_shape(cache.x, cache.shape)
    channels = cache.x.shape[cache.axis]
    sums = np.zeros((2, channels))
    if cache.x.size:
        arrays = _channels_second(cache.axis, dx, dy, cache.x)
        way = _channels_backward if cache.groups == channels else _groups_backward
        for some, block in blocks(None, *arrays):
            shape = len(block[0]), channels, -1
            sums += way(cache, cache.statistics[:, some], *(a.reshape(shape) for a in block))
    with np.errstate(over="ignore", under="ignore"):
        d_weight, d_bias = sums.astype(computed(dx.dtype))
    return returned, d_weight, d_bias


def _channels_second(axis: int, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """Arrays with their channels on axis 1."""
    return arrays if axis == 1 else tuple(np.moveaxis(array, axis, 1) for array in arrays)


def _channels_backward(cache, statistics, dy, x, dx):
    """Each channel is a group: as a batch of one sample has it."""
    samples, channels, _ = x.shape
    weight = None if cache.weight is None else np.tile(cache.weight, samples)
    dy, x, dx = (a.reshape(1, samples * channels, -1) for a in (dy, x, dx))
    found = work.backward(dy, x, dx, 1, statistics.ravel(), weight)
    return [d.reshape(samples, channels).sum(axis=0, dtype=np.float64) for d in found]


def _groups_backward(cache, statistics, dy, x, dx):
    """Groups of channels: sums of each channel of each sample, terms of each group."""
    samples, channels, _ = x.shape
    each = channels // cache.groups
    of_channels = np.repeat(statistics.reshape(3, -1), each, axis=1).reshape(-1)
    weight = None if cache.weight is None else np.tile(cache.weight, samples)
    found = work.group_backward(dy, x, dx, cache.groups, of_channels, weight)
    return [d.sum(axis=0, dtype=np.float64) for d in found]
