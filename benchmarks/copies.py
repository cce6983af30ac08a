"""What fastbn is measured against: copies of the same bytes with the same threads.

A plain copy reads the target's memory before it overwrites it. A streaming copy does not, and
leaves the target out of the caches: nothing that writes a large array can be faster.
"""

from collections.abc import Callable

import numba
import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic

import fastbn

LINE = 64
LINES_PER_TASK = 1024
#: From here on fastbn uses threads.
PARALLEL_BYTES = 2**18


def _line_copier(streaming: bool):
    """Copies a line of the cache, from one address to another."""

    @intrinsic
    def copy_line(typing_context, target, source):
        def codegen(context, builder, signature, arguments):
            line = ir.VectorType(ir.IntType(64), LINE // 8).as_pointer()
            to, origin = (builder.inttoptr(address, line) for address in arguments)
            store = builder.store(builder.load(origin, align=4), to, align=LINE)
            if streaming:
                one = ir.Constant(ir.IntType(32), 1)
                store.set_metadata("nontemporal", builder.module.add_metadata([one]))
            return context.get_dummy_value()

        return types.void(types.intp, types.intp), codegen

    return copy_line


def _copier(streaming: bool, parallel: bool):
    """Copies some lines, on threads or not."""
    copy_line = _line_copier(streaming)

    def copy(target, source, lines):
        for task in prange((lines + LINES_PER_TASK - 1) // LINES_PER_TASK):
            first = task * LINES_PER_TASK
            for i in range(first, min(first + LINES_PER_TASK, lines)):
                copy_line(target + LINE * i, source + LINE * i)

    return numba.njit(nogil=True, parallel=parallel)(copy)


COPIERS = {
    (streaming, parallel): _copier(streaming, parallel)
    for streaming in (False, True)
    for parallel in (False, True)
}


def copies(x: np.ndarray) -> dict[str, Callable[[], object]]:
    """Calls that copy the bytes of ``x``, but for some at the end that fill no line."""
    source = x.ravel(order="K")
    target = aligned(source)
    numba.set_num_threads(fastbn.get_num_threads())
    parallel = x.nbytes >= PARALLEL_BYTES

    def call(streaming: bool) -> Callable[[], object]:
        copier, lines = COPIERS[streaming, parallel], x.nbytes // LINE
        to, origin = target.ctypes.data, source.ctypes.data
        return lambda keep=(target, source): copier(to, origin, lines)

    plain = call(False) if parallel else lambda: np.copyto(target, source)
    return {"copy": plain, "streaming_copy": call(True)}


def aligned(x: np.ndarray) -> np.ndarray:
    """Uninitialized array like x whose memory begins on a page."""
    raw = np.empty(x.nbytes + 4096, np.uint8)
    start = -raw.ctypes.data % 4096
    return raw[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
