"""A rank is lost while the others wait for it: ``killed``, or by an error outside of a layer."""

import os
import signal
import sys

import numpy as np
from mpi4py import MPI

from fastbn.distributed import SyncBatchNorm

COMM = MPI.COMM_WORLD
layer = SyncBatchNorm(6, comm=COMM)
x = np.random.default_rng(COMM.Get_rank()).normal(size=(4, 6)).astype(np.float32)
layer.backward(layer(x))
print("started", flush=True)
if COMM.Get_rank() == 1:
    if sys.argv[1] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise OSError("the data of rank 1 is gone")
layer(x)
print("went on without rank 1", flush=True)
