"""Where a call is done: NumPy arrays on the CPU, arrays on an NVIDIA GPU there. Nothing is copied.

Only a call that nothing is known of comes here, and CUDA is imported when the first array on a
device does.
"""

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from fastbn._call import operations, views
from fastbn._call.operations import ForwardCache

_EXTRA = (
    "arrays on a GPU need the extra cuda (pip install 'fastbn[cuda]') and NVIDIA's driver; or copy "
    "the array to NumPy"
)


def on_device(array: Any) -> bool:
    """Whether an array lies on an NVIDIA GPU."""
    kind = type(array)
    if kind is np.ndarray:
        return False
    if kind.__module__.startswith("numba.cuda"):  # the simulator's say so in no other way
        return hasattr(array, "copy_to_host")
    if is_tensor(array):
        return bool(getattr(array, "is_cuda", False))
    if not hasattr(kind, "__cuda_array_interface__"):
        return False
    try:  # some have it wherever they are, and refuse it on the CPU
        return array.__cuda_array_interface__ is not None
    except Exception:
        return False


def is_tensor(array: Any) -> bool:
    """Whether it is one of torch's, or of a class that is made of them."""
    return any(kind.__module__.partition(".")[0] == "torch" for kind in type(array).__mro__)


def device() -> Any:
    """The module of calls on a device, imported now."""
    try:
        from fastbn._call import device
    except ImportError as error:
        raise ImportError(f"{_EXTRA}: {error}") from error
    if not device.available():
        raise RuntimeError(f"no NVIDIA GPU can be used: {_EXTRA}")
    return device


def forward(x: Any, *arguments: Any) -> Any:
    """One forward call, with all its checks; see `operations.Forward`."""
    kind = device().Forward if on_device(x) else operations.Forward
    return kind(x, *arguments)


def backward(dy: Any, cache: Any, out: Any) -> tuple[Any, Any, Any]:
    """Gradients in x, weight and bias."""
    if isinstance(cache, ForwardCache) and on_device(cache.x):
        return device().backward(dy, cache, out)
    return operations.backward(dy, cache, out)


def zeros(size: int, dtype: np.dtype, place: str) -> Any:
    """A new array on the CPU or on the current GPU; an explicit request never falls back."""
    host = np.zeros(size, dtype)
    return host if place == "cpu" else device().cuda.to_device(host)


def to_numpy(array: Any) -> np.ndarray:
    """A copy in host memory, when all that was launched before is done."""
    if not on_device(array):
        return array.copy()
    device().cuda.synchronize()
    return array.copy_to_host()


def moved(array: Any, place: str) -> Any:
    """A copy on the CPU or on the current GPU."""
    host = to_numpy(array)
    return host if place == "cpu" else device().cuda.to_device(host)


def as_numba(array: Any) -> Any:
    """An array on a device as Numba's, without a copy."""
    return array if simulated() else device().cuda.as_cuda_array(array)


def assign_all(arrays: Sequence[Any], values: Iterable[Any]) -> None:
    """As `views.assign_all`, to arrays that lie anywhere."""
    pairs = [(a, np.array(v, a.dtype)) for a, v in zip(arrays, values, strict=True)]
    host = [pair for pair in pairs if not on_device(pair[0])]
    views.assign_all([a for a, _ in host], [v for _, v in host])
    there = [pair for pair in pairs if on_device(pair[0])]
    for array, value in there:
        device().cuda.synchronize()  # no kernel on any stream may still read it
        array.copy_to_device(np.broadcast_to(value, array.shape).copy())
    if there:
        device().cuda.synchronize()


def simulated() -> bool:
    """Whether Numba simulates a device."""
    return os.environ.get("NUMBA_ENABLE_CUDASIM", "0") == "1"
