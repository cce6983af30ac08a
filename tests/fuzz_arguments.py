"""Arguments for the fuzzer, good and bad, and a call that watches what they do."""

import os
import traceback
import warnings
from fractions import Fraction

import numpy as np

import fastbn
from tests.strategies import VALUES, Layout, values_of

OURS = os.path.dirname(os.path.abspath(fastbn.__file__)) + os.sep
ERRORS = (TypeError, ValueError, RuntimeError, KeyError)
UNIT = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-12}
LAYERS = {
    fastbn.BatchNorm1d: (2, 3), fastbn.BatchNorm2d: (3, 4), fastbn.BatchNorm3d: (4, 5)
}  # fmt: skip


class Wrong(Exception):
    """An outcome that is neither right nor an error of ours."""


class Hostile:
    """Claims to be an array, or a number, and raises when it is believed."""

    @property
    def __array_interface__(self):
        raise AssertionError("fastbn looked into a foreign object")

    def __float__(self):
        raise AssertionError("fastbn converted a foreign object")


class Interface:
    __array_interface__ = np.zeros((4, 3), np.float32).__array_interface__


class Subclass(np.ndarray):
    pass


# Values of the wrong kind for any argument, whatever it is for.
NOTHING_OF_USE = (
    "abc", b"abc", 1j, [1.0, 2.0], (3,), {}, {1, 2}, object(), object, np.array("a"), len,
    Hostile(), Interface(), Ellipsis, NotImplemented, slice(3), range(3), memoryview(b"12345678"),
    np.dtype(float), np.array([1, 2]), np.array([[1j]]), np.array([object()]), [[]],
    np.datetime64("2020-01-01"), np.ma.masked, (None, None),
)  # fmt: skip
BAD_AXES = (*NOTHING_OF_USE, 1.0, np.float64(1), None, 99, -99, 2**70, -(2**70), True, np.True_,
            Fraction(1), np.array([1]), float("nan"), "1")  # fmt: skip
BAD_EPS = (*NOTHING_OF_USE, 0, 0.0, -0.0, -1e-5, float("nan"), float("inf"), -float("inf"), None,
           True, np.False_, "1e-5", 10**400, -(10**400), Fraction(-1, 3), np.float32("nan"),
           np.array(1e-5), np.array([1e-5]))  # fmt: skip
BAD_MOMENTA = (*NOTHING_OF_USE, -0.1, 1.5, float("nan"), float("inf"), True, "0.1", 10**400,
               -(10**400), np.float64("inf"), np.array(0.1))  # fmt: skip
BAD_ARRAYS = (
    *NOTHING_OF_USE, 0, 1.5, np.float32(3), float("nan"), True, np.array(3.0), np.zeros(3),
    np.zeros((4, 3), int), np.zeros((4, 3), complex), np.zeros((4, 3), bool),
    np.zeros((4, 3), np.longdouble), np.zeros((4, 3), object),
    np.zeros((4, 3), "U2"), np.zeros((4, 3), [("a", "f4")]), np.zeros((4, 3), "M8[s]"),
    np.zeros(()), [[1.0, 2.0], [3.0, 4.0]],
)  # fmt: skip
BAD_POLICIES = (*NOTHING_OF_USE, None, "", "Skip", "ignore", 0, True, b"skip")
BAD_BOOLS = (np.array([1, 2]), np.array(True), 0, 1, "yes", "", None, [], [0], 2.5)
GOOD_BOOLS = (True, False, np.True_, np.False_)
BAD_DTYPES = (np.float16, int, complex, "float128", "no such type", 3, [], "f4,f4", {"a": 1},
              [("a",)], {"names": 3, "formats": 4}, "f4,", np.zeros(3), "S4", ",", "(2,)f4", 1.5,
              Hostile(), object, b"f4f4", ">f4", Ellipsis)  # fmt: skip
BAD_NUMBERS = (*NOTHING_OF_USE, 0, -1, 3.0, None, True, np.True_, 2**70, -(2**70), 2**62,
               np.int64(0), float("nan"), np.array([3]))  # fmt: skip


def pick(rng, values):
    return values[int(rng.integers(len(values)))]


class Caller:
    """One random call: how it was made, what it must not change, and what should come of it."""

    def __init__(self, seed, index):
        self.rng = np.random.default_rng([seed, index])
        self.rate = pick(self.rng, (0.0, 0.0, 0.05, 0.3))  # of bad arguments
        self.bad = []  # what makes an error of this call right
        self.kept = []  # (what, array, its bytes)
        self.placed = []

    # --- what calls are made of ---------------------------------------------------------------

    def chance(self, p):
        return bool(self.rng.random() < p)

    def spoil(self, name, bad):
        """(whether to take a bad value, and the value)."""
        if not self.chance(self.rate):
            return False, None
        value = pick(self.rng, bad)
        self.bad.append((name, value))
        return True, value

    def keep(self, name, array):
        if type(array) is np.ndarray and array.dtype != object:
            self.kept.append((name, array, array.copy()))
        return array

    def layout(self, ndim, writable=False):
        rng = self.rng
        if self.chance(0.5):
            return Layout.plain(ndim)
        order = tuple(int(k) for k in rng.permutation(ndim))
        steps = (1, 1, 1, -1, 2, -2) if writable else (1, 1, 1, -1, 2, -2, 0)
        return Layout(
            order,
            tuple(pick(rng, steps) for _ in range(ndim)),
            tuple(int(rng.integers(3)) for _ in range(ndim)),
            read_only=not writable and self.chance(0.3),
            unaligned=self.chance(0.2),
            big_endian=not writable and self.chance(0.15),
        )

    def array(self, shape, axis, dtype, kind=None):
        kind = kind or pick(self.rng, VALUES)
        values = values_of(kind, shape, axis, dtype, self.rng)
        placed = self.layout(len(shape)).place(values)
        self.placed.append(placed)
        x = placed.array
        return x.view(Subclass) if self.chance(0.05) else x

    def vector(self, channels, dtype, low=None):
        values = self.rng.normal(1, 2, channels) if low is None else (
            self.rng.uniform(low, 9, channels))  # fmt: skip
        dtype = pick(self.rng, (dtype, dtype, np.float32, np.float64))
        vector = values.astype(dtype)
        if self.chance(0.1):
            vector = np.repeat(vector, 2)[::2]
        return vector.astype(vector.dtype.newbyteorder(">")) if self.chance(0.05) else vector

    def argument(self, name, good, bad):
        spoiled, value = self.spoil(name, bad)
        return value if spoiled else good

    def bad_vectors(self, channels):
        right = np.ones(channels, np.float32)
        return (*BAD_ARRAYS, np.ones(channels + 1), right[:, None], right[None], [1.0] * channels)

    def shape(self, ranks=(2, 3, 4, 5, 6)):
        rank = pick(self.rng, ranks)
        high = {2: 40, 3: 12, 4: 7, 5: 5, 6: 4}[rank]
        shape = [int(n) for n in self.rng.integers(1, high, rank)]
        if self.chance(0.05):
            shape[int(self.rng.integers(rank))] = 0
        return tuple(shape)

    def out(self, x, dtype):
        """None, or where to write; with what is wrong about it if anything is."""
        choice = self.rng.integers(8)
        if choice < 3 or not isinstance(x, np.ndarray) or x.ndim < 2:
            return None
        shape = x.shape
        spoiled, value = self.spoil("out", self._bad_outs(x, dtype))
        if spoiled:
            return self.keep("out", value)
        if choice == 3:
            return np.full(shape, 5, dtype)
        if choice == 4 and x.flags.writeable and x.dtype == dtype and 0 not in x.strides:
            return x
        placed = self.layout(len(shape), writable=True).place(np.zeros(shape, dtype), guard=7.5)
        self.placed.append(placed)
        return placed.array

    def _bad_outs(self, x, dtype):
        shape = x.shape
        bad = [*BAD_ARRAYS, np.zeros((*shape, 2), dtype)]
        bad.append(np.zeros(shape, np.float32 if dtype == np.float64 else np.float64))
        frozen = np.zeros(shape, dtype)
        frozen.flags.writeable = False
        bad.append(frozen)
        big = [k for k, n in enumerate(shape) if n > 1]
        if big and x.size:
            flat = np.zeros(x.size + 8, dtype)
            strides = list(np.zeros(shape, dtype).strides)
            strides[big[0]] = 0
            bad.append(np.lib.stride_tricks.as_strided(flat, shape, strides))
            if len(big) > 1:  # windows: every stride is one element
                strides = [dtype.itemsize] * len(shape)
                flat = np.zeros(sum(shape) + 8, dtype)
                bad.append(np.lib.stride_tricks.as_strided(flat, shape, strides))
            if x.flags.writeable and x.dtype == dtype and 0 not in x.strides:
                bad.append(np.flip(x, big[0]))
        return bad

    # --- how calls end ------------------------------------------------------------------------

    def made(self, function, *args, **kwargs):
        """Make the call; returns (result, None), or (None, error) if it was right to raise."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                result = function(*args, **kwargs)
        except Exception as error:
            self.judge(error)
            return None, error
        if self.bad:
            raise Wrong(f"accepted {self.bad}")
        return result, None

    def judge(self, error):
        last = traceback.extract_tb(error.__traceback__)[-1]
        if not isinstance(error, ERRORS):
            raise Wrong(f"raised {type(error).__name__}: {error}") from error
        if not last.filename.startswith(OURS):
            raise Wrong(f"leaked from {last.filename}:{last.lineno}: {error!r}") from error
        if len(str(error)) < 10:
            raise Wrong(f"says nothing: {error!r}") from error
        if not self.bad:
            raise Wrong(f"refused a good call: {error!r}") from error
        self.check_kept()
        if not all(placed.unchanged() for placed in self.placed):
            raise Wrong(f"raised {error!r}, but wrote to an array")

    def check_kept(self, but=()):
        for name, array, before in self.kept:
            if name not in but and array.tobytes() != before.tobytes():
                raise Wrong(f"changed {name}")

    def check_placed(self, written):
        for placed in self.placed:
            if np.shares_memory(placed.array, written):
                if not placed.surroundings_unchanged():
                    raise Wrong("wrote beside out")
            elif not placed.unchanged():
                raise Wrong("wrote to an input")
