"""How memory holds values, and what they are computed in.

Kernels know float32 and float64, and two kinds of 16 bits by stand-ins that NumPy and Numba have:
float16 is held as int16, bfloat16 as uint16. Both are computed in float32.
"""

import numpy as np

FLOAT16, BFLOAT16 = np.dtype(np.int16), np.dtype(np.uint16)
_FLOAT32 = np.dtype(np.float32)
_HELD = {"float16": FLOAT16, "bfloat16": BFLOAT16}


def held(dtype: np.dtype) -> np.dtype:
    """As what kernels read memory of a dtype."""
    return _HELD.get(dtype.name, dtype) if dtype.itemsize == 2 else dtype  # a name takes a while


def computed(dtype: np.dtype) -> np.dtype:
    """What values of a dtype, or of its stand-in, are computed in; parameters have that dtype."""
    return _FLOAT32 if dtype.itemsize == 2 else dtype
