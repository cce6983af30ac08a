"""The only place that names options of Numba's CUDA target.

Nothing is compiled at import: a kernel is compiled for the types of its first launch. The
formulas of the CPU are wrapped: the same code, in which ``np`` is `scalars`.
"""

import dis
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
def _exp(value):
    return math.exp(value)


@device
def _expm1(value):
    return math.expm1(value)


@device
def _tanh(value):
    return math.tanh(value)


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
vars(scalars).update(
    sqrt=_sqrt, exp=_exp, expm1=_expm1, tanh=_tanh, maximum=_maximum, minimum=_minimum,
    where=_where, inf=math.inf,
)  # fmt: skip
_wrapped: dict[tuple[Callable, Callable], Any] = {}


def device_formula(formula: Callable, number: Callable = float) -> Any:
    """A formula for scalars on the device, and all that it calls.

    ``number`` is the type of its constants: with float64's, all that float32 meets is float64.
    """
    if (formula, number) in _wrapped:
        return _wrapped[formula, number]

    def known(value):
        if isinstance(value, python_types.FunctionType):
            return device_formula(value, number)
        return number(value) if isinstance(value, float) else value

    code, names = formula.__code__, {"np": scalars}
    for each in dis.get_instructions(code):  # co_names has attributes too: tanh of np.tanh
        if each.opname == "LOAD_GLOBAL" and each.argval in formula.__globals__:
            names.setdefault(each.argval, known(formula.__globals__[each.argval]))
    code = code.replace(co_consts=tuple(map(known, code.co_consts)))
    cells = tuple(python_types.CellType(known(c.cell_contents)) for c in formula.__closure__ or ())
    function = python_types.FunctionType(code, names, formula.__name__, None, cells)
    _wrapped[formula, number] = device(function)
    return _wrapped[formula, number]
