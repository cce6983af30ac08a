"""What all batch normalization layers share: calls and gradients. Their state: `state`."""

from typing import Any, ClassVar, NoReturn

import numpy as np

from fastbn._call import arguments, prepared
from fastbn._call.keywords import refuse
from fastbn._call.operations import Forward, ForwardCache, remembered
from fastbn.functional import Gradients, batch_norm_backward
from fastbn.layers.inputs import does_not_fit
from fastbn.layers.state import State

#: Sets ``_cache`` without a look at its name, which would take a twentieth of a small call.
_keep = vars(State)["_cache"].__set__


class BatchNorm(State):
    """A batch normalization layer; subclasses say which inputs they take."""

    __slots__ = ()

    #: Numbers of dimensions taken, the last of them that of a batch, and their shapes.
    _dimensions: ClassVar[tuple[int, ...]]
    _shapes: ClassVar[tuple[str, ...]]

    # --- calls ------------------------------------------------------------------------------

    def __call__(
        self, x: np.ndarray, *, out: np.ndarray | None = None, **foreign: NoReturn
    ) -> np.ndarray:
        """``forward(x, out=out)``."""
        if foreign:
            refuse(f"a call of {type(self).__name__}", foreign, ("x", "out"))
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
            y, cache = self.forward_with_cache(x, out=out)
            _keep(self, cache)
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
            If there is no cache and no training forward to take one from: `eval`, `freeze`,
            `load_state_dict` and the resets forget the last one.
        """
        cache = self._cache if cache is None else cache
        if cache is None:
            mode = "a frozen layer" if self._frozen else "evaluation mode"
            raise RuntimeError(
                "nothing to differentiate: there was no training forward since the layer was made, "
                "loaded, reset, frozen or put in evaluation mode; call it in train() mode first, "
                f"or, for gradients through {mode}, take y, cache = bn.forward_with_cache(x) and "
                "bn.backward(dy, cache)"
            )
        return batch_norm_backward(dy, cache)

    def _checked(self, x: Any, out: Any) -> Forward:
        """The call with all its checks."""
        x = arguments.as_array("x", x)
        axis = self._axis_of(x.ndim) if x.ndim in self._dimensions else None
        if axis is None or x.shape[axis] != self.num_features:
            raise ValueError(
                does_not_fit(type(self).__name__, self._shapes, self.num_features, x.shape, axis)
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
