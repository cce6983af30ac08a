"""Samples one block after the other, contiguous: for norms whose statistics are each sample's own.

A block that lies in one piece is taken as it is, another is copied: no temporary is larger.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from fastbn._call import arguments, overlap
from fastbn._system import outputs, processor
from fastbn.kernels.held import computed

#: Least size of a block that several operations go over, and its part of the last-level cache.
#: Smaller ones would stay in cache too, but starting an operation costs as much as a few 100 KB.
BLOCK_BYTES, CACHE_SHARE = 2 * 1024 * 1024, 8


def block_bytes() -> int:
    """Bytes of such a block."""
    return max(BLOCK_BYTES, processor.last_level_cache() // CACHE_SHARE)


def checked_input(x: Any) -> np.ndarray:
    """``x`` as a plain array of numbers."""
    x = arguments.as_input(x)
    arguments.check_dtype("x", x.dtype)
    return x


def checked_output(out: Any, like: np.ndarray, inputs: dict[str, Any]) -> tuple[Any, np.ndarray]:
    """What the caller gets, and the plain array that is written; a new one without ``out``."""
    dtype = arguments.native(like.dtype)
    if out is None:
        new = outputs.new_output(like, dtype)
        return new, new
    return out, arguments.check_out(out, like.shape, dtype, inputs)


class Gradient(NamedTuple):
    """A gradient that has been checked, and where that of x goes."""

    dy: np.ndarray
    returned: Any
    dx: np.ndarray


def checked_gradient(dy: Any, x: np.ndarray, overwritten: bool, out: Any) -> Gradient:
    """``dy`` and ``out`` of a backward whose forward had ``x``."""
    dy = arguments.as_array("dy", dy)
    arguments.check_gradient(dy, x, overwritten)
    returned, dx = checked_output(out, x, {"dy": dy, "x": x})
    return Gradient(dy, returned, dx)


def blocks(
    size: int | None, written: np.ndarray, *read: np.ndarray
) -> Iterator[tuple[slice, list[np.ndarray]]]:
    """Which samples, and their part of each array: those that are read, then the one written.

    In blocks of about ``size`` bytes, or all at once where all arrays are contiguous and ``size``
    is None. A block has the dtype that values are computed in.
    """
    arrays, dtype = (*read, written), computed(written.dtype)
    whole = all(_plain(array, dtype) for array in arrays)
    samples, each = len(written), written.nbytes // max(1, len(written))
    if whole and (size is None or written.nbytes <= size):
        yield slice(0, samples), list(arrays)
        return
    step = max(1, (size or block_bytes()) // max(1, each))
    for start in range(0, samples, max(1, step)):
        some = slice(start, min(samples, start + step))
        given = [array[some] for array in arrays]
        block = [a if _plain(a, dtype) else np.array(a, dtype, order="C") for a in given[:-1]]
        target = given[-1] if _plain(given[-1], dtype) else np.empty(given[-1].shape, dtype)
        yield some, [*block, target]
        if target is not given[-1]:
            with np.errstate(over="ignore", under="ignore"):
                np.copyto(given[-1], target, casting="same_kind")


def _plain(array: np.ndarray, dtype: np.dtype) -> bool:
    return array.flags.c_contiguous and array.flags.aligned and array.dtype == dtype


def overwrites(out: np.ndarray, x: np.ndarray) -> bool:
    """Whether ``out`` is ``x`` itself."""
    return x.size > 0 and overlap.same_elements(out, x)
