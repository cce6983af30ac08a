"""Arrays as nobody would write them down: shapes, memory layouts, values, and where to write.

`Layout` and `values_of` are plain data and plain functions, so that the fuzzer (`tests.fuzz`)
can draw from them with a random generator; the Hypothesis strategies stand below them.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from hypothesis import strategies as st

from tests.reference import per_channel

#: Elements of a buffer; a layout that would take more loses its gaps.
MOST_BUFFER = 400_000

# --- memory ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """How an array of ``len(order)`` dimensions lies in a larger buffer of guard values.

    ``order`` lists the axes from the outermost in memory to the innermost. ``steps`` may be
    negative; a step of 0 is a broadcast axis. ``pads`` are guard elements on both sides.
    """

    order: tuple[int, ...]
    steps: tuple[int, ...]
    pads: tuple[int, ...]
    read_only: bool = False
    unaligned: bool = False
    big_endian: bool = False

    @classmethod
    def plain(cls, ndim):
        return cls(tuple(range(ndim)), (1,) * ndim, (0,) * ndim)

    def place(self, values, guard=np.nan):
        values = np.asarray(values)
        fits = self if self._buffer_size(values.shape) <= MOST_BUFFER else self._thin()
        return Placed(fits, values, guard)

    def _buffer_size(self, shape):
        sizes = zip(shape, self.steps, self.pads, strict=True)
        return math.prod(n * max(abs(s), 1) + 2 * p for n, s, p in sizes)

    def _thin(self):
        """The same without gaps but on the first axis."""
        steps = tuple(s if s in (0, -1) else 1 for s in self.steps)
        return replace(self, steps=steps, pads=self.pads[:1] + (0,) * (len(self.pads) - 1))


class Placed:
    """An array inside its buffer, which remembers what every byte was."""

    def __init__(self, layout, values, guard):
        self.layout = layout
        dtype = values.dtype.newbyteorder(">" if layout.big_endian else "=")
        shape = values.shape
        sizes = [
            (1 if s == 0 else n * abs(s)) + 2 * p
            for n, s, p in zip(shape, layout.steps, layout.pads, strict=True)
        ]
        shift = 1 if layout.unaligned else 0
        self.raw = np.zeros(int(np.prod(sizes)) * dtype.itemsize + dtype.itemsize, np.uint8)
        flat = self.raw[shift : self.raw.size - dtype.itemsize + shift].view(dtype)
        flat[:] = guard
        buffer = flat.reshape([sizes[k] for k in layout.order])
        buffer = buffer.transpose(np.argsort(layout.order))
        index, first = [], []
        for n, s, p in zip(shape, layout.steps, layout.pads, strict=True):
            size = 1 if s == 0 else n * abs(s)
            index.append(slice(p, p + size, abs(s) or 1))
            first.append(slice(0, 1) if s == 0 else slice(None, None, -1 if s < 0 else 1))
        # a broadcast axis has one value, and an empty one has none to show
        seen = values[tuple(slice(0, 1) if s == 0 else slice(None) for s in layout.steps)]
        array = buffer[tuple(index)][tuple(first)]
        if seen.size:
            array[...] = seen
        self.array = np.broadcast_to(array, shape) if 0 in layout.steps else array
        if layout.read_only:
            self.array.flags.writeable = False
        self.before = self.raw.copy()

    def unchanged(self):
        return bool((self.raw == self.before).all())

    def surroundings_unchanged(self):
        """Whether nothing but the array's own elements was written."""
        written = self.array.copy()
        raw = self.raw.copy()
        self.raw[:] = self.before
        self.array[...] = written  # the array's own bytes, on top of the old buffer
        same = bool((self.raw == raw).all())
        self.raw[:] = raw
        return same


# --- values ---------------------------------------------------------------------------------

VALUES = ("normal", "far", "constant", "subnormal", "huge", "integers", "nonfinite")
#: |mean| / std of "far": what the accuracy contract promises.
FAR = {np.dtype(np.float32): 1e4, np.dtype(np.float64): 1e6}
_TINY = {np.dtype(np.float32): 1e-41, np.dtype(np.float64): 1e-310}
_HUGE = {np.dtype(np.float32): 5e37, np.dtype(np.float64): 1e140}


def values_of(kind, shape, axis, dtype, rng):
    """Values of one kind; every channel has a mean and a spread of its own."""
    dtype, ndim, channels = np.dtype(dtype), len(shape), shape[axis]
    x = rng.standard_normal(shape)
    spread = per_channel(rng.uniform(0.5, 20, channels), ndim, axis).astype(float)
    if kind == "normal":
        x = (x + per_channel(rng.normal(0, 3, channels), ndim, axis).astype(float)) * spread
    elif kind == "far":
        far = rng.choice([-1, 1], channels) * 10 ** rng.uniform(2, np.log10(FAR[dtype]), channels)
        x = (x + per_channel(far, ndim, axis).astype(float)) * spread
    elif kind == "constant":
        x = np.broadcast_to(per_channel(rng.normal(0, 1e3, channels), ndim, axis), shape)
    elif kind == "subnormal":
        x = x * spread * _TINY[dtype]
    elif kind == "huge":
        x = np.clip(x, -3, 3) * _HUGE[dtype]
    elif kind == "integers":
        x = np.round(x * 2)
    elif kind == "nonfinite":
        x = (x * spread).astype(dtype)
        for value in rng.choice([np.nan, np.inf, -np.inf], rng.integers(1, 4)):
            if x.size:
                x.reshape(-1)[rng.integers(x.size)] = value
    else:
        raise AssertionError(kind)
    return np.array(x, dtype, order="C")


# --- shapes ---------------------------------------------------------------------------------


@st.composite
def shapes(draw, *, min_size=0, most=3000):
    """Rank 2 to 6, sizes that include 0 and 1, no more than ``most`` elements."""
    rank = draw(st.integers(2, 6))
    if draw(st.integers(0, 7)) != 7:  # most arrays hold something
        min_size = 1
    left, shape = most, []
    for _ in range(rank):
        n = draw(st.integers(min_size, max(min_size, min(left, 70))))
        shape.append(n)
        left //= max(n, 1)
    return tuple(draw(st.permutations(shape)))


#: (shape, axis) beyond one segment of a kernel, in each layout, and with odd ends.
LARGE = (
    ((1, 1, 140_003), 1),
    ((2, 1, 70_001), 1),
    ((17, 1, 8_209), 1),
    ((70_003, 1), 1),
    ((25_013, 3), 1),
    ((7, 3_571, 3), 2),
    ((1_201, 67), 1),
    ((3, 5, 71, 73), 1),
    ((4, 19, 31, 33), -1),
)


@st.composite
def shapes_and_axes(draw, *, min_size=0, large=True):
    if large and draw(st.integers(0, 24)) == 24:
        return draw(st.sampled_from(LARGE))
    shape = draw(shapes(min_size=min_size))
    return shape, draw(st.integers(-len(shape), len(shape) - 1))


@st.composite
def layouts(draw, ndim, *, writable=False):
    """Half of them plain, C or F or any order; the others with everything that memory can do."""
    order = tuple(draw(st.permutations(range(ndim))))
    if draw(st.booleans()):
        order = draw(st.sampled_from([tuple(range(ndim)), tuple(reversed(range(ndim))), order]))
        return Layout(order, (1,) * ndim, (0,) * ndim)
    steps = st.sampled_from([1, 1, 1, -1, 2, -2, 3] + ([] if writable else [0]))
    return Layout(
        order,
        tuple(draw(st.lists(steps, min_size=ndim, max_size=ndim))),
        tuple(draw(st.lists(st.sampled_from([0, 0, 1, 2]), min_size=ndim, max_size=ndim))),
        read_only=not writable and draw(st.booleans()),
        unaligned=draw(st.booleans()),
        big_endian=not writable and draw(st.integers(0, 4)) == 4,
    )


# --- problems -------------------------------------------------------------------------------

OUTS = ("none", "fresh", "x", "strided", "guarded")


@dataclass
class Problem:
    """Everything that one call takes; the x it holds is ``placed.array``."""

    shape: tuple[int, ...]
    axis: int
    dtype: np.dtype
    kind: str
    placed: Placed
    weight: np.ndarray | None
    bias: np.ndarray | None
    running_mean: np.ndarray
    running_var: np.ndarray
    momentum: float
    eps: float
    out: str
    out_layout: Layout
    seed: int

    @property
    def x(self):
        return self.placed.array

    @property
    def channels(self):
        return self.shape[self.axis]

    @property
    def count(self):
        """Values per channel."""
        others = (n for k, n in enumerate(self.shape) if k != self.axis % len(self.shape))
        return math.prod(others)

    @property
    def native(self):
        return self.dtype.newbyteorder("=")

    def rng(self, salt=0):
        return np.random.default_rng([self.seed, salt])

    def make_out(self, like=None):
        """``out=`` as the problem has it: (array or None, its `Placed` or None)."""
        like = self.placed if like is None else like
        if self.out == "x":
            x = like.array
            fits = x.flags.writeable and x.dtype.isnative and 0 not in _strides(x)
            return (x, like) if fits else (None, None)
        if self.out == "fresh":
            return np.empty_like(like.array, self.native), None
        if self.out in ("strided", "guarded"):
            placed = self.out_layout.place(np.zeros(self.shape, self.native), guard=7.5)
            return placed.array, placed
        return None, None

    def vectors(self):
        return {
            "running_mean": self.running_mean.copy(), "running_var": self.running_var.copy(),
            "weight": self.weight, "bias": self.bias,
        }  # fmt: skip


def _strides(x):
    return [s for n, s in zip(x.shape, x.strides, strict=True) if n > 1]


@st.composite
def problems(draw, *, min_size=0, large=True, kinds=VALUES, outs=OUTS, plain=False):
    shape, axis = draw(shapes_and_axes(min_size=min_size, large=large))
    dtype = np.dtype(draw(st.sampled_from([np.float32, np.float64])))
    kind, seed = draw(st.sampled_from(kinds)), draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    layout = Layout.plain(len(shape)) if plain else draw(layouts(len(shape)))
    placed = layout.place(values_of(kind, shape, axis, dtype, rng))
    c = shape[axis]
    return Problem(
        shape, axis, dtype, kind, placed,
        weight=draw(_vector(rng.normal(1, 0.7, c), dtype)),
        bias=draw(_vector(rng.normal(0, 2, c), dtype)),
        running_mean=rng.normal(0, 5, c).astype(dtype),
        running_var=rng.uniform(0.01, 30, c).astype(dtype),
        momentum=draw(st.sampled_from([0.1, 0.0, 1.0, 0.5, 0.999])),
        eps=draw(st.sampled_from([1e-5, 1e-3, 1e-12, 1.0])),
        out=draw(st.sampled_from(outs)),
        out_layout=draw(layouts(len(shape), writable=True)),
        seed=seed,
    )  # fmt: skip


def _vector(values, dtype):
    return st.sampled_from([values.astype(dtype), None])
