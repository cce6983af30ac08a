"""Launches on a GPU: how many blocks, on which stream, and the memory that they share."""

import threading
import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import numpy as np
from numba import cuda

from fastbn._call import places
from fastbn._call.device_arrays import as_stream, current
from fastbn._call.device_cut import Cut
from fastbn._call.device_streams import turns_of
from fastbn.kernels.cuda.sums import THREADS


@lru_cache(maxsize=16)
def together(device: int) -> int:
    """Blocks of a tile that surely are on a device together: half of those that fit on it.

    Two fit on each multiprocessor, and two such kernels may run at once; see `Turns`.
    """
    if places.simulated():  # whose blocks run one after the other
        return 1
    return max(1, int(cuda.gpus[device].MULTIPROCESSOR_COUNT))


def scratch(cut: Cut, stream: int) -> tuple[Any, Any]:
    """Partial sums and tickets, kept: what a thread launches on a stream runs in that order.

    Two launches and one that reads once may use the same: both leave zeros.
    """
    parts = 1 << (cut.parts - 1).bit_length()  # batches of many sizes share it
    return _scratch(current(), threading.get_ident(), stream, parts, cut.channels)


@lru_cache(maxsize=256)
def _scratch(device: int, thread: int, stream: int, parts: int, channels: int) -> tuple[Any, Any]:
    partial = cuda.device_array(max(1, 2 * parts * channels), np.float64)
    # in the stream, before its kernels, so that nobody waits
    return partial, cuda.to_device(np.zeros(2 * channels + 1, np.int32), stream=as_stream(stream))


def launcher(kernel: Any, blocks: int, stream: int) -> Any:
    """A kernel on so many blocks, in the stream that the owner of x works on."""
    if places.simulated():  # whose launchers are one and the same object
        return kernel[blocks, THREADS]
    return _configured(kernel, blocks, stream)


@lru_cache(maxsize=4096)
def _configured(kernel: Any, blocks: int, stream: int) -> Any:
    with warnings.catch_warnings():  # Numba warns of grids that cannot fill a device
        warnings.simplefilter("ignore")
        return kernel[blocks, THREADS, as_stream(stream)]


def turn(cut: Cut, stream: int) -> AbstractContextManager[None]:
    """In which a kernel that reads once is launched: its blocks may wait for each other."""
    return turns_of(current()).one(stream) if cut.parts > 1 else nullcontext()
