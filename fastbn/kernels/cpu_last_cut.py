"""Channels-last: how shape and strides cut rows into lines, blocks, segments and tasks."""

from fastbn.kernels.compile import inner
from fastbn.kernels.vector import lanes

BLOCK = 260  # lines whose sums are kept in x's precision, one lane each
SEGMENT = 131072  # values of a segment, about; more if there are many
SEGMENTS = 256  # segments at most, so that their partial results stay small
COLUMNS = 1024  # columns of a statistics task: 4 KiB of each line of float32
TASK, LARGE_TASK = 16384, 65536  # values of an elementwise task, by how much there is to share
WIDEST = 4096  # columns of an elementwise line of several rows


@inner
def lines_per_segment(lines, width):
    """Lines of a segment: four times an odd number.

    Four lines a quarter of them apart then seldom begin at the same place of their pages, where
    they would throw each other out of the nearest cache.
    """
    size = max(SEGMENT // width, (lines + SEGMENTS - 1) // SEGMENTS, BLOCK)
    return 4 * ((size + 3) // 4 | 1)


@inner
def count_segments(rows, channels, fold):
    """Segments of whole lines, and one more for the rows that do not fill a line."""
    lines = rows // fold
    size = lines_per_segment(lines, fold * channels)
    return (lines + size - 1) // size + (1 if rows > lines * fold else 0)


@inner
def segment_bounds(segment, rows, channels, fold):
    """First row, number of lines, columns of a line."""
    lines = rows // fold
    size = lines_per_segment(lines, fold * channels)
    first = segment * size
    if first < lines:
        return first * fold, min(size, lines - first), fold * channels
    return lines * fold, 1, (rows - lines * fold) * channels


@inner
def count_column_tasks(rows, channels, fold):
    """Statistics tasks: some columns of a segment each."""
    tiles = (fold * channels + COLUMNS - 1) // COLUMNS
    return count_segments(rows, channels, fold) * tiles


@inner
def column_task(task, rows, channels, fold):
    """Segment, first column, one past the last."""
    tiles = (fold * channels + COLUMNS - 1) // COLUMNS
    segment = task // tiles
    lo = (task - segment * tiles) * COLUMNS
    columns = segment_bounds(segment, rows, channels, fold)[2]
    return segment, lo, min(lo + COLUMNS, columns)


@inner
def elementwise_width(x, rows, channels, dense):
    """Columns of an elementwise line: if it can be, several rows that fill whole vectors.

    Rows that follow each other in memory are then walked as one, with aligned stores.
    """
    step = lanes(x)
    if not dense:
        return channels
    fold = step
    while fold > 1 and (fold // 2) * channels % step == 0:
        fold //= 2
    width = fold * channels
    if width > max(channels, WIDEST):
        return channels
    return width * max(1, min(8 * step // width, rows * channels // width))


@inner
def lines_per_task(lines, width):
    """Lines of an elementwise task, four times an odd number as in `lines_per_segment`; or one."""
    values = max(TASK, min(LARGE_TASK, lines * width // 16))
    return 4 * ((values // width // 4) | 1) if 4 * width <= values else 1


@inner
def count_line_tasks(lines, width):
    size = lines_per_task(lines, width)
    return (lines + size - 1) // size
