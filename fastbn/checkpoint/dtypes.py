"""Values out of a buffer, by the names that torch gives dtypes.

NumPy has no bfloat16 and no float8; they come from `ml_dtypes`. Where that is not installed,
bfloat16 becomes float32, which holds each of its values.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

#: How values lie in a file; all are little-endian.
_STORED = {
    "float64": "<f8", "float32": "<f4", "float16": "<f2", "bfloat16": "<u2",
    "int64": "<i8", "int32": "<i4", "int16": "<i2", "int8": "|i1",
    "uint64": "<u8", "uint32": "<u4", "uint16": "<u2", "uint8": "|u1", "bool": "|u1",
    "complex64": "<c8", "complex128": "<c16",
    "float8_e4m3fn": "|u1", "float8_e5m2": "|u1", "float8_e4m3fnuz": "|u1",
    "float8_e5m2fnuz": "|u1",
}  # fmt: skip
NAMES = frozenset(_STORED)


def size_of(name: str) -> int:
    """Bytes of a value."""
    return np.dtype(_STORED[name]).itemsize


def values_of(
    buffer: Any, at: int, name: str, shape: Sequence[int], steps: Sequence[int] | None = None
) -> np.ndarray:
    """A copy of the values from byte ``at`` on; ``steps`` in values, None: one after another."""
    size = size_of(name)
    strides = None
    if steps is not None:  # the step over a single value may be any number
        strides = tuple(
            step * size if n > 1 else size for n, step in zip(shape, steps, strict=True)
        )
    if 0 in shape:  # its first value may lie at the end of the file
        stored = np.empty(shape, _STORED[name])
    else:
        stored = np.ndarray(shape, _STORED[name], buffer, at, strides)
    if name == "bool":  # other bytes than 0 and 1 make no valid boolean of NumPy
        return stored != 0
    stored = np.array(stored, stored.dtype.newbyteorder("="), order="C")
    return _named(stored, name) if name.startswith(("bfloat", "float8")) else stored


def _named(stored: np.ndarray, name: str) -> np.ndarray:
    try:
        import ml_dtypes
    except ImportError:
        if name == "bfloat16":  # the upper half of a float32
            return (stored.astype(np.uint32) << 16).view(np.float32)
        raise ImportError(
            f"values of dtype {name} need the package ml_dtypes: pip install ml_dtypes"
        ) from None
    return stored.view(getattr(ml_dtypes, name))
