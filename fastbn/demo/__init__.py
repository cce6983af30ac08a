"""What batch normalization does, shown on a network, and what it costs: ``fastbn demo``."""

from fastbn.demo.report import ACTIVATION, run

__all__ = ["ACTIVATION", "run"]
