"""A small network, trained by all ranks together and by one process: run under mpiexec.

Every rank also does the work of one process, and compares. Exit status 0 if all is right.
"""

import hashlib

import numpy as np
from mpi4py import MPI

import fastbn
from fastbn.distributed import SyncBatchNorm, convert_sync_batchnorm

COMM = MPI.COMM_WORLD
RANK, RANKS = COMM.Get_rank(), COMM.Get_size()
SAMPLES, STEPS, RATE = 48, 20, 0.05


def bounds(step):
    """Where step ``step`` cuts the batch: unevenly, with rank 1 empty in every other one."""
    if RANKS == 1:
        return [0, SAMPLES]
    cuts = np.sort(np.random.default_rng(step).integers(0, SAMPLES + 1, RANKS - 1))
    if step % 2 and RANKS > 2:
        cuts[1] = cuts[0]
    return [0, *cuts.tolist(), SAMPLES]


class Network:
    """Linear, batch norm, linear; the gradient of a sum of squares."""

    def __init__(self, norm, dtype):
        rng = np.random.default_rng(0)
        self.norm = norm
        self.one = rng.normal(0, 0.5, (5, 8)).astype(dtype)
        self.two = rng.normal(0, 0.5, (8, 2)).astype(dtype)

    def gradients(self, x, target):
        hidden = x @ self.one
        normal = self.norm(hidden)
        error = (normal @ self.two - target) / SAMPLES
        of_norm = self.norm.backward(error @ self.two.T)
        return [x.T @ of_norm.x, normal.T @ error, of_norm.weight, of_norm.bias]

    def step(self, gradients):
        arrays = [self.one, self.two, self.norm.weight, self.norm.bias]
        for array, gradient in zip(arrays, gradients, strict=True):
            array -= RATE * gradient

    def arrays(self):
        return {"one": self.one, "two": self.two, **self.norm.state_dict()}


def summed(gradient):
    """Over ranks, in the order of ranks: the same bits everywhere."""
    parts = np.empty((RANKS, *gradient.shape), gradient.dtype)
    COMM.Allgather(np.ascontiguousarray(gradient), parts)
    return parts.sum(axis=0)


def same_bits(network):
    """All arrays of all ranks."""
    digest = hashlib.sha256(b"".join(a.tobytes() for a in network.arrays().values())).hexdigest()
    assert len(set(COMM.allgather(digest))) == 1


def train(dtype, make, tolerance):
    whole = Network(fastbn.BatchNorm1d(8, dtype=dtype, activation="relu"), dtype)
    spread = Network(make(dtype), dtype)
    for step in range(STEPS):
        rng = np.random.default_rng(step)
        x = rng.normal(2, 3, (SAMPLES, 5)).astype(dtype)
        target = rng.normal(size=(SAMPLES, 2)).astype(dtype)
        own = slice(*bounds(step)[RANK : RANK + 2])
        whole.step(whole.gradients(x, target))
        spread.step([summed(gradient) for gradient in spread.gradients(x[own], target[own])])
        same_bits(spread)
    for name, array in whole.arrays().items():
        np.testing.assert_allclose(spread.arrays()[name], array, rtol=tolerance, atol=tolerance)


def made(dtype):
    return SyncBatchNorm(8, dtype=dtype, activation="relu", comm=COMM)


def converted(dtype):
    plain = fastbn.BatchNorm1d(8, dtype=dtype, activation="relu")
    return convert_sync_batchnorm({"bn": plain}, COMM)["bn"]


def layer_by_layer(channels, dtype):
    """Output and gradient against one process; messages of many channels go in slices."""
    rng = np.random.default_rng(channels)
    x, dy = (rng.normal(1, 2, (SAMPLES, channels, 3)).astype(dtype) for _ in "ab")
    whole = fastbn.BatchNorm1d(channels, dtype=np.float64)
    y, gradients = whole(x), whole.backward(dy)
    layer = SyncBatchNorm(
        channels, dtype=np.float64, comm=COMM, parameter_gradients="global"
    )  # fmt: skip
    own = slice(*bounds(1)[RANK : RANK + 2])
    tolerance = 16 * float(np.finfo(dtype).eps)
    np.testing.assert_allclose(layer(x[own]), y[own], rtol=tolerance, atol=tolerance)
    found = layer.backward(dy[own])
    np.testing.assert_allclose(found.x, gradients.x[own], rtol=tolerance, atol=tolerance)
    for name in ("weight", "bias"):
        of_layer, of_whole = (getattr(g, name) for g in (found, gradients))
        np.testing.assert_allclose(of_layer, of_whole, rtol=tolerance, atol=100 * tolerance)
        digests = COMM.allgather(hashlib.sha256(of_layer.tobytes()).hexdigest())
        assert len(set(digests)) == 1


def in_groups():
    """Each half of the ranks has statistics of its own."""
    half = COMM.Split(RANK % 2, RANK)
    layer = SyncBatchNorm(3, comm=half, dtype=np.float64)
    x = np.random.default_rng(RANK).normal(RANK, 1, (4, 3))
    layer(x)
    of_group = np.concatenate(half.allgather(x))
    np.testing.assert_allclose(layer.running_mean, 0.1 * of_group.mean(0), rtol=1e-12)


train(np.float64, made, 1e-11)
train(np.float64, converted, 1e-11)
train(np.float32, made, 1e-3)
layer_by_layer(16, np.float32)
layer_by_layer(16, np.float64)
layer_by_layer(5003, np.float32)
layer_by_layer(5003, np.float64)
in_groups()
everybody = COMM.allgather(True)
if RANK == 0:
    print("fine on", len(everybody))
