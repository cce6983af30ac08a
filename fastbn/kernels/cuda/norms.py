"""Kernels for norms whose statistics are those of each sample: what batch norm has none of.

===========  =====================================================================================
x, dy        flat views, in which parameter ``c`` of sample ``n`` begins at
             ``(n * count + c) * length``
statistics   float64: those of each launch, one after the other, as `kernels` has them; a launch had
             ``channels`` of them
place        sizes: values of a sample, of a parameter in it, parameters, parameters of a group,
             groups of a sample, channels of a launch
===========  =====================================================================================
"""

from functools import lru_cache
from typing import Any, NamedTuple

from numba import cuda, float64, uint32

from fastbn.kernels.cuda.compile import device, device_formula, kernel
from fastbn.kernels.cuda.helpers import across_of, helpers_of
from fastbn.kernels.cuda.sums import THREADS, sum_of_blocks
from fastbn.kernels.cuda.walk import walk_with
from fastbn.kernels.formulas import running_update, unbiased

_running_update, _unbiased = device_formula(running_update), device_formula(unbiased)


class NormKernels(NamedTuple):
    """Kernels for one way of reading and computing."""

    parameters: Any
    average: Any


@kernel
def _average(statistics, running_mean, running_var, samples, count, channels, momentum):
    """Move running statistics towards the averages over samples, of ``count`` values each.

    ``channels`` is how many the launches had, as in `norm_kernels_of`.
    """
    c = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    size = running_mean.size
    if c < size:
        mean, var = float64(0.0), float64(0.0)
        for sample in range(samples):
            row = sample * size + c
            start = uint32(row) // uint32(channels) * 2 * channels + row
            mean += statistics[start]
            var += statistics[start + channels]
        var = _unbiased(var / samples, float64(count))
        running_mean[c] = _running_update(float64(running_mean[c]), mean / samples, momentum)
        running_var[c] = _running_update(float64(running_var[c]), var, momentum)


@lru_cache
def norm_kernels_of(wide: bool, lanes: int, width: int) -> NormKernels:
    """Kernels that compute in float64 if ``wide``, read so many values at once, and so on."""
    way, across = (wide, lanes, width), across_of(lanes, width)
    helpers, per_tile, three = helpers_of(*way), across * width, 3 * across
    my_part, collect = helpers.my_part, helpers.collect

    @device
    def add(dy, x, at, state):
        tally, statistics, place = state
        per_sample, span, count, each, groups, channels = place
        sample = uint32(at) // uint32(per_sample) * groups
        first = uint32(at) // uint32(span) % uint32(count)
        for k in range(lanes):
            c = k % across
            row = sample + uint32(first + c) // uint32(each)
            start = (
                uint32(row) // uint32(channels) * 2 * channels + row
            )  # three numbers of each channel
            mean, rstd = statistics[start], statistics[start + 2 * channels]
            du = float64(dy[k])
            tally[c] += du
            tally[across + c] += du * ((float64(x[k]) - mean) * rstd)

    add_all = walk_with(add, *way, reads=2)

    @kernel
    def parameters(
        dy, x, statistics, d_weight, d_bias, partial, tickets, samples, channels, length, blocks,
        place,
    ):  # fmt: skip
        """The gradients of weight and bias: sums over all samples."""
        tile, part, channel, mine, begin, end = my_part(
            cuda.blockIdx.x, blocks, samples, channels, length
        )
        tally = cuda.local.array(three, float64)
        for k in range(three):
            tally[k] = float64(0.0)
        state = tally, statistics, place
        add_all(dy, x, x, channel, channels, length, begin, end, state)
        u, v = collect(tally)
        done, u, v = sum_of_blocks(
            u, v, partial, tickets, mine, channels, tile, part, blocks, per_tile
        )
        if done and cuda.threadIdx.x < per_tile and mine < channels:
            d_weight[mine], d_bias[mine] = v, u

    return NormKernels(parameters, _average)
