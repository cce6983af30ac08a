"""Numbers of twice the digits: ``high + low``, where ``high`` is that sum rounded to float64.

`two_sum` and `two_product` give what rounding has left of a sum and a product, without a loss
(Knuth, "The Art of Computer Programming", volume 2, section 4.2.2; Dekker, "A Floating-Point
Technique for Extending the Available Precision", 1971). Each operation is right to about 100 bits.
Where a number is infinite or NaN, or close to the ends of float64's range, the result is NaN.
"""

from fastbn.kernels import formulas
from fastbn.kernels.compile import inlined

SPLIT = 134217729.0  # 2**27 + 1: halves of 53 bits


@inlined
def two_sum(a, b):
    """The rounded sum, and what rounding has left."""
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


@inlined
def rounded(high, low):
    """`two_sum` where the first is the larger."""
    total = high + low
    return total, low - (total - high)


@inlined
def two_product(a, b):
    """The rounded product, and what rounding has left."""
    product = a * b
    a_scaled, b_scaled = SPLIT * a, SPLIT * b
    a_high, b_high = a_scaled - (a_scaled - a), b_scaled - (b_scaled - b)
    a_low, b_low = a - a_high, b - b_high
    left = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return product, left


@inlined
def double_sum(a, b):
    """The sum of two pairs."""
    high, left = two_sum(a[0], b[0])
    low, less = two_sum(a[1], b[1])
    high, left = rounded(high, left + low)
    return rounded(high, left + less)


@inlined
def double_product(a, b):
    """The product of two pairs."""
    high, left = two_product(a[0], b[0])
    return rounded(high, left + (a[0] * b[1] + a[1] * b[0]))


@inlined
def double_quotient(a, b):
    """The quotient of two float64, as a pair."""
    high = a / b
    product, left = two_product(high, b)
    return rounded(high, ((a - product) - left) / b)


@inlined
def double_merge(count_a, mean_a, m2_a, count_b, mean_b, m2_b):
    """`formulas.merge` for means and m2 that are pairs."""
    count = count_a + count_b
    weight = double_quotient(count_b, count)
    delta = double_sum(mean_b, (-mean_a[0], -mean_a[1]))
    mean = double_sum(mean_a, double_product(delta, weight))
    share = double_product((count_a, 0.0), weight)
    between = double_product(delta, double_product(delta, share))
    return count, mean, double_sum(double_sum(m2_a, m2_b), between)


is_finite, plain_merge = inlined(formulas.is_finite), inlined(formulas.merge)


@inlined
def finite_or(pair, plain):
    """A pair, or ``plain`` where there is no room for twice the digits."""
    if is_finite(pair[0]) and is_finite(pair[1]):
        return pair
    return plain, 0.0
