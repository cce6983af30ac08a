"""Sums of a channel, in float64 and in an order that depends on the shape alone.

Each thread adds up its own values, a block its threads in a tree, and the last block of a channel
to arrive (by a ticket) adds the blocks, in their order. No floating-point number is added
atomically, so every run gives the same bits. All of a channel is summed around one shift, its first
value, so that partial sums need no merging; float64 then has digits enough (a variance is right to
the number of values times 1e-16).
"""

from numba import config, cuda, float64, int32

from fastbn.kernels.cuda.compile import device
from fastbn.kernels.cuda.memory import fresh

#: Threads of a block, and how many of them lie side by side where channels are last. The simulator
#: starts a thread of Python for each.
THREADS, ALONG = (16, 4) if config.ENABLE_CUDASIM else (256, 32)
#: Places for two numbers of each thread.
PLACES = 2 * THREADS


@device
def moment_terms(x, _, shift):
    """What adds up to a channel's mean and variance."""
    d = float64(x) - shift
    return d, d * d


@device
def product_terms(dy, x, shift):
    """What adds up to the gradients of bias and weight."""
    return float64(dy), float64(dy) * (float64(x) - shift)


@device
def tree_sums(u, v, width):
    """Sums of two numbers over the threads whose numbers are the same modulo ``width``.

    The first ``width`` threads get them.
    """
    shared = cuda.shared.array(PLACES, float64)
    thread = cuda.threadIdx.x
    cuda.syncthreads()  # the places may have served before
    shared[thread] = u
    shared[THREADS + thread] = v
    cuda.syncthreads()
    step = THREADS // 2
    while step >= width:
        if thread < step:
            shared[thread] += shared[thread + step]
            shared[THREADS + thread] += shared[THREADS + thread + step]
        cuda.syncthreads()
        step //= 2
    return shared[thread % width], shared[THREADS + thread % width]


@device
def arrives_last(tickets, place, blocks):
    """Whether this block is the last of ``blocks`` to come here; the ticket is then 0 again."""
    flag = cuda.shared.array(1, int32)
    cuda.threadfence()  # what this block has written is there for the last one
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        last = cuda.atomic.add(tickets, place, 1) == blocks - 1
        if last:
            tickets[place] = 0
        flag[0] = 1 if last else 0
        cuda.threadfence()  # what the others have written is read after that
    cuda.syncthreads()
    return flag[0] == 1


@device
def first_steps(begin, channel, channels, length, lanes, step):
    """How a thread walks over its groups, ``step`` further each time, without a division.

    Index and place in its row of the first group; what is added to both each time; and what is
    added to the index if the place then lies beyond the row.
    """
    per_row = length // lanes
    sample = begin // per_row
    place = begin - sample * per_row
    at = (sample * channels + channel) * length + place * lanes
    rows = step // per_row
    along = step - rows * per_row
    return at, place, rows * channels * length + along * lanes, along, (channels - 1) * length


def sums_with(load, term, lanes, kind, reads, width):
    """Sums of a part of one channel by one thread; a loop over groups of ``lanes`` values."""

    @device
    def sums(a, b, channel, channels, length, begin, end, shift):
        first = cuda.local.array(lanes, kind)
        second = cuda.local.array(lanes, kind)
        u, v = float64(0.0), float64(0.0)
        step, per_row = THREADS // width, length // lanes
        at, place, jump, along, over = first_steps(begin, channel, channels, length, lanes, step)
        group = begin
        while group < end:
            load(first, a, at)
            if reads == 2:
                load(second, b, at)
            for k in range(lanes):
                du, dv = term(first[k], second[k], shift)
                u += du
                v += dv
            group += step
            at += jump
            place += along
            if place >= per_row:
                place -= per_row
                at += over
        return u, v

    return sums


@device
def sum_of_blocks(u, v, partial, tickets, channel, channels, tile, part, blocks, width):
    """Sums of all blocks of a channel: whether they are these, and they, in the last block."""
    thread = cuda.threadIdx.x
    u, v = tree_sums(u, v, width)
    if blocks == 1:
        return True, u, v
    if thread < width and channel < channels:
        partial[(2 * part) * channels + channel] = u
        partial[(2 * part + 1) * channels + channel] = v
    if not arrives_last(tickets, tile, blocks):
        return False, u, v
    u, v = float64(0.0), float64(0.0)
    if channel < channels:
        other = thread // width
        while other < blocks:
            u += fresh(partial, (2 * other) * channels + channel)
            v += fresh(partial, (2 * other + 1) * channels + channel)
            other += THREADS // width
    u, v = tree_sums(u, v, width)
    return True, u, v
