"""Normalization of Dask's arrays, block by block, with statistics that are there."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from fastbn import functional
from fastbn._call.epilogue import Activation
from fastbn.distributed.on_dask.arrays import (
    checked_array,
    empty_like,
    library,
    on_one_thread,
    per_channel,
)
from fastbn.layers.base import BatchNorm
from fastbn.standardize import destandardize as _destandardize
from fastbn.standardize import standardize as _standardize

__all__ = ["batch_norm", "destandardize", "evaluate", "standardize"]

_TRAINING = (
    "a training call needs the statistics of all blocks before the first is normalized. Take them "
    "first: stats = on_dask.channel_stats(x, axis), then on_dask.batch_norm(x, "
    "stats.mean.astype(dtype), stats.var().astype(dtype), weight, bias)"
)


def batch_norm(
    x: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    axis: int = 1,
    residual: Any = None,
    activation: Activation | None = None,
    negative_slope: float = 0.01,
) -> Any:
    """Batch norm in evaluation, of one of Dask's arrays: lazy, block by block.

    ``y = activation((x - running_mean) / sqrt(running_var + eps) * weight + bias + residual)``,
    with arguments in the order of `fastbn.batch_norm`, so that a call needs no other change.

    Parameters
    ----------
    x : dask.array.Array
        Chunked in any way: each block gets its channels' part of the parameters.
    running_mean, running_var, weight, bias : array or dask.array.Array of shape (C,)
        The last two are optional. NumPy arrays are copied into the graph.
    training : bool
        False: a training call would need the statistics of all blocks first.
    momentum
        Has no use in evaluation.
    eps, axis, activation, negative_slope
        As `fastbn.batch_norm` has them.
    residual : dask.array.Array, optional
        Of the shape and dtype of x, added before the activation; other chunks are changed to x's.

    Returns
    -------
    y : dask.array.Array
        With the chunks and dtype of x.

    Raises
    ------
    TypeError, ValueError
        As `fastbn.batch_norm`, before anything is computed; if there are no running statistics; if
        chunks of unknown size divide the channels.
    NotImplementedError
        For ``training=True``.

    Examples
    --------
    >>> import dask.array as da, numpy as np
    >>> from fastbn.distributed import on_dask
    >>> x = da.ones((8, 4, 6, 6), chunks=(2, 3, 6, 6), dtype=np.float32)
    >>> mean, var = np.arange(4, dtype=np.float32), np.ones(4, np.float32)
    >>> y = on_dask.batch_norm(x, mean, var)
    >>> y.chunks == x.chunks, y[0, :, 0, 0].compute().round(3)
    (True, array([ 1.,  0., -1., -2.], dtype=float32))
    """
    x = checked_array("x", x)
    if training:
        raise NotImplementedError(_TRAINING)
    if running_mean is None or running_var is None:
        raise ValueError(f"running_mean and running_var are needed; {_TRAINING}")
    given = {
        "running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias,
    }  # fmt: skip
    axis, nothing = empty_like(x, axis, *given.values())
    options: dict[str, Any] = {
        "eps": eps, "axis": axis, "activation": activation, "negative_slope": negative_slope,
    }  # fmt: skip
    dtype = functional.batch_norm(
        nothing, **_stand_ins(given, nothing.shape[axis]), training=training, momentum=momentum,
        **options,
    ).dtype  # fmt: skip
    residual = _checked_residual(residual, x)
    meta = x._meta.astype(dtype)
    return _by_blocks(partial(_evaluated, **options), x, axis, given, None, dtype, meta, residual)


def evaluate(layer: BatchNorm, x: Any, *, residual: Any = None) -> Any:
    """What a batch norm layer in evaluation mode makes of one of Dask's arrays, lazily.

    The layer's arrays are copied into the graph: what it learns later changes nothing.

    Parameters
    ----------
    layer : BatchNorm or BatchRenorm layer
        In evaluation mode, with running statistics.
    x : dask.array.Array
        A batch as the layer takes it, chunked in any way.
    residual : dask.array.Array, optional
        As `batch_norm` has it.

    Returns
    -------
    y : dask.array.Array
        With the chunks and dtype of x.

    Raises
    ------
    TypeError
        If it is another layer. Group, layer, instance and RMS norm know no statistics but those of
        a sample: where chunks keep samples whole, ``x.map_blocks(layer)`` does it.
    ValueError
        If the layer is in training mode, has no running statistics, or does not take such an x.

    Examples
    --------
    >>> import dask.array as da, fastbn, numpy as np
    >>> from fastbn.distributed import on_dask
    >>> bn = fastbn.BatchNorm2d(4, activation="relu").eval()
    >>> y = on_dask.evaluate(bn, da.ones((8, 4, 6, 6), chunks=2, dtype=np.float32))
    >>> y.dtype, y.chunksize
    (dtype('float32'), (2, 2, 2, 2))
    """
    x = checked_array("x", x)
    if not isinstance(layer, BatchNorm):
        raise TypeError(
            f"layer must be a batch norm layer of fastbn, got {type(layer).__name__}; where chunks "
            "keep samples whole, x.map_blocks(layer) calls a norm of samples"
        )
    if layer.training:
        raise ValueError(
            "the layer is in training mode: call eval() first. To take its running statistics from "
            "data of Dask's, use on_dask.recalibrate"
        )
    if layer.running_mean is None:
        raise ValueError(f"{layer!r} has no running statistics: it takes those of each batch")
    return batch_norm(
        x, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=layer.eps,
        axis=layer._fitting_axis(x.shape), residual=residual, activation=layer.activation,
        negative_slope=layer.negative_slope,
    )  # fmt: skip


def standardize(
    x: Any,
    mean: Any,
    std: Any,
    *,
    scale: float = 1.0,
    axis: int = 1,
    dtype: DTypeLike = np.float32,
    out_axis: int | None = None,
    zero_std: float | None = None,
) -> Any:
    """``(x * scale - mean) / std`` of one of Dask's arrays: lazy, block by block.

    Parameters
    ----------
    x : dask.array.Array
        Of a dtype that `fastbn.standardize` takes, chunked in any way.
    mean, std : number, array or dask.array.Array of shape (C,)
        What `channel_stats` found, for instance.
    scale, axis, dtype, out_axis, zero_std
        As `fastbn.standardize` has them.

    Returns
    -------
    y : dask.array.Array
        Of that dtype, with the chunks of x, moved as ``out_axis`` moves the channels.

    Raises
    ------
    TypeError, ValueError
        As `fastbn.standardize`, before anything is computed; if chunks of unknown size divide the
        channels.

    Examples
    --------
    >>> import dask.array as da, numpy as np
    >>> from fastbn.distributed import on_dask
    >>> x = da.full((10, 32, 32, 3), 255, chunks=(5, 32, 32, 3), dtype=np.uint8)
    >>> y = on_dask.standardize(x, 0.5, 0.25, scale=1 / 255, axis=-1, out_axis=1)
    >>> y.shape, y.chunksize, float(y[0, 0, 0, 0].compute())
    ((10, 3, 32, 32), (5, 3, 32, 32), 2.0)
    """
    options = {"scale": scale, "dtype": dtype, "zero_std": zero_std}
    return _affine(_standardize, "x", x, mean, std, axis, out_axis, options)


def destandardize(
    y: Any,
    mean: Any,
    std: Any,
    *,
    scale: float = 1.0,
    axis: int = 1,
    dtype: DTypeLike = np.float32,
    out_axis: int | None = None,
) -> Any:
    """``(y * std + mean) / scale`` of one of Dask's arrays, the inverse of `standardize`.

    Parameters
    ----------
    y : dask.array.Array
        Of a dtype that `fastbn.destandardize` takes, chunked in any way.
    mean, std, scale, axis, dtype, out_axis
        As `fastbn.destandardize` has them.

    Returns
    -------
    x : dask.array.Array

    Raises
    ------
    TypeError, ValueError
        As `fastbn.destandardize`. NaN on the way to integers is an error when it is computed.
    """
    options = {"scale": scale, "dtype": dtype}
    return _affine(_destandardize, "y", y, mean, std, axis, out_axis, options)


def _affine(
    function: Any, name: str, x: Any, mean: Any, std: Any, axis: int, out_axis: int | None,
    options: dict[str, Any],
) -> Any:  # fmt: skip
    x = checked_array(name, x)
    axis, nothing = empty_like(x, axis, mean, std)
    channels, lazy = nothing.shape[axis], library().Array
    given = {  # a number that is yet to be computed is one for each channel
        key: library().broadcast_to(value, (channels,))
        if isinstance(value, lazy) and value.ndim == 0 else value
        for key, value in (("mean", mean), ("std", std))
    }  # fmt: skip
    options |= {"axis": axis, "out_axis": out_axis}
    dtype = function(nothing, **_stand_ins(given, channels), **options).dtype
    numbers = {key: np.array(value)[()] for key, value in given.items() if np.ndim(value) == 0}
    vectors = {key: None if key in numbers else value for key, value in given.items()}
    call = partial(_standardized, function, numbers, options)
    return _by_blocks(call, x, axis, vectors, out_axis, dtype, np.empty((0,) * x.ndim, dtype))


def _by_blocks(
    function: Any, x: Any, axis: int, given: dict[str, Any], out_axis: int | None, dtype: np.dtype,
    meta: Any, residual: Any = None,
) -> Any:  # fmt: skip
    """Call a function on each block and on its channels' part of what is given."""
    indices = list(range(x.ndim))
    order = indices.copy()
    order.insert(axis if out_axis is None else out_axis % x.ndim, order.pop(axis))
    pairs: list[Any] = [x, indices]
    for name, value in given.items():
        array = None if value is None else per_channel(name, value, x, axis)
        pairs += [array, None if array is None else (axis,)]
    if residual is not None:
        pairs += [residual, indices]
    return library().blockwise(function, order, *pairs, dtype=dtype, meta=meta, align_arrays=False)


def _evaluated(
    x: Any, mean: Any, var: Any, weight: Any, bias: Any, residual: Any = None, **options: Any
) -> Any:
    call = functional.batch_norm
    return on_one_thread(call, x, mean, var, weight, bias, residual=residual, **options)


def _standardized(
    function: Any, numbers: dict[str, Any], options: dict[str, Any], x: Any, mean: Any, std: Any
) -> Any:
    """``mean`` and ``std`` are None where they are among the numbers."""
    return on_one_thread(function, x, **{"mean": mean, "std": std, **numbers}, **options)


def _stand_ins(given: dict[str, Any], channels: int) -> dict[str, Any]:
    """The arguments, but ones for what has yet to be computed."""
    lazy = library().Array
    return {
        name: np.ones(channels, value.dtype) if isinstance(value, lazy) else value
        for name, value in given.items()
    }


def _checked_residual(residual: Any, x: Any) -> Any:
    if residual is None:
        return None
    residual = checked_array("residual", residual)
    if residual.dtype != x.dtype or residual.ndim != x.ndim or not all(
        a == b or a != a or b != b for a, b in zip(residual.shape, x.shape, strict=True)
    ):  # fmt: skip
        raise ValueError(
            f"residual has shape {residual.shape} and dtype {residual.dtype}, expected those of x, "
            f"{x.shape} and {x.dtype}"
        )
    if not any(n != n for n in (*residual.shape, *x.shape)):
        return residual.rechunk(x.chunks)
    if residual.numblocks != x.numblocks:  # which Dask would broadcast
        raise ValueError(
            f"x has {x.numblocks} chunks and the residual {residual.numblocks}, some of unknown "
            "size, so it is unknown which belong together; compute_chunk_sizes() finds out"
        )
    return residual
