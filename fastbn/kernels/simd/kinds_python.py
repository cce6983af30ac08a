"""`kinds` in NumPy, for ``NUMBA_DISABLE_JIT=1``."""

import numpy as np

from fastbn.kernels.simd.python import _at, address_of

_HELD = {"bfloat16": np.dtype(np.uint16)}


def _dtype(kind):
    return _HELD.get(kind) or np.dtype(kind)


def _lanes(working):
    return 64 // np.dtype(working).itemsize


def pointers_of(kind):
    return lambda address: _at(address, _dtype(kind))


def _memory(pointer, index, size):
    """Some values; the index may be negative."""
    return _at(address_of(pointer) + int(index) * pointer.itemsize, pointer.dtype, size)


def _read(pointer, index, size, kind, working):
    raw = _memory(pointer, index, size)
    if kind == "bfloat16":
        return (raw.astype(np.uint32) << 16).view(np.float32).astype(working)
    return raw.astype(working)


def _write(pointer, index, vector, kind):
    if kind == "bfloat16":
        vector = vector.astype(np.float32)
        bits = vector.view(np.uint32)
        rounded = bits + ((bits >> 16) & 1) + 0x7FFF
        vector = np.where(np.isnan(vector), bits | 0x400000, rounded) >> 16
    elif kind == "float16":
        vector = vector.astype(np.float32)
    elif _dtype(kind).kind in "iu":
        ends = np.iinfo(kind)
        # a comparison with NaN is false, and leaves the least
        vector = np.where(vector > ends.min, np.minimum(vector, ends.max), ends.min)
        vector = np.rint(vector)
    _memory(pointer, index, vector.size)[:] = vector


def reads(kind, working, count=1):
    def read(pointer, index, apart):
        size = _lanes(working)
        each = [_read(pointer, index + k * apart, size, kind, working) for k in range(count)]
        return np.concatenate(each)

    return read


def reads_turned(kind, working, count):
    def read(pointer, index):
        values = _read(pointer, index, _lanes(working) * count, kind, working)
        return values.reshape(-1, count).T.ravel()

    return read


def reads_apart(kind, working):
    def read(pointer, index, apart):
        each = [_read(pointer, index + k * apart, 1, kind, working) for k in range(_lanes(working))]
        return np.concatenate(each)

    return read


def reads_one(kind, working):
    def read(pointer, index):
        return np.repeat(_read(pointer, index, 1, kind, working), _lanes(working))

    return read


def reads_terms(rows, working, count=1, same=False):
    def read(table, columns, index):
        size = _lanes(working) * (1 if same else count)
        each = (table[index + k * columns : index + k * columns + size] for k in range(rows))
        return tuple(np.tile(row, count if same else 1) for row in each)

    return read


def writes(kind, working, count=1, streaming=False):
    def write(pointer, index, apart, vector):
        for k, part in enumerate(vector.reshape(count, -1)):
            place = index + k * apart
            if streaming:
                bytes_each = part.size * pointer.itemsize
                assert (address_of(pointer) + place * pointer.itemsize) % bytes_each == 0
            _write(pointer, place, part, kind)

    return write


def writes_turned(kind, working, count):
    def write(pointer, index, vector):
        _write(pointer, index, vector.reshape(count, -1).T.ravel(), kind)

    return write


def writes_apart(kind, working):
    def write(pointer, index, apart, vector):
        for k in range(vector.size):
            _write(pointer, index + k * apart, vector[k : k + 1], kind)

    return write


def writes_one(kind, working):
    def write(pointer, index, vector):
        _write(pointer, index, vector[:1], kind)

    return write
