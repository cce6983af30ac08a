"""Random calls of the functions."""

from fractions import Fraction

import numpy as np

import fastbn
from tests import reference
from tests.fuzz_answers import Answer, close, top
from tests.fuzz_arguments import (
    BAD_ARRAYS,
    BAD_AXES,
    BAD_BOOLS,
    BAD_EPS,
    BAD_MOMENTA,
    BAD_NUMBERS,
    BAD_POLICIES,
    GOOD_BOOLS,
    NOTHING_OF_USE,
    UNIT,
    Wrong,
    pick,
)
from tests.reference import per_channel


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
    x_before = np.array(good_x, np.longdouble)
    overflows = (
        train and tracked and finite and not call.bad and x_before.size > 0
        and _overflow(v, x_before, momentum, axis)
    )  # fmt: skip
    if overflows and _is(policy, "raise"):
        call.bad.append("running statistics would overflow")
    if train and tracked and v["running_mean"] is not None and call.chance(call.rate):
        frozen = v["running_mean"] = np.array(v["running_mean"], dtype if c else None)
        frozen.flags.writeable = False
        call.bad.append("read-only running_mean")
    out = call.out(x, dtype)
    before = {k: a.copy() if isinstance(a, np.ndarray) else a for k, a in v.items()}
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
        if _is(policy, "skip") and (overflows or not finite):
            call.check_kept()
        else:
            pair = [before[k].astype(np.longdouble) for k in updated]
            answer.check_running(pair, [v[k] for k in updated], momentum)
    if forward:
        return backwards(call, result[1], answer, x, out, dtype, v)
    return "evaluated" if not batch else "trained"


def _overflow(v, x, momentum, axis):
    """Whether running statistics that were finite would not be after a step."""
    pair = v["running_mean"], v["running_var"]
    with np.errstate(all="ignore"):
        after = reference.running_step(*pair, x, np.longdouble(float(momentum)), axis)
        return any(
            (np.isfinite(old) & ~np.isfinite(new.astype(old.dtype))).any()
            for old, new in zip(pair, after, strict=True)
        )


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
