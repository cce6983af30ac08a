"""Device functions that all kernels need, for one way of reading and computing.

A thread reads one channel where channels come first, and ``across`` neighbouring ones where they
are last: value ``k`` of a group is then of its channel ``k % across``. It answers for one channel,
whose statistics and terms it works out: `collect` brings the sums to who answers for a channel, and
`hand_out` the terms to who reads it. With one channel a thread, both are the same.

=====  =============================================================================================
tally  float64, (3 * across,): two sums of each channel that is read, all first ones first, and the
       shifts that they are around
terms  (4 * across,): what its values are computed with, all centers first
=====  =============================================================================================
"""

from functools import lru_cache
from typing import Any, NamedTuple

from numba import cuda, float32, float64

from fastbn.kernels import formulas
from fastbn.kernels.cuda.compile import device, device_formula
from fastbn.kernels.cuda.memory import load_of, store_of
from fastbn.kernels.cuda.sums import THREADS, moment_terms, product_terms
from fastbn.kernels.cuda.terms import terms_of, value_or

_normalize = device_formula(formulas.normalize)
_input_gradient = device_formula(formulas.input_gradient)
_reciprocal_std = device_formula(formulas.reciprocal_std)
_moments_from_sums = device_formula(formulas.moments_from_sums)


def across_of(lanes: int, width: int) -> int:
    """How many channels a thread reads: as many as values at once where channels are last."""
    return lanes if width > 1 else 1


class Helpers(NamedTuple):
    """Device functions, by the names that kernels call them."""

    load: Any
    store: Any
    my_part: Any
    first_value: Any
    start_moments: Any
    start_products: Any
    add_moments: Any
    add_products: Any
    place: Any
    collect: Any
    hand_out: Any
    normalize_group: Any
    gradient_group: Any
    normalizing: Any
    inside_at: Any


@device
def _unless_huge(value):
    return value if abs(value) < 1e300 else float64(0.0)


@lru_cache
def helpers_of(wide: bool, lanes: int, width: int) -> Helpers:
    """Which values are a thread's, where they are, and what is done with them."""
    kind = float64 if wide else float32
    load, store, load_one, terms = load_of(lanes), store_of(lanes), load_of(1), terms_of(kind)
    center_of, normalizing_terms = terms.center, terms.normalizing
    across = across_of(lanes, width)
    per_tile = across * width
    places, four_of_tile = across * THREADS, 4 * per_tile

    @device
    def my_part(block, blocks, samples, channels, length):
        """Tile and part of a thread, its channels, and which groups are its.

        The first channel that it reads, the one that it answers for, and groups: from, to.
        """
        tile = block // blocks
        part = block - tile * blocks
        channel = tile * per_tile + cuda.threadIdx.x % width * across
        mine = tile * per_tile + cuda.threadIdx.x % per_tile
        groups = samples * (length * across // lanes)
        each = (groups + blocks - 1) // blocks
        begin = part * each + cuda.threadIdx.x // width
        end = (part + 1) * each
        if end > groups:
            end = groups
        if channel >= channels:
            end = 0
        return tile, part, channel, mine, begin, end

    @device
    def first_value(x, channel, channels, length):
        """The shift of a channel's sums; 0 if it would spoil them."""
        buffer = cuda.local.array(1, kind)
        if channel >= channels:
            return float64(0.0)
        load_one(buffer, x, channel * length)
        return _unless_huge(float64(buffer[0]))

    @device
    def start_moments(x, channel, channels, shift, tally):
        """No sums yet, of channels whose shifts are their first values: ``shift``, if only one."""
        buffer = cuda.local.array(lanes, kind)
        if across > 1 and channel < channels:
            load(buffer, x, channel)
        for k in range(across):
            tally[k], tally[across + k] = float64(0.0), float64(0.0)
            tally[2 * across + k] = shift
            if across > 1:
                value = float64(buffer[k]) if channel < channels else float64(0.0)
                tally[2 * across + k] = _unless_huge(value)

    @device
    def start_products(statistics, channel, channels, mean, tally):
        """The same for sums of products, whose shifts are what is subtracted from x: centers."""
        for k in range(across):
            tally[k], tally[across + k] = float64(0.0), float64(0.0)
            if across > 1:
                mean = statistics[channel + k] if channel < channels else float64(0.0)
            tally[2 * across + k] = float64(center_of(mean))

    def add_with(term):
        @device
        def add(first, second, tally):
            """Add the terms of a group."""
            for k in range(lanes):
                c = k % across
                du, dv = term(first[k], second[k], tally[2 * across + c])
                tally[c] += du
                tally[across + c] += dv

        return add

    @device
    def place(group, channel, channels, length):
        """Where a group of a thread begins."""
        per_row = length * across // lanes
        sample = group // per_row
        return (sample * channels + channel) * length + (group - sample * per_row) * lanes

    @device
    def share_of(tally, at):
        """This thread's share of a sum of the channel that it answers for."""
        shared = cuda.shared.array(places, float64)
        thread = cuda.threadIdx.x
        cuda.syncthreads()  # the places may have served before
        for k in range(across):
            shared[thread * across + k] = tally[at + k]
        cuda.syncthreads()
        share = float64(0.0)
        for k in range(across):  # places that are the same modulo `per_tile`
            share += shared[k * THREADS + thread]
        return share

    @device
    def collect(tally):
        """This thread's shares of both sums of the channel that it answers for, to be added up."""
        if across == 1:
            return tally[0], tally[1]
        return share_of(tally, 0), share_of(tally, across)

    @device
    def hand_out(a, b, c, d, terms):
        """Four terms of each channel that is read, from who answers for it.

        A kernel that does it twice has all threads wait in between.
        """
        if across == 1:
            terms[0], terms[1], terms[2], terms[3] = a, b, c, d
            return
        shared = cuda.shared.array(four_of_tile, kind)
        thread = cuda.threadIdx.x
        if thread < per_tile:
            shared[thread] = a
            shared[per_tile + thread] = b
            shared[2 * per_tile + thread] = c
            shared[3 * per_tile + thread] = d
        cuda.syncthreads()
        for k in range(across):
            for j in range(4):
                terms[j * across + k] = shared[j * per_tile + thread % width * across + k]

    @device
    def normalize_group(values, terms):
        """Normalize a group in place: terms are center, scale, shift."""
        for k in range(lanes):
            c = k % across
            values[k] = _normalize(values[k], terms[c], terms[across + c], terms[2 * across + c])

    @device
    def gradient_group(dy, x, terms, frozen):
        """Replace dy by the gradient of x: terms are center, scale, slope, offset."""
        for k in range(lanes):
            c = k % across
            if frozen:
                dy[k] *= terms[across + c]
            else:
                dy[k] = _input_gradient(
                    dy[k], x[k], terms[c], terms[across + c], terms[2 * across + c],
                    terms[3 * across + c],
                )  # fmt: skip

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

    @device
    def inside_at(statistics, weight, bias, channel, channels):
        """Center, scale and shift that a channel was normalized with."""
        if channel >= channels:
            return kind(0.0), kind(0.0), kind(0.0)
        return normalizing_terms(
            statistics[channel], statistics[2 * channels + channel],
            value_or(weight, channel, 1.0), value_or(bias, channel, 0.0),
        )  # fmt: skip

    return Helpers(
        load, store, my_part, first_value, start_moments, start_products, add_with(moment_terms),
        add_with(product_terms), place, collect, hand_out, normalize_group, gradient_group,
        normalizing, inside_at,
    )  # fmt: skip
