"""exp, expm1 and tanh of vectors, in sums and products: LLVM would call the C library lane by lane.

Formulas on symbols, as all others. With n the whole number nearest to ``x / ln 4``,

    ``e**x = 4**n * e**r``, where ``r = x - n * ln 4`` and ``|r| <= ln 2``,

and ``e**r - 1 = r + r * r * q(r)``. It is 4 instead of 2 because ``2**n * 2**n`` then also serves
where ``4**n`` is infinite or subnormal. The polynomial q agrees with ``(e**r - 1 - r) / r**2`` at
the Chebyshev nodes of that range, which comes close to the smallest error that a polynomial can
have; `tests.reference.exponential_coefficients` works out its coefficients in exact fractions.

Relative errors, measured: exp 1.5e-7 and 3.2e-16, expm1 1.5e-7 and 4.2e-16, tanh 1.8e-7 and
4.1e-16; of subnormal results at most one unit. NaN stays NaN, and zero keeps its sign.
"""

from typing import Any, NamedTuple

import numpy as np


class Constants(NamedTuple):
    """What depends on the precision."""

    least: float  # from here down e**x is zero
    most: float  # and from here up infinite
    linear: float  # up to here ``e**x - 1`` is x, and so is tanh
    flat: float  # from here up tanh is 1
    #: ln 4 in two parts: n times the first is exact.
    ln4_high: float
    ln4_low: float
    coefficients: tuple[float, ...]  # of q
    #: Added to a number, leaves the nearest whole number in the last bits of the sum.
    whole: float
    exponent_of_one: float
    fraction_bits: int


SINGLE = Constants(
    least=-104.0, most=89.0, linear=2.0**-26, flat=10.0,
    ln4_high=1.38629150390625, ln4_low=2.8572136406188345e-06,
    coefficients=(
        0.5, 0.16666670035096087, 0.04166667003080943, 0.00833277276330395,
        0.0013888328981511273, 0.0002007423909655169, 2.5034344493486168e-05,
    ),
    whole=1.5 * 2.0**23, exponent_of_one=127.0, fraction_bits=23,
)  # fmt: skip
DOUBLE = Constants(
    least=-746.0, most=710.0, linear=2.0**-55, flat=20.0,
    ln4_high=1.3862943611197807, ln4_low=1.0995846037416742e-13,
    coefficients=(
        0.49999999999999994, 0.16666666666666666, 0.04166666666667705, 0.008333333333334025,
        0.0013888888886367276, 0.0001984126983958992, 2.4801589540241486e-05,
        2.7557320715450417e-06, 2.755642112324887e-07, 2.505151000145647e-08,
        2.104271368161005e-09, 1.6169632751794237e-10,
    ),
    whole=1.5 * 2.0**52, exponent_of_one=1023.0, fraction_bits=52,
)  # fmt: skip
LOG4_E = 0.7213475204444817


def bounded(x, least, most):
    """``x``, but not beyond two numbers."""
    return np.where(x < least, least, np.where(x > most, most, x))


def reduced(x, constants):
    """``2**n``, and ``e**r - 1`` as ``r`` and ``r * r * q(r)``."""
    n = (x * LOG4_E + constants.whole) - constants.whole
    r = (x - n * constants.ln4_high) - n * constants.ln4_low
    *others, q = constants.coefficients
    for coefficient in reversed(others):
        q = q * r + coefficient
    # the last bits of a sum become the exponent of a number
    root = (n + (constants.whole + constants.exponent_of_one)).moved_up(constants.fraction_bits)
    return root, r, r * r * q


def exp(x, constants):
    """``e**x``."""
    root, r, rest = reduced(bounded(x, constants.least, constants.most), constants)
    return (1.0 + (r + rest)) * root * root


def minus_one(x, constants):
    """`expm1`, but for what is tiny, below -40 or above ``most``."""
    root, r, rest = reduced(x, constants)
    half = root * (root * 0.5)  # of 4**n, which may be infinite
    return 2.0 * (half * (r + rest) + (half - 0.5))


def expm1(x, constants):
    """``e**x - 1``, with all digits also where x is small."""
    result = minus_one(bounded(x, -40.0, constants.most), constants)
    return np.where(abs(x) <= constants.linear, x, result)


def tanh(x, constants):
    """``tanh(x) = (e**2x - 1) / (e**2x + 1)``."""
    power = minus_one(2.0 * bounded(x, -constants.flat, constants.flat), constants)
    return np.where(abs(x) <= constants.linear, x, power / (power + 2.0))


#: By NumPy's function.
FUNCTIONS: dict[np.ufunc, Any] = {np.exp: exp, np.expm1: expm1, np.tanh: tanh}
