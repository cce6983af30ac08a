"""What batch normalization does, shown on a network, and what it costs: ``fastbn demo``."""

from fastbn.demo.report import ACTIVATION, run
from fastbn.demo.small_batches import run_small_batches

__all__ = ["ACTIVATION", "run", "run_small_batches"]
