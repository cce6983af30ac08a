"""Channels-first: how shape and strides cut a channel into blocks, segments and tasks."""

from fastbn.kernels.compile import inner

BLOCK = 4096  # values whose sums are kept in x's precision: 16 KiB of float32, half of an L1
CHAIN = 64  # additions in x's precision that one sum may go through
SEGMENT = 32  # blocks: enough to make a task, few enough to share a channel among threads
TASK = 16384  # values of an elementwise task
GROUP = 64  # channels with short rows that are summed together


@inner
def rows_of_block(length):
    """Short rows that make a block: each adds to every sum once, after its own few additions."""
    return max(1, min(BLOCK // length, CHAIN // (1 + length // CHAIN)))


@inner
def count_segments(outer, length):
    """Segments of one channel: several blocks of short rows each, or of parts of long rows."""
    if length <= BLOCK:
        size = SEGMENT * rows_of_block(length)
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
        rows = SEGMENT * rows_of_block(length)
        return min(rows, outer - segment * rows) * length
    values = 0
    first = segment * SEGMENT
    for piece in range(first, min(first + SEGMENT, count_pieces(outer, length))):
        values += piece_bounds(piece, length)[2]
    return values


@inner
def group_size(length):
    """Channels whose sums are taken together."""
    return GROUP if length <= BLOCK else 1


@inner
def count_groups(channels, length):
    """Groups of channels whose sums are taken together."""
    size = group_size(length)
    return (channels + size - 1) // size


@inner
def group_bounds(group, channels, length):
    """First channel of a group, one past the last."""
    size = group_size(length)
    return group * size, min((group + 1) * size, channels)


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


@inner
def next_row(sample, channel, outer, channels, by_channel):
    """The row after that one."""
    if by_channel:
        sample += 1
        return (sample, channel) if sample < outer else (0, channel + 1)
    channel += 1
    return (sample, channel) if channel < channels else (sample + 1, 0)
