"""Where a call is done: NumPy arrays on the CPU, arrays on an NVIDIA GPU there. Nothing is copied.

Only a call that nothing is known of comes here, and CUDA is imported when the first array on a
device does.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from fastbn._call import ghost, groups, operations, renorm, rows, settings, sync, views
from fastbn._call.ghost import GhostCache
from fastbn._call.groups import GroupCache
from fastbn._call.operations import ForwardCache
from fastbn._call.places import on_device
from fastbn._call.renorm import RenormCache
from fastbn._call.rows import RowCache
from fastbn._call.sync import SyncCache

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


def _arrays() -> Any:
    """The module of arrays on a device."""
    device()  # which says so if there is none
    from fastbn._call import device_arrays

    return device_arrays


def cpu_only(x: Any, what: str) -> None:
    """Refuse an array on a device for what there is on the CPU alone."""
    if on_device(x):
        raise NotImplementedError(
            f"there is no {what} on a device yet; copy x to NumPy, or take batch norm there"
        )


def forward(x: Any, *arguments: Any) -> Any:
    """One forward call, with all its checks; see `operations.Forward`."""
    kind = device().Forward if on_device(x) else operations.Forward
    return kind(x, *arguments)


def backward(dy: Any, cache: Any, out: Any) -> tuple[Any, Any, Any]:
    """Gradients in x, weight and bias."""
    if isinstance(cache, ForwardCache) and on_device(cache.x):
        return device().backward(dy, cache, out)
    if isinstance(cache, RenormCache):
        return renorm.backward(dy, cache, out)
    if isinstance(cache, GhostCache):
        return ghost.backward(dy, cache, out)
    if isinstance(cache, SyncCache):
        return sync.backward(dy, cache, out)
    return operations.backward(dy, cache, out)


# --- norms of each sample -------------------------------------------------------------------------


def _norms() -> Any:
    """The module of such norms on a device."""
    device()  # which says so if there is none
    from fastbn._call import device_norms

    return device_norms


def group_norm(x: Any, *arguments: Any) -> Any:
    """One forward call, with all its checks; see `groups.GroupNorm`."""
    return (_norms() if on_device(x) else groups).GroupNorm(x, *arguments)


def row_norm(x: Any, *arguments: Any, uncentered: bool = False) -> Any:
    """One forward call of a layer norm or RMS norm; see `rows.RowNorm`."""
    return (_norms() if on_device(x) else rows).RowNorm(x, *arguments, uncentered=uncentered)


def instance_norm(
    x: Any, running_mean: Any, running_var: Any, weight: Any, bias: Any, use_input_stats: Any,
    momentum: Any, eps: Any, axis: Any, out: Any, counter: Any = None,
) -> Any:  # fmt: skip
    """The call that an instance norm is: of its own statistics, or a batch norm's evaluation."""
    if settings.check_bool("use_input_stats", use_input_stats):
        return (_norms() if on_device(x) else groups).InstanceNorm(
            x, running_mean, running_var, weight, bias, momentum, eps, axis, out, counter
        )
    if running_mean is None and running_var is None:
        raise ValueError("without use_input_stats there must be running_mean and running_var")
    return forward(x, running_mean, running_var, weight, bias, False, 0.1, eps, axis, out)


def norm_backward(dy: Any, cache: GroupCache | RowCache, out: Any) -> tuple[Any, Any, Any]:
    """Gradients of such a norm in x, weight and bias."""
    if on_device(cache.x):
        return _norms().backward(dy, cache, out)
    return (rows if isinstance(cache, RowCache) else groups).backward(dy, cache, out)


# --- arrays ---------------------------------------------------------------------------------------


def zeros(shape: tuple[int, ...], dtype: np.dtype, place: str) -> Any:
    """A new array on the CPU or on a GPU; an explicit request never falls back."""
    return _put(np.zeros(shape, dtype), place)


def require(place: str) -> None:
    """Raise if there is no such device, also where nothing is put on it."""
    zeros((0,), np.dtype(np.float32), place)


def to_numpy(array: Any, name: str = "the array") -> np.ndarray:
    """A copy in host memory, when all that was launched before is done."""
    if not on_device(array):
        return array.copy()
    gpu = _arrays()
    with gpu.working_on(gpu.gpu_of(array)):
        gpu.cuda.synchronize()
        return gpu.to_host(name, array)


def moved(array: Any, place: str) -> Any:
    """A copy on the CPU or on a GPU."""
    return _put(to_numpy(array), place)


def _put(host: np.ndarray, place: str) -> Any:
    if place == "cpu":
        return host
    gpu, number = _arrays(), place.partition(":")[2]
    there = len(gpu.cuda.gpus)
    if number and int(number) >= there:
        raise RuntimeError(f"device={place!r}: NVIDIA GPUs found: {there}; 'cuda:0' is the first")
    with gpu.working_on(int(number) if number else None):
        return gpu.cuda.to_device(host)


def as_numba(name: str, array: Any, like: Any) -> Any:
    """An array on a device as Numba's, without a copy; ValueError if it is not where another is.

    This waits for whoever computes it: nobody remembers the stream.
    """
    gpu = _arrays()
    number, expected = gpu.gpu_of(array), gpu.gpu_of(like)
    if None not in (number, expected) and number != expected:
        raise ValueError(f"the array lies on GPU {number}, and the layer's arrays on {expected}")
    with gpu.working_on(expected):
        gpu.cuda.synchronize()
        return gpu.as_numba(name, array)


def assign_all(arrays: Sequence[Any], values: Iterable[Any]) -> None:
    """As `views.assign_all`, to arrays that lie anywhere."""
    pairs = [(a, np.array(v, a.dtype)) for a, v in zip(arrays, values, strict=True)]
    host = [pair for pair in pairs if not on_device(pair[0])]
    views.assign_all([a for a, _ in host], [v for _, v in host])
    there = [pair for pair in pairs if on_device(pair[0])]
    if there:
        gpu = _arrays()
        with gpu.working_on(gpu.gpu_of(there[0][0])):
            gpu.cuda.synchronize()  # no kernel on any stream may still read them
            for array, value in there:
                array.copy_to_device(np.broadcast_to(value, array.shape).copy())
            gpu.cuda.synchronize()
