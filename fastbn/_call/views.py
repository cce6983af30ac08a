"""Memory without copies: the flat views that kernels see, and writes that nothing interrupts."""

import operator
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any

import numpy as np


class _Window:
    """Hands memory that another array owns to NumPy, through the array interface."""

    __slots__ = ("__array_interface__", "owner")

    def __init__(self, owner: np.ndarray, extent: int) -> None:
        self.owner = owner
        self.__array_interface__: dict[str, Any] = {
            "version": 3,
            "shape": (extent,),
            "typestr": owner.dtype.str,
            "data": (owner.__array_interface__["data"][0], False),
        }


def flat(array: np.ndarray, extent: int) -> np.ndarray:
    """One-dimensional contiguous view of ``extent`` elements from ``array``'s first on.

    Every view has the same Numba type, whatever the array's rank, strides or
    flags: a kernel is compiled once per dtype. A read-only array looks writable,
    which is safe because kernels write to their outputs alone.
    """
    if array.flags.carray and array.size == extent:
        return array.reshape(-1)
    return np.asarray(_Window(array, extent))


def assign_all(arrays: Sequence[np.ndarray], values: Iterable[Any]) -> None:
    """``array[...] = value`` for each pair, all or none; shapes must fit.

    Raises ValueError if one of the arrays cannot be written, before any is. Values are
    converted first. Ctrl-C becomes an exception only between two steps of Python code,
    and in the assignments there is none: the loop is the interpreter's own.
    """
    for array in arrays:
        if not (isinstance(array, np.ndarray) and array.flags.writeable):
            raise ValueError(
                f"cannot write to {array!r}: parameters and statistics must be writable arrays; "
                "nothing was changed"
            )
    with np.errstate(over="ignore", under="ignore"):
        ready = [np.array(v, a.dtype) for a, v in zip(arrays, values, strict=True)]
    assign: Any = operator.setitem
    deque(map(assign, arrays, repeat(...), ready), maxlen=0)
