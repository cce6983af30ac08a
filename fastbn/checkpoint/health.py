"""What is wrong with a trained batch norm, by its numbers."""

from __future__ import annotations  # so that `help` shows types as they are written here

from typing import Any, NamedTuple

import numpy as np

from fastbn.checkpoint.contents import Norm
from fastbn.checkpoint.terms import norms_below, terms_of

__all__ = ["Health", "inspect_batch_norms"]

#: At most this |weight|: the channel's output is practically its bias.
DEAD = 1e-4
#: A factor ``|weight| / sqrt(var + eps)`` from which on small changes of the input become large.
EXPLODING = 100.0
#: A variance of at most this part of eps: eps decides, not the data.
FLAT = 0.1


class Health(NamedTuple):
    """How many channels of a layer have which fault; `Health.faults` says it in words.

    Attributes
    ----------
    name : of the layer
    channels : how many it has
    not_finite : channels with NaN or infinity in an array
    negative : channels whose running variance is below zero
    dead : channels whose weight is at most 1e-4 in size
    exploding : channels multiplied by more than 100, ``|weight| / sqrt(running_var + eps)``
    flat : channels whose running variance is below a tenth of eps, which then decides
    untrained : whether the running statistics are those of a new layer, mean 0 and variance 1. The
        counter of batches says nothing: many tools write 0 there
    scale, shift, mean, var : least, median and greatest of the channels, of what evaluation
        multiplies by and adds, and of the running statistics; NaN where there are none
    invalid : why no layer can be made of the arrays (one is missing, or has another shape or
        dtype), in words; empty for a valid layer. The other fields count what they can.
    eps : what `flat` and `scale` were worked out with
    eps_assumed : whether neither the file nor the caller has said it
    """

    name: str
    channels: int
    not_finite: int
    negative: int
    dead: int
    exploding: int
    flat: int
    untrained: bool
    scale: tuple[float, float, float]
    shift: tuple[float, float, float]
    mean: tuple[float, float, float]
    var: tuple[float, float, float]
    invalid: str = ""
    eps: float = 1e-5
    eps_assumed: bool = False

    @property
    def faults(self) -> list[str]:
        """What is wrong, in words; empty for a layer without a fault."""
        counted = {
            "NaN or infinite": self.not_finite,
            "of negative variance": self.negative,
            "dead (weight almost 0)": self.dead,
            f"multiplied by more than {EXPLODING:g}": self.exploding,
            "flat (variance far below eps)": self.flat,
        }
        found = [f"{n} {what}" for what, n in counted.items() if n]
        if self.untrained:
            found.append("never updated: mean 0 and variance 1, as made")
        return [f"invalid: {self.invalid}", *found] if self.invalid else found


def inspect_batch_norms(source: Any, *, prefix: str = "", eps: float | None = None) -> list[Health]:
    """Look at every batch norm of a checkpoint for what usually goes wrong.

    Nothing is computed on data, so a fault is a place to look, not a proof: channels that were
    pruned on purpose are dead too. Damaged layers, which `load_batch_norms` refuses, are listed.

    Parameters
    ----------
    source : path or mapping
        As `load_batch_norms` takes it; a mapping may be ``layer.state_dict(prefix="bn1.")``.
    prefix : str
        Only layers whose names begin with it, such as ``"backbone."``; it is left off.
    eps : float, optional
        For all layers. By default the file's, or 1e-5.

    Returns
    -------
    list of Health
        One for each layer, in the order of the file.

    Raises
    ------
    TypeError, ValueError, OSError
        If ``source`` cannot be read or has no such layer, as `load_batch_norms` says, or ``eps``
        is not positive.

    Examples
    --------
    >>> import fastbn
    >>> bn = fastbn.BatchNorm2d(4)
    >>> bn.weight[0], bn.running_var[1] = 0, 1e-9
    >>> found = fastbn.inspect_batch_norms(bn.state_dict(prefix="bn1."))[0]
    >>> found.name, found.dead, found.flat, found.exploding
    ('bn1', 1, 1, 1)
    """
    return [_health(norm, eps) for norm in norms_below(source, prefix, eps)]


def _health(norm: Norm, eps: float | None) -> Health:
    terms = terms_of(norm, eps)
    mean, var = terms.mean, terms.var
    arrays = (mean, var, terms.weight, terms.bias)
    finite = np.ones(max(array.size for array in arrays), bool)
    for array in arrays:
        finite[: array.size] &= np.isfinite(array)
    as_made = mean.size and var.size and (mean == 0).all() and (var == 1).all()
    return Health(
        norm.name, len(mean) or len(finite),
        not_finite=int((~finite).sum()),
        negative=int((var < 0).sum()),
        dead=int((np.abs(terms.weight) <= DEAD).sum()),
        exploding=int((np.abs(terms.scale) > EXPLODING).sum()),
        flat=int(((var >= 0) & (var < FLAT * terms.eps)).sum()),
        untrained=bool(as_made),
        scale=_spread(terms.scale), shift=_spread(terms.shift), mean=_spread(mean),
        var=_spread(var), invalid=terms.invalid, eps=terms.eps, eps_assumed=terms.eps_assumed,
    )  # fmt: skip


def _spread(values: np.ndarray) -> tuple[float, float, float]:
    """Least, median and greatest of what is finite."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return (float("nan"),) * 3
    return float(finite.min()), float(np.median(finite)), float(finite.max())
