"""Checkpoints: arrays and batch norms out of files, and into files.

`fastbn.load_batch_norms`, `fastbn.load_tensors` and `fastbn.save` are in the top level too;
`find_batch_norms` gives what a file has without any check, for looking at a damaged network.
Each format is a file of its own here: a function ``read(path)`` that gives a `Checkpoint`.
"""

from fastbn.checkpoint.contents import Checkpoint, Norm
from fastbn.checkpoint.loading import find_batch_norms, load_batch_norms, load_tensors
from fastbn.checkpoint.saving import save

__all__ = ["Checkpoint", "Norm", "find_batch_norms", "load_batch_norms", "load_tensors", "save"]
