"""Batch normalization for NumPy arrays: fast on the CPU, without PyTorch.

Layers with state are `BatchNorm1d`, `BatchNorm2d` and `BatchNorm3d`; functions without are
`batch_norm`, and `batch_norm_forward` with `batch_norm_backward` for gradients. `channel_stats`
takes statistics of any array. For small batches there are `GroupNorm`, `LayerNorm`, `RMSNorm`,
`InstanceNorm2d` and `BatchRenorm2d`, and `small_batch_report`. `load_batch_norms` makes layers of
the checkpoint of a trained network. `StandardScaler` is an estimator for scikit-learn's pipelines.
`warmup` compiles ahead. ``import fastbn.distributed`` is for batches that are spread over MPI
ranks, ``from fastbn.distributed import on_dask`` for arrays of Dask's. Begin with
``help(fastbn.BatchNorm2d)``.
"""

from fastbn import fold
from fastbn._call.warmup import warmup
from fastbn._system.outputs import get_reuse_limit, set_reuse_limit
from fastbn._system.threads import get_num_threads, set_num_threads
from fastbn.checkpoint import load_batch_norms, load_tensors, save
from fastbn.checkpoint.health import Health, inspect_batch_norms
from fastbn.dataset import DatasetStats, dataset_stats, normalize_dataset
from fastbn.functional import (
    ForwardCache,
    Gradients,
    batch_norm,
    batch_norm_backward,
    batch_norm_forward,
    channel_stats,
)
from fastbn.layers import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    BatchRenorm1d,
    BatchRenorm2d,
    BatchRenorm3d,
    GroupNorm,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LayerNorm,
    Ramp,
    RMSNorm,
    SmallBatchReport,
    small_batch_report,
)
from fastbn.norms import (
    NormCache,
    group_norm,
    group_norm_forward,
    instance_norm,
    instance_norm_forward,
    layer_norm,
    layer_norm_forward,
    norm_backward,
    rms_norm,
    rms_norm_forward,
)
from fastbn.recalibrate import recalibrate
from fastbn.scaler import StandardScaler
from fastbn.standardize import destandardize, standardize
from fastbn.stats import ChannelStats

__version__ = "0.1.0"

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchRenorm1d",
    "BatchRenorm2d",
    "BatchRenorm3d",
    "ChannelStats",
    "DatasetStats",
    "ForwardCache",
    "Gradients",
    "GroupNorm",
    "Health",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "NormCache",
    "RMSNorm",
    "Ramp",
    "SmallBatchReport",
    "StandardScaler",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_forward",
    "channel_stats",
    "dataset_stats",
    "destandardize",
    "fold",
    "get_num_threads",
    "get_reuse_limit",
    "group_norm",
    "group_norm_forward",
    "inspect_batch_norms",
    "instance_norm",
    "instance_norm_forward",
    "layer_norm",
    "layer_norm_forward",
    "load_batch_norms",
    "load_tensors",
    "norm_backward",
    "normalize_dataset",
    "recalibrate",
    "rms_norm",
    "rms_norm_forward",
    "save",
    "set_num_threads",
    "set_reuse_limit",
    "small_batch_report",
    "standardize",
    "warmup",
]
