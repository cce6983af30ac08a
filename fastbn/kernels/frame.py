"""What native code is told: one record of numbers and addresses, the frame.

The plan fills in how memory is walked and which parts run; an entry fills in where the arrays of
one call lie. Every part gets the frame's address, and so all parts have one signature.
"""

from collections.abc import Mapping

import numpy as np

#: Fields of 8 bytes each. All are integers but those in `FLOATS`. Distances and sizes are in
#: values of x's dtype, except where bytes are named.
FIELDS = (
    "scratch_bytes",  # memory that lies between the steps
    # parts, each the address of native code, 0 without such a step
    "run",  # all steps, of all channels at once or tile by tile
    "each_tile",  # all steps of one tile
    "loop",  # runs tasks on several threads
    "reduce",  # sums of one segment of some channels
    "merge",  # segments to channels
    "wide_reduce",  # `reduce` in float64, for the channels that float32 cannot hold
    "finish",  # statistics to the terms of the elementwise pass
    "wide_finish",  # the same in float64
    "apply",  # the elementwise pass over some values
    "wide_apply",  # `apply` that works in float64 where a channel needs it
    # arrays: where they begin, distance of samples (rows), distance of channels
    "first", "first_row", "first_channel",  # x of a forward, dy of a backward
    "second", "second_row", "second_channel",  # x of a backward
    "third", "third_row", "third_channel",
    "out", "out_row", "out_channel",
    "item_bytes", "value_bytes",  # of a value as memory holds it, and as it is computed
    # sizes
    "rows",  # samples, or whatever lies outside of a channel's contiguous values
    "length",  # contiguous values of a row of one channel
    "channels", "all_channels",  # of the tile at hand; of the arrays of parameters and results
    # of samples whose rows need not follow each other (`standardize`)
    "sample_rows",  # rows of a sample
    "first_sample", "out_sample",  # distances of samples
    "first_position", "out_position",  # and of a row's values
    "pieces", "piece",  # lines that a long row is cut into, and values of each but the last
    "fold",  # rows that make a line of sums (channels last)
    "width", "line_rows", "aligned",  # of an elementwise line: columns, rows; is it aligned?
    # how work is cut
    "segments", "segment_lines", "block", "groups", "group",
    "reduce_tasks", "apply_tasks", "task_size",
    "tile", "tiles",
    # parameters and statistics: addresses, 0 where absent, and bytes of a value
    "mean", "var", "mean_bytes", "weight", "bias", "weight_bytes",
    "statistics",  # rows of mean, variance (or m2) and 1 / std, float64
    "d_weight", "d_bias",
    "frozen",  # whether the statistics are constants to a backward
    "per_group",  # of a group norm: channels of a group, which is summed as one channel
    "per_sample",  # and groups of a sample
    "first_group",  # of the tile at hand
    "of_group",  # of a group norm's gradient: channels of a group; each is summed by itself
    "uncentered",  # whether no mean is subtracted, and var is the mean of squares
    "flip", "lowest", "highest",  # how numbers are ordered by their bits, and NaN told (`exact`)
    # memory for what lies between the steps: where it begins; then where in it, in bytes, until
    # `passes` makes them addresses; and sizes in columns
    "scratch", "tile_bytes",
    "partial", "columns",  # of each segment: rows of three sums or moments
    "marks", "marked",  # of each channel: whether float32 cannot hold it; how many these are
    "sums", "parameters",  # float64 rows: of two sums; of parameters
    "table", "wide_table", "terms",  # the elementwise pass's terms, and their columns
    # of rows that are normalized each by itself, in memory of each task (`rows.sums`)
    "row_sums",  # three numbers of each of a few rows
    "column_sums", "wide_column_sums",  # of the gradients of weight and bias; padded ``columns``
    "rows_left",  # how many rows of a task float32 could not hold
    "left",  # of each row: whether it was left; the caller's
    # what came of it
    "outcome",  # 0, or one of those below
    "eps", "count",
    "slope",  # of leaky_relu
)  # fmt: skip
FLOATS = ("eps", "count", "slope")

#: Outcomes: a wide part is needed and was not there, and nothing has been written; float32 could
#: not hold some rows, which have been left, and all others are done.
MISSING, LEFT = 1, 3

DTYPE = np.dtype([(name, np.float64 if name in FLOATS else np.int64) for name in FIELDS])
WORDS = len(FIELDS)


def new_frame(**values: float) -> np.ndarray:
    """A frame as compiled code takes it, an array of int64; fields that are not named are 0."""
    frame = np.zeros(WORDS, np.int64)
    set_fields(frame, values)
    return frame


def set_fields(frame: np.ndarray, values: Mapping[str, float]) -> None:
    """Set fields of a frame by name."""
    record = frame.view(DTYPE)
    for name, value in values.items():
        record[name] = value
