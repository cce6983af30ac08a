"""Group, layer, instance and RMS norm on an NVIDIA GPU: batch norm over other views.

What is normalized together is a channel of a view, as on the CPU. Where channels come first, all of
a tensor is one launch; where they are last, each sample is. Weight and bias are those of a value's
place in its sample, which kernels work out.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import cuda

from fastbn._call import arguments, settings
from fastbn._call.device_arrays import (
    DeviceArray,
    current,
    described,
    empty_like,
    gpu_of,
    stream_of,
    vector_like,
    working_on,
)
from fastbn._call.device_backward import check_gradient
from fastbn._call.device_cut import Cut, cut_of
from fastbn._call.device_launch import launcher, scratch, together, turn
from fastbn._call.device_streams import in_order
from fastbn._call.device_tensor import (
    BYTES,
    PARAMETERS,
    absent,
    check_dtype,
    check_out,
    check_updatable,
    copy_of,
    momentum_of,
    parameter,
)
from fastbn._call.device_views import View, of_groups, of_rows
from fastbn._call.groups import GroupCache
from fastbn.kernels.cuda.kernels import kernels_of
from fastbn.kernels.cuda.norms import norm_kernels_of
from fastbn.kernels.cuda.once import once_kernels_of
from fastbn.kernels.cuda.steps import Extra
from fastbn.kernels.cuda.sums import THREADS


@dataclass(slots=True, eq=False, repr=False)
class DeviceNormCache(GroupCache):
    """With how x is seen, and the stream that writes statistics and weight."""

    view: View
    centered: bool
    parameters: tuple[int, ...]
    stream: int


class _Norm:
    """One forward call: every check first, then the launches. Subclasses say what x is seen as."""

    centered = True
    gpu: int | None
    view: View

    def _start(self, x: Any, out: Any) -> None:
        self.x = described("x", x)
        check_dtype(self.x)
        if math.prod(self.x.shape) >= 2**32:
            raise ValueError(
                f"x of shape {self.x.shape} has 2**32 values or more, expected fewer: norms on a "
                "device count them in 32 bits; call them on parts of the batch"
            )
        self.returned = empty_like(self.x) if out is None else out
        self.out = described("out", self.returned)

    def _finish_checks(self, weight: Any, bias: Any, eps: Any, shape: tuple, of_x: str) -> None:
        given = {"weight": weight, "bias": bias}
        self.shape, self.vectors = shape, {
            name: parameter(name, value, shape, of_x, self.x)
            for name, value in given.items() if value is not None
        }  # fmt: skip
        nothing = absent(PARAMETERS[self.x.dtype])
        self.weight, self.bias = (
            self.vectors[name].flat if name in self.vectors else nothing for name in given
        )
        self.eps = settings.check_eps(eps)
        check_out(self.out, self.x, vectors=self.vectors.values())

    def run(self) -> Any:
        """Launch the kernels; the output is there when the device has come to it."""
        with working_on(self.gpu), self._in_order(self.out.stream):
            self._run()
        return self.returned

    def _in_order(self, *written: int) -> AbstractContextManager[None]:
        return in_order(self.x, self.out, *self.vectors.values(), written=written)

    def _run(self) -> None:
        view, x = self.view, self.x
        self.statistics = _numbers(x, 3 * view.outer * view.channels)
        if 0 in x.shape:
            return
        aligned = all(array.aligned for array in (x, self.out, *self.vectors.values()))
        extra, vectors, more = self._parameters()
        cut = _cut(view, x, aligned, 1, extra)
        forward: Callable[..., None] = _forward_once if cut.once else _forward_twice
        for arrays in view.launches(self.statistics, x.flat, self.out.flat):
            forward(cut, extra, x, self.eps, *arrays, vectors, more)

    def _parameters(self) -> tuple[Extra, tuple[Any, Any], tuple[Any, ...]]:
        """What is done besides, the parameters of channels, and those that are found by place."""
        view, vectors = self.view, (self.weight, self.bias)
        if view.own is None or not self.weight.size + self.bias.size:
            return Extra(centered=self.centered), vectors, ()
        nothing, dtype, shifts = absent(PARAMETERS[self.x.dtype]), self.weight.dtype, self.bias.size
        weight = self.weight
        if not weight.size:
            weight = cuda.to_device(np.ones(view.weights, dtype), stream=stream_of(self.x))
        more = (weight, view.span, view.weights, *((self.bias,) if shifts else ()))
        extra = Extra(own=view.own, shifts=shifts > 0, centered=self.centered)
        return extra, (nothing, nothing), more

    def cache(self) -> DeviceNormCache:
        """For `backward`."""
        with working_on(self.gpu), self._in_order():
            weight = copy_of(self.x, self.weight)
        overwritten = 0 not in self.x.shape and self.out.same_memory(self.x)
        return DeviceNormCache(
            self.x.given, self.x.shape, self.view.axis, self.view.groups, self.statistics, weight,
            self.bias.size > 0, overwritten, self.view, self.centered, self.shape, self.x.stream,
        )  # fmt: skip


class GroupNorm(_Norm):
    """`groups.GroupNorm` on a device."""

    def __init__(self, x, num_groups, weight, bias, eps, axis, out):
        self.gpu = gpu_of(x)
        with working_on(self.gpu):
            self._check(x, num_groups, weight, bias, eps, axis, out)

    def _check(self, x, num_groups, weight, bias, eps, axis, out):
        self._start(x, out)
        shape = self.x.shape
        axis = arguments.channel_axis(shape, arguments.as_axis(axis))
        groups = shape[axis] if num_groups is None else settings.check_num_groups(num_groups)
        self.view = of_groups(self.x, axis, groups)
        of_x = f"x of shape {shape} has {shape[axis]} channels"
        self._finish_checks(weight, bias, eps, (shape[axis],), of_x)
        arguments.check_group_size(shape, groups)


class InstanceNorm(GroupNorm):
    """`groups.InstanceNorm` on a device."""

    def __init__(
        self, x, running_mean, running_var, weight, bias, momentum, eps, axis, out, counter=None
    ):
        super().__init__(x, None, weight, bias, eps, axis, out)
        self.update, self.counter = arguments.check_running(running_mean, running_var), counter
        if self.update:
            with working_on(self.gpu):
                self._check_running(running_mean, running_var)
            self.momentum = momentum_of(momentum, counter)

    def _check_running(self, running_mean, running_var):
        of_x = f"x of shape {self.x.shape} has {self.shape[0]} channels"
        self.running = [
            parameter(name, value, self.shape, of_x, self.x)
            for name, value in (("running_mean", running_mean), ("running_var", running_var))
        ]
        check_updatable(*self.running, [self.x, self.out, *self.vectors.values()])

    def _in_order(self, *written: int) -> AbstractContextManager[None]:
        running = self.running if self.update else []
        streams = {*written, *(array.stream for array in running)} if written else ()
        return in_order(self.x, self.out, *self.vectors.values(), *running, written=streams)

    def _run(self) -> None:
        super()._run()
        if not self.update or 0 in self.x.shape:
            return
        samples, channels = self.x.shape[0], self.shape[0]
        count = math.prod(self.x.shape) // (samples * channels)
        launcher(norm_kernels_of(False, 1, 1).average, -(-channels // THREADS), self.x.stream)(
            self.statistics, *(array.flat for array in self.running), samples, count,
            self.view.channels, self.momentum,
        )  # fmt: skip
        if self.counter is not None:
            self.counter += 1


class RowNorm(_Norm):
    """`rows.RowNorm` on a device."""

    def __init__(self, x, normalized_shape, weight, bias, eps, out, uncentered=False):
        self.gpu, self.centered = gpu_of(x), not uncentered
        with working_on(self.gpu):
            self._start(x, out)
            shape = settings.check_normalized_shape(normalized_shape)
            self.view = of_rows(self.x, shape)
            if eps is None and uncentered:
                eps = float(np.finfo(PARAMETERS[self.x.dtype]).eps)
            self._finish_checks(weight, bias, eps, shape, f"normalized_shape is {shape}")


# --- launches -------------------------------------------------------------------------------------


def _cut(view: View, x: DeviceArray, aligned: bool, reads: int, extra: Extra) -> Cut:
    """How each launch is cut: what is read at once has its parameters side by side."""
    item, most = BYTES[x.dtype], together(current())
    aligned = aligned and (view.outer == 1 or view.size * item % 16 == 0)
    known = view.samples, view.channels, view.length, item
    cut = cut_of(*known, aligned, reads, most)
    if not view.fits(cut.lanes, extra):
        aligned, cut = False, cut_of(*known, False, reads, most)
    if extra.own and reads == 1 and cut.once and cut.lanes * item < 16:
        # loops over many small groups are not unrolled for every GPU: what is kept would lie in
        # memory then
        return cut_of(*known, aligned, reads, 0)
    return cut


def _way(x: DeviceArray, cut: Cut) -> tuple[bool, int, int]:
    return x.dtype == "float64", cut.lanes, cut.width


def _shared(cut: Cut, stream: int) -> tuple[Any, Any]:
    """Memory of blocks; numbers of rows that are much alike share it."""
    return scratch(cut._replace(channels=1 << (cut.channels - 1).bit_length()), stream)


def _numbers(x: DeviceArray, count: int) -> Any:
    return described("numbers", vector_like(x, count, "float64")).flat


def _forward_once(cut, extra, x, eps, statistics, flat, out, vectors, more) -> None:
    nothing, stream = absent(PARAMETERS[x.dtype]), x.stream
    with turn(cut, stream):
        launcher(once_kernels_of(*_way(x, cut), extra).forward, cut.tiles * cut.parts, stream)(
            flat, out, *vectors, statistics, nothing, nothing, *_shared(cut, stream), eps, 0.0,
            *cut.shape, cut.tiles, cut.parts, more,
        )  # fmt: skip


def _forward_twice(cut, extra, x, eps, statistics, flat, out, vectors, more) -> None:
    nothing, stream, blocks = absent(PARAMETERS[x.dtype]), x.stream, cut.tiles * cut.parts
    plain = kernels_of(*_way(x, cut), Extra(centered=extra.centered))
    launcher(plain.moments, blocks, stream)(
        flat, statistics, nothing, nothing, *_shared(cut, stream), eps, 0.0, *cut.shape, cut.parts,
    )  # fmt: skip
    launcher(kernels_of(*_way(x, cut), extra).normalize, blocks, stream)(
        flat, out, statistics, statistics[cut.channels :], *vectors, eps, *cut.shape, cut.parts,
        True, more,
    )  # fmt: skip


# --- gradients ------------------------------------------------------------------------------------


def backward(dy: Any, cache: DeviceNormCache, out: Any) -> tuple[Any, Any, Any]:
    """Gradients in x, weight and bias."""
    with working_on(gpu_of(cache.x)):
        x, gradient = described("x", cache.x), described("dy", dy)
        check_gradient(gradient, x, cache.overwritten)
        returned = empty_like(x) if out is None else out
        dx = described("out", returned)
        check_out(dx, x, gradient)
        aligned = x.aligned and gradient.aligned and dx.aligned
        with in_order(x, gradient, dx, cached=cache.stream, written={dx.stream, cache.stream}):
            # before dx, which may be written over what they are made of
            found = _parameter_gradients(gradient, x, cache, aligned)
            if 0 not in x.shape:
                _gradient(gradient, x, dx, cache, aligned)
        return returned, *(vector.reshape(cache.parameters) for vector in found)


def _parameter_gradients(
    gradient: DeviceArray, x: DeviceArray, cache: DeviceNormCache, aligned: bool
) -> list[Any]:
    """Those of weight and bias: sums over all samples."""
    view, dtype, stream = cache.view, PARAMETERS[x.dtype], x.stream
    found = [vector_like(x, view.weights, dtype) for _ in range(2)]
    flat = [described("d", vector).flat for vector in found]
    if 0 in x.shape:
        for vector in flat:
            vector.copy_to_device(np.zeros(view.weights, dtype), stream=stream_of(x))
    elif cache.weight is not None or cache.has_bias:
        cut = cut_of(*view.batch, BYTES[x.dtype], aligned, 2, 0)
        launcher(norm_kernels_of(*_way(x, cut)).parameters, cut.tiles * cut.parts, stream)(
            gradient.flat, x.flat, cache.statistics, *flat, *_shared(cut, stream), *cut.shape,
            cut.parts, view.place,
        )  # fmt: skip
    return found


def _gradient(
    gradient: DeviceArray, x: DeviceArray, dx: DeviceArray, cache: DeviceNormCache, aligned: bool
) -> None:
    """That of x."""
    view, nothing = cache.view, absent(PARAMETERS[x.dtype])
    own = None if cache.weight is None else view.own
    extra = Extra(own=own, centered=cache.centered)
    aligned = aligned and (own is None or described("weight", cache.weight).aligned)
    cut = _cut(view, x, aligned, 2, extra)
    weight = nothing if cache.weight is None else cache.weight
    more: tuple[Any, ...] = ()
    if own:
        weight, more = nothing, (weight, view.span, view.weights)
    # sums of each channel, which nobody asks for
    unused = [described("d", vector_like(x, cut.channels, nothing.dtype.name)).flat] * 2
    launch: Callable[..., None] = _backward_once if cut.once else _backward_twice
    for arrays in view.launches(cache.statistics, gradient.flat, x.flat, dx.flat):
        launch(cut, extra, x, *arrays, weight, unused, more)


def _backward_once(cut, extra, x, statistics, dy, flat, dx, weight, unused, more) -> None:
    stream = x.stream
    with turn(cut, stream):
        launcher(once_kernels_of(*_way(x, cut), extra).backward, cut.tiles * cut.parts, stream)(
            dy, flat, dx, statistics, weight, *unused, *_shared(cut, stream), False, *cut.shape,
            cut.tiles, cut.parts, more,
        )  # fmt: skip


def _backward_twice(cut, extra, x, statistics, dy, flat, dx, weight, unused, more) -> None:
    kernels, stream, blocks = kernels_of(*_way(x, cut), extra), x.stream, cut.tiles * cut.parts
    sums = _numbers(x, 2 * cut.channels)
    launcher(kernels.products, blocks, stream)(
        dy, flat, statistics, weight, sums, *unused, *_shared(cut, stream), *cut.shape, cut.parts,
        more,
    )  # fmt: skip
    launcher(kernels.gradient, blocks, stream)(
        dy, flat, dx, statistics, sums, weight, False, *cut.shape, cut.parts, True, more,
    )  # fmt: skip
