"""What float32 cannot hold: squares of tiny and huge values, differences that overflow.

Sums that have left the range of float32 are taken again with the data multiplied by a
power of two, which is exact. The usual loops pay one comparison per block for it.
float64 needs none of this: there the reference overflows too.
"""

import math

import numpy as np

from fastbn.kernels.compile import inner
from fastbn.kernels.vector import lanes, rounded

SMALLEST = 1e-30  # a smaller sum of squares may have lost terms to underflow
UP, DOWN = 2.0**100, 2.0**-100  # bring any float32 to where its square is one
FAR = 1e37  # a center beyond it may overflow when it is subtracted
LEAST_RSTD, MOST_RSTD = 1e-15, 1e15  # beyond them 1 / var leaves the range
LARGEST = 3.4028234663852886e38  # of float32
LAST_EXPONENT = 120  # of a unit: it and its inverse are float32 too


@inner
def narrow(x):
    """Whether ``x`` is float32; known when a kernel is compiled."""
    return lanes(x) > 8


@inner
def out_of_range(squares):
    """Whether a float32 sum of squares may be wrong; also of a constant or a NaN."""
    return not SMALLEST < squares < np.inf


@inner
def better_unit(squares):
    """Factor for the data under which ``squares`` would have stayed in range."""
    return UP if squares <= SMALLEST else DOWN


@inner
def unit_of(x, mean, rstd):
    """Power of two for ``x - center`` under which terms and products stay in range.

    About ``rstd`` where that is extreme, so that the product is about one.
    """
    if not narrow(x):
        return 1.0
    if 0.0 < rstd < LEAST_RSTD or MOST_RSTD < rstd < np.inf:
        exponent = math.frexp(rstd)[1]
        return math.ldexp(1.0, max(-LAST_EXPONENT, min(LAST_EXPONENT, exponent)))
    return DOWN if abs(mean) > FAR else 1.0


@inner
def center_of(x, mean):
    """``mean`` rounded to x's dtype, and not to infinity."""
    if narrow(x) and np.isfinite(mean):
        mean = min(max(mean, -LARGEST), LARGEST)
    return rounded(x, mean)


@inner
def scaled_difference(x, center, down, up):
    """``(x - center) * unit`` for a unit split in its part below one and its part above.

    Huge values are made smaller before they are subtracted, tiny differences larger after.
    """
    return (x * down - center * down) * up


@inner
def finite_or(value, other):
    return value if np.isfinite(value) else other


@inner
def wide_products(dy, i, x, j, size, shift):
    """Sums of ``dy`` and ``dy * (x - shift)`` over a row, in float64, one value at a time."""
    s = p = 0.0
    for k in range(size):
        g = np.float64(dy[i + k])
        s += g
        p += g * (np.float64(x[j + k]) - shift)
    return s, p
