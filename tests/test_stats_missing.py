"""Statistics without NaN, and the smallest and largest values."""

import ml_dtypes
import numpy as np
import pytest

import fastbn
from tests import internals

FLOATS = ("float16", "bfloat16", "float32", "float64")
SHAPES = [((40, 3, 5, 7), 1), ((40, 5, 7, 3), -1), ((300, 4), 1), ((50, 1), 1), ((7, 300), 0),
          ((5, 64, 33), 1), ((700, 64), -1)]  # fmt: skip


def dtype_of(name):
    return np.dtype(getattr(ml_dtypes, name, name))


def drawn(rng, dtype, shape, axis=1, share=0.1, mean=30.0):
    x = rng.normal(mean, 2, shape)
    x[rng.random(shape) < share] = np.nan
    np.moveaxis(x, axis, 0)[0][...] = np.nan_to_num(np.moveaxis(x, axis, 0)[0], nan=mean)
    return x.astype(dtype_of(dtype))


def others(x, axis):
    return tuple(k for k in range(x.ndim) if k != axis % x.ndim)


def assert_stats(stats, x, axis=1, rtol=1e-5, mask=True):
    """Against NumPy in float64, where NaN and masked values are left out."""
    values, axes = x.astype(np.float64), others(x, axis)
    there = np.broadcast_to(mask, x.shape) & ~np.isnan(values)
    count = there.sum(axes)
    np.testing.assert_array_equal(stats.count, count)
    mean = np.where(there, values, 0).sum(axes) / np.maximum(count, 1)
    deviations = values - np.expand_dims(mean, axes)
    m2 = (np.where(there, deviations, 0) ** 2).sum(axes)
    np.testing.assert_allclose(stats.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(stats.m2, m2, rtol=rtol)


@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
def test_missing_values(dtype, pieces, rng, monkeypatch):
    if pieces:
        internals.small_copies(monkeypatch)
    for shape, axis in SHAPES:
        for share in (0.01, 0.5, 0.97):
            x = drawn(rng, dtype, shape, axis, share)
            assert_stats(fastbn.channel_stats(x, axis, skipna=True), x, axis)


def test_any_strides(rng, monkeypatch):
    internals.small_copies(monkeypatch)
    x = drawn(rng, "float32", (12, 4, 18, 10))
    for view in (x[::-1], x[..., ::-1], x[:, :, ::2, 1::3], x.transpose(2, 1, 0, 3), x[:, ::2],
                 np.asfortranarray(x), np.broadcast_to(x[:1], (5, 4, 18, 10)),
                 x.astype(x.dtype.newbyteorder())):  # fmt: skip
        assert_stats(fastbn.channel_stats(view, skipna=True), view)


def test_one_nan_where_no_sample_sees_it(rng):
    """The plain statistics say that there is one; channels without NaN keep their bits."""
    x = rng.normal(3, 1, (5000, 4)).astype(np.float32)
    plain = fastbn.channel_stats(x)
    x[1234, 2] = np.nan
    found = fastbn.channel_stats(x, skipna=True)
    assert_stats(found, x)
    clean = [0, 1, 3]
    for name in ("count", "mean", "m2"):
        np.testing.assert_array_equal(getattr(found, name)[clean], getattr(plain, name)[clean])


def test_without_nan_it_is_the_plain_way(rng, monkeypatch):
    x = rng.normal(size=(50, 3)).astype(np.float32)
    right = fastbn.channel_stats(x)
    launched = internals.count_launches(monkeypatch)
    found = fastbn.channel_stats(x, skipna=True)
    np.testing.assert_array_equal(found.m2, right.m2)
    assert not launched


@pytest.mark.parametrize("late", [False, True])
def test_infinity_is_no_nan(late, rng):
    """It stays in the statistics, as in the plain ones."""
    x = rng.normal(size=(3000, 4)).astype(np.float32)
    place = 1500 if late else 0
    x[place, 0] = np.inf
    x[place, 1], x[place + 1, 1] = np.inf, -np.inf
    x[place + 2, 2], x[place, 2] = np.nan, -np.inf
    plain, found = fastbn.channel_stats(x), fastbn.channel_stats(x, skipna=True)
    np.testing.assert_array_equal(found.count, [3000, 3000, 2999, 3000])
    np.testing.assert_array_equal(found.mean[[0, 1, 2]], [np.inf, np.nan, -np.inf])
    np.testing.assert_array_equal(plain.mean[[0, 1]], found.mean[[0, 1]])
    assert np.isnan(found.m2[:3]).all()
    np.testing.assert_allclose(found.m2[3], plain.m2[3], rtol=1e-6)


def test_fillings_far_from_the_mean_cost_no_digits(rng):
    """The first value is an outlier, the mean is far from zero, or everything moves."""
    n = 4000
    outlier = rng.normal(1e4, 1, (n, 1))
    outlier[0], outlier[1::2] = -1e9, np.nan
    moving = np.repeat([0.0, 1e4, -3e4, 5.0], n // 4)[:, None] + rng.normal(0, 0.1, (n, 1))
    moving[rng.random((n, 1)) < 0.9] = np.nan
    hidden = np.full((n, 1), np.nan)
    hidden[n // 2 + 7 :: 13] = rng.normal(1e4, 1, hidden[n // 2 + 7 :: 13].shape)
    x = np.concatenate([outlier, moving, hidden], axis=1)
    for dtype in (np.float32, np.float64):
        assert_stats(fastbn.channel_stats(x.astype(dtype), skipna=True), x.astype(dtype))


def test_a_constant_has_no_variance():
    x = np.full((500, 2), 0.1, np.float32)
    x[::3, 0] = np.nan
    stats = fastbn.channel_stats(x, skipna=True)
    np.testing.assert_array_equal(stats.m2, [0, 0])
    np.testing.assert_array_equal(stats.mean, np.full(2, np.float32(0.1)))


@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_constant_that_is_mostly_missing_has_no_variance(dtype, pieces, rng, monkeypatch):
    """Wherever it stands, and though the first filling is no value of it."""
    if pieces:
        internals.small_copies(monkeypatch)
    for n in (500, 3000):
        values = (rng.normal(size=16) * 10.0 ** np.arange(-4, 4).repeat(2)).astype(dtype_of(dtype))
        for share in (0.5, 0.95, 0.995):
            x = np.broadcast_to(values, (n, 16)).copy()
            x[rng.random(x.shape) < share] = np.nan
            x[n // 2 + 3] = values
            x[:: max(1, n // 64)] = np.nan  # what a sample sees
            stats = fastbn.channel_stats(x, skipna=True)
            np.testing.assert_array_equal(stats.m2, np.zeros(16))
            np.testing.assert_array_equal(stats.mean, values.astype(np.float64))


def test_far_fillings_cost_no_digits_of_float64(rng):
    n = 4000
    x = rng.normal(1.0, 1e-3, (n, 8)) * 10.0 ** np.arange(-3, 5)
    x[rng.random(x.shape) < 0.9] = np.nan
    x[:: n // 64] = np.nan
    stats = fastbn.channel_stats(x, skipna=True)
    mean = np.nanmean(x.astype(np.longdouble), axis=0)
    m2 = np.nansum((x.astype(np.longdouble) - mean) ** 2, axis=0)
    np.testing.assert_allclose(stats.mean, mean.astype(np.float64), rtol=5e-15)
    np.testing.assert_allclose(stats.m2, m2.astype(np.float64), rtol=1e-12)


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_float64_keeps_the_digits_of_a_mean_far_from_zero(share, rng):
    """As many as without NaN."""
    x = rng.normal(1e6, 1, (4000, 3))
    x[rng.random(x.shape) < share] = np.nan
    stats, columns = fastbn.channel_stats(x, skipna=True), x.astype(np.longdouble).T
    for c, column in enumerate(columns):
        values = column[~np.isnan(column)]
        np.testing.assert_allclose(stats.mean[c], float(values.mean()), rtol=4e-16)
        m2 = float(((values - values.mean()) ** 2).sum())
        np.testing.assert_allclose(stats.m2[c], m2, rtol=1e-12)


def test_float64_so_large_that_nothing_is_taken_away():
    x = np.array([[1.7e300, 1e300, np.nan, 1.2e300, np.nan]] * 200).reshape(-1, 1)
    stats = fastbn.channel_stats(x, skipna=True)
    np.testing.assert_allclose(stats.mean, 1.3e300, rtol=1e-15)


def test_nothing_is_left():
    stats = fastbn.channel_stats(np.full((70, 2), np.nan, np.float32), skipna=True, extremes=True)
    np.testing.assert_array_equal([stats.count, stats.mean, stats.m2], np.zeros((3, 2)))
    np.testing.assert_array_equal(stats.min, [np.inf] * 2)
    np.testing.assert_array_equal(stats.max, [-np.inf] * 2)
    np.testing.assert_array_equal(stats.nan_count, [70, 70])


# --- extremes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*FLOATS, "uint8", "int8", "uint16", "int16"])
def test_extremes(dtype, rng):
    for shape, axis in SHAPES:
        kind = dtype_of(dtype)
        x = drawn(rng, dtype, shape, axis, mean=0.0) if dtype in FLOATS else rng.integers(
            np.iinfo(kind).min, np.iinfo(kind).max, shape, endpoint=True).astype(kind)  # fmt: skip
        mask = np.ones([n if k == 0 else 1 for k, n in enumerate(shape)], bool)
        mask[:2] = False
        for kept in (None, mask):
            for skipna in (False, True):
                stats = fastbn.channel_stats(x, axis, mask=kept, skipna=skipna, extremes=True)
                there = np.broadcast_to(True if kept is None else kept, shape)
                values, axes = x.astype(np.float64), others(x, axis)
                nan = np.isnan(values) & there
                low = np.where(there & ~nan, values, np.inf).min(axes)
                high = np.where(there & ~nan, values, -np.inf).max(axes)
                np.testing.assert_array_equal(stats.min, low)
                np.testing.assert_array_equal(stats.max, high)
                np.testing.assert_array_equal(stats.nan_count, nan.sum(axes))
                right = fastbn.channel_stats(x, axis, mask=kept, skipna=skipna)
                np.testing.assert_array_equal(stats.m2, right.m2)
                assert right.min is right.max is right.nan_count is None


def test_extremes_of_infinities_zeros_and_odd_nan():
    x = np.zeros((6, 4), np.float32)
    x[:, 0] = [np.inf, 1, -np.inf, np.nan, 2, -np.nan]
    x[:, 1] = [-0.0, 0.0, np.nan, 1e-45, -1e-45, 0.0]
    x[:, 2] = np.array([0x7FFFFFFF, -1, 0x7F800001, -0x7FFFFF, 0, 0], np.int32).view(np.float32)
    x[:, 3] = [np.inf] * 6
    stats = fastbn.channel_stats(x, extremes=True)
    np.testing.assert_array_equal(stats.min, np.float32([-np.inf, -1e-45, 0, np.inf]))
    np.testing.assert_array_equal(stats.max, np.float32([np.inf, 1e-45, 0, np.inf]))
    np.testing.assert_array_equal(stats.nan_count, [2, 1, 4, 0])


def test_extremes_of_views(rng, monkeypatch):
    internals.small_copies(monkeypatch)
    x = drawn(rng, "float64", (12, 4, 18, 10))
    for view in (x[::-1], x[..., ::-1], x[:, :, ::2, 1::3], np.broadcast_to(x[:1], (5, 4, 18, 10)),
                 x.astype(x.dtype.newbyteorder())):  # fmt: skip
        stats = fastbn.channel_stats(view, extremes=True)
        np.testing.assert_array_equal(stats.min, np.nanmin(view, axis=(0, 2, 3)))
        np.testing.assert_array_equal(stats.nan_count, np.isnan(view).sum(axis=(0, 2, 3)))


def test_arguments_are_checked():
    x = np.ones((3, 2), np.float32)
    for name in ("skipna", "extremes"):
        with pytest.raises(TypeError, match=name):
            fastbn.channel_stats(x, **{name: 1})
