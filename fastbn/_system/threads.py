"""How many threads a call may use, and whether it may start any at all.

Numba's threading layers each have a way to end a process: *workqueue* aborts when two
threads run parallel kernels at once, GNU *omp* kills a forked child that runs one after
its parent did. So one parallel kernel runs at a time, and whoever comes meanwhile takes
one thread, which gives the same bits; a forked child stays serial until it asks
for threads, and under omp is refused them.
"""

import math
import operator
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numba
import numpy as np
from numba.core.compiler_lock import global_compiler_lock

from fastbn._system.oversubscription import oversubscribed

__all__ = ["get_num_threads", "set_num_threads"]

#: Held while a parallel kernel runs. Reentrant: whoever runs Python code in the thread
#: that holds it, a signal handler say, runs no kernel at that moment.
_region = threading.RLock()
#: Held while running statistics are updated. Both are new in a forked child, where the
#: thread that held them may not exist.
_update = threading.RLock()
_requested: int | None = None
#: Whether this thread is one of several that share the processors.
_shared = threading.local()
_forked = False
_layer_at_fork: str | None = None


def get_num_threads() -> int:
    """Largest number of threads that a call uses.

    By default the smallest of Numba's number of threads (``NUMBA_NUM_THREADS``), the
    processors this process may run on, the CPU quota of its container, and the
    environment variable ``FASTBN_NUM_THREADS``; in a forked child 1. Small arrays take
    one thread in any case, and large ones do while other processes or threads want the
    processors, unless the number has been set (here or in the environment): so several
    worker processes may share a few cores. Results do not depend on it, to the last bit.

    Examples
    --------
    >>> import fastbn
    >>> fastbn.get_num_threads() >= 1
    True
    """
    if _requested is not None:
        return _requested
    return 1 if _forked else _default()


def set_num_threads(n: int | None) -> None:
    """Set the number of threads that a call on large arrays uses, for the whole process.

    Parameters
    ----------
    n : int or None
        1 to the number of threads that Numba was started with (``NUMBA_NUM_THREADS``,
        by default the number of processors). None: by default, as if nobody had set it.

    Raises
    ------
    TypeError, ValueError
        If ``n`` is not an integer, or out of range.
    RuntimeError
        If more than one is asked for in a forked child whose parent had run threads
        under GNU OpenMP, which would end the child.

    Examples
    --------
    >>> import fastbn
    >>> fastbn.set_num_threads(1)
    >>> fastbn.get_num_threads()
    1
    >>> fastbn.set_num_threads(None)
    """
    global _requested
    if n is None:
        _requested = None
        return
    try:
        if isinstance(n, (bool, np.bool_)):
            raise TypeError
        number = operator.index(n)
    except TypeError:
        raise TypeError(f"the number of threads must be an integer, got {n!r}") from None
    most = _numba_threads()
    if not 1 <= number <= most:
        raise ValueError(
            f"the number of threads must be 1 to {most}, got {number}; a larger limit is set by "
            "the environment variable NUMBA_NUM_THREADS before the first import of numba"
        )
    if number > 1 and _forked and _layer_at_fork == "omp":
        raise RuntimeError(
            "this process was forked from one that had run OpenMP threads, and would be ended "
            "if it ran any; start it with multiprocessing's spawn or forkserver, or set "
            "NUMBA_THREADING_LAYER to workqueue or tbb"
        )
    _requested = number


def for_a_call() -> int:
    """How many threads a call on large arrays takes now.

    One within `one_thread`; else what somebody has set; else as many as there may be, or one while
    the processors are taken.
    """
    if getattr(_shared, "depth", 0):
        return 1
    if _requested is not None:
        return _requested
    most = get_num_threads()
    return 1 if most > 1 and _in_environment() is None and oversubscribed() else most


@contextmanager
def one_thread() -> Iterator[None]:
    """Context in which calls of this thread start no others, whatever somebody has set.

    For tasks of a scheduler that gives work to as many threads as there are processors. Numbers
    that are set for the process would be changed under the feet of tasks beside this one.
    """
    _shared.depth = getattr(_shared, "depth", 0) + 1
    try:
        yield
    finally:
        _shared.depth -= 1


def launch(
    entry: Callable[..., int],
    frame_for: Callable[[int, bool], Any],
    in_place: bool,
    threads: int,
    args: tuple[Any, ...],
) -> int:
    """Call an entry on a frame for so many threads, or for one while another call runs on many."""
    frame = frame_for(threads, in_place)  # compiled before others are kept from running on threads
    if threads < 2:
        return entry(frame, *args)
    region, nested, taken = _region, _region._is_owned(), False  # type: ignore[attr-defined]
    try:
        taken = region.acquire(blocking=False)
        if not taken:
            return entry(frame_for(1, in_place), *args)
        # Numba's own number for this thread is never larger, and takes a microsecond to ask for
        if threads >= _numba_threads() or threads >= (before := numba.get_num_threads()):
            return entry(frame, *args)
        try:
            numba.set_num_threads(threads)
            return entry(frame, *args)
        finally:
            numba.set_num_threads(before)
    finally:  # a Ctrl-C may have come before ``taken`` was set
        if taken or (not nested and region._is_owned()):  # type: ignore[attr-defined]
            region.release()


def _numba_threads() -> int:
    return numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]


def updating() -> threading.RLock:
    """Context in which one thread at a time updates running statistics."""
    return _update


def number_is_from() -> str:
    """What has set the largest number of threads, to be shown."""
    if _requested is not None:
        return "set_num_threads"
    if _forked:
        return "a forked child's one"
    limits = _limits()
    return min(limits, key=limits.__getitem__)


@lru_cache(maxsize=1)
def _default() -> int:
    return min(_limits().values())


def _limits() -> dict[str, int]:
    """Limits of the number of threads; by what sets them, first what somebody chose."""
    limits = {}
    wanted = _in_environment()
    if wanted is not None:
        limits["FASTBN_NUM_THREADS"] = wanted
    if os.environ.get("NUMBA_NUM_THREADS"):
        limits["NUMBA_NUM_THREADS"] = _numba_threads()
    quota = _cgroup_quota()
    if quota is not None:
        limits["the container's CPU quota"] = max(1, math.ceil(quota))
    if hasattr(os, "sched_getaffinity"):
        limits["processors this process may use"] = len(os.sched_getaffinity(0))
    limits.setdefault("processors", _numba_threads())
    return limits


@lru_cache(maxsize=1)
def _in_environment() -> int | None:
    wanted = os.environ.get("FASTBN_NUM_THREADS")
    if wanted is None:
        return None
    if wanted.strip().isdecimal() and int(wanted) >= 1:
        return int(wanted)
    warnings.warn(
        f"FASTBN_NUM_THREADS must be a positive integer, got {wanted!r}; it is ignored",
        RuntimeWarning,
        stacklevel=5,
    )
    return None


def _cgroup_quota(root: str = "/sys/fs/cgroup") -> float | None:
    """Processors that the container may use, by cgroup version 2 or 1; None without a limit."""
    two = _words(f"{root}/cpu.max")
    if len(two) == 2 and two[0] != "max":
        return _ratio(*two)
    quota = _words(f"{root}/cpu/cpu.cfs_quota_us")
    period = _words(f"{root}/cpu/cpu.cfs_period_us")
    if len(quota) == len(period) == 1 and quota[0] != "-1":
        return _ratio(quota[0], period[0])
    return None


def _words(path: str) -> list[str]:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().split()
    except (OSError, ValueError):
        return []


def _ratio(quota: str, period: str) -> float | None:
    try:
        return int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return None


def _before_fork() -> None:
    """Let a compilation in another thread end: its lock would never be free in the child."""
    global _layer_at_fork
    global_compiler_lock.acquire()
    try:
        _layer_at_fork = numba.threading_layer()
    except ValueError:  # no layer has been started
        _layer_at_fork = None


def _after_fork_in_parent() -> None:
    global_compiler_lock.release()


def _after_fork_in_child() -> None:
    global _forked, _requested, _region, _update
    global_compiler_lock.release()
    _forked, _requested = True, None
    _region, _update = threading.RLock(), threading.RLock()


def _forked_before_import() -> bool:
    """Whether OpenMP was started by a process of which this one is only a copy.

    Threads do not survive a fork: a started layer without any is a copy.
    """
    try:
        return numba.threading_layer() == "omp" and len(os.listdir("/proc/self/task")) == 1
    except (ValueError, OSError):
        return False


if _forked_before_import():
    _forked, _layer_at_fork = True, "omp"


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
