"""Channels first: how shape cuts channels into lines, blocks and segments, and work into tasks."""

BLOCK = 4096  # values whose sums are kept in x's precision: 16 KiB of float32, half of an L1
CHAIN = 64  # additions in x's precision that one sum may go through
SEGMENT = 32  # blocks: enough to make a task, few enough to share a channel among threads
TASK = 16384  # values of an elementwise task
GROUP = 64  # channels with short rows that are summed together, at most
GROUPS = 16  # of all segments together, if there are channels enough: for threads to share


def cut(rows: int, channels: int, length: int) -> dict[str, int]:
    """Fields of the frame that say how work is cut."""
    pieces = -(-length // BLOCK)
    piece = length if pieces == 1 else -(-(-(-length // pieces)) // 64) * 64
    block = rows_of_block(length) if pieces == 1 else 1
    segment_lines = rows_of_segment(rows, length) if pieces == 1 else SEGMENT
    segments = -(-rows * pieces // segment_lines)
    # no bits depend on the group: what is done to one channel does not depend on the others
    group = max(1, min(GROUP, channels * segments // GROUPS)) if pieces == 1 else 1
    groups = -(-channels // group)
    return {
        "pieces": pieces,
        "piece": piece,
        "block": block,
        "segment_lines": segment_lines,
        "segments": segments,
        "group": group,
        "groups": groups,
        "columns": channels,
        "reduce_tasks": segments * groups,
        "task_size": TASK,
        "apply_tasks": -(-rows * channels * length // TASK),
        "terms": channels,
    }


def rows_of_block(length: int) -> int:
    """Short rows that make a block: each adds to every sum once, after its own few additions."""
    return max(1, min(BLOCK // length, CHAIN // (1 + length // CHAIN)))


def rows_of_segment(rows: int, length: int) -> int:
    """Short rows that make a segment: several blocks of them, or up to an eighth of few.

    With several segments, threads take sums of the samples that they normalize afterwards. Each
    costs a few dozen nanoseconds a channel, so there are the fewer the fewer the values.
    """
    values, block = rows * length, rows_of_block(length)
    shares = 1 if values < 1024 else 2 if values < 16384 else 4 if values < 65536 else 8
    size = -(-rows // shares)
    if block >= 4:
        size = -(-size // 4) * 4  # they are summed by fours
    return min(size, SEGMENT * block)
