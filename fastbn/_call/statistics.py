"""Statistics of an array: every check, then the way that its dtype, mask and NaN ask for."""

from typing import Any

import numpy as np

from fastbn._call import arguments, backend, exact, masked, pieces, places, settings, skipna
from fastbn.kernels import entries

Fields = dict[str, np.ndarray]
#: What is merged, in the order that kernels take it.
ROWS = ("count", "mean", "m2", "mean_low", "m2_low")
_NO_MASK_YET = "mask, skipna and extremes are there on the CPU alone so far; copy x to NumPy"


def of_array(x: Any, axis: Any, mask: Any, skipping: Any, extremes: Any) -> Fields:
    """Fields of `fastbn.ChannelStats` by name."""
    skipping = settings.check_bool("skipna", skipping)
    extremes = settings.check_bool("extremes", extremes)
    if places.on_device(x):
        return _on_device(x, axis, plain=mask is None and not skipping and not extremes)
    x, mask = masked.split(x, mask)
    given, x = x, arguments.as_array("x", x, integers=True)
    axis = arguments.as_axis(axis)
    axis, channels, _ = arguments.describe_counted(x.shape, x.dtype, axis, given)
    kept = masked.kept_of(mask, x.shape)
    fields, found = dict.fromkeys(("count", "mean", "m2"), np.zeros(channels)), None
    if extremes:
        found = exact.extremes(x, axis, kept) if x.size else exact.Extremes.of_nothing(channels)
    if x.size:
        fields = _fields(x, axis, kept, skipping)
    return fields if found is None else {**fields, **found._asdict()}


def _fields(x: np.ndarray, axis: int, kept: np.ndarray | None, skipping: bool) -> Fields:
    """What there is without extremes."""
    if arguments.is_small_integer(x.dtype):
        return dict(zip(ROWS, exact.statistics(exact.sums(x, axis, kept)), strict=True))
    if kept is None:
        three = (skipna if skipping else pieces).moments(x, axis)
    else:
        if skipping:
            kept = kept & ~np.isnan(x)
        three = masked.moments(x, axis, kept)
    return dict(zip(("count", "mean", "m2"), three, strict=True))


def _on_device(x: Any, axis: Any, plain: bool) -> Fields:
    if not plain:
        raise NotImplementedError(_NO_MASK_YET)
    dtype = str(getattr(x, "dtype", "")).rpartition(".")[2]
    if dtype in arguments.SMALL_INTEGERS:
        raise NotImplementedError(
            f"statistics of integers are there on the CPU alone so far, got dtype {dtype} on a "
            "device; copy x to NumPy, or convert it there to float32"
        )
    three = backend.device().moments(x, axis)
    return dict(zip(("count", "mean", "m2"), three, strict=True))


def merged(one: list[np.ndarray], other: list[np.ndarray]) -> Fields:
    """`ROWS` of both samples together."""
    channels, float64 = one[0].size, np.dtype(np.float64)
    both = np.empty(len(ROWS) * channels)
    entry = entries.merge_statistics.of(float64, float64)
    with np.errstate(all="ignore"):
        entry(np.concatenate(one), np.concatenate(other), both, channels)
    return dict(zip(ROWS, both.reshape(len(ROWS), channels), strict=True))
