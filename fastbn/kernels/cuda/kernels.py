"""The kernels: each wraps the loops and formulas for one way of reading and computing.

A *group* is what a thread reads at once: up to 16 bytes of a channel, or of neighbouring channels
where they are last. A *tile* is one channel where channels come first; where they are last, it is
what the groups of a few threads side by side (*width*) have of a row. Blocks of a tile share its
values: each has a *part*.

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
from fastbn.kernels.cuda.helpers import across_of, helpers_of
from fastbn.kernels.cuda.steps import PLAIN, Extra, steps_of
from fastbn.kernels.cuda.sums import sum_of_blocks
from fastbn.kernels.cuda.terms import finish_moments, terms_of, update_running, value_or
from fastbn.kernels.cuda.walk import walk_with

_reciprocal_std = device_formula(formulas.reciprocal_std)


class Kernels(NamedTuple):
    """Kernels for one way of reading and computing."""

    normalize: Any
    moments: Any
    products: Any
    gradient: Any


@lru_cache
def kernels_of(wide: bool, lanes: int, width: int, extra: Extra = PLAIN) -> Kernels:
    """Kernels that compute in float64 if ``wide``, read so many values at once, and so on."""
    kind = float64 if wide else float32
    across = across_of(lanes, width)
    per_tile, three, four = across * width, 3 * across, 4 * across
    way = wide, lanes, width
    helpers, terms_for = helpers_of(*way), terms_of(kind)
    finish, enter, inside_too = steps_of(*way, extra)
    centered = extra.centered
    my_part, first_value = helpers.my_part, helpers.first_value
    start_moments, start_products = helpers.start_moments, helpers.start_products
    collect, hand_out = helpers.collect, helpers.hand_out
    normalizing_terms, gradient_terms = terms_for.normalizing, terms_for.gradient
    finish_products = terms_for.finish_products
    add_moments, add_products = helpers.add_moments, helpers.add_products
    gradient_group, inside_at = helpers.gradient_group, helpers.inside_at

    @device
    def sum_moments(x, _, at, tally):
        add_moments(x, x, tally)

    @device
    def sum_products(dy, x, at, state):
        tally, inside, more = state
        enter(dy, x, at, inside, more)
        add_products(dy, x, tally)

    @device
    def give(x, _, at, state):
        terms, more = state
        finish(x, at, terms, more)

    @device
    def differentiate(dy, x, at, state):
        terms, frozen, inside, more = state
        enter(dy, x, at, inside, more)
        gradient_group(dy, x, terms, frozen)

    add_all_moments = walk_with(sum_moments, *way, reads=1)
    add_all_products = walk_with(sum_products, *way, reads=2)
    normalize_all = walk_with(give, *way, reads=1, writes=True)
    gradient_of_all = walk_with(differentiate, *way, reads=2, writes=True)

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
    def normalize(
        x, out, mean, var, weight, bias, eps, samples, channels, length, blocks, back, more,
    ):  # fmt: skip
        """Normalize with given statistics; from the end to the beginning if ``back``."""
        block = cuda.gridDim.x - 1 - cuda.blockIdx.x if back else cuda.blockIdx.x
        _, _, channel, mine, begin, end = my_part(block, blocks, samples, channels, length)
        terms = cuda.local.array(four, kind)
        center, scale, shift = terms_at(mean, var, weight, bias, eps, mine, channels)
        hand_out(center, scale, shift, shift, terms)
        normalize_all(x, x, out, channel, channels, length, begin, end, (terms, more))

    @kernel
    def moments(
        x, statistics, running_mean, running_var, partial, tickets, eps, momentum,
        samples, channels, length, blocks,
    ):  # fmt: skip
        """Statistics of the batch, and the update of the running ones."""
        tile, part, channel, mine, begin, end = my_part(
            cuda.blockIdx.x, blocks, samples, channels, length
        )
        tally = cuda.local.array(three, float64)
        shift = first_value(x, mine, channels, length) if centered else float64(0.0)
        start_moments(x, channel, channels, shift, tally)
        add_all_moments(x, x, x, channel, channels, length, begin, end, tally)
        u, v = collect(tally)
        done, u, v = sum_of_blocks(
            u, v, partial, tickets, mine, channels, tile, part, blocks, per_tile
        )
        if done and cuda.threadIdx.x < per_tile and mine < channels:
            if not centered:
                u = float64(0.0)
            count = samples * length
            finish_moments(u, v, shift, mine, channels, count, eps, statistics)
            update_running(mine, channels, count, momentum, statistics, running_mean, running_var)

    @kernel
    def products(
        dy, x, statistics, weight, sums, d_weight, d_bias, partial, tickets,
        samples, channels, length, blocks, more,
    ):  # fmt: skip
        """Sums for the gradient of x, and the gradients of weight and bias."""
        tile, part, channel, mine, begin, end = my_part(
            cuda.blockIdx.x, blocks, samples, channels, length
        )
        tally = cuda.local.array(three, float64)
        inside = cuda.local.array(four, kind)
        if inside_too:
            center, scale, shift = inside_at(statistics, weight, more[0], mine, channels)
            hand_out(center, scale, shift, shift, inside)
        mean = statistics[mine] if mine < channels else float64(0.0)
        start_products(statistics, channel, channels, mean, tally)
        add_all_products(dy, x, x, channel, channels, length, begin, end, (tally, inside, more))
        u, v = collect(tally)
        done, u, v = sum_of_blocks(
            u, v, partial, tickets, mine, channels, tile, part, blocks, per_tile
        )
        if done and cuda.threadIdx.x < per_tile and mine < channels:
            if not centered:
                u = float64(0.0)
            sums[mine], sums[channels + mine] = u, v
            finish_products(
                u, v, mine, statistics[mine], statistics[2 * channels + mine], d_weight, d_bias
            )

    @kernel
    def gradient(
        dy, x, out, statistics, sums, weight, frozen, samples, channels, length, blocks, back, more,
    ):  # fmt: skip
        """The gradient of x."""
        block = cuda.gridDim.x - 1 - cuda.blockIdx.x if back else cuda.blockIdx.x
        _, _, channel, mine, begin, end = my_part(block, blocks, samples, channels, length)
        terms = cuda.local.array(four, kind)
        inside = cuda.local.array(four, kind)
        if inside_too:
            center, scale, shift = inside_at(statistics, weight, more[0], mine, channels)
            hand_out(center, scale, shift, shift, inside)
            cuda.syncthreads()
        center, scale, slope, offset = gradient_terms_at(
            statistics, sums, weight, mine, channels, samples * length
        )
        hand_out(center, scale, slope, offset, terms)
        gradient_of_all(
            dy, x, out, channel, channels, length, begin, end, (terms, frozen, inside, more)
        )

    return Kernels(normalize, moments, products, gradient)
