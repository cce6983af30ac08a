"""Something is wrong on the last rank: all ranks raise, and can go on. Run under mpiexec."""

import os
import sys

import numpy as np
import pytest
from mpi4py import MPI

from fastbn.distributed import SyncBatchNorm, exchange

COMM = MPI.COMM_WORLD
RANK, LAST = COMM.Get_rank(), COMM.Get_size() - 1
X = np.random.default_rng(RANK).normal(size=(4, 6)).astype(np.float32)
if "slices" in sys.argv:
    exchange.LARGEST = 0


def raises(on_last, elsewhere, call):
    """``call(wrong)`` raises the one error on the last rank and the other on the others."""
    expected, text = on_last if RANK == LAST else elsewhere
    with pytest.raises(expected, match=text):
        call(RANK == LAST)


def check():
    layer = SyncBatchNorm(6, comm=COMM, on_nonfinite="raise")
    other = SyncBatchNorm(6, comm=COMM, on_nonfinite="raise")
    refused = RuntimeError, f"rank {LAST} has refused its part"
    dtype = ValueError, "dtype float64"
    raises(
        (ValueError, "7 channels"), refused,
        lambda wrong: layer(np.ones((4, 7), np.float32) if wrong else X),
    )  # fmt: skip
    raises((TypeError, "astype"), refused, lambda wrong: layer(X.astype(int) if wrong else X))
    raises((ValueError, "NaN"), refused, lambda wrong: layer(X * np.float32("nan") if wrong else X))
    raises(dtype, dtype, lambda wrong: layer(X.astype(float) if wrong else X))
    assert layer.num_batches_tracked == 0
    layer(X)
    other(X)
    raises(
        (ValueError, "dy has shape"), refused, lambda wrong: layer.backward(X[:2] if wrong else X)
    )
    different = RuntimeError, "another layer"
    raises(different, different, lambda wrong: (other if wrong else layer)(X))
    different = RuntimeError, "its backward"
    raises(different, different, lambda wrong: (layer.backward if wrong else layer)(X))
    different = ValueError, "ranks must make layers alike"
    raises(different, different, lambda wrong: SyncBatchNorm(7 if wrong else 6, comm=COMM))
    raises(
        (ValueError, "positive integer"), (RuntimeError, f"rank {LAST} has not made the layer"),
        lambda wrong: SyncBatchNorm(-1 if wrong else 6, comm=COMM),
    )  # fmt: skip
    layer.backward(X)
    assert layer.num_batches_tracked == 1


def check_ahead():
    """Messages of different sizes: found by headers that go ahead."""
    layer, small = (SyncBatchNorm(channels, comm=COMM) for channels in (6, 3))
    different = RuntimeError, f"rank {LAST} calls another layer than rank 0"
    raises(different, different, lambda wrong: small(X[:, :3]) if wrong else layer(X))
    different = RuntimeError, f"rank {LAST} makes a layer, and rank 0 calls one"
    raises(different, different, lambda wrong: SyncBatchNorm(3, comm=COMM) if wrong else layer(X))
    os.environ["FASTBN_CHECK_CALLS"] = "1"
    layer, small = (SyncBatchNorm(channels, comm=COMM) for channels in (6, 3))
    for norm, x in ((layer, X), (small, X[:, :3])):
        norm.backward(norm(x))
    different = RuntimeError, f"rank {LAST} calls another layer than rank 0"
    raises(different, different, lambda wrong: small(X[:, :3]) if wrong else layer(X))
    layer(X)
    os.environ["FASTBN_CHECK_CALLS"] = str(int(RANK == LAST))
    different = ValueError, "with FASTBN_CHECK_CALLS"
    raises(different, different, lambda wrong: SyncBatchNorm(6, comm=COMM))


def check_limits():
    """Told to one rank alone: found, since layers are made by what can be given up."""
    before = os.environ.get("FASTBN_RANKS_TIMEOUT")
    os.environ["FASTBN_RANKS_TIMEOUT"] = "400" if RANK == LAST else "0"
    different = ValueError, "set FASTBN_RANKS_TIMEOUT alike"
    raises(different, different, lambda wrong: SyncBatchNorm(6, comm=COMM))
    del os.environ["FASTBN_RANKS_TIMEOUT"]
    if before is not None:
        os.environ["FASTBN_RANKS_TIMEOUT"] = before


check()
check_limits()
check_ahead()
COMM.Barrier()
if RANK == 0:
    print("fine on", LAST + 1)
