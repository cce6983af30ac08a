"""A whole checkpoint, folded."""

from __future__ import annotations  # so that `help` shows types as they are written here

from typing import Any, NamedTuple

import numpy as np

from fastbn.checkpoint import files
from fastbn.checkpoint.loading import checkpoint_of, layers_of
from fastbn.checkpoint.recognize import norms_of
from fastbn.fold.convolutions import fold_conv_bn, fold_linear_bn
from fastbn.fold.pairs import Pair, Single, pairs_of
from fastbn.layers.base import BatchNorm
from fastbn.layers.names import TORCH


class FoldedCheckpoint(NamedTuple):
    """What `fold_checkpoint` returns.

    Attributes
    ----------
    tensors : dict of str to ndarray
        All arrays but those of batch norms. ``fastbn.save({**tensors, **layers}, path)`` keeps all.
    layers : dict of str to BatchNorm1d, 2d or 3d
        The batch norms that stay, in evaluation mode.
    pairs : list of Pair
        ``norm`` went into ``layer``.
    left : list of Single
        ``norm`` stays, and ``why``.
    """

    tensors: dict[str, np.ndarray]
    layers: dict[str, BatchNorm]
    pairs: list[Pair]
    left: list[Single]

    def __repr__(self) -> str:
        return (
            f"FoldedCheckpoint({len(self.tensors)} tensors, {len(self.layers)} layers, "
            f"pairs={self.pairs}, left={self.left})"
        )


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
        If ``source`` cannot be read, or a batch norm is not valid (NaN, a negative variance).

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> conv = {"conv1.weight": np.ones((4, 3, 3, 3), np.float32)}
    >>> state = {**conv, **fastbn.BatchNorm2d(4).state_dict("bn1.")}
    >>> folded = fastbn.fold.fold_checkpoint(state)
    >>> sorted(folded.tensors), folded.pairs[0].layer
    (['conv1.bias', 'conv1.weight'], 'conv1')
    """
    with files.naming(source):
        checkpoint = checkpoint_of(source)
        norms = norms_of(checkpoint)
        layers = layers_of(checkpoint, norms, "", eps, None)
        tensors = dict(checkpoint.tensors)
        plain = [norm for norm in norms if layers[norm.name].activation is None]
        pairs, left = pairs_of(tensors, plain, checkpoint.ordered)
        left += [
            Single(norm.name, f"its activation, {layers[norm.name].activation}, would be lost")
            for norm in norms if layers[norm.name].activation is not None
        ]  # fmt: skip
        for pair in pairs:
            _fold(tensors, layers.pop(pair.norm), pair)
    for norm in norms:
        for name in norm.keys or [f"{norm.name}.{name}" for name in TORCH]:
            tensors.pop(name, None)
    return FoldedCheckpoint(tensors, layers, pairs, left)


def _fold(tensors: dict[str, np.ndarray], bn: Any, pair: Pair) -> None:
    """Put new arrays in the place of a layer's weight and bias."""
    weight, bias = tensors[f"{pair.layer}.weight"], tensors.get(f"{pair.layer}.bias")
    if weight.ndim == 2:
        folded = fold_linear_bn(weight, bias, bn)
    else:
        folded = fold_conv_bn(weight, bias, bn, transposed=pair.transposed)
    tensors[f"{pair.layer}.weight"], tensors[f"{pair.layer}.bias"] = folded
