"""Data in files, larger than memory: statistics of it, and normalizing it."""

from fastbn.dataset.histogram import Histograms
from fastbn.dataset.normalize import normalize_dataset
from fastbn.dataset.stats import DatasetStats, dataset_stats

__all__ = ["DatasetStats", "Histograms", "dataset_stats", "normalize_dataset"]
