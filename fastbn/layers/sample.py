"""Layers whose statistics are each sample's own: group, layer and RMS norm, and what they share.

They do the same in training and evaluation; in training they remember what `backward` takes.
"""

from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import numpy as np
from numpy.typing import DTypeLike

from fastbn import norms
from fastbn._call import arguments, backend, places, settings
from fastbn._call.caches import NormCache
from fastbn._call.keywords import hide_foreign, refuse, refuse_call
from fastbn._call.settings import Device
from fastbn.functional import Gradients
from fastbn.layers.layer import Layer, keep_cache

__all__ = ["GroupNorm", "LayerNorm", "RMSNorm"]


class SampleNorm(Layer):
    """A layer that normalizes each sample by itself; subclasses say what of it together."""

    __slots__ = ()

    if TYPE_CHECKING:  # so that who overrides it need not take foreign names

        def __call__(self, x: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
            """Normalize ``x``: `forward`."""
    else:

        @hide_foreign
        def __call__(
            self, x: np.ndarray, *, out: np.ndarray | None = None, **foreign: NoReturn
        ) -> np.ndarray:
            """Normalize ``x``: `forward`."""
            if foreign:
                refuse_call(self, foreign, ("x", "out"), norm=True)
            return self.forward(x, out=out)

    def forward(self, x: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
        """Normalize ``x``. A training call is remembered for `backward`."""
        if self._in_training:
            return self.forward_with_cache(x, out=out)[0]
        return self._run(self._call(x, out), x, out)

    def forward_with_cache(
        self, x: np.ndarray, *, out: np.ndarray | None = None
    ) -> tuple[np.ndarray, NormCache]:
        """`forward`, and what `backward` needs of it, in either mode."""
        call = self._call(x, out)
        y, cache = self._run(call, x, out), call.cache()
        if self._in_training:
            keep_cache(self, cache)
        return y, cache

    def _call(self, x: Any, out: Any) -> Any:
        """The call with all its checks."""
        raise NotImplementedError

    def _run(self, call: Any, x: Any, out: Any) -> np.ndarray:
        """The output of a call."""
        return call.run()

    def backward(
        self, dy: np.ndarray, cache: NormCache | None = None, *, out: np.ndarray | None = None
    ) -> Gradients:
        """Gradients in ``x``, ``weight`` and ``bias``: `fastbn.norm_backward`.

        ``cache`` is by default that of the last training forward. The gradient of ``x`` is written
        to ``out``, where there is one; ``out=dy`` works in place.

        Raises
        ------
        RuntimeError
            If there is no cache and no training forward to take one from.
        """
        return norms.norm_backward(dy, self._or_last(cache), out=out)

    def _dtype_shown(self) -> str:
        dtypes = {array.dtype.name for array in self._arrays().values()} - {"float32"}
        place = f", device={self._device!r}" if self._device != "cpu" else ""
        return place + "".join(f", dtype={name}" for name in sorted(dtypes))


class GroupNorm(SampleNorm):
    """Group normalization of ``(N, C)`` or ``(N, C, ...)``: each group of channels of each sample.

    What the sources recommend for batches too small for batch norm: nothing depends on the batch.
    Formula and semantics: `fastbn.group_norm`.

    Parameters
    ----------
    num_groups : int
        Groups that the channels are divided into; divides ``num_channels``.
    num_channels : int
        Number of channels C.
    eps : float
        Added to the variance inside the root; positive.
    affine : bool
        Have a learnable weight (starts at 1) and bias (starts at 0) for each channel.
    device : None, "cpu", "cuda" or "cuda:1"
    dtype : float32 (default) or float64
        Of the parameters. Input of float32, float64, float16 and bfloat16 is taken, whatever this
        is, and the output has the input's dtype.
    bias : bool
        False: a weight, but no bias.
    axis : int
        Channel axis; -1 for channels last.

    Raises
    ------
    TypeError, ValueError
        In the constructor, if an argument is not one of these.

    References
    ----------
    Wu & He, "Group Normalization", 2018. Names and meanings are those of ``torch.nn.GroupNorm``.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> gn = fastbn.GroupNorm(2, 6)
    >>> gn(np.random.default_rng(0).normal(5, 10, (4, 6, 8, 8)).astype(np.float32)).shape
    (4, 6, 8, 8)
    >>> gn
    GroupNorm(2, 6, eps=1e-05, affine=True, bias=True)
    """

    __slots__ = {  # noqa: RUF023, with what `help` says of them
        "num_groups": "Groups that the channels are divided into; fixed.",
        "num_channels": "Number of channels; fixed.",
        "affine": "Whether there is a weight; fixed.",
        "axis": "Channel axis.",
    }
    num_groups: int
    num_channels: int
    affine: bool
    axis: int
    _fixed = frozenset({"num_groups", "num_channels", "affine"})

    @hide_foreign
    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Device = None,
        dtype: DTypeLike | None = None,
        *,
        bias: bool = True,
        axis: int = 1,
        **foreign: NoReturn,
    ) -> None:
        if foreign:
            refuse(type(self), foreign)
        self.num_groups, self.num_channels = num_groups, num_channels
        if self.num_channels % self.num_groups:
            raise ValueError(
                f"num_channels must be divisible by num_groups, got {num_channels} and {num_groups}"
            )
        self.eps, self.affine, self.axis = eps, affine, axis
        self._start(device, dtype, self.affine, settings.check_bool("bias", bias))

    def _checked(self, name: str, value: Any) -> Any:
        match name:
            case "num_groups":
                return settings.check_num_groups(value)
            case "num_channels":
                return settings.check_num_features(value, name)
            case "affine":
                return settings.check_bool(name, value)
            case "axis":
                return settings.check_channel_axis(value)
        return super()._checked(name, value)

    @property
    def _shape(self) -> tuple[int, ...]:
        return (self.num_channels,)

    @property
    def _of(self) -> str:
        return f"the layer has num_channels={self.num_channels}"

    def _call(self, x: Any, out: Any) -> Any:
        x = x if places.on_device(x) else arguments.as_input(x)
        shape = x.shape
        there = len(shape) > 1 and -len(shape) <= self.axis < len(shape)  # else the call says so
        if there and shape[self.axis] not in (self.num_channels, 0):
            raise ValueError(
                f"GroupNorm reads x of shape {shape} with {shape[self.axis]} channels on axis "
                f"{self.axis}, and num_channels={self.num_channels}"
            )
        return backend.group_norm(
            x, self.num_groups, self.weight, self.bias, self.eps, self.axis, out
        )

    def __repr__(self) -> str:
        axis = f", axis={self.axis}" if self.axis != 1 else ""
        return (
            f"{type(self).__name__}({self.num_groups}, {self.num_channels}, eps={self.eps}, "
            f"affine={self.affine}, bias={self.bias is not None}{axis}{self._dtype_shown()})"
        )


class _RowNorm(SampleNorm):
    """What layer norm and RMS norm share."""

    __slots__ = {  # noqa: RUF023, with what `help` says of them
        "normalized_shape": "Sizes of the last axes; fixed.",
        "elementwise_affine": "Whether there is a weight; fixed.",
    }
    normalized_shape: tuple[int, ...]
    elementwise_affine: bool
    _fixed = frozenset({"normalized_shape", "elementwise_affine"})

    def _checked(self, name: str, value: Any) -> Any:
        match name:
            case "normalized_shape":
                return settings.check_normalized_shape(value)
            case "elementwise_affine":
                return settings.check_bool(name, value)
        return super()._checked(name, value)

    @property
    def _shape(self) -> tuple[int, ...]:
        return self.normalized_shape

    @property
    def _of(self) -> str:
        return f"the layer has normalized_shape={self.normalized_shape}"

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.normalized_shape}, eps={self.eps}, "
            f"elementwise_affine={self.elementwise_affine}{self._bias_shown()}"
            f"{self._dtype_shown()})"
        )

    def _bias_shown(self) -> str:
        """What torch shows of a bias."""
        return ""


class LayerNorm(_RowNorm):
    """Layer normalization over the last axes: nothing depends on the batch.

    Formula and semantics: `fastbn.layer_norm`.

    Parameters
    ----------
    normalized_shape : int or tuple of int
        Sizes of the last axes, which are normalized together.
    eps : float
        Added to the variance inside the root; positive.
    elementwise_affine : bool
        Have a learnable weight (starts at 1) and bias (starts at 0) of that shape.
    bias : bool
        False: a weight, but no bias.
    device : None, "cpu", "cuda" or "cuda:1"
    dtype : float32 (default) or float64
        Of the parameters. Input of float32, float64, float16 and bfloat16 is taken, whatever this
        is, and the output has the input's dtype.

    Raises
    ------
    TypeError, ValueError
        In the constructor, if an argument is not one of these.

    References
    ----------
    Ba, Kiros & Hinton, "Layer Normalization", 2016. Names and meanings are those of
    ``torch.nn.LayerNorm``.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> ln = fastbn.LayerNorm(16)
    >>> ln(np.random.default_rng(0).normal(5, 10, (4, 7, 16)).astype(np.float32)).shape
    (4, 7, 16)
    >>> ln
    LayerNorm((16,), eps=1e-05, elementwise_affine=True, bias=True)
    """

    __slots__ = ()

    @hide_foreign
    def __init__(
        self,
        normalized_shape: int | tuple[int, ...],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Device = None,
        dtype: DTypeLike | None = None,
        **foreign: NoReturn,
    ) -> None:
        if foreign:
            refuse(type(self), foreign)
        self.normalized_shape = normalized_shape  # type: ignore[assignment]
        self.eps, self.elementwise_affine = eps, elementwise_affine
        self._start(device, dtype, self.elementwise_affine, settings.check_bool("bias", bias))

    def _call(self, x: Any, out: Any) -> Any:
        return backend.row_norm(x, self.normalized_shape, self.weight, self.bias, self.eps, out)

    def _bias_shown(self) -> str:
        return f", bias={self.bias is not None}"


class RMSNorm(_RowNorm):
    """Root mean square normalization over the last axes: layer norm without a mean.

    Formula and semantics: `fastbn.rms_norm`.

    Parameters
    ----------
    normalized_shape : int or tuple of int
        Sizes of the last axes, which are normalized together.
    eps : float or None
        Added to the mean square inside the root; None: the distance from 1 to the next number
        of the dtype that the input is computed in.
    elementwise_affine : bool
        Have a learnable weight (starts at 1) of that shape.
    device : None, "cpu", "cuda" or "cuda:1"
    dtype : float32 (default) or float64
        Of the weight. Input of float32, float64, float16 and bfloat16 is taken, whatever this
        is, and the output has the input's dtype.

    Raises
    ------
    TypeError, ValueError
        In the constructor, if an argument is not one of these.

    References
    ----------
    Zhang & Sennrich, "Root Mean Square Layer Normalization", 2019. Names and meanings are those of
    ``torch.nn.RMSNorm``.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> fastbn.RMSNorm(16)
    RMSNorm((16,), eps=None, elementwise_affine=True)
    """

    __slots__ = ()
    _HAS_NO: ClassVar[dict[str, str]] = {
        "bias": "RMSNorm has no bias, and takes no mean away: a state dict with a bias is that of "
        "another norm, such as LayerNorm"
    }
    eps: float | None  # type: ignore[assignment]

    @hide_foreign
    def __init__(
        self,
        normalized_shape: int | tuple[int, ...],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Device = None,
        dtype: DTypeLike | None = None,
        **foreign: NoReturn,
    ) -> None:
        if foreign:
            refuse(type(self), foreign)
        self.normalized_shape = normalized_shape  # type: ignore[assignment]
        self.eps, self.elementwise_affine = eps, elementwise_affine
        self._start(device, dtype, self.elementwise_affine, False)

    def _checked(self, name: str, value: Any) -> Any:
        return None if name == "eps" and value is None else super()._checked(name, value)

    def _call(self, x: Any, out: Any) -> Any:
        return backend.row_norm(
            x, self.normalized_shape, self.weight, None, self.eps, out, uncentered=True
        )
