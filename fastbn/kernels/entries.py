"""What Python calls: an entry puts the addresses of a call's arrays into a copy of its frame.

Beside each stands what it takes, for x of a dtype and running statistics of one: a dtype for an
array, a Python type for a number. Arrays are flat views; a parameter that is absent is an array
of no values.
"""

import numpy as np

from fastbn.kernels import double, formulas
from fastbn.kernels.compile import entry, inlined
from fastbn.kernels.frame import WORDS
from fastbn.kernels.simd import (
    address_of,
    allocate,
    call,
    compiled_formula,
    copy_of,
    frame_at,
    free,
    words_at,
)

_INT64, _FLOAT64 = np.dtype(np.int64), np.dtype(np.float64)
_BYTES = np.dtype(np.uint8)

running_update = compiled_formula(formulas.running_update)


#: What entries return too, besides `frame`'s outcomes: there was no memory. It can be called again.
NO_MEMORY = 2


@inlined
def begin(template):
    """A copy of a plan's frame, and after it as much memory as that asks for; 0 without any."""
    address = allocate(8 * (WORDS + 8) + frame_at(address_of(template)).scratch_bytes)
    if address != 0:
        frame = words_at(address, template)
        for k in range(WORDS):
            frame[k] = template[k]
        frame_at(address).scratch = (address + 8 * WORDS + 63) // 64 * 64
    return address


@inlined
def run(address):
    """Run what the frame at an address says; the memory is given back."""
    f = frame_at(address)
    call(f.run, address, 0)
    outcome = f.outcome
    free(address)
    return outcome


@inlined
def address_if_any(array):
    return address_of(array) if array.size > 0 else 0


@entry(lambda x, parameter, running: (_INT64, x, x, running, running, *[parameter] * 2, float))
def normalize(template, x, out, mean, var, weight, bias, eps):
    """Normalize with given statistics."""
    address = begin(template)
    if address == 0:
        return NO_MEMORY
    f = frame_at(address)
    f.first, f.out, f.eps = address_of(x), address_of(out), eps
    f.mean, f.var, f.mean_bytes = address_of(mean), address_of(var), mean.itemsize
    f.weight, f.bias = address_if_any(weight), address_if_any(bias)
    f.weight_bytes = weight.itemsize
    return run(address)


@entry(lambda x, parameter, running: (_INT64, x, x, *[parameter] * 2, _FLOAT64, float))
def forward(template, x, out, weight, bias, statistics, eps):
    """Normalize with the batch's statistics, which it writes: mean, variance, 1 / std."""
    address = begin(template)
    if address == 0:
        return NO_MEMORY
    f = frame_at(address)
    f.first, f.out, f.eps = address_of(x), address_of(out), eps
    f.weight, f.bias = address_if_any(weight), address_if_any(bias)
    f.weight_bytes = weight.itemsize
    f.statistics, f.mean_bytes = address_of(statistics), 8
    f.mean, f.var = f.statistics, f.statistics + 8 * f.all_channels
    return run(address)


@entry(
    lambda x, parameter, running: (
        _INT64, x, x, x, running, running, *[parameter] * 2, float, float
    )
)  # fmt: skip
def normalize_fused(template, x, residual, out, mean, var, weight, bias, eps, slope):
    """`normalize`, plus a residual if there is one, through an activation."""
    address = begin(template)
    if address == 0:
        return NO_MEMORY
    f = frame_at(address)
    f.first, f.second, f.out = address_of(x), address_if_any(residual), address_of(out)
    f.eps, f.slope = eps, slope
    f.mean, f.var, f.mean_bytes = address_of(mean), address_of(var), mean.itemsize
    f.weight, f.bias = address_if_any(weight), address_if_any(bias)
    f.weight_bytes = weight.itemsize
    return run(address)


@entry(lambda x, parameter, running: (_INT64, x, x, x, *[parameter] * 2, _FLOAT64, float, float))
def forward_fused(template, x, residual, out, weight, bias, statistics, eps, slope):
    """`forward`, plus a residual if there is one, through an activation."""
    address = begin(template)
    if address == 0:
        return NO_MEMORY
    f = frame_at(address)
    f.first, f.second, f.out = address_of(x), address_if_any(residual), address_of(out)
    f.eps, f.slope = eps, slope
    f.weight, f.bias = address_if_any(weight), address_if_any(bias)
    f.weight_bytes = weight.itemsize
    f.statistics, f.mean_bytes = address_of(statistics), 8
    f.mean, f.var = f.statistics, f.statistics + 8 * f.all_channels
    return run(address)


@entry(
    lambda x, parameter, running: (
        _INT64, x, x, x, x, _FLOAT64, *[parameter] * 2, float, float
    )
)  # fmt: skip
def gradient_fused(template, dy, x, residual, out, statistics, weight, bias, eps, slope):
    """The gradient in what went into the activation, which is worked out again."""
    address = begin(template)
    if address == 0:
        return NO_MEMORY
    f = frame_at(address)
    f.first, f.second, f.third = address_of(dy), address_of(x), address_if_any(residual)
    f.out, f.eps, f.slope = address_of(out), eps, slope
    f.mean, f.mean_bytes = address_of(statistics), 8
    f.var = f.mean + 8 * f.all_channels
    f.weight, f.bias = address_if_any(weight), address_if_any(bias)
    f.weight_bytes = weight.itemsize
    return run(address)


@entry(lambda x, parameter, running: (_INT64, x, x, *[parameter] * 2, _FLOAT64, float, bool))
def row_forward(template, x, out, weight, bias, statistics, eps, uncentered):
    """Normalize rows, with a weight and a bias for each column; `LEFT` if some are left.

    ``uncentered``: no mean is subtracted, and the variance is the mean of squares.
    """
    address = begin(template)
    if address == 0:
        return NO_MEMORY
    f = frame_at(address)
    f.first, f.out, f.eps = address_of(x), address_of(out), eps
    f.weight, f.bias = address_of(weight), address_of(bias)
    f.statistics, f.uncentered = address_of(statistics), uncentered
    return run(address)


@entry(lambda x, parameter, running: (_INT64, x, x, x, _FLOAT64, parameter, *[_FLOAT64] * 3, bool))
def row_gradient(template, dy, x, dx, statistics, weight, d_weight, d_bias, left, uncentered):
    """Gradients of `row_forward`; `LEFT` if some rows got none: ``left`` says which."""
    address = begin(template)
    if address == 0:
        return NO_MEMORY
    f = frame_at(address)
    f.first, f.second, f.out = address_of(dy), address_of(x), address_of(dx)
    f.statistics, f.weight = address_of(statistics), address_of(weight)
    f.d_weight, f.d_bias, f.left = address_of(d_weight), address_of(d_bias), address_of(left)
    f.uncentered = uncentered
    return run(address)


@entry(lambda x, parameter, running: (_INT64, x, x, x, _FLOAT64))
def given_gradient(template, dy, x, dx, terms):
    """The gradient of x from rows of mean, scale, slope and offset."""
    address = begin(template)
    if address == 0:
        return NO_MEMORY
    f = frame_at(address)
    f.first, f.second, f.out = address_of(dy), address_of(x), address_of(dx)
    f.statistics = address_of(terms)
    return run(address)


@entry(lambda x, parameter, running: (_INT64, x, x, x, _FLOAT64, *[parameter] * 3))
def backward(template, dy, x, dx, statistics, weight, d_weight, d_bias):
    """Gradients of x, weight and bias; ``statistics`` as `forward` writes them."""
    address = begin(template)
    if address == 0:
        return NO_MEMORY
    f = frame_at(address)
    f.first, f.second, f.out = address_of(dy), address_of(x), address_of(dx)
    f.statistics, f.weight = address_of(statistics), address_if_any(weight)
    f.weight_bytes = weight.itemsize
    f.d_weight, f.d_bias = address_of(d_weight), address_of(d_bias)
    return run(address)


@entry(lambda x, parameter, running: (_INT64, x, x, *[_FLOAT64] * 3))
def products(template, dy, x, statistics, d_weight, d_bias):
    """Gradients of weight and bias alone, in float64."""
    address = begin(template)
    if address == 0:
        return NO_MEMORY
    f = frame_at(address)
    f.first, f.second, f.statistics = address_of(dy), address_of(x), address_of(statistics)
    f.d_weight, f.d_bias = address_of(d_weight), address_of(d_bias)
    return run(address)


@entry(lambda x, parameter, running: (_INT64, x, _FLOAT64))
def moments(template, x, statistics):
    """Mean and m2 of each channel, into the first two rows of ``statistics``."""
    address = begin(template)
    if address == 0:
        return NO_MEMORY
    f = frame_at(address)
    f.first, f.statistics = address_of(x), address_of(statistics)
    return run(address)


# --- exact, of arrays of any integers, which come as bytes ----------------------------------------


@entry(lambda x, parameter, running: (_INT64, _BYTES, _INT64))
def exact_sums(template, x, numbers):
    """Sums of ``x`` and ``x * x`` of each channel, into the first two rows of ``numbers``."""
    address = begin(template)
    if address == 0:
        return NO_MEMORY
    f = frame_at(address)
    f.first, f.statistics = address_of(x), address_of(numbers)
    return run(address)


@entry(lambda x, parameter, running: (_INT64, _BYTES, _INT64, int, int, int))
def exact_extremes(template, x, numbers, flip, lowest, highest):
    """The smallest and the largest key of each channel, and how many are NaN."""
    address = begin(template)
    if address == 0:
        return NO_MEMORY
    f = frame_at(address)
    f.first, f.statistics = address_of(x), address_of(numbers)
    f.flip, f.lowest, f.highest = flip, lowest, highest
    return run(address)


@entry(lambda x, parameter, running: (_INT64, _BYTES, _BYTES, _BYTES, _INT64, int, int))
def exact_filled(template, x, out, values, numbers, flip, highest):
    """Copy x to ``out`` with ``values`` for NaN; how many these are, of each channel."""
    address = begin(template)
    if address == 0:
        return NO_MEMORY
    f = frame_at(address)
    f.first, f.out, f.weight = address_of(x), address_of(out), address_of(values)
    f.statistics, f.flip, f.highest = address_of(numbers), flip, highest
    return run(address)


@entry(lambda x, parameter, running: (_FLOAT64, _FLOAT64, _FLOAT64, int))
def merge_statistics(one, other, both, channels):
    """Merge rows of count, mean, m2, and what rounding has left of these two, into ``both``.

    Where one is empty, the other as it is. Infinity stays infinity.
    """
    for c in range(channels):
        m, v, m_low, v_low = channels + c, 2 * channels + c, 3 * channels + c, 4 * channels + c
        a, b = one[c], other[c]
        if a == 0.0 or b == 0.0:
            there = other if a == 0.0 else one
            for k in (c, m, v, m_low, v_low):
                both[k] = there[k]
            continue
        count, mean, m2 = double.double_merge(
            a, (one[m], one[m_low]), (one[v], one[v_low]),
            b, (other[m], other[m_low]), (other[v], other[v_low]),
        )  # fmt: skip
        _, plain_mean, plain_m2 = double.plain_merge(a, one[m], one[v], b, other[m], other[v])
        if not double.is_finite(plain_mean):
            plain_mean = (a * one[m] + b * other[m]) / count
        mean, m2 = double.finite_or(mean, plain_mean), double.finite_or(m2, plain_m2)
        both[c], both[m], both[v], both[m_low], both[v_low] = count, mean[0], m2[0], mean[1], m2[1]


@entry(lambda x, parameter, running: (running, running, _INT64, _FLOAT64, float, float, bool))
def update_running(
    running_mean, running_var, counter, statistics, correction, momentum, cumulative
):
    """Fold the batch's mean and its variance, corrected, into the running ones; count the batch.

    One call of compiled code, so that no exception can come between the three.
    ``cumulative``: every batch so far has the same weight.
    """
    counter[0] += 1
    batches = counter[0] if counter[0] > 1 else 1  # a counter may have been set to anything
    weight = 1.0 / batches if cumulative else momentum
    channels = running_mean.size
    for c in range(channels):
        running_mean[c] = running_update(running_mean[c], statistics[c], weight)
        batch_var = statistics[channels + c] * correction
        running_var[c] = running_update(running_var[c], batch_var, weight)


@entry(lambda x, parameter, running: (_INT64, int, int, int))
def standardize(template, x, out, table):
    """One elementwise pass from x to out; the caller keeps all three alive, wherever they lie."""
    address = copy_of(address_of(template))
    f = frame_at(address)
    f.first, f.out, f.table = x, out, table
    call(f.run, address, 0)
    return f.outcome
