"""ChannelStats: merging in any order gives the statistics of everything together."""

import numpy as np
import pytest

import fastbn
from fastbn import ChannelStats
from tests import internals, reference


def assert_stats(stats, x, axis=1, rtol=1e-12):
    mean, var = reference.mean_and_var(x, axis)
    count = x.size // x.shape[axis]
    np.testing.assert_array_equal(stats.count, np.full(x.shape[axis], count))
    np.testing.assert_allclose(stats.mean, mean.astype(float), rtol=rtol)
    np.testing.assert_allclose(stats.m2, (var * count).astype(float), rtol=rtol)


@pytest.mark.parametrize("cut", [1, 7, 19])
def test_merging_parts_gives_the_whole(cut, rng):
    x = rng.normal(5, 2, (20, 3, 4))
    low, high = ChannelStats.from_array(x[:cut]), ChannelStats.from_array(x[cut:])
    assert_stats(low.merge(high), x)
    assert_stats(high.merge(low), x)


def test_merging_many_files(rng):
    parts = [rng.normal(k, 1 + k, (int(rng.integers(1, 9)), 2)) for k in range(30)]
    stats = ChannelStats.empty(2)
    for part in parts:
        stats = stats.merge(fastbn.channel_stats(part))
    assert_stats(stats, np.concatenate(parts))


def test_empty_is_neutral(rng):
    stats = ChannelStats.from_array(rng.normal(size=(5, 3)))
    for merged in (stats.merge(ChannelStats.empty(3)), ChannelStats.empty(3).merge(stats)):
        for name in ("count", "mean", "m2"):
            np.testing.assert_array_equal(getattr(merged, name), getattr(stats, name))
    nothing = ChannelStats.empty(3).merge(ChannelStats.empty(3))
    np.testing.assert_array_equal(nothing.count, np.zeros(3))
    np.testing.assert_array_equal(nothing.mean, np.zeros(3))


def test_merge_changes_neither(rng):
    a, b = (ChannelStats.from_array(rng.normal(size=(5, 3))) for _ in range(2))
    kept = a.mean.copy(), b.mean.copy()
    a.merge(b)
    np.testing.assert_array_equal((a.mean, b.mean), kept)


def test_variance_and_standard_deviation(rng):
    x = rng.normal(size=(9, 2))
    stats = ChannelStats.from_array(x)
    for ddof in (0, 1, 3):
        np.testing.assert_allclose(stats.var(ddof), x.var(0, ddof=ddof), rtol=1e-12)
        np.testing.assert_allclose(stats.std(ddof), x.std(0, ddof=ddof), rtol=1e-12)


def test_variance_without_degrees_of_freedom_is_nan():
    one = ChannelStats.from_array(np.ones((1, 2)))
    np.testing.assert_array_equal(one.var(), np.zeros(2))
    assert np.isnan(one.var(ddof=1)).all()
    assert np.isnan(ChannelStats.empty(2).std()).all()


def test_empty_input():
    stats = fastbn.channel_stats(np.empty((0, 3, 4), np.float32))
    np.testing.assert_array_equal(stats.count, np.zeros(3))


def test_results_are_float64(rng):
    stats = fastbn.channel_stats(rng.normal(size=(5, 3)).astype(np.float32))
    assert stats.count.dtype == stats.mean.dtype == stats.m2.dtype == np.float64


def test_a_large_view_that_no_kernel_walks_is_read_in_pieces(rng):
    """Without a copy of the whole: its pieces are merged."""
    x = rng.normal(7, 2, (3, 4, 500, 1100)).astype(np.float32)[..., ::2]
    assert x.size > 2 * internals.PIECE
    assert_stats(fastbn.channel_stats(x), x, rtol=1e-6)


def test_merging_keeps_infinity():
    infinite = ChannelStats.from_array(np.array([[np.inf], [1.0]]))
    finite = ChannelStats.from_array(np.array([[1.0], [2.0]]))
    for merged in (infinite.merge(finite), finite.merge(infinite)):
        assert merged.mean[0] == np.inf
        assert np.isnan(merged.m2[0])
