"""`vector` in NumPy, for ``NUMBA_DISABLE_JIT=1``: kernels run, and are covered, as plain Python."""

import numpy as np

from fastbn.kernels.vector_llvm import VECTOR_BITS


def pointer(array):
    assert array.flags.c_contiguous
    return array.reshape(-1)


def lanes(array):
    return VECTOR_BITS // (8 * array.itemsize)


def broadcast(array, value):
    return np.full(lanes(array), value, array.dtype)


def rounded(array, value):
    return float(array.dtype.type(value))


def load(array, index):
    return array[index : index + lanes(array)].copy()


def load_first(array, index, count, rest):
    count = min(count, rest.size)
    vector = rest.copy()
    vector[:count] = array[index : index + count]
    return vector


def store(array, index, value):
    array[index : index + value.size] = value


def store_streaming(array, index, value):
    assert to_boundary(array, index) == 0
    store(array, index, value)


def fence():
    pass


def to_boundary(array, index):
    address = array.ctypes.data + index * array.itemsize
    return -address % (VECTOR_BITS // 8) // array.itemsize


def store_first(array, index, count, value):
    count = min(count, value.size)
    array[index : index + count] = value[:count]


def total(value):
    while value.size > 1:
        value = value[: value.size // 2] + value[value.size // 2 :]
    return float(value[0])
