"""NaN, infinities, subnormals and huge values: as the reference has them, in their channel only."""

import numpy as np
import pytest

import fastbn
from tests import reference

MAX, TINY = float(np.finfo(np.float32).max), float(np.finfo(np.float32).smallest_subnormal)
LAYOUTS = {
    "NCL": ((40, 5, 33), 1),
    "NCL long": ((2, 5, 5000), 1),
    "NC": ((700, 5), 1),
    "NC wide": ((300, 97), 1),
    "NHWC": ((9, 8, 7, 70), -1),
}


def channel(x, axis, c=2):
    """One channel as a writable view."""
    return np.moveaxis(x, axis, 0)[c]


def others(x, axis, c=2):
    return np.delete(np.moveaxis(np.asarray(x), axis, 0), c, 0)


def expected(x, axis, eps=1e-5):
    c = x.shape[axis]
    with np.errstate(all="ignore"):
        y, mean, var = reference.forward(x, np.ones(c), np.zeros(c), eps, axis)
    return y, mean, var


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "values",
    [(np.nan,), (np.inf,), (-np.inf,), (np.inf, -np.inf), (np.inf, np.nan)],
    ids=lambda v: "and".join(map(str, v)),
)
@pytest.mark.parametrize("where", [0, 3, -1])
def test_what_is_not_finite_stays_in_its_channel(layout, dtype, values, where, rng):
    shape, axis = LAYOUTS[layout]
    clean = rng.normal(3, 2, shape).astype(dtype)
    x = clean.copy()
    for k, value in enumerate(values):
        channel(x, axis).flat[where - k] = value
    c = shape[axis]
    mean, var = np.zeros(c, dtype), np.ones(c, dtype)
    y, cache = fastbn.batch_norm_forward(x, mean, var, training=True, momentum=1.0, axis=axis)
    assert np.isnan(channel(y, axis)).all()
    _, wanted, _ = expected(x, axis)
    np.testing.assert_array_equal(mean[2], wanted[2].astype(dtype))
    assert np.isnan(var[2])
    # the other channels do not even change a bit
    np.testing.assert_array_equal(
        others(y, axis), others(fastbn.batch_norm(clean, training=True, axis=axis), axis)
    )
    assert np.isfinite(np.delete(mean, 2)).all()
    assert np.isfinite(np.delete(var, 2)).all()
    grads = fastbn.batch_norm_backward(np.ones_like(x), cache)
    assert np.isnan(channel(grads.x, axis)).all()
    assert np.isfinite(others(grads.x, axis)).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_not_finite_in_evaluation_stays_in_its_place(layout, rng):
    shape, axis = LAYOUTS[layout]
    x = rng.normal(size=shape).astype(np.float32)
    special = [np.nan, np.inf, -np.inf, -0.0, MAX, -MAX, TINY]
    x.reshape(-1)[: len(special)] = special
    c = shape[axis]
    mean, var = rng.normal(size=c).astype(np.float32), np.ones(c, np.float32)
    with np.errstate(all="ignore"):
        wanted = reference.normalize(x, mean, var, np.ones(c), np.zeros(c), 1e-5, axis)
        wanted = wanted.astype(np.float32)
    y = fastbn.batch_norm(x, mean, var, axis=axis)
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("axis", [1, -1])
def test_an_impossible_running_variance_gives_nan_and_no_error(bad, axis):
    x = np.ones((4, 3, 3), np.float32)
    var = np.array([1, bad, 1], np.float32)
    y, cache = fastbn.batch_norm_forward(x, np.zeros(3, np.float32), var, axis=axis)
    values = channel(y, axis, 1)
    assert (values == 0).all() if bad == np.inf else np.isnan(values).all()
    assert np.isfinite(others(y, axis, 1)).all()
    dx = fastbn.batch_norm_backward(x, cache).x
    assert np.isfinite(others(dx, axis, 1)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("axis", [1, -1])
def test_a_running_mean_that_is_not_finite(bad, axis):
    x = np.arange(36, dtype=np.float32).reshape(4, 3, 3)
    mean = np.array([0, bad, 0], np.float32)
    with np.errstate(all="ignore"):
        wanted = reference.normalize(x, mean, np.ones(3), np.ones(3), np.zeros(3), 1e-5, axis)
    y = fastbn.batch_norm(x, mean, np.ones(3, np.float32), axis=axis)
    np.testing.assert_allclose(y, wanted.astype(np.float32), rtol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-30, 1e-22, 1e-15, 1e15, 1e19, 1e30, 1e38])
def test_statistics_of_tiny_and_huge_values(layout, scale, rng):
    """Squares that float32 cannot hold are no reason to lose a variance."""
    shape, axis = LAYOUTS[layout]
    x = rng.normal(3, 2, shape).astype(np.float32)
    values = channel(x, axis)
    values[...] = (rng.uniform(-3, 3, values.shape) * scale).astype(np.float32)
    stats = fastbn.channel_stats(x, axis)
    _, mean, var = expected(x, axis)
    np.testing.assert_allclose(stats.var(), var.astype(float), rtol=1e-5)
    np.testing.assert_allclose(stats.mean, mean.astype(float), rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e-18, 1e15, 1e19, 1e22, 1e27, MAX / 3.001])
@pytest.mark.parametrize("eps", [1e-5, 1e-70])
def test_training_on_tiny_and_huge_values(layout, scale, eps, rng):
    shape, axis = LAYOUTS[layout]
    x = rng.normal(3, 2, shape).astype(np.float32)
    values = channel(x, axis)
    values[...] = (rng.uniform(-3, 3, values.shape) * scale).astype(np.float32)
    y, cache = fastbn.batch_norm_forward(x, training=True, axis=axis, eps=eps)
    wanted, mean, var = expected(x, axis, eps)
    np.testing.assert_allclose(y, wanted.astype(np.float32), rtol=1e-4, atol=1e-5)
    weight = np.ones(shape[axis], np.float32)
    dy = rng.normal(size=shape).astype(np.float32)
    y, cache = fastbn.batch_norm_forward(x, None, None, weight, training=True, axis=axis, eps=eps)
    grads = fastbn.batch_norm_backward(dy, cache)
    wanted = reference.backward(dy, x, mean, var, weight, eps, axis, batch_statistics=True)
    np.testing.assert_allclose(grads.weight, wanted[1].astype(np.float32), rtol=1e-4, atol=1e-3)
    for c in range(shape[axis]):  # each at its own scale, which is that of 1 / std
        actual, dx = channel(grads.x, axis, c), channel(wanted[0], axis, c).astype(float)
        floor = max(1e-37, 1e-5 * np.abs(dx).max())  # float32 ends near 1e-38
        np.testing.assert_allclose(actual, dx, rtol=1e-4, atol=floor)


@pytest.mark.parametrize("axis", [1, -1])
def test_huge_values_do_not_disturb_the_tiny_ones_of_another_channel(axis, rng):
    x = rng.normal(size=(50, 4, 4)).astype(np.float32)
    channel(x, axis, 0)[...] *= 1e38
    channel(x, axis, 1)[...] *= 1e-30
    y = fastbn.batch_norm(x, training=True, axis=axis, eps=1e-70)
    wanted, _, _ = expected(x, axis, 1e-70)
    np.testing.assert_allclose(y, wanted.astype(np.float32), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axis", [1, -1])
def test_overflow_is_no_accident_of_the_order(axis):
    """x - mean overflows float32 here, the result does not."""
    x = np.full((4, 3, 3), MAX, np.float32)
    mean, var = np.full(3, -MAX, np.float32), np.full(3, 1e38, np.float32)
    wanted = reference.normalize(x, mean, var, np.ones(3), np.zeros(3), 1e-5, axis)
    y = fastbn.batch_norm(x, mean, var, axis=axis)
    np.testing.assert_allclose(y, wanted.astype(np.float32), rtol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("view", ["plain", "stepped"])
def test_on_nonfinite(value, view, rng):
    x = rng.normal(size=(6, 3, 8)).astype(np.float32)[..., :: 1 if view == "plain" else 2]
    bad = x.copy()
    bad[1, 2, 0] = value
    for policy in ("propagate", "skip", "raise"):
        bn = fastbn.BatchNorm1d(3, on_nonfinite=policy)
        bn(x)
        before, out = bn.state_dict(), np.zeros(x.shape, np.float32)
        if policy == "raise":
            with pytest.raises(ValueError, match="NaN or infinity in channel 2, and on_nonfinite"):
                bn(bad, out=out)
            assert not out.any()
        else:
            assert np.isnan(bn(bad)[:, 2]).all()
        changed = any(not np.array_equal(before[k], v) for k, v in bn.state_dict().items())
        assert changed == (policy == "propagate")
        assert bn.num_batches_tracked == (2 if policy == "propagate" else 1)
        assert bn.eval()(bad).shape == x.shape  # evaluation has nothing to update
    with pytest.raises(ValueError, match="on_nonfinite must be"):
        fastbn.BatchNorm1d(3, on_nonfinite="ignore")
    with pytest.raises(ValueError, match="on_nonfinite must be"):
        fastbn.batch_norm(x, training=True, on_nonfinite=None)


def overflowing(dtype, size):
    """Finite values, whose sum of squares is beyond ``dtype`` in the middle channel."""
    x = np.ones((4, 3), dtype)
    x[:, 1] = [size, -size, size, -size]
    x[::2, (0, 2)] = 2
    return x


def test_on_nonfinite_names_the_channels_that_hold_it():
    x = overflowing(np.float64, 1e200)
    x[0, 2] = np.nan
    bn = fastbn.BatchNorm1d(3, dtype=np.float64, on_nonfinite="raise")
    with pytest.raises(ValueError, match="holds NaN or infinity in channel 2, and on_nonfinite"):
        bn(x)


def test_on_nonfinite_tells_an_overflow_of_statistics_from_infinity_in_x():
    bn, out = fastbn.BatchNorm1d(3, dtype=np.float64, on_nonfinite="raise"), np.zeros((4, 3))
    before = bn.state_dict()
    for size, why in ((1e200, "is finite, but its statistics overflow"), (np.inf, "holds NaN or")):
        with pytest.raises(ValueError, match=f"{why}.* in channel 1, and on_nonfinite is 'raise'"):
            bn(overflowing(np.float64, size), out=out)
        assert not out.any()
        for name, array in bn.state_dict().items():
            np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_on_nonfinite_keeps_running_statistics_finite(dtype, momentum):
    """A float32 running variance cannot hold 1e50, the variance of finite values."""
    x = overflowing(dtype, 1e25)
    with np.errstate(over="ignore"):
        plain = fastbn.BatchNorm1d(3, momentum=momentum)
        plain(x)
        assert np.isinf(plain.running_var[1])  # else nothing here is at stake
    skips = fastbn.BatchNorm1d(3, momentum=momentum, on_nonfinite="skip")
    expected = fastbn.BatchNorm1d(3).state_dict()
    np.testing.assert_array_equal(skips(x), plain(x))
    for name, array in skips.state_dict().items():
        np.testing.assert_array_equal(array, expected[name])
    raises = fastbn.BatchNorm1d(3, momentum=momentum, on_nonfinite="raise")
    out = np.zeros_like(x)
    with pytest.raises(ValueError, match="would make running_var infinite in channel 1"):
        raises(x, out=out)
    assert not out.any()
    assert raises.num_batches_tracked == 0
    for policy in ("skip", "raise"):
        wide = fastbn.BatchNorm1d(3, momentum=momentum, dtype=np.float64, on_nonfinite=policy)
        wide(x)
        assert wide.num_batches_tracked == 1
        assert np.isfinite(wide.running_var).all()


def test_on_nonfinite_judges_the_batch_and_not_what_was_there_before(rng):
    x = rng.normal(size=(8, 3)).astype(np.float32)
    for policy in ("skip", "raise"):
        bn = fastbn.BatchNorm1d(3, on_nonfinite=policy)
        bn.running_mean[1] = np.inf  # somebody has set it
        bn(x)
        assert bn.num_batches_tracked == 1
        assert bn.running_mean[0] != 0


@pytest.mark.parametrize("policy", ["skip", "raise"])
def test_on_nonfinite_takes_the_same_steps_as_without_it(policy, rng):
    x = rng.normal(size=(5, 8, 3)).astype(np.float32)
    careful, plain = fastbn.BatchNorm1d(3, on_nonfinite=policy), fastbn.BatchNorm1d(3)
    for batch in x:
        np.testing.assert_array_equal(careful(batch), plain(batch))
    for name, array in careful.state_dict().items():
        np.testing.assert_array_equal(array, plain.state_dict()[name])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("constant", [3e8, 1e30])
def test_a_huge_constant_with_a_tiny_eps(layout, constant):
    shape, axis = LAYOUTS[layout]
    x = np.full(shape, constant, np.float32)
    bias = np.full(shape[axis], 0.25, np.float32)
    y, cache = fastbn.batch_norm_forward(x, None, None, None, bias, axis=axis, eps=1e-60)
    np.testing.assert_array_equal(y, np.float32(0.25))
    assert np.isfinite(fastbn.batch_norm_backward(np.ones_like(x), cache).bias).all()


#: Spread of x and of dy, weight, eps: terms that float32 cannot hold, results that it can.
FACTORS = [
    (1e-14, 1e15, 1, 1e-30),
    (1e-14, 1e-20, 1e30, 1e-30),
    (1e-12, 1e-20, 1e28, 1e-30),
    (1e8, 1e-28, 1, 1e-5),
    (1e14, 1e-20, 1, 1e-5),
    (1e12, 1e-18, 1, 1e-5),
]


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize(("spread", "of_dy", "scale", "eps"), FACTORS)
def test_factors_that_float32_cannot_hold(spread, of_dy, scale, eps, axis, rng):
    """Weight over standard deviation, and what the gradient multiplies x by."""
    shape = (16, 4, 32) if axis == 1 else (16, 32, 4)
    x = (rng.normal(size=shape) * spread).astype(np.float32)
    dy = (rng.normal(size=shape) * of_dy).astype(np.float32)
    weight, bias = np.full(4, scale, np.float32), np.zeros(4, np.float32)
    y, cache = fastbn.batch_norm_forward(
        x, weight=weight, bias=bias, training=True, eps=eps, axis=axis
    )
    gradients = fastbn.batch_norm_backward(dy, cache)
    mean, var = reference.mean_and_var(x, axis)
    wanted_y = reference.normalize(x, mean, var, weight, bias, eps, axis)
    wanted = reference.backward(dy, x, mean, var, weight, eps, axis, True)
    for found, right in ((y, wanted_y), (gradients.x, wanted[0]), (gradients.weight, wanted[1])):
        assert np.abs(found - right).max() <= 2e-6 * np.abs(right).max()
