"""The table of shapes and layouts that tests and benchmarks share."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Case:
    """A shape, its channel axis, and how the array lies in memory."""

    name: str
    shape: tuple[int, ...]
    axis: int = 1
    memory: str = "C"

    def array(self, values):
        """``values`` (of ``shape``) as an array that lies in memory as the case says."""
        return _MEMORY[self.memory](np.asarray(values))

    @property
    def channels(self):
        return self.shape[self.axis]

    @property
    def count(self):
        return int(np.prod(self.shape)) // self.channels


def _inside(values, *, axis, pad=(1, 2)):
    """A slice of a larger array along one axis; what surrounds it must never be read."""
    widths = [(0, 0)] * values.ndim
    widths[axis] = pad
    large = np.pad(values, widths, constant_values=np.nan)
    index = [slice(None)] * values.ndim
    index[axis] = slice(pad[0], pad[0] + values.shape[axis])
    return large[tuple(index)]


def _stepped(values, axis):
    """Every second element of a larger array along one axis."""
    large = np.repeat(values, 2, axis)
    index = [slice(None)] * values.ndim
    index[axis] = slice(1, None, 2)
    large[tuple(slice(0, None, 2) if s != slice(None) else s for s in index)] = np.nan
    return large[tuple(index)]


def _channels_last(values):
    """A view with channels on axis 1 whose memory has them last (NHWC seen as NCHW)."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(values, 1, -1)), -1, 1)


def _read_only(values):
    values = values.copy()
    values.flags.writeable = False
    return values


def _unaligned(values):
    raw = np.empty(values.nbytes + 1, np.uint8)[1:]
    view = raw.view(values.dtype).reshape(values.shape)
    view[...] = values
    return view


_MEMORY = {
    "C": lambda v: v.copy(order="C"),
    "F": lambda v: v.copy(order="F"),
    "channels-last view": _channels_last,
    "batch slice": lambda v: _inside(v, axis=0),
    "channel slice": lambda v: _inside(v, axis=1),
    "inner slice": lambda v: _inside(v, axis=-1),
    "batch step": lambda v: _stepped(v, 0),
    "channel step": lambda v: _stepped(v, 1),
    "inner step": lambda v: _stepped(v, -1),
    "reversed": lambda v: v[::-1, ..., ::-1].copy()[::-1, ..., ::-1],
    "read-only": _read_only,
    "unaligned": _unaligned,
    "big-endian": lambda v: v.astype(v.dtype.newbyteorder(">")),
}

MEMORIES = tuple(_MEMORY)

# odd sizes on purpose: no multiple of a vector, of a block, or of a fold
SHAPES = [
    Case("pair", (2, 1)),
    Case("walk-through", (2, 3, 4, 4)),
    Case("NC small", (8, 16)),
    Case("NC odd", (37, 5)),
    Case("NC one channel", (53, 1)),
    Case("NC long", (20011, 3)),
    Case("NC wide", (19, 1037)),
    Case("NC blocks", (2100, 70)),
    Case("NC segments", (9001, 67)),
    Case("NCL", (5, 7, 33)),
    Case("NCL long row", (2, 3, 9001)),
    Case("NCL length 1", (31, 18, 1)),
    Case("NCL length 2", (31, 18, 2)),
    Case("NCHW odd", (3, 5, 7, 11)),
    Case("NCHW tiny planes", (6, 40, 7, 7)),
    Case("NCHW planes", (4, 6, 57, 55)),
    Case("NCHW many planes", (300, 2, 9, 9)),
    Case("NCHW segments", (3, 2, 300, 301)),
    Case("NCHW one plane", (1, 3, 61, 67)),
    Case("NCDHW", (2, 3, 5, 6, 7)),
    Case("NHWC", (3, 7, 11, 5), axis=-1),
    Case("NHWC wide", (2, 5, 6, 133), axis=-1),
    Case("NLC", (4, 33, 18), axis=2),
    Case("channels first of all", (5, 6, 35), axis=0),
    Case("channels in the middle", (3, 4, 5, 6), axis=2),
    Case("rank 6", (2, 3, 2, 3, 2, 3)),
]

LAYOUTS = [
    Case(f"{shape} {memory}", shape, 1, memory)
    for shape in ((4, 6, 9, 5), (12, 10), (5, 3, 130), (3, 70, 2, 3))
    for memory in MEMORIES
    if memory != "C"
]

CASES = SHAPES + LAYOUTS
