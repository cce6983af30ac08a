"""Statistics and normalization of data that Dask holds, in memory or on a cluster.

Dask comes with your arrays, bags and clients: ``import fastbn`` does not import it, and neither
does this package before it is given one of them. ``pip install 'fastbn[dask]'`` brings it.

A task takes one thread, as Dask's schedulers mean it: give workers as many threads as there are
processors. Statistics are merged (`fastbn.ChannelStats.merge`) in an order that depends on the
chunks alone, so the bits are the same for any scheduler, number of workers, and after a worker has
been lost.

Examples
--------
>>> import dask.array as da, numpy as np
>>> from fastbn.distributed import on_dask
>>> x = da.random.default_rng(0).normal(5, 2, (1000, 3, 8, 8), chunks=(100, 3, 8, 8))
>>> stats = on_dask.channel_stats(x)
>>> y = on_dask.standardize(x, stats.mean, stats.std())
>>> y.dtype, bool(abs(y.mean().compute()) < 1e-6)
(dtype('float32'), True)
"""

from fastbn.distributed.on_dask.cluster import executor
from fastbn.distributed.on_dask.normalize import batch_norm, destandardize, evaluate, standardize
from fastbn.distributed.on_dask.recalibrate import recalibrate
from fastbn.distributed.on_dask.statistics import channel_stats

__all__ = [
    "batch_norm",
    "channel_stats",
    "destandardize",
    "evaluate",
    "executor",
    "recalibrate",
    "standardize",
]
