"""Arrays of libraries that lend their memory by DLPack alone: shape, steps and address, no copy.

Of the protocol (https://dmlc.github.io/dlpack, version 0.x, which every library still speaks), the
part that a reader needs.
"""

import ctypes
from typing import Any

import numpy as np

#: Kinds of memory that a kernel can reach: a GPU's own, and managed memory.
_ON_GPU = 2, 13
#: Letters of the array interface by DLPack's codes, and bfloat16, which has none.
_LETTERS, _BFLOAT16 = {0: "i", 1: "u", 2: "f", 5: "c", 6: "b"}, 4


class _Device(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_int32), ("number", ctypes.c_int32)]


class _DataType(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p), ("device", _Device), ("ndim", ctypes.c_int32),
        ("dtype", _DataType), ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64),
    ]  # fmt: skip


_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype, _pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def on_gpu(array: Any) -> bool:
    """Whether an array says by DLPack that an NVIDIA GPU has it."""
    try:
        return array.__dlpack_device__()[0] in _ON_GPU
    except Exception:  # refused, or not an array at all
        return False


def tensor_of(capsule: Any) -> _Tensor:
    """What a capsule says; the memory is its own."""
    return _Tensor.from_address(_pointer_of(capsule, b"dltensor"))


class Borrowed:
    """An array of somebody's, with the interface that other arrays on a GPU have.

    It is asked for in the default stream of old, 1, so that stream is what its interface names.
    It keeps the capsule, and the capsule keeps the memory: nobody takes it over, so it is given
    back when the last of both is gone.
    """

    def __init__(self, array: Any, **how: Any) -> None:
        self.capsule = array.__dlpack__(**how)
        tensor = tensor_of(self.capsule)
        code, bits, lanes = tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes
        if lanes != 1 or bits % 8 or code not in (*_LETTERS, _BFLOAT16):
            raise TypeError(f"DLPack says dtype {code} of {bits} bits and {lanes} lanes")
        size = bits // 8
        self.shape = tuple(tensor.shape[: tensor.ndim])
        #: What kernels take it as; bfloat16 is two bytes to them.
        held = np.dtype(f"<u{size}" if code == _BFLOAT16 else f"<{_LETTERS[code]}{size}")
        self.dtype: Any = "bfloat16" if code == _BFLOAT16 else held
        steps = tuple(tensor.strides[: tensor.ndim]) if tensor.strides else dense(self.shape)
        self.strides = tuple(step * size for step in steps)
        self.device = tensor.device.kind, tensor.device.number
        self.__cuda_array_interface__ = {
            "shape": self.shape, "strides": self.strides, "typestr": held.str,
            "data": ((tensor.data or 0) + tensor.byte_offset, False), "version": 3,
            "stream": 1,
        }  # fmt: skip

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device


def dense(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Steps in values where rows follow each other."""
    return tuple(int(np.prod(shape[k + 1 :], dtype=np.int64)) for k in range(len(shape)))
