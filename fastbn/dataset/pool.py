"""Blocks measured by several processes at once, with answers in order."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection, get_context
from typing import Any, TypeVar

__all__ = ["in_order", "processes"]

_J = TypeVar("_J")
_R = TypeVar("_R")

#: Jobs that are handed out at once, for each worker.
AHEAD = 4


def in_order(
    jobs: Iterable[_J], call: Callable[..., _R], arguments: Callable[[_J], tuple[Any, ...] | None],
    executor: Executor | None, at_once: int,
) -> Iterator[tuple[_J, _R | None]]:  # fmt: skip
    """Yield each job and ``call(*arguments(job))``; where arguments is None, None.

    In the order of jobs whoever is done first, and with a bounded number of them under way.
    """
    if executor is None:
        for job in jobs:
            given = arguments(job)
            yield job, None if given is None else call(*given)
        return
    waiting: deque[tuple[_J, Future[_R] | None]] = deque()
    try:
        for job in jobs:
            given = arguments(job)
            waiting.append((job, None if given is None else _submit(executor, call, given)))
            while waiting and (len(waiting) >= at_once or waiting[0][1] is None):
                first, future = waiting.popleft()
                yield first, _result(future)
        while waiting:
            first, future = waiting.popleft()
            yield first, _result(future)
    finally:
        for _, future in waiting:
            if future is not None:
                future.cancel()


def _submit(executor: Executor, call: Callable[..., _R], given: tuple[Any, ...]) -> Future[_R]:
    # Workers are started by this. They inherit that signals are blocked: Ctrl-C in a terminal
    # goes to all processes, and the parent alone answers it.
    if not hasattr(signal, "pthread_sigmask"):
        return executor.submit(call, *given)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return executor.submit(call, *given)
    except BrokenProcessPool as error:
        raise _ended() from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _result(future: Future[_R] | None) -> _R | None:
    try:
        return None if future is None else future.result()
    except BrokenProcessPool as error:
        raise _ended() from error


def _ended() -> Exception:
    return ChildProcessError(
        "a worker process ended before its work did. Where the system was short of memory, take "
        "fewer with workers (--workers). A script that calls this needs `if __name__ == "
        '"__main__":` around its work, or workers=1'
    )


@contextmanager
def processes(workers: int) -> Iterator[Executor | None]:
    """An executor of so many processes, which end with the block; None for one.

    On an exception, and when the parent is killed, they end at once, in the middle of their work:
    each watches a pipe whose other end this process holds.
    """
    if workers == 1:
        yield None
        return
    context = get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    executor = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_begin, initargs=(reader,)
    )
    try:
        yield executor
    except BaseException:
        writer.close()
        raise
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
        writer.close()
        reader.close()


def _begin(reader: Any) -> None:
    """In a worker, first of all."""
    import fastbn

    fastbn.set_num_threads(1)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()


def _watch(reader: Any) -> None:
    connection.wait([reader])
    os._exit(1)
