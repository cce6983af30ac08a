"""Compile ahead of the first call."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np

from fastbn._system.progress import track
from fastbn.functional import batch_norm, batch_norm_backward, batch_norm_forward, channel_stats

__all__ = ["warmup"]

#: For each layout a small shape, one that is worth two threads, and the axis.
_SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...], int]] = {
    "channels_first": ((2, 2, 8), (2, 1, 600_000), 1),
    "channels_last": ((2, 4, 2), (140_000, 1, 2), -1),
}
_DTYPES = ("float32", "float64")


def warmup(
    dtypes: Iterable[str | np.dtype | type] = _DTYPES,
    layouts: Iterable[str] = tuple(_SHAPES),
    *,
    progress: bool = True,
) -> None:
    """Compile the kernels now, and store them in Numba's cache for later processes.

    A server calls it at its start, an image build once. With everything in the cache it
    takes about a second. How many kernels there are is bounded: 22 for float32 and 17 for
    float64 with both layouts, and no shape, stride or flag of an array adds another.

    Parameters
    ----------
    dtypes : iterable of "float32", "float64"
        Of the arrays to come.
    layouts : iterable of "channels_first", "channels_last"
        ``(N, C)`` counts as channels last.
    progress : bool
        Show a progress bar on stderr.

    Raises
    ------
    ValueError, TypeError
        If a dtype or a layout is none of these.

    Examples
    --------
    >>> import fastbn
    >>> fastbn.warmup(["float32"], ["channels_first"], progress=False)
    """
    checked = [_checked_dtype(dtype) for dtype in _as_list("dtypes", dtypes)]
    layouts = _as_list("layouts", layouts)
    for layout in layouts:
        if layout not in _SHAPES:
            raise ValueError(f"layouts must be among {', '.join(_SHAPES)}, got {layout!r}")
    calls = [call for dtype in checked for layout in layouts for call in _calls(dtype, layout)]
    _run(calls, "compiling", progress)


def _run(steps: list[Callable[[], object]], label: str, progress: bool) -> None:
    for step in track(steps, label) if progress else steps:
        step()


def _as_list(name: str, values: Iterable) -> list:
    if isinstance(values, (str, type, np.dtype)):
        raise TypeError(f"{name} must be a list, got {values!r}; [{values!r}] is one")
    return list(values)


def _checked_dtype(dtype: str | np.dtype | type) -> np.dtype:
    found = np.dtype(dtype)
    if found.name not in _DTYPES:
        raise ValueError(f"dtypes must be among {', '.join(_DTYPES)}, got {dtype!r}")
    return found


def _calls(dtype: np.dtype, layout: str) -> Iterator[Callable[[], object]]:
    """Calls that between them use every kernel of one dtype and layout."""
    small, large, axis = _SHAPES[layout]
    for shape in (small, large):
        x = np.zeros(shape, dtype)
        c = shape[axis]
        mean, var = np.zeros(c, dtype), np.ones(c, dtype)
        yield partial(batch_norm, x, mean, var, axis=axis)
        yield partial(batch_norm, x, mean, var, training=True, axis=axis)
        wide = mean.astype(np.float64), var.astype(np.float64)  # statistics of another precision
        yield partial(batch_norm, x, *wide, axis=axis)
        yield partial(batch_norm, x, *wide, training=True, axis=axis)
        yield partial(_backward, x, axis)
        yield partial(channel_stats, x, axis)


def _backward(x: np.ndarray, axis: int) -> None:
    batch_norm_backward(x, batch_norm_forward(x, axis=axis)[1])
