"""Errors of what a call writes to, and of gradients; a call that raises has changed nothing."""

import numpy as np
import pytest

import fastbn
from fastbn import BatchNorm1d, BatchNorm2d
from tests.test_errors import X, raises


def _read_only(a):
    a.flags.writeable = False
    return a


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("make_out", "error", "part"),
    [
        (lambda x: np.empty((4, 3, 3), np.float32), ValueError, "(4, 3, 3), expected the shape"),
        (lambda x: np.empty(24, np.float32), ValueError, "(24,), expected the shape"),
        (lambda x: np.empty((4, 3, 2)), ValueError, "float64, expected the dtype of x, float32"),
        (lambda x: np.empty((4, 3, 2), ">f4"), ValueError, "expected the dtype"),
        (lambda x: _read_only(np.empty((4, 3, 2), np.float32)), ValueError, "read-only"),
        (lambda x: x.base.reshape(5, 3, 2)[1:], ValueError, "out overlaps x"),
        (lambda x: x[::-1], ValueError, "out overlaps x"),
        (
            lambda x: np.lib.stride_tricks.as_strided(
                np.empty(6, np.float32), (4, 3, 2), (0, 8, 4)
            ),
            ValueError,
            "elements share memory",
        ),
        (
            lambda x: np.lib.stride_tricks.as_strided(
                np.empty(12, np.float32), (4, 3, 2), (8, 8, 4)
            ),
            ValueError,
            "elements share memory",
        ),
        (lambda x: "out", TypeError, "out must be a numpy.ndarray, got str"),
        (lambda x: np.ma.empty((4, 3, 2)), TypeError, "masked"),
    ],
)
def test_out(make_out, error, part, training):
    base = np.arange(30, dtype=np.float32).reshape(5, 3, 2)
    x = base[:4]
    before = base.copy()
    mean, var = np.zeros(3, np.float32), np.ones(3, np.float32)
    with raises(error, "out", part):
        fastbn.batch_norm(x, mean, var, training=training, out=make_out(x))
    np.testing.assert_array_equal(base, before)
    np.testing.assert_array_equal((mean, var), [[0] * 3, [1] * 3])
    _, cache = fastbn.batch_norm_forward(x, training=True)
    with raises(error, "out", part):
        fastbn.batch_norm_backward(np.ones_like(x), cache, out=make_out(x))
    np.testing.assert_array_equal(base, before)


def test_interleaved_out_that_shares_no_element_is_fine():
    both = np.arange(48, dtype=np.float32).reshape(4, 6, 2)
    expected = fastbn.batch_norm(both[:, :3].copy(), training=True)
    fastbn.batch_norm(both[:, :3], training=True, out=both[:, 3:])
    np.testing.assert_array_equal(both[:, 3:], expected)


@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var"])
def test_out_must_not_overlap_a_parameter(name):
    out = np.ones((4, 3, 2), np.float32)
    vectors = {k: np.ones(3, np.float32) for k in ("running_mean", "running_var")}
    with raises(ValueError, f"out overlaps {name}"):
        fastbn.batch_norm(X, **{**vectors, name: out[:3, 0, 0]}, out=out)


def test_training_needs_writable_statistics():
    frozen = np.zeros(3, np.float32)
    frozen.flags.writeable = False
    other = np.ones(3, np.float32)
    with raises(ValueError, "running_mean is read-only", "training=False"):
        fastbn.batch_norm(X, frozen, other, training=True)
    with raises(ValueError, "running_var is read-only"):
        fastbn.batch_norm(X, other, frozen, training=True)
    np.testing.assert_array_equal(other, np.ones(3))
    assert fastbn.batch_norm(X, frozen, other).shape == X.shape


def test_a_counter_that_cannot_count():
    bn, out = BatchNorm1d(3, momentum=None), np.zeros_like(X)
    bn.num_batches_tracked.flags.writeable = False
    with raises(TypeError, "num_batches_tracked must be a writable int64 array", "in place"):
        bn(X, out=out)
    assert not out.any()
    np.testing.assert_array_equal(bn.running_mean, np.zeros(3))


def test_a_load_into_what_cannot_be_written_loads_nothing():
    bn, state = BatchNorm1d(3), BatchNorm1d(3).state_dict()
    state["weight"] += 8
    bn.running_var.flags.writeable = False
    with raises(ValueError, "cannot write", "nothing was changed"):
        bn.load_state_dict(state)
    np.testing.assert_array_equal(bn.weight, np.ones(3))


def test_a_call_that_raises_leaves_the_layer_alone():
    bn = BatchNorm1d(3)
    bn(X)
    before = bn.state_dict()
    for bad in ((X, {"out": X[:2]}), (X.astype(int), {}), (X[:, :2], {}), (None, {})):
        with pytest.raises((TypeError, ValueError)):
            bn(bad[0], **bad[1])
        for name, array in bn.state_dict().items():
            np.testing.assert_array_equal(array, before[name])
    assert bn.backward(X).x.shape == X.shape  # still the cache of the good call


# --- backward -------------------------------------------------------------------------------


def test_backward_without_a_cache():
    for bn in (BatchNorm2d(3), BatchNorm2d(3).eval()):
        with raises(RuntimeError, "no training call", "train()", "forward_with_cache"):
            bn.backward(np.zeros((2, 3, 4, 4), np.float32))


def test_backward_with_something_else():
    with raises(TypeError, "cache", "dict", "batch_norm_forward"):
        fastbn.batch_norm_backward(X, {})
    with raises(RuntimeError, "no cache", "batch_norm_forward"):
        fastbn.batch_norm_backward(X, None)


def test_gradient_of_the_wrong_shape_or_dtype():
    _, cache = fastbn.batch_norm_forward(X, training=True)
    with raises(ValueError, "dy has shape (4, 3)", "(4, 3, 2)"):
        fastbn.batch_norm_backward(X[..., 0], cache)
    with raises(ValueError, "dy has dtype float64", "float32"):
        fastbn.batch_norm_backward(X.astype(float), cache)
    with raises(TypeError, "dy must be a numpy.ndarray"):
        fastbn.batch_norm_backward(1.0, cache)
    with raises(TypeError, "dy must be float32, float64, float16 or bfloat16, got dtype int64"):
        fastbn.batch_norm_backward(X.astype(int), cache)


def test_backward_after_a_forward_in_place():
    x = X.copy()
    _, cache = fastbn.batch_norm_forward(x, training=True, out=x)
    with raises(RuntimeError, "out=x"):
        fastbn.batch_norm_backward(X, cache)
    bn, x = BatchNorm1d(3), X.copy()
    bn(x, out=x)
    with raises(RuntimeError, "out=x"):
        bn.backward(X)


# --- statistics -----------------------------------------------------------------------------


def test_channel_stats_errors():
    with raises(ValueError, "2 and 3 channels"):
        fastbn.ChannelStats.empty(2).merge(fastbn.ChannelStats.empty(3))
    with raises(TypeError, "ChannelStats", "int"):
        fastbn.ChannelStats.empty(2).merge(3)
    with raises(ValueError, "one shape"):
        fastbn.ChannelStats(np.zeros(2), np.zeros(3), np.zeros(2))
    with raises(ValueError, "num_channels", "-1"):
        fastbn.ChannelStats.empty(-1)
    with raises(TypeError, "num_channels", "2.0"):
        fastbn.ChannelStats.empty(2.0)
