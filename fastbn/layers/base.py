"""What all batch normalization layers share: calls and gradients. Their state: `state`."""

from __future__ import annotations  # so that `help` shows types as they are written here

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import DTypeLike

from fastbn._call import arguments, backend, ghost, places, prepared, settings
from fastbn._call.epilogue import Activation, check_activation, refuse_with
from fastbn._call.keywords import hide_foreign, refuse, refuse_call
from fastbn._call.operations import Forward, ForwardCache, cache_of
from fastbn._call.settings import Device, OnNonfinite
from fastbn.functional import Gradients, batch_norm_backward
from fastbn.layers.layer import keep_cache
from fastbn.layers.state import LayerState


class BatchNorm(LayerState):
    """A batch normalization layer; subclasses say which inputs they take."""

    __slots__ = {  # noqa: RUF023, with what `help` says of them
        "activation": "What the output goes through, in the same pass; or None.",
        "negative_slope": "Of leaky_relu.",
        "virtual_batch_size": "Samples of a group that is normalized by itself in training; "
        "None: all.",
        "_watch": "What sees inputs and says which statistics normalize, in `recalibrate`.",
    }
    activation: Activation | None
    negative_slope: float
    virtual_batch_size: int | None
    _watch: Callable[[Any, int, Any], tuple[Any, Any]] | None

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
        activation: Activation | None = None,
        negative_slope: float = 0.01,
        virtual_batch_size: int | None = None,
        **foreign: NoReturn,
    ) -> None:
        if foreign:
            refuse(type(self), foreign)
        self.activation, self.negative_slope = activation, negative_slope
        self.virtual_batch_size = virtual_batch_size
        self._watch = None
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias,
            axis=axis, on_nonfinite=on_nonfinite,
        )  # fmt: skip

    def _checked(self, name: str, value: Any) -> Any:
        match name:
            case "activation":
                value = check_activation(value)
                self._check_together(value, getattr(self, "virtual_batch_size", None))
                return value
            case "negative_slope":
                return settings.check_slope(value)
            case "virtual_batch_size":
                value = settings.check_virtual_batch_size(value)
                self._check_together(getattr(self, "activation", None), value)
                return value
        return super()._checked(name, value)

    def _check_together(self, activation: str | None, size: int | None) -> None:
        """Refuse both while the layer is made or trains; in evaluation there are no groups."""
        if activation is None or size is None or not getattr(self, "_in_training", True):
            return
        raise NotImplementedError(
            "ghost batch norm has no activation yet, got virtual_batch_size="
            f"{size} and activation={activation!r}; apply the activation to the output, or, to "
            f"evaluate with it, set it after eval() or freeze(): bn.activation = {activation!r}"
        )

    def _unusual(self) -> str:
        leaky, size = self.activation == "leaky_relu", self.virtual_batch_size
        return (
            super()._unusual()
            + ("" if self.activation is None else f", activation={self.activation!r}")
            + (f", negative_slope={self.negative_slope}" if leaky else "")
            + ("" if size is None else f", virtual_batch_size={size}")
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Pickles of before there were these settings have none."""
        later = {"activation": None, "negative_slope": 0.01, "virtual_batch_size": None}
        super().__setstate__({**later, **state, "_watch": None})  # a copy is not watched

    # --- calls ------------------------------------------------------------------------------

    if TYPE_CHECKING:  # so that who overrides it need not take foreign names

        def __call__(
            self,
            x: np.ndarray,
            *,
            out: np.ndarray | None = None,
            residual: np.ndarray | None = None,
            mask: np.ndarray | None = None,
        ) -> np.ndarray:
            """Normalize ``x``: `forward`, which says more."""
    else:

        @hide_foreign
        def __call__(
            self,
            x: np.ndarray,
            *,
            out: np.ndarray | None = None,
            residual: np.ndarray | None = None,
            mask: np.ndarray | None = None,
            **foreign: NoReturn,
        ) -> np.ndarray:
            """Normalize ``x``: `forward`, which says more."""
            if foreign:
                self._refuse_call(foreign)
            return self.forward(x, out=out, residual=residual, mask=mask)

    def _refuse_call(self, foreign: Mapping[str, object]) -> NoReturn:
        """Raise the error of keywords that a call does not have."""
        refuse_call(self, foreign, ("x", "out", "residual", "mask"))

    def forward(
        self,
        x: np.ndarray,
        *,
        out: np.ndarray | None = None,
        residual: np.ndarray | None = None,
        mask: np.ndarray | None = None,
    ) -> np.ndarray:
        """Normalize ``x``: with its own statistics in training, else with the running ones.

        A training call updates the running statistics and remembers what `backward`
        needs. An evaluation call changes nothing on the layer, so many threads may
        make one at once. Formula, semantics and errors: `fastbn.batch_norm`.

        Parameters
        ----------
        x : ndarray of float32, float64, float16 or bfloat16
            A batch, or for 2d and 3d a single sample, which is then a batch of one.
            An empty batch gives an empty output and changes nothing.
        out : ndarray, optional
            Where to write; shape and dtype of ``x``; ``out=x`` works in place.
        residual : ndarray, optional
            Added before the layer's activation, in the same pass; shape and dtype of ``x``.
        mask : ndarray of bool, optional
            True where a value goes into the statistics of a training batch; broadcasts to ``x``.

        Returns
        -------
        y : ndarray
            Shape, dtype and memory order of ``x``.
        """
        if self._in_training or self._watch is not None:
            return self.forward_with_cache(x, out=out, residual=residual, mask=mask)[0]
        if mask is None and type(x) is np.ndarray and x.ndim in self._takes:
            found = prepared.evaluate(
                x, self.running_mean, self.running_var, self.weight, self.bias, self.eps,
                self._axis_of(x.ndim), out, self.activation, self.negative_slope, residual,
            )  # fmt: skip
            if found is not None:
                return found
        return self._checked_call(x, out, residual, mask).run()

    def forward_with_cache(
        self,
        x: np.ndarray,
        *,
        out: np.ndarray | None = None,
        residual: np.ndarray | None = None,
        mask: np.ndarray | None = None,
    ) -> tuple[np.ndarray, ForwardCache]:
        """`forward`, and what `backward` needs of it, in either mode.

        A training call is remembered by the layer as well, an evaluation call is not.
        """
        if not self._in_training or self._watch is not None:
            call = self._checked_call(x, out, residual, mask)
            return call.run(), call.cache()
        y, cache = self._train(x, out, residual, mask)
        if self._in_training:  # or another thread has said otherwise meanwhile
            keep_cache(self, cache)
        return y, cache

    def _train(self, x: Any, out: Any, residual: Any, mask: Any) -> tuple[np.ndarray, ForwardCache]:
        if mask is None and self._plain_training and self._fits(x):
            activation, slope = self.activation, self.negative_slope
            found = prepared.train(
                x, self.running_mean, self.running_var, self.weight, self.bias, self.momentum,
                self.eps, self._axis_of(x.ndim), out, activation, slope, residual,
                self.num_batches_tracked,
            )  # fmt: skip
            if found is not None:
                y, statistics, axis = found
                return y, cache_of(
                    x, axis, statistics, self.weight, self.bias, self.eps, y, activation, slope,
                    residual,
                )  # fmt: skip
        call = self._checked_call(x, out, residual, mask)
        return call.run(), call.cache()

    @property
    def _plain_training(self) -> bool:
        """Whether a training call is nothing but that of `prepared`."""
        return self.virtual_batch_size is None and self.on_nonfinite == "propagate"

    def _fits(self, x: Any) -> bool:
        """Whether ``x`` is a plain array with the layer's dimensions and channels."""
        return (
            type(x) is np.ndarray and x.ndim in self._takes
            and x.shape[self._axis_of(x.ndim)] == self.num_features
        )  # fmt: skip

    def _is_batch(self, x: Any) -> bool:
        """Not a single sample."""
        return "N" in self._takes[len(x.shape)]

    def backward(
        self, dy: np.ndarray, cache: ForwardCache | None = None, *, out: np.ndarray | None = None
    ) -> Gradients:
        """Gradients in ``x``, ``weight`` and ``bias``: `fastbn.batch_norm_backward`.

        Parameters
        ----------
        dy : ndarray
            Gradient of the loss in the output.
        cache : ForwardCache, optional
            From `forward_with_cache`; by default that of the last training forward.
        out : ndarray, optional
            Where to write the gradient of ``x``; ``out=dy`` works in place.

        Raises
        ------
        RuntimeError
            If there is no cache and no training forward to take one from: `eval`, `freeze`,
            `load_state_dict` and the resets forget the last one.
        """
        return batch_norm_backward(dy, self._or_last(cache), out=out)

    def _checked_call(self, x: Any, out: Any, residual: Any, mask: Any) -> Forward:
        """The call with all its checks."""
        if not (places.on_device(x) or isinstance(x, np.ma.MaskedArray)):
            x = arguments.as_input(x)
        axis, fused = self._fitting_axis(x.shape), self._fused(residual)
        if self._watch is None:
            return self._call(x, axis, out, fused, mask)
        mean, var = self._watch(x, axis, mask)
        return backend.forward(
            x, mean, var, self.weight, self.bias, False, self.momentum, self.eps, axis, out,
            self.on_nonfinite, self.num_batches_tracked, fused, mask,
        )  # fmt: skip

    def _call(self, x: Any, axis: int, out: Any, fused: Any, mask: Any) -> Forward:
        """The call on an ``x`` that fits the layer, with all other checks."""
        if self.virtual_batch_size is not None and self._in_training and self._is_batch(x):
            if places.on_device(x):
                raise NotImplementedError(
                    "there is no ghost batch norm on a device yet; take the statistics of the "
                    "whole batch (bn.virtual_batch_size = None), or train on the CPU"
                )
            otherwise = "without groups: bn.virtual_batch_size = None"
            refuse_with("ghost batch norm", x, fused, mask, otherwise, True)
            return ghost.Ghost(
                x, self.running_mean, self.running_var, self.weight, self.bias, self.momentum,
                self.eps, axis, out, self.on_nonfinite, self.num_batches_tracked,
                self.virtual_batch_size,
            )  # fmt: skip
        return backend.forward(
            x, self.running_mean, self.running_var, self.weight, self.bias, self._in_training,
            self.momentum, self.eps, axis, out, self.on_nonfinite, self.num_batches_tracked,
            fused, mask,
        )  # fmt: skip

    def _fused(self, residual: Any) -> tuple[Any, float, Any] | None:
        """What a call takes for residual and activation; None if there are neither."""
        if residual is None and self.activation is None:
            return None
        return self.activation, self.negative_slope, residual
