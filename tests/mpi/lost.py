"""A rank is lost while the others wait for it.

It is ``killed``, ``raises`` outside of a layer, or ``evaluates`` alone while the others train.
"""

import os
import signal
import sys
import time

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
    if sys.argv[1] == "raises":
        raise OSError("the data of rank 1 is gone")
    layer.eval()(x)
    time.sleep(1000)
layer(x)
print("went on without rank 1", flush=True)
