"""Batch norm on several processes or machines, each of which has a part of the batch.

`SyncBatchNorm` takes statistics over all ranks of a communicator of mpi4py, which you pass in:
nothing here imports mpi4py. `convert_sync_batchnorm` makes such layers of others. ``import fastbn``
does not import this package; ``import fastbn.distributed`` does. `on_dask` has functions for
arrays and bags of Dask's, and is imported by itself: ``from fastbn.distributed import on_dask``.
"""

from fastbn.distributed.collectives import Communicator
from fastbn.distributed.convert import convert_sync_batchnorm
from fastbn.distributed.layer import SyncBatchNorm

__all__ = ["Communicator", "SyncBatchNorm", "convert_sync_batchnorm"]
