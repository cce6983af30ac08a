"""One call on an NVIDIA GPU: every check first, then the launches. Nothing waits for the device.

Arrays are dense, in any order of memory. With 16-bit data, parameters and running statistics are
float32; else they have the dtype of x.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

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
from fastbn._call.device_cut import Cut, cut_of
from fastbn._call.device_launch import launcher, scratch, together, turn
from fastbn._call.device_streams import finish, in_order
from fastbn._call.operations import ForwardCache
from fastbn.kernels.cuda.kernels import Kernels, kernels_of
from fastbn.kernels.cuda.once import OnceKernels, once_kernels_of

_PARAMETERS = {"float16": "float32", "bfloat16": "float32", "float32": "float32",
               "float64": "float64"}  # fmt: skip
_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


def available() -> bool:
    """Whether there is a device, or a simulated one."""
    return cuda.is_available()


@lru_cache(maxsize=16)
def _absent(device: int, dtype: str) -> Any:
    return cuda.device_array(0, dtype)


#: Kernels, dtype and GPU of the training calls whose second launch has been compiled.
_begun: set[tuple[Kernels, str, int]] = set()


class _Tensor(NamedTuple):
    x: DeviceArray
    axis: int
    cut: Cut
    kernels: Kernels
    once: OnceKernels
    parameters: str


def _tensor(
    x: DeviceArray, axis: Any, *others: DeviceArray, reads: int = 1, may_wait: bool = True
) -> _Tensor:
    """What is known of a call before it is launched; ``others`` are walked together with x.

    So many arrays are ``read``. Unless blocks ``may_wait`` there are no kernels that read once.
    """
    if x.dtype not in _PARAMETERS:
        raise TypeError(
            f"x must be float16, bfloat16, float32 or float64 on a device, got dtype {x.dtype}"
        )
    position = arguments.channel_axis(x.shape, arguments.as_axis(axis))
    channels = x.shape[position]
    place = x.order.index(position)
    samples = int(np.prod([x.shape[k] for k in x.order[:place]], dtype=np.int64))
    length = int(np.prod([x.shape[k] for k in x.order[place + 1 :]], dtype=np.int64))
    aligned = x.aligned and all(other.aligned for other in others)
    most = together(current()) if may_wait else 0
    cut = cut_of(samples, channels, length, _BYTES[x.dtype], aligned, reads, most)
    way = x.dtype == "float64", cut.lanes, cut.width
    kernels = kernels_of(*way), once_kernels_of(*way)
    return _Tensor(x, position, cut, *kernels, _PARAMETERS[x.dtype])


def _numbers(tensor: _Tensor, count: int) -> Any:
    """New float64 numbers, from whoever allocates for the owner of x."""
    return described("numbers", vector_like(tensor.x, count, "float64")).flat


class Forward:
    """One forward call on a device; as `operations.Forward`."""

    def __init__(
        self, x, running_mean, running_var, weight, bias, training, momentum, eps, axis, out,
        on_nonfinite="propagate", counter=None, fused=None, mask=None,
    ):  # fmt: skip
        if fused is not None or mask is not None:
            raise NotImplementedError(
                "activation, residual and mask are there on the CPU alone so far; on a device, "
                "apply them to the output"
            )
        self.gpu = gpu_of(x)
        with working_on(self.gpu):
            self._check(
                x, running_mean, running_var, weight, bias, training, momentum, eps, axis, out,
                on_nonfinite, counter,
            )  # fmt: skip

    def _check(
        self, x, running_mean, running_var, weight, bias, training, momentum, eps, axis, out,
        on_nonfinite, counter,
    ):  # fmt: skip
        self.x = described("x", x)
        self.returned = empty_like(self.x) if out is None else out
        self.out = described("out", self.returned)
        training = settings.check_bool("training", training)
        self.tracked = arguments.check_running(running_mean, running_var)
        self.batch_statistics = training or not self.tracked
        self.tensor = _tensor(self.x, axis, self.out, may_wait=self.batch_statistics)
        self.vectors: dict[str, DeviceArray] = {}
        self.weight, self.bias = self._vector("weight", weight), self._vector("bias", bias)
        self.running_mean = self._vector("running_mean", running_mean)
        self.running_var = self._vector("running_var", running_var)
        self.eps = settings.check_eps(eps)
        self.update = training and self.tracked
        self.counter, self.momentum = counter, 0.0
        if settings.check_on_nonfinite(on_nonfinite) != "propagate":
            raise NotImplementedError(
                f"on_nonfinite={on_nonfinite!r} would wait for the device; use 'propagate' there"
            )
        if self.update:
            self.momentum = self._momentum(momentum)
            self._check_updatable()
        size = int(np.prod(self.x.shape, dtype=np.int64))
        self.empty = size == 0
        if self.batch_statistics and not self.empty:
            count = size // self.tensor.cut.channels
            arguments.check_batch_count(self.x.shape, count)
        _check_out(self.out, self.x, vectors=self.vectors.values())

    def _vector(self, name: str, value: Any) -> Any:
        if value is None:
            return _absent(current(), self.tensor.parameters)
        array = described(name, value)
        channels, dtype = self.tensor.cut.channels, self.tensor.parameters
        if array.shape != (channels,):
            raise ValueError(
                f"{name} has shape {array.shape}, but x of shape {self.x.shape} has {channels} "
                f"channels; expected {name} of shape ({channels},)"
            )
        if array.dtype != dtype:
            way_out = "; x.astype('float32'), or make the layer with dtype='float64'"
            raise TypeError(
                f"{name} has dtype {array.dtype}, expected {dtype} with x of {self.x.dtype}"
                f"{way_out if self.x.dtype == 'float64' else ''}"
            )
        self.vectors[name] = array
        return array.flat

    def _check_updatable(self) -> None:
        """Running statistics are moved in place, so they lie in memory of their own."""
        vectors = dict(self.vectors)
        mean, var = vectors.pop("running_mean"), vectors.pop("running_var")
        others = [self.x, self.out, *vectors.values()]
        for one, other in [(mean, var), *((v, o) for v in (mean, var) for o in others)]:
            if one.shares(other):
                raise ValueError(
                    f"{one.name} and {other.name} share memory, but training updates {one.name} "
                    "in place; pass an array of its own"
                )
        for one in (mean, var):
            if one.readonly:
                raise ValueError(
                    f"{one.name} is read-only, but training updates it in place; pass a copy"
                )

    def _momentum(self, momentum: Any) -> float:
        if momentum is None and self.counter is not None:
            return 1.0 / (int(self.counter) + 1)
        return settings.check_momentum(momentum)

    def run(self) -> Any:
        """Launch the kernels; the output is there when the device has come to it."""
        written = [self.out]
        if self.update:
            written += [self.vectors["running_mean"], self.vectors["running_var"]]
        with working_on(self.gpu), self._in_order(*written):
            return self._run()

    def _in_order(self, *written: DeviceArray) -> AbstractContextManager[None]:
        streams = {array.stream for array in written}
        return in_order(self.x, self.out, *self.vectors.values(), written=streams)

    def _run(self) -> Any:
        channels = self.tensor.cut.channels
        if self.empty:
            zeros = np.zeros(3 * channels)
            self.statistics = cuda.to_device(zeros, stream=stream_of(self.x))
            return self.returned
        if self.batch_statistics:
            self.statistics = _numbers(self.tensor, 3 * channels)
            self._train()
            if self.update and self.counter is not None:
                self.counter += 1
        else:
            self.statistics = None
            self._normalize(self.running_mean, self.running_var, back=False)
        return self.returned

    def _train(self) -> None:
        cut, stream = self.tensor.cut, self.x.stream
        absent = _absent(current(), self.tensor.parameters)
        running = (self.running_mean, self.running_var) if self.update else (absent, absent)
        if cut.once:
            shared = scratch(cut, stream)
            with turn(cut, stream):
                launcher(self.tensor.once.forward, cut.tiles * cut.parts, stream)(
                    self.x.flat, self.out.flat, self.weight, self.bias, self.statistics, *running,
                    *shared, self.eps, self.momentum, *cut.shape, cut.tiles, cut.parts,
                )  # fmt: skip
            return
        given = self.statistics, self.statistics[cut.channels :]
        if (self.tensor.kernels, self.x.dtype, current()) not in _begun:
            # compiled before running statistics move: an error or a Ctrl-C then changes nothing
            self._normalize(*given, back=True, empty=True)
            _begun.add((self.tensor.kernels, self.x.dtype, current()))
        _sum_moments(self.tensor, self.statistics, running, self.eps, self.momentum)
        self._normalize(*given, back=True)

    def _normalize(self, mean: Any, var: Any, back: bool, empty: bool = False) -> None:
        cut = self.tensor.cut
        if empty:
            cut = cut._replace(samples=0, channels=0)
        launcher(self.tensor.kernels.normalize, cut.tiles * cut.parts, self.tensor.x.stream)(
            self.x.flat, self.out.flat, mean, var, self.weight, self.bias, self.eps,
            *cut.shape, cut.parts, back,
        )  # fmt: skip

    def cache(self) -> ForwardCache:
        """For `backward`."""
        with working_on(self.gpu), self._in_order():
            return self._cache()

    def _cache(self) -> "DeviceCache":
        statistics = self.statistics
        if statistics is None:
            statistics = self._running_statistics()
        weight = None
        if self.weight.size:  # as it is now, whatever an optimizer does to it later
            vector = vector_like(self.x, self.weight.size, self.tensor.parameters)
            weight = described("weight", vector).flat
            weight.copy_to_device(self.weight, stream=stream_of(self.x))
        overwritten = not self.empty and self.out.same_memory(self.x)
        return DeviceCache(
            self.x.given, self.tensor.axis, statistics, weight, self.bias.size > 0,
            self.batch_statistics, overwritten, stream=self.x.stream,
        )  # fmt: skip

    def _running_statistics(self) -> Any:
        """As a training call writes those of its batch: by a copy to the host and back."""
        cuda.synchronize()
        mean = self.running_mean.copy_to_host().astype(np.float64)
        var = self.running_var.copy_to_host().astype(np.float64)
        statistics = cuda.to_device(np.concatenate([mean, var, 1.0 / np.sqrt(var + self.eps)]))
        cuda.synchronize()
        return statistics


def moments(x: Any, axis: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count, mean and m2 of every channel, in host memory: this waits for the device."""
    with working_on(gpu_of(x)):
        return _moments(x, axis)


def _moments(x: Any, axis: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    tensor = _tensor(described("x", x), axis, may_wait=False)
    channels, size = tensor.cut.channels, int(np.prod(tensor.x.shape, dtype=np.int64))
    count = size // channels if size else 0
    statistics = np.zeros((3, channels))
    if size:
        flat = _numbers(tensor, 3 * channels)
        absent = _absent(current(), tensor.parameters)
        with in_order(tensor.x):
            _sum_moments(tensor, flat, (absent, absent), 1.0, 0.0)
        statistics = flat.copy_to_host(stream=stream_of(tensor.x)).reshape(3, channels)
        finish(tensor.x.stream)  # by then it has been copied
    return np.full(channels, float(count)), statistics[0], statistics[1] * count


def _sum_moments(tensor: _Tensor, statistics, running, eps: float, momentum: float) -> None:
    cut, stream = tensor.cut, tensor.x.stream
    launcher(tensor.kernels.moments, cut.tiles * cut.parts, stream)(
        tensor.x.flat, statistics, *running, *scratch(cut, stream), eps, momentum, *cut.shape,
        cut.parts,
    )  # fmt: skip


@dataclass(slots=True, eq=False)
class DeviceCache(ForwardCache):
    """With the stream that writes its statistics and weight."""

    stream: int = 0


def backward(dy: Any, cache: DeviceCache, out: Any) -> tuple[Any, Any, Any]:
    """Gradients in x, weight and bias, on the device."""
    with working_on(gpu_of(cache.x)):
        x, gradient = described("x", cache.x), described("dy", dy)
        _check_backward(x, gradient, cache)
        returned = empty_like(x) if out is None else out
        dx = described("out", returned)
        _check_out(dx, x, gradient)
        with in_order(x, gradient, dx, cached=cache.stream, written={dx.stream, cache.stream}):
            return (returned, *_backward(gradient, x, dx, cache))


def _check_backward(x: DeviceArray, gradient: DeviceArray, cache: DeviceCache) -> None:
    if cache.overwritten:
        raise RuntimeError(
            "the forward wrote its output over x (out=x), so there is nothing left to "
            "differentiate; run the forward with another out, or without one"
        )
    if (gradient.shape, gradient.dtype, gradient.order) != (x.shape, x.dtype, x.order):
        raise ValueError(
            f"dy has shape {gradient.shape}, dtype {gradient.dtype} and axes {gradient.order} in "
            f"memory, expected those of x: {x.shape}, {x.dtype} and {x.order}; copy it into "
            "an array that lies as x does: in torch, torch.empty_like(x).copy_(dy)"
        )


def _backward(
    gradient: DeviceArray, x: DeviceArray, dx: DeviceArray, cache: DeviceCache
) -> tuple[Any, Any]:
    tensor = _tensor(x, cache.axis, gradient, dx, reads=2)
    cut, kernels, channels = tensor.cut, tensor.kernels, tensor.cut.channels
    d_weight, d_bias = (vector_like(x, channels, tensor.parameters) for _ in range(2))
    flat = [described("d", v).flat for v in (d_weight, d_bias)]
    if 0 in x.shape:
        for vector in flat:
            zeros = np.zeros(channels, tensor.parameters)
            vector.copy_to_device(zeros, stream=stream_of(x))
        return d_weight, d_bias
    absent = _absent(current(), tensor.parameters)
    weight = absent if cache.weight is None else cache.weight
    frozen, stream, blocks = not cache.batch_statistics, x.stream, cut.tiles * cut.parts
    shared = scratch(cut, stream)
    if cut.once:
        with turn(cut, stream):
            launcher(tensor.once.backward, blocks, stream)(
                gradient.flat, x.flat, dx.flat, cache.statistics, weight, *flat, *shared, frozen,
                *cut.shape, cut.tiles, cut.parts,
            )  # fmt: skip
        return d_weight, d_bias
    sums = _numbers(tensor, 2 * channels)
    launcher(kernels.products, blocks, stream)(
        gradient.flat, x.flat, cache.statistics, sums, *flat, *shared, *cut.shape, cut.parts,
    )  # fmt: skip
    launcher(kernels.gradient, blocks, stream)(
        gradient.flat, x.flat, dx.flat, cache.statistics, sums, weight, frozen, *cut.shape,
        cut.parts, True,
    )  # fmt: skip
    return d_weight, d_bias


def _check_out(
    out: DeviceArray, x: DeviceArray, *inputs: DeviceArray, vectors: Iterable[DeviceArray] = ()
) -> None:
    if (out.shape, out.dtype, out.order) != (x.shape, x.dtype, x.order):
        raise ValueError(
            f"out has shape {out.shape}, dtype {out.dtype} and axes {out.order} in memory, "
            f"expected those of x: {x.shape}, {x.dtype} and {x.order}"
        )
    if out.readonly:
        raise ValueError("out is read-only, expected a writable array")
    for array in (x, *inputs):
        if out.overlaps(array):
            raise ValueError(
                f"out overlaps {array.name} without being the same array; expected {array.name} "
                "itself (in place), or an array of its own"
            )
    for array in vectors:
        if out.shares(array):
            raise ValueError(f"out overlaps {array.name}; pass an array of its own")
