"""What a call leaves behind for later ones like it: plan and entry, by shape and strides.

`work` writes it when a call has succeeded, `prepared` reads it.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fastbn._call.plan import Plan
from fastbn._call.run import ABSENT
from fastbn.kernels import parts

#: Forget everything when there are more shapes than this: somebody has a new one every time.
MOST = 4096


class Known(NamedTuple):
    """How arrays of one shape, strides and dtype go through one operation."""

    dtype: np.dtype
    channels: int
    absent: np.ndarray
    plan: Plan
    entry: Callable[..., int]


#: By operation, then by (shape, strides, dtype, axis).
known: dict[str, dict[tuple, Known]] = {name: {} for name in parts.OPERATIONS}


def remember(
    operation: str, axis: int, plan: Plan, entry: Callable[..., int], *arrays: np.ndarray
) -> None:
    """Keep how ``arrays`` went through the operation, if they are plain and alike.

    Not those of 16 bits, whose parameters are of another dtype.
    """
    first, of_operation = arrays[-1], known[operation]
    dtype = np.dtype(first.dtype.type)  # NumPy's own: unpickled arrays have another of the kind
    key = first.shape, first.strides, dtype, axis
    if (
        dtype.itemsize == 2
        or key in of_operation
        or not all(a.flags.carray and a.dtype == dtype for a in arrays)
    ):
        return
    if len(of_operation) >= MOST:
        of_operation.clear()
    of_operation[key] = Known(dtype, plan.walk.channels, ABSENT[dtype], plan, entry)


def forget() -> None:
    """Let every call go the long way again."""
    for of_operation in known.values():
        of_operation.clear()
