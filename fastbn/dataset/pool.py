"""Blocks measured by several processes at once, with answers in order.

Each worker has a pipe of its own, and one job at a time. So whatever becomes of one, killed in the
middle of an answer too, its pipe says so at once. (Under `ProcessPoolExecutor` all answers go
through one pipe, and half an answer is waited for without end.)
"""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from multiprocessing import connection, get_context, parent_process
from typing import Any, TypeVar

__all__ = ["Workers", "in_order"]

_J = TypeVar("_J")
_R = TypeVar("_R")

#: Jobs that are under way or wait for one before them, for each worker.
AHEAD = 4


def in_order(
    jobs: Iterable[_J], call: Callable[..., _R], arguments: Callable[[_J], tuple[Any, ...] | None],
    where: Executor | Workers | None,
) -> Generator[tuple[_J, _R | None], None, None]:  # fmt: skip
    """Yield each job and ``call(*arguments(job))``; where arguments is None, None.

    In the order of jobs whoever is done first, and with a bounded number of them under way.
    """
    if where is None:
        for job in jobs:
            given = arguments(job)
            yield job, None if given is None else call(*given)
        return
    at_once = AHEAD * getattr(where, "_max_workers", 16)
    waiting: deque[tuple[_J, Future[_R] | None]] = deque()
    try:
        for job in jobs:
            given = arguments(job)
            waiting.append((job, None if given is None else where.submit(call, *given)))
            while waiting and (len(waiting) >= at_once or waiting[0][1] is None):
                first, future = waiting.popleft()
                yield first, _result(where, future)
        while waiting:
            first, future = waiting.popleft()
            yield first, _result(where, future)
    finally:
        for _, future in waiting:
            if future is not None:
                future.cancel()


def _result(where: Executor | Workers, future: Future[_R] | None) -> _R | None:
    if future is None:
        return None
    if isinstance(where, Workers):
        where.work_until(future)
    return future.result()


class Workers:
    """Processes that are started when the first job comes; all happens in the thread that waits.

    They run one thread each, and end with the ``with`` block, on an exception in the middle of
    their work. When this process is killed they end too.
    """

    def __init__(self, number: int) -> None:
        self._max_workers = number
        self._processes: list[Any] = []
        self._idle: list[Any] = []
        self._busy: dict[Any, Future[Any]] = {}
        self._jobs: deque[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = deque()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self._processes:
            process.kill()  # what they have done is told, and they hold nothing
        for process in self._processes:
            process.join()
            process.close()
        for pipe in (*self._idle, *self._busy):
            pipe.close()

    def submit(self, call: Callable[..., _R], *given: Any) -> Future[_R]:
        """As an executor's."""
        future: Future[_R] = Future()
        self._jobs.append((future, call, given))
        if not self._idle and len(self._processes) < self._max_workers:
            self._start()
        self._hand_out()
        return future

    def work_until(self, future: Future[Any]) -> None:
        """Take answers and hand out jobs until there is this one's."""
        while not future.done():
            ready: list[Any] = connection.wait(list(self._busy))
            for pipe in ready:
                try:
                    answer, error = pipe.recv()
                except (EOFError, OSError) as end:
                    raise _ended() from end
                done = self._busy.pop(pipe)
                self._idle.append(pipe)
                if error is None:
                    done.set_result(answer)
                else:
                    done.set_exception(error)
            self._hand_out()

    def _hand_out(self) -> None:
        while self._idle and self._jobs:
            future, *job = self._jobs.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            pipe = self._idle.pop()
            self._busy[pipe] = future
            try:
                pipe.send(job)
            except OSError as end:
                raise _ended() from end

    def _start(self) -> None:
        context = get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=_work, args=(there,), daemon=True)
        with _without_interrupts():
            process.start()
        there.close()
        self._processes.append(process)
        self._idle.append(here)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes that are started meanwhile inherit that Ctrl-C is blocked.

    In a terminal it goes to all processes, and the parent alone answers it.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from multiprocessing import resource_tracker  # which there is where there are such signals

    resource_tracker.ensure_running()  # else it starts with the first process, and unblocks them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ended() -> Exception:
    return ChildProcessError(
        "a worker process ended before its work did. Where the system was short of memory, take "
        "fewer with workers (--workers). A script that calls this needs `if __name__ == "
        '"__main__":` around its work, or workers=1'
    )


def _work(pipe: Any) -> None:
    """In a worker."""
    import fastbn

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    fastbn.set_num_threads(1)
    threading.Thread(target=_watch, daemon=True).start()
    with suppress(EOFError, OSError):  # nobody is there any more
        while True:
            call, given = pipe.recv()
            try:
                answer: Any = (call(*given), None)
            except Exception as error:
                answer = (None, error)
            pipe.send(answer)


def _watch() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
