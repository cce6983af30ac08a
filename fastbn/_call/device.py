"""One call on an NVIDIA GPU: every check first, then the launches. Nothing waits for the device.

Arrays are dense, in any order of memory. With 16-bit data, parameters and running statistics are
float32; else they have the dtype of x.
"""

import threading
import warnings
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from fastbn._call import arguments, places, settings
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
from fastbn._call.operations import ForwardCache
from fastbn.kernels.cuda.kernels import Kernels, kernels_of
from fastbn.kernels.cuda.once import OnceKernels, once_kernels_of
from fastbn.kernels.cuda.sums import THREADS

_PARAMETERS = {"float16": "float32", "bfloat16": "float32", "float32": "float32",
               "float64": "float64"}  # fmt: skip
_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


@lru_cache(maxsize=16)
def _together(device: int) -> int:
    """Blocks of a tile that surely are on a device together.

    Two fit on each multiprocessor; a quarter of those, so that four such kernels may run at once.
    """
    if places.simulated():  # whose blocks run one after the other
        return 1
    return max(1, int(cuda.gpus[device].MULTIPROCESSOR_COUNT) // 2)


def available() -> bool:
    """Whether there is a device, or a simulated one."""
    return cuda.is_available()


@lru_cache(maxsize=256)
def _scratch(device: int, thread: int, stream: int, parts: int, channels: int) -> tuple[Any, Any]:
    """Partial sums and tickets, kept: what a thread launches on a stream runs in that order.

    Two launches and one that reads once may use the same: both leave zeros.
    """
    partial = cuda.device_array(max(1, 2 * parts * channels), np.float64)
    tickets = cuda.to_device(np.zeros(2 * channels + 1, np.int32))
    cuda.synchronize()  # the zeros are there, for kernels of any stream
    return partial, tickets


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


def _tensor(x: DeviceArray, axis: Any, *others: DeviceArray, sums: bool = True) -> _Tensor:
    """What is known of a call before it is launched; ``others`` are walked together with x.

    Without ``sums`` there is nothing that blocks could wait for.
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
    arrays = 2 if len(others) > 1 else 1  # that are read
    together = _together(current()) if sums else 0
    cut = cut_of(samples, channels, length, _BYTES[x.dtype], aligned, arrays, together)
    way = x.dtype == "float64", cut.lanes, cut.width
    kernels = kernels_of(*way), once_kernels_of(*way)
    return _Tensor(x, position, cut, *kernels, _PARAMETERS[x.dtype])


def _launcher(kernel: Any, blocks: int, stream: int) -> Any:
    """A kernel on so many blocks, in the stream that the owner of x works on."""
    if places.simulated():  # whose launchers are one and the same object
        return kernel[blocks, THREADS]
    return _configured(kernel, blocks, stream)


@lru_cache(maxsize=4096)
def _configured(kernel: Any, blocks: int, stream: int) -> Any:
    with warnings.catch_warnings():  # Numba warns of grids that cannot fill a device
        warnings.simplefilter("ignore")
        return kernel[blocks, THREADS, cuda.external_stream(stream) if stream else 0]


def _numbers(tensor: _Tensor, count: int) -> Any:
    """New float64 numbers, from whoever allocates for the owner of x."""
    return described("numbers", vector_like(tensor.x, count, "float64")).flat


def _scratch_of(tensor: _Tensor) -> tuple[Any, Any]:
    thread = threading.get_ident()
    return _scratch(current(), thread, tensor.x.stream, tensor.cut.parts, tensor.cut.channels)


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
        self.tensor = _tensor(self.x, axis, self.out, sums=self.batch_statistics)
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
            self._check_updatable({"weight": weight, "bias": bias}, running_mean, running_var)
        size = int(np.prod(self.x.shape, dtype=np.int64))
        self.empty = size == 0
        if self.batch_statistics and not self.empty:
            count = size // self.tensor.cut.channels
            arguments.check_batch_count(self.x.shape, count)
        _check_out(self.out, self.x)

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
            raise TypeError(
                f"{name} has dtype {array.dtype}, expected {dtype} with x of {self.x.dtype}"
            )
        return array.flat

    def _check_updatable(self, vectors: dict[str, Any], running_mean: Any, running_var: Any):
        """Running statistics are moved in place, so they lie in memory of their own."""
        found = {name: v for name, v in vectors.items() if v is not None}
        others = [self.x, self.out, *(described(name, v) for name, v in found.items())]
        mean, var = described("running_mean", running_mean), described("running_var", running_var)
        for one, other in [(mean, var), *((v, o) for v in (mean, var) for o in others)]:
            if one.overlaps(other) or one.same_memory(other):
                raise ValueError(
                    f"{one.name} and {other.name} share memory, but training updates {one.name} "
                    "in place; pass an array of its own"
                )

    def _momentum(self, momentum: Any) -> float:
        if momentum is None and self.counter is not None:
            return 1.0 / (int(self.counter) + 1)
        return settings.check_momentum(momentum)

    def run(self) -> Any:
        """Launch the kernels; the output is there when the device has come to it."""
        with working_on(self.gpu):
            return self._run()

    def _run(self) -> Any:
        channels = self.tensor.cut.channels
        if self.empty:
            self.statistics = cuda.to_device(np.zeros(3 * channels))
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
            _launcher(self.tensor.once.forward, cut.tiles * cut.parts, stream)(
                self.x.flat, self.out.flat, self.weight, self.bias, self.statistics, *running,
                *_scratch_of(self.tensor), self.eps, self.momentum, *cut.shape, cut.tiles,
                cut.parts,
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
        _launcher(self.tensor.kernels.normalize, cut.tiles * cut.parts, self.tensor.x.stream)(
            self.x.flat, self.out.flat, mean, var, self.weight, self.bias, self.eps,
            *cut.shape, cut.parts, back,
        )  # fmt: skip

    def cache(self) -> ForwardCache:
        """For `backward`."""
        with working_on(self.gpu):
            return self._cache()

    def _cache(self) -> ForwardCache:
        statistics = self.statistics
        if statistics is None:
            statistics = self._running_statistics()
        weight = None
        if self.weight.size:  # as it is now, whatever an optimizer does to it later
            vector = vector_like(self.x, self.weight.size, self.tensor.parameters)
            weight = described("weight", vector).flat
            weight.copy_to_device(self.weight, stream=stream_of(self.x))
        overwritten = not self.empty and self.out.same_memory(self.x)
        return ForwardCache(
            self.x.given, self.tensor.axis, statistics, weight, self.bias.size > 0,
            self.batch_statistics, overwritten,
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
    tensor = _tensor(described("x", x), axis)
    channels, size = tensor.cut.channels, int(np.prod(tensor.x.shape, dtype=np.int64))
    count = size // channels if size else 0
    statistics = np.zeros((3, channels))
    if size:
        flat = _numbers(tensor, 3 * channels)
        absent = _absent(current(), tensor.parameters)
        _sum_moments(tensor, flat, (absent, absent), 1.0, 0.0)
        statistics = flat.copy_to_host(stream=stream_of(tensor.x)).reshape(3, channels)
    return np.full(channels, float(count)), statistics[0], statistics[1] * count


def _sum_moments(tensor: _Tensor, statistics, running, eps: float, momentum: float) -> None:
    cut = tensor.cut
    scratch = _scratch_of(tensor)
    _launcher(tensor.kernels.moments, cut.tiles * cut.parts, tensor.x.stream)(
        tensor.x.flat, statistics, *running, *scratch, eps, momentum,
        *cut.shape, cut.parts,
    )  # fmt: skip


def backward(dy: Any, cache: ForwardCache, out: Any) -> tuple[Any, Any, Any]:
    """Gradients in x, weight and bias, on the device."""
    with working_on(gpu_of(cache.x)):
        return _backward(dy, cache, out)


def _backward(dy: Any, cache: ForwardCache, out: Any) -> tuple[Any, Any, Any]:
    x, gradient = described("x", cache.x), described("dy", dy)
    if cache.overwritten:
        raise RuntimeError(
            "the forward wrote its output over x (out=x), so there is nothing left to "
            "differentiate; run the forward with another out, or without one"
        )
    if (gradient.shape, gradient.dtype, gradient.order) != (x.shape, x.dtype, x.order):
        raise ValueError(
            f"dy has shape {gradient.shape}, dtype {gradient.dtype} and axes {gradient.order} in "
            f"memory, expected those of x: {x.shape}, {x.dtype} and {x.order}"
        )
    returned = empty_like(x) if out is None else out
    dx = described("out", returned)
    _check_out(dx, x, gradient)
    tensor = _tensor(x, cache.axis, gradient, dx)
    cut, kernels, channels = tensor.cut, tensor.kernels, tensor.cut.channels
    d_weight, d_bias = (vector_like(x, channels, tensor.parameters) for _ in range(2))
    flat = [described("d", v).flat for v in (d_weight, d_bias)]
    if 0 in x.shape:
        for vector in flat:
            vector.copy_to_device(np.zeros(channels, tensor.parameters))
        return returned, d_weight, d_bias
    absent = _absent(current(), tensor.parameters)
    weight = absent if cache.weight is None else cache.weight
    frozen, stream, blocks = not cache.batch_statistics, x.stream, cut.tiles * cut.parts
    if cut.once:
        _launcher(tensor.once.backward, blocks, stream)(
            gradient.flat, x.flat, dx.flat, cache.statistics, weight, *flat, *_scratch_of(tensor),
            frozen, *cut.shape, cut.tiles, cut.parts,
        )  # fmt: skip
        return returned, d_weight, d_bias
    sums = _numbers(tensor, 2 * channels)
    _launcher(kernels.products, blocks, stream)(
        gradient.flat, x.flat, cache.statistics, sums, *flat, *_scratch_of(tensor), *cut.shape,
        cut.parts,
    )  # fmt: skip
    _launcher(kernels.gradient, blocks, stream)(
        gradient.flat, x.flat, dx.flat, cache.statistics, sums, weight, frozen, *cut.shape,
        cut.parts, True,
    )  # fmt: skip
    return returned, d_weight, d_bias


def _check_out(out: DeviceArray, x: DeviceArray, *inputs: DeviceArray) -> None:
    if (out.shape, out.dtype, out.order) != (x.shape, x.dtype, x.order):
        raise ValueError(
            f"out has shape {out.shape}, dtype {out.dtype} and axes {out.order} in memory, "
            f"expected those of x: {x.shape}, {x.dtype} and {x.order}"
        )
    for array in (x, *inputs):
        if out.overlaps(array):
            raise ValueError(
                f"out overlaps {array.name} without being the same array; expected {array.name} "
                "itself (in place), or an array of its own"
            )
