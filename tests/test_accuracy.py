"""The accuracy contract: far means, long sums, constants, in every layout."""

import numpy as np
import pytest

import fastbn
from tests import reference

LAYOUTS = {
    "NC": lambda n, c: ((n, c), 1),
    "NCL": lambda n, c: ((n // 100, c, 100), 1),
    "NCL one row": lambda n, c: ((1, c, n), 1),
    "NHWC": lambda n, c: ((n // 100, 10, 10, c), -1),
    "NHWC wide": lambda n, c: ((n // 100, 10, 10, c * 50), -1),
}


def variance_error(x, axis):
    mean, var = reference.mean_and_var(x, axis)
    stats = fastbn.channel_stats(x, axis)
    assert np.all(np.abs(stats.mean - mean) <= 1e-6 * np.sqrt(var) + 1e-7 * np.abs(mean))
    return float(np.max(np.abs(stats.var() / var - 1)))


@pytest.mark.compiled
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mean_over_std", [0, 1, 1e2, 1e4])
def test_variance_with_a_far_mean(layout, mean_over_std, rng):
    shape, axis = LAYOUTS[layout](40_000, 2)
    x = rng.normal(mean_over_std * 3, 3, shape).astype(np.float32)
    assert variance_error(x, axis) <= 1e-5


@pytest.mark.compiled
@pytest.mark.parametrize("layout", ["NC", "NHWC"])
def test_a_million_rows_with_a_far_mean(layout, rng):
    """The case where a plain float32 sum gives a running variance of 14.7 instead of 1."""
    shape, axis = LAYOUTS[layout](1_000_000, 3)
    x = rng.normal(10_000, 1, shape).astype(np.float32)
    assert variance_error(x, axis) <= 1e-5
    mean, var = np.zeros(3, np.float32), np.ones(3, np.float32)
    fastbn.batch_norm(x, mean, var, training=True, momentum=1.0, axis=axis)
    _, expected = reference.mean_and_var(x, axis)
    np.testing.assert_allclose(var, expected, rtol=1e-5)


@pytest.mark.compiled
@pytest.mark.parametrize("layout", LAYOUTS)
def test_half_zeros(layout, rng):
    shape, axis = LAYOUTS[layout](40_000, 2)
    x = rng.normal(50, 1, shape).astype(np.float32)
    longest = max((k for k in range(x.ndim) if k != axis % x.ndim), key=lambda k: shape[k])
    np.moveaxis(x, longest, 0)[: shape[longest] // 2] = 0
    assert variance_error(x, axis) <= 1e-5


@pytest.mark.compiled
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("where", [0, 12_345, -1])
def test_one_outlier(layout, where, rng):
    shape, axis = LAYOUTS[layout](40_000, 2)
    x = rng.normal(0, 1, shape).astype(np.float32)
    x.reshape(-1)[where] = 1e8
    assert variance_error(x, axis) <= 1e-5


@pytest.mark.compiled
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_leading_block_of_zeros_then_a_far_mean(layout, rng):
    shape, axis = LAYOUTS[layout](400_000, 2)
    x = rng.normal(1e4, 1, shape).astype(np.float32)
    x.reshape(-1)[:5000] = 0
    assert variance_error(x, axis) <= 1e-5


@pytest.mark.compiled
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("constant", [0.0, 0.1, -7.3, 1e6, 1e-20, 3e8, -1e12, 1e30, 3e38])
def test_a_constant_channel_gives_exactly_the_bias(layout, constant, dtype):
    shape, axis = LAYOUTS[layout](30_000, 2)
    x = np.full(shape, constant, dtype)
    c = shape[axis]
    bias = np.linspace(-1, 1, c).astype(dtype)
    mean, var = np.zeros(c, dtype), np.ones(c, dtype)
    y = fastbn.batch_norm(x, mean, var, np.full(c, 3, dtype), bias, True, 1.0, axis=axis)
    np.testing.assert_array_equal(*np.broadcast_arrays(np.moveaxis(y, axis, -1), bias))
    np.testing.assert_array_equal(mean, dtype(constant))
    np.testing.assert_array_equal(var, 0)


@pytest.mark.parametrize("axis", [1, -1])
def test_the_output_keeps_its_digits_with_a_far_mean(axis, rng):
    """x * scale + (bias - mean * scale) in float32 would lose three of them."""
    x = rng.normal(1e4, 1, (64, 6, 50, 6)).astype(np.float32)
    bias = rng.normal(size=6).astype(np.float32)
    expected, mean, var = reference.forward(x, np.ones(6), bias, 1e-5, axis)
    y = fastbn.batch_norm(x, None, None, None, bias, training=True, axis=axis)
    np.testing.assert_allclose(y, expected.astype(float), atol=2e-6)
    y = fastbn.batch_norm(x, mean.astype(float), var.astype(float), None, bias, axis=axis)
    np.testing.assert_allclose(y, expected.astype(float), atol=2e-6)


SHORT = {
    **{f"rows of {n}": ((9000 // n, 3, n), 1) for n in (2, 3, 7, 17, 49)},
    "NC": ((9000, 3), 1),
    "NC wide": ((3000, 70), 1),
    "one row": ((1, 3, 9000), 1),
}


@pytest.mark.compiled
@pytest.mark.parametrize("layout", SHORT)
@pytest.mark.parametrize("kind", ["two values", "sparse", "outlier"])
@pytest.mark.parametrize("scale", [0.1, 1.0, 1.7])
def test_sums_do_not_lose_digits_one_by_one(layout, kind, scale, rng):
    """Equal addends round the same way each time: chains of additions must be short."""
    shape, axis = SHORT[layout]
    if kind == "two values":
        x = np.where(rng.random(shape) < 0.5, -scale, scale)
    elif kind == "sparse":
        x = np.where(rng.random(shape) < 0.01, scale, 0.0)
    else:
        x = rng.normal(0, scale, shape)
        x.reshape(-1)[: 5 * shape[axis]] = 3e3 * scale
    assert variance_error(x.astype(np.float32), axis) <= 1e-5


@pytest.mark.compiled
@pytest.mark.parametrize("layout", SHORT)
def test_the_gradient_of_the_bias_is_a_sum_without_loss(layout):
    shape, axis = SHORT[layout]
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    dy = np.full(shape, 0.1, np.float32)
    bias = np.zeros(shape[axis], np.float32)
    _, cache = fastbn.batch_norm_forward(x, None, None, None, bias, axis=axis)
    count = x.size // shape[axis]
    np.testing.assert_allclose(
        fastbn.batch_norm_backward(dy, cache).bias, count * np.float64(np.float32(0.1)), rtol=4e-6
    )


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("cut", [1, 60])
def test_gradients_with_a_far_mean(axis, cut, rng):
    """What rounding the mean to float32 leaves over is part of both sums."""
    x = rng.normal(1e4, 1, (cut * 20, 6, 30, 6)).astype(np.float32)
    _, mean, var = reference.forward(x, np.ones(6), np.zeros(6), 1e-5, axis)
    x_hat = reference.normalize(x, mean, var, np.ones(6), np.zeros(6), 1e-5, axis)
    dy = (x_hat + 1 + 0.1 * rng.normal(size=x.shape)).astype(np.float32)
    weight = np.ones(6, np.float32)
    _, cache = fastbn.batch_norm_forward(x, None, None, weight, axis=axis)
    grads = fastbn.batch_norm_backward(dy, cache)
    dx, dweight, _ = reference.backward(dy, x, mean, var, weight, 1e-5, axis, True)
    np.testing.assert_allclose(grads.x, dx.astype(float), atol=1e-5)
    np.testing.assert_allclose(grads.weight, dweight.astype(float), rtol=1e-5)


@pytest.mark.parametrize("batch_statistics", [True, False])
@pytest.mark.parametrize(
    ("shape", "axis"), [((4, 3), 1), ((3, 2, 5), 1), ((2, 3, 2, 2), 1), ((2, 2, 3, 3), -1)]
)
def test_gradients_by_finite_differences(shape, axis, batch_statistics, rng):
    c = shape[axis]
    x, dy = rng.normal(2, 3, shape), rng.normal(size=shape)
    weight, bias = rng.normal(size=(2, c))
    running = () if batch_statistics else (rng.normal(size=c), np.arange(1.0, c + 1))
    mean, var = running or (None, None)

    def loss(x, weight, bias):
        return float((fastbn.batch_norm(x, mean, var, weight, bias, axis=axis) * dy).sum())

    _, cache = fastbn.batch_norm_forward(x, mean, var, weight, bias, axis=axis)
    grads = fastbn.batch_norm_backward(dy, cache)
    numerical = (
        reference.numerical_gradient(lambda v: loss(v, weight, bias), x),
        reference.numerical_gradient(lambda v: loss(x, v, bias), weight),
        reference.numerical_gradient(lambda v: loss(x, weight, v), bias),
    )
    for actual, expected in zip(grads, numerical, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_a_hundred_million_values_per_channel(rng):
    """N * L = 1e8 in one channel, mean / std = 1e4."""
    x = rng.standard_normal((1, 1, 100_000_000), np.float32)
    x += np.float32(1e4)
    stats = fastbn.channel_stats(x)
    mean = x.mean(dtype=np.float64)
    pieces = np.split(x[0, 0], 10)
    m2 = sum(((piece.astype(np.float64) - mean) ** 2).sum() for piece in pieces)
    assert abs(stats.m2[0] / m2 - 1) <= 1e-5
