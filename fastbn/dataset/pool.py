"""Blocks measured by several processes at once, with answers in order.

The processes are new ones that import nothing but fastbn. (Those of `multiprocessing` also run the
script that has started them once more, and are for scripts that are written for that.) Each has
pipes of its own, and a thread here that waits for it: whatever becomes of one, killed in the middle
of an answer too, its pipe says so at once.
"""

from __future__ import annotations

import os
import pickle
import queue
import secrets
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from fastbn._system.threads import set_num_threads

__all__ = ["Workers", "can_start", "in_order", "serve"]

_J = TypeVar("_J")
_R = TypeVar("_R")

#: Jobs that are under way or wait for one before them, for each worker.
AHEAD = 4

#: What a worker runs. Where modules are found is its first message; until then none may be found
#: in the current folder, where `-c` looks first (`-P`, which forbids it, is of Python 3.11).
_PROGRAM = """
import sys
sys.path[:] = [folder for folder in sys.path if folder]
import pickle
sys.path[:] = pickle.load(sys.stdin.buffer)
from fastbn.dataset.pool import serve
serve(pickle.load(sys.stdin.buffer))
"""
#: Set in workers, which start none themselves: a program that takes no Python to run would be
#: started again and again.
_MARK = "FASTBN_WORKER"


def can_start() -> bool:
    """Whether `sys.executable` is a Python that runs what it is told, and not another program."""
    name = os.path.basename(sys.executable or "").lower()
    known = "python" in name or "pypy" in name
    return known and not getattr(sys, "frozen", False) and _MARK not in os.environ


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
                yield first, _answer(future)
        while waiting:
            first, future = waiting.popleft()
            yield first, _answer(future)
    finally:
        for _, future in waiting:
            if future is not None:
                future.cancel()


def _answer(future: Future[_R] | None) -> _R | None:
    return None if future is None else future.result()


class Workers:
    """Processes of one thread each, started when there is work for them.

    They end with the ``with`` block, on an exception in the middle of their work, and when this
    process is killed.
    """

    def __init__(self, number: int) -> None:
        self._max_workers = number
        self._threads = ThreadPoolExecutor(number)
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        self._all: list[subprocess.Popen[bytes]] = []
        self._lock, self._closed = threading.Lock(), False

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exception: object) -> None:
        with self._lock:  # no process starts from here on
            self._closed = True
        for process in self._all:
            process.kill()  # what they have done is told, and they hold nothing
        self._threads.shutdown(wait=True, cancel_futures=True)
        for process in self._all:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with suppress(OSError):  # what was being sent
                    pipe.close()  # type: ignore[union-attr]

    def submit(self, call: Callable[..., _R], *given: Any) -> Future[_R]:
        """As an executor's."""
        return self._threads.submit(self._do, call, given)

    def _do(self, call: Callable[..., Any], given: tuple[Any, ...]) -> Any:
        try:
            try:
                process = self._idle.get_nowait()
            except queue.Empty:
                process = self._start()
            _send(process.stdin, (call, given))
            answer, error = pickle.load(process.stdout)  # type: ignore[arg-type]
        except (EOFError, OSError, pickle.UnpicklingError) as end:
            raise ChildProcessError(
                "a worker process ended before its work did. Where the system was short of memory, "
                "take fewer with workers (--workers)"
            ) from end
        self._idle.put(process)
        if error is not None:
            raise error
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        if _MARK in os.environ:
            raise RuntimeError("a worker process starts no others; take workers=1")
        begin = secrets.token_bytes(16)
        with self._lock:
            if self._closed:
                raise RuntimeError("the workers are gone")
            # Ctrl-C in a terminal goes to a whole group of processes; this one alone answers it
            process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                start_new_session=True, env={**os.environ, _MARK: "1"},
            )  # fmt: skip
            self._all.append(process)
        _send(process.stdin, sys.path)
        _send(process.stdin, begin)
        _skip(process.stdout, begin)
        return process


def _send(pipe: Any, message: Any) -> None:
    pipe.write(pickle.dumps(message))
    pipe.flush()


def _skip(pipe: Any, mark: bytes) -> None:
    """Pass over what was printed before the answers begin, by whatever runs at start-up."""
    last = b""
    while last != mark:
        byte = pipe.read(1)
        if not byte:
            raise EOFError("the process ended")
        last = last[1 - len(mark) :] + byte


def serve(begin: bytes) -> None:
    """What a worker does: answer each message, until nobody is there any more.

    ``begin``: what to write before the first answer.
    """
    set_num_threads(1)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints, the answers stay what they are
    answers.write(begin)
    answers.flush()
    jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(jobs,), daemon=True).start()
    while True:
        call, given = jobs.get()
        try:
            answer: Any = (call(*given), None)
        except Exception as error:
            answer = (None, error)
        _send(answers, answer)


def _listen(jobs: queue.SimpleQueue[Any]) -> None:
    """Hear in the middle of work that the other process has ended, and end too."""
    try:
        while True:
            jobs.put(pickle.load(sys.stdin.buffer))
    except BaseException:
        os._exit(1)
