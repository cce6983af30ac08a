"""Layers: parameters, running statistics and modes. The arithmetic is in `functional`."""

from fastbn.layers.batch import BatchNorm1d, BatchNorm2d, BatchNorm3d

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"]
