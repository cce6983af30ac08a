"""What is asked of Dask's arrays before there is a graph, and how blocks of them are called."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from fastbn._call import arguments
from fastbn._system.threads import one_thread

__all__ = ["checked_array", "empty_like", "library", "on_one_thread", "per_channel"]

_R = TypeVar("_R")


def library(name: str = "dask.array") -> ModuleType:
    """A module of Dask's; ImportError says which extra brings it."""
    try:
        return __import__(name, fromlist=["_"])
    except ImportError as error:
        raise ImportError(f"this needs {name}: pip install 'fastbn[dask]' ({error})") from error


def checked_array(name: str, x: Any) -> Any:
    """``x``, which is one of Dask's arrays."""
    if not isinstance(x, library().Array):
        inside = type(getattr(x, "data", None)).__module__.startswith("dask.")
        way = f"pass {name}.data" if inside else "fastbn's function of this name takes NumPy arrays"
        raise TypeError(f"{name} must be a dask.array.Array, got {type(x).__name__}; {way}")
    return x


def empty_like(x: Any, axis: Any, *vectors: Any) -> tuple[int, np.ndarray]:
    """The channel axis, counted from the front, and an array with x's channels but no values.

    With it the function for NumPy arrays checks all other arguments. Channels that Dask has not
    counted are as many as the first of the vectors says.
    """
    axis = arguments.channel_axis(x.shape, arguments.as_axis(axis))
    channels = x.shape[axis]
    if math.isnan(channels):
        sizes = (np.shape(each)[0] for each in vectors if np.ndim(each) == 1)
        channels = next((size for size in sizes if not math.isnan(size)), 0)
    empty = np.ma.empty if isinstance(x._meta, np.ma.MaskedArray) else np.empty
    return axis, empty([channels if k == axis else 0 for k in range(x.ndim)], x.dtype)


def per_channel(name: str, value: Any, x: Any, axis: int) -> Any:
    """A parameter in one dimension as Dask's array whose chunks are x's on the channel axis."""
    chunks = x.chunks[axis]
    known = not any(map(math.isnan, chunks))
    if not known and len(chunks) > 1:
        raise ValueError(
            f"x has {len(chunks)} chunks of unknown size on the channel axis {axis}, so it is "
            f"unknown which values of {name} belong to which; x.compute_chunk_sizes() finds out"
        )
    if not isinstance(value, library().Array):  # a copy: who trains on changes what it was made of
        array = np.array(
            value if isinstance(value, (list, tuple)) else arguments.as_array(name, value)
        )
        return library().from_array(array, chunks=(chunks if known else array.shape,))
    if value.ndim != 1 or (known and value.shape != (x.shape[axis],)):
        raise ValueError(
            f"{name} has shape {value.shape}, expected ({x.shape[axis]},), one for each channel"
        )
    return value.rechunk((chunks,)) if known else value.rechunk(value.shape)


def on_one_thread(function: Callable[..., _R], *given: Any, **named: Any) -> _R:
    """What a task does: its call starts no threads beside those of the scheduler."""
    with one_thread():
        return function(*given, **named)
