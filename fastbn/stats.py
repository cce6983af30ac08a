"""Per-channel statistics that can be merged: over blocks, threads, files, machines."""

import dataclasses
import os
from typing import Any

import numpy as np

from fastbn._call import exact, prepared, statistics, stats_file

__all__ = ["ChannelStats"]

_LOWS = ("mean_low", "m2_low")
_NOTHING: Any = None  # stands for zeros
_EXTREMES = ("min", "max", "nan_count")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ChannelStats:
    """Count, mean and sum of squared deviations (m2) of every channel.

    Statistics of parts are merged, by `merge` or ``+``, to those of the whole: a sum over files
    or workers is ``sum(parts)``, or ``sum(parts, ChannelStats.empty(C))`` where there may be none
    or types are checked. Standard deviations of parts have no such rule, and their mean is
    not that of the whole: it lacks how far the means of the parts are from each other.

    Attributes
    ----------
    count, mean, m2 : ndarray of float64, shape (C,)
        ``m2`` is ``sum((x - mean)**2)``; the variance is ``m2 / (count - ddof)``. Arrays that are
        given are copied.
    mean_low, m2_low : ndarray of float64, shape (C,)
        What rounding to float64 has left: ``mean + mean_low`` has twice the digits. So merging
        many parts loses none. Zeros where nothing is known.
    min, max, nan_count : ndarray of float64, shape (C,), or None
        The smallest and the largest value but for NaN, and the number of NaN, if they were asked
        for. Of nothing they are infinity, minus infinity and 0, which change nothing in a merge.

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
    >>> both = first + second
    >>> both.count, both.mean, both.m2
    (array([3.]), array([3.]), array([14.]))
    >>> both
    ChannelStats(channels=1, count=3, mean=[3.], std=[2.160247])
    """

    count: np.ndarray
    mean: np.ndarray
    m2: np.ndarray
    mean_low: np.ndarray = dataclasses.field(default=_NOTHING, kw_only=True)
    m2_low: np.ndarray = dataclasses.field(default=_NOTHING, kw_only=True)
    min: np.ndarray | None = dataclasses.field(default=None, kw_only=True)
    max: np.ndarray | None = dataclasses.field(default=None, kw_only=True)
    nan_count: np.ndarray | None = dataclasses.field(default=None, kw_only=True)

    #: NumPy leaves ``array + stats`` to this class, which refuses it.
    __array_ufunc__ = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None and field.name in _LOWS:
                value = np.zeros(self.mean.shape)
            if value is not None or field.name not in _EXTREMES:
                object.__setattr__(self, field.name, np.array(value, np.float64))
        if self.mean.ndim != 1 or not self.count.shape == self.mean.shape == self.m2.shape:
            raise ValueError(
                "count, mean and m2 must have one shape (C,), got "
                f"{self.count.shape}, {self.mean.shape} and {self.m2.shape}"
            )
        for name, array in self._arrays().items():
            if array.shape != self.mean.shape:
                raise ValueError(
                    f"{name} has shape {array.shape}, expected that of mean, {self.mean.shape}"
                )

    @classmethod
    def _of(cls, fields: dict[str, np.ndarray]) -> "ChannelStats":
        """Of arrays that nobody else has: they are not copied, nor looked at."""
        made = object.__new__(cls)
        made.__dict__.update(dict.fromkeys(_EXTREMES), **fields)
        if "mean_low" not in fields:
            made.__dict__.update({name: np.zeros(fields["mean"].shape) for name in _LOWS})
        return made

    def _arrays(self) -> dict[str, np.ndarray]:
        """What there is, by name."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also of pickles that have count, mean and m2 alone."""
        lows = {name: np.zeros(state["mean"].shape) for name in _LOWS}
        self.__dict__.update({**lows, **state})

    @classmethod
    def empty(cls, num_channels: int) -> "ChannelStats":
        """Statistics of nothing: the neutral element of `merge`."""
        if isinstance(num_channels, bool) or not isinstance(num_channels, (int, np.integer)):
            raise TypeError(f"num_channels must be an integer, got {num_channels!r}")
        if num_channels < 0:
            raise ValueError(f"num_channels must not be negative, got {num_channels}")
        zeros, nothing = np.zeros((3, num_channels)), exact.Extremes.of_nothing(num_channels)
        return cls(*zeros, **nothing._asdict())

    @classmethod
    def from_array(
        cls,
        x: np.ndarray,
        axis: int = 1,
        *,
        mask: np.ndarray | None = None,
        skipna: bool = False,
        extremes: bool = False,
    ) -> "ChannelStats":
        """Statistics of ``x`` over all axes but ``axis``, in one pass over memory.

        Parameters
        ----------
        x : ndarray, two or more dimensions
            float32, float64, float16 or bfloat16; or uint8, int8, uint16 or int16. Any strides;
            not changed. float32 input is summed in short blocks around a shift that follows the
            mean, then merged in float64: the relative error of the variance stays below 1e-5 for
            |mean| / std up to 1e4. Integers are summed exactly: mean and m2 are rounded once.
        axis : int
            The channel axis; negative counts from the end.
        mask : ndarray of bool, optional
            True where a value counts; broadcasts to ``x``. That of a masked array is honoured.
        skipna : bool
            Leave NaN out, as missing values; infinities stay in. Counts then differ from channel
            to channel; with nothing left, count, mean and m2 are 0. Where there is no NaN it costs
            next to nothing, else two to three times the time.
        extremes : bool
            Also find `min`, `max` and `nan_count`, in one more pass. Whether or not NaN is left
            out of the other statistics, it is left out of the first two.

        Raises
        ------
        TypeError
            If ``x`` is not an array of such numbers, or ``mask`` of bools.
        ValueError
            If ``x`` has fewer than two dimensions or no such axis, or ``mask`` does not fit.
        """
        plain = mask is None and skipna is False and extremes is False
        found = prepared.moments(x, axis) if plain else None
        if found is not None:
            count, both = found
            mean, m2 = both.reshape(2, -1)
            return cls._of({"count": np.full(mean.size, float(count)), "mean": mean, "m2": m2})
        return cls(**statistics.of_array(x, axis, mask, skipna, extremes))

    # --- together ---------------------------------------------------------------------------------

    def merge(self, other: "ChannelStats") -> "ChannelStats":
        """Statistics of both samples together, as ``self + other``; neither is changed.

        Chan, Golub & LeVeque's pairwise update, with twice the digits of float64: after a million
        merges the last digit is right. `min`, `max` and `nan_count` are known if both know them.

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
        fields = statistics.merged(self._rows(), other._rows())
        one, two = self._extremes(), other._extremes()
        if one is not None and two is not None:
            fields |= one.merge(two)._asdict()
        return ChannelStats._of(fields)

    def _rows(self) -> list[np.ndarray]:
        return [getattr(self, name) for name in statistics.ROWS]

    def _extremes(self) -> exact.Extremes | None:
        """The three, if all are known."""
        if self.min is None or self.max is None or self.nan_count is None:
            return None
        return exact.Extremes(self.min, self.max, self.nan_count)

    def __add__(self, other: Any) -> "ChannelStats":
        return self.merge(other) if isinstance(other, ChannelStats) else NotImplemented

    def __radd__(self, other: Any) -> "ChannelStats":
        """What `sum` begins with is 0."""
        return self if type(other) is int and other == 0 else NotImplemented

    # --- what follows from them -------------------------------------------------------------------

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

    def __repr__(self) -> str:
        def shown(array: np.ndarray) -> str:
            return np.array2string(
                array, precision=6, threshold=8, edgeitems=3, separator=", "
            ).replace("\n", "")

        count = self.count
        same = count.size > 0 and (count == count[0]).all()
        number = f"{count[0]:.17g}" if same else shown(count)
        with np.errstate(invalid="ignore"):
            return (
                f"ChannelStats(channels={count.size}, count={number}, mean={shown(self.mean)}, "
                f"std={shown(self.std())})"
            )

    # --- files ------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write them to a file that `load` reads, each number as it is.

        Parameters
        ----------
        path : path
            Ends in ``.npz``, or in ``.json``: text, with "nan", "inf" and "-inf" for what JSON has
            no number for. A file that is there is replaced, wholly or not at all.

        Raises
        ------
        ValueError
            If the path ends otherwise.
        FileNotFoundError
            If there is no such folder.

        Examples
        --------
        >>> import fastbn, numpy as np, tempfile
        >>> stats = fastbn.channel_stats(np.array([[1.0, 10.0], [3.0, 30.0]]))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     stats.save(f"{folder}/stats.json")
        ...     fastbn.ChannelStats.load(f"{folder}/stats.json").mean
        array([ 2., 20.])
        """
        stats_file.write(path, self._arrays())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "ChannelStats":
        """Read what `save` has written.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the path does not end in ``.npz`` or ``.json``, or the file is damaged or holds
            something else, such as a count below 0. Nothing in it is run.
        """
        names = {field.name: field.name not in _EXTREMES for field in dataclasses.fields(cls)}
        return cls(**stats_file.read(path, names))
