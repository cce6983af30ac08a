"""A thread's walk over its groups, for kernels that do not keep what they have read."""

from typing import Any

from numba import cuda, float32, float64

from fastbn.kernels.cuda.compile import device
from fastbn.kernels.cuda.helpers import across_of
from fastbn.kernels.cuda.memory import load_of, store_of
from fastbn.kernels.cuda.sums import THREADS


def walk_with(
    visit: Any, wide: bool, lanes: int, width: int, *, reads: int, writes: bool = False
) -> Any:
    """A loop over groups of one array or of two, as it ``reads``.

    ``visit`` gets a group of each, where it begins, and the walk's ``state``; what it leaves in the
    first is written if it ``writes``.
    """
    kind = float64 if wide else float32
    load, store = load_of(lanes), store_of(lanes)
    across, step = across_of(lanes, width), THREADS // width

    @device
    def walk(a, b, out, channel, channels, length, begin, end, state):
        first = cuda.local.array(lanes, kind)
        second = cuda.local.array(lanes, kind)
        # index and place in its row of a group; `step` groups further without a division
        per_row = length * across // lanes
        sample = begin // per_row
        place = begin - sample * per_row
        at = (sample * channels + channel) * length + place * lanes
        rows = step // per_row
        along = step - rows * per_row
        jump, over = rows * channels * length + along * lanes, (channels - 1) * length
        group = begin
        while group < end:
            load(first, a, at)
            if reads == 2:
                load(second, b, at)
            visit(first, second, at, state)
            if writes:
                store(out, at, first)
            group += step
            at += jump
            place += along
            if place >= per_row:
                place -= per_row
                at += over

    return walk
