"""Statistics that leave NaN out, where there is any.

The plain kernels sum pieces in which every NaN has been replaced by a *filling*, a value near the
channel's mean; what it has added is then taken out of count, mean and m2 again. A piece stays in
cache, so that this costs one more pass over memory. A filling within a standard deviation of the
mean costs no digits; where it turns out to be further away, the piece is done again with the
value nearest to the mean that it has given, until that is near.
"""

import numpy as np

from fastbn._call import arguments, exact, pieces, work

#: Rows that a channel's first filling, and a guess whether there is any NaN, are taken from.
SAMPLED = 64
#: Taking the filling out may cost this part of the squares, or more where it is done again.
LEAST_LEFT = 0.25
#: Nothing of float64 overflows when less than this is taken from it.
LARGE = 1e290
#: How often a piece is done at most: each brings the filling nearer by all digits of x's dtype.
TRIES = 5


def moments(x: np.ndarray, axis: int) -> pieces.Moments:
    """Count, mean and m2 of what is not NaN of an array that is not empty; zeros for nothing.

    A channel whose plain mean and m2 are no NaN has none in it, and keeps those.
    """
    x, repeats = pieces.once(x, axis)
    sample = _sample(x, axis)
    plain = None
    if not np.isnan(sample).any():
        plain = pieces.moments(x, axis)
        suspect = np.isnan(plain[1]) | np.isnan(plain[2])
        if not suspect.any():
            return _repeated(plain, repeats)
    found = _Fillings(x, axis, sample).moments(x)
    if plain is not None:  # infinities make NaN of m2 too
        suspect &= found[0] < plain[0]
        number, mean, m2 = (np.where(suspect, a, b) for a, b in zip(found, plain, strict=True))
        found = number, mean, m2
    return _repeated(found, repeats)


def _repeated(found: pieces.Moments, repeats: int) -> pieces.Moments:
    return found if repeats == 1 else (found[0] * repeats, found[1], found[2] * repeats)


def _sample(x: np.ndarray, axis: int) -> np.ndarray:
    """Some values of each channel, (C, some), in float64."""
    longest = pieces.longest(x, axis)
    step = max(1, x.shape[longest] // SAMPLED)
    index: list[slice | int] = [n // 2 for n in x.shape]
    index[axis], index[longest] = slice(None), slice(None, None, step)
    some = x[tuple(index)].astype(np.float64)
    return some if axis < longest else some.T


def _nearest(values: np.ndarray, mean: float) -> np.ndarray:
    """The value nearest to the mean: of a constant it is that, to the last bit."""
    values = values.ravel()
    with np.errstate(all="ignore"):
        distances = abs(values.astype(np.float64) - mean)
    return values[int(np.where(np.isnan(distances), np.inf, distances).argmin())]


class _Fillings:
    """What stands for NaN in each channel: a value of x's dtype, near the mean so far."""

    def __init__(self, x: np.ndarray, axis: int, sample: np.ndarray) -> None:
        self.axis, self.dtype = axis, arguments.native(x.dtype)
        self.buffers: dict[tuple[int, ...], np.ndarray] = {}
        ordered = np.sort(np.where(np.isfinite(sample), sample, np.inf), axis=1)
        middle = np.isfinite(ordered).sum(axis=1)[:, None] // 2
        self.values = self._rounded(np.take_along_axis(ordered, middle, 1)[:, 0])

    def _rounded(self, values: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):
            rounded = values.astype(self.dtype)
        return np.where(np.isfinite(rounded), rounded, self.dtype.type(0))

    def moments(self, x: np.ndarray) -> pieces.Moments:
        """Count, mean and m2 of what is not NaN, piece by piece, merged pairwise."""
        several = pieces.halves(x, self.axis) if x.size > pieces.PIECE else [x]
        if len(several) > 1:
            return pieces.merged(*map(self.moments, several))
        for _ in range(TRIES):
            count, mean, m2, spoiled = self._of_piece(x)
            if not spoiled.any():
                break
            for channel in np.flatnonzero(spoiled):
                self.values[channel] = _nearest(x.take(channel, self.axis), mean[channel])
        return count, mean, m2

    def _of_piece(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        """The three, and where the filling was too far from the mean; it is nearer now."""
        filled, missing = self._filled(x)
        base, filling = self._moved(filled)
        walk = work.moments(filled, self.axis)
        assert walk
        size, (mean, m2) = float(walk[0].count), walk[1:]
        count = size - missing
        with np.errstate(all="ignore"):
            offset = mean - filling
            right = base + np.where(missing > 0, mean + offset * (missing / count), mean)
            added = offset * (offset * (missing * (size / count)))
            left = np.where(missing > 0, m2 - added, m2)
            spoiled = (missing > 0) & (count > 0) & (left < LEAST_LEFT * m2)
        none = (left < 0) | ((count == 1) & np.isfinite(left))  # NaN stays NaN
        some, left = count > 0, np.where(none, 0.0, left)
        self.values = np.where(some & np.isfinite(right), self._rounded(right), self.values)
        return count, np.where(some, right, 0.0), np.where(some, left, 0.0), spoiled

    def _moved(self, filled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Take the filling from float64, whose mean far from zero would lack digits.

        What has been taken away, and what now stands for NaN. Not of values so large that their
        difference might be infinite.
        """
        filling = self.values.astype(np.float64)
        if self.dtype != np.float64:
            return np.zeros(filling.shape), filling
        base = np.where(abs(filling) < LARGE, filling, 0.0)
        work.normalize(filled, filled, self.axis, base, np.ones(base.shape), None, None, 0.0)
        return base, filling - base

    def _filled(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A copy without NaN, in memory that all pieces use, and how many there were."""
        axis = self.axis
        out = self.buffers.get(x.shape)
        if out is None:
            out = self.buffers[x.shape] = np.empty_like(x, self.dtype)
        if work.walked(axis, x, out) is None:
            np.copyto(out, x)
            x = out
            if work.walked(axis, x) is None:
                x = out = np.array(x, order="C")
        return out, exact.fill(x, out, axis, self.values)
