"""Batch normalization as pure functions: signatures and documentation; `_call` does the work.

State is passed in and, for running statistics, updated in place; nothing is
remembered between calls. Layers that hold the state are in `fastbn.layers`.
"""

from typing import Any, NamedTuple, NoReturn

import numpy as np

from fastbn._call import backend, prepared
from fastbn._call.caches import described
from fastbn._call.epilogue import Activation
from fastbn._call.keywords import hide_foreign, refuse
from fastbn._call.operations import ForwardCache, cache_of
from fastbn._call.settings import OnNonfinite
from fastbn.stats import ChannelStats

__all__ = [
    "ForwardCache",
    "Gradients",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_forward",
    "channel_stats",
]


class _Gradients(NamedTuple):
    x: np.ndarray
    # "| Any", not "| None": who trains a layer knows that it has them, and needs no assert
    weight: np.ndarray | Any
    bias: np.ndarray | Any


class Gradients(_Gradients):
    """Gradients of a loss in ``x``, ``weight`` and ``bias``; None without such a parameter.

    A tuple of these three. ``residual`` is the gradient in what was added, None if nothing was.
    It is shown with dtypes and shapes alone.
    """

    residual: np.ndarray | Any = None

    def __repr__(self) -> str:
        arrays = {**self._asdict(), "residual": self.residual}
        if self.residual is None:
            del arrays["residual"]
        shown = (f"{name}={described(array)}" for name, array in arrays.items())
        return f"{type(self).__name__}({', '.join(shown)})"

    def _replace(self, /, **fields: Any) -> "Gradients":
        """As of any named tuple; ``residual`` is kept, or replaced too."""
        residual = fields.pop("residual", self.residual)
        found = super()._replace(**fields)
        found.residual = residual
        return found

    def parameters(self) -> dict[str, np.ndarray]:
        """The gradients of weight and bias, those that there are, by name.

        The names are those of a layer's ``parameters()``, so that a step of gradient descent is::

            for name, parameter in bn.parameters().items():
                parameter -= rate * gradients.parameters()[name]
        """
        found = {"weight": self.weight, "bias": self.bias}
        return {name: gradient for name, gradient in found.items() if gradient is not None}


@hide_foreign
def batch_norm(
    x: np.ndarray,
    running_mean: np.ndarray | None = None,
    running_var: np.ndarray | None = None,
    weight: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    axis: int = 1,
    out: np.ndarray | None = None,
    on_nonfinite: OnNonfinite = "propagate",
    mask: np.ndarray | None = None,
    residual: np.ndarray | None = None,
    activation: Activation | None = None,
    negative_slope: float = 0.01,
    **foreign: NoReturn,
) -> np.ndarray:
    """Normalize each channel of ``x``, then scale and shift it.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``, with the statistics of
    the batch when ``training`` (or when there are no running statistics), else
    with the running ones. The batch variance is the biased one, a mean over all
    positions but the channel's. In training the running statistics move towards
    the batch's, in place and after everything else has succeeded:
    ``running = (1 - momentum) * running + momentum * batch``, where the batch
    variance is the unbiased one, ``var * m / (m - 1)`` for m values per channel.

    Parameters
    ----------
    x : ndarray of float32, float64, float16 or bfloat16, two or more dimensions
        ``(N, C)``, ``(N, C, L)``, ``(N, C, H, W)``, ``(N, C, D, H, W)`` with
        ``axis=1``, channels last with ``axis=-1``, or any strided view of them. This and
        the other arrays that are read may be another library's, with ``__array__`` or
        ``__dlpack__`` on the CPU: without a copy where it lends its memory. Empty without
        channels, it takes parameters of any number (so Dask asks for the dtype).
    running_mean, running_var : ndarray of shape (C,), optional
        Both or neither; updated in place if ``training``. Without them the batch's
        statistics serve in evaluation too.
    weight, bias : ndarray of shape (C,), optional
        Scale (gamma) and shift (beta); 1 and 0 where absent.
    training : bool
        Use the statistics of the batch, and update the running ones.
    momentum : float
        Weight of the new batch in the running statistics, 0 to 1.
    eps : float
        Added to the variance inside the root; positive.
    axis : int
        Which axis of ``x`` holds the channels; negative counts from the end.
    out : ndarray, optional
        Where to write; shape and dtype of ``x``. ``out=x`` works in place.
    on_nonfinite : {"propagate", "skip", "raise"}
        What a training batch with NaN or infinity in it does to the running statistics:
        goes in as it is, as in torch; leaves them as they were; or is refused, at the
        cost of one more pass over ``x``.
    mask : ndarray of bool, optional
        True where a value goes into the statistics of the batch; broadcasts to ``x``. What is left
        out, such as padding, is normalized as the others are; it should be finite. A masked array
        ``x`` brings a mask of its own, and the output is one.
    residual : ndarray, optional
        Added to the normalized values, in the same pass; shape and dtype of ``x``. May be
        ``out``.
    activation : {"relu", "relu6", "leaky_relu", "hardswish", "silu", "sigmoid", "tanh", \
"gelu_tanh"}, optional
        What the sum goes through, in the same pass: ``y = act(bn(x) + residual)``, with
        torch's meanings; gelu in its tanh form.
    negative_slope : float
        Of leaky_relu.

    Returns
    -------
    y : ndarray
        Shape, dtype and memory order of ``x``; ``out`` if that was given.

    Raises
    ------
    TypeError
        If an array is not one of such numbers, or a number is not one.
    ValueError
        If a shape does not fit, only one running statistic is given, ``eps`` is not
        positive, batch statistics are asked of one value per channel, ``out`` is
        read-only or overlaps ``x`` in part, or the batch is refused by
        ``on_nonfinite="raise"``. Nothing has been changed then.

    References
    ----------
    Ioffe & Szegedy, "Batch Normalization: Accelerating Deep Network Training by
    Reducing Internal Covariate Shift", 2015: algorithm 1 for training, algorithm
    2 for evaluation. Names and meanings are those of
    ``torch.nn.functional.batch_norm``.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> x = np.array([[1.0, 10.0], [3.0, 30.0]])
    >>> fastbn.batch_norm(x, training=True).round(3)
    array([[-1., -1.],
           [ 1.,  1.]])
    >>> mean, var = np.zeros(2), np.ones(2)
    >>> y = fastbn.batch_norm(x, mean, var, training=True, momentum=0.5)
    >>> mean, var
    (array([ 1., 10.]), array([  1.5, 100.5]))
    """
    if foreign:
        refuse(batch_norm, foreign)
    if mask is None and on_nonfinite == "propagate":
        if training is False:
            y = prepared.evaluate(
                x, running_mean, running_var, weight, bias, eps, axis, out, activation,
                negative_slope, residual,
            )  # fmt: skip
            if y is not None:
                return y
        elif training is True:
            found = prepared.train(
                x, running_mean, running_var, weight, bias, momentum, eps, axis, out, activation,
                negative_slope, residual,
            )  # fmt: skip
            if found is not None:
                return found[0]
    plain = residual is None and activation is None
    call = backend.forward(
        x, running_mean, running_var, weight, bias, training, momentum, eps, axis, out,
        on_nonfinite, None, None if plain else (activation, negative_slope, residual), mask,
    )  # fmt: skip
    return call.run()


@hide_foreign
def batch_norm_forward(
    x: np.ndarray,
    running_mean: np.ndarray | None = None,
    running_var: np.ndarray | None = None,
    weight: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    axis: int = 1,
    out: np.ndarray | None = None,
    on_nonfinite: OnNonfinite = "propagate",
    mask: np.ndarray | None = None,
    residual: np.ndarray | None = None,
    activation: Activation | None = None,
    negative_slope: float = 0.01,
    **foreign: NoReturn,
) -> tuple[np.ndarray, ForwardCache]:
    """`batch_norm`, and what `batch_norm_backward` needs to differentiate it.

    Parameters, semantics and errors are those of `batch_norm`.

    Returns
    -------
    y : ndarray
        As from `batch_norm`.
    cache : ForwardCache
        Opaque, and good for any number of backwards. It refers to ``x``; with
        ``out=x`` the input is gone and the backward raises RuntimeError.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> x = np.array([[1.0, 10.0], [3.0, 30.0], [5.0, 20.0]])
    >>> y, cache = fastbn.batch_norm_forward(x, training=True)
    >>> fastbn.batch_norm_backward(y, cache).weight is None
    True
    """
    if foreign:
        refuse(batch_norm_forward, foreign)
    if mask is None and training is True and on_nonfinite == "propagate":
        found = prepared.train(
            x, running_mean, running_var, weight, bias, momentum, eps, axis, out, activation,
            negative_slope, residual,
        )  # fmt: skip
        if found is not None:
            y, statistics, axis = found
            return y, cache_of(
                x, axis, statistics, weight, bias, eps, y, activation, negative_slope, residual
            )
    plain = residual is None and activation is None
    call = backend.forward(
        x, running_mean, running_var, weight, bias, training, momentum, eps, axis, out,
        on_nonfinite, None, None if plain else (activation, negative_slope, residual), mask,
    )  # fmt: skip
    y = call.run()
    return y, call.cache()


def batch_norm_backward(
    dy: np.ndarray, cache: ForwardCache, *, out: np.ndarray | None = None
) -> Gradients:
    """Gradients of a loss in ``x``, ``weight`` and ``bias``, given its gradient in ``y``.

    With ``x_hat = (x - mean) * rstd``, ``rstd = 1 / sqrt(var + eps)``, and sums and
    means over all positions of a channel::

        d_bias   = sum(dy)
        d_weight = sum(dy * x_hat)
        d_x      = weight * rstd * (dy - mean(dy) - x_hat * mean(dy * x_hat))

    After a forward with running statistics these are constants, and
    ``d_x = weight * rstd * dy``. Where the forward had an activation, ``dy`` stands for
    ``dy * act'(z)`` in all of this, with ``z`` worked out again from ``x``; that is also the
    gradient in a residual.

    Parameters
    ----------
    dy : ndarray
        Gradient of the loss in ``y``; shape and dtype of ``x``, any strides.
    cache : ForwardCache
        From `batch_norm_forward`; not changed.
    out : ndarray, optional
        Where to write the gradient of ``x``; ``out=dy`` works in place.

    Returns
    -------
    Gradients
        ``x`` in the shape, dtype and memory order of x; ``weight`` and ``bias`` of
        shape (C,) in the dtype that x is computed in, None without such a parameter;
        ``residual`` as ``x``, None without one.

    Raises
    ------
    TypeError
        If ``dy`` is not an array of such numbers, or ``cache`` is not one.
    ValueError
        If ``dy`` or ``out`` do not fit the shape or dtype of x.
    RuntimeError
        If there is no cache, or the forward wrote over its own input (``out=x``).

    References
    ----------
    Ioffe & Szegedy 2015, section 3, "differentiate through" the transform; here
    with the sums carried out.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> x = np.array([[1.0], [3.0], [5.0], [7.0]])
    >>> y, cache = fastbn.batch_norm_forward(x, weight=np.ones(1), training=True)
    >>> dy = np.array([[1.0], [0.0], [0.0], [0.0]])
    >>> grads = fastbn.batch_norm_backward(dy, cache)
    >>> grads.x.round(4).ravel(), grads.weight.round(4), grads.bias
    (array([ 0.1342, -0.1789, -0.0447,  0.0894]), array([-1.3416]), None)
    """
    if type(cache) is ForwardCache and not cache.overwritten and cache.kept is None:
        found = prepared.differentiate(dy, cache, out)
        if found is not None:
            return _gradients(cache, *found)
    return _gradients(cache, *backend.backward(dy, cache, out))


def _gradients(
    cache: ForwardCache, dx: np.ndarray, d_weight: np.ndarray, d_bias: np.ndarray,
    residual: np.ndarray | None = None,
) -> Gradients:  # fmt: skip
    """Those of parameters that there are."""
    found = Gradients(
        dx, None if cache.weight is None else d_weight, d_bias if cache.has_bias else None
    )
    if residual is not None:
        found.residual = residual
    return found


@hide_foreign
def channel_stats(
    x: np.ndarray,
    axis: int = 1,
    *,
    mask: np.ndarray | None = None,
    skipna: bool = False,
    extremes: bool = False,
    **foreign: NoReturn,
) -> ChannelStats:
    """Count, mean and sum of squared deviations of every channel of ``x``, in one pass.

    ``x`` has floating-point numbers, or integers of 8 or 16 bits, whose statistics are exact. The
    same as `ChannelStats.from_array` with these arguments, which says more.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> stats = fastbn.channel_stats(np.array([[1.0, 10.0], [3.0, 30.0]]))
    >>> stats.mean, stats.var()
    (array([ 2., 20.]), array([  1., 100.]))
    """
    if foreign:
        refuse(channel_stats, foreign)
    return ChannelStats.from_array(x, axis, mask=mask, skipna=skipna, extremes=extremes)
