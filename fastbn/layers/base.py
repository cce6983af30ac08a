"""What all batch normalization layers share: parameters, statistics, modes, state."""

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np

from fastbn._call import arguments, prepared
from fastbn._call.operations import Forward, ForwardCache, remembered
from fastbn._call.views import assign_all
from fastbn.functional import Gradients, batch_norm_backward
from fastbn.kernels import formulas
from fastbn.layers.state_dict import IncompatibleKeys, read_state

_Layer = TypeVar("_Layer", bound="BatchNorm")


class BatchNorm:
    """State of a batch normalization layer; subclasses say which inputs they take."""

    #: Numbers of dimensions taken, and how error messages describe them.
    _dimensions: ClassVar[tuple[int, ...]]
    _shapes: ClassVar[str]

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        axis: int = 1,
        on_nonfinite: str = "propagate",
    ) -> None:
        self.num_features = arguments.check_num_features(num_features)
        self.eps = arguments.check_eps(eps)
        self.momentum = None if momentum is None else arguments.check_momentum(momentum)
        self.affine = arguments.check_bool("affine", affine)
        self.track_running_stats = arguments.check_bool("track_running_stats", track_running_stats)
        bias = arguments.check_bool("bias", bias)
        self.axis = self._check_axis(axis)
        self.on_nonfinite = arguments.check_on_nonfinite(on_nonfinite)
        arguments.check_device(device)
        dtype = arguments.parameter_dtype(dtype)
        size = self.num_features
        self.weight = np.empty(size, dtype) if self.affine else None
        self.bias = np.empty(size, dtype) if self.affine and bias else None
        self.running_mean = np.empty(size, dtype) if self.track_running_stats else None
        self.running_var = np.empty(size, dtype) if self.track_running_stats else None
        self.num_batches_tracked = np.array(0, np.int64) if self.track_running_stats else None
        self._training, self._frozen = True, False
        self._in_training = True  # whether the next call is one of training: both say so
        self._cache: ForwardCache | None = None
        self.reset_parameters()

    # --- calls ------------------------------------------------------------------------------

    def __call__(self, x: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
        """``forward(x, out=out)``."""
        return self.forward(x, out=out)

    def forward(self, x: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
        """Normalize ``x``: with its own statistics in training, else with the running ones.

        A training call updates the running statistics and remembers what `backward`
        needs. An evaluation call changes nothing on the layer, so many threads may
        make one at once. Formula, semantics and errors: `fastbn.batch_norm`.

        Parameters
        ----------
        x : ndarray of float32 or float64
            A batch, or for 2d and 3d a single sample, which is then a batch of one.
            An empty batch gives an empty output and changes nothing.
        out : ndarray, optional
            Where to write; shape and dtype of ``x``; ``out=x`` works in place.

        Returns
        -------
        y : ndarray
            Shape, dtype and memory order of ``x``.
        """
        if self._in_training:
            y, self._cache = self.forward_with_cache(x, out=out)
            return y
        if type(x) is np.ndarray and x.ndim in self._dimensions:
            found = prepared.evaluate(
                x, self.running_mean, self.running_var, self.weight, self.bias,
                self.eps, self._axis_of(x.ndim), out,
            )  # fmt: skip
            if found is not None:
                return found
        return self._checked(x, out).run()

    def forward_with_cache(
        self, x: np.ndarray, *, out: np.ndarray | None = None
    ) -> tuple[np.ndarray, ForwardCache]:
        """`forward`, and its cache for a `backward` in either mode; the layer keeps none."""
        if self._in_training and self.on_nonfinite == "propagate" and self._fits(x):
            found = prepared.train(
                x, self.running_mean, self.running_var, self.weight, self.bias, self.momentum,
                self.eps, self._axis_of(x.ndim), out, self.num_batches_tracked,
            )  # fmt: skip
            if found is not None:
                y, statistics, axis = found
                return y, remembered(x, axis, statistics, self.weight, self.bias, y)
        call = self._checked(x, out)
        y = call.run()
        return y, call.cache()

    def _fits(self, x: Any) -> bool:
        """Whether ``x`` is a plain array with the layer's dimensions and channels."""
        return (
            type(x) is np.ndarray and x.ndim in self._dimensions
            and x.shape[self._axis_of(x.ndim)] == self.num_features
        )  # fmt: skip

    def backward(self, dy: np.ndarray, cache: ForwardCache | None = None) -> Gradients:
        """Gradients in ``x``, ``weight`` and ``bias``: `fastbn.batch_norm_backward`.

        Parameters
        ----------
        dy : ndarray
            Gradient of the loss in the output.
        cache : ForwardCache, optional
            From `forward_with_cache`; by default that of the last training forward.

        Raises
        ------
        RuntimeError
            If there is no cache and no training forward to take one from.
        """
        cache = self._cache if cache is None else cache
        if cache is None:
            raise RuntimeError(
                "nothing to differentiate: there was no training forward; call the layer in "
                "train() mode first, or y, cache = forward_with_cache(x) and backward(dy, cache)"
            )
        return batch_norm_backward(dy, cache)

    def _checked(self, x: Any, out: Any) -> Forward:
        """The call with all its checks."""
        x = arguments.as_array("x", x)
        if x.ndim not in self._dimensions:
            raise ValueError(
                f"{type(self).__name__} expects {self._shapes}, got {x.ndim} dimensions: "
                f"shape {x.shape}"
            )
        axis = self._axis_of(x.ndim)
        if x.shape[axis] != self.num_features:
            raise ValueError(
                f"{type(self).__name__} has num_features={self.num_features}, but x of shape "
                f"{x.shape} has {x.shape[axis]} channels on axis {axis}"
            )
        return Forward(
            x, self.running_mean, self.running_var, self.weight, self.bias, self._in_training,
            self.momentum, self.eps, axis, out, self.on_nonfinite, self.num_batches_tracked,
        )  # fmt: skip

    # --- axes -------------------------------------------------------------------------------

    def _check_axis(self, axis: Any) -> int:
        position = arguments.as_axis(axis)
        rank = self._dimensions[-1]
        if position % rank == 0 or not -rank < position < rank:
            raise ValueError(
                f"axis must be 1 to {rank - 1} or -1 to {1 - rank} (axis 0 is the batch), "
                f"got {axis!r}"
            )
        return position

    def _axis_of(self, ndim: int) -> int:
        """Channel axis of an input: a single sample lacks the batch axis."""
        if self.axis < 0 or ndim == self._dimensions[-1]:
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
        """Go to training mode (evaluation if ``mode`` is False); returns the layer."""
        return self._set_mode(arguments.check_bool("mode", mode), self._frozen)

    def eval(self: _Layer) -> _Layer:
        """Go to evaluation mode; returns the layer."""
        return self.train(False)

    def freeze(self: _Layer) -> _Layer:
        """Stay in evaluation mode whatever `train` says, as in fine-tuning; returns the layer."""
        return self._set_mode(self._training, frozen=True)

    def unfreeze(self: _Layer) -> _Layer:
        """Obey `train` and `eval` again; returns the layer."""
        return self._set_mode(self._training, frozen=False)

    def _set_mode(self: _Layer, training: bool, frozen: bool) -> _Layer:
        self._training, self._frozen = training, frozen
        self._in_training = training and not frozen
        return self

    # --- state ------------------------------------------------------------------------------

    def reset_running_stats(self) -> None:
        """Running mean 0, running variance 1, no batches tracked."""
        self._fill({"running_mean": 0, "running_var": 1, "num_batches_tracked": 0})

    def reset_parameters(self) -> None:
        """Weight 1, bias 0, and `reset_running_stats`."""
        self._fill({"weight": 1, "bias": 0})
        self.reset_running_stats()

    def _fill(self, values: dict[str, int]) -> None:
        arrays = self._arrays()
        names = [name for name in values if name in arrays]
        assign_all([arrays[name] for name in names], [values[name] for name in names])

    def _arrays(self) -> dict[str, np.ndarray]:
        names = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def state_dict(self, prefix: str = "") -> dict[str, np.ndarray]:
        """Copies of parameters and running statistics under torch's names.

        Keys are ``weight``, ``bias``, ``running_mean``, ``running_var`` and
        ``num_batches_tracked`` (int64), those that the layer has, after ``prefix``.
        """
        return {prefix + name: array.copy() for name, array in self._arrays().items()}

    def load_state_dict(
        self, state: Mapping[str, Any], prefix: str = "", strict: bool = True
    ) -> IncompatibleKeys:
        """Load arrays under torch's names, all or nothing, into the layer's own arrays.

        Parameters
        ----------
        state : mapping of str to array
            NumPy arrays or what converts to them, such as torch's CPU tensors.
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
        assign_all([arrays[name] for name in values], values.values())
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
        weight = 1.0 if self.weight is None else self.weight.astype(np.float64)
        bias = 0.0 if self.bias is None else self.bias.astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            rstd = formulas.reciprocal_std(self.running_var.astype(np.float64), self.eps)
            scale, shift = formulas.affine_terms(
                self.running_mean.astype(np.float64), rstd, weight, bias
            )
            dtype = self.running_mean.dtype
            return scale.astype(dtype), shift.astype(dtype)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the last forward's cache, which refers to a whole batch."""
        return {**self.__dict__, "_cache": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Give arrays NumPy's own dtype objects, quick to compare; pickle makes others."""
        self.__dict__.update(state)
        for name, array in self._arrays().items():
            copy = self.__dict__[name] = np.empty(array.shape, array.dtype.type)
            copy[...] = array

    def __repr__(self) -> str:
        axis = "" if self.axis == 1 else f", axis={self.axis}"
        return (
            f"{type(self).__name__}({self.num_features}, eps={self.eps}, "
            f"momentum={self.momentum}, affine={self.affine}, bias={self.bias is not None}, "
            f"track_running_stats={self.track_running_stats}{axis})"
        )
