"""What one rank of `scaling` does, under mpiexec: rank 0 prints what was measured as JSON."""

import json
import statistics
import sys
import time

import numpy as np

import fastbn
from fastbn.distributed import SyncBatchNorm

#: In front of ResNet-50's 53 batch norms: channels, height and width, and how many are alike.
LAYERS = {
    (64, 112): 1, (64, 56): 6, (256, 56): 4, (128, 56): 1, (128, 28): 7, (512, 28): 5,
    (256, 28): 1, (256, 14): 11, (1024, 14): 7, (512, 14): 1, (512, 7): 5, (2048, 7): 4,
}  # fmt: skip
#: Bytes per rank of the allgathers that are timed by themselves, and how often.
MESSAGES, REPEATS = (64, 1024, 16384, 65536), 100


class Echo:
    """A communicator that seems to have many ranks, each with this one's message.

    Collectives cost a copy and nothing else, so what a step takes with it is all but the network.
    """

    def __init__(self, size: int):
        self.size = size

    def Get_rank(self) -> int:
        return 0

    def Get_size(self) -> int:
        return self.size

    def Allgather(self, send, receive) -> None:
        receive.reshape(self.size, -1)[...] = send

    def Alltoall(self, send, receive) -> None:
        receive[...] = send[0]


def step_seconds(make, batch: int, rounds: int, start, slowest) -> float:
    """Seconds that forward and backward of all 53 layers take: of each the median of rounds.

    ``start`` has all ranks begin together; ``slowest`` is the time of the last one.
    """
    total, rng = 0.0, np.random.default_rng(0)
    for (channels, size), number in LAYERS.items():
        x = rng.standard_normal((batch, channels, size, size), np.float32)
        layer, y, dx = make(channels), np.empty_like(x), np.empty_like(x)
        seconds = []
        for _ in range(rounds + 1):
            start()
            begin = time.perf_counter()
            layer(x, out=y)
            layer.backward(y, out=dx)
            seconds.append(slowest(time.perf_counter() - begin))
        total += number * statistics.median(seconds[1:])
    return total


def alone(batch: int, rounds: int, ranks: tuple[int, ...]) -> dict[str, float]:
    """Seconds of a step by batch norm itself, and by one rank of so many but for the network."""
    steps = {"plain": fastbn.BatchNorm2d} | {
        str(n): lambda channels, n=n: SyncBatchNorm(channels, comm=Echo(n)) for n in ranks
    }
    return {
        name: step_seconds(make, batch, rounds, lambda: None, float)
        for name, make in steps.items()
    }  # fmt: skip


def allgather_seconds(comm, nbytes: int) -> float:
    """An allgather of so many bytes per rank: the median of one after another, of the last rank."""
    send, seconds = np.zeros(nbytes, np.uint8), []
    receive = np.empty((comm.Get_size(), nbytes), np.uint8)
    comm.Barrier()
    for _ in range(REPEATS):
        begin = time.perf_counter()
        comm.Allgather(send, receive)
        seconds.append(time.perf_counter() - begin)
    return max(comm.allgather(statistics.median(seconds)))


def together(batch: int, rounds: int) -> dict:
    """What all ranks of the world measure together."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD

    def slowest(seconds):
        return max(comm.allgather(seconds))

    steps = {
        "plain": fastbn.BatchNorm2d, "sync": lambda channels: SyncBatchNorm(channels, comm=comm)
    }  # fmt: skip
    return {
        **{
            name: step_seconds(make, batch, rounds, comm.Barrier, slowest)
            for name, make in steps.items()
        },
        "allgather": {nbytes: allgather_seconds(comm, nbytes) for nbytes in MESSAGES},
        "mpi": MPI.Get_library_version().split("\n")[0].replace("\t", " ").strip(),
        "rank": comm.Get_rank(),
    }


if __name__ == "__main__":
    found = together(int(sys.argv[1]), int(sys.argv[2]))
    if found["rank"] == 0:
        print(json.dumps(found))
