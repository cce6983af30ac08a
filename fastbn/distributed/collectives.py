"""A communicator, and its collectives with or without a limit on how long ranks wait.

MPI has no such limit: a rank waits for ever for one that makes other calls, or none. With
``FASTBN_RANKS_TIMEOUT`` in the environment of all ranks, fastbn makes non-blocking collectives
and asks whether they are done.
"""

import math
import os
import time
from typing import Any, Protocol, runtime_checkable

import numpy as np

#: Seconds between two looks at a collective that is not done; at first it is asked all the time.
PAUSE, AT_ONCE = 1e-3, 1e-2
#: Collectives that were given up. MPI may still write to their arrays.
_given_up: list[tuple[Any, ...]] = []


@runtime_checkable
class Communicator(Protocol):
    """What is needed of a communicator of mpi4py, such as ``MPI.COMM_WORLD``.

    ``Alltoall(send, receive)`` is used where there is one; ``Iallgather`` and ``Ialltoall`` with
    ``FASTBN_RANKS_TIMEOUT``.
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


def allgather(comm: Any, sent: np.ndarray, received: np.ndarray) -> None:
    """Every rank's ``sent``, in the order of ranks."""
    limit = _timeout()
    if limit is None:
        comm.Allgather(sent, received)
    else:
        _wait(comm.Iallgather(sent, received), limit, sent, received)


def alltoall(comm: Any, sent: np.ndarray, received: np.ndarray) -> None:
    """Row by row of ``sent`` to each rank, and what each rank has for this one."""
    limit = _timeout()
    if limit is None:
        comm.Alltoall(sent, received)
    else:
        _wait(comm.Ialltoall(sent, received), limit, sent, received)


def _timeout() -> float | None:
    """Seconds that ranks wait for each other; None for ever."""
    text = os.environ.get("FASTBN_RANKS_TIMEOUT", "")
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise ValueError(f"FASTBN_RANKS_TIMEOUT must be a positive number of seconds, got {text!r}")
    return seconds


def _wait(request: Any, limit: float, *arrays: np.ndarray) -> None:
    begin = time.monotonic()
    while not request.Test():
        waited = time.monotonic() - begin
        if waited > limit:
            _given_up.append((request, *arrays))
            raise TimeoutError(
                f"not all ranks of comm have come within {limit:g} s (FASTBN_RANKS_TIMEOUT): one "
                "has ended, makes other calls, or is in evaluation; end the program, since ranks "
                "are no longer together (python -m mpi4py ends all ranks if one fails)"
            )
        time.sleep(PAUSE if waited > AT_ONCE else 0)
