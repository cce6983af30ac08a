"""Checkpoints: arrays and batch norms out of files, and into files.

`fastbn.load_batch_norms`, `fastbn.load_tensors` and `fastbn.save` are in the top level too;
`find_batch_norms` gives what a file has without any check, for looking at a damaged network, and
`channel_terms` what its evaluation multiplies by and adds.
Each format is a file of its own here: a function ``read(path)`` that gives a `Checkpoint`.
"""

from fastbn.checkpoint.contents import Checkpoint, Norm
from fastbn.checkpoint.loading import find_batch_norms, load_batch_norms, load_tensors
from fastbn.checkpoint.saving import save
from fastbn.checkpoint.terms import ChannelTerms, channel_terms

__all__ = [
    "ChannelTerms",
    "Checkpoint",
    "Norm",
    "channel_terms",
    "find_batch_norms",
    "load_batch_norms",
    "load_tensors",
    "save",
]
