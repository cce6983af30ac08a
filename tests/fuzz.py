"""Random calls, valid and invalid: each outcome is right, or an error of fastbn's own.

    python -m tests.fuzz --seed 0 --calls 200000

A call that returns is compared with `tests.reference`. A call that raises must raise TypeError,
ValueError, RuntimeError or KeyError, with a message, from a line of fastbn, for a reason
(an argument that is wrong), and must have changed nothing: no argument and no layer. Every call
depends on the seed and its own number alone: ``--start K --calls 1`` plays one again.
"""

import argparse
import contextlib
import copy
import os
import pickle
import sys
import time
import traceback
import warnings
from collections import Counter
from fractions import Fraction

import numpy as np

import fastbn
from tests import reference
from tests.reference import other_axes, per_channel
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
    np.zeros((4, 3), np.float16), np.zeros((4, 3), np.longdouble), np.zeros((4, 3), object),
    np.zeros((4, 3), "U2"), np.zeros((4, 3), [("a", "f4")]), np.zeros((4, 3), "M8[s]"),
    np.ma.ones((4, 3)), np.zeros(()), [[1.0, 2.0], [3.0, 4.0]],
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


# --- what should come of a call ---------------------------------------------------------------


def close(what, actual, expected, bound, axis=None):
    """As in test_properties, without importing pytest."""
    expected = np.asarray(expected, np.longdouble)
    if actual.shape != expected.shape:
        raise Wrong(f"{what} has shape {actual.shape}, expected {expected.shape}")
    info = np.finfo(actual.dtype)
    rounded = expected.astype(info.dtype)
    bound = np.asarray(bound, np.longdouble) + 8 * info.smallest_subnormal
    if axis is not None:
        bound = per_channel(bound, expected.ndim, axis)
    right = np.abs(actual - expected) <= bound
    right |= ~np.isfinite(rounded) & ((actual == rounded) | (np.isnan(actual) & np.isnan(rounded)))
    if not right.all():
        where = tuple(int(k) for k in np.argwhere(~right)[0])
        raise Wrong(f"{what}{list(where)} is {actual[where]!r}, expected {expected[where]!r}")


def top(values, axis):
    values = np.abs(np.where(np.isfinite(values), values, 0))
    return values.max(other_axes(values.ndim, axis), initial=0)


class Answer:
    """What the reference makes of one forward call."""

    def __init__(self, x, v, batch, momentum, eps, axis):
        x = np.array(x, np.longdouble)
        self.x, self.axis, self.batch, self.eps = x, axis, batch, eps
        c = x.shape[axis]
        self.unit = v["unit"]
        self.weight = np.ones(c) if v["weight"] is None else v["weight"].astype(float)
        bias = np.zeros(c) if v["bias"] is None else v["bias"].astype(float)
        if batch:
            self.mean, self.var = reference.mean_and_var(x, axis)
        else:
            self.mean, self.var = (
                v[k].astype(np.longdouble) for k in ("running_mean", "running_var")
            )
        self.rstd = 1 / np.sqrt(self.var + eps)
        self.reach = top(x - per_channel(self.mean, x.ndim, axis), axis)
        self.lost = 1e-15 * np.abs(self.mean) + 1e-323 if batch else 0 * self.mean
        self.y = reference.normalize(x, self.mean, self.var, self.weight, bias, eps, axis)
        gain = np.abs(self.weight) * self.rstd
        self.y_bound = gain * (self.unit * self.reach + self.lost) + self.unit * np.abs(bias)

    def check_running(self, before, after, momentum):
        if momentum == 0:
            momentum = 0.0
        m = self.x.size // self.x.shape[self.axis]
        mean, var = reference.running_step(*before, self.x, momentum, self.axis)
        u = max(4 * np.finfo(v.dtype).eps for v in after)
        bound = abs(momentum) * (self.unit * self.reach + self.lost)
        size = np.abs(before[0]) + np.abs(self.mean * momentum)
        close("running_mean", after[0], mean, bound + u * size)
        bound = self.unit * self.var + 2 * self.lost * (self.reach + self.lost)
        size = np.abs(before[1]) * abs(1 - momentum) + np.abs(var)
        close("running_var", after[1], var, abs(momentum) * bound * m / (m - 1) + u * size)

    def check_gradients(self, grads, dy, cache_of):
        dy = np.array(dy, np.longdouble)
        axis, x = self.axis, self.x
        expected = reference.backward(
            dy, x, self.mean, self.var, self.weight, self.eps, axis, self.batch
        )
        axes = other_axes(x.ndim, axis)
        x_hat = (x - per_channel(self.mean, x.ndim, axis)) * per_channel(self.rstd, x.ndim, axis)
        off = 4 * (self.unit * self.reach + self.lost) * self.rstd
        sum_dy, product = np.abs(dy).sum(axes), np.abs(dy * x_hat).sum(axes)
        m, reach = x.size // x.shape[axis], self.reach * self.rstd
        weight = off * sum_dy + self.unit * product
        if self.unit > 1e-9:  # float32 has few digits left below its smallest normal number
            weight = weight + 1e-3 * np.finfo(np.float32).tiny
        dx = self.unit * top(dy, axis)
        if self.batch:
            dx = dx + (self.unit * sum_dy + reach * weight + off * product) / m
            dx = dx + 4 * self.unit * reach * product / m
            # rstd cubed is 0 there, and with it the part of dx that x_hat has
            lost = self.rstd < (1e-34 if self.unit > 1e-9 else 1e-150)
            dx = dx + np.where(lost, 2 * reach * product / m, 0)
        bounds = 2 * np.abs(self.weight) * self.rstd * dx, weight, self.unit * sum_dy
        for name, a, e, b in zip(
            ("dx", "d_weight", "d_bias"), grads, expected, bounds, strict=True
        ):
            if (a is None) != (cache_of.get(name) is None and name != "dx"):
                raise Wrong(f"{name} is {a}")
            if a is not None:
                close(name, np.asarray(a), e, b, axis if name == "dx" else None)


# --- kinds of calls ---------------------------------------------------------------------------


def call_function(call, forward=None):
    """batch_norm, or batch_norm_forward and then backwards."""
    rng = call.rng
    shape = call.shape()
    ndim = len(shape)
    axis = int(rng.integers(-ndim, ndim))
    dtype = np.dtype(pick(rng, (np.float32, np.float64)))
    c = shape[axis]
    x_spoiled, x = call.spoil("x", [v for v in BAD_ARRAYS if not _fits(v)] + [None])
    good_x = call.array(shape, axis, dtype)
    x = x if x_spoiled else good_x
    v = {
        "running_mean": call.vector(c, dtype), "running_var": call.vector(c, dtype, 0.01),
        "weight": call.vector(c, dtype) if call.chance(0.7) else None,
        "bias": call.vector(c, dtype) if call.chance(0.7) else None,
    }  # fmt: skip
    tracked = call.chance(0.7)
    if not tracked:
        v["running_mean"] = v["running_var"] = None
    for name in v:
        if v[name] is not None:
            v[name] = call.argument(name, v[name], [
                b for b in call.bad_vectors(c) if not _is_vector(b, c)])  # fmt: skip
        call.keep(name, v[name])
    if tracked and call.chance(call.rate):
        v[pick(rng, ("running_mean", "running_var"))] = None
        call.bad.append("one running statistic")
    training = call.argument("training", pick(rng, GOOD_BOOLS), BAD_BOOLS)
    train = call.bad == [] and bool(training)
    batch = train or not tracked
    if batch and good_x.size and good_x.size == c:
        call.bad.append("one value per channel")
    momentum = pick(rng, (0.1, 0, 1, 0.5, np.float32(0.25), Fraction(1, 3)))
    if call.chance(call.rate):
        momentum = pick(rng, (*BAD_MOMENTA, None))
        if train and tracked:
            call.bad.append(("momentum", momentum))
    eps = call.argument("eps", pick(rng, (1e-5, 1e-3, 1, np.float32(0.1), Fraction(1, 7))), BAD_EPS)
    options = {"momentum": momentum, "eps": eps}
    options["axis"] = call.argument(
        "axis", pick(rng, (axis, np.int64(axis), axis % ndim)), BAD_AXES
    )
    policy = call.argument("policy", pick(rng, ("propagate", "skip", "raise")), BAD_POLICIES)
    options["on_nonfinite"] = policy
    with np.errstate(all="ignore"):
        finite = bool(np.isfinite(np.array(good_x, np.float64)).all())
    if train and tracked and _is(policy, "raise") and not finite and good_x.size:
        call.bad.append("not finite")
    if train and tracked and v["running_mean"] is not None and call.chance(call.rate):
        frozen = v["running_mean"] = np.array(v["running_mean"], dtype if c else None)
        frozen.flags.writeable = False
        call.bad.append("read-only running_mean")
    out = call.out(x, dtype)
    before = {k: a.copy() if isinstance(a, np.ndarray) else a for k, a in v.items()}
    x_before = np.array(good_x, np.longdouble)
    forward = call.chance(0.4) if forward is None else forward
    function = fastbn.batch_norm_forward if forward else fastbn.batch_norm
    vectors = (v[k] for k in ("running_mean", "running_var", "weight", "bias"))
    result, error = call.made(function, x, *vectors, training, out=out, **options)
    if error is not None:
        return f"{type(error).__name__}"
    y = result[0] if forward else result
    if out is not None and y is not out:
        raise Wrong("did not return out")
    if y.shape != shape or y.dtype != dtype:
        raise Wrong(f"output is {y.dtype}{y.shape}, expected {dtype}{shape}")
    updated = ("running_mean", "running_var") if train and tracked else ()
    call.check_kept(but=updated)
    call.check_placed(y)
    if not y.size:
        call.check_kept()
        return "empty"
    before["unit"] = UNIT[dtype]
    momentum = float(momentum) if updated else 0.0
    answer = Answer(x_before, before, batch, momentum, float(eps), axis)
    close("y", y, answer.y, answer.y_bound, axis)
    if updated:
        finite = np.isfinite(answer.mean).all() and np.isfinite(answer.var).all()
        if _is(policy, "skip") and not finite:
            call.check_kept()
        else:
            pair = [before[k].astype(np.longdouble) for k in updated]
            answer.check_running(pair, [v[k] for k in updated], momentum)
    if forward:
        return backwards(call, result[1], answer, x, out, dtype, v)
    return "evaluated" if not batch else "trained"


def backwards(call, cache, answer, x, out, dtype, v):
    shape = x.shape
    overwritten = out is not None and np.shares_memory(out, x)
    call.bad, call.kept, call.placed = [], [], []
    spoiled, dy = call.spoil(
        "dy",
        [
            *BAD_ARRAYS,
            None,
            np.zeros((*shape, 1), dtype),
            np.zeros(shape, "f4" if dtype == np.float64 else "f8"),
        ],
    )
    if not spoiled:
        dy = call.array(shape, answer.axis, dtype, pick(call.rng, ("normal", "integers")))
        if not np.shares_memory(dy, call.placed[-1].array):
            raise AssertionError("not in its buffer")
    out = call.out(dy if isinstance(dy, np.ndarray) and dy.shape == shape else x, dtype)
    if overwritten:
        call.bad.append("input overwritten")
    cache = call.argument("cache", cache, (*NOTHING_OF_USE, None, ("x",), 3))
    dy_before = np.array(dy) if isinstance(dy, np.ndarray) else dy
    grads, error = call.made(fastbn.batch_norm_backward, dy, cache, out=out)
    if error is not None:
        return f"{type(error).__name__} of backward"
    call.check_placed(grads.x)
    if out is not None and grads.x is not out:
        raise Wrong("did not return out")
    answer.check_gradients(grads, dy_before, {"d_weight": v["weight"], "d_bias": v["bias"]})
    return "differentiated"


def _fits(value):
    """Whether a value that is bad elsewhere would do as x."""
    return isinstance(value, np.ndarray) and value.ndim >= 2 and value.dtype in (
        np.float32, np.float64) and not isinstance(value, np.ma.MaskedArray)  # fmt: skip


def _is(value, name):
    return isinstance(value, str) and value == name


def _is_vector(value, c):
    return isinstance(value, np.ndarray) and value.shape == (c,) and value.dtype.kind == "f" and (
        value.dtype.itemsize in (4, 8)) and not isinstance(value, np.ma.MaskedArray)  # fmt: skip


def call_stats(call):
    """channel_stats, merge, empty, var."""
    rng = call.rng
    kind = rng.integers(6)
    if kind == 0:
        number = call.argument("num_channels", int(rng.integers(5)), [
            b for b in BAD_NUMBERS if not (isinstance(b, (int, np.integer)) and b == 0)
            or isinstance(b, bool)])  # fmt: skip
        _, error = call.made(fastbn.ChannelStats.empty, number)
        return "stats" if error is None else f"{type(error).__name__} of stats"
    shape = call.shape()
    axis = int(rng.integers(-len(shape), len(shape)))
    dtype = np.dtype(pick(rng, (np.float32, np.float64)))
    x = call.array(shape, axis, dtype)
    given = call.argument("x", x, [v for v in BAD_ARRAYS if not _fits(v)] + [None])
    axis_given = call.argument("axis", axis, BAD_AXES)
    stats, error = call.made(fastbn.channel_stats, given, axis_given)
    if error is not None:
        return f"{type(error).__name__} of stats"
    call.check_placed(np.zeros(1))
    if kind == 1:
        other = call.argument("other", fastbn.ChannelStats.empty(shape[axis]), (
            *NOTHING_OF_USE, None, fastbn.ChannelStats.empty(shape[axis] + 1)))  # fmt: skip
        merged, error = call.made(stats.merge, other)
        if error is not None:
            return f"{type(error).__name__} of stats"
        np.testing.assert_array_equal(merged.mean, stats.mean)
        stats = merged
    if not x.size:
        if stats.count.any() or stats.m2.any():
            raise Wrong("statistics of nothing")
        return "empty"
    mean, var = reference.mean_and_var(x, axis)
    m = x.size // shape[axis]
    reach = top(np.array(x, np.longdouble) - per_channel(mean, x.ndim, axis), axis)
    lost = 1e-15 * np.abs(mean)
    close("mean", stats.mean, mean, UNIT[dtype] * reach + lost)
    close("m2", stats.m2, var * m, (UNIT[dtype] * var + 2 * lost * (reach + lost)) * m)
    return "stats"


def call_constructor(call):
    """Layers made of anything."""
    rng = call.rng
    layer = pick(rng, list(LAYERS))
    rank = LAYERS[layer][-1]
    result, error = call.made(
        layer,
        call.argument("num_features", int(rng.integers(1, 9)), BAD_NUMBERS),
        call.argument("eps", 1e-5, BAD_EPS),
        call.argument("momentum", pick(rng, (None, 0.1, Fraction(1, 3))), BAD_MOMENTA),
        call.argument("affine", pick(rng, GOOD_BOOLS), BAD_BOOLS),
        call.argument("track", pick(rng, GOOD_BOOLS), BAD_BOOLS),
        call.argument("device", pick(rng, (None, "cpu")), (*NOTHING_OF_USE, "cuda", 0, "CPU ")),
        call.argument("dtype", pick(rng, (None, "f4", np.float64)), BAD_DTYPES),
        bias=pick(rng, GOOD_BOOLS),
        axis=call.argument("axis", int(rng.integers(1, rank)), (*BAD_AXES, 0, rank, -rank)),
        on_nonfinite=call.argument("policy", "skip", BAD_POLICIES),
    )
    if error is not None:
        return f"{type(error).__name__} of a constructor"
    if not repr(result).startswith(layer.__name__):
        raise Wrong(f"repr {result!r}")
    return "constructed"


def call_layer(call):
    """A few steps in a layer's life; a step that raises has changed nothing."""
    rng = call.rng
    layer = pick(rng, list(LAYERS))
    c = int(rng.integers(1, 6))
    bn = layer(c, pick(rng, (1e-5, 0.1)), pick(rng, (None, 0.1, 1.0)), call.chance(0.7),
               call.chance(0.7), dtype=pick(rng, (np.float32, np.float64)))  # fmt: skip
    outcome = "layer"
    for _ in range(int(rng.integers(1, 5))):
        step = pick(rng, (layer_forward, layer_forward, layer_forward, layer_load, layer_mode,
                          layer_copy, layer_backward))  # fmt: skip
        call.bad, call.kept, call.placed = [], [], []
        before = {k: v.tobytes() for k, v in bn.state_dict().items()}
        cache = bn._cache
        bn, error = step(call, bn)
        if error is not None:
            outcome = f"{type(error).__name__} of a layer"
            after = {k: v.tobytes() for k, v in bn.state_dict().items()}
            if before != after or bn._cache is not cache:
                raise Wrong(f"{step.__name__} raised {error!r} and changed the layer")
    return outcome


def layer_forward(call, bn):
    rng = call.rng
    c = bn.num_features
    dims = LAYERS[type(bn)]
    rank = pick(rng, dims)
    shape = [int(n) for n in rng.integers(1, 6, rank)]
    axis = 1 if rank == 2 else (rank - (dims[-1] - 1) if type(bn) is not fastbn.BatchNorm1d else 1)
    shape[axis] = c
    if call.chance(0.05):
        shape[(axis + 1) % rank] = 0
    if call.chance(call.rate):
        shape = pick(rng, ([c] * 7, [c], [], [2, c + 1, *[2] * (dims[-1] - 2)]))
        call.bad.append(("shape", shape))
    shape, dtype = tuple(shape), np.dtype(pick(rng, (np.float32, np.float64)))
    if bn.running_mean is not None and not (np.abs(bn.running_mean) < 1e37).all():
        dtype = np.dtype(np.float64)  # a mean that float32 cannot hold is no center for it
    if call.bad:
        x = np.zeros(shape, dtype)
    else:
        x = call.array(shape, axis, dtype)
        if bn.training or bn.running_mean is None:
            count = x.size // c
            if count == 1:
                call.bad.append("one value per channel")
    given = call.argument("x", x, [v for v in BAD_ARRAYS if not _fits(v)] + [None])
    before, number = bn.state_dict(), bn.num_batches_tracked
    number = None if number is None else int(number)
    batch = bn.training or bn.running_mean is None
    x_before = np.array(x, np.longdouble)
    out = call.out(x, dtype) if not call.bad else None
    y, error = call.made(bn, given, out=out)
    if error is not None:
        return bn, error
    call.check_placed(y)
    if y.shape != shape or y.dtype != dtype:
        raise Wrong(f"output is {y.dtype}{y.shape}, expected {dtype}{shape}")
    after = bn.state_dict()
    if not x.size:
        _same_state(before, after)
        return bn, None
    v = {k: before.get(k) for k in ("weight", "bias", "running_mean", "running_var")}
    v["unit"] = UNIT[dtype]
    answer = Answer(x_before, v, batch, 0.0, bn.eps, axis)
    close("y", y, answer.y, answer.y_bound, axis)
    if bn.training and number is not None:
        momentum = 1 / (number + 1) if bn.momentum is None else bn.momentum
        names = "running_mean", "running_var"
        pair = [before[k].astype(np.longdouble) for k in names]
        answer.check_running(pair, [after[k] for k in names], momentum)
        if int(bn.num_batches_tracked) != number + 1:
            raise Wrong("did not count the batch")
    else:
        _same_state(before, after)
    return bn, None


def _same_state(before, after):
    for name, array in before.items():
        if after[name].tobytes() != array.tobytes():
            raise Wrong(f"changed {name}")


def layer_backward(call, bn):
    cache = bn._cache
    if cache is None:
        call.bad.append("no cache")
        dy = np.zeros((2, bn.num_features, 3), np.float32)
    else:
        if cache.overwritten:
            call.bad.append("overwritten")
        dy = np.ones(cache.x.shape, cache.x.dtype.newbyteorder("="))
    dy = call.argument("dy", dy, [*NOTHING_OF_USE, None, np.zeros((1, 1, 1))])
    grads, error = call.made(bn.backward, dy)
    if error is None and (grads.weight is None) != (bn.weight is None):
        raise Wrong("gradients of other parameters")
    return bn, error


def layer_mode(call, bn):
    rng = call.rng
    result, error = call.made(pick(rng, (
        lambda: bn.train(call.argument("mode", pick(rng, (True, False, np.True_)), (
            *NOTHING_OF_USE, None, 0, 1, "yes"))),
        bn.eval, bn.freeze, bn.unfreeze)))  # fmt: skip
    if error is None and result is not bn:
        raise Wrong("did not return the layer")
    return bn, error


def layer_copy(call, bn):
    twin = pick(call.rng, (copy.deepcopy, copy.copy, lambda b: pickle.loads(pickle.dumps(b))))(bn)
    _same_state(bn.state_dict(), twin.state_dict())
    if twin.training != bn.training or repr(twin) != repr(bn):
        raise Wrong("the copy is another layer")
    return bn, None


def layer_load(call, bn):
    rng = call.rng
    prefix = pick(rng, ("", "a.", "layer1.0."))
    state, new = {}, {}
    for name, array in bn.state_dict().items():
        low = 0.01 if name == "running_var" else -3
        value = rng.uniform(low, 3, array.shape).astype(array.dtype)
        value = np.array(int(rng.integers(9))) if name == "num_batches_tracked" else value
        new[name] = value
        bad = [*(b for b in NOTHING_OF_USE if not isinstance(b, (Hostile, Interface))),
               None, "1", np.zeros(array.size + 1), np.zeros((1, *array.shape))]  # fmt: skip
        if name == "running_var":
            bad += [np.full(array.shape, -1.0), np.full(array.shape, np.nan)]
        if name == "num_batches_tracked":
            bad += [-1, 1.5, np.uint64(2**64 - 1), np.array([3]), 2**63, 2**70, float("nan")]
        else:
            bad += [1.0] if array.shape else []
        state[prefix + name] = call.argument(
            name,
            value,
            [
                b
                for b in bad
                if not (
                    isinstance(b, np.ndarray) and b.shape == array.shape and b.dtype.kind in "iu"
                )  # two channels, two integers
                and not (isinstance(b, (list, tuple, range)) and np.shape(b) == array.shape)
            ],
        )
    strict = call.chance(0.7)
    if state and call.chance(call.rate):
        gone = next(iter(state))
        del state[gone]
        call.bad = [b for b in call.bad if prefix + b[0] != gone]
        if strict:
            call.bad.append("missing key")
    if call.chance(call.rate):
        state[pick(rng, (prefix + "more", 5))] = 3
        if strict or 5 in state:
            call.bad.append("unexpected key")
    given = call.argument(
        "state", state, (*(b for b in NOTHING_OF_USE if not isinstance(b, dict)), None, 3)
    )
    wanted = call.argument("prefix", prefix, (None, 3, b"", ["a"]))
    _, error = call.made(bn.load_state_dict, given, wanted, strict)
    if error is None:
        for name, array in bn.state_dict().items():
            if (
                prefix + name in state
                and array.tobytes() != new[name].astype(array.dtype).tobytes()
            ):
                raise Wrong(f"{name} was not loaded")
    return bn, error


KINDS = (call_function, call_function, call_function, call_stats, call_constructor, call_layer)


def one(seed, index):
    """Make call number ``index``; returns what came of it, or raises `Wrong`."""
    call = Caller(seed, index)
    kind = pick(call.rng, KINDS)
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return kind(call)
    except Wrong:
        raise
    except AssertionError as error:
        raise Wrong(str(error)) from error


def run(seed, calls, start=0, progress=None):
    """Counts of outcomes of ``calls`` calls; the first wrong one raises `Wrong`."""
    outcomes = Counter()
    for index in range(start, start + calls):
        try:
            outcomes[one(seed, index)] += 1
        except Exception as error:
            raise Wrong(
                f"call {index}: {error}\nreplay: python -m tests.fuzz --seed {seed} "
                f"--start {index} --calls 1"
            ) from error
        if progress is not None:
            progress(index + 1 - start, calls)
    return outcomes


class Progress:
    """One line on stderr: redrawn on a terminal, now and then elsewhere."""

    def __init__(self, stream):
        self.stream, self.terminal = stream, stream.isatty()
        self.started = self.last = time.monotonic()

    def __call__(self, done, total):
        now = time.monotonic()
        if now - self.last < (0.2 if self.terminal else 30) and done < total:
            return
        self.last = now
        rate = done / max(now - self.started, 1e-9)
        text = f"fuzz: {done}/{total} calls, {rate:.0f}/s, {(total - done) / rate:.0f} s left"
        end = "\n" if done == total or not self.terminal else ""
        with contextlib.suppress(OSError):
            self.stream.write(("\r\x1b[K" if self.terminal else "") + text + end)
            self.stream.flush()


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument("--calls", type=int, default=10_000, metavar="N")
    parser.add_argument(
        "--start", type=int, default=0, metavar="K", help="number of the first call"
    )
    arguments = parser.parse_args(argv)
    began = time.monotonic()
    try:
        outcomes = run(arguments.seed, arguments.calls, arguments.start, Progress(sys.stderr))
    except Wrong as error:
        traceback.print_exc()
        print(f"fuzz: FAILED: {error}")
        return 1
    for outcome, times in outcomes.most_common():
        print(f"{times:8d}  {outcome}")
    print(f"fuzz: {sum(outcomes.values())} calls in {time.monotonic() - began:.0f} s, all right "
          f"or an error of fastbn (seed {arguments.seed})")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
