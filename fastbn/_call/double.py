"""Numbers of twice the digits: the unrounded sum of two float64, ``high + low``.

`two_sum` and `two_product` give what rounding has left of a sum and a product, without a loss
(Knuth, "The Art of Computer Programming", volume 2, section 4.2.2; Dekker, "A Floating-Point
Technique for Extending the Available Precision", 1971). On NumPy arrays. Where a number is
infinite or NaN, or close to the ends of float64's range, the result is NaN.
"""

from typing import Any, NamedTuple

import numpy as np

_SPLIT = 134217729.0  # 2**27 + 1: halves of 53 bits


class Double(NamedTuple):
    """``high + low``, where ``high`` is that sum rounded."""

    high: Any
    low: Any

    def plus(self, other: "Double") -> "Double":
        """The sum of both."""
        high, left = two_sum(self.high, other.high)
        low, less = two_sum(self.low, other.low)
        high, left = _rounded(high, left + low)
        return Double(*_rounded(high, left + less))

    def minus(self, other: "Double") -> "Double":
        """The difference of both."""
        return self.plus(Double(-other.high, -other.low))

    def times(self, other: "Double") -> "Double":
        """The product of both."""
        high, left = two_product(self.high, other.high)
        return Double(*_rounded(high, left + (self.high * other.low + self.low * other.high)))

    def over(self, number: Any) -> "Double":
        """The quotient by a float64."""
        high = self.high / number
        rest = self.minus(Double(*two_product(high, number)))
        low = rest.high / number
        rest = rest.minus(Double(*two_product(low, number)))
        return Double(*_rounded(*_rounded(high, low))).plus(Double(rest.high / number, 0.0 * high))


def two_sum(a: Any, b: Any) -> tuple[Any, Any]:
    """The rounded sum, and what rounding has left."""
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


def two_product(a: Any, b: Any) -> tuple[Any, Any]:
    """The rounded product, and what rounding has left."""
    product = a * b
    (a_high, a_low), (b_high, b_low) = _halves(a), _halves(b)
    left = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return product, left


def _halves(a: Any) -> tuple[Any, Any]:
    scaled = _SPLIT * a
    high = scaled - (scaled - a)
    return high, a - high


def _rounded(high: Any, low: Any) -> tuple[Any, Any]:
    """The same sum, where the first is the larger."""
    total = high + low
    return total, low - (total - high)


class Statistics(NamedTuple):
    """How many values, mean and m2 of each channel."""

    number: np.ndarray
    mean: Double
    m2: Double

    def merge(self, other: "Statistics") -> "Statistics":
        """Of both samples together (`fastbn.kernels.formulas.merge`); NaN where both are empty."""
        count = self.number + other.number
        delta = other.mean.minus(self.mean)
        mean = self.mean.plus(delta.times(Double(other.number, 0.0 * count)).over(count))
        weight = Double(*two_product(self.number, other.number)).over(count)
        m2 = self.m2.plus(other.m2).plus(delta.times(delta.times(weight)))
        return Statistics(count, mean, m2)


def merged(one: Statistics, other: Statistics, plain: tuple[np.ndarray, np.ndarray]) -> Statistics:
    """Of both samples together: the other where one is empty, ``plain`` where that is not finite.

    ``plain`` has mean and m2 as float64 arithmetic gives them.
    """
    with np.errstate(all="ignore"):
        found = one.merge(other)
    parts = []
    for name, mean_or_m2 in zip(("mean", "m2"), plain, strict=True):
        high, low = getattr(found, name)
        finite = np.isfinite(high) & np.isfinite(low)
        double = Double(np.where(finite, high, mean_or_m2), np.where(finite, low, 0.0))
        for empty, there in ((one, other), (other, one)):
            chosen = (
                np.where(empty.number == 0, of_there, of_both)
                for of_there, of_both in zip(getattr(there, name), double, strict=True)
            )
            double = Double(*chosen)
        parts.append(double)
    return Statistics(found.number, *parts)


def quotient(number: int, by: int) -> tuple[float, float]:
    """A quotient of integers of any size: rounded, and what that has left, rounded."""
    high = number / by
    over, under = high.as_integer_ratio()
    return high, (number * under - over * by) / (by * under)
