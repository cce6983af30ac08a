"""Batch normalization on NumPy arrays, at the speed of the memory bus, without torch."""

from fastbn._call.warmup import warmup
from fastbn._system.outputs import get_reuse_limit, set_reuse_limit
from fastbn._system.threads import get_num_threads, set_num_threads
from fastbn.functional import (
    ForwardCache,
    Gradients,
    batch_norm,
    batch_norm_backward,
    batch_norm_forward,
    channel_stats,
)
from fastbn.layers import BatchNorm1d, BatchNorm2d, BatchNorm3d
from fastbn.stats import ChannelStats

__version__ = "0.1.0"

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "ChannelStats",
    "ForwardCache",
    "Gradients",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_forward",
    "channel_stats",
    "get_num_threads",
    "get_reuse_limit",
    "set_num_threads",
    "set_reuse_limit",
    "warmup",
]
