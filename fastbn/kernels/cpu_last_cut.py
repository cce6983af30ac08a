"""Channels-last: how rows are cut into lines, blocks, segments and tasks, by shape alone."""

from fastbn.kernels.compile import inner

BLOCK = 256  # lines whose sums are kept in x's precision, one lane each
CHAIN = 64  # additions in x's precision that one sum may go through
SEGMENT = 131072  # values of a segment, at least
SEGMENTS = 256  # segments at most, so that their partial results stay small
COLUMNS = 1024  # columns of a statistics task: 4 KiB of each line of float32
TASK = 65536  # values of an elementwise task


@inner
def lines_per_segment(lines, width):
    size = max(SEGMENT // width, (lines + SEGMENTS - 1) // SEGMENTS)
    return ((size + BLOCK - 1) // BLOCK) * BLOCK


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
def tasks_of(rows, channels, fold):
    """Elementwise tasks, and the lines of each."""
    lines = (rows + fold - 1) // fold
    per_task = max(1, TASK // (fold * channels))
    return (lines + per_task - 1) // per_task, per_task


@inner
def line_width(line, rows, channels, fold):
    return min(fold, rows - line * fold) * channels
