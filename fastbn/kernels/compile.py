"""The only place that names Numba options, and where its disk cache is made safe to rely on.

`kernel` turns one body into a serial and a parallel kernel; `inner` and `inlined` compile
functions that kernels call. Nothing is compiled before its first call.
"""

import contextlib
import hashlib
import os
import threading
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numba
from numba.core.runtime import rtsys

#: Seconds to wait for another process at the cache before going without.
_PATIENCE = 5.0

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
    return numba.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **_OPTIONS)(body)


def inlined(body: Callable) -> Callable:
    """`inner` for what runs once per row: LLVM finds it too long to inline by itself."""
    return numba.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, forceinline=True, **_OPTIONS)(
        body
    )


class Kernel:
    """One body, compiled for one thread (``serial``) and for many (``parallel``)."""

    def __init__(self, body: Callable) -> None:
        self.name = body.__name__
        self._body = body
        self.repeat = Repeat(never_compiled, never_compiled)
        self.serial = _cached(_renamed(body, "serial"), **_OPTIONS)
        self.parallel = _cached(_renamed(body, "parallel"), parallel=_PRANGE_ONLY, **_OPTIONS)

    def learn(self) -> None:
        """Let `repeat` take all types that either kernel has been compiled for by now."""
        if not numba.config.DISABLE_JIT:  # plain Python would take arrays of any kind
            pairs = zip(self.repeat, (self.serial, self.parallel), strict=True)
            self.repeat = Repeat(*(_never_compiling(self._body, *pair) for pair in pairs))

    def incomplete(self) -> list[Callable[[], object]]:
        """What compiles those signatures that only one of the two kernels has so far."""
        if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
            return []
        pair = self.serial, self.parallel
        known = [set(k.signatures) for k in pair]  # type: ignore[attr-defined]
        return [
            partial(target.compile, signature)  # type: ignore[attr-defined]
            for target, missing in zip(
                pair, (known[1] - known[0], known[0] - known[1]), strict=True
            )
            for signature in missing
        ]

    def __repr__(self) -> str:
        return f"Kernel({self.name})"


class Repeat(NamedTuple):
    """The kernels for types that they have been compiled for: others are a TypeError."""

    serial: Callable[..., Any]
    parallel: Callable[..., Any]


def never_compiled(*args: Any) -> None:
    """Stands for a kernel that has not been compiled for any types."""
    raise TypeError("this kernel has not been compiled yet")


def _never_compiling(body: Callable, known: Any, dispatcher: Any) -> Callable[..., Any]:
    """A dispatcher with what ``dispatcher`` has compiled: ``known``, or a new one if it lacks any.

    No lock, which a forked child or a signal handler might find held for ever.
    """
    try:
        overloads = list(dispatcher.overloads.values())
    except (KeyError, RuntimeError):  # another thread is just adding one
        return known
    if len(overloads) == (0 if known is never_compiled else len(known.overloads)):
        return known
    repeat: Any = numba.njit(**_OPTIONS)(body)
    for compiled in overloads:
        repeat.add_overload(compiled)
    repeat.disable_compile()
    return repeat


def kernel(body: Callable) -> Kernel:
    """Decorator: make ``body`` a `Kernel`."""
    return Kernel(body)


def _renamed(body: Callable, target: str) -> types.FunctionType:
    """Copy ``body`` under a name of its own, by which the disk cache knows it.

    The name alone tells the serial kernel from the parallel one, and the digest in it
    tells kernels from those of another version: Numba looks at the file of the body,
    and not at those of the functions that it calls.
    """
    name = f"{body.__name__}_{target}_{_sources_digest()}"
    copy = types.FunctionType(
        body.__code__, body.__globals__, name, body.__defaults__, body.__closure__
    )
    copy.__qualname__ = name
    copy.__doc__ = body.__doc__
    copy.__module__ = body.__module__
    return copy


@lru_cache(maxsize=1)
def _sources_digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        with contextlib.suppress(OSError):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _cached(body: Callable, **options: Any) -> Callable:
    try:
        dispatcher: Any = numba.njit(cache=True, **options)(body)
    except RuntimeError:  # no directory that a cache could be written to
        dispatcher = numba.njit(**options)(body)
    if hasattr(dispatcher, "_cache"):  # not without the JIT
        dispatcher._cache = _Cache(dispatcher._cache)
        dispatcher.compile = partial(_in_own_thread, dispatcher.compile)
    return dispatcher


def _in_own_thread(compile_signature: Callable, *args: Any) -> Any:
    """Compile where no Ctrl-C can reach, which leaves Numba unable to compile ever again.

    Python delivers it to the main thread alone. That gets its KeyboardInterrupt while it
    waits; the compilation goes on, and the next call finds it done.
    """
    if threading.current_thread() is not threading.main_thread():
        return compile_signature(*args)
    future: Future = Future()

    def work() -> None:
        try:
            future.set_result(compile_signature(*args))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name="fastbn compiler").start()
    return future.result()


class _Cache:
    """Numba's disk cache, except that its failures cost a compilation and never a call.

    A full or read-only disk, a truncated file, another process at work on the same
    entry: then the kernel is compiled, and perhaps not stored.
    """

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        # Numba's own `load_overload` first gets ready to compile, which takes a quarter of a
        # second and imports SciPy where there is one. What is loaded needs the run time alone.
        load = getattr(self._cache, "_load_overload", self._cache.load_overload)
        try:
            rtsys.initialize(target_context)
            found = load(signature, target_context)
        except Exception:
            self._forget()
            return None
        if found is not None and tuple(found.signature.args) != tuple(_arguments(signature)):
            self._forget()
            return None
        return found

    def save_overload(self, signature: Any, data: Any) -> None:
        with contextlib.suppress(Exception), self._locked():
            self._cache.save_overload(signature, data)

    def _forget(self) -> None:
        with contextlib.suppress(Exception), self._locked():
            self._cache.flush()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes out while the index is read, changed and written back."""
        try:
            import fcntl
        except ImportError:  # Windows: `load_overload` notices a mix-up
            yield
            return
        os.makedirs(self._cache.cache_path, exist_ok=True)
        with open(os.path.join(self._cache.cache_path, "fastbn.lock"), "a") as file:
            deadline = time.monotonic() + _PATIENCE
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.01)
            try:
                yield
            finally:  # closing is not enough: a child forked meanwhile has the file too
                fcntl.flock(file, fcntl.LOCK_UN)


def _arguments(signature: Any) -> Any:
    return signature.args if hasattr(signature, "args") else signature
