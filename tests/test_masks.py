"""Values that a mask leaves out of the statistics."""

import numpy as np
import pytest

import fastbn
from tests import internals, reference

SHAPES = [((6, 3, 5), 1, (6, 1, 5)), ((6, 3, 5), 1, (6, 3, 5)), ((40, 4), 1, (40, 1)),
          ((4, 3, 3, 8), -1, (4, 3, 3, 1)), ((5, 2, 7), 1, (1, 1, 7))]  # fmt: skip
TOLERANCE = {"float32": 3e-6, "float64": 1e-12}

shapes = pytest.mark.parametrize(("shape", "axis", "of_mask"), SHAPES, ids=str)
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


def drawn(rng, shape, axis, dtype):
    x, dy = (rng.normal(2, 3, shape).astype(dtype) for _ in range(2))
    weight, bias, mean = rng.normal(size=(3, shape[axis])).astype(dtype)
    return x, dy, weight, bias, mean, rng.uniform(1, 2, shape[axis]).astype(dtype)


def some(rng, shape):
    """About half of the values, at least two of each channel."""
    kept = rng.random(shape) < 0.5
    kept.reshape(-1)[: max(2, kept.size // 3)] = True
    return kept


def right_statistics(x, mask, axis):
    """Mean, biased variance and count of what is kept of each channel."""
    kept = np.moveaxis(np.broadcast_to(mask, x.shape), axis, 0)
    values = np.moveaxis(x.astype(np.longdouble), axis, 0)
    found = [(v[k].mean(), v[k].var(), k.sum()) for v, k in zip(values, kept, strict=True)]
    return [np.array(column) for column in zip(*found, strict=True)]


def assert_close(found, right, dtype):
    right = np.asarray(right, np.longdouble)
    assert np.abs(found - right).max() <= TOLERANCE[dtype] * max(1, np.abs(right).max())


@shapes
@dtypes
def test_statistics_output_and_running_ones(shape, axis, of_mask, dtype, rng):
    x, _, weight, bias, mean, var = drawn(rng, shape, axis, dtype)
    mask, before = some(rng, of_mask), x.copy()
    kept_mean, kept_var, count = right_statistics(x, mask, axis)
    running = mean.copy(), var.copy()
    y = fastbn.batch_norm(x, *running, weight, bias, True, 0.3, axis=axis, mask=mask)
    assert_close(y, reference.normalize(x, kept_mean, kept_var, weight, bias, 1e-5, axis), dtype)
    assert_close(running[0], 0.7 * mean + 0.3 * kept_mean, dtype)
    assert_close(running[1], 0.7 * var + 0.3 * kept_var * count / (count - 1), dtype)
    stats = fastbn.channel_stats(x, axis, mask=mask)
    np.testing.assert_array_equal(stats.count, count)
    np.testing.assert_allclose(stats.mean, kept_mean.astype(float), rtol=1e-12)
    np.testing.assert_allclose(stats.var(), kept_var.astype(float), rtol=1e-12)
    np.testing.assert_array_equal(x, before)


@shapes
def test_gradients_by_finite_differences(shape, axis, of_mask, rng):
    x, dy, weight, bias, *_ = drawn(rng, shape, axis, "float64")
    mask, other = some(rng, of_mask), rng.normal(size=shape)
    places = tuple(k for k in range(x.ndim) if k != axis % x.ndim)
    for how in ({}, {"residual": other, "activation": "tanh"}):

        def forward(x, weight, bias, how=how):
            return fastbn.batch_norm(
                x, None, None, weight, bias, True, axis=axis, mask=mask, **how
            )  # fmt: skip

        _, cache = fastbn.batch_norm_forward(
            x, None, None, weight, bias, True, axis=axis, mask=mask, **how
        )
        gradients = fastbn.batch_norm_backward(dy, cache)
        values = [x, weight, bias]
        for k, found in enumerate(gradients):
            others = list(values)

            def loss(value, k=k, others=others, forward=forward):
                others[k] = value
                return (forward(*others) * dy).sum(places)

            right = reference.numerical_gradient_by_channel(
                loss, values[k].copy(), axis if k == 0 else 0
            )
            np.testing.assert_allclose(found, right, atol=2e-6)


def test_gradients_of_16_bits(rng):
    x, dy, weight, bias, *_ = drawn(rng, (6, 3, 5), 1, "float32")
    x, dy = x.astype(np.float16), dy.astype(np.float16)
    mask, how = some(rng, (6, 1, 5)), {"weight": weight, "bias": bias, "training": True}
    y, cache = fastbn.batch_norm_forward(x, mask=mask, **how)
    right, wide = fastbn.batch_norm_forward(x.astype(np.float32), mask=mask, **how)
    np.testing.assert_array_equal(y, right.astype(np.float16))
    found = fastbn.batch_norm_backward(dy, cache)
    expected = fastbn.batch_norm_backward(dy.astype(np.float32), wide)
    assert found.x.dtype == np.float16
    np.testing.assert_allclose(found.x.astype("f4"), expected.x, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(found.weight, expected.weight, rtol=1e-6)


@shapes
@dtypes
def test_everything_kept_is_no_mask_bit_for_bit(shape, axis, of_mask, dtype, rng):
    x, dy, weight, bias, mean, var = drawn(rng, shape, axis, dtype)
    found = []
    for mask in (None, np.ones(of_mask, bool)):
        running = mean.copy(), var.copy()
        y, cache = fastbn.batch_norm_forward(
            x, *running, weight, bias, True, axis=axis, mask=mask
        )  # fmt: skip
        stats = fastbn.channel_stats(x, axis, mask=mask)
        gradients = fastbn.batch_norm_backward(dy, cache)
        found.append([a.tobytes() for a in (y, *running, *gradients, stats.mean, stats.m2)])
    assert found[0] == found[1]


def test_a_mask_is_the_batch_without_what_it_leaves_out(rng):
    """Samples that are left out might as well not be there."""
    x, _, weight, bias, mean, var = drawn(rng, (9, 4, 6), 1, "float32")
    keep = np.array([1, 1, 0, 1, 0, 1, 1, 0, 1], bool)
    running, alone = (mean.copy(), var.copy()), (mean.copy(), var.copy())
    y = fastbn.batch_norm(x, *running, weight, bias, True, mask=keep[:, None, None])
    expected = fastbn.batch_norm(x[keep], *alone, weight, bias, True)
    np.testing.assert_allclose(y[keep], expected, atol=2e-6)
    for one, other in zip(running, alone, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_evaluation_takes_no_statistics(rng):
    x, *_, mean, var = drawn(rng, (5, 4), 1, "float32")
    mask = np.zeros((5, 1), bool)
    y = fastbn.batch_norm(x, mean, var, mask=mask)
    np.testing.assert_array_equal(y, fastbn.batch_norm(x, mean, var))


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 3e38])
def test_what_is_left_out_does_not_count_whatever_it_is(garbage, rng):
    x, *_ = drawn(rng, (8, 3, 4), 1, "float32")
    mask = np.ones((8, 1, 1), bool)
    mask[5:] = False
    x[5:] = garbage
    y = fastbn.batch_norm(x, training=True, mask=mask)
    np.testing.assert_allclose(y[:5], fastbn.batch_norm(x[:5], training=True), atol=1e-6)
    stats, right = fastbn.channel_stats(x, mask=mask), fastbn.channel_stats(x[:5])
    np.testing.assert_allclose(stats.mean, right.mean, rtol=1e-7)
    np.testing.assert_allclose(stats.var(), right.var(), rtol=1e-6)


@pytest.mark.parametrize("mean", [0, 30])
@pytest.mark.parametrize("more", [{}, {"activation": "silu"}], ids=["", "silu"])
def test_nan_in_padding_does_not_reach_the_gradients(more, mean, rng):
    x, dy, weight, bias, *_ = drawn(rng, (8, 3, 4), 1, "float32")
    mask = np.ones((8, 1, 4), bool)
    mask[5:, :, 2:] = False
    there = np.broadcast_to(mask, x.shape)
    dy[~there] = 0  # as a loss that leaves padding out
    how = {"weight": weight, "bias": bias, "training": True, "mask": mask, **more}
    _, cache = fastbn.batch_norm_forward(x + np.float32(mean), **how)
    right = fastbn.batch_norm_backward(dy, cache)
    for garbage in (np.nan, np.inf):
        spoiled = np.where(there, x + np.float32(mean), np.float32(garbage))
        before = spoiled.copy()
        _, cache = fastbn.batch_norm_forward(spoiled, **how)
        found = fastbn.batch_norm_backward(dy, cache)
        for one, other in zip(found, right, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
        np.testing.assert_array_equal(spoiled, before)


@pytest.mark.parametrize("mean", [1e4, -3e6])
def test_values_far_from_zero(mean, rng):
    x = (rng.normal(size=(200, 3)) + mean).astype(np.float32)
    mask = some(rng, (200, 1))
    kept_mean, kept_var, _ = right_statistics(x, mask, 1)
    stats = fastbn.channel_stats(x, mask=mask)
    np.testing.assert_allclose(stats.mean, kept_mean.astype(float), rtol=1e-14)
    np.testing.assert_allclose(stats.var(), kept_var.astype(float), rtol=1e-10)
    constant = np.full((9, 2), np.float32(1234.567))
    bias = np.array([0.25, -3], np.float32)
    y = fastbn.batch_norm(constant, bias=bias, training=True, mask=mask[:9])
    np.testing.assert_array_equal(y, np.broadcast_to(bias, y.shape))


def test_many_values_in_pieces(rng, monkeypatch):
    internals.small_pieces(monkeypatch)
    x = rng.normal(3, 2, (50, 3, 40)).astype(np.float32)
    mask = some(rng, x.shape)
    kept_mean, kept_var, count = right_statistics(x, mask, 1)
    stats = fastbn.channel_stats(x, mask=mask)
    np.testing.assert_array_equal(stats.count, count)
    np.testing.assert_allclose(stats.mean, kept_mean.astype(float), rtol=1e-13)
    np.testing.assert_allclose(stats.var(), kept_var.astype(float), rtol=1e-13)


def test_missing_values(rng):
    x = rng.normal(3, 2, (30, 3)).astype(np.float32)
    x[::4, 0] = np.nan
    x[:, 2] = np.nan
    stats = fastbn.channel_stats(x, skipna=True)
    np.testing.assert_array_equal(stats.count, [22, 30, 0])
    np.testing.assert_allclose(stats.mean, [np.nanmean(x[:, 0].astype(float)), x[:, 1].mean(), 0],
                               rtol=1e-6)  # fmt: skip
    assert np.isnan(stats.var()[2])
    assert np.isnan(fastbn.channel_stats(x).mean[0])
    mask = np.ones((30, 1), bool)
    mask[:15] = False
    both = fastbn.channel_stats(x, mask=mask, skipna=True)
    rest = fastbn.channel_stats(x[15:], skipna=True)
    np.testing.assert_array_equal(both.count, rest.count)
    np.testing.assert_allclose(both.mean, rest.mean, rtol=1e-12)
    np.testing.assert_array_equal(
        fastbn.channel_stats(x[:, :1], skipna=True).merge(fastbn.ChannelStats.empty(1)).count, [22]
    )
    clean = np.nan_to_num(x)
    one, other = fastbn.channel_stats(clean, skipna=True), fastbn.channel_stats(clean)
    np.testing.assert_array_equal(one.m2, other.m2)


def test_masked_arrays(rng):
    """NumPy's say what is left out, and get out as they came in."""
    x, dy, *_ = drawn(rng, (8, 3), 1, "float32")
    kept = some(rng, x.shape)
    array = np.ma.array(x, mask=~kept)
    y, cache = fastbn.batch_norm_forward(array, training=True)
    expected, right = fastbn.batch_norm_forward(x, training=True, mask=kept)
    assert isinstance(y, np.ma.MaskedArray)
    np.testing.assert_array_equal(y.mask, ~kept)
    np.testing.assert_array_equal(y.data, expected)
    np.testing.assert_array_equal(
        fastbn.batch_norm_backward(dy, cache).x, fastbn.batch_norm_backward(dy, right).x
    )
    np.testing.assert_array_equal(fastbn.channel_stats(array).count, kept.sum(axis=0))
    out = np.empty_like(x)
    assert fastbn.batch_norm(array, training=True, out=out) is out
    np.testing.assert_array_equal(out, expected)
    layer = fastbn.BatchNorm1d(3)
    np.testing.assert_allclose(layer(array).data, expected, atol=1e-6)
    served = layer.eval()(array)
    np.testing.assert_array_equal(served.mask, ~kept)
    both = fastbn.channel_stats(array, mask=np.arange(8)[:, None] > 2)
    np.testing.assert_array_equal(both.count, kept[3:].sum(axis=0))
    assert isinstance(fastbn.batch_norm(np.ma.array(x), training=True), np.ma.MaskedArray)


def test_a_layer_with_a_mask(rng):
    x, dy, *_ = drawn(rng, (6, 3, 5), 1, "float32")
    mask = some(rng, (6, 1, 5))
    layer = fastbn.BatchNorm1d(3, on_nonfinite="raise")
    y = layer(x, mask=mask)
    ones, zeros = np.ones(3, np.float32), np.zeros(3, np.float32)
    expected, cache = fastbn.batch_norm_forward(x, None, None, ones, zeros, True, mask=mask)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(layer.backward(dy).x, fastbn.batch_norm_backward(dy, cache).x)
    kept_mean, kept_var, count = right_statistics(x, mask, 1)
    np.testing.assert_allclose(layer.running_mean, 0.1 * kept_mean.astype(float), rtol=1e-6)
    right = 0.9 + 0.1 * (kept_var * count / (count - 1)).astype(float)
    np.testing.assert_allclose(layer.running_var, right, rtol=1e-6)
    x[~np.broadcast_to(mask, x.shape)] = np.nan
    layer(x, mask=mask)  # nothing that counts is NaN
    x[np.broadcast_to(mask, x.shape)] = np.nan
    with pytest.raises(ValueError, match="on_nonfinite is 'raise'"):
        layer(x, mask=mask)
    assert layer.num_batches_tracked == 2


@pytest.mark.parametrize("kind", ["turned", "reversed", "sliced", "in place"])
def test_arrays_of_any_kind(kind, rng):
    x, dy, weight, *_ = drawn(rng, (6, 4, 8), 1, "float32")
    lay = {
        "turned": np.asfortranarray,
        "reversed": lambda a: a[::-1, ::-1].copy()[::-1, ::-1],
        "sliced": lambda a: np.repeat(a, 2, axis=2)[..., ::2],
        "in place": lambda a: a.copy(),
    }
    mask = some(rng, (6, 4, 8))
    how = {"weight": weight, "training": True}
    expected, cache = fastbn.batch_norm_forward(x, mask=mask, **how)
    right = fastbn.batch_norm_backward(dy, cache)
    odd, gradient = lay[kind](x), lay[kind](dy)
    y, cache = fastbn.batch_norm_forward(odd, mask=lay[kind](mask), **how)
    np.testing.assert_allclose(y, expected, atol=1e-6)
    found = fastbn.batch_norm_backward(
        gradient, cache, out=gradient if kind == "in place" else None
    )
    for one, other in zip(found[:2], right[:2], strict=True):
        np.testing.assert_allclose(one, other, atol=3e-6)


@pytest.mark.parametrize(
    ("mask", "error", "says"),
    [
        (np.ones((5, 1)), TypeError, "mask must be a numpy.ndarray of bools.*dtype float64"),
        ([True] * 5, TypeError, "mask must be a numpy.ndarray of bools.*got list"),
        (np.ones(3, bool), ValueError, r"mask has shape \(3,\), expected as many axes as x"),
        (np.ones((4, 1), bool), ValueError, r"mask has shape \(4, 1\), expected as many axes"),
        (np.zeros((5, 1), bool), ValueError, "mask keeps nothing.*~mask, where True marks padding"),
        (np.eye(5, 3, dtype=bool), ValueError, "mask keeps 1 values of channel 0, 1, 2"),
    ],
)
def test_errors_say_what_is_wrong(mask, error, says):
    x, mean, var = np.eye(5, 3, dtype="f4"), np.zeros(3, "f4"), np.ones(3, "f4")
    with pytest.raises(error, match=says):
        fastbn.batch_norm(x, mean, var, training=True, mask=mask)
    assert var.tolist() == [1] * 3
    layer = fastbn.BatchNorm1d(3)
    with pytest.raises(error, match=says):
        layer(x, mask=mask)
    assert layer.num_batches_tracked == 0


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("size", [1e-40, 1e-38, 1e30, 3e36])
def test_gradients_whose_sums_leave_float32(size, axis, rng):
    """Their sums over a channel, or those of their products with x, are out of its range."""
    x, dy, weight, *_ = drawn(rng, (500, 4, 4), axis, "float32")
    keep = np.arange(500) % 4 > 0
    mean, var = reference.mean_and_var(x[keep], axis)
    dy = (np.abs(dy).astype(float) * size).astype(np.float32)
    dy[~keep] = 0  # as a loss that leaves padding out
    right, *_ = reference.backward(dy[keep], x[keep], mean, var, weight, 1e-5, axis, True)
    mask = keep[:, None, None]
    _, cache = fastbn.batch_norm_forward(x, weight=weight, training=True, axis=axis, mask=mask)
    found = fastbn.batch_norm_backward(dy, cache)
    scale = np.abs(right.astype(float)).max()
    assert np.abs(found.x[keep] - right).max() <= 1e-5 * scale + 1e-45
    assert np.isfinite(found.x).all()
