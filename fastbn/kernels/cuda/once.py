"""Kernels that read each value once: a thread keeps what it has read in registers.

Where a tile has more values than a block can keep, several blocks share it. Each publishes its sums
and waits for the others of its tile, so all of these must be on the device at the same time. Blocks
therefore take their numbers from a ticket: those that wait began before those that they do not
wait for, and `_call.device` bounds how many share a tile.

``arrivals`` is int32, zeros, of shape (2 * tiles + 1,): how many blocks of each tile have published
their sums, how many have read those of the others, and how many have begun. It is zeros again
afterwards.
"""

from functools import lru_cache
from typing import Any, NamedTuple

from numba import cuda, float32, float64, int32

from fastbn.kernels.cuda.compile import device, kernel
from fastbn.kernels.cuda.helpers import across_of, helpers_of
from fastbn.kernels.cuda.memory import fresh
from fastbn.kernels.cuda.steps import PLAIN, Extra, steps_of
from fastbn.kernels.cuda.sums import THREADS, publish, sum_of_published, tree_sums
from fastbn.kernels.cuda.terms import finish_moments, terms_of, update_running, value_or

#: Values that a thread keeps, in one array and in each of two: 32 registers of 4 bytes.
KEPT, KEPT_OF_TWO = 32, 16
#: Channels that a thread may then read: the sums of more leave too few registers.
KEPT_ACROSS = 4


def held_groups(lanes: int, wide: bool, arrays: int) -> int:
    """How many groups a thread keeps of each of its arrays.

    Loops over more than 16 are not unrolled for every GPU, and what is not is kept in memory.
    """
    return min(16, (KEPT if arrays == 1 else KEPT_OF_TWO) // (lanes * (2 if wide else 1)))


@device
def begins_as(arrivals, tiles):
    """The number of this block: how many have begun before it."""
    number = cuda.shared.array(1, int32)
    if cuda.threadIdx.x == 0:
        number[0] = cuda.atomic.add(arrivals, 2 * tiles, 1)
        if number[0] == cuda.gridDim.x - 1:
            arrivals[2 * tiles] = 0  # all have begun
    cuda.syncthreads()
    return number[0]


@device
def shared_sums(u, v, partial, arrivals, tile, tiles, part, blocks, channel, channels, width):
    """The sums of all blocks of a tile, in each of them, for all of its threads."""
    thread = cuda.threadIdx.x
    u, v = tree_sums(u, v, width)
    if blocks == 1:
        return u, v
    publish(u, v, partial, channel, channels, part, width)
    cuda.threadfence()  # before the arrival that tells the others
    cuda.syncthreads()
    if thread == 0:
        cuda.atomic.add(arrivals, tile, 1)
        while fresh(arrivals, tile) < blocks:
            pass
        cuda.threadfence()  # what they have published is read after that
    cuda.syncthreads()
    u, v = sum_of_published(partial, channel, channels, blocks, width)
    u, v = tree_sums(u, v, width)
    if thread == 0 and cuda.atomic.add(arrivals, tiles + tile, 1) == blocks - 1:
        arrivals[tile] = 0
        arrivals[tiles + tile] = 0
    return u, v


class OnceKernels(NamedTuple):
    """Kernels for one way of reading and computing."""

    forward: Any
    backward: Any


@lru_cache
def once_kernels_of(wide: bool, lanes: int, width: int, extra: Extra = PLAIN) -> OnceKernels:
    """Kernels that compute in float64 if ``wide``, read so many values at once, and so on."""
    kind = float64 if wide else float32
    across = across_of(lanes, width)
    per_tile, three, four = across * width, 3 * across, 4 * across
    helpers, terms_for = helpers_of(wide, lanes, width), terms_of(kind)
    finish, enter, inside_too = steps_of(wide, lanes, width, extra)
    centered = extra.centered
    load, store, place, my_part = helpers.load, helpers.store, helpers.place, helpers.my_part
    first_value, normalizing = helpers.first_value, helpers.normalizing
    start_moments, start_products = helpers.start_moments, helpers.start_products
    add_moments, add_products = helpers.add_moments, helpers.add_products
    collect, hand_out = helpers.collect, helpers.hand_out
    gradient_group, inside_at = helpers.gradient_group, helpers.inside_at
    gradient_terms, finish_products = terms_for.gradient, terms_for.finish_products
    step = THREADS // width
    held, held_of_two = held_groups(lanes, wide, 1), held_groups(lanes, wide, 2)
    size, size_of_two = held * lanes, held_of_two * lanes

    @kernel
    def forward(
        x, out, weight, bias, statistics, running_mean, running_var, partial, arrivals, eps,
        momentum, samples, channels, length, tiles, blocks, more,
    ):  # fmt: skip
        """Statistics, their update, and the normalized values."""
        block = begins_as(arrivals, tiles)
        tile, part, channel, mine, begin, end = my_part(block, blocks, samples, channels, length)
        kept = cuda.local.array(size, kind)
        buffer = cuda.local.array(lanes, kind)
        tally = cuda.local.array(three, float64)
        terms = cuda.local.array(four, kind)
        shift = first_value(x, mine, channels, length) if centered else float64(0.0)
        start_moments(x, channel, channels, shift, tally)
        for g in range(held):
            if begin + g * step < end:
                load(buffer, x, place(begin + g * step, channel, channels, length))
                add_moments(buffer, buffer, tally)
                for k in range(lanes):
                    kept[g * lanes + k] = buffer[k]
        u, v = collect(tally)
        u, v = shared_sums(
            u, v, partial, arrivals, tile, tiles, part, blocks, mine, channels, per_tile
        )
        if not centered:
            u = float64(0.0)
        count = samples * length
        if part == 0 and cuda.threadIdx.x < per_tile and mine < channels:
            finish_moments(u, v, shift, mine, channels, count, eps, statistics)
            update_running(mine, channels, count, momentum, statistics, running_mean, running_var)
        center, scale, move = normalizing(u, v, shift, count, weight, bias, eps, mine, channels)
        hand_out(center, scale, move, move, terms)
        for g in range(held):
            if begin + g * step < end:
                for k in range(lanes):
                    buffer[k] = kept[g * lanes + k]
                finish(buffer, place(begin + g * step, channel, channels, length), terms, more)
                store(out, place(begin + g * step, channel, channels, length), buffer)

    @kernel
    def backward(
        dy, x, out, statistics, weight, d_weight, d_bias, partial, arrivals, frozen,
        samples, channels, length, tiles, blocks, more,
    ):  # fmt: skip
        """The gradients of x, weight and bias."""
        block = begins_as(arrivals, tiles)
        tile, part, channel, mine, begin, end = my_part(block, blocks, samples, channels, length)
        mean = statistics[mine] if mine < channels else float64(0.0)
        rstd = statistics[2 * channels + mine] if mine < channels else float64(0.0)
        gradients = cuda.local.array(size_of_two, kind)
        values = cuda.local.array(size_of_two, kind)
        buffer = cuda.local.array(lanes, kind)
        other = cuda.local.array(lanes, kind)
        tally = cuda.local.array(three, float64)
        terms = cuda.local.array(four, kind)
        inside = cuda.local.array(four, kind)
        if inside_too:
            center, scale, move = inside_at(statistics, weight, more[0], mine, channels)
            hand_out(center, scale, move, move, inside)
        start_products(statistics, channel, channels, mean, tally)
        for g in range(held_of_two):
            if begin + g * step < end:
                load(buffer, dy, place(begin + g * step, channel, channels, length))
                load(other, x, place(begin + g * step, channel, channels, length))
                enter(
                    buffer, other, place(begin + g * step, channel, channels, length), inside, more
                )
                add_products(buffer, other, tally)
                for k in range(lanes):
                    gradients[g * lanes + k] = buffer[k]
                    values[g * lanes + k] = other[k]
        u, v = collect(tally)
        u, v = shared_sums(
            u, v, partial, arrivals, tile, tiles, part, blocks, mine, channels, per_tile
        )
        if part == 0 and cuda.threadIdx.x < per_tile and mine < channels:
            finish_products(u, v, mine, mean, rstd, d_weight, d_bias)
        if not centered:
            u = float64(0.0)
        factor = value_or(weight, mine, 1.0) if mine < channels else float64(1.0)
        center, scale, slope, offset = gradient_terms(samples * length, u, v, mean, rstd, factor)
        hand_out(center, scale, slope, offset, terms)
        for g in range(held_of_two):
            if begin + g * step < end:
                for k in range(lanes):
                    buffer[k] = gradients[g * lanes + k]
                    other[k] = values[g * lanes + k]
                gradient_group(buffer, other, terms, frozen)
                store(out, place(begin + g * step, channel, channels, length), buffer)

    return OnceKernels(forward, backward)
