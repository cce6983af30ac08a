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

#: Threads of a block, and how many of them lie side by side where channels are last: with one value
#: each, a warp, for whole sectors of 32 bytes of any type; with up to 16 bytes each, eight, which
#: read 64 or 128 bytes. More of those would leave a block fewer rows, so that it keeps fewer values
#: of a channel, and more of them idle where channels are few. The simulator starts a thread of
#: Python for each.
THREADS, ALONG, ALONG_AT_ONCE = (16, 4, 2) if config.ENABLE_CUDASIM else (256, 32, 8)
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
def publish(u, v, partial, channel, channels, part, width):
    """Leave a block's sums where the other blocks of its tile find them."""
    if cuda.threadIdx.x < width and channel < channels:
        partial[(2 * part) * channels + channel] = u
        partial[(2 * part + 1) * channels + channel] = v


@device
def sum_of_published(partial, channel, channels, blocks, width):
    """This thread's share of the sums of all blocks of a tile, in the order of the blocks.

    For `tree_sums`, which is not called here: two functions of a kernel that call one with shared
    memory do not link.
    """
    u, v = float64(0.0), float64(0.0)
    if channel < channels:
        other = cuda.threadIdx.x // width
        while other < blocks:
            u += fresh(partial, (2 * other) * channels + channel)
            v += fresh(partial, (2 * other + 1) * channels + channel)
            other += THREADS // width
    return u, v


@device
def sum_of_blocks(u, v, partial, tickets, channel, channels, tile, part, blocks, width):
    """Sums of all blocks of a channel: whether they are these, and they, in the last block."""
    u, v = tree_sums(u, v, width)
    if blocks == 1:
        return True, u, v
    publish(u, v, partial, channel, channels, part, width)
    if not arrives_last(tickets, tile, blocks):
        return False, u, v
    u, v = sum_of_published(partial, channel, channels, blocks, width)
    u, v = tree_sums(u, v, width)
    return True, u, v
