"""Instance normalization layers: each channel of each sample by itself."""

from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn

import numpy as np
from numpy.typing import DTypeLike

from fastbn import norms
from fastbn._call import arguments, backend, places
from fastbn._call.caches import NormCache
from fastbn._call.keywords import hide_foreign, refuse
from fastbn._call.settings import Device
from fastbn.functional import Gradients
from fastbn.layers.batch import BatchNorm2d, BatchNorm3d, documented
from fastbn.layers.sample import SampleNorm
from fastbn.layers.state import LayerState

__all__ = ["InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"]

_DOCUMENTATION = """
    Parameters
    ----------
    num_features : int
        Number of channels C.
    eps : float
        Added to the variance inside the root; positive.
    momentum : float or None
        Weight of the new batch in the running statistics, 0 to 1; None for the cumulative
        average over all batches.
    affine : bool
        Have a learnable weight (starts at 1) and bias (starts at 0).
    track_running_stats : bool
        Keep averages over all samples of their means and unbiased variances, and use them in
        evaluation; otherwise each sample's own statistics serve in both modes.
    device : None, "cpu", "cuda" or "cuda:1"
    dtype : float32 (default) or float64
        Of parameters and running statistics. Input of float32, float64, float16 and bfloat16
        is taken, whatever this is, and the output has the input's dtype.
    bias : bool
        False: a weight, but no bias.
    axis : int
        Channel axis of a batch; -1 for channels last.

    Raises
    ------
    TypeError, ValueError
        In the constructor, if an argument is not one of these.

    References
    ----------
    Ulyanov, Vedaldi & Lempitsky, "Instance Normalization", 2016. Names and meanings are those of
    ``torch.nn.{name}``.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> layer = fastbn.{name}(3)
    >>> layer(np.random.default_rng(0).normal(5, 10, {shape}).astype(np.float32)).shape
    {shape}
    """


class InstanceNorm(SampleNorm, LayerState):
    """An instance normalization layer; subclasses say which inputs they take."""

    __slots__ = ()

    @hide_foreign
    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: Device = None,
        dtype: DTypeLike | None = None,
        *,
        bias: bool = True,
        axis: int = 1,
        **foreign: NoReturn,
    ) -> None:
        if foreign:
            refuse(type(self), foreign)
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias,
            axis=axis,
        )  # fmt: skip

    def forward(self, x: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
        """Normalize ``x``: each channel of each sample, or, in evaluation, with running statistics.

        A training call updates the running statistics, if there are any, and is remembered for
        `backward`.
        """
        return super().forward(x, out=out)

    def _call(self, x: Any, out: Any) -> Any:
        """The call with all its checks; a single sample is a batch of one."""
        there = places.on_device(x)
        x = x if there else arguments.as_input(x)
        self._fitting_axis(x.shape)
        if x.ndim < self._rank:
            if out is not None:
                out = _batch_of_one(out if there else arguments.as_output("out", out))
            x = _batch_of_one(x)
        own = self._in_training or not self.track_running_stats
        update = self._in_training and self.track_running_stats
        mean, var = (self.running_mean, self.running_var) if update or not own else (None, None)
        return backend.instance_norm(
            x, mean, var, self.weight, self.bias, own, self.momentum, self.eps, self.axis, out,
            self.num_batches_tracked if update else None,
        )  # fmt: skip

    def _run(self, call: Any, x: Any, out: Any) -> np.ndarray:
        y = call.run()
        if out is not None:
            return out
        return y.reshape(x.shape) if x.ndim < self._rank else y

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
        cache = self._or_last(cache)
        dy = dy if places.on_device(dy) else arguments.as_array("dy", dy)
        if getattr(dy, "ndim", 0) != cache.x.ndim - 1:
            return norms.norm_backward(dy, cache, out=out)
        of_batch = None
        if out is not None:
            there = places.on_device(out)
            of_batch = _batch_of_one(out if there else arguments.as_output("out", out))
        found = norms.norm_backward(_batch_of_one(dy), cache, out=of_batch)
        return found._replace(x=found.x.reshape(dy.shape) if out is None else out)


def _batch_of_one(sample: Any) -> Any:
    """With an axis of samples; arrays on a device have no other way to get one."""
    if places.on_device(sample):
        return sample.reshape((1, *sample.shape))
    return sample[None]


@documented((4, 3, 16), _DOCUMENTATION)
class InstanceNorm1d(InstanceNorm):
    """Instance normalization of ``(N, C, L)``, or one sample ``(C, L)``."""

    __slots__ = ()
    _takes: ClassVar[Mapping[int, str]] = {2: "(C, L)", 3: "(N, C, L)"}
    _rank = 3


@documented((4, 3, 8, 8), _DOCUMENTATION)
class InstanceNorm2d(InstanceNorm):
    """Instance normalization of ``(N, C, H, W)``, or one sample ``(C, H, W)``."""

    __slots__ = ()
    _takes, _rank = BatchNorm2d._takes, BatchNorm2d._rank


@documented((4, 3, 2, 8, 8), _DOCUMENTATION)
class InstanceNorm3d(InstanceNorm):
    """Instance normalization of ``(N, C, D, H, W)``, or one sample ``(C, D, H, W)``."""

    __slots__ = ()
    _takes, _rank = BatchNorm3d._takes, BatchNorm3d._rank
