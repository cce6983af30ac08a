"""Layers: parameters, running statistics and modes. The arithmetic is in `functional`."""

from fastbn.layers.batch import BatchNorm1d, BatchNorm2d, BatchNorm3d
from fastbn.layers.instance import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from fastbn.layers.renorm import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d, Ramp
from fastbn.layers.sample import GroupNorm, LayerNorm, RMSNorm
from fastbn.layers.small_batches import SmallBatchReport, small_batch_report

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchRenorm1d",
    "BatchRenorm2d",
    "BatchRenorm3d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "RMSNorm",
    "Ramp",
    "SmallBatchReport",
    "small_batch_report",
]
