"""What is private of formulas and activations, for tests: as `internals` is."""

import ctypes
import functools
from typing import get_args
from unittest import mock

import numba
import numpy as np

from fastbn._call import backend, epilogue
from fastbn.kernels import activations, compile, disk_cache, simd
from fastbn.kernels.frame import new_frame, set_fields
from fastbn.kernels.simd import exponential

ACTIVATIONS = activations.ACTIVATIONS


def activation_names():
    """Those that a type checker knows."""
    return get_args(epilogue.Activation)


fused, activation_gradient = activations.fused, activations.activation_gradient
#: Of what exp, expm1 and tanh of vectors are made of, by dtype.
LOG4_E = exponential.LOG4_E
EXPONENTIAL = {np.dtype("f4"): exponential.SINGLE, np.dtype("f8"): exponential.DOUBLE}


def on_vectors(formula, *arrays):
    """A formula on flat arrays, as SIMD vectors of their dtype, in every lane."""
    dtype, size = arrays[0].dtype, arrays[0].size
    # parts of tests have no place in the disk cache, which does not see when tests change
    with mock.patch.object(disk_cache, "sources_digest", return_value=None):
        address = _part_on_vectors(formula, len(arrays)).address(dtype)
    rows = np.array([np.resize(array, size + -size % 64) for array in arrays], dtype)
    out = np.empty_like(rows[0])
    frame = new_frame(first=rows.ctypes.data, first_row=rows[0].nbytes, out=out.ctypes.data)
    set_fields(frame, {"length": out.size})
    if compile.PLAIN:
        simd.call(address, frame.ctypes.data, 0)
    else:
        kind = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
        kind(address)(frame.ctypes.data, 0, None)
    return out[:size]


@functools.cache
def _part_on_vectors(formula, count):
    compute = simd.compiled_formula(formula, "values")
    lanes, rows, load, store = (
        simd.lanes(),
        simd.value_rows(count),
        simd.loads_each(),
        simd.stores(),
    )
    zeros = (0,) * count

    @compile.part(f"test_{formula.__name__}")
    def part(frame, task, like):
        f = simd.frame_at(frame)
        pointers, out = rows(f.first, f.first_row, like), simd.values_at(f.out, like)
        for n in range(0, f.length, lanes(like)):
            store(out, n, 0, compute(load(pointers, zeros, zeros, n)))

    return part


@functools.cache
def on_scalars(formula):
    """A formula in compiled code, for one float64 each."""
    compute = simd.compiled_formula(formula, "values")
    function = lambda *values: compute(values)  # noqa: E731
    return function if compile.PLAIN else numba.njit(function)


def on_the_device(formula, *values):
    """A formula on scalars of a device, of the first array's dtype; numbers stay the same."""
    from fastbn.kernels.cuda.compile import device_formula, kernel

    function, cuda = device_formula(formula, values[0].dtype.type), backend.device().cuda

    names = {"function": function, "cuda": cuda}
    arguments = ", ".join(f"rows[{n}, k]" for n in range(len(values)))
    exec(f"def each(rows, out):\n k = cuda.threadIdx.x\n out[k] = function({arguments})", names)
    rows = np.array(np.broadcast_arrays(*values), values[0].dtype)
    out = cuda.to_device(np.empty_like(rows[0]))
    kernel(names["each"])[1, out.size](cuda.to_device(rows), out)
    return out.copy_to_host()
