"""Per-channel statistics that can be merged: over blocks, threads, files, machines."""

import dataclasses
from typing import Any

import numpy as np

from fastbn._call import arguments, backend, masked, pieces, places, prepared, settings

__all__ = ["ChannelStats"]


@dataclasses.dataclass(frozen=True, eq=False)
class ChannelStats:
    """Count, mean and sum of squared deviations (m2) of every channel.

    Attributes
    ----------
    count, mean, m2 : ndarray of float64, shape (C,)
        ``m2`` is ``sum((x - mean)**2)``; the variance is ``m2 / (count - ddof)``.

    References
    ----------
    Chan, Golub & LeVeque, "Updating Formulae and a Pairwise Algorithm for
    Computing Sample Variances", 1979.

    Examples
    --------
    >>> import numpy as np
    >>> from fastbn import ChannelStats
    >>> first = ChannelStats.from_array(np.array([[1.0], [2.0]]))
    >>> second = ChannelStats.from_array(np.array([[6.0]]))
    >>> both = first.merge(second)
    >>> both.count, both.mean, both.m2
    (array([3.]), array([3.]), array([14.]))
    """

    count: np.ndarray
    mean: np.ndarray
    m2: np.ndarray

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = np.asarray(getattr(self, field.name), np.float64)
            object.__setattr__(self, field.name, value)
        if self.mean.ndim != 1 or not self.count.shape == self.mean.shape == self.m2.shape:
            raise ValueError(
                "count, mean and m2 must have one shape (C,), got "
                f"{self.count.shape}, {self.mean.shape} and {self.m2.shape}"
            )

    @classmethod
    def empty(cls, num_channels: int) -> "ChannelStats":
        """Statistics of nothing: the neutral element of `merge`."""
        if isinstance(num_channels, bool) or not isinstance(num_channels, (int, np.integer)):
            raise TypeError(f"num_channels must be an integer, got {num_channels!r}")
        if num_channels < 0:
            raise ValueError(f"num_channels must not be negative, got {num_channels}")
        return cls(np.zeros(num_channels), np.zeros(num_channels), np.zeros(num_channels))

    @classmethod
    def from_array(
        cls,
        x: np.ndarray,
        axis: int = 1,
        *,
        mask: np.ndarray | None = None,
        skipna: bool = False,
    ) -> "ChannelStats":
        """Statistics of ``x`` over all axes but ``axis``, in one pass over memory.

        Parameters
        ----------
        x : ndarray of float32, float64, float16 or bfloat16, two or more dimensions
            Any strides; not changed. float32 input is summed in short blocks
            around a shift that follows the mean, then merged in float64: the
            relative error of the variance stays below 1e-5 for |mean| / std up to 1e4.
        axis : int
            The channel axis; negative counts from the end.
        mask : ndarray of bool, optional
            True where a value counts; broadcasts to ``x``. That of a masked array is honoured.
        skipna : bool
            Leave NaN out, as missing values. Counts then differ from channel to channel; with
            nothing left, count, mean and m2 are 0.

        Raises
        ------
        TypeError
            If ``x`` is not an array of floating-point numbers, or ``mask`` of bools.
        ValueError
            If ``x`` has fewer than two dimensions or no such axis, or ``mask`` does not fit.
        """
        plain = mask is None and skipna is False
        found = prepared.moments(x, axis) if plain else None
        if found is not None:
            count, statistics = found
            mean, m2 = statistics.reshape(2, -1)
            return cls(np.full(mean.size, float(count)), mean, m2)
        skipna = settings.check_bool("skipna", skipna)
        if places.on_device(x):
            if not plain:
                raise NotImplementedError(
                    "mask and skipna are there on the CPU alone so far; copy x to NumPy"
                )
            return cls(*backend.device().moments(x, axis))
        x, mask = masked.split(x, mask)
        x = arguments.as_array("x", x)
        position, channels, _ = arguments.describe(x.shape, x.dtype, arguments.as_axis(axis))
        kept = masked.kept_of(mask, x.shape)
        if skipna and x.size:
            there = ~np.isnan(x)
            kept = masked.kept_of(there if kept is None else kept & there, x.shape)
        if x.size == 0:
            return cls.empty(channels)
        if kept is not None:
            return cls(*masked.moments(x, position, kept))
        return cls(*pieces.moments(x, position))

    def merge(self, other: "ChannelStats") -> "ChannelStats":
        """Statistics of both samples together; neither is changed.

        Chan, Golub & LeVeque's pairwise update. Associative up to rounding, so
        merge in a fixed order where the last bit matters.

        Raises
        ------
        TypeError
            If ``other`` is not a `ChannelStats`.
        ValueError
            If the numbers of channels differ.
        """
        if not isinstance(other, ChannelStats):
            raise TypeError(f"other must be a ChannelStats, got {type(other).__name__}")
        if self.count.shape != other.count.shape:
            raise ValueError(
                f"cannot merge statistics of {self.count.size} and {other.count.size} channels"
            )
        return ChannelStats(
            *pieces.merged((self.count, self.mean, self.m2), (other.count, other.mean, other.m2))
        )

    def var(self, ddof: int = 0) -> np.ndarray:
        """Variance ``m2 / (count - ddof)``, NaN where that has no meaning.

        ``ddof=0`` is the biased variance that normalizes a batch, ``ddof=1`` the
        unbiased one that goes into running statistics.
        """
        degrees: Any = self.count - ddof
        return np.divide(self.m2, degrees, out=np.full(self.m2.shape, np.nan), where=degrees > 0)

    def std(self, ddof: int = 0) -> np.ndarray:
        """Standard deviation, the root of `var`."""
        return np.sqrt(self.var(ddof))
