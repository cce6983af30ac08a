"""One call on an NVIDIA GPU: every check first, then the launches. Nothing waits for the device.

Arrays are dense, in any order of memory. With 16-bit data, parameters and running statistics are
float32; else they have the dtype of x.
"""

from contextlib import AbstractContextManager
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
    working_on,
)
from fastbn._call.device_backward import DeviceCache, backward
from fastbn._call.device_launch import launcher, scratch, turn
from fastbn._call.device_streams import finish, in_order
from fastbn._call.device_tensor import (
    Tensor,
    absent,
    check_out,
    check_updatable,
    copy_of,
    momentum_of,
    numbers,
    parameter,
    tensor_of,
)
from fastbn._call.epilogue import Epilogue, check_activation
from fastbn._call.operations import FusedCache
from fastbn.kernels.activations import UNFUSED
from fastbn.kernels.cuda.kernels import Kernels, kernels_of
from fastbn.kernels.cuda.steps import Extra

__all__ = ["Forward", "available", "backward", "cuda", "moments"]


def available() -> bool:
    """Whether there is a device, or a simulated one."""
    return cuda.is_available()


#: Kernels, dtype and GPU of the training calls whose second launch has been compiled.
_begun: set[tuple[Kernels, str, int]] = set()


class Forward:
    """One forward call on a device; as `operations.Forward`."""

    def __init__(
        self, x, running_mean, running_var, weight, bias, training, momentum, eps, axis, out,
        on_nonfinite="propagate", counter=None, fused=None, mask=None,
    ):  # fmt: skip
        if mask is not None:
            raise NotImplementedError(
                "there is no mask on a device yet; leave out whole samples (x[kept]), or copy x to "
                "NumPy"
            )
        self.gpu = gpu_of(x)
        with working_on(self.gpu):
            self._check(
                x, running_mean, running_var, weight, bias, training, momentum, eps, axis, out,
                on_nonfinite, counter, *(fused or (None, 0.01, None)),
            )  # fmt: skip

    def _check(
        self, x, running_mean, running_var, weight, bias, training, momentum, eps, axis, out,
        on_nonfinite, counter, activation, slope, residual,
    ):  # fmt: skip
        self.x = described("x", x)
        self.returned = empty_like(self.x) if out is None else out
        self.out = described("out", self.returned)
        training = settings.check_bool("training", training)
        self.tracked = arguments.check_running(running_mean, running_var)
        self.batch_statistics = training or not self.tracked
        self.epilogue, self.residual = self._epilogue(activation, slope, residual)
        self.tensor = tensor_of(
            self.x, axis, self.out, *self.residual, may_wait=self.batch_statistics,
            extra=Extra(self.epilogue.activation, bool(self.residual)),
        )  # fmt: skip
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
            self.momentum = momentum_of(momentum, counter)
            others = (v for name, v in self.vectors.items() if not name.startswith("running"))
            check_updatable(
                self.vectors["running_mean"], self.vectors["running_var"],
                [self.x, self.out, *self.residual, *others],
            )  # fmt: skip
        size = int(np.prod(self.x.shape, dtype=np.int64))
        self.empty = size == 0
        if self.batch_statistics and not self.empty:
            count = size // self.tensor.cut.channels
            arguments.check_batch_count(self.x.shape, count)
        check_out(self.out, self.x, *self.residual, vectors=self.vectors.values())

    def _epilogue(
        self, activation: Any, slope: Any, residual: Any
    ) -> tuple[Epilogue, list[DeviceArray]]:
        """What follows normalizing, and the residual if there is one."""
        slope = settings.check_slope(slope)
        epilogue = Epilogue(check_activation(activation), slope, residual)
        if residual is None:
            return epilogue, []
        array, x = described("residual", residual), self.x
        if (array.shape, array.dtype, array.order) != (x.shape, x.dtype, x.order):
            raise ValueError(
                f"residual has shape {array.shape}, dtype {array.dtype} and axes {array.order} in "
                f"memory, expected those of x: {x.shape}, {x.dtype} and {x.order}; copy it into "
                "an array that lies as x does: in torch, torch.empty_like(x).copy_(residual)"
            )
        return epilogue, [array]

    def _vector(self, name: str, value: Any) -> Any:
        if value is None:
            return absent(self.tensor.parameters)
        channels = self.tensor.cut.channels
        of_x = f"x of shape {self.x.shape} has {channels} channels"
        array = parameter(name, value, (channels,), of_x, self.x)
        self.vectors[name] = array
        return array.flat

    def run(self) -> Any:
        """Launch the kernels; the output is there when the device has come to it."""
        written = [self.out]
        if self.update:
            written += [self.vectors["running_mean"], self.vectors["running_var"]]
        with working_on(self.gpu), self._in_order(*written):
            return self._run()

    def _in_order(self, *written: DeviceArray) -> AbstractContextManager[None]:
        streams = {array.stream for array in written}
        return in_order(self.x, self.out, *self.residual, *self.vectors.values(), written=streams)

    def _run(self) -> Any:
        channels = self.tensor.cut.channels
        if self.empty:
            zeros = np.zeros(3 * channels)
            self.statistics = cuda.to_device(zeros, stream=stream_of(self.x))
            return self.returned
        if self.batch_statistics:
            self.statistics = numbers(self.tensor, 3 * channels)
            self._train()
            if self.update and self.counter is not None:
                self.counter += 1
        else:
            self.statistics = None
            self._normalize(self.running_mean, self.running_var, back=False)
        return self.returned

    def _more(self) -> tuple[Any, ...]:
        """What the kernels of an epilogue take besides."""
        if self.epilogue.names is UNFUSED:
            return ()
        return (self.epilogue.negative_slope, *(array.flat for array in self.residual))

    def _train(self) -> None:
        cut, stream = self.tensor.cut, self.x.stream
        nothing = absent(self.tensor.parameters)
        running = (self.running_mean, self.running_var) if self.update else (nothing,) * 2
        if cut.once:
            shared = scratch(cut, stream)
            with turn(cut, stream):
                launcher(self.tensor.once.forward, cut.tiles * cut.parts, stream)(
                    self.x.flat, self.out.flat, self.weight, self.bias, self.statistics, *running,
                    *shared, self.eps, self.momentum, *cut.shape, cut.tiles, cut.parts,
                    self._more(),
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
            *cut.shape, cut.parts, back, self._more(),
        )  # fmt: skip

    def cache(self) -> DeviceCache:
        """For `backward`."""
        with working_on(self.gpu), self._in_order():
            return self._cache()

    def _cache(self) -> DeviceCache:
        statistics = self.statistics
        if statistics is None:
            statistics = self._running_statistics()
        through = None
        if self.epilogue.names is not UNFUSED:
            through = FusedCache(self.epilogue, copy_of(self.x, self.bias), self.eps)
        return DeviceCache(
            self.x.given, self.tensor.axis, statistics, copy_of(self.x, self.weight),
            self.bias.size > 0, self.batch_statistics, self._overwritten(), through,
            stream=self.x.stream,
        )  # fmt: skip

    def _overwritten(self) -> bool:
        """Whether the output was written over an array that gradients take."""
        taken = self.residual if self.epilogue.activation is not None else []
        return not self.empty and any(self.out.same_memory(array) for array in (self.x, *taken))

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
    tensor = tensor_of(described("x", x), axis, may_wait=False)
    channels, size = tensor.cut.channels, int(np.prod(tensor.x.shape, dtype=np.int64))
    count = size // channels if size else 0
    statistics = np.zeros((3, channels))
    if size:
        flat = numbers(tensor, 3 * channels)
        nothing = absent(tensor.parameters)
        with in_order(tensor.x):
            _sum_moments(tensor, flat, (nothing, nothing), 1.0, 0.0)
        statistics = flat.copy_to_host(stream=stream_of(tensor.x)).reshape(3, channels)
        finish(tensor.x.stream)  # by then it has been copied
    return np.full(channels, float(count)), statistics[0], statistics[1] * count


def _sum_moments(tensor: Tensor, statistics, running, eps: float, momentum: float) -> None:
    cut, stream = tensor.cut, tensor.x.stream
    moments = kernels_of(*tensor.way).moments  # whatever follows
    launcher(moments, cut.tiles * cut.parts, stream)(
        tensor.x.flat, statistics, *running, *scratch(cut, stream), eps, momentum, *cut.shape,
        cut.parts,
    )  # fmt: skip
