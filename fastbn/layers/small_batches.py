"""How far off the statistics of a small batch are, and what to take instead."""

from __future__ import annotations  # so that `help` shows types as they are written here

import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fastbn._call import arguments, ghost
from fastbn.kernels import formulas
from fastbn.layers.base import BatchNorm
from fastbn.layers.inputs import does_not_fit
from fastbn.layers.instance import InstanceNorm
from fastbn.layers.renorm import D_MAX, R_MAX, BatchRenorm
from fastbn.layers.sample import GroupNorm, LayerNorm

__all__ = ["SmallBatchReport", "small_batch_report"]

#: Relative standard error of the variance of the samples that is too large: that of 9 samples. With
#: 8 a GPU, ResNet-50 on ImageNet has lost 1.2 % to batch norm, with 16 nothing (Wu & He 2018,
#: table 2); standard deviations are then off by a quarter.
LIMIT = 0.5


class SmallBatchReport(NamedTuple):
    """What `small_batch_report` finds; ``str`` of it says it in words."""

    #: The layer's class.
    layer: str
    #: How many values a mean and a variance are taken of, in the smallest group of samples.
    values: int
    #: How many samples these come from.
    samples: int
    #: Standard error of the mean, in standard deviations: of independent values; and if all values
    #: of a sample were alike.
    mean_error: float
    mean_error_at_most: float
    #: Relative standard error of the variance, likewise.
    var_error: float
    var_error_at_most: float
    #: Whether a training takes harm from that.
    too_large: bool
    #: What to take instead; empty unless ``too_large``.
    instead: tuple[str, ...]
    #: What the layer makes of the statistics, where that is not batch norm's way.
    remark: str

    def __str__(self) -> str:
        of_samples = f" from {_number(self.samples, 'sample')}" * (self.values > self.samples)
        mean = _span(self.mean_error, self.mean_error_at_most, "{:.2f}")
        var = _span(100 * self.var_error, 100 * self.var_error_at_most, "{:.0f} %")
        text = (
            f"{self.layer} takes each mean and variance of {_number(self.values, 'value')}"
            f"{of_samples}. Standard error: of the mean {mean} standard deviations, of the "
            f"variance {var}"
        )
        if self.var_error != self.var_error_at_most:
            text += " (if all values are independent, and if those of a sample are alike; "
            text += "neighbours mostly are)"
        if self.remark:
            return f"{text}. {self.remark}."
        if not self.too_large:
            return f"{text}. That is enough."
        return f"{text}. That is too large. Instead: {'; '.join(self.instead)}."


def small_batch_report(
    layer: BatchNorm | InstanceNorm | GroupNorm | LayerNorm, shape: Sequence[int]
) -> SmallBatchReport:
    """Say how far off a layer's statistics of one training batch are, and what to take instead.

    The mean of m independent values has a standard error of ``1 / sqrt(m)`` standard deviations,
    and the variance of m normal ones a relative one of ``sqrt(2 / (m - 1))``. m values per
    channel of images or sequences are not independent: neighbouring positions are alike. So these
    are the least; the most is that of as many values as there are samples. The truth is between,
    and nearer to the samples the smoother the data is.

    ``too_large`` goes by the samples: with fewer than 9 of them the variance may be off by more
    than half, and batch norm has been seen to lose accuracy. It is a rule of thumb. Norms of each
    sample need two values.

    Parameters
    ----------
    layer : BatchNorm1d/2d/3d, BatchRenorm..., InstanceNorm..., GroupNorm or LayerNorm
        With a ``virtual_batch_size`` the smallest group of samples counts. Neither its mode
        nor its arrays matter.
    shape : tuple of int
        Of an input: ``x.shape``.

    Returns
    -------
    SmallBatchReport
        A NamedTuple; ``print`` it.

    Raises
    ------
    TypeError
        If ``layer`` is no such layer, or ``shape`` no tuple of integers.
    ValueError
        If the layer does not take such a shape, or it has no values.

    References
    ----------
    Wu & He, "Group Normalization", 2018, section 4.1, for what batch norm loses with batches of 2
    to 32; Ioffe, "Batch Renormalization", 2017; Wu & Johnson, 'Rethinking "Batch" in BatchNorm',
    2021, for running statistics that are taken anew and frozen ones.

    Examples
    --------
    >>> import fastbn
    >>> report = fastbn.small_batch_report(fastbn.BatchNorm1d(64), (32, 64))
    >>> print(report)
    BatchNorm1d takes each mean and variance of 32 values. Standard error: of the mean 0.18 \
standard deviations, of the variance 25 %. That is enough.
    >>> report = fastbn.small_batch_report(fastbn.BatchNorm2d(64), (2, 64, 14, 14))
    >>> report.too_large, report.values, round(report.var_error, 2), report.instead[0]
    (True, 392, 0.07, 'GroupNorm or LayerNorm, which take each sample by itself')
    """
    sizes = _checked_shape(shape)
    name = type(layer).__name__
    if isinstance(layer, (BatchNorm, InstanceNorm)):
        values, samples = _of_channels(layer, sizes)
    elif isinstance(layer, (GroupNorm, LayerNorm)):
        values, samples = _of_sample(layer, sizes), 1
    else:
        raise TypeError(
            "layer must be one of fastbn that takes means and variances, such as "
            f"fastbn.BatchNorm2d(64), got {name}"
        )
    most = values
    instead: tuple[str, ...] = ()
    if isinstance(layer, BatchNorm):
        most = samples
        if _var_error(most) > LIMIT and not isinstance(layer, BatchRenorm):
            instead = _instead(layer, sizes)
    elif values == 1:
        instead = (_more_values(layer),)
    return SmallBatchReport(
        name, values, samples, float(formulas.mean_error(values)),
        float(formulas.mean_error(most)), _var_error(values), _var_error(most), bool(instead),
        instead, "" if instead else _remark(layer),
    )  # fmt: skip


def _checked_shape(shape: Any) -> tuple[int, ...]:
    if hasattr(shape, "shape"):
        raise TypeError("shape must be a tuple of integers, got an array; pass x.shape")
    sized = isinstance(shape, Sequence) and not isinstance(shape, str)
    if not sized or any(
        isinstance(n, (bool, np.bool_)) or not hasattr(type(n), "__index__") for n in shape
    ):
        raise TypeError(f"shape must be a tuple of integers, such as x.shape, got {shape!r}")
    sizes = tuple(map(operator.index, shape))
    if not sizes or min(sizes) < 1:
        raise ValueError(f"shape must be of positive integers, got {sizes}")
    return sizes


def _of_channels(layer: BatchNorm | InstanceNorm, shape: tuple[int, ...]) -> tuple[int, int]:
    """Values of a channel that are normalized together, at least, and their samples."""
    axis = layer._axis_of(len(shape)) if len(shape) in layer._takes else None
    if axis is None or shape[axis] != layer.num_features:
        name = type(layer).__name__
        raise ValueError(does_not_fit(name, layer._takes, layer.num_features, shape, axis))
    samples = shape[0] if "N" in layer._takes[len(shape)] else 1
    positions = math.prod(shape) // layer.num_features // samples
    if isinstance(layer, InstanceNorm):
        return positions, 1
    size = layer.virtual_batch_size or samples
    least = min(g.stop - g.start for g in ghost.split(samples, size, positions))
    return least * positions, least


def _of_sample(layer: Any, shape: tuple[int, ...]) -> int:
    """Values that are normalized together, all of one sample."""
    if not isinstance(layer, GroupNorm):
        last = layer.normalized_shape
        if shape[-len(last) :] != last:
            raise ValueError(
                f"{type(layer).__name__} takes shapes that end with its normalized_shape, {last}, "
                f"got {shape}"
            )
        return math.prod(last)
    axis = arguments.channel_axis(shape, layer.axis)
    if axis == 0 or shape[axis] != layer.num_channels:
        raise ValueError(
            f"GroupNorm reads shape {shape} with {shape[axis]} channels on axis {axis}, and "
            f"num_channels={layer.num_channels}"
        )
    return math.prod(shape[1:]) // layer.num_groups


def _var_error(count: int) -> float:
    return float(formulas.variance_error(count)) if count > 1 else math.inf


def _instead(layer: BatchNorm, shape: tuple[int, ...]) -> tuple[str, ...]:
    """What to do where batches are too small, what costs least first."""
    ways = (
        "GroupNorm or LayerNorm, which take each sample by itself",
        f"{type(layer).__name__.replace('Norm', 'Renorm')}, which trains with running statistics, "
        f"with limits r_max and d_max that fit: {_DEFAULT_LIMITS}",
        "to fine-tune, freeze(): the running statistics as constants",
        "if only the evaluation is off, running statistics taken anew: reset_running_stats(), "
        "momentum=None and a pass over data in train()",
    )
    if layer.virtual_batch_size is not None and _var_error(shape[0]) <= LIMIT:
        return (f"a larger virtual_batch_size than {layer.virtual_batch_size}, or None", *ways)
    return ways


def _more_values(layer: Any) -> str:
    """What to do where a value of a sample is normalized by itself."""
    if isinstance(layer, LayerNorm):
        return "a normalized_shape of two values or more: of one the output is just the bias"
    if isinstance(layer, InstanceNorm):
        return "GroupNorm, which takes channels together: one value has no variance, and is refused"
    if layer.num_groups > 1:
        return f"fewer groups than {layer.num_groups}: one value has no variance, and is refused"
    return "batch norm over more samples: one value of a sample has no variance, and is refused"


#: When batch renormalization begins, unless it is told otherwise.
_DEFAULT_LIMITS = (
    "by default nothing is corrected for 5,000 steps, and a shorter training needs a shorter Ramp"
)


def _remark(layer: Any) -> str:
    if isinstance(layer, BatchRenorm):
        text = "The running statistics correct it, within r_max and d_max"
        default = (layer.r_max, layer.d_max) == (R_MAX, D_MAX)
        return f"{text}; {_DEFAULT_LIMITS}" if default else text
    if isinstance(layer, InstanceNorm) and layer.track_running_stats:
        return "It does not depend on the batch; evaluation takes averages of it"
    if isinstance(layer, BatchNorm):
        return ""
    return "It does not depend on the batch, and evaluation takes the same"


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _span(least: float, most: float, form: str) -> str:
    if not math.isfinite(least):
        return "without bound"
    if least == most:
        return form.format(least)
    end = form.format(most) if math.isfinite(most) else "without bound"
    return f"{form.format(least)} to {end}"
