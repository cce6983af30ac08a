"""Batch renormalization layers: batch norm that trains with what it will evaluate with."""

from __future__ import annotations  # so that `help` shows types as they are written here

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from numpy.typing import DTypeLike

from fastbn._call import backend, renorm, settings
from fastbn._call.epilogue import refuse_with
from fastbn._call.keywords import hide_foreign, refuse
from fastbn._call.operations import Forward
from fastbn._call.settings import Device, OnNonfinite
from fastbn.layers.base import BatchNorm
from fastbn.layers.batch import BatchNorm1d, BatchNorm2d, BatchNorm3d, documented

__all__ = ["BatchRenorm1d", "BatchRenorm2d", "BatchRenorm3d", "Ramp"]

_Layer = TypeVar("_Layer", bound="BatchRenorm")

_DOCUMENTATION = """
    For small batches, and batches whose samples are not independent. In training::

        r = clip(sigma_batch / sigma, 1 / r_max, r_max)
        d = clip((mean_batch - mean) / sigma, -d_max, d_max)
        y = ((x - mean_batch) / sigma_batch * r + d) * weight + bias

    where ``mean`` and ``sigma = sqrt(running_var + eps)`` are the running ones from before
    this batch. Within the limits that is what an evaluation would give; r and d are
    constants to the gradients. ``r_max=1, d_max=0`` is batch normalization to the bit, and
    evaluation always is. The running averages are those of the paper: of the mean and of
    sigma, which is biased and has eps in it, not of the variance; ``running_var`` has
    ``sigma**2 - eps``. NaN or infinity in them would go into every later batch:
    ``on_nonfinite="skip"`` keeps them out.

    A state dict is that of batch norm and loads into either. The step is the counter,
    ``num_batches_tracked``: loading it goes on with the limits, and a reset begins anew.

    Parameters
    ----------
    num_features : int
        Number of channels C.
    eps : float
        Added to the variance inside the root; positive.
    momentum : float or None
        Weight of the new batch in the running averages, 0 to 1 (the paper takes 0.01);
        None for the cumulative average over all batches.
    affine : bool
        Have a learnable weight (gamma, starts at 1) and bias (beta, starts at 0).
    track_running_stats : bool
        True: renormalization is about running statistics.
    device : None or "cpu"
    dtype : float32 (default) or float64
        Of parameters and running statistics. Input of float32, float64, float16 and bfloat16
        is taken, whatever this is, and the output has the input's dtype.
    r_max, d_max : number, or callable of the step
        The limits, at least 1 and 0, ``math.inf`` for none. A callable is asked before each
        training batch, with the number of batches before it. By default the paper's
        schedule: batch norm for 5,000 steps, then ``r_max`` grows to 3 until step 40,000 and
        ``d_max`` to 5 until step 25,000. Where a whole training has fewer steps, give a
        shorter `Ramp`, or nothing is renormalized.
    bias : bool
        False: a weight, but no bias.
    axis : int
        Channel axis of a batch; -1 for channels last.
    on_nonfinite : {"propagate", "skip", "raise"}
        What a training batch with NaN or infinity does to the running averages and
        the counter: `fastbn.batch_norm` says more.

    Raises
    ------
    TypeError, ValueError
        In the constructor, if an argument is not one of these; in a training call, if a callable
        gives no such limit. Nothing has been changed then.
    NotImplementedError
        On a device. Train on the CPU, or take batch norm there.

    References
    ----------
    Ioffe, "Batch Renormalization: Towards Reducing Minibatch Dependence in
    Batch-Normalized Models", 2017, algorithm 1 and section 3.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> ramp = fastbn.Ramp(1, 3, 100, 1000)
    >>> layer = fastbn.{name}(3, r_max=ramp, d_max=fastbn.Ramp(0, 5, 100, 500))
    >>> layer(np.random.default_rng(0).normal(5, 10, {shape}).astype(np.float32)).shape
    {shape}
    >>> ramp(0), ramp(550), ramp(2000)
    (1.0, 2.0, 3.0)
    """


@dataclass(frozen=True)
class Ramp:
    """A number that goes linearly from one value to another while training goes on.

    For ``r_max`` and ``d_max`` of batch renormalization. ``Ramp(1, 3, 5_000, 40_000)`` and
    ``Ramp(0, 5, 5_000, 25_000)`` are those of the paper (Ioffe 2017, section 3).

    Parameters
    ----------
    start, end : float
        Until step ``first``, and from step ``last`` on.
    first, last : int
        Steps, which count from 0.

    Raises
    ------
    TypeError, ValueError
        If one is not a number, or ``last`` is before ``first``.

    Examples
    --------
    >>> import fastbn
    >>> ramp = fastbn.Ramp(1, 3, 5_000, 40_000)
    >>> ramp(0), ramp(22_500), ramp(100_000)
    (1.0, 2.0, 3.0)
    """

    start: float
    end: float
    first: int
    last: int

    def __post_init__(self) -> None:
        for name in ("start", "end", "first", "last"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, numbers.Real):
                raise TypeError(f"{name} must be a number, got {value!r} ({type(value).__name__})")
            if not math.isfinite(value):
                raise ValueError(f"{name} must be finite, got {value!r}")
        if self.last < self.first:
            raise ValueError(f"last must not be before first, got {self.last} and {self.first}")

    def __call__(self, step: int) -> float:
        """The value at a step."""
        if step >= self.last:
            return float(self.end)
        if step <= self.first:
            return float(self.start)
        done = (step - self.first) / (self.last - self.first)
        return self.start + done * (self.end - self.start)


#: Those of the paper.
R_MAX, D_MAX = Ramp(1, 3, 5_000, 40_000), Ramp(0, 5, 5_000, 25_000)


class BatchRenorm(BatchNorm):
    """A batch renormalization layer; subclasses say which inputs they take."""

    __slots__ = {  # noqa: RUF023, with what `help` says of them
        "r_max": "Limit of the correction of the scale: a number, or a callable of the step.",
        "d_max": "Limit of the correction of the mean: a number, or a callable of the step.",
    }
    r_max: float | Callable[[int], float]
    d_max: float | Callable[[int], float]

    @hide_foreign
    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Device = None,
        dtype: DTypeLike | None = None,
        *,
        r_max: float | Callable[[int], float] = R_MAX,
        d_max: float | Callable[[int], float] = D_MAX,
        bias: bool = True,
        axis: int = 1,
        on_nonfinite: OnNonfinite = "propagate",
        **foreign: NoReturn,
    ) -> None:
        if foreign:
            refuse(type(self), foreign)
        self._refuse_device(device)
        if not settings.check_bool("track_running_stats", track_running_stats):
            raise ValueError(
                f"{type(self).__name__} needs running statistics, which it corrects each batch's "
                f"by, got track_running_stats=False; take {self._batch_norm} to go without them"
            )
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias,
            axis=axis, on_nonfinite=on_nonfinite,
        )  # fmt: skip
        self.r_max, self.d_max = r_max, d_max

    @property
    def _batch_norm(self) -> str:
        """The layer for the same inputs, for messages."""
        return type(self).__name__.replace("Renorm", "Norm")

    def _refuse_device(self, device: Any) -> None:
        if settings.check_device(device) != "cpu":
            raise NotImplementedError(
                f"there is no {type(self).__name__} on a device yet, got device={device!r}; train "
                f"on the CPU, or take {self._batch_norm} there, which loads this layer's state dict"
            )

    def to(self: _Layer, device: Device) -> _Layer:
        """Stay on the CPU: there is no batch renormalization on a device yet."""
        self._refuse_device(device)
        return super().to(device)

    def _checked(self, name: str, value: Any) -> Any:
        if name in ("r_max", "d_max"):
            return settings.check_limit(name, value)
        if name == "virtual_batch_size" and value is not None:
            raise ValueError(
                f"there is no {type(self).__name__} of virtual batches, got virtual_batch_size="
                f"{value!r}; {self._batch_norm} has them"
            )
        return super()._checked(name, value)

    @property
    def _plain_training(self) -> bool:
        return False

    def _call(self, x: Any, axis: int, out: Any, fused: Any, mask: Any) -> Forward:
        if not self._in_training:
            return super()._call(x, axis, out, fused, mask)
        backend.cpu_only(x, "batch renormalization")
        otherwise = f"with {self._batch_norm}"
        refuse_with("batch renormalization", x, fused, mask, otherwise, self._is_batch(x))
        return renorm.Renorm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.momentum,
            self.eps, axis, out, self.on_nonfinite, self.num_batches_tracked, self.r_max,
            self.d_max,
        )  # fmt: skip

    def _unusual(self) -> str:
        return f", r_max={self.r_max}, d_max={self.d_max}{super()._unusual()}"


@documented((4, 3, 16), _DOCUMENTATION)
class BatchRenorm1d(BatchRenorm):
    """Batch renormalization of ``(N, C)`` or ``(N, C, L)``, per channel over N (and L)."""

    __slots__ = ()
    _takes, _rank = BatchNorm1d._takes, BatchNorm1d._rank
    _axis_of = BatchNorm1d._axis_of


@documented((4, 3, 8, 8), _DOCUMENTATION)
class BatchRenorm2d(BatchRenorm):
    """Batch renormalization of ``(N, C, H, W)``, or one sample ``(C, H, W)``, per channel."""

    __slots__ = ()
    _takes, _rank = BatchNorm2d._takes, BatchNorm2d._rank


@documented((4, 3, 2, 8, 8), _DOCUMENTATION)
class BatchRenorm3d(BatchRenorm):
    """Batch renormalization of ``(N, C, D, H, W)``, or one sample ``(C, D, H, W)``."""

    __slots__ = ()
    _takes, _rank = BatchNorm3d._takes, BatchNorm3d._rank
