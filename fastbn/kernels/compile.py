"""The only place that names Numba's options; with `simd`, the only one that uses its insides.

========================  =====================================================================
`part`                    native code that runs on a frame, reached through its address
`entry`                   what Python calls: puts addresses of arrays into a frame, runs a part
`inner`, `inlined`        functions that both are made of
========================  =====================================================================

Numba compiles a function again into each function that calls it, at every level. So heavy pieces
are parts: compiled once for a dtype, never linked into one another, and called through addresses
that the plan writes into the frame. Nothing is compiled before it is needed.
"""

import contextlib
import functools
import hashlib
import inspect
import pickle
import re
import threading
import types as python_types
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numba
import numpy as np
from numba import prange, types
from numba.core.ccallback import CFunc
from numba.core.compiler import CompileResult
from numba.core.errors import TypingError
from numba.core.runtime import rtsys
from numba.core.serialize import dumps
from numba.extending import overload, register_jitable

from fastbn.kernels import cache_reasons, disk_cache, targets
from fastbn.kernels.held import computed
from fastbn.kernels.simd import call

#: No fastmath: kernels spell out their order of operations (see `simd`). It is said, since
#: functions have their caller's where nothing is said, and users' code may call them.
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": False}

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

#: Without the JIT kernels run as plain Python.
PLAIN: bool = numba.config.DISABLE_JIT  # type: ignore[attr-defined]

_F = TypeVar("_F", bound=Callable)

#: Functions by name, with the code that each was made of.
_functions: dict[str, tuple[Any, Callable]] = {}
_compiled: list[Any] = []  # keeps native code alive for as long as its address is known


# --- functions inside of parts and entries --------------------------------------------------------


def inner(body: Callable) -> Callable:
    """Compile ``body`` for use inside parts and entries."""
    return _inner(body)


def inlined(body: Callable) -> Callable:
    """`inner` for what runs once per row: LLVM finds it too long to inline by itself."""
    return _inner(body, forceinline=True)


def _inner(body: Any, **options: Any) -> Callable:
    name = _name_of(body)
    known = _functions.get(name)
    if PLAIN:
        return body
    if known is None:
        options = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, **options, **_OPTIONS}
        known = _functions[name] = body.__code__, numba.njit(**options)(_renamed(body, name))
    if known[0] is not body.__code__:
        raise RuntimeError(f"two functions of kernels have the name {name}")
    return known[1]


def _name_of(body: Any) -> str:
    """The body's place in the sources, the processor, and the names of all that it closes over.

    Native code finds functions by name, also that of other processes from the disk cache: what
    a maker makes of different things needs different names. What it makes of the same is the same.
    Two processors pass vectors in registers of two sizes, and code for both may be loaded.
    """
    cells = [cell.cell_contents for cell in body.__closure__ or ()]
    inside = [getattr(value, "__name__", repr(value)) for value in cells]
    place = f"{body.__module__}.{body.__qualname__}".removeprefix("fastbn.kernels.")
    made_of = hashlib.sha256(repr((*targets.processor(), inside)).encode()).hexdigest()[:8]
    return re.sub(r"\W+", "_", place.replace(".<locals>", "")) + made_of


def _renamed(body: Any, name: str) -> Any:
    copy = python_types.FunctionType(
        body.__code__, body.__globals__, name, body.__defaults__, body.__closure__
    )
    copy.__qualname__, copy.__module__, copy.__doc__ = name, body.__module__, body.__doc__
    return copy


# --- functions for the compiled code of users -----------------------------------------------------


def offered(body: Callable, check: Callable[..., None]) -> Callable[[_F], _F]:
    """Decorator: calls of ``function``, in compiled code and in Python, run ``body``.

    Both take the same arguments, by the same names. ``check`` gets their Numba types, and raises
    TypeError for those that ``body`` does not take.
    """

    def offer(function: _F) -> _F:
        parameters = inspect.signature(function)

        @functools.wraps(function)
        def from_python(*arguments: Any, **named: Any) -> Any:
            given = parameters.bind(*arguments, **named).args
            check(*map(_type_of, given))
            if PLAIN:
                with np.errstate(all="ignore"):
                    return body(*given)
            return _for_python(body)(*given)

        def chosen(*kinds: Any) -> Callable:
            try:
                check(*kinds)
            except TypeError as error:
                raise TypingError(str(error)) from None
            return body

        if not PLAIN:
            typed = [p.replace(annotation=p.empty) for p in parameters.parameters.values()]
            chosen.__signature__ = inspect.Signature(typed)  # type: ignore[attr-defined]
            overload(from_python, jit_options=_OPTIONS)(chosen)
        return from_python

    return offer


def offered_inside(function: Callable) -> Callable:
    """Have compiled code call a function of Python's, which stays what it is."""
    return function if PLAIN else register_jitable(**_OPTIONS)(function)


def _type_of(value: Any) -> Any:
    """Numba's type of a value; of what it has none for, Python's."""
    try:
        return numba.typeof(value)
    except Exception:
        return type(value)


@functools.cache
def _for_python(body: Callable) -> Callable:
    return numba.njit(**_OPTIONS)(body)


class Unit(NamedTuple):
    """Native code that is compiled by itself."""

    name: str
    stored: Callable[[], bool]  # is it in the disk cache?
    build: Callable[[], object]  # compile or load it


# --- parts ----------------------------------------------------------------------------------------


class Part:
    """``body(frame, task, like)``, compiled once for each dtype, which only ``like`` tells."""

    def __init__(self, body: Callable, name: str) -> None:
        self.name = name
        self._body = body
        self._addresses: dict[np.dtype, int] = {}

    def address(self, dtype: np.dtype) -> int:
        """Where the native code for ``dtype`` begins; compiled or loaded at the first call."""
        found = self._addresses.get(dtype)
        if found is None:
            found = self._addresses[dtype] = self._build(dtype)
        return found

    @property
    def inside(self) -> Callable:
        """The body as a function inside other compiled code."""
        return inner(self._body)

    def unit(self, dtype: np.dtype) -> Unit:
        """The part for ``dtype``, to be compiled ahead."""
        stored = partial(_is_stored, self._name(dtype), _part_signature(dtype).args)
        return Unit(self._name(dtype), stored, partial(self.address, dtype))

    def _name(self, dtype: np.dtype) -> str:
        return f"{self.name}_{dtype.char}"

    def _build(self, dtype: np.dtype) -> int:
        if PLAIN:
            like = np.empty(0, dtype)
            return _plain_address(lambda frame, task: self._body(frame, task, like))
        body = _renamed(self._body, self._name(dtype))
        return _native(body, _part_signature(dtype), _OPTIONS)

    def __repr__(self) -> str:
        return f"Part({self.name})"


def _part_signature(dtype: np.dtype) -> Any:
    return types.void(types.int64, types.int64, types.CPointer(numba.from_dtype(dtype)))


def part(name: str) -> Callable[[Callable], Part]:
    """Decorator: make ``body(frame, task, like)`` a `Part`."""
    return lambda body: Part(body, name)


def loop_address() -> int:
    """Where the one loop begins that runs tasks on several threads."""
    if not _loop:
        options = {**_OPTIONS, "parallel": _PRANGE_ONLY}
        address = _plain_address(_run_tasks) if PLAIN else _native(_run_tasks, _LOOP, options)
        _loop.append(address)
    return _loop[0]


def loop_unit() -> Unit:
    """That loop, to be compiled ahead."""
    return Unit("loop", partial(_is_stored, _run_tasks.__name__, _LOOP.args), loop_address)


_LOOP = types.void(types.int64, types.int64, types.int64)
_loop: list[int] = []


def _run_tasks(part, frame, tasks):
    """Run a part on every task, in any order, on several threads."""
    for task in prange(tasks):
        call(part, frame, task)


def _plain_address(body: Callable) -> int:
    from fastbn.kernels.simd import python

    return python.address_of_body(body)


def _native(body: Callable, signature: Any, options: dict[str, Any]) -> int:
    """Address of ``body`` in native code. `numba.cfunc` takes no cache but its own."""
    function = CFunc(body, (signature.args, signature.return_type), {}, options)
    function._cache = cache = _Cache(body.__name__)
    _uninterrupted(partial(cache.around, function.compile))
    _compiled.append(function)
    return function.address


# --- entries --------------------------------------------------------------------------------------


class Entry:
    """What Python calls, compiled once for each pair of dtypes: of x, of running statistics."""

    def __init__(self, body: Callable, kinds: Callable) -> None:
        self.name = body.__name__
        self._body, self._kinds = body, kinds
        self._known: dict[tuple, Callable[..., int]] = {}
        self._built: dict[str, Callable[..., int]] = {}

    def of(self, x: np.dtype, running: np.dtype) -> Callable[..., int]:
        """The entry for flat arrays; of any other type or flags they are a TypeError."""
        found = self._known.get((x, running))
        if found is None:
            name, _ = self._signature(x, running)  # which some pairs share
            found = self._built.get(name)
            if found is None:
                found = self._plain(x, running) if PLAIN else self._build(x, running)
            self._known[x, running] = self._built[name] = found
        return found

    def unit(self, x: np.dtype, running: np.dtype) -> Unit:
        """The entry for two dtypes, to be compiled ahead."""
        name, signature = self._signature(x, running)
        return Unit(name, partial(_is_stored, name, signature), partial(self.of, x, running))

    def _signature(self, x: np.dtype, running: np.dtype) -> tuple[str, tuple]:
        kinds = self._kinds(x, computed(x), running)
        letters = "".join(np.dtype(kind).char for kind in kinds).replace("?", "b")
        return f"{self.name}_{letters}", tuple(map(_argument_type, kinds))

    def _plain(self, x: np.dtype, running: np.dtype) -> Callable[..., int]:
        """The body itself, which refuses what compiled code refuses."""
        kinds = self._kinds(x, computed(x), running)

        def checked(*arguments: Any) -> int:
            for kind, value in zip(kinds, arguments, strict=True):
                array = not isinstance(kind, type)
                if array and not (value.ndim == 1 and value.flags.carray and value.dtype == kind):
                    raise TypeError(f"{self.name} takes flat writable arrays of {kind}")
            return self._body(*arguments)

        return checked

    def _build(self, x: np.dtype, running: np.dtype) -> Any:
        name, signature = self._signature(x, running)
        dispatcher: Any = numba.njit(**_OPTIONS)(_renamed(self._body, name))
        dispatcher._cache = cache = _Cache(name)
        _uninterrupted(partial(cache.around, partial(dispatcher.compile, signature)))
        dispatcher.disable_compile()
        return dispatcher


def _argument_type(kind: Any) -> Any:
    if isinstance(kind, type):
        return numba.typeof(kind())
    return numba.from_dtype(kind)[::1]


def entry(kinds: Callable[[Any, Any, Any], tuple]) -> Callable[[Callable], Entry]:
    """Decorator: make ``body`` an `Entry`; ``kinds(x, parameter, running)`` says what it takes."""
    return lambda body: Entry(body, kinds)


# --- compiling and keeping ------------------------------------------------------------------------


def _uninterrupted(compile_it: Callable[[], Any]) -> None:
    """Compile where no Ctrl-C can reach, which leaves Numba unable to compile ever again.

    Python delivers it to the main thread alone. That gets its KeyboardInterrupt while it waits; the
    compilation goes on, and where there is a disk cache the next call finds it done.
    """
    if threading.current_thread() is not threading.main_thread():
        compile_it()
        return
    future: Future = Future()

    def work() -> None:
        try:
            compile_it()
            future.set_result(None)
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name="fastbn compiler").start()
    future.result()


class _Cache:
    """What a dispatcher asks for compiled code.

    Numba's own cache knows a function by its file and line, and cannot tell apart what one maker
    has made; it locks nothing, and does not look into folders that it cannot write to.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = contextlib.ExitStack()  # from when nothing was found until it is compiled

    def around(self, compile_it: Callable[[], Any]) -> None:
        """Compile, and let others do so whatever comes of it."""
        with self._lock:
            compile_it()

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        if disk_cache.sources_digest() is None:
            return None
        found = self._load(signature, target_context)
        if found is None:
            with contextlib.suppress(Exception):
                cache_reasons.tell(self._name, targets.digests(signature))
            lock = disk_cache.compiling(self._name, next(targets.digests(signature)))
            self._lock.enter_context(lock)
            found = self._load(signature, target_context)  # what another process has compiled
            if found is not None:
                self._lock.close()
        return found

    def _load(self, signature: Any, target_context: Any) -> Any:
        for digest in targets.digests(signature):
            content = disk_cache.load(self._name, digest)
            if content is not None:
                with contextlib.suppress(Exception):
                    # Numba would first get ready to compile, which takes a quarter of a second and
                    # imports SciPy where there is one. What is loaded needs the run time alone.
                    rtsys.initialize(target_context)
                    return CompileResult._rebuild(target_context, *pickle.loads(content))
        return None

    def save_overload(self, signature: Any, result: Any) -> None:
        if disk_cache.sources_digest() is None:
            return
        with self._lock, contextlib.suppress(Exception):
            content, digest = dumps(result._reduce()), next(targets.digests(signature))
            folder = disk_cache.save(self._name, digest, content)
            if folder is not None:
                targets.record(folder)


def _is_stored(name: str, arguments: Any) -> bool:
    return PLAIN or any(disk_cache.holds(name, each) for each in targets.digests(arguments))
