"""Compile ahead of the first call, in several processes; for other machines too."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import DTypeLike

from fastbn._system import threads
from fastbn._system.files import writing_to
from fastbn._system.progress import Progress
from fastbn.kernels import cache_reasons, disk_cache, parts, targets
from fastbn.kernels.compile import Unit
from fastbn.kernels.held import BFLOAT16, FLOAT16, held
from fastbn.kernels.processors import features_of
from fastbn.kernels.simd import CONVERTS_FLOAT16
from fastbn.kernels.standardize import parts as standardize_parts

__all__ = ["warmup"]

_Name = TypeVar("_Name", bound=str)
_T = TypeVar("_T")

Layout = Literal["channels_first", "channels_last"]
Mode = Literal["evaluation", "training", "statistics", "norms", "standardize"]

_DTYPES = ("float32", "float64", "float16", "bfloat16")
#: Those that are meant if none are named.
_USUAL = _DTYPES[:2]
_LAYOUTS: dict[Layout, str] = {"channels_first": "first", "channels_last": "last"}
#: An operation by name alone: its kernels are those of `kernels.standardize`.
STANDARDIZE = "standardize"
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
    "standardize": (STANDARDIZE,),
}
_KINDS = {FLOAT16: "float16", BFLOAT16: "bfloat16"}
#: Of "norms", what is walked as the arrays lie: an instance norm's evaluation. For all else the
#: channels come first: those of other arrays are copied so.
_AS_THEY_LIE = ("normalize",)
#: Those that are meant if none are named.
_OF_BATCH_NORM: tuple[Mode, ...] = ("evaluation", "training", "statistics")
#: Units that are worth a process of their own, which takes a second to start.
_WORTH = 4
_WORKER = "from fastbn._call.warmup import compile_as_told; compile_as_told()"
#: Its argument where it compiles for its own processor alone, into whichever folder takes it.
_USUAL_FOLDERS = "-"
_TELLING_NUMBA = "NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"


def warmup(
    dtypes: Iterable[DTypeLike] = _USUAL,
    layouts: Iterable[Layout] = tuple(_LAYOUTS),
    modes: Iterable[Mode] = _OF_BATCH_NORM,
    *,
    into: str | os.PathLike[str] | None = None,
    cpu: str | None = None,
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

    Code for another processor is found by a process on any machine that has all that it makes use
    of, as long as there is none for that machine's own. It is slower (large arrays least, because
    memory is the limit) and may differ in the last bit, as the results of two processors may.

    Parameters
    ----------
    dtypes : iterable of "float32", "float64", "float16", "bfloat16"
        Of the arrays to come; by default the first two.
    layouts : iterable of "channels_first", "channels_last"
        Tables ``(N, C)`` count as channels last.
    modes : iterable of "evaluation", "training", "statistics", "norms", "standardize"
        What will be called: layers in evaluation mode, which is all that a server needs; layers in
        training mode and their gradients, and layers without running statistics in either mode;
        `channel_stats`; group, layer, instance and RMS norm; `standardize` of uint8 and of these
        dtypes into float32. Training includes evaluation and statistics. The default is all of
        batch normalization.
    into : path, optional
        A folder to be filled with all of it, whatever other folders hold: to be copied into an
        image, and named there by the environment variable ``FASTBN_CACHE_DIR``. It is made if
        need be. By default the first that takes files: the folder ``FASTBN_CACHE_DIR``, the folder
        ``fastbn`` in ``NUMBA_CACHE_DIR``, one beside the package's sources, the user's.
    cpu : str, optional
        "native" compiles for this machine's processor, though there be code for another that runs
        here. "generic" is for any of this architecture (without float16 on x86). A name that LLVM
        has for an x86 processor, such as "x86-64-v3" (every server since 2015 or so: AVX2),
        "x86-64-v4" (AVX-512) or "znver4", is for all that have its instructions. By default it is
        for this machine, and what runs here and is in the cache counts.
    progress : bool
        Show a progress bar on stderr.

    Raises
    ------
    ValueError, TypeError
        If a dtype, a layout, a mode or a processor is none of these.
    OSError
        If ``into`` cannot be made or written to.
    RuntimeError
        If the processes that fill ``into``, or compile for ``cpu``, come to no good end.

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
    units = _units_of_modes(checked, chosen, of_modes)
    _refuse_float16(checked, cpu)
    elsewhere = into is not None or cpu is not None
    if not elsewhere:
        _warn_if_nothing_is_kept(units)
    with Progress(len(units), "compiling") if progress else nullcontext() as shown:
        advance = shown.advance if shown else lambda: None
        if elsewhere:
            _fill(list(units), into, cpu, advance)
        else:
            compile_units(units, advance)


def _warn_if_nothing_is_kept(units: dict[str, Unit]) -> None:
    if not disk_cache.can_save() and not all(unit.stored() for unit in units.values()):
        warnings.warn(
            "compiled code cannot be kept, and each process compiles anew: none of these folders "
            f"can be written to: {', '.join(disk_cache.folders())}; set FASTBN_CACHE_DIR to one",
            RuntimeWarning,
            stacklevel=3,
        )


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


def _units_of_modes(
    dtypes: list[np.dtype], layouts: list[str], modes: list[tuple[str, ...]]
) -> dict[str, Unit]:
    """What calls of some modes need, on arrays of some dtypes and layouts."""
    units: dict[str, Unit] = {}
    for names in modes:
        for operation in parts.OPERATIONS:
            if operation in names:
                fixed = names is _MODES["norms"] and operation not in _AS_THEY_LIE
                units |= _units(dtypes, ["first"] if fixed else layouts, [operation])
        if STANDARDIZE in names:
            units |= _standardize_units(dtypes, layouts)
    return units


def _standardize_units(dtypes: Iterable[np.dtype], layouts: Iterable[str]) -> dict[str, Unit]:
    kinds = ["uint8", *(_KINDS.get(dtype, dtype.name) for dtype in dtypes)]
    found = standardize_parts.units(kinds, layouts)
    return {unit.name: unit for unit in found}


def _units(
    dtypes: Iterable[np.dtype], layouts: Iterable[str], operations: Iterable[str]
) -> dict[str, Unit]:
    return {
        unit.name: unit
        for dtype in dtypes
        for layout in layouts
        for unit in parts.units(dtype, layout, operations)
    }


def _refuse_float16(dtypes: list[np.dtype], cpu: str | None) -> None:
    """LLVM would call functions that nobody has, and end the process."""
    converts = CONVERTS_FLOAT16 if cpu is None else targets.converts_float16(features_of(cpu))
    if FLOAT16 in dtypes and not converts:
        raise ValueError(
            "dtypes: float16 needs a processor with F16C, which cpu="
            f'{cpu!r} does not promise; take cpu="x86-64-v3", or leave float16 out'
        )


def compile_units(units: dict[str, Unit], advance: Callable[[], object]) -> None:
    """Compile or load all units; `advance` is called for each."""
    missing = [name for name, unit in units.items() if not unit.stored()]
    if missing:
        cache_reasons.tell(missing[0])
    count = min(threads.get_num_threads(), len(missing) // _WORTH)
    if count >= 2 and disk_cache.can_save():
        for name in _compiled_elsewhere(missing, count, dict(os.environ)):
            units.pop(name).build()  # which now only loads it
            advance()
    for unit in units.values():
        unit.build()
        advance()


def _fill(
    names: list[str], into: str | os.PathLike[str] | None, cpu: str | None,
    advance: Callable[[], object],
) -> None:  # fmt: skip
    """Compile for a processor, into one folder: all of it in other processes."""
    environment, folder = dict(os.environ), _USUAL_FOLDERS
    if cpu is not None:
        for name in _TELLING_NUMBA:
            environment.pop(name, None)
        if cpu != "native":
            environment |= zip(_TELLING_NUMBA, (cpu, features_of(cpu)), strict=True)
    if into is not None:
        folder = os.path.abspath(into)
        with writing_to(into):  # before a minute's work
            os.makedirs(folder, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
    elif not disk_cache.can_save():
        raise OSError(
            f"none of these folders can be written to: {', '.join(disk_cache.folders())}; "
            "name one with into= or FASTBN_CACHE_DIR"
        )
    missing = set(names)
    count = max(min(threads.get_num_threads(), len(names) // _WORTH), 1)
    for name in _compiled_elsewhere(names, count, environment, folder):
        missing.discard(name)
        advance()
    if missing:
        raise RuntimeError(
            f"{len(missing)} of {len(names)} kernels were not compiled, such as {min(missing)}: "
            f"the processes that compile for cpu={cpu!r} have ended early, or could not be started "
            f"with {sys.executable!r}"
        )


def _compiled_elsewhere(
    names: list[str], count: int, environment: dict[str, str], *arguments: str
) -> Iterator[str]:
    """Compile in processes of their own, and yield what is in the disk cache then."""
    # the executable of a frozen program is that program, and would start itself
    if getattr(sys, "frozen", False) or not sys.executable:
        return
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-W", "ignore", "-c", _WORKER, *arguments]
    todo: SimpleQueue[str] = SimpleQueue()
    done: SimpleQueue[str | None] = SimpleQueue()
    for name in names:
        todo.put(name)
    processes: list[subprocess.Popen] = []
    for _ in range(count):
        serve = threading.Thread(
            target=_serve, args=(command, environment, todo, done, processes), daemon=True
        )
        serve.start()
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
    command: list[str], environment: dict[str, str], todo: SimpleQueue[str],
    done: SimpleQueue[str | None], processes: list[subprocess.Popen],
) -> None:  # fmt: skip
    """Hand names to one process until there are none, or it has ended; what is left is left."""
    try:
        with suppress(OSError, Empty), subprocess.Popen(
            command,
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
    """What such a process does: compile the units that it is told, one by one.

    With an argument it does so for its own processor alone, and into the folder of that name.
    """
    for folder in sys.argv[1:]:
        targets.take_ours_alone()
        if folder != _USUAL_FOLDERS:
            disk_cache.use_alone(Path(folder))
    dtypes = [
        dtype for dtype in map(_checked_dtype, _DTYPES) if dtype != FLOAT16 or CONVERTS_FLOAT16
    ]
    units = _units(dtypes, _LAYOUTS.values(), parts.OPERATIONS)
    units |= _standardize_units(dtypes, _LAYOUTS.values())
    for line in sys.stdin:
        unit = units[line.strip()]
        if not unit.stored():  # another program may warm the same cache up
            unit.build()
        print(line.strip(), flush=True)
