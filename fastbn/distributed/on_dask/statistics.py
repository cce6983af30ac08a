"""Statistics of Dask's arrays: of each block, then merged in a tree."""

from __future__ import annotations

import dataclasses
from functools import partial, reduce
from typing import Any, Literal, overload

import numpy as np

from fastbn._call.settings import check_bool
from fastbn.distributed.on_dask.arrays import checked_array, empty_like, library, on_one_thread
from fastbn.functional import channel_stats as _channel_stats
from fastbn.stats import ChannelStats

__all__ = ["channel_stats"]

#: Statistics that one task merges. Fixed, since Dask's own setting would decide the last bit.
_TOGETHER = 8


@overload
def channel_stats(
    x: Any,
    axis: int = 1,
    *,
    skipna: bool = False,
    extremes: bool = False,
    compute: Literal[True] = True,
) -> ChannelStats: ...


@overload
def channel_stats(
    x: Any,
    axis: int = 1,
    *,
    skipna: bool = False,
    extremes: bool = False,
    compute: Literal[False],
) -> Any: ...


def channel_stats(
    x: Any,
    axis: int = 1,
    *,
    skipna: bool = False,
    extremes: bool = False,
    compute: bool = True,
) -> Any:
    """Count, mean and sum of squared deviations of every channel of one of Dask's arrays.

    Each block is read once, on the worker that has it, and becomes 5 numbers a channel. These are
    merged in a tree of neighbouring blocks, so that bits depend on the chunks alone.

    Parameters
    ----------
    x : dask.array.Array
        Of numbers and dimensions as `fastbn.channel_stats` takes them; chunked in any way, along
        the channels too. Chunks may be empty or of unknown size. Masks of masked blocks count.
    axis, skipna, extremes
        As `fastbn.channel_stats` has them.
    compute : bool
        False returns a `dask.delayed.Delayed` of the result, to be computed later.

    Returns
    -------
    ChannelStats, or a Delayed of one

    Raises
    ------
    TypeError
        If ``x`` is no array of Dask's, or of a dtype that `fastbn.channel_stats` does not take.
    ValueError
        If ``x`` has fewer than two dimensions or no such axis.
    ImportError
        If Dask is not installed.

    Examples
    --------
    >>> import dask.array as da, numpy as np
    >>> from fastbn.distributed import on_dask
    >>> x = da.from_array(np.arange(12, dtype=np.float32).reshape(6, 2), chunks=(2, 1))
    >>> stats = on_dask.channel_stats(x)
    >>> stats.count, stats.mean
    (array([6., 6.]), array([5., 6.]))
    >>> later = on_dask.channel_stats(x, compute=False)
    >>> later.compute().mean
    array([5., 6.])
    """
    da, delayed = library(), library("dask").delayed
    x, compute = checked_array("x", x), check_bool("compute", compute)
    axis, nothing = empty_like(x, axis)
    options: dict[str, Any] = {"axis": axis, "skipna": skipna, "extremes": extremes}
    _channel_stats(nothing, **options)  # checks them
    every, others = tuple(range(x.ndim)), tuple(k for k in range(x.ndim) if k != axis)
    blocks = da.blockwise(
        partial(_of_block, **options), every, x, every, dtype=object,
        meta=np.empty((0,) * x.ndim, object), adjust_chunks=dict.fromkeys(every, _one),
    )  # fmt: skip
    merged = da.reduction(
        blocks, _unchanged, _merged, others, combine=_merged, dtype=object, split_every=_TOGETHER,
        meta=np.empty(0, object),
    )  # fmt: skip
    result = delayed(_beside)(merged.to_delayed().tolist())
    return result.compute() if compute else result


def _of_block(block: Any, **options: Any) -> np.ndarray:
    """Statistics of a block as it lies after it has been sent: the same bits in each process."""
    if isinstance(block, np.ma.MaskedArray):
        block = block.copy()
    elif isinstance(block, np.ndarray):
        block = np.ascontiguousarray(block)
    return _boxed(on_one_thread(_channel_stats, block, **options), block.ndim)


def _boxed(stats: ChannelStats, ndim: int) -> np.ndarray:
    """As the one value of an array, which Dask's reductions handle."""
    box = np.empty((1,) * ndim, object)
    box[...] = stats
    return box


def _one(size: float) -> int:
    return 1


def _unchanged(boxes: np.ndarray, axis: Any, keepdims: bool) -> np.ndarray:
    return boxes


def _merged(boxes: np.ndarray, axis: tuple[int, ...], keepdims: bool) -> np.ndarray:
    """Those of several blocks, in their order in the array."""
    stats = reduce(ChannelStats.merge, boxes.ravel())
    return _boxed(stats, boxes.ndim if keepdims else boxes.ndim - len(axis))


def _beside(boxes: list[np.ndarray]) -> ChannelStats:
    """Those of channels in several chunks."""
    parts = [box.item() for box in boxes]

    def joined(name: str) -> Any:
        arrays = [getattr(part, name) for part in parts]
        return None if any(array is None for array in arrays) else np.concatenate(arrays)

    return ChannelStats(
        **{field.name: joined(field.name) for field in dataclasses.fields(parts[0])}
    )
