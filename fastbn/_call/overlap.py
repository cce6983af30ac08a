"""Whether arrays share memory: with each other, or their elements among themselves."""

from typing import Any

import numpy as np


def shares_memory(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays share an element; True where that would take long to find out.

    Two arrays that own their memory share none, which is quick to see.
    """
    if a is not b and a.base is None and b.base is None:
        return False
    if not np.may_share_memory(a, b):
        return False
    try:
        return np.shares_memory(a, b, max_work=100_000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def overlaps_itself(array: np.ndarray) -> bool:
    """Whether elements may share memory: a stride that does not clear the dimensions within."""
    if array.flags.forc:
        return False
    reach = array.itemsize
    for stride, n in sorted(zip(map(abs, array.strides), array.shape, strict=True)):
        if n > 1:
            if stride < reach:
                return array.size > 0
            reach += stride * (n - 1)
    return False


def same_elements(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays are the same memory, element for element."""
    return (
        a.shape == b.shape
        and a.dtype == b.dtype
        and a.strides == b.strides
        and a.__array_interface__["data"][0] == b.__array_interface__["data"][0]
    )


def lies_as(array: Any, x: np.ndarray) -> bool:
    """Whether ``array`` is an ndarray that lies as ``x`` does."""
    return (
        type(array) is np.ndarray and (array.dtype is x.dtype or array.dtype == x.dtype)
        and array.shape == x.shape and array.strides == x.strides
    )  # fmt: skip


def may_share(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays might share memory; those that own theirs do not."""
    if a.base is None and b.base is None:
        return a is b
    return np.may_share_memory(a, b)
