"""What is wrong with a trained batch norm, by its numbers."""

from __future__ import annotations  # so that `help` shows types as they are written here

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from fastbn.layers import BatchNorm1d, BatchNorm2d, BatchNorm3d

__all__ = ["Health", "check_health"]

BatchNorm = BatchNorm1d | BatchNorm2d | BatchNorm3d

#: A weight of at most this size lets nothing of its channel through that others would notice.
DEAD = 1e-4
#: A factor ``|weight| / sqrt(var + eps)`` from which on small changes of the input become large.
EXPLODING = 100.0
#: A variance of at most this part of eps: eps decides, not the data.
FLAT = 0.1


class Health(NamedTuple):
    """How many channels of a layer have which fault; `Health.faults` says it in words.

    Attributes
    ----------
    name, kind : of the layer
    channels : how many it has
    not_finite : channels with NaN or infinity in an array
    negative : channels whose running variance is below zero
    dead : channels whose weight is at most 1e-4 in size
    exploding : channels multiplied by more than 100, ``|weight| / sqrt(running_var + eps)``
    flat : channels whose running variance is below a tenth of eps, which then decides
    untrained : whether the running statistics are those of a new layer: mean 0 and variance 1, or
        no batch was counted
    scale, shift, mean, var : least, median and greatest of the channels, of what evaluation
        multiplies by and adds, and of the running statistics; NaN where there are none
    """

    name: str
    kind: str
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
        return [*found, *["never updated: mean 0, variance 1, or no batch seen"] * self.untrained]


def check_health(layers: Mapping[str, BatchNorm]) -> list[Health]:
    """Look at the arrays of trained batch norms for what usually goes wrong.

    Nothing is computed on data, so a fault is a place to look, not a proof: channels that are
    pruned on purpose are dead too.

    Parameters
    ----------
    layers : mapping of names to BatchNorm1d, 2d or 3d
        As `load_batch_norms` returns them. They are not changed.

    Returns
    -------
    list of Health
        One for each layer, in their order.

    Raises
    ------
    TypeError
        If something in ``layers`` is not such a layer.

    Examples
    --------
    >>> import fastbn
    >>> bn = fastbn.BatchNorm2d(4)
    >>> bn.weight[0], bn.running_var[1] = 0, 1e-9
    >>> found = fastbn.check_health({"bn1": bn})[0]
    >>> found.dead, found.flat, found.exploding
    (1, 1, 1)
    """
    return [_health(name, layer) for name, layer in layers.items()]


def _health(name: str, bn: BatchNorm) -> Health:
    if not isinstance(bn, BatchNorm):
        raise TypeError(
            f"{name!r} must be a BatchNorm1d, BatchNorm2d or BatchNorm3d, got {type(bn).__name__}"
        )
    given = {n: getattr(bn, n) for n in ("weight", "bias", "running_mean", "running_var")}
    one = {n: np.asarray(v, np.float64) for n, v in given.items() if v is not None}
    nothing = np.full(bn.num_features, np.nan)
    mean, var = (one.get(n, nothing) for n in ("running_mean", "running_var"))
    weight = one.get("weight", np.ones(bn.num_features))
    bias = one.get("bias", np.zeros(bn.num_features))
    with np.errstate(all="ignore"):
        scale = weight / np.sqrt(var + bn.eps)
        shift = bias - mean * scale
    finite = np.all([np.isfinite(v) for v in one.values()] or [np.ones(bn.num_features)], axis=0)
    tracked = "running_var" in one
    counter = bn.num_batches_tracked
    untrained = tracked and bool(
        (counter is not None and int(counter) == 0) or ((mean == 0).all() and (var == 1).all())
    )
    return Health(
        name, type(bn).__name__, bn.num_features,
        not_finite=int((~finite.astype(bool)).sum()),
        negative=int((var < 0).sum()),
        dead=int((np.abs(weight) <= DEAD).sum()),
        exploding=int((np.abs(scale) > EXPLODING).sum()),
        flat=int(((var >= 0) & (var < FLAT * bn.eps)).sum()),
        untrained=untrained,
        scale=_spread(scale), shift=_spread(shift), mean=_spread(mean), var=_spread(var),
    )  # fmt: skip


def _spread(values: np.ndarray) -> tuple[float, float, float]:
    """Least, median and greatest of what is finite."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return (float("nan"),) * 3
    return float(finite.min()), float(np.median(finite)), float(finite.max())
