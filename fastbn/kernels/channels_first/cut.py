"""Channels first: how shape cuts channels into lines, blocks and segments, and work into tasks."""

BLOCK = 4096  # values whose sums are kept in x's precision: 16 KiB of float32, half of an L1
SUMS = 64  # sums of a block side by side: four vectors of float32
ADDITIONS = 64  # to each of them, at most, in one chain
SEGMENT = 131072  # values: enough to make a task, few enough to share a channel among threads
MOST_BLOCKS = 32  # of short rows in a segment
TASK = 16384  # values of an elementwise task
GROUP = 64  # channels with short rows that are summed together, at most
GROUPS = 16  # of all segments together, if there are channels enough: for threads to share


def cut(rows: int, channels: int, length: int, chain: int) -> dict[str, int]:
    """Fields of the frame that say how work is cut.

    ``chain``: additions in x's precision that one sum may go through along a line; each further
    line of a block adds once more.
    """
    pieces, piece, block, segment_lines, segments = lines_of(rows, length, chain)
    # no bits depend on the group: what is done to one channel does not depend on the others
    group = max(1, min(GROUP, channels * segments // GROUPS)) if length <= BLOCK else 1
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


def lines_of(rows: int, length: int, chain: int) -> tuple[int, int, int, int, int]:
    """Pieces of a row, values of each, lines of a block and of a segment, and segments.

    Also for compiled code, as are the two below.
    """
    most = SUMS * chain  # values of a line
    pieces = -(-length // most)
    equal = -(-length // pieces)
    piece = length if pieces == 1 else -(-equal // 64) * 64
    if pieces == 1:
        block = rows_of_block(length, chain)
        segment_lines = rows_of_segment(rows, length, block)
    else:
        block, segment_lines = min(3, BLOCK // most), SEGMENT // most  # by fours go whole rows
    segments = -(-rows * pieces // segment_lines)
    return pieces, piece, block, segment_lines, segments


def rows_of_block(length: int, chain: int) -> int:
    """Short rows that make a block. Four of them share a chain, so long ones do not go by fours."""
    rows = max(1, min(BLOCK // length, ADDITIONS // (1 + length // SUMS)))
    return rows if length <= SUMS // 4 * chain else min(rows, 3)


def rows_of_segment(rows: int, length: int, block: int) -> int:
    """Short rows that make a segment: several blocks of them, or up to an eighth of few.

    With several segments, threads take sums of the samples that they normalize afterwards. Each
    costs a few dozen nanoseconds a channel, so there are the fewer the fewer the values.
    """
    values = rows * length
    shares = 1 if values < 1024 else 2 if values < 16384 else 4 if values < 65536 else 8
    size = -(-rows // shares)
    if block >= 4:
        size = -(-size // 4) * 4  # they are summed by fours
    return min(size, MOST_BLOCKS * block)
