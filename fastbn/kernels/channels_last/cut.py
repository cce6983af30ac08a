"""Channels last: how shape and strides cut rows into lines, blocks, segments and tasks."""

import math

SEGMENT = 131072  # values of a segment, about; more if there are many
LEAST_LINES = 260  # of a segment
SEGMENTS = 256  # segments at most, so that their partial results stay small
COLUMNS = 1024  # columns of a task of sums: 4 KiB of each line of float32
TASK, LARGE_TASK = 16384, 65536  # values of an elementwise task, by how much there is to share
WIDEST = 4096  # columns of an elementwise line of several rows
FOLD_COLUMNS = 64  # columns that make a line of sums worth a vector loop of its own


def cut(rows: int, channels: int, fold: int, chain: int, dense: bool, lanes: int) -> dict[str, int]:
    """Fields of the frame that say how work is cut.

    ``chain``: additions in x's precision that one sum may go through, four lines each.
    ``dense``: rows follow each other in memory, in every array of the elementwise pass.
    """
    lines, columns = rows // fold, fold * channels
    block = 4 * (chain + 1)  # lines whose sums are kept in x's precision, one lane each
    segment_lines = lines_per_segment(lines, columns)
    segments = -(-lines // segment_lines) + (rows > lines * fold)
    groups = -(-columns // COLUMNS)
    width = elementwise_width(rows, channels, lanes) if dense else channels
    aligned = dense and width % lanes == 0
    all_lines = rows * channels // width if aligned else rows
    task_size = lines_per_task(all_lines, width)
    return {
        "fold": fold,
        "block": block,
        "segment_lines": segment_lines,
        "segments": segments,
        "group": COLUMNS,
        "groups": groups,
        "columns": columns,
        "reduce_tasks": segments * groups,
        "width": width,
        "line_rows": width // channels if aligned else 1,
        "aligned": aligned,
        "task_size": task_size,
        "apply_tasks": max(1, -(-all_lines // task_size)),
        "terms": -(-(width + lanes) // 16) * 16,
    }


def fold_of(rows: int, channels: int, lanes: int) -> int:
    """Rows that follow each other in memory and are summed as one line."""
    if channels >= FOLD_COLUMNS:
        return 1
    fold = lanes // math.gcd(channels, lanes)
    fold *= max(1, FOLD_COLUMNS // (fold * channels))
    return max(1, min(fold, rows))


def lines_per_segment(lines: int, columns: int) -> int:
    """Lines of a segment: four times an odd number.

    Four lines a quarter of them apart then seldom begin at the same place of their pages, where
    they would throw each other out of the nearest cache.
    """
    size = max(SEGMENT // columns, -(-lines // SEGMENTS), LEAST_LINES)
    return 4 * (-(-size // 4) | 1)


def elementwise_width(rows: int, channels: int, lanes: int) -> int:
    """Columns of an elementwise line: if it can be, several rows that fill whole vectors."""
    fold = lanes
    while fold > 1 and (fold // 2) * channels % lanes == 0:
        fold //= 2
    width = fold * channels
    if width > max(channels, WIDEST):
        return channels
    return width * max(1, min(8 * lanes // width, rows * channels // width))


def lines_per_task(lines: int, width: int) -> int:
    """Lines of an elementwise task, four times an odd number as in `lines_per_segment`; or one."""
    values = max(TASK, min(LARGE_TASK, lines * width // 16))
    return 4 * ((values // width // 4) | 1) if 4 * width <= values else 1
