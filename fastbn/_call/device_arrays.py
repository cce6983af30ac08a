"""Arrays on an NVIDIA GPU, whoever made them: Numba, CuPy, PyTorch, anybody with their interface.

A kernel takes flat Numba arrays. The output is of the kind that came in.
"""

import math
import sys
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from fastbn._call import places

#: What a kernel takes bfloat16 as.
_BFLOAT16 = np.dtype(np.uint16)


class DeviceArray(NamedTuple):
    """An array as kernels see it."""

    name: str
    given: Any
    flat: Any
    dtype: str
    shape: tuple[int, ...]
    #: Axes from the one with the longest steps to the one with the shortest.
    order: tuple[int, ...]
    #: The stream that its owner works on: a pointer, 0 for the default one.
    stream: int
    #: Where its memory begins, and how many bytes it is.
    pointer: int
    nbytes: int

    @property
    def aligned(self) -> bool:
        """Whether 16 bytes can be read at once."""
        return self.pointer % 16 == 0

    def same_memory(self, other: "DeviceArray") -> bool:
        """Whether both are the same values, in one place."""
        return (self.pointer, self.nbytes) == (other.pointer, other.nbytes)

    def overlaps(self, other: "DeviceArray") -> bool:
        """Whether they share a part of their memory, and are not the same values."""
        apart = (
            self.pointer + self.nbytes <= other.pointer
            or other.pointer + other.nbytes <= self.pointer
        )
        return not apart and not self.same_memory(other)


def described(name: str, array: Any) -> DeviceArray:
    """An array of a caller; TypeError if it is in host memory, ValueError if it has gaps."""
    if not places.on_device(array):
        where = "in host memory" if isinstance(array, np.ndarray) else f"a {type(array).__name__}"
        raise TypeError(
            f"x lies on a device, and {name} is {where}; copy one of them: arrays of one call lie "
            "in one place"
        )
    _check_place(name, array)
    if places.is_tensor(array):
        if array.requires_grad:
            raise TypeError(f"{name} requires a gradient, which nobody would take; {name}.detach()")
        dtype, strides = str(array.dtype).removeprefix("torch."), array.stride()
        view = array.view(sys.modules["torch"].int16) if dtype == "bfloat16" else array
    else:
        dtype, view = np.dtype(array.dtype).name, array
        strides = tuple(s // np.dtype(array.dtype).itemsize for s in array.strides)
    shape = tuple(array.shape)
    order = _memory_order(name, shape, strides)
    flat, stream, pointer = _flat(view, dtype, order)
    if places.is_tensor(array):
        stream = sys.modules["torch"].cuda.current_stream(array.device).cuda_stream
    nbytes = flat.size * flat.dtype.itemsize
    return DeviceArray(name, array, flat, dtype, shape, order, stream, pointer, nbytes)


def _memory_order(name: str, shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
    # the steps of an axis with one value mean nothing; such axes come first
    order = tuple(
        sorted(range(len(shape)), key=lambda k: (-strides[k] if shape[k] != 1 else -math.inf, k))
    )
    step = 1
    for k in reversed(order):
        if shape[k] != 1 and strides[k] != step and 0 not in shape:
            raise ValueError(
                f"{name} of shape {shape} has gaps in memory (strides {strides} in values), which "
                "calls on a device do not take; make a contiguous copy of it"
            )
        step *= shape[k]
    return order


def _flat(view: Any, dtype: str, order: tuple[int, ...]) -> tuple[Any, int, int]:
    """All values in the order of memory, as a Numba array; the owner's stream; where they are."""
    if places.simulated():
        flat = view.transpose(order).reshape(-1)
        return flat, 0, flat._ary.__array_interface__["data"][0]
    interface = dict(view.__cuda_array_interface__)
    size = int(np.prod(interface["shape"], dtype=np.int64))
    typestr = _BFLOAT16.str if dtype == "bfloat16" else interface["typestr"]
    stream = interface.get("stream") or 0
    interface.update(shape=(size,), strides=None, typestr=typestr)
    # what follows goes to the same stream, so there is nothing to wait for
    flat = cuda.from_cuda_array_interface(interface, owner=view, sync=False)
    return flat, stream, interface["data"][0]


def empty_like(array: DeviceArray) -> Any:
    """A new array of the same kind, shape, dtype and memory order."""
    library = type(array.given).__module__.partition(".")[0]
    if places.is_tensor(array.given):
        return sys.modules["torch"].empty_like(array.given)
    if library == "cupy":
        shape = tuple(array.shape[k] for k in array.order)
        return sys.modules["cupy"].empty(shape, array.dtype).transpose(np.argsort(array.order))
    if places.simulated():
        shape = tuple(array.shape[k] for k in array.order)
        return cuda.device_array(shape, array.dtype).transpose(tuple(np.argsort(array.order)))
    strides, step = [0] * len(array.shape), np.dtype(array.dtype).itemsize
    for k in reversed(array.order):
        strides[k] = step
        step *= max(array.shape[k], 1)
    return cuda.device_array(array.shape, array.dtype, tuple(strides), stream=stream_of(array))


def vector_like(array: DeviceArray, channels: int, dtype: str) -> Any:
    """A new array of one number per channel, of the same kind."""
    library = type(array.given).__module__.partition(".")[0]
    if places.is_tensor(array.given):
        torch = sys.modules["torch"]
        return torch.empty(channels, dtype=getattr(torch, dtype), device=array.given.device)
    if library == "cupy":
        return sys.modules["cupy"].empty(channels, dtype)
    return cuda.device_array(channels, dtype, stream=stream_of(array))


def stream_of(array: DeviceArray) -> Any:
    """The stream that an array's owner works on, as Numba takes it."""
    return cuda.external_stream(array.stream) if array.stream else 0


def current() -> int:
    """The number of the device that kernels are launched on."""
    return getattr(cuda.current_context().device, "id", 0)  # the simulator has one without


def _check_place(name: str, array: Any) -> None:
    """Refuse what lies on another device than kernels are launched on."""
    place = getattr(array, "device", None)
    number = getattr(place, "index" if places.is_tensor(array) else "id", None)
    if isinstance(number, int) and number != current():
        raise ValueError(
            f"{name} lies on GPU {number}, and Numba works on GPU {current()}; "
            f"numba.cuda.select_device({number})"
        )
