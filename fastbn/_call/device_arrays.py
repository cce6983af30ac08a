"""Arrays on an NVIDIA GPU, whoever made them: Numba, CuPy, PyTorch, anybody with their interface.

A kernel takes flat Numba arrays. The output is of the kind that came in: Numba's, CuPy's or
torch's, and Numba's for all others, who take that by its interface or DLPack.
"""

import ctypes
import math
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from fastbn._call import places
from fastbn._call.dlpack import Borrowed, dense

#: What a kernel takes bfloat16 as.
_BFLOAT16 = np.dtype(np.uint16)
#: Nobody gets their memory before what their stream has been asked for is done.
_KEEP_IT_THEMSELVES = "numba", "torch", "cupy"


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
    #: Its owner lends it to be read.
    readonly: bool
    #: Its owner may free it while a kernel works on it.
    lent: bool

    @property
    def aligned(self) -> bool:
        """Whether 16 bytes can be read at once."""
        return self.pointer % 16 == 0

    def same_memory(self, other: "DeviceArray") -> bool:
        """Whether both are the same values, in one place."""
        return (self.pointer, self.nbytes) == (other.pointer, other.nbytes)

    def shares(self, other: "DeviceArray") -> bool:
        """Whether they have a byte in common."""
        begin = max(self.pointer, other.pointer)
        return begin < min(self.pointer + self.nbytes, other.pointer + other.nbytes)

    def overlaps(self, other: "DeviceArray") -> bool:
        """Whether they share a part of their memory, and are not the same values."""
        return self.shares(other) and not self.same_memory(other)


def described(name: str, array: Any) -> DeviceArray:
    """An array of a caller; TypeError if it is in host memory, ValueError if it has gaps."""
    if not places.on_device(array):
        where = "in host memory" if isinstance(array, np.ndarray) else f"a {type(array).__name__}"
        raise TypeError(
            f"x lies on a device, and {name} is {where}; copy one of them: arrays of one call lie "
            "in one place"
        )
    view, owner = _viewed(name, array), owner_of(array)
    _check_gpu(name, owner)
    dtype = str(array.dtype if places.is_tensor(array) else view.dtype).removeprefix("torch.")
    shape = tuple(array.shape)
    order = _memory_order(name, shape, strides_of(view, shape))
    flat, stream, pointer = _flat(view, dtype, order)
    if places.is_tensor(array):
        stream = sys.modules["torch"].cuda.current_stream(array.device).cuda_stream
    nbytes = flat.size * flat.dtype.itemsize
    return DeviceArray(
        name, array, flat, dtype, shape, order, stream, pointer, nbytes, is_readonly(owner),
        not places.is_tensor(owner) and library_of(owner) not in _KEEP_IT_THEMSELVES,
    )  # fmt: skip


def as_numba(name: str, array: Any) -> Any:
    """An array on a device as Numba's, without a copy; ValueError if it has gaps or is lent to be
    read."""
    if described(name, array).readonly:
        raise ValueError(f"{name} is read-only; load_state_dict copies it")
    if places.simulated():
        return array
    return cuda.as_cuda_array(with_interface(array))


def to_host(name: str, array: Any) -> np.ndarray:
    """A copy in host memory; bfloat16 as float32."""
    there = described(name, array)
    host = there.flat.copy_to_host()
    if there.dtype == "bfloat16":
        host = (host.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    host = host.reshape([there.shape[k] for k in there.order])
    return host.transpose(np.argsort(there.order).astype(int))


def with_interface(array: Any) -> Any:
    """The array, or what has Numba's interface instead of it."""
    if places.simulated() or _says_when(array):
        return array
    # what its owner has launched comes before what follows in the default stream
    return Borrowed(array, stream=1)


def _says_when(array: Any) -> bool:
    """Whether its interface will do: its stream is known, or there is no DLPack to ask for it."""
    if hasattr(array, "gpu_data") or places.is_tensor(array):  # Numba's, torch's
        return True
    interface = getattr(array, "__cuda_array_interface__", None)  # refused for some dtypes
    if interface is None:
        return False
    return interface.get("stream") is not None or not hasattr(array, "__dlpack__")


def is_readonly(array: Any) -> bool:
    """Whether its owner says that nobody may write to it."""
    if places.simulated() and hasattr(array, "_ary"):
        return not array._ary.flags.writeable
    if hasattr(array, "gpu_data") or places.is_tensor(array):
        return False
    if library_of(array) in ("jax", "jaxlib"):  # whose DLPack does not say that they never change
        return True
    interface = getattr(array, "__cuda_array_interface__", None)
    return interface is not None and bool(interface["data"][1])


def library_of(array: Any) -> str:
    """The name of the package that its class comes from."""
    return type(array).__module__.partition(".")[0]


def _viewed(name: str, array: Any) -> Any:
    """Without a copy: values that kernels know, with Numba's interface."""
    if not places.is_tensor(array):
        return with_interface(array)
    if array.requires_grad:
        raise TypeError(f"{name} requires a gradient, which nobody would take; {name}.detach()")
    torch = sys.modules["torch"]
    return array.view(torch.int16) if array.dtype == torch.bfloat16 else array


def strides_of(view: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Steps of the axes, in values."""
    if places.simulated() or hasattr(view, "gpu_data"):
        # Numba's own: its interface leaves them out where they are 0
        steps, size = view.strides, view.dtype.itemsize
    else:
        interface = view.__cuda_array_interface__
        steps, size = interface.get("strides"), np.dtype(interface["typestr"]).itemsize
    return dense(shape) if steps is None else tuple(step // size for step in steps)


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
        return flat, view.stream, flat._ary.__array_interface__["data"][0]
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
    library = library_of(array.given)
    if places.is_tensor(array.given):
        return sys.modules["torch"].empty_like(array.given)
    if array.dtype == "bfloat16" and library not in ("cupy", "numba"):
        raise TypeError(
            f"no output of bfloat16 can be made for an array of {library}; pass out=, or torch's "
            "tensors"
        )
    if library == "cupy":
        shape = tuple(array.shape[k] for k in array.order)
        with array.given.device:
            empty = sys.modules["cupy"].empty(shape, array.given.dtype)
        return empty.transpose(np.argsort(array.order))
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
    if places.is_tensor(array.given):
        torch = sys.modules["torch"]
        return torch.empty(channels, dtype=getattr(torch, dtype), device=array.given.device)
    if library_of(array.given) == "cupy":
        with array.given.device:
            return sys.modules["cupy"].empty(channels, dtype)
    return cuda.device_array(channels, dtype, stream=stream_of(array))


def stream_of(array: DeviceArray) -> Any:
    """The stream that an array's owner works on, as Numba takes it."""
    return as_stream(array.stream)


def as_stream(pointer: int) -> Any:
    """A stream as Numba takes it."""
    return cuda.external_stream(pointer) if pointer and not places.simulated() else pointer


def current() -> int:
    """The number of the device that kernels are launched on."""
    return getattr(cuda.current_context().device, "id", 0)  # the simulator has one without


def gpu_of(array: Any) -> int | None:
    """The number of the GPU that an array lies on; None where nobody says."""
    array = owner_of(array)
    if hasattr(array, "gpu_data"):  # Numba's
        return int(array.gpu_data.context.device.id)
    if hasattr(array, "__dlpack_device__"):
        return int(array.__dlpack_device__()[1])
    interface = getattr(array, "__cuda_array_interface__", None)
    return None if interface is None else gpu_by_driver(interface["data"][0])


def owner_of(array: Any) -> Any:
    """Whose memory it is: Numba's arrays may be views of others', made on any GPU."""
    while hasattr(array, "gpu_data"):
        owner = getattr(array.gpu_data, "owner", None)
        if not hasattr(type(owner), "__cuda_array_interface__") and not isinstance(owner, Borrowed):
            break
        array = owner
    return array


def gpu_by_driver(pointer: int) -> int | None:
    """The number of the GPU that has this memory; None where the driver does not know."""
    if places.simulated() or not pointer or len(cuda.gpus) == 1:
        return None
    from numba.cuda.cudadrv import driver

    number, attribute = ctypes.c_int(), 9  # CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    try:
        if not hasattr(driver, "binding"):  # Numba's own, without NVIDIA's module
            driver.driver.cuPointerGetAttribute(ctypes.byref(number), attribute, pointer)
            return number.value
        kind = driver.binding.CUpointer_attribute(attribute)
        there = driver.binding.CUdeviceptr(pointer)
        return int(driver.driver.cuPointerGetAttribute(kind, there))
    except driver.CudaAPIError:
        return None


def working_on(number: int | None) -> AbstractContextManager[Any]:
    """Launches and allocations go to the GPU of this number, or to the current one."""
    return nullcontext() if number in (None, current()) else cuda.gpus[number]


def _check_gpu(name: str, array: Any) -> None:
    """Refuse what lies on another GPU than x."""
    number = gpu_of(array)
    if number not in (None, current()):
        raise ValueError(
            f"{name} lies on GPU {number}, and x on GPU {current()}; copy one of them: arrays of "
            "one call lie in one place"
        )
