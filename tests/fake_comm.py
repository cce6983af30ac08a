"""A communicator whose ranks are threads of this process, for tests without MPI."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

#: Seconds that a rank waits for the others before the test fails.
PATIENCE = 60


class Threads:
    """What the ranks have in common."""

    def __init__(self, size, late=None):
        self.size, self.late = size, late
        self.barrier = threading.Barrier(size, timeout=PATIENCE)
        self.slots = [None] * size
        self.collectives = self.nbytes = 0
        self.lock, self.begun = threading.Lock(), {}


class FakeComm:
    """One rank's side: the part of mpi4py's interface that fastbn uses."""

    def __init__(self, threads, rank):
        self.threads, self.rank = threads, rank

    def Get_rank(self):
        return self.rank

    def Get_size(self):
        return self.threads.size

    def _all(self, send):
        shared = self.threads
        if shared.late is not None:
            time.sleep(shared.late(self.rank))
        shared.slots[self.rank] = np.array(send)
        if shared.barrier.wait() == 0:
            shared.collectives += 1
            shared.nbytes += send.nbytes
        found = list(shared.slots)
        shared.barrier.wait()
        return found

    def meet(self):
        """Wait for all ranks; no collective of fastbn's."""
        self.threads.barrier.wait()

    def Allgather(self, send, receive):
        for row, sent in zip(receive.reshape(self.threads.size, -1), self._all(send), strict=True):
            _received(row, sent.ravel())

    def Alltoall(self, send, receive):
        for row, sent in zip(receive, self._all(send), strict=True):
            _received(row, sent[self.rank])


class AskedComm(FakeComm):
    """With collectives that return at once and are asked whether they are done, as MPI's are.

    The n-th of a rank belongs to the n-th of each other, whatever they are of.
    """

    def __init__(self, threads, rank):
        super().__init__(threads, rank)
        self.made = 0

    def Iallgather(self, send, receive):
        return self._begin(send, receive.reshape(self.threads.size, -1), slice(None))

    def Ialltoall(self, send, receive):
        return self._begin(send, receive, self.rank)

    def _begin(self, send, receive, own):
        with self.threads.lock:
            sent = self.threads.begun.setdefault(self.made, {})
            sent[self.rank] = np.array(send)
        self.made += 1
        return Request(self.threads.size, sent, receive, own)


class Request:
    """A collective under way."""

    def __init__(self, size, sent, receive, own):
        self.size, self.sent, self.receive, self.own = size, sent, receive, own

    def Test(self):
        time.sleep(0)  # other threads may go on
        if len(self.sent) < self.size:
            return False
        for rank, row in enumerate(self.receive):
            _received(row, self.sent[rank][self.own].ravel())
        return True


def _received(place, sent):
    """Bytes, whatever they mean; a message may be shorter than the place for it."""
    assert sent.nbytes <= place.nbytes, "message truncated"
    place.view(np.uint8)[: sent.nbytes] = sent.view(np.uint8)


def on_ranks(size, program, late=None, kind=FakeComm):
    """What ``program(comm)`` returns on each rank, an exception included; and the `Threads`."""
    shared = Threads(size, late)

    def run(rank):
        try:
            return program(kind(shared, rank))
        except Exception as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size))), shared


def values(found):
    """Of `on_ranks`, where no rank may have raised."""
    answers, _ = found
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return answers
