"""Properties of any input: right within rounding, nothing else touched, and symmetric.

Tolerances. ``UNIT`` is relative to a channel's scale, and 1e-12 or 1e-5 is what the accuracy
contract grants float64 and float32. On top comes what a mean far from zero costs any algorithm
that keeps it in float64: its rounding error, as a part of the standard deviation.
"""

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

from fastbn import batch_norm, batch_norm_backward, batch_norm_forward, channel_stats
from tests import reference
from tests.reference import other_axes, per_channel
from tests.strategies import VALUES, problems

pytestmark = pytest.mark.compiled

settings.register_profile(
    "fastbn",
    deadline=None,
    derandomize=True,
    max_examples=100,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
SETTINGS = settings(settings.get_profile("fastbn"))

UNIT = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-12}
DOUBLE = float(np.finfo(np.float64).eps)
FINITE = tuple(kind for kind in VALUES if kind != "nonfinite")


def channel_max(values, axis):
    """Largest finite absolute value of every channel, 0 where there are none."""
    return np.abs(np.where(np.isfinite(values), values, 0)).max(
        axis=other_axes(values.ndim, axis), initial=0
    )


def channel_sum(values, axis):
    return values.sum(other_axes(values.ndim, axis))


def close(actual, expected, bound, axis=None):
    """Within ``bound`` per channel where the reference is finite, and equally NaN or infinite.

    ``axis`` is None for vectors of one value per channel.
    """
    info = np.finfo(actual.dtype)
    expected = np.asarray(expected, np.longdouble)
    with np.errstate(all="ignore"):
        rounded = expected.astype(info.dtype)
        bound = np.asarray(bound, np.longdouble) + 8 * info.smallest_subnormal
        if axis is not None:
            bound = per_channel(bound, expected.ndim, axis)
        wrong = ~(np.abs(actual - expected) <= bound)
    # what the dtype cannot hold, or is not a number to begin with, must be so in the result
    odd = ~np.isfinite(rounded)
    wrong &= ~(odd & ((actual == rounded) | (np.isnan(actual) & np.isnan(rounded))))
    if wrong.any():
        where = tuple(np.argwhere(wrong)[0])
        allowed = np.broadcast_to(bound, expected.shape)[where]
        raise AssertionError(
            f"{wrong.sum()} of {wrong.size} wrong, the first at {where}: got {actual[where]!r}, "
            f"expected {expected[where]!r}, allowed {allowed!r}"
        )


def same(a, b):
    """Bitwise the same; NaN is NaN whatever its payload."""
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(np.signbit(a[~np.isnan(a)]), np.signbit(b[~np.isnan(b)]))


class Expected:
    """What the reference makes of a problem, and how far from it a result may be."""

    def __init__(self, p, training, mean=None, var=None):
        self.p, self.unit = p, UNIT[p.dtype]
        x = np.array(p.x, np.longdouble)
        c, axis = p.channels, p.axis
        self.weight = np.ones(c) if p.weight is None else p.weight
        self.bias = np.zeros(c) if p.bias is None else p.bias
        with np.errstate(all="ignore"):
            if training:
                self.mean, self.var = reference.mean_and_var(x, axis)
            else:
                self.mean, self.var = p.running_mean, p.running_var
            self.y = reference.normalize(
                x, self.mean, self.var, self.weight, self.bias, p.eps, axis
            )
            self.rstd = 1 / np.sqrt(np.asarray(self.var, np.longdouble) + p.eps)
            self.reach = channel_max(x - per_channel(self.mean, x.ndim, axis), axis)
            self.lost = 4 * DOUBLE * np.abs(self.mean) + 1e-323 if training else 0 * self.reach
            self.mean_bound = self.unit * self.reach / 10 + self.lost
            # merging blocks whose means are rounded: linear in what the mean has lost
            self.var_bound = self.unit * self.var + 2 * self.lost * (self.reach + self.lost)
            gain = np.abs(self.weight) * self.rstd
            self.y_bound = gain * (self.unit * self.reach + self.lost)
            self.y_bound = self.y_bound + self.unit / 10 * np.abs(self.bias)

    def gradients(self, dy, training):
        p, dy = self.p, np.array(dy, np.longdouble)
        axis, x = p.axis, np.array(p.x, np.longdouble)
        with np.errstate(all="ignore"):
            values = reference.backward(
                dy, x, self.mean, self.var, self.weight, p.eps, axis, training
            )
            x_hat = (x - per_channel(self.mean, x.ndim, axis)) * per_channel(
                self.rstd, x.ndim, axis
            )
            off = 4 * (self.unit * self.reach + self.lost) * self.rstd  # of x_hat
            sum_dy, sum_product = (
                channel_sum(np.abs(dy), axis),
                channel_sum(np.abs(dy * x_hat), axis),
            )
            m, reach = max(p.count, 1), self.reach * self.rstd
            bias = self.unit * sum_dy
            weight = off * sum_dy + self.unit * sum_product
            if self.unit > 1e-9:  # float32 has few digits left below its smallest normal number
                weight = weight + 1e-3 * np.finfo(np.float32).tiny
            dx = self.unit * channel_max(dy, axis)
            if training:
                dx = dx + bias / m + (reach * weight + off * sum_product) / m
                dx = dx + 4 * self.unit * reach * sum_product / m
                # rstd cubed is 0 there, and with it the part of dx that x_hat has
                lost = self.rstd < (1e-34 if self.unit > 1e-9 else 1e-150)
                dx = dx + np.where(lost, 2 * reach * sum_product / m, 0)
            bounds = 2 * np.abs(self.weight) * self.rstd * dx, weight, bias
        return values, bounds


# --- against the reference ------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["training", "evaluation", "untracked"])
@pytest.mark.parametrize("kind", VALUES)
@given(data=st.data())
@settings(SETTINGS, max_examples=25)
def test_forward_and_backward(kind, mode, data):
    """Each kind of values in each mode, so that no combination is left to chance."""
    p = data.draw(problems(kinds=(kind,)))
    training, tracked = mode == "training", mode != "untracked"
    vectors = p.vectors()
    if not tracked:
        vectors["running_mean"] = vectors["running_var"] = None
    batch = training or not tracked
    assume(not (batch and p.count == 1 and p.x.size))
    expected = Expected(p, batch) if p.x.size else None
    kept = {k: None if v is None else v.copy() for k, v in vectors.items()}
    y, cache = batch_norm_forward(
        p.x, **vectors, training=training, momentum=p.momentum, eps=p.eps, axis=p.axis
    )
    assert y.shape == p.shape
    assert y.dtype == p.native
    assert p.placed.unchanged()
    dy_placed = p.out_layout.place(p.rng(1).normal(0.3, 2, p.shape).astype(p.native))
    dy = dy_placed.array
    grads = batch_norm_backward(dy, cache)
    assert p.placed.unchanged()
    assert dy_placed.unchanged()
    assert (grads.weight is None, grads.bias is None) == (p.weight is None, p.bias is None)
    assert grads.x.dtype == p.native
    updated = {"running_mean", "running_var"} if training and tracked and p.x.size else set()
    for name, value in vectors.items():
        if value is not None and name not in updated:
            same(value, kept[name])
    if expected is None:
        assert y.size == grads.x.size == 0
        return
    close(y, expected.y, expected.y_bound, p.axis)
    if p.kind == "constant" and batch:
        bias = np.zeros(p.channels, p.native) if p.bias is None else p.bias
        wanted = np.broadcast_to(per_channel(bias, len(p.shape), p.axis), p.shape)
        np.testing.assert_array_equal(y, wanted.astype(p.native))
    if updated:
        check_running(p, expected, vectors)
    values, bounds = expected.gradients(dy, batch)
    for actual, value, bound, axis in zip(grads, values, bounds, (p.axis, None, None), strict=True):
        if actual is not None:
            close(actual, value, bound, axis)


def check_running(p, expected, vectors):
    """Running statistics after one step, with Bessel's correction."""
    with np.errstate(all="ignore"):
        mean, var = reference.running_step(
            p.running_mean, p.running_var, np.array(p.x, np.longdouble), p.momentum, p.axis
        )
        ulp, m = np.finfo(p.native).eps, p.count
        size = np.maximum(np.abs(mean), np.abs(p.running_mean))
        close(vectors["running_mean"], mean, p.momentum * expected.mean_bound + 4 * ulp * size)
        bound = p.momentum * expected.var_bound * m / (m - 1)
        close(vectors["running_var"], var, bound + 4 * ulp * np.abs(var))


@given(p=problems())
@SETTINGS
def test_channel_stats(p):
    event(p.kind)
    stats = channel_stats(p.x, p.axis)
    assert p.placed.unchanged()
    assert stats.count.shape == stats.mean.shape == stats.m2.shape == (p.channels,)
    if not p.x.size:
        assert not stats.count.any()
        assert not stats.mean.any()
        assert not stats.m2.any()
        return
    expected = Expected(p, True)
    np.testing.assert_array_equal(stats.count, p.count)
    close(stats.mean, expected.mean, expected.mean_bound)
    with np.errstate(all="ignore"):
        close(stats.m2, expected.var * p.count, expected.var_bound * p.count)
    if p.kind == "constant":
        np.testing.assert_array_equal(stats.m2, 0)
        np.testing.assert_array_equal(stats.mean, np.moveaxis(p.x, p.axis, 0).reshape(
            p.channels, -1)[:, 0].astype(float))  # fmt: skip


@given(p=problems(), training=st.booleans())
@SETTINGS
def test_out_is_filled_with_the_bits_of_a_fresh_output(p, training):
    event(p.out)
    assume(not (training and p.count == 1 and p.x.size))
    fresh_vectors, vectors = p.vectors(), p.vectors()
    options = {"training": training, "momentum": p.momentum, "eps": p.eps, "axis": p.axis}
    fresh = batch_norm(p.x, **fresh_vectors, **options)
    out, placed = p.make_out()
    if out is None:
        return
    y = batch_norm(p.x, **vectors, **options, out=out)
    assert y is out
    # only memory in another order may cost a rounding, and that in training alone
    exact = not training or out.strides == fresh.strides or not p.x.size
    expected = Expected(p, training) if not exact else None
    if exact:
        same(np.array(y, p.native), fresh)
    else:
        close(y, np.asarray(fresh, np.longdouble), 2 * expected.y_bound, p.axis)
    for name, value in vectors.items():
        if value is not None and exact:
            same(value, fresh_vectors[name])
    if placed is not None:
        assert placed.surroundings_unchanged()
    if out is not p.x:
        assert p.placed.unchanged()


@given(p=problems(), training=st.booleans(), onto=st.sampled_from(["dy", "out"]))
@SETTINGS
def test_gradient_out_is_filled_with_the_bits_of_a_fresh_one(p, training, onto):
    assume(not (training and p.count == 1 and p.x.size))
    _, cache = batch_norm_forward(p.x, **p.vectors(), training=training, eps=p.eps, axis=p.axis)
    dy_placed = p.out_layout.place(p.rng(1).normal(0.3, 2, p.shape).astype(p.native))
    dy = dy_placed.array
    before, fresh = dy.copy(), batch_norm_backward(dy, cache)
    if onto == "dy":
        out, placed = dy, dy_placed
    else:
        out, placed = p.make_out()
        assume(out is not None)
    grads = batch_norm_backward(dy, cache, out=out)
    assert grads.x is out
    exact = out.strides == fresh.x.strides or not p.x.size
    bounds = (0, 0, 0) if exact else Expected(p, training).gradients(before, training)[1]
    for actual, wanted, bound, axis in zip(grads, fresh, bounds, (p.axis, None, None), strict=True):
        if wanted is not None and exact:
            same(np.array(actual, wanted.dtype), wanted)
        elif wanted is not None:
            close(actual, np.asarray(wanted, np.longdouble), 2 * bound, axis)
    if placed is not None:
        assert placed.surroundings_unchanged()
    if out is not p.x:
        assert p.placed.unchanged()


@given(p=problems(kinds=("normal", "far", "constant", "huge", "nonfinite")))
@SETTINGS
def test_a_layout_changes_no_more_than_rounding(p):
    """The same values, C-contiguous; in evaluation not a bit."""
    assume(p.count > 1)
    plain = np.array(p.x, p.native, order="C")
    evaluated = [batch_norm(x, **p.vectors(), eps=p.eps, axis=p.axis) for x in (p.x, plain)]
    same(np.array(evaluated[0], order="C"), evaluated[1])
    expected = Expected(p, True)
    a, b = (
        batch_norm(x, None, None, p.weight, p.bias, eps=p.eps, axis=p.axis) for x in (p.x, plain)
    )
    close(a, np.asarray(b, np.longdouble), 2 * expected.y_bound, p.axis)
