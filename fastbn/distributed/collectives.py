"""A communicator, and its collectives with or without a limit on how long ranks wait.

MPI has no such limit: a rank waits for ever for one that makes other calls, or none. So fastbn
makes non-blocking collectives and asks whether they are done, for `LIMIT` seconds unless
``FASTBN_RANKS_TIMEOUT`` says otherwise; always, since MPI matches no blocking collective with one
of these, and ranks that were told different limits could not tell each other. Forward and backward
of 64 to 2048 channels took 2 and 4 ranks of one machine 1 to 4 % longer for it.

What was given up is still under way to MPI: a later collective of this rank would meet an earlier
one of the others, and give wrong numbers. So there is none on that communicator any more.
"""

import math
import os
import time
from typing import Any, Protocol, runtime_checkable

import numpy as np

#: Seconds that ranks wait for each other by default, and what says otherwise.
LIMIT, VARIABLE = 600.0, "FASTBN_RANKS_TIMEOUT"
#: Seconds between two looks at a collective that is not done; at first it is asked all the time.
PAUSE, AT_ONCE = 1e-3, 1e-2
#: Communicators whose ranks are no longer together.
_lost: list[Any] = []
#: Collectives that were given up. MPI may still write to their arrays.
_given_up: list[tuple[Any, ...]] = []


@runtime_checkable
class Communicator(Protocol):
    """What is needed of a communicator of mpi4py, such as ``MPI.COMM_WORLD``.

    ``Alltoall(send, receive)`` is used where there is one. ``Iallgather`` and ``Ialltoall`` are
    taken instead where there are, because only they can be given up.
    """

    def Get_rank(self) -> int:
        """Which rank this process is, from 0."""

    def Get_size(self) -> int:
        """How many ranks there are."""

    def Allgather(self, sendbuf: Any, recvbuf: Any, /) -> None:
        """Every rank's buffer to all ranks."""


def check_comm(comm: Any) -> Any:
    """``comm`` itself, or an error that says what is one."""
    expected = "expected a communicator of mpi4py, such as MPI.COMM_WORLD"
    if comm is None:
        raise TypeError(
            f"comm is None, {expected}; on one process alone, take BatchNorm1d, 2d or 3d"
        )
    if isinstance(comm, type) or not isinstance(comm, Communicator):
        kind = comm.__name__ if isinstance(comm, type) else type(comm).__name__
        raise TypeError(f"comm must have Get_rank, Get_size and Allgather, got {kind}; {expected}")
    if not comm:  # mpi4py's COMM_NULL
        raise ValueError(
            "comm is a null communicator: this process is not one of its ranks; make layers only "
            "where Split or Create has given a communicator"
        )
    is_inter = getattr(comm, "Is_inter", None)
    if is_inter is not None and is_inter():
        raise ValueError(f"comm connects two groups of ranks, {expected}; comm.Merge() makes one")
    return comm


def can_ask(comm: Any) -> bool:
    """Whether it has collectives that can be given up."""
    return hasattr(comm, "Iallgather") and hasattr(comm, "Ialltoall")


def limit_for(comm: Any) -> float:
    """Seconds that ranks wait for each other; infinity for ever."""
    text = os.environ.get(VARIABLE, "")
    if not text:
        return LIMIT if can_ask(comm) else math.inf
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError(
            f"{VARIABLE} must be a positive number of seconds, or 0 for no limit, got {text!r}"
        )
    if seconds and not can_ask(comm):
        raise TypeError(
            f"{VARIABLE} is {text}, and comm has no Iallgather and Ialltoall to give up: it is a "
            f"{type(comm).__name__}; unset the variable, or take a communicator of mpi4py"
        )
    return seconds or math.inf


def allgather(comm: Any, sent: np.ndarray, received: np.ndarray, limit: float) -> None:
    """Every rank's ``sent``, in the order of ranks, within ``limit`` seconds."""
    _collective(comm, "Allgather", sent, received, limit)


def alltoall(comm: Any, sent: np.ndarray, received: np.ndarray, limit: float) -> None:
    """Row by row of ``sent`` to each rank, and what each rank has for this one."""
    _collective(comm, "Alltoall", sent, received, limit)


def _collective(comm: Any, name: str, sent: np.ndarray, received: np.ndarray, limit: float) -> None:
    if _lost and comm in _lost:
        raise RuntimeError(
            "an earlier exchange on this communicator was given up, so its ranks are no longer "
            "together and statistics would be wrong; end the program and start it again"
        )
    request = None
    try:
        if can_ask(comm):
            request = getattr(comm, f"I{name.lower()}")(sent, received)
            _wait(request, limit)
        else:
            getattr(comm, name)(sent, received)
    except BaseException:  # the limit, MPI's error, or the user
        _lost.append(comm)
        _given_up.append((request, sent, received))
        raise


def _wait(request: Any, limit: float) -> None:
    begin = time.monotonic()
    while not request.Test():
        waited = time.monotonic() - begin
        if waited > limit:
            raise TimeoutError(
                f"not all ranks of comm have come within {limit:g} s ({VARIABLE}): one has ended, "
                "makes other calls, or is in evaluation; end the program, since ranks are no "
                "longer together (python -m mpi4py ends all ranks if one fails)"
            )
        if waited > AT_ONCE:
            time.sleep(PAUSE)
        else:
            _yield()


#: Another process of this processor may go on: not `time.sleep(0)`, which takes the 50 us and more
#: by which the system lets timers be late.
_yield = getattr(os, "sched_yield", lambda: None)
