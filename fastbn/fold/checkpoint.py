"""A whole checkpoint, folded."""

from __future__ import annotations  # so that `help` shows types as they are written here

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fastbn.checkpoint import files
from fastbn.checkpoint.contents import Norm
from fastbn.checkpoint.loading import checkpoint_of, layers_of
from fastbn.checkpoint.recognize import norms_of
from fastbn.fold.convolutions import Folded, fold_conv_bn, fold_linear_bn
from fastbn.fold.hints import Hints, hints_of
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
        ``norm`` went into ``layer``, ``transposed`` or not; ``assumed`` is what the file does not
        tell.
    left : list of Single
        ``norm`` stays, and ``why``.
    assumed_eps : tuple of float
        What was taken for the eps of norms that were folded, where neither the file nor the caller
        says it; empty where one of them does.
    """

    tensors: dict[str, np.ndarray]
    layers: dict[str, BatchNorm]
    pairs: list[Pair]
    left: list[Single]
    assumed_eps: tuple[float, ...] = ()

    def __repr__(self) -> str:
        return (
            f"FoldedCheckpoint({len(self.tensors)} tensors, {len(self.layers)} layers, "
            f"pairs={self.pairs}, left={self.left}, assumed_eps={self.assumed_eps})"
        )


def fold_checkpoint(
    source: Any,
    *,
    eps: float | None = None,
    pairs: Mapping[str, str] | None = None,
    skip: Iterable[str] = (),
    transposed: Iterable[str] | None = None,
) -> FoldedCheckpoint:
    """Fold every batch norm that directly follows a convolution or linear layer.

    Which layer a norm follows is known by names and shapes: a ``Sequential``'s neighbours, or
    ``conv2`` and ``bn2`` of one module. A checkpoint does not tell of an activation between the
    two, and with one the result is wrong: compare an output before and after. What you know
    better, you can say. A norm that cannot be folded stays as it is, and so do the arrays of the
    layer before it; the others are folded all the same. A pair that you name is folded or refused.

    Parameters
    ----------
    source : path or mapping
        As `fastbn.load_batch_norms` takes it, with weights in torch's layout.
    eps : float, optional
        Of all batch norms; by default the file's, or 1e-5.
    pairs : mapping of str to str, optional
        Names of norms to names of the weights that they go into: ``{"bn1": "stem.weight"}``; the
        ``.weight`` may be left out, and so may ``module.`` before a name, which the file may have
        of DataParallel. Other norms are paired as ever.
    skip : iterable of str
        Names of norms that stay.
    transposed : iterable of str, optional
        Names of transposed convolutions, or of their weights. By default a layer counts as
        transposed if its name has a word such as ``deconv``, or if the norm's number of channels
        fits only that reading of its shape. Shapes do not tell a transposed convolution with as
        many input as output channels: the ``assumed`` of a pair says where that was
        taken for a usual one. With this argument, those that it names are transposed and other
        such ones are not.

    Returns
    -------
    FoldedCheckpoint

    Raises
    ------
    TypeError, ValueError, OSError
        If ``source`` cannot be read, a batch norm is not valid (NaN, a negative variance), or
        ``pairs``, ``skip`` or ``transposed`` has a name that is not there, or a pair of ``pairs``
        cannot be folded.

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
        hints = hints_of(pairs, skip, transposed, layers, tensors)
        stay = _staying(layers, hints)
        others = [norm for norm in norms if norm.name not in stay]
        found, left = pairs_of(tensors, others, checkpoint.ordered, hints)
        left += [Single(name, why) for name, why in stay.items()]
        done = []
        for pair in found:
            try:
                folded = _folded(tensors, layers[pair.norm], pair)
            except (TypeError, ValueError) as error:
                why = f"{pair.layer} cannot take it: {error}"
                if pair.norm in hints.pairs:
                    raise ValueError(f"pairs names {pair.norm!r}, and {why}") from error
                left.append(Single(pair.norm, why))
                continue
            tensors[f"{pair.layer}.weight"], tensors[f"{pair.layer}.bias"] = folded
            done.append(pair)
    assumed = {
        layers[norm.name].eps for norm in norms if eps is None and norm.eps_assumed
        and any(pair.norm == norm.name for pair in done)
    }  # fmt: skip
    for pair in done:
        del layers[pair.norm]
    _drop(tensors, norms)
    place = {norm.name: k for k, norm in enumerate(norms)}
    left.sort(key=lambda single: place[single.norm])
    return FoldedCheckpoint(tensors, layers, done, left, tuple(sorted(assumed)))


def _staying(layers: Mapping[str, BatchNorm], hints: Hints) -> dict[str, str]:
    """Norms that are not folded, whatever is before them, and why."""
    stay = {name: "skip names it" for name in layers if name in hints.skip}
    for name, layer in layers.items():
        if layer.activation is not None:
            why = f"its activation, {layer.activation}, would be lost"
            if name in hints.pairs:
                raise ValueError(f"pairs names {name!r}, and {why}")
            stay.setdefault(name, why)
    return stay


def _folded(tensors: Mapping[str, np.ndarray], bn: BatchNorm, pair: Pair) -> Folded:
    """New arrays for a layer's weight and bias."""
    weight, bias = tensors[f"{pair.layer}.weight"], tensors.get(f"{pair.layer}.bias")
    if weight.ndim == 2:
        return fold_linear_bn(weight, bias, bn)
    groups = pair.groups(weight.shape, bn.num_features)
    return fold_conv_bn(weight, bias, bn, transposed=pair.transposed, groups=groups)


def _drop(tensors: dict[str, np.ndarray], norms: list[Norm]) -> None:
    """Leave out the arrays of norms, which are folded or in layers of their own."""
    for norm in norms:
        for name in norm.keys or [f"{norm.name}.{name}" for name in TORCH]:
            tensors.pop(name, None)
