"""Streams of one call: what waits for whom, and memory that is lent until kernels are done."""

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from numba import cuda

from fastbn._call.device_arrays import DeviceArray, as_stream, current
from fastbn._call.places import simulated

_lock = threading.RLock()  # an owner that is freed may call
#: By GPU: an event and the arrays that are lent until then, in the order of the calls.
_lent: dict[int, deque[tuple[Any, list[Any]]]] = {}


@contextmanager
def in_order(
    x: DeviceArray, *others: DeviceArray, cached: int | None = None, written: Iterable[int] = ()
) -> Iterator[None]:
    """Launch on the stream of x: after what the owners of the others, and a cache, wait for.

    Streams that know what is ``written``, or that will free it, go on afterwards.
    """
    follow(x.stream, {x.stream if cached is None else cached, *(a.stream for a in others)})
    try:
        yield
    finally:
        for stream in set(written):
            follow(stream, {x.stream})
        _keep(x.stream, [array for array in (x, *others) if array.lent])


def follow(stream: int, others: Iterable[int]) -> None:
    """What a stream is asked for from now on comes after what the others were asked for so far."""
    for other in set(others) - {stream}:
        event_on(other).wait(as_stream(stream))


def event_on(stream: int) -> Any:
    """Happens when all is done that a stream was asked for so far."""
    event = cuda.event(**({} if simulated() else {"timing": False}))
    event.record(as_stream(stream))
    return event


def finish(stream: int) -> None:
    """Wait until all is done that a stream was asked for."""
    event_on(stream).synchronize()


def _keep(stream: int, arrays: list[DeviceArray]) -> None:
    """Hold arrays until the stream has come so far: their owners may free them at once."""
    lent = _lent.get(current())
    if lent is None:
        if not arrays:
            return
        lent = _lent.setdefault(current(), deque())
    done = []  # freed without the lock: an owner may do anything then
    with _lock:
        while lent and lent[0][0].query():
            done.append(lent.popleft())
        if arrays:
            lent.append((event_on(stream), arrays))


class Turns:
    """Kernels whose blocks wait for each other: no more than two at once on a GPU.

    Two blocks fit on each multiprocessor, and a tile has at most as many as there are
    multiprocessors. So two such kernels leave room for a block that one of them waits for; three
    might not. One stream runs its kernels one by one. From the second stream on, each kernel waits
    for the one before, but for those that the first stream was asked for until then.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.first: Any = None
        self.several, self.last = False, None  # an event, once there are several streams

    @contextmanager
    def one(self, stream: int) -> Iterator[None]:
        """Launch one such kernel on a stream."""
        who = stream, threading.get_ident()  # each thread may have a default stream of its own
        with self.lock:
            self.first = self.first or who
            self.several = self.several or who != self.first
            if self.last is not None:
                self.last.wait(as_stream(stream))
            yield
            if self.several:
                self.last = event_on(stream)


@lru_cache(maxsize=16)
def turns_of(gpu: int) -> Turns:
    """Those of a GPU."""
    return Turns()
