"""The kernels: each wraps the loops and formulas for one way of reading and computing.

A *tile* is one channel where channels come first, and 32 neighbouring ones where they are last; so
many threads lie side by side (*width*). Blocks of a tile share its values: each has a *part*. A
*group* is what a thread reads at once: 16 bytes along a row, or one value.

===========  =====================================================================================
x, dy, out   flat views of the tensors, in which channel ``c`` of sample ``n`` begins at
             ``(n * channels + c) * length``; with channels last, ``length`` is 1
mean, var    shape (C,): running statistics, or those of the batch
weight, bias shape (C,), or of no values if there are none; likewise running_mean, running_var
statistics   float64, shape (3 * C,): all means, all variances, all ``1 / sqrt(var + eps)``
sums         float64, shape (2 * C,): all sums of dy, all of ``dy * (x - center)``
partial      float64, shape (blocks * 2 * C,): what the parts have summed
tickets      int32, zeros, one a tile: how many parts have arrived; zeros again afterwards
===========  =====================================================================================
"""

from functools import lru_cache
from typing import Any, NamedTuple

from numba import cuda, float32, float64

from fastbn.kernels import formulas
from fastbn.kernels.cuda.compile import device, device_formula, kernel
from fastbn.kernels.cuda.memory import load_of, store_of
from fastbn.kernels.cuda.sums import (
    THREADS,
    first_steps,
    moment_terms,
    product_terms,
    sum_of_blocks,
    sums_with,
)
from fastbn.kernels.cuda.terms import finish_moments, terms_of, update_running, value_or

_normalize = device_formula(formulas.normalize)
_input_gradient = device_formula(formulas.input_gradient)
_reciprocal_std = device_formula(formulas.reciprocal_std)
_moments_from_sums = device_formula(formulas.moments_from_sums)


class Helpers(NamedTuple):
    """Device functions that all kernels need, for one way of reading and computing."""

    my_part: Any
    first_value: Any
    place: Any
    normalizing: Any
    gradient: Any
    center: Any
    finish_products: Any
    value_or: Any


@lru_cache
def helpers_of(wide: bool, lanes: int, width: int) -> Helpers:
    """Which values are a thread's, where they are, and what they are multiplied with."""
    kind = float64 if wide else float32
    load, terms = load_of(lanes), terms_of(kind)
    normalizing_terms = terms.normalizing

    @device
    def my_part(block, blocks, samples, channels, length):
        """Tile, part and channel of a thread, and which groups are its: from, to."""
        tile = block // blocks
        part = block - tile * blocks
        channel = tile * width + cuda.threadIdx.x % width
        groups = samples * (length // lanes)
        each = (groups + blocks - 1) // blocks
        begin = part * each + cuda.threadIdx.x // width
        end = (part + 1) * each
        if end > groups:
            end = groups
        if channel >= channels:
            end = 0
        return tile, part, channel, begin, end

    @device
    def first_value(x, channel, channels, length):
        """The shift of a channel's sums; 0 if it would spoil them."""
        buffer = cuda.local.array(lanes, kind)
        if channel >= channels:
            return float64(0.0)
        load(buffer, x, channel * length)
        value = float64(buffer[0])
        return value if abs(value) < 1e300 else float64(0.0)

    @device
    def place(group, channel, channels, length):
        """Where a group of a channel begins."""
        per_row = length // lanes
        sample = group // per_row
        return (sample * channels + channel) * length + (group - sample * per_row) * lanes

    @device
    def normalizing(u, v, shift, count, weight, bias, eps, channel, channels):
        """Center, scale and shift from the sums of a channel."""
        if channel >= channels:
            return kind(0.0), kind(0.0), kind(0.0)
        mean, m2 = _moments_from_sums(float64(count), shift, u, v)
        return normalizing_terms(
            mean, _reciprocal_std(m2 / count, eps), value_or(weight, channel, 1.0),
            value_or(bias, channel, 0.0),
        )  # fmt: skip

    return Helpers(
        my_part, first_value, place, normalizing, terms.gradient, terms.center,
        terms.finish_products, value_or,
    )  # fmt: skip


class Kernels(NamedTuple):
    """Kernels for one way of reading and computing."""

    normalize: Any
    moments: Any
    products: Any
    gradient: Any


@lru_cache
def kernels_of(wide: bool, lanes: int, width: int) -> Kernels:
    """Kernels that compute in float64 if ``wide``, read so many values at once, and so on."""
    kind = float64 if wide else float32
    load, store = load_of(lanes), store_of(lanes)
    terms = terms_of(kind)
    center_of, normalizing_terms = terms.center, terms.normalizing
    gradient_terms, finish_products = terms.gradient, terms.finish_products
    moment_sums = sums_with(load, moment_terms, lanes, kind, 1, width)
    product_sums = sums_with(load, product_terms, lanes, kind, 2, width)

    helpers = helpers_of(wide, lanes, width)
    my_part, first_value = helpers.my_part, helpers.first_value
    step = THREADS // width

    @device
    def normalize_part(x, out, channel, channels, length, begin, end, center, scale, shift):
        buffer = cuda.local.array(lanes, kind)
        per_row = length // lanes
        at, along, jump, more, over = first_steps(begin, channel, channels, length, lanes, step)
        group = begin
        while group < end:
            load(buffer, x, at)
            for k in range(lanes):
                buffer[k] = _normalize(buffer[k], center, scale, shift)
            store(out, at, buffer)
            group += step
            at += jump
            along += more
            if along >= per_row:
                along -= per_row
                at += over

    @device
    def gradient_part(
        dy, x, out, frozen, channel, channels, length, begin, end, center, scale, slope, offset
    ):
        gradient = cuda.local.array(lanes, kind)
        buffer = cuda.local.array(lanes, kind)
        per_row = length // lanes
        at, along, jump, more, over = first_steps(begin, channel, channels, length, lanes, step)
        group = begin
        while group < end:
            load(gradient, dy, at)
            load(buffer, x, at)
            for k in range(lanes):
                if frozen:
                    gradient[k] *= scale
                else:
                    gradient[k] = _input_gradient(
                        gradient[k], buffer[k], center, scale, slope, offset
                    )
            store(out, at, gradient)
            group += step
            at += jump
            along += more
            if along >= per_row:
                along -= per_row
                at += over

    @device
    def terms_at(mean, var, weight, bias, eps, channel, channels):
        if channel >= channels:
            return kind(0.0), kind(0.0), kind(0.0)
        rstd = _reciprocal_std(float64(var[channel]), eps)
        return normalizing_terms(
            float64(mean[channel]), rstd, value_or(weight, channel, 1.0),
            value_or(bias, channel, 0.0),
        )  # fmt: skip

    @device
    def gradient_terms_at(statistics, sums, weight, channel, channels, count):
        if channel >= channels:
            return kind(0.0), kind(0.0), kind(0.0), kind(0.0)
        return gradient_terms(
            count, sums[channel], sums[channels + channel], statistics[channel],
            statistics[2 * channels + channel], value_or(weight, channel, 1.0),
        )  # fmt: skip

    @kernel
    def normalize(x, out, mean, var, weight, bias, eps, samples, channels, length, blocks, back):
        """Normalize with given statistics; from the end to the beginning if ``back``."""
        block = cuda.gridDim.x - 1 - cuda.blockIdx.x if back else cuda.blockIdx.x
        _, _, channel, begin, end = my_part(block, blocks, samples, channels, length)
        center, scale, shift = terms_at(mean, var, weight, bias, eps, channel, channels)
        normalize_part(x, out, channel, channels, length, begin, end, center, scale, shift)

    @kernel
    def moments(
        x, statistics, running_mean, running_var, partial, tickets, eps, momentum,
        samples, channels, length, blocks,
    ):  # fmt: skip
        """Statistics of the batch, and the update of the running ones."""
        tile, part, channel, begin, end = my_part(
            cuda.blockIdx.x, blocks, samples, channels, length
        )
        shift = first_value(x, channel, channels, length)
        u, v = moment_sums(x, x, channel, channels, length, begin, end, shift)
        done, u, v = sum_of_blocks(
            u, v, partial, tickets, channel, channels, tile, part, blocks, width
        )
        if done and cuda.threadIdx.x < width and channel < channels:
            count = samples * length
            finish_moments(u, v, shift, channel, channels, count, eps, statistics)
            update_running(
                channel, channels, count, momentum, statistics, running_mean, running_var
            )

    @kernel
    def products(
        dy, x, statistics, sums, d_weight, d_bias, partial, tickets,
        samples, channels, length, blocks,
    ):  # fmt: skip
        """Sums for the gradient of x, and the gradients of weight and bias."""
        tile, part, channel, begin, end = my_part(
            cuda.blockIdx.x, blocks, samples, channels, length
        )
        shift = float64(center_of(statistics[channel])) if channel < channels else float64(0.0)
        u, v = product_sums(dy, x, channel, channels, length, begin, end, shift)
        done, u, v = sum_of_blocks(
            u, v, partial, tickets, channel, channels, tile, part, blocks, width
        )
        if done and cuda.threadIdx.x < width and channel < channels:
            sums[channel], sums[channels + channel] = u, v
            finish_products(
                u, v, channel, statistics[channel], statistics[2 * channels + channel],
                d_weight, d_bias,
            )  # fmt: skip

    @kernel
    def gradient(
        dy, x, out, statistics, sums, weight, frozen, samples, channels, length, blocks, back
    ):
        """The gradient of x."""
        block = cuda.gridDim.x - 1 - cuda.blockIdx.x if back else cuda.blockIdx.x
        _, _, channel, begin, end = my_part(block, blocks, samples, channels, length)
        center, scale, slope, offset = gradient_terms_at(
            statistics, sums, weight, channel, channels, samples * length
        )
        gradient_part(
            dy, x, out, frozen, channel, channels, length, begin, end, center, scale, slope, offset
        )

    return Kernels(normalize, moments, products, gradient)
