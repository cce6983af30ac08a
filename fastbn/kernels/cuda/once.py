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

from fastbn.kernels import formulas
from fastbn.kernels.cuda.compile import device, device_formula, kernel
from fastbn.kernels.cuda.kernels import helpers_of
from fastbn.kernels.cuda.memory import fresh, load_of, store_of
from fastbn.kernels.cuda.sums import THREADS, moment_terms, product_terms, tree_sums
from fastbn.kernels.cuda.terms import finish_moments, update_running

#: Values that a thread keeps, in one array and in each of two: 32 registers of 4 bytes.
KEPT, KEPT_OF_TWO = 32, 16

_normalize = device_formula(formulas.normalize)
_input_gradient = device_formula(formulas.input_gradient)


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
    if thread < width and channel < channels:
        partial[(2 * part) * channels + channel] = u
        partial[(2 * part + 1) * channels + channel] = v
    cuda.threadfence()  # before the arrival that tells the others
    cuda.syncthreads()
    if thread == 0:
        cuda.atomic.add(arrivals, tile, 1)
        while fresh(arrivals, tile) < blocks:
            pass
        cuda.threadfence()  # what they have published is read after that
    cuda.syncthreads()
    u, v = float64(0.0), float64(0.0)
    if channel < channels:
        other = thread // width
        while other < blocks:
            u += fresh(partial, (2 * other) * channels + channel)
            v += fresh(partial, (2 * other + 1) * channels + channel)
            other += THREADS // width
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
def once_kernels_of(wide: bool, lanes: int, width: int) -> OnceKernels:
    """Kernels that compute in float64 if ``wide``, read so many values at once, and so on."""
    kind = float64 if wide else float32
    load, store = load_of(lanes), store_of(lanes)
    helpers = helpers_of(wide, lanes, width)
    my_part, first_value, place = helpers.my_part, helpers.first_value, helpers.place
    normalizing, gradient_terms = helpers.normalizing, helpers.gradient
    center_of, finish_products = helpers.center, helpers.finish_products
    value_or = helpers.value_or
    step = THREADS // width
    held, held_of_two = held_groups(lanes, wide, 1), held_groups(lanes, wide, 2)
    size, size_of_two = held * lanes, held_of_two * lanes

    @kernel
    def forward(
        x, out, weight, bias, statistics, running_mean, running_var, partial, arrivals, eps,
        momentum, samples, channels, length, tiles, blocks,
    ):  # fmt: skip
        """Statistics, their update, and the normalized values."""
        block = begins_as(arrivals, tiles)
        tile, part, channel, begin, end = my_part(block, blocks, samples, channels, length)
        shift = first_value(x, channel, channels, length)
        kept = cuda.local.array(size, kind)
        buffer = cuda.local.array(lanes, kind)
        u, v = float64(0.0), float64(0.0)
        for g in range(held):
            if begin + g * step < end:
                load(buffer, x, place(begin + g * step, channel, channels, length))
                for k in range(lanes):
                    kept[g * lanes + k] = buffer[k]
                    du, dv = moment_terms(buffer[k], buffer[k], shift)
                    u += du
                    v += dv
        u, v = shared_sums(
            u, v, partial, arrivals, tile, tiles, part, blocks, channel, channels, width
        )
        count = samples * length
        if part == 0 and cuda.threadIdx.x < width and channel < channels:
            finish_moments(u, v, shift, channel, channels, count, eps, statistics)
            update_running(
                channel, channels, count, momentum, statistics, running_mean, running_var
            )
        center, scale, move = normalizing(u, v, shift, count, weight, bias, eps, channel, channels)
        for g in range(held):
            if begin + g * step < end:
                for k in range(lanes):
                    buffer[k] = _normalize(kept[g * lanes + k], center, scale, move)
                store(out, place(begin + g * step, channel, channels, length), buffer)

    @kernel
    def backward(
        dy, x, out, statistics, weight, d_weight, d_bias, partial, arrivals, frozen,
        samples, channels, length, tiles, blocks,
    ):  # fmt: skip
        """The gradients of x, weight and bias."""
        block = begins_as(arrivals, tiles)
        tile, part, channel, begin, end = my_part(block, blocks, samples, channels, length)
        mean = statistics[channel] if channel < channels else float64(0.0)
        rstd = statistics[2 * channels + channel] if channel < channels else float64(0.0)
        shift = float64(center_of(mean))
        gradients = cuda.local.array(size_of_two, kind)
        values = cuda.local.array(size_of_two, kind)
        buffer = cuda.local.array(lanes, kind)
        other = cuda.local.array(lanes, kind)
        u, v = float64(0.0), float64(0.0)
        for g in range(held_of_two):
            if begin + g * step < end:
                load(buffer, dy, place(begin + g * step, channel, channels, length))
                load(other, x, place(begin + g * step, channel, channels, length))
                for k in range(lanes):
                    gradients[g * lanes + k] = buffer[k]
                    values[g * lanes + k] = other[k]
                    du, dv = product_terms(buffer[k], other[k], shift)
                    u += du
                    v += dv
        u, v = shared_sums(
            u, v, partial, arrivals, tile, tiles, part, blocks, channel, channels, width
        )
        if part == 0 and cuda.threadIdx.x < width and channel < channels:
            finish_products(u, v, channel, mean, rstd, d_weight, d_bias)
        factor = value_or(weight, channel, 1.0) if channel < channels else float64(1.0)
        center, scale, slope, offset = gradient_terms(samples * length, u, v, mean, rstd, factor)
        for g in range(held_of_two):
            if begin + g * step < end:
                for k in range(lanes):
                    dx = gradients[g * lanes + k]
                    if frozen:
                        buffer[k] = dx * scale
                    else:
                        buffer[k] = _input_gradient(
                            dx, values[g * lanes + k], center, scale, slope, offset
                        )
                store(out, place(begin + g * step, channel, channels, length), buffer)

    return OnceKernels(forward, backward)
