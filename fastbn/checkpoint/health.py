"""What is wrong with a trained batch norm, by its numbers."""

from __future__ import annotations  # so that `help` shows types as they are written here

from typing import Any, NamedTuple

import numpy as np

from fastbn.checkpoint import files
from fastbn.checkpoint.contents import Norm
from fastbn.checkpoint.loading import checkpoint_of, nothing_found
from fastbn.checkpoint.recognize import norms_of
from fastbn.kernels import formulas

__all__ = ["Health", "inspect_batch_norms"]

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
    name : of the layer
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


def inspect_batch_norms(source: Any, *, prefix: str = "", eps: float | None = None) -> list[Health]:
    """Look at every batch norm of a checkpoint for what usually goes wrong.

    Nothing is computed on data, so a fault is a place to look, not a proof: channels that were
    pruned on purpose are dead too. Damaged layers, which `load_batch_norms` refuses, are listed.

    Parameters
    ----------
    source : path or mapping
        As `load_batch_norms` takes it; a mapping may be ``layer.state_dict(prefix="bn1.")``.
    prefix : str
        Only layers whose names begin with it.
    eps : float, optional
        For all layers. By default the file's, or 1e-5.

    Returns
    -------
    list of Health
        One for each layer, in the order of the file.

    Raises
    ------
    TypeError, ValueError, OSError
        If ``source`` cannot be read or has no such layer, as `load_batch_norms` says.

    Examples
    --------
    >>> import fastbn
    >>> bn = fastbn.BatchNorm2d(4)
    >>> bn.weight[0], bn.running_var[1] = 0, 1e-9
    >>> found = fastbn.inspect_batch_norms(bn.state_dict(prefix="bn1."))[0]
    >>> found.name, found.dead, found.flat, found.exploding
    ('bn1', 1, 1, 1)
    """
    with files.naming(source):
        checkpoint = checkpoint_of(source)
        norms = norms_of(checkpoint)
        found = [norm for norm in norms if norm.name.startswith(prefix)]
        if not found:
            raise ValueError(nothing_found(checkpoint, norms, prefix))
        return [_health(norm, eps) for norm in found]


def _health(norm: Norm, eps: float | None) -> Health:
    terms = terms_of(norm, eps)
    mean, var, weight, scale = (terms[name] for name in ("mean", "var", "weight", "scale"))
    finite = np.ones(len(mean), bool)
    for name in ("weight", "bias", "mean", "var"):
        finite &= np.isfinite(terms[name])
    counter = norm.arrays.get("num_batches_tracked")
    uncounted = counter is not None and not np.any(np.asarray(counter))
    return Health(
        norm.name, len(mean),
        not_finite=int((~finite).sum()),
        negative=int((var < 0).sum()),
        dead=int((np.abs(weight) <= DEAD).sum()),
        exploding=int((np.abs(scale) > EXPLODING).sum()),
        flat=int(((var >= 0) & (var < FLAT * eps_of(norm, eps))).sum()),
        untrained=bool(uncounted or ((mean == 0).all() and (var == 1).all())),
        scale=_spread(scale), shift=_spread(terms["shift"]), mean=_spread(mean), var=_spread(var),
    )  # fmt: skip


def eps_of(norm: Norm, eps: float | None) -> float:
    """The caller's, the file's, or torch's."""
    given = norm.eps if eps is None else eps
    return 1e-5 if given is None else given


def terms_of(norm: Norm, eps: float | None = None) -> dict[str, np.ndarray]:
    """A layer's arrays in float64, and the scale and shift that evaluation applies."""
    given = {name: np.asarray(a).astype(np.float64) for name, a in norm.arrays.items()}
    mean, var = given["running_mean"].reshape(-1), given["running_var"].reshape(-1)
    weight = given.get("weight", np.ones_like(mean)).reshape(-1)
    bias = given.get("bias", np.zeros_like(mean)).reshape(-1)
    if len({mean.size, var.size, weight.size, bias.size}) > 1:
        raise ValueError(
            f"{norm.name!r}: its arrays differ in length: running_mean {mean.size}, running_var "
            f"{var.size}, weight {weight.size}, bias {bias.size}"
        )
    with np.errstate(all="ignore"):
        scale = weight * formulas.reciprocal_std(var, eps_of(norm, eps))
        shift = bias - mean * scale
    return {
        "mean": mean, "var": var, "weight": weight, "bias": bias, "scale": scale, "shift": shift
    }  # fmt: skip


def _spread(values: np.ndarray) -> tuple[float, float, float]:
    """Least, median and greatest of what is finite."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return (float("nan"),) * 3
    return float(finite.min()), float(np.median(finite)), float(finite.max())
