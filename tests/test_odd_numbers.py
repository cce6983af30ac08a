"""Settings and values at the ends of their ranges: right, or an error that says what to do."""

import numpy as np
import pytest

import fastbn
from fastbn import batch_norm, batch_norm_backward, batch_norm_forward, channel_stats
from tests.test_odd_arrays import SHAPE, C


@pytest.fixture
def values(rng):
    return rng.normal(3, 2, SHAPE).astype(np.float32)


@pytest.mark.parametrize("axis", [1.0, np.float64(1), True, np.True_, [1], "1", 1j, None])
def test_an_axis_that_equals_an_integer_is_none(axis, values):
    """1.0 == True == 1, so a cache must not take one for the other."""
    batch_norm(values, training=True, axis=1)
    channel_stats(values, 1)
    for call in (
        lambda: batch_norm(values, training=True, axis=axis),
        lambda: channel_stats(values, axis),
        lambda: fastbn.BatchNorm1d(C, axis=axis),
    ):
        with pytest.raises(TypeError, match="axis must be an integer"):
            call()


@pytest.mark.parametrize("number", [10**400, -(10**400)])
def test_numbers_beyond_float64(number, values):
    for name in ("eps", "momentum"):
        with pytest.raises(ValueError, match=name):
            batch_norm(values, np.zeros(C), np.ones(C), training=True, **{name: number})
        with pytest.raises(ValueError, match=name):
            fastbn.BatchNorm1d(3, **{name: number})


@pytest.mark.parametrize("number", [2**62, 2**70])
def test_more_features_than_memory(number):
    with pytest.raises(ValueError, match="num_features"):
        fastbn.BatchNorm1d(number)


@pytest.mark.parametrize("dtype", ["f4,", {"a": 1}, "(((", "f4 f4", [("a",)], object()])
def test_dtypes_that_numpy_cannot_even_read(dtype):
    with pytest.raises((TypeError, ValueError), match="dtype must be float32 or float64"):
        fastbn.BatchNorm1d(3, dtype=dtype)


@pytest.mark.parametrize("count", [np.uint64(2**64 - 1), 2**63, np.uint64(2**63 + 5)])
def test_a_counter_that_would_wrap_around(count):
    bn = fastbn.BatchNorm1d(3, momentum=None)
    state = {**bn.state_dict(), "num_batches_tracked": count}
    with pytest.raises(ValueError, match="num_batches_tracked"):
        bn.load_state_dict(state)
    assert bn.num_batches_tracked == 0


def test_parameters_beyond_float32_are_infinite_and_no_warning(values):
    """filterwarnings = error: NumPy's overflow warning would be an exception here."""
    x = values
    weight = np.full(C, 1e300)
    y, cache = batch_norm_forward(x, weight=weight, training=True)
    assert np.isinf(y).any()
    batch_norm_backward(x, cache)
    _, cache = batch_norm_forward(x, np.zeros(C), np.full(C, -1e-5), np.ones(C))
    batch_norm_backward(x, cache)
    x = values * np.float32(1e37)
    _, cache = batch_norm_forward(x, np.zeros(C), np.full(C, 1e-30), np.ones(C), np.ones(C))
    grads = batch_norm_backward(np.full_like(x, 3e38), cache)
    assert np.isinf(grads.bias).all()


@pytest.mark.parametrize("value", [1e8, 3e8, 1e10, 1e20, 1e30, 2.7409838e37, 3e38])
@pytest.mark.parametrize(("shape", "axis"), [
    ((4, 3, 7), 1), ((28, 3), 1), ((5, 7, 3), -1), ((500, 3), 1), ((70, 97), 1), ((2, 1, 900), 1),
])  # fmt: skip
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_large_constant_channel_gives_exactly_the_bias(value, shape, axis, dtype):
    x = np.full(shape, value, dtype)
    stats = channel_stats(x, axis)
    np.testing.assert_array_equal(stats.mean, float(x.flat[0]))
    np.testing.assert_array_equal(stats.m2, 0)
    np.testing.assert_array_equal(batch_norm(x, training=True, axis=axis), 0)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_merging_with_nothing_changes_nothing(value):
    x = np.array([[1, value, 2], [3, 4, value]], np.float32)
    stats, nothing = channel_stats(x), fastbn.ChannelStats.empty(3)
    for merged in (stats.merge(nothing), nothing.merge(stats)):
        np.testing.assert_array_equal(merged.count, stats.count)
        np.testing.assert_array_equal(merged.mean, stats.mean)
        np.testing.assert_array_equal(merged.m2, stats.m2)
