"""The table of shapes and layouts that tests and benchmarks share."""

import math
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
    def size(self):
        return math.prod(self.shape)

    @property
    def count(self):
        return self.size // self.channels


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

# --- what benchmarks run on -----------------------------------------------------------------

# (channels, height and width) in front of every batch norm, each once
RESNET50 = [
    (64, 112), (64, 56), (256, 56), (128, 56), (128, 28), (512, 28), (256, 28), (256, 14),
    (1024, 14), (512, 14), (512, 7), (2048, 7),
]  # fmt: skip
MOBILENETV2 = [
    (32, 112), (16, 112), (96, 112), (96, 56), (24, 56), (144, 56), (144, 28), (32, 28), (192, 28),
    (192, 14), (64, 14), (384, 14), (96, 14), (576, 14), (576, 7), (160, 7), (960, 7), (320, 7),
    (1280, 7),
]  # fmt: skip


def _images(network, name):
    return [
        Case(f"{name} batch {n}: {n}x{c}x{size}x{size}", (n, c, size, size))
        for n in (1, 32)
        for c, size in network
    ]


def _last(case):
    """The same activations with their channels last."""
    n, c, *sizes = case.shape
    return Case(f"{case.name} last", (n, *sizes, c), axis=-1)


MODELS = _images(RESNET50, "ResNet-50") + _images(MOBILENETV2, "MobileNetV2")
OTHERS = [
    Case("segmentation: 1x16x1024x1024", (1, 16, 1024, 1024)),
    Case("huge planes: 1x3x4096x4096", (1, 3, 4096, 4096)),
    Case("small: 1x64x1x1", (1, 64, 1, 1)),
]
SEQUENCES = [
    Case("audio: 16x64x16000", (16, 64, 16000)),
    Case("audio: 8x512x399", (8, 512, 399)),
]
TABLES = [
    Case("table: 8x16", (8, 16)),
    Case("table: 256x10", (256, 10)),
    Case("table: 1024x128", (1024, 128)),
    Case("table: 10000x100", (10_000, 100)),
    Case("table: 100000x64", (100_000, 64)),
    Case("table: 1000000x64", (1_000_000, 64)),
]
FIRST = MODELS + OTHERS + SEQUENCES
SPEED = FIRST + [_last(case) for case in FIRST] + TABLES

#: What tests run on: of the benchmarks' cases the small ones.
CASES = SHAPES + LAYOUTS + [case for case in SPEED if case.size <= 2**15 and case.count > 1]
