"""Where a call is done: NumPy arrays on the CPU, arrays on an NVIDIA GPU there. Nothing is copied.

Only a call that nothing is known of comes here, and CUDA is imported when the first array on a
device does.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from fastbn._call import operations, views
from fastbn._call.operations import ForwardCache
from fastbn._call.places import on_device, simulated

_EXTRA = (
    "arrays on a GPU need the extra cuda (pip install 'fastbn[cuda]') and NVIDIA's driver; or copy "
    "the array to NumPy"
)


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
