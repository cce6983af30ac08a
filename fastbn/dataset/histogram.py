"""Histograms of channels with bins that are fixed before the counting begins."""

from __future__ import annotations

import math
import sys
from typing import Any, NamedTuple

import numpy as np

__all__ = ["BINS", "MOST_CHANNELS", "Bins", "Histograms", "Spread"]

BINS = 256
#: Counts take 2 KB a channel and block.
MOST_CHANNELS = 4096


class Histograms(NamedTuple):
    """Counts of every channel's values in 256 bins.

    Attributes
    ----------
    edges : ndarray of float64, shape (C, 257)
        Bin k holds ``edges[c, k] <= x < edges[c, k + 1]``.
    counts : ndarray of int64, shape (C, 256)
    below, above : ndarray of int64, shape (C,)
        Values outside of the bins. NaN is counted nowhere.
    """

    edges: np.ndarray
    counts: np.ndarray
    below: np.ndarray
    above: np.ndarray


class Bins(NamedTuple):
    """256 bins a channel: where the first begins, and how wide all are; lists, to be sent."""

    low: list[float]
    width: list[float]

    def count_of(self, x: np.ndarray) -> np.ndarray:
        """Counts (channels, 1 + 256 + 1) of x (n, channels, inner); ends are what is outside."""
        counts = np.empty((len(self.low), BINS + 2), np.int64)
        for c, (low, width) in enumerate(zip(self.low, self.width, strict=True)):
            values = x[:, c].reshape(-1)
            if x.dtype.itemsize == 1:  # whose bins are its values
                found = np.bincount((values.astype(np.int16) - int(low)), minlength=BINS)
                counts[c] = np.concatenate([[0], found, [0]])
                continue
            wide = values.astype(np.float64)
            wide = wide[~np.isnan(wide)]
            with np.errstate(over="ignore"):  # of values far outside
                place = np.floor(wide / width - low / width)  # whose difference may be infinite
            place = np.clip(place, -1, BINS).astype(np.int64)
            edges = np.concatenate([[-np.inf], _edges(low, width), [np.inf]])
            place += wide >= edges[np.minimum(place + 2, BINS + 1)]  # the quotient was rounded
            place -= wide < edges[place + 1]
            counts[c] = np.bincount(np.minimum(place, BINS) + 1, minlength=BINS + 2)
        return counts

    def of(self, first: int, channels: int) -> Bins:
        """Those of some channels."""
        some = slice(first, first + channels)
        return Bins(self.low[some], self.width[some])

    def histograms(self, counts: np.ndarray) -> Histograms:
        """For the user."""
        low, width = np.array(self.low)[:, None], np.array(self.width)[:, None]
        return Histograms(_edges(low, width), counts[:, 1:-1], counts[:, 0], counts[:, -1])


def _edges(low: Any, width: Any) -> np.ndarray:
    """Where bins begin and end; by halves, because all bins may be wider than any number."""
    return 2 * (low / 2 + width / 2 * np.arange(BINS + 1))


class Spread:
    """Least and greatest finite value of each channel of a sample, from which bins follow."""

    def __init__(self, channels: int, dtype: np.dtype) -> None:
        self.dtype = dtype
        self.least, self.greatest = np.full(channels, np.inf), np.full(channels, -np.inf)
        self.values = 0

    def add(self, x: np.ndarray, first: int = 0) -> None:
        """Take more values (n, channels, inner) of the channels from ``first`` on."""
        self.values += x.size
        for c in range(x.shape[1]):
            values = x[:, c][np.isfinite(x[:, c])]
            if values.size:
                self.least[first + c] = min(self.least[first + c], float(values.min()))
                self.greatest[first + c] = max(self.greatest[first + c], float(values.max()))

    @property
    def full(self) -> bool:
        """Whether there are values of all channels, and not too few."""
        return bool(np.isfinite(self.least).all()) and self.values >= 4 << 20

    def bins(self) -> Bins:
        """The values of 8-bit numbers; else the sample's range, and half of it on either side."""
        channels = self.least.size
        if self.dtype.itemsize == 1:
            return Bins([0.0 if self.dtype.kind == "u" else -128.0] * channels, [1.0] * channels)
        low, width = [], []
        for least, greatest in zip(self.least.tolist(), self.greatest.tolist(), strict=True):
            if not least <= greatest:  # nothing finite
                least = greatest = 0.0
            if self.dtype.kind in "ui":  # whole widths: each bin has as many possible values
                step = float(max(1, math.ceil(2 * (greatest - least + 1) / BINS)))
                begin = max(float(np.iinfo(self.dtype).min), math.floor((least + greatest) / 2
                            - step * BINS / 2)) - 0.5  # fmt: skip
            else:
                half = max(greatest / 2 - least / 2, 1e-6 * max(-least, greatest) / 2, 1e-300)
                center, most = least / 2 + greatest / 2, sys.float_info.max / 2
                begin = 2 * max(center / 2 - half, -most)
                end = 2 * min(center / 2 + half, most)
                step = end / BINS - begin / BINS
            low.append(begin)
            width.append(step)
        return Bins(low, width)
