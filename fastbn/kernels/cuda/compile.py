"""The only place that names options of Numba's CUDA target.

Nothing is compiled at import: a kernel is compiled for the types of its first launch. The
formulas of the CPU are wrapped: the same code, in which ``np`` is `scalars`.
"""

import math
import types as python_types
from collections.abc import Callable
from typing import Any

from numba import cuda

try:  # numba-cuda has its own
    from numba.cuda.extending import intrinsic
    from numba.cuda.types import void
except ImportError:
    from numba.core.extending import intrinsic
    from numba.core.types import void

__all__ = ["device", "device_formula", "intrinsic", "kernel", "void"]


def device(function: Callable) -> Any:
    """A function that kernels call."""
    return cuda.jit(device=True)(function)


def kernel(function: Callable) -> Any:
    """A function that is launched on a grid of blocks.

    Without ``fastmath``: this target takes any set of flags as leave to flush tiny numbers to zero
    and to round division badly, and its code for float16 is then refused. It contracts anyway.
    """
    return cuda.jit(function)


@device
def _sqrt(value):
    return math.sqrt(value)


@device
def _maximum(a, b):
    # what is not a number stays so, as with NumPy
    return a if a > b or a != a else b


@device
def _minimum(a, b):
    return a if a < b or a != a else b


@device
def _where(condition, a, b):
    return a if condition else b


#: What formulas know as ``np``, for scalars on the device.
scalars = python_types.ModuleType("scalars")
scalars.sqrt, scalars.maximum, scalars.minimum = _sqrt, _maximum, _minimum  # type: ignore
scalars.where, scalars.inf = _where, math.inf  # type: ignore
_wrapped: dict[Callable, Any] = {}


def device_formula(formula: Callable) -> Any:
    """A formula of `kernels.formulas` for scalars on the device, and all that it calls."""
    if formula not in _wrapped:
        names: dict[str, Any] = {"np": scalars}
        for name in formula.__code__.co_names:
            other = formula.__globals__.get(name)
            if isinstance(other, python_types.FunctionType):
                names[name] = device_formula(other)
        function = python_types.FunctionType(formula.__code__, names, formula.__name__)
        _wrapped[formula] = device(function)
    return _wrapped[formula]
