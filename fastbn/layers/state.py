"""Settings and running statistics of a batch normalization layer."""

from __future__ import annotations  # so that `help` shows types as they are written here

from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn, TypeVar

import numpy as np
from numpy.typing import DTypeLike

from fastbn._call import arguments, settings
from fastbn._call.keywords import hide_foreign, refuse
from fastbn._call.settings import Device, OnNonfinite
from fastbn.kernels import formulas
from fastbn.layers.inputs import does_not_fit
from fastbn.layers.layer import Layer

_Layer = TypeVar("_Layer", bound="LayerState")


class LayerState(Layer):
    """Parameters, running statistics and settings of a layer."""

    __slots__ = {  # noqa: RUF023, with what `help` says of them
        "num_features": "Number of channels; fixed.",
        "momentum": "Weight of the new batch in the running statistics; None: cumulative average.",
        "affine": "Whether there is a weight; fixed.",
        "track_running_stats": "Whether there are running statistics; fixed.",
        "axis": "Channel axis of a batch.",
        "on_nonfinite": "What a batch with NaN or infinity does to the running statistics.",
        "running_mean": "What evaluation subtracts, shape (C,), or None.",
        "running_var": "What evaluation divides by the root of, shape (C,), or None.",
        "num_batches_tracked": "Batches in the running statistics: an int64 array of shape ().",
    }
    num_features: int
    momentum: float | None
    affine: bool
    track_running_stats: bool
    axis: int
    on_nonfinite: OnNonfinite
    running_mean: np.ndarray | Any
    running_var: np.ndarray | Any
    num_batches_tracked: np.ndarray | Any

    _fixed = frozenset({"num_features", "affine", "track_running_stats"})
    _MEASURED: ClassVar[dict[str, int]] = {
        "running_mean": 0, "running_var": 1, "num_batches_tracked": 0
    }  # fmt: skip
    #: Shapes that the layer takes, by their number of dimensions; that of a batch is `_rank`.
    _takes: ClassVar[Mapping[int, str]]
    _rank: ClassVar[int]

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
        bias: bool = True,
        axis: int = 1,
        on_nonfinite: OnNonfinite = "propagate",
        **foreign: NoReturn,
    ) -> None:
        if foreign:
            refuse(type(self), foreign)
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        bias = settings.check_bool("bias", bias)
        self.axis = axis
        self.on_nonfinite = on_nonfinite
        self._start(device, dtype, self.affine, bias)

    def _start_measuring(self, dtype: np.dtype) -> None:
        tracks = self.track_running_stats
        self.running_mean = self._zeros(dtype) if tracks else None
        self.running_var = self._zeros(dtype) if tracks else None
        self.num_batches_tracked = np.array(0, np.int64) if tracks else None

    def _checked(self, name: str, value: Any) -> Any:
        match name:
            case "num_features":
                return settings.check_num_features(value)
            case "momentum":
                return None if value is None else settings.check_momentum(value)
            case "affine" | "track_running_stats":
                return settings.check_bool(name, value)
            case "axis":
                return self._checked_axis(value)
            case "on_nonfinite":
                return settings.check_on_nonfinite(value)
        return super()._checked(name, value)

    @property
    def _shape(self) -> tuple[int, ...]:
        return (self.num_features,)

    @property
    def _of(self) -> str:
        return f"the layer has num_features={self.num_features}"

    # --- inputs -----------------------------------------------------------------------------

    def _checked_axis(self, axis: Any) -> int:
        position = arguments.as_axis(axis)
        if position % self._rank == 0 or not -self._rank < position < self._rank:
            raise ValueError(
                f"axis must be 1 to {self._rank - 1} or -1 to {1 - self._rank} (axis 0 is the "
                f"batch), got {axis!r}"
            )
        return position

    def _axis_of(self, ndim: int) -> int:
        """Channel axis of an input: a single sample lacks the batch axis."""
        if self.axis < 0 or ndim == self._rank:
            return self.axis
        return self.axis - 1

    def _fitting_axis(self, shape: tuple[int, ...]) -> int:
        """Channel axis of an input of that shape; ValueError if the layer takes no such input."""
        axis = self._axis_of(len(shape)) if len(shape) in self._takes else None
        if axis is None or shape[axis] not in (self.num_features, 0):  # see `check_parameter`
            name = type(self).__name__
            raise ValueError(does_not_fit(name, self._takes, self.num_features, shape, axis))
        return axis

    # --- modes ------------------------------------------------------------------------------

    def freeze(self: _Layer) -> _Layer:
        """Stay in evaluation mode whatever `train` says, as in fine-tuning; returns the layer.

        Gradients then come from ``y, cache = bn.forward_with_cache(x)`` and
        ``bn.backward(dy, cache)``: through the running statistics, as constants.
        """
        return self._set_mode(self._training, frozen=True)

    def unfreeze(self: _Layer) -> _Layer:
        """Obey `train` and `eval` again; returns the layer."""
        return self._set_mode(self._training, frozen=False)

    @property
    def _way_to_gradients(self) -> str:
        return (
            "eval(), freeze(), loading and resets forget the last one; call bn(x) in train() mode "
            "first, or, frozen or in evaluation too, y, cache = bn.forward_with_cache(x) and then "
            "bn.backward(dy, cache)"
        )

    # --- arrays -----------------------------------------------------------------------------

    def reset_running_stats(self) -> None:
        """Running mean 0, running variance 1, no batches tracked."""
        self._fill(self._MEASURED)

    def affine_terms(self) -> tuple[np.ndarray, np.ndarray]:
        """What evaluation applies before residual and activation: ``x * scale + shift``.

        ``scale = weight / sqrt(running_var + eps)`` and
        ``shift = bias - running_mean * scale``, worked out in float64 and rounded to
        the dtype of the running statistics.

        Raises
        ------
        RuntimeError
            If the layer tracks no running statistics, and so has no such terms.
        """
        if self.running_mean is None or self.running_var is None:
            raise RuntimeError(
                "affine_terms needs running statistics, and this layer was made with "
                "track_running_stats=False: its scale and shift depend on each batch"
            )
        arrays = {name: array.astype(np.float64) for name, array in self.state_dict().items()}
        weight, bias = arrays.get("weight", 1.0), arrays.get("bias", 0.0)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            rstd = formulas.reciprocal_std(arrays["running_var"], self.eps)
            scale, shift = formulas.affine_terms(arrays["running_mean"], rstd, weight, bias)
            dtype = self.running_mean.dtype
            return scale.astype(dtype), shift.astype(dtype)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.num_features}, eps={self.eps}, "
            f"momentum={self.momentum}, affine={self.affine}, bias={self.bias is not None}, "
            f"track_running_stats={self.track_running_stats}{self._unusual()})"
        )

    def _unusual(self) -> str:
        """What differs from the default and torch does not show."""
        dtypes = {array.dtype.name for array in self._arrays().values() if array.shape}
        unusual = {
            "device": repr(self._device) if self._device != "cpu" else "",
            "dtype": " and ".join(sorted(dtypes - {"float32"})),
            "axis": self.axis if self.axis != 1 else "",
            "on_nonfinite": repr(self.on_nonfinite) if self.on_nonfinite != "propagate" else "",
            "frozen": self._frozen or "",
        }
        return "".join(f", {name}={value}" for name, value in unusual.items() if value != "")
