"""The only place that names Numba options.

`kernel` turns one body into a serial and a parallel kernel; `inner` compiles a
function that kernels call. Nothing is compiled before its first call.
"""

import types
from collections.abc import Callable
from typing import Any

import numba

#: No fastmath: kernels spell out their order of operations (see `vector`).
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}

#: Only `prange` is parallel: the other transformations cost compile time and buy nothing.
_PRANGE_ONLY = {
    "comprehension": False,
    "reduction": False,
    "inplace_binop": False,
    "setitem": False,
    "numpy": False,
    "stencil": False,
    "fusion": False,
    "prange": True,
}


def inner(body: Callable) -> Callable:
    """Compile ``body`` for use inside kernels."""
    return numba.njit(**_OPTIONS)(body)


class Kernel:
    """One body, compiled for one thread (``serial``) and for many (``parallel``)."""

    def __init__(self, body: Callable) -> None:
        self.name = body.__name__
        self.serial = _cached(_renamed(body, "serial"), **_OPTIONS)
        self.parallel = _cached(_renamed(body, "parallel"), parallel=_PRANGE_ONLY, **_OPTIONS)

    def __repr__(self) -> str:
        return f"Kernel({self.name})"


def kernel(body: Callable) -> Kernel:
    """Decorator: make ``body`` a `Kernel`."""
    return Kernel(body)


def _renamed(body: Callable, target: str) -> types.FunctionType:
    """Copy ``body`` under its own name: Numba's disk cache tells kernels apart by it alone."""
    name = f"{body.__name__}_{target}"
    copy = types.FunctionType(
        body.__code__, body.__globals__, name, body.__defaults__, body.__closure__
    )
    copy.__qualname__ = name
    copy.__doc__ = body.__doc__
    copy.__module__ = body.__module__
    return copy


def _cached(body: Callable, **options: Any) -> Callable:
    try:
        return numba.njit(cache=True, **options)(body)
    except RuntimeError:  # no directory that a cache could be written to
        return numba.njit(**options)(body)
