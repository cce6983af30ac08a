"""What a batch normalization layer is made of: arrays, settings and modes; how they are kept."""

from __future__ import annotations  # so that `help` shows types as they are written here

from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn, TypeVar

import numpy as np
from numpy.typing import DTypeLike

from fastbn._call import arguments, backend, places, settings
from fastbn._call.keywords import hide_foreign, refuse
from fastbn._call.operations import ForwardCache
from fastbn._call.settings import Device, OnNonfinite
from fastbn.kernels import formulas
from fastbn.layers.attributes import Attributes
from fastbn.layers.state_dict import IncompatibleKeys, read_state

_Layer = TypeVar("_Layer", bound="LayerState")


class LayerState(Attributes):
    """Parameters, running statistics and settings of a layer."""

    __slots__ = {  # noqa: RUF023, with what `help` says of them
        "num_features": "Number of channels; fixed.",
        "eps": "Added to the variance inside the root.",
        "momentum": "Weight of the new batch in the running statistics; None: cumulative average.",
        "affine": "Whether there is a weight; fixed.",
        "track_running_stats": "Whether there are running statistics; fixed.",
        "axis": "Channel axis of a batch.",
        "on_nonfinite": "What a batch with NaN or infinity does to the running statistics.",
        "weight": "Scale (gamma), shape (C,), or None.",
        "bias": "Shift (beta), shape (C,), or None.",
        "running_mean": "What evaluation subtracts, shape (C,), or None.",
        "running_var": "What evaluation divides by the root of, shape (C,), or None.",
        "num_batches_tracked": "Batches in the running statistics: an int64 array of shape ().",
        "_cache": "The last training forward.",
        "_device": "Where the arrays are: cpu, cuda or cuda:1.",
        "_frozen": "Whether `training` is False whatever `train` says.",
        "_in_training": "`_training` and not `_frozen`, kept because every call asks.",
        "_training": "What `train` and `eval` said.",
    }
    num_features: int
    eps: float
    momentum: float | None
    affine: bool
    track_running_stats: bool
    axis: int
    on_nonfinite: OnNonfinite
    # "| Any", not "| None": who trains a layer knows that it has them, and needs no assert
    weight: np.ndarray | Any
    bias: np.ndarray | Any
    running_mean: np.ndarray | Any
    running_var: np.ndarray | Any
    num_batches_tracked: np.ndarray | Any
    _cache: ForwardCache | None
    _device: str
    _frozen: bool
    _in_training: bool
    _training: bool

    _fixed = frozenset({"num_features", "affine", "track_running_stats"})
    #: Arrays, in the order of torch's state dicts, and what they start from: those that learn, and
    #: those that are measured.
    _LEARNS: ClassVar[dict[str, int]] = {"weight": 1, "bias": 0}
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
        self._device = settings.check_device(device)
        kind = settings.parameter_dtype(dtype)
        size = self.num_features
        self.weight = backend.zeros(size, kind, self._device) if self.affine else None
        self.bias = backend.zeros(size, kind, self._device) if self.affine and bias else None
        self.running_mean = (
            backend.zeros(size, kind, self._device) if self.track_running_stats else None
        )
        self.running_var = (
            backend.zeros(size, kind, self._device) if self.track_running_stats else None
        )
        self.num_batches_tracked = np.array(0, np.int64) if self.track_running_stats else None
        self._set_mode(training=True, frozen=False)
        self.reset_parameters()

    def _checked(self, name: str, value: Any) -> Any:
        match name:
            case "num_features":
                return settings.check_num_features(value)
            case "eps":
                return settings.check_eps(value)
            case "momentum":
                return None if value is None else settings.check_momentum(value)
            case "affine" | "track_running_stats":
                return settings.check_bool(name, value)
            case "axis":
                return self._checked_axis(value)
            case "on_nonfinite":
                return settings.check_on_nonfinite(value)
            case "weight" | "bias" | "running_mean" | "running_var" | "num_batches_tracked":
                return self._checked_array(name, value)
        return value

    def _checked_array(self, name: str, value: Any) -> Any:
        had = getattr(self, name, value)  # not set yet while the layer is made
        if had is None and value is not None:
            raise ValueError(f"this layer was made without {name}; make another to have one")
        if had is not None and value is None:
            raise ValueError(
                f"{name} cannot be removed, got None; make a layer with affine=False, bias=False "
                "or track_running_stats=False"
            )
        if value is None:
            return None
        if name == "num_batches_tracked":
            return arguments.check_counter(value)
        if places.on_device(value) or self._device != "cpu":
            return self._checked_device_array(name, value, had)
        of = f"the layer has num_features={self.num_features}"
        array = arguments.check_vector(name, value, self.num_features, of)
        if array.dtype != had.dtype:
            raise ValueError(
                f"{name} has dtype {array.dtype}, expected that of the layer, {had.dtype}; "
                f"{name}.astype(np.{had.dtype.name})"
            )
        return arguments.check_variance(name, array) if name == "running_var" else array

    def _checked_device_array(self, name: str, value: Any, had: Any) -> Any:
        """On a device no value is looked at: that would wait for it."""
        if self._device == "cpu" or not places.on_device(value):
            raise TypeError(
                f"the layer is on {self._device!r}, and {name} of type {type(value).__name__} is "
                "not; copy it there, or move the layer: bn.to('cpu'), bn.to('cuda')"
            )
        value = backend.as_numba(value, had)
        if (value.shape, value.dtype) != ((self.num_features,), had.dtype):
            raise ValueError(
                f"{name} has shape {value.shape} and dtype {value.dtype}, expected "
                f"({self.num_features},) and {had.dtype}"
            )
        return value

    # --- axes -------------------------------------------------------------------------------

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

    # --- modes ------------------------------------------------------------------------------

    @property
    def training(self) -> bool:
        """Whether the next call takes batch statistics and updates the running ones."""
        return self._in_training

    @training.setter
    def training(self, mode: bool) -> None:
        self.train(mode)

    def train(self: _Layer, mode: bool = True) -> _Layer:
        """Take the statistics of each batch from now on, and learn from them; returns the layer.

        ``train(False)`` is `eval`.
        """
        return self._set_mode(settings.check_bool("mode", mode), self._frozen)

    def eval(self: _Layer) -> _Layer:
        """Use the running statistics from now on: before a trained layer serves; returns it."""
        return self.train(False)

    def freeze(self: _Layer) -> _Layer:
        """Stay in evaluation mode whatever `train` says, as in fine-tuning; returns the layer.

        Gradients then come from ``y, cache = bn.forward_with_cache(x)`` and
        ``bn.backward(dy, cache)``: through the running statistics, as constants.
        """
        return self._set_mode(self._training, frozen=True)

    def unfreeze(self: _Layer) -> _Layer:
        """Obey `train` and `eval` again; returns the layer."""
        return self._set_mode(self._training, frozen=False)

    def _set_mode(self: _Layer, training: bool, frozen: bool) -> _Layer:
        self._training, self._frozen = training, frozen
        self._in_training = training and not frozen
        if not self._in_training:
            self._cache = None
        return self

    # --- arrays -----------------------------------------------------------------------------

    def reset_running_stats(self) -> None:
        """Running mean 0, running variance 1, no batches tracked."""
        self._fill(self._MEASURED)

    def reset_parameters(self) -> None:
        """Weight 1, bias 0, and `reset_running_stats`."""
        self._fill({**self._LEARNS, **self._MEASURED})

    def _fill(self, values: dict[str, int]) -> None:
        arrays = self._arrays()
        names = [name for name in values if name in arrays]
        backend.assign_all([arrays[name] for name in names], [values[name] for name in names])
        self._cache = None

    def to(self: _Layer, device: Device) -> _Layer:
        """Move parameters and statistics to "cpu", "cuda" or "cuda:1"; returns the layer.

        The layer then takes arrays that lie there, and gives such.
        """
        place = settings.check_device(device)
        new = {
            name: backend.moved(array, place)
            for name, array in self._arrays().items()
            if name != "num_batches_tracked"  # is counted on the CPU, wherever the others are
        }
        self._device, self._cache = place, None
        for name, array in new.items():
            object.__setattr__(self, name, array)
        return self

    def parameters(self) -> dict[str, np.ndarray]:
        """The arrays that learn, by name: ``weight`` and ``bias``, those that the layer has.

        They are the layer's own: changing them in place is a step of an optimizer. Their
        gradients have the same names in `Gradients.parameters`.

        Examples
        --------
        >>> import numpy as np, fastbn
        >>> bn = fastbn.BatchNorm1d(2)
        >>> y = bn(np.array([[1.0, 0.0], [3.0, 8.0]], np.float32))
        >>> gradients = bn.backward(np.ones_like(y)).parameters()
        >>> for name, parameter in bn.parameters().items():
        ...     parameter -= 0.1 * gradients[name]
        >>> bn.weight, bn.bias
        (array([1., 1.], dtype=float32), array([-0.2, -0.2], dtype=float32))
        """
        return {name: array for name, array in self._arrays().items() if name in self._LEARNS}

    def _arrays(self) -> dict[str, np.ndarray]:
        """Those that the layer has, by name."""
        found = {name: getattr(self, name) for name in (*self._LEARNS, *self._MEASURED)}
        return {name: array for name, array in found.items() if array is not None}

    def state_dict(self, prefix: str = "") -> dict[str, np.ndarray]:
        """Copies of parameters and running statistics under torch's names, to be kept or sent.

        Keys are ``weight``, ``bias``, ``running_mean``, ``running_var`` and
        ``num_batches_tracked`` (int64), those that the layer has, after ``prefix``.
        """
        return {prefix + name: backend.to_numpy(array) for name, array in self._arrays().items()}

    def load_state_dict(
        self, state: Mapping[str, Any], prefix: str = "", strict: bool = True
    ) -> IncompatibleKeys:
        """Load arrays under torch's names, all or nothing, into the layer's own arrays.

        The mode stays as it is: a layer that is to serve needs `eval` as well.

        Parameters
        ----------
        state : mapping of str to array
            NumPy arrays or what converts to them, such as torch's CPU tensors. Where it has
            running statistics and no ``num_batches_tracked``, as files from before torch 0.4.1
            and hand-made ones, the counter starts at 0.
        prefix : str
            What stands before the names, e.g. ``"layer1.0.bn1."``; keys without it
            are not looked at.
        strict : bool
            Raise if a key is missing or unexpected; otherwise load what matches.

        Returns
        -------
        IncompatibleKeys
            ``missing_keys`` and ``unexpected_keys``, both empty if ``strict``.

        Raises
        ------
        KeyError
            If keys are missing or unexpected and ``strict``. Nothing was loaded.
        ValueError
            If a value has the wrong shape, is not numeric, or is a negative or NaN
            running variance. Nothing was loaded.
        """
        arrays = self._arrays()
        values, incompatible = read_state(state, prefix, arrays, strict)
        backend.assign_all([arrays[name] for name in values], values.values())
        self._cache = None
        return incompatible

    def affine_terms(self) -> tuple[np.ndarray, np.ndarray]:
        """What evaluation applies: ``y = x * scale + shift``, per channel.

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

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the last forward's cache, which refers to a whole batch.

        Arrays of a device are copied to host memory, and back when they are set.
        """
        arrays = {name: backend.to_numpy(array) for name, array in self._arrays().items()}
        return {**super().__getstate__(), **arrays, "_cache": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Give arrays NumPy's own dtype objects, quick to compare; pickle makes others."""
        state = dict(state)
        for name in (*self._LEARNS, *self._MEASURED):
            array = state[name]
            if array is not None:
                copy = state[name] = np.empty(array.shape, array.dtype.type)
                copy[...] = array
        place = state.setdefault("_device", "cpu")
        for name in (*self._LEARNS, "running_mean", "running_var"):
            if place != "cpu" and state[name] is not None:
                state[name] = backend.moved(state[name], place)
        super().__setstate__(state)

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


#: Sets ``_cache`` without a look at its name, which would take a twentieth of a small call.
keep_cache = vars(LayerState)["_cache"].__set__
