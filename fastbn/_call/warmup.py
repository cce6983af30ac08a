"""Compile ahead of the first call, in several processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import DTypeLike

from fastbn._system import threads
from fastbn._system.progress import Progress
from fastbn.kernels import disk_cache, parts
from fastbn.kernels.compile import Unit
from fastbn.kernels.held import BFLOAT16, held

__all__ = ["warmup"]

_Name = TypeVar("_Name", bound=str)
_T = TypeVar("_T")

Layout = Literal["channels_first", "channels_last"]
Mode = Literal["evaluation", "training", "statistics", "norms"]

_DTYPES = ("float32", "float64", "float16", "bfloat16")
#: Those that are meant if none are named.
_USUAL = _DTYPES[:2]
_LAYOUTS: dict[Layout, str] = {"channels_first": "first", "channels_last": "last"}
#: By mode, the operations of `kernels.parts`. A training call whose ``out`` lies otherwise than x
#: takes its statistics and then normalizes.
_MODES: dict[Mode, tuple[str, ...]] = {
    "evaluation": ("normalize",),
    "training": ("normalize", "forward", "backward", "frozen_backward", "moments"),
    "statistics": ("moments",),
    "norms": (
        "normalize",
        "forward",
        "group_forward",
        "backward",
        "group_backward",
        "moments",
        "row_forward",
        "row_gradient",
    ),
}
#: Those that are meant if none are named.
_OF_BATCH_NORM: tuple[Mode, ...] = ("evaluation", "training", "statistics")
#: Units that are worth a process of their own, which takes a second to start.
_WORTH = 4
_WORKER = "from fastbn._call.warmup import compile_as_told; compile_as_told()"


def warmup(
    dtypes: Iterable[DTypeLike] = _USUAL,
    layouts: Iterable[Layout] = tuple(_LAYOUTS),
    modes: Iterable[Mode] = _OF_BATCH_NORM,
    *,
    progress: bool = True,
) -> None:
    """Compile kernels now, and store them in the disk cache for later processes.

    A server calls it at its start, an image build once. As many processes as there may be threads
    share the work, and what is in the cache is only loaded. On two free cores (Xeon, 2026)::

        warmup(["float32"], ["channels_first"], ["evaluation"])     2.4 s
        warmup(["float32"], modes=["evaluation"])                   3.0 s
        warmup(["float32"], ["channels_first"])                     4.8 s
        warmup()                                                   12   s
        warmup(), with all of it in the cache                       0.6 s

    How much native code there is is bounded: no shape, stride or flag of an array adds any.

    Parameters
    ----------
    dtypes : iterable of "float32", "float64", "float16", "bfloat16"
        Of the arrays to come; by default the first two.
    layouts : iterable of "channels_first", "channels_last"
        Tables ``(N, C)`` count as channels last.
    modes : iterable of "evaluation", "training", "statistics", "norms"
        What will be called: layers in evaluation mode, which is all that a server needs; layers in
        training mode and their gradients, and layers without running statistics in either mode;
        `channel_stats`; group, layer, instance and RMS norm. Training includes evaluation and
        statistics. The default is all of batch normalization.
    progress : bool
        Show a progress bar on stderr.

    Raises
    ------
    ValueError, TypeError
        If a dtype, a layout or a mode is none of these.

    Warns
    -----
    RuntimeWarning
        If there is no folder in which compiled code can be kept.

    Examples
    --------
    >>> import fastbn
    >>> fastbn.warmup(["float32"], ["channels_first"], ["evaluation"], progress=False)
    """
    checked = [_checked_dtype(dtype) for dtype in _as_list("dtypes", dtypes)]
    chosen = _chosen("layouts", layouts, _LAYOUTS)
    of_modes = _chosen("modes", modes, _MODES)
    operations = [name for name in parts.OPERATIONS if any(name in names for names in of_modes)]
    units = _units(checked, chosen, operations)
    if not disk_cache.can_save() and not all(unit.stored() for unit in units.values()):
        warnings.warn(
            "compiled code cannot be kept, and each process compiles anew: none of these folders "
            f"can be written to: {', '.join(disk_cache.folders())}; set NUMBA_CACHE_DIR to one",
            RuntimeWarning,
            stacklevel=2,
        )
    if not progress:
        compile_units(units, lambda: None)
        return
    with Progress(len(units), "compiling") as shown:
        compile_units(units, shown.advance)


def _chosen(name: str, values: Iterable[_Name], known: dict[_Name, _T]) -> list[_T]:
    """What is known of each of the values, or ValueError."""
    listed = _as_list(name, values)
    for value in listed:
        if not (isinstance(value, str) and value in known):
            raise ValueError(f"{name} must be among {', '.join(known)}, got {value!r}")
    return [known[value] for value in listed]


def _as_list(name: str, values: Iterable) -> list:
    if isinstance(values, (str, type, np.dtype)):
        raise TypeError(f"{name} must be a list, got {values!r}; [{values!r}] is one")
    return list(values)


def _checked_dtype(dtype: DTypeLike) -> np.dtype:
    """How memory holds a dtype."""
    if isinstance(dtype, str) and dtype == "bfloat16":  # NumPy knows it with ml_dtypes alone
        return BFLOAT16
    try:
        found = np.dtype(dtype)
    except Exception:  # strings are parsed, and fail in many ways
        raise TypeError(f"dtypes must be among {', '.join(_DTYPES)}, got {dtype!r}") from None
    if found.name not in _DTYPES:
        raise ValueError(f"dtypes must be among {', '.join(_DTYPES)}, got {dtype!r}")
    return held(found)


def _units(
    dtypes: Iterable[np.dtype], layouts: Iterable[str], operations: Iterable[str]
) -> dict[str, Unit]:
    return {
        unit.name: unit
        for dtype in dtypes
        for layout in layouts
        for unit in parts.units(dtype, layout, operations)
    }


def compile_units(units: dict[str, Unit], advance: Callable[[], object]) -> None:
    """Compile or load all units; `advance` is called for each."""
    missing = [name for name, unit in units.items() if not unit.stored()]
    for name in _compiled_elsewhere(missing):
        units.pop(name).build()  # which now only loads it
        advance()
    for unit in units.values():
        unit.build()
        advance()


def _compiled_elsewhere(names: list[str]) -> Iterator[str]:
    """Compile in processes of their own, and yield what is in the disk cache then."""
    count = min(threads.get_num_threads(), len(names) // _WORTH)
    # the executable of a frozen program is that program, and would start itself
    if count < 2 or getattr(sys, "frozen", False) or not sys.executable:
        return
    if not disk_cache.can_save():
        return
    todo: SimpleQueue[str] = SimpleQueue()
    done: SimpleQueue[str | None] = SimpleQueue()
    for name in names:
        todo.put(name)
    processes: list[subprocess.Popen] = []
    for _ in range(count):
        threading.Thread(target=_serve, args=(todo, done, processes), daemon=True).start()
    try:
        while count:
            finished = done.get()
            if finished is None:
                count -= 1
            else:
                yield finished
    finally:
        with suppress(Empty):  # after a Ctrl-C nothing more is handed out
            while True:
                todo.get_nowait()
        for process in processes:  # a file that is half written is none
            process.terminate()


def _serve(
    todo: SimpleQueue[str], done: SimpleQueue[str | None], processes: list[subprocess.Popen]
) -> None:
    """Hand names to one process until there are none, or it has ended; what is left is left."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        with suppress(OSError, Empty), subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _WORKER],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, env=environment,
        ) as process:  # fmt: skip
            processes.append(process)
            assert process.stdin is not None
            assert process.stdout is not None
            while True:
                name = todo.get_nowait()
                print(name, file=process.stdin, flush=True)
                if process.stdout.readline().strip() != name:
                    break
                done.put(name)
    finally:
        done.put(None)


def compile_as_told() -> None:
    """What such a process does: compile the units that it is told, one by one."""
    every = {name: None for names in _MODES.values() for name in names}
    units = _units(map(_checked_dtype, _DTYPES), _LAYOUTS.values(), every)
    for line in sys.stdin:
        unit = units[line.strip()]
        if not unit.stored():  # another program may warm the same cache up
            unit.build()
        print(line.strip(), flush=True)
