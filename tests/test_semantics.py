"""What the explanations of batch normalization insist on, each by name."""

import numpy as np
import pytest

import fastbn
from tests import reference


def test_input_normalized_per_channel_comes_back_unchanged(rng):
    x = rng.normal(size=(8, 3, 5, 5))
    x = (x - x.mean((0, 2, 3), keepdims=True)) / x.std((0, 2, 3), keepdims=True)
    y = fastbn.batch_norm(x, None, None, np.ones(3), np.zeros(3), training=True)
    np.testing.assert_allclose(y, x, atol=1e-4)


def test_input_normalized_per_pixel_does_not_come_back(rng):
    """Statistics are per channel over N, H and W, not per pixel over N."""
    x = rng.normal(size=(8, 3, 5, 5)) * rng.uniform(1, 9, (1, 1, 5, 5))
    x[:, :, 0, 0] *= 0.01
    x = x - x.mean(0)
    x[:, :, 1:] /= x[:, :, 1:].std(0)
    y = fastbn.batch_norm(x, training=True)
    assert np.abs(y - x).max() > 0.1


def test_training_normalizes_with_the_biased_variance(rng):
    x = rng.normal(size=(4, 2))
    y = fastbn.batch_norm(x, training=True, eps=1e-12)
    np.testing.assert_allclose(y, (x - x.mean(0)) / np.sqrt(x.var(0, ddof=0) + 1e-12), rtol=1e-12)
    assert np.abs(y - (x - x.mean(0)) / np.sqrt(x.var(0, ddof=1))).max() > 0.1


def test_eps_stands_inside_the_root():
    y = fastbn.batch_norm(np.array([[3.0]]), np.zeros(1), np.full(1, 5.0), eps=4.0)
    assert y[0, 0] == pytest.approx(3 / np.sqrt(9), rel=1e-15)


def test_evaluation_is_exactly_the_formula(rng):
    x = rng.normal(size=(6, 4, 3, 3))
    mean, var, weight, bias = rng.normal(size=4), rng.uniform(1, 2, 4), *rng.normal(size=(2, 4))
    column = (slice(None), None, None)
    expected = weight[column] * (x - mean[column]) / np.sqrt(var[column] + 1e-5) + bias[column]
    y = fastbn.batch_norm(x, mean, var, weight, bias)
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-14)


def test_evaluation_of_one_sample_does_not_depend_on_the_batch(rng):
    bn = fastbn.BatchNorm2d(3)
    bn(rng.normal(size=(8, 3, 4, 4)))
    x = rng.normal(size=(8, 3, 4, 4))
    np.testing.assert_array_equal(bn.eval()(x)[2], bn(x[2]))


def test_running_statistics_start_at_zero_and_one_and_are_single_values_per_channel():
    bn = fastbn.BatchNorm2d(5)
    np.testing.assert_array_equal(bn.running_mean, np.zeros(5))
    np.testing.assert_array_equal(bn.running_var, np.ones(5))
    assert bn.num_batches_tracked == 0


def test_running_statistics_are_not_used_in_training(rng):
    x = rng.normal(size=(8, 3))
    far = fastbn.batch_norm(x, np.full(3, 1e3), np.full(3, 1e3), training=True)
    np.testing.assert_array_equal(far, fastbn.batch_norm(x, training=True))


def test_running_variance_takes_the_unbiased_one():
    x = np.array([[1.0], [3.0]])
    mean, var = np.zeros(1), np.ones(1)
    fastbn.batch_norm(x, mean, var, training=True, momentum=0.1)
    assert mean[0] == pytest.approx(0.2)
    assert var[0] == pytest.approx(0.9 * 1 + 0.1 * 2)  # unbiased 2, biased 1


@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, 0.37, None])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_running_statistics_over_many_steps(momentum, dtype, rng):
    bn = fastbn.BatchNorm1d(4, momentum=momentum, dtype=dtype)
    mean, var = np.zeros(4), np.ones(4)
    for step in range(1, 40):
        x = rng.normal(step, 2, (int(rng.integers(2, 30)), 4)).astype(dtype)
        weight = 1 / step if momentum is None else momentum
        mean, var = reference.running_step(mean, var, x, weight, 1)
        bn(x)
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(bn.running_mean, mean.astype(float), rtol=tolerance)
    np.testing.assert_allclose(bn.running_var, var.astype(float), rtol=tolerance)
    assert bn.num_batches_tracked == 39


def test_momentum_none_is_the_cumulative_mean_over_batches(rng):
    batches = rng.normal(3, 2, (10, 16, 2))
    bn = fastbn.BatchNorm1d(2, momentum=None, dtype=np.float64)
    for batch in batches:
        bn(batch)
    np.testing.assert_allclose(bn.running_mean, batches.mean((0, 1)), rtol=1e-12)
    np.testing.assert_allclose(bn.running_var, batches.var(1, ddof=1).mean(0), rtol=1e-12)


def test_momentum_zero_and_one_are_exact(rng):
    x = rng.normal(size=(9, 3))
    mean, var = rng.normal(size=3), rng.uniform(1, 2, 3)
    kept = mean.copy(), var.copy()
    fastbn.batch_norm(x, mean, var, training=True, momentum=0.0)
    np.testing.assert_array_equal((mean, var), kept)
    fastbn.batch_norm(x, mean, var, training=True, momentum=1.0)
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-12, atol=1e-15)


def test_without_tracking_batch_statistics_serve_in_both_modes(rng):
    bn = fastbn.BatchNorm2d(3, track_running_stats=False)
    x = rng.normal(4, 2, (5, 3, 4, 4)).astype(np.float32)
    assert bn.running_mean is bn.running_var is bn.num_batches_tracked is None
    trained = bn(x)
    np.testing.assert_array_equal(bn.eval()(x), trained)
    np.testing.assert_allclose(
        trained, reference.forward(x, np.ones(3), np.zeros(3), 1e-5, 1)[0].astype(float), atol=1e-5
    )
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        bn(x[:1, :, :1, :1])


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (fastbn.BatchNorm1d, (6, 4)),
        (fastbn.BatchNorm1d, (6, 4, 5)),
        (fastbn.BatchNorm2d, (6, 4, 5, 3)),
        (fastbn.BatchNorm2d, (4, 5, 3)),
        (fastbn.BatchNorm3d, (2, 4, 5, 3, 2)),
        (fastbn.BatchNorm3d, (4, 5, 3, 2)),
    ],
)
def test_the_output_has_the_shape_of_the_input(layer, shape, rng):
    bn = layer(4)
    x = rng.normal(3, 2, shape).astype(np.float32)
    y = bn(x)
    assert y.shape == bn.eval()(x).shape == shape
    axis = 0 if shape[0] == 4 and len(shape) > 2 else 1  # a single sample, or a batch
    expected, mean, _ = reference.forward(x, np.ones(4), np.zeros(4), 1e-5, axis)
    np.testing.assert_allclose(y, expected.astype(float), atol=1e-5)
    np.testing.assert_allclose(bn.running_mean, 0.1 * mean.astype(float), rtol=1e-5)


def test_walk_through(rng):
    """(2, 3, 4, 4) values times 10 plus 5, one training step, then evaluation."""
    x = rng.random((2, 3, 4, 4)).astype(np.float32) * 10 + 5
    bn = fastbn.BatchNorm2d(3)
    np.testing.assert_array_equal(bn.weight, np.ones(3))
    np.testing.assert_array_equal(bn.bias, np.zeros(3))

    y = bn(x)
    np.testing.assert_allclose(y.mean((0, 2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(y.var((0, 2, 3)), 1, atol=1e-4)
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), ddof=1)
    np.testing.assert_allclose(bn.running_mean, 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(bn.running_var, 0.9 + 0.1 * var, rtol=1e-5)
    assert bn.num_batches_tracked == 1

    z = bn.eval()(x)
    running = bn.running_mean[:, None, None], bn.running_var[:, None, None]
    np.testing.assert_allclose(z, (x - running[0]) / np.sqrt(running[1] + 1e-5), rtol=1e-5)
    assert bn.num_batches_tracked == 1
    assert abs(z.mean()) > 1  # the running statistics are not the batch's yet


def test_a_convolution_bias_before_batch_norm_changes_nothing(rng):
    x = rng.normal(size=(8, 3, 4, 4))
    shifted = x + np.array([1.0, -20.0, 300.0])[:, None, None]
    np.testing.assert_allclose(
        fastbn.batch_norm(shifted, training=True), fastbn.batch_norm(x, training=True), atol=1e-12
    )


def test_two_forwards_then_a_backward_on_the_first(rng):
    x, other, dy = rng.normal(size=(3, 5, 2, 4))
    _, cache = fastbn.batch_norm_forward(x, training=True)
    expected = fastbn.batch_norm_backward(dy, cache).x
    fastbn.batch_norm_forward(other, training=True)
    np.testing.assert_array_equal(fastbn.batch_norm_backward(dy, cache).x, expected)


def test_the_cache_remembers_the_weight_of_its_forward(rng):
    x, dy = rng.normal(size=(2, 6, 2))
    weight = np.full(2, 2.0)
    _, cache = fastbn.batch_norm_forward(x, None, None, weight, training=True)
    expected = fastbn.batch_norm_backward(dy, cache).x
    weight[:] = 0
    np.testing.assert_array_equal(fastbn.batch_norm_backward(dy, cache).x, expected)


@pytest.mark.parametrize(
    "shape", [(0, 3), (0, 3, 5), (4, 3, 0), (0, 3, 4, 4), (2, 3, 0, 0), (1, 3, 0)]
)
def test_an_empty_batch_gives_an_empty_output_and_changes_nothing(shape):
    bn = {2: fastbn.BatchNorm1d, 3: fastbn.BatchNorm1d, 4: fastbn.BatchNorm2d}[len(shape)](3)
    before = bn.state_dict()
    x = np.empty(shape, np.float32)
    assert bn(x).shape == shape
    grads = bn.backward(x)
    assert grads.x.shape == shape
    np.testing.assert_array_equal((grads.weight, grads.bias), np.zeros((2, 3)))
    assert bn.eval()(x).shape == shape
    for name, array in bn.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_out_is_returned_and_written(rng):
    x = rng.normal(size=(5, 3, 7)).astype(np.float32)
    expected = fastbn.batch_norm(x, training=True)
    for out in (
        np.empty_like(x),
        np.empty((7, 3, 5), np.float32).T,
        np.empty((5, 3, 14), np.float32)[..., ::2],
        np.empty((5, 9, 7), np.float32)[:, 2:5],
        np.empty((5, 3, 7), np.float32)[::-1],
    ):
        assert fastbn.batch_norm(x, training=True, out=out) is out
        np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("memory", ["C", "F"])
def test_backward_in_place_and_into_out(memory, rng):
    x = rng.normal(size=(5, 3, 7)).copy(memory)
    dy = rng.normal(size=(5, 3, 7))
    _, cache = fastbn.batch_norm_forward(x, training=True)
    expected = fastbn.batch_norm_backward(dy, cache).x
    for out in (np.empty_like(x), np.empty((5, 3, 14))[..., ::2]):
        assert fastbn.batch_norm_backward(dy, cache, out=out).x is out
        np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-14)
    work = dy.copy()
    assert fastbn.batch_norm_backward(work, cache, out=work).x is work
    np.testing.assert_allclose(work, expected, rtol=1e-12, atol=1e-14)
    assert fastbn.batch_norm_backward(dy, cache, out=x).x is x
    np.testing.assert_allclose(x, expected, rtol=1e-12, atol=1e-14)


def test_parameters_of_another_precision(rng):
    """The output follows x; statistics keep their own dtype and are updated in place."""
    x = rng.normal(2, 3, (50, 4)).astype(np.float32)
    mean, var = np.zeros(4), np.ones(4)
    y = fastbn.batch_norm(x, mean, var, np.full(4, 2.0), np.ones(4), training=True, momentum=1.0)
    assert y.dtype == np.float32
    np.testing.assert_allclose(mean, x.mean(0, dtype=float), rtol=1e-7)
    mean, var = np.zeros(8, np.float32)[::2], np.ones(8, ">f4")[::2]
    fastbn.batch_norm(x.astype(float), mean, var, training=True, momentum=1.0)
    np.testing.assert_allclose(mean, x.mean(0, dtype=float), rtol=1e-6)
    np.testing.assert_allclose(var, x.var(0, ddof=1, dtype=float), rtol=1e-6)


def test_running_statistics_of_two_precisions(rng):
    x = rng.normal(2, 3, (50, 4))
    mean, var = np.zeros(4, np.float32), np.ones(4)
    fastbn.batch_norm(x, mean, var, training=True, momentum=1.0)
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-6)
    np.testing.assert_allclose(var, x.var(0, ddof=1), rtol=1e-12)
    assert (mean.dtype, var.dtype) == (np.float32, np.float64)


def test_the_cache_of_an_evaluation_outlives_changes_of_the_statistics(rng):
    x, dy = rng.normal(size=(2, 6, 3))
    mean, var = rng.normal(size=3), np.ones(3)
    _, cache = fastbn.batch_norm_forward(x, mean, var, np.ones(3))
    expected = fastbn.batch_norm_backward(dy, cache).weight
    mean += 7
    np.testing.assert_array_equal(fastbn.batch_norm_backward(dy, cache).weight, expected)


def test_a_memmap_as_output(rng, tmp_path):
    x = rng.normal(size=(6, 3))
    out = np.memmap(tmp_path / "y", x.dtype, "w+", shape=x.shape)
    y, cache = fastbn.batch_norm_forward(x, training=True, out=out)
    assert y is out
    np.testing.assert_array_equal(out, fastbn.batch_norm(x, training=True))
    fastbn.batch_norm_backward(x, cache)  # x is still there
