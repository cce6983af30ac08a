"""A whole checkpoint, folded."""

from __future__ import annotations  # so that `help` shows types as they are written here

from typing import Any, NamedTuple

import numpy as np

from fastbn.checkpoint.loading import checkpoint_of, load_batch_norms, load_tensors
from fastbn.checkpoint.pairs import Pair, Single, pairs_of
from fastbn.checkpoint.recognize import norms_of
from fastbn.fold.convolutions import fold_conv_bn, fold_linear_bn

#: Arrays of a batch norm that is no longer needed.
_ARRAYS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


class FoldedCheckpoint(NamedTuple):
    """What `fold_checkpoint` returns.

    Attributes
    ----------
    tensors : dict of str to ndarray
        All arrays, without those of the batch norms that were folded.
    pairs : list of Pair
        ``norm`` went into ``layer``.
    left : list of Single
        ``norm`` stays, and ``why``.
    """

    tensors: dict[str, np.ndarray]
    pairs: list[Pair]
    left: list[Single]


def fold_checkpoint(source: Any, *, eps: float | None = None) -> FoldedCheckpoint:
    """Fold every batch norm that directly follows a convolution or linear layer.

    Which layer a norm follows is known by names and shapes: a ``Sequential``'s neighbours, or
    ``conv2`` and ``bn2`` of one module. A checkpoint does not tell of an activation between the
    two, and with one the result is wrong: compare an output before and after.

    Parameters
    ----------
    source : path or mapping
        As `fastbn.load_batch_norms` takes it, with weights in torch's layout.
    eps : float, optional
        Of all batch norms; by default the file's, or 1e-5.

    Returns
    -------
    FoldedCheckpoint

    Raises
    ------
    TypeError, ValueError, OSError
        If ``source`` cannot be read, or a batch norm holds what none can.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> conv = {"conv1.weight": np.ones((4, 3, 3, 3), np.float32)}
    >>> state = {**conv, **fastbn.BatchNorm2d(4).state_dict("bn1.")}
    >>> folded = fastbn.fold.fold_checkpoint(state)
    >>> sorted(folded.tensors), folded.pairs[0].layer
    (['conv1.bias', 'conv1.weight'], 'conv1')
    """
    checkpoint = checkpoint_of(source)
    norms, tensors = norms_of(checkpoint), load_tensors(source)
    layers = load_batch_norms(source, eps=eps)
    pairs, left = pairs_of(tensors, norms, checkpoint.ordered)
    for pair in pairs:
        weight, bias = tensors[f"{pair.layer}.weight"], tensors.get(f"{pair.layer}.bias")
        bn = layers[pair.norm]
        if weight.ndim == 2:
            folded = fold_linear_bn(weight, bias, bn)
        else:
            folded = fold_conv_bn(weight, bias, bn, transposed=pair.transposed)
        tensors[f"{pair.layer}.weight"], tensors[f"{pair.layer}.bias"] = folded
        for name in _ARRAYS:
            tensors.pop(f"{pair.norm}.{name}", None)
    return FoldedCheckpoint(tensors, pairs, left)
