"""Batch normalization layers: which inputs each takes, and their documentation."""

from collections.abc import Callable, Mapping
from typing import ClassVar, TypeVar

from fastbn.layers.base import BatchNorm
from fastbn.layers.state import LayerState

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"]

_Layer = TypeVar("_Layer", bound=LayerState)

_PARAMETERS = """
    Parameters
    ----------
    num_features : int
        Number of channels C.
    eps : float
        Added to the variance inside the root; positive.
    momentum : float or None
        Weight of the new batch in the running statistics, 0 to 1 (what Keras calls
        0.99 is 0.01 here); None for the cumulative average over all batches.
    affine : bool
        Have a learnable weight (gamma, starts at 1) and bias (beta, starts at 0).
    track_running_stats : bool
        Keep running statistics (mean 0, variance 1 at the start) for evaluation;
        otherwise batch statistics serve in both modes.
    device : None, "cpu", "cuda" or "cuda:1"
        Where parameters and running statistics are, and input is expected: on the CPU
        (default), on the current NVIDIA GPU, or on the one of that number.
    dtype : float32 (default) or float64
        Of parameters and running statistics. Input of float32, float64, float16 and bfloat16
        is taken, whatever this is, and the output has the input's dtype.
    bias : bool
        False: a weight, but no bias.
    axis : int
        Channel axis of a batch; -1 for channels last.
    on_nonfinite : {"propagate", "skip", "raise"}
        What a training batch with NaN or infinity does to the running statistics and
        the counter: `fastbn.batch_norm` says more.
    activation, negative_slope
        What the output goes through in the same pass, such as "relu": `fastbn.batch_norm` has
        the names. A call may add a residual before it: ``bn(x, residual=shortcut)``.
    virtual_batch_size : int or None
        In training, normalize each group of so many consecutive samples with its own
        statistics ("ghost batches"): large batches then generalize as small ones do. The last
        group is smaller where it does not come out even; if that left it one value per channel,
        which has no variance, it joins the one before. Running statistics and the counter move
        once, by the statistics of the whole batch, merged from those of the groups. None: the
        whole batch. Such a training has no activation, residual or mask; an activation can be
        set after `eval` or `freeze`.

    Raises
    ------
    TypeError, ValueError
        In the constructor, if an argument is not one of these.

    References
    ----------
    Ioffe & Szegedy, "Batch Normalization", 2015, algorithms 1 and 2. Names and
    meanings are those of ``torch.nn.{name}``. Ghost batches: Hoffer, Hubara & Soudry,
    "Train longer, generalize better", 2017, algorithm 1, where the running statistics move
    once for each of them.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> bn = fastbn.{name}(3)
    >>> y = bn(np.random.default_rng(0).normal(5, 10, {shape}).astype(np.float32))
    >>> y.shape, int(bn.num_batches_tracked)
    ({shape}, 1)
    >>> bn.eval()
    {name}(3, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)
    """


def documented(shape: tuple[int, ...], common: str) -> Callable[[type[_Layer]], type[_Layer]]:
    """Complete a class docstring with what all layers of a family share."""

    def complete(layer: type[_Layer]) -> type[_Layer]:
        text = common.replace("{name}", layer.__name__).replace("{shape}", str(shape))
        layer.__doc__ = (layer.__doc__ or "").rstrip() + "\n" + text
        return layer

    return complete


@documented((4, 3, 16), _PARAMETERS)
class BatchNorm1d(BatchNorm):
    """Batch normalization of ``(N, C)`` or ``(N, C, L)``, per channel over N (and L)."""

    __slots__ = ()
    _takes: ClassVar[Mapping[int, str]] = {2: "(N, C)", 3: "(N, C, L)"}
    _rank = 3

    def _axis_of(self, ndim: int) -> int:
        return 1 if ndim == 2 else self.axis


@documented((4, 3, 8, 8), _PARAMETERS)
class BatchNorm2d(BatchNorm):
    """Batch normalization of ``(N, C, H, W)``, or one sample ``(C, H, W)``, per channel."""

    __slots__ = ()
    _takes: ClassVar[Mapping[int, str]] = {3: "(C, H, W)", 4: "(N, C, H, W)"}
    _rank = 4


@documented((4, 3, 2, 8, 8), _PARAMETERS)
class BatchNorm3d(BatchNorm):
    """Batch normalization of ``(N, C, D, H, W)``, or one sample ``(C, D, H, W)``, per channel."""

    __slots__ = ()
    _takes: ClassVar[Mapping[int, str]] = {4: "(C, D, H, W)", 5: "(N, C, D, H, W)"}
    _rank = 5
