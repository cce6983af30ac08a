"""The limits of the machine: how long it takes to copy x, or to read it, with fastbn's threads.

A plain copy reads the target's memory before it overwrites it. A streaming copy does not,
and leaves the target out of the caches: the true roofline of large arrays.
"""

from collections.abc import Callable

import numba
import numpy as np
from numba import prange

import fastbn
from fastbn._plan import PARALLEL_BYTES
from fastbn.kernels.compile import kernel
from fastbn.kernels.vector import broadcast, fence, lanes, load, store, store_streaming, total

CHUNK = 16384


@kernel
def plain(x, out):
    for task in prange((x.size + CHUNK - 1) // CHUNK):
        i, end = task * CHUNK, min((task + 1) * CHUNK, x.size)
        while i + lanes(x) <= end:
            store(out, i, load(x, i))
            i += lanes(x)
        for k in range(i, end):
            out[k] = x[k]


@kernel
def streaming(x, out):
    for task in prange((x.size + CHUNK - 1) // CHUNK):
        i, end = task * CHUNK, min((task + 1) * CHUNK, x.size)
        while i + lanes(x) <= end:
            store_streaming(out, i, load(x, i))
            i += lanes(x)
        for k in range(i, end):
            out[k] = x[k]
        fence()


@kernel
def read(x, sums):
    for task in prange(sums.size):
        i, end = task * CHUNK, min((task + 1) * CHUNK, x.size)
        s0 = s1 = s2 = s3 = broadcast(x, 0.0)
        while i + 4 * lanes(x) <= end:
            s0, s1 = s0 + load(x, i), s1 + load(x, i + lanes(x))
            s2, s3 = s2 + load(x, i + 2 * lanes(x)), s3 + load(x, i + 3 * lanes(x))
            i += 4 * lanes(x)
        rest = 0.0
        for k in range(i, end):
            rest += x[k]
        sums[task] = total((s0 + s1) + (s2 + s3)) + rest


def limits(x: np.ndarray) -> dict[str, Callable[[], object]]:
    """Calls that copy x's bytes, plainly and with streaming stores, or only read them."""
    source = x.ravel(order="K")
    target, sums = aligned(source), np.empty(-(-x.size // CHUNK))
    numba.set_num_threads(fastbn.get_num_threads())
    if x.nbytes < PARALLEL_BYTES:
        return {
            "copy": lambda: np.copyto(target, source),
            "streaming_copy": lambda: streaming.serial(source, target),
            "read": lambda: read.serial(source, sums),
        }
    return {
        "copy": lambda: plain.parallel(source, target),
        "streaming_copy": lambda: streaming.parallel(source, target),
        "read": lambda: read.parallel(source, sums),
    }


def aligned(x: np.ndarray) -> np.ndarray:
    """Uninitialized array like x whose memory begins on a page."""
    raw = np.empty(x.nbytes + 4096, np.uint8)
    start = -raw.ctypes.data % 4096
    return raw[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
