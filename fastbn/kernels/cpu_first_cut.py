"""Channels-first: how a channel is cut into blocks, segments and tasks, by shape alone."""

from fastbn.kernels.compile import inner

BLOCK = 4096  # values whose sums are kept in x's precision: 16 KiB of float32, half of an L1
CHAIN = 64  # additions in x's precision that one sum may go through
SEGMENT = 32  # blocks: enough to make a task, few enough to share a channel among threads
TASK = 65536  # values of an elementwise task


@inner
def rows_of_block(length):
    """Short rows that make a block: each adds to every sum once, and long ones more often."""
    return max(1, min(BLOCK // length, CHAIN // (1 + length // CHAIN)))


@inner
def count_blocks(outer, length):
    """Blocks of one channel: several short rows each, or a part of one long row."""
    if length <= BLOCK:
        rows = rows_of_block(length)
        return (outer + rows - 1) // rows
    return outer * ((length + BLOCK - 1) // BLOCK)


@inner
def count_segments(outer, length):
    return (count_blocks(outer, length) + SEGMENT - 1) // SEGMENT


@inner
def block_bounds(block, outer, length):
    """First row, number of rows, first value in the row, number of values per row."""
    if length <= BLOCK:
        rows = rows_of_block(length)
        row = block * rows
        return row, min(rows, outer - row), 0, length
    pieces = (length + BLOCK - 1) // BLOCK
    size = (((length + pieces - 1) // pieces + 63) // 64) * 64
    row = block // pieces
    start = (block - row * pieces) * size
    return row, 1, start, min(size, length - start)


@inner
def count_tasks(rows, length):
    """Elementwise tasks over all rows: several short rows each, or a part of one long row."""
    if length <= TASK:
        per_task = TASK // length
        return (rows + per_task - 1) // per_task
    return rows * ((length + TASK - 1) // TASK)


@inner
def task_bounds(task, rows, length):
    """First row, one past the last row, first value in the row, number of values per row."""
    if length <= TASK:
        per_task = TASK // length
        row = task * per_task
        return row, min(row + per_task, rows), 0, length
    pieces = (length + TASK - 1) // TASK
    row = task // pieces
    start = (task - row * pieces) * TASK
    return row, row + 1, start, min(TASK, length - start)


@inner
def sample_and_channel(row, outer, channels, by_channel):
    """Which row comes ``row``-th: in memory order, or all rows of a channel together."""
    if by_channel:
        channel = row // outer
        return row - channel * outer, channel
    sample = row // channels
    return sample, row - sample * channels
