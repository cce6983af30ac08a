"""Channels-first: how shape and strides cut channels into blocks and segments, and work into tasks.

A *run* is what an elementwise pass takes of one sample at a time: values that follow each other,
row by row, counted from the sample's first one.
"""

from fastbn.kernels.compile import inner

BLOCK = 4096  # values whose sums are kept in x's precision: 16 KiB of float32, half of an L1
CHAIN = 64  # additions in x's precision that one sum may go through
SEGMENT = 32  # blocks: enough to make a task, few enough to share a channel among threads
TASK = 16384  # values of an elementwise task
GROUP = 64  # channels with short rows that are summed together, at most
GROUPS = 16  # of all segments together, if there are channels enough: for threads to share


@inner
def rows_of_block(length):
    """Short rows that make a block: each adds to every sum once, after its own few additions."""
    return max(1, min(BLOCK // length, CHAIN // (1 + length // CHAIN)))


@inner
def rows_of_segment(outer, length):
    """Short rows that make a segment: several blocks of them, or up to an eighth of few.

    With several segments, threads take sums of the samples that they normalize afterwards. Each
    costs a few dozen nanoseconds a channel, so there are the fewer the fewer the values.
    """
    values, block = outer * length, rows_of_block(length)
    shares = 1 if values < 1024 else 2 if values < 16384 else 4 if values < 65536 else 8
    rows = (outer + shares - 1) // shares
    if block >= 4:
        rows = (rows + 3) // 4 * 4  # they are summed by fours
    return min(rows, SEGMENT * block)


@inner
def count_segments(outer, length):
    """Segments of one channel: several blocks of short rows each, or of parts of long rows."""
    if length <= BLOCK:
        size = rows_of_segment(outer, length)
        return (outer + size - 1) // size
    return (count_pieces(outer, length) + SEGMENT - 1) // SEGMENT


@inner
def count_pieces(outer, length):
    """Blocks of one channel whose rows are long."""
    return outer * ((length + BLOCK - 1) // BLOCK)


@inner
def piece_bounds(piece, length):
    """Row, first value in the row, and number of values of a block of long rows."""
    pieces = (length + BLOCK - 1) // BLOCK
    size = (((length + pieces - 1) // pieces + 63) // 64) * 64
    row = piece // pieces
    start = (piece - row * pieces) * size
    return row, start, min(size, length - start)


@inner
def values_of_segment(segment, outer, length):
    """How many values of one channel a segment has."""
    if length <= BLOCK:
        rows = rows_of_segment(outer, length)
        return min(rows, outer - segment * rows) * length
    values = 0
    first = segment * SEGMENT
    for piece in range(first, min(first + SEGMENT, count_pieces(outer, length))):
        values += piece_bounds(piece, length)[2]
    return values


@inner
def group_size(channels, segments, length):
    """Channels whose sums over one segment are taken together.

    No bits depend on it: what `cpu_groups` does to one channel does not depend on the others.
    """
    return 1 if length > BLOCK else max(1, min(GROUP, channels * segments // GROUPS))


@inner
def count_groups(channels, size):
    return (channels + size - 1) // size


@inner
def group_bounds(group, channels, size):
    """First channel of a group, one past the last."""
    return group * size, min((group + 1) * size, channels)


@inner
def count_tasks(outer, values):
    """Elementwise tasks over all samples, in the order of memory; ``values`` are a sample's."""
    return (outer * values + TASK - 1) // TASK


@inner
def count_runs_of_task(task, outer, values):
    """Samples that a task has a part of."""
    last = min((task + 1) * TASK, outer * values) - 1
    return last // values - task * TASK // values + 1


@inner
def run_of_task(task, k, outer, values):
    """The ``k``-th run of a task: sample, first value, one past the last."""
    n = task * TASK // values + k
    start = n * values
    end = min((task + 1) * TASK, outer * values)
    return n, max(task * TASK - start, 0), min(end - start, values)
