"""Statistics of integers are exact: against Python's integers and fractions."""

from fractions import Fraction

import numpy as np
import pytest

import fastbn
from fastbn import ChannelStats
from tests import internals

SMALL = ("uint8", "int8", "uint16", "int16")
NAMES = ("count", "mean", "m2", "mean_low", "m2_low", "min", "max", "nan_count")
SHAPES = [((7, 3, 11, 13), 1), ((7, 11, 13, 3), -1), ((301, 4), 1), ((9, 1, 50), 1), ((5, 70), 0),
          ((300, 64), -1), ((2, 3, 41, 1000), 1), ((1, 3), 1), ((600, 5, 7), 1)]  # fmt: skip


def exact(x, axis, kept=None):
    """Mean and m2 of each channel as fractions, and how many values."""
    kept = np.ones(x.shape, bool) if kept is None else np.broadcast_to(kept, x.shape)
    for of_channel, keeps in zip(np.moveaxis(x, axis, 0), np.moveaxis(kept, axis, 0), strict=True):
        values = of_channel[keeps].astype(object)
        n, total, squares = values.size, int(values.sum()), int((values * values).sum())
        yield n, Fraction(total, n), Fraction(n * squares - total * total, n)


def assert_exact(stats, x, axis, kept=None):
    for c, (n, mean, m2) in enumerate(exact(x, axis, kept)):
        assert stats.count[c] == n
        for name, right in (("mean", mean), ("m2", m2)):
            high, low = getattr(stats, name)[c], getattr(stats, f"{name}_low")[c]
            assert high == right.numerator / right.denominator  # which Python rounds once
            rest = right - Fraction(float(high))
            assert low == rest.numerator / rest.denominator


def drawn(rng, dtype, shape, kind):
    info = np.iinfo(dtype)
    if kind == "random":
        return rng.integers(info.min, info.max + 1, shape).astype(dtype)
    if kind == "alternating":
        return np.resize(np.array([info.min, info.max], dtype), shape)
    return np.full(shape, info.max if kind == "largest" else info.min, dtype)


@pytest.mark.parametrize("kind", ["random", "largest", "smallest", "alternating"])
@pytest.mark.parametrize("dtype", SMALL)
def test_every_digit(dtype, kind, rng):
    for shape, axis in SHAPES:
        x = drawn(rng, dtype, shape, kind)
        assert_exact(fastbn.channel_stats(x, axis), x, axis)


@pytest.mark.parametrize("dtype", SMALL)
def test_any_strides_and_byte_order(dtype, rng):
    x = drawn(rng, dtype, (6, 4, 9, 10), "random")
    for view in (x[::-1], x[..., ::-1], x[:, :, ::2, 1::3], x.transpose(2, 1, 0, 3), x[:, ::2],
                 np.asfortranarray(x), np.broadcast_to(x[:1], (5, 4, 9, 10)),
                 x.astype(x.dtype.newbyteorder()), x[:, ::-1]):  # fmt: skip
        assert_exact(fastbn.channel_stats(view), view, 1)


def test_an_image_and_its_large_relatives(rng):
    """More than 2**15 values of 8 bits, which is where sums of 32 bits are full."""
    for shape, axis in (((70_001, 2), 1), ((1, 2, 300, 333), 1), ((1, 300, 333, 3), -1)):
        for kind in ("largest", "random"):
            x = drawn(rng, "uint8", shape, kind)
            stats = fastbn.channel_stats(x, axis)
            n, others = (
                x.size // x.shape[axis],
                tuple(k for k in range(x.ndim) if k != axis % x.ndim),
            )
            total = x.sum(axis=others, dtype=np.int64).tolist()
            squares = (x.astype(np.int64) ** 2).sum(axis=others).tolist()
            assert stats.mean.tolist() == [s / n for s in total]
            pairs = zip(total, squares, strict=True)
            assert stats.m2.tolist() == [(n * q - s * s) / n for s, q in pairs]


def test_masks(rng):
    x = drawn(rng, "int16", (40, 3, 5), "random")
    for mask in (
        rng.random((40, 1, 5)) < 0.5,
        rng.random((40, 3, 5)) < 0.1,
        np.ones((1, 1, 1), bool),
    ):
        mask[0] = True
        assert_exact(fastbn.channel_stats(x, mask=mask, skipna=True), x, 1, mask)
    hidden = np.ma.array(x, mask=~np.broadcast_to(mask, x.shape))
    assert_exact(fastbn.channel_stats(hidden), x, 1)
    nothing = fastbn.channel_stats(x, mask=np.zeros((40, 1, 5), bool))
    np.testing.assert_array_equal([nothing.count, nothing.mean, nothing.m2], np.zeros((3, 3)))


def test_a_mask_in_pieces(rng, monkeypatch):
    internals.small_copies(monkeypatch)
    x = drawn(rng, "uint16", (64, 3, 20), "random")
    mask = rng.random((64, 1, 20)) < 0.5
    assert_exact(fastbn.channel_stats(x, mask=mask), x, 1, mask)
    assert_exact(fastbn.channel_stats(x[..., ::-1]), x, 1)


def test_a_call_takes_no_more_than_its_sums_hold(rng, monkeypatch):
    """Arrays with more values of a channel go in halves."""
    internals.sum_at_most(monkeypatch, 100)
    x = drawn(rng, "uint16", (64, 3, 20), "largest")
    calls = internals.count_launches(monkeypatch)
    assert_exact(fastbn.channel_stats(x), x, 1)
    assert len(calls) == 16


def test_merging_gives_the_whole_exactly(rng):
    x = drawn(rng, "uint8", (60, 3, 7), "random")
    whole = fastbn.channel_stats(x)
    cut = sum(fastbn.channel_stats(x[k : k + 7]) for k in range(0, 60, 7))
    for name in ("count", "mean", "m2"):
        np.testing.assert_array_equal(getattr(cut, name), getattr(whole, name))


def test_threads_change_no_bit(rng):
    x = drawn(rng, "int16", (40, 8, 30, 31), "random")
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    one, all_of_them = [], []
    with internals.threads_put_back():
        for threads, found in ((1, one), (2, all_of_them)):
            fastbn.set_num_threads(threads)
            for array, axis in ((x, 1), (last, -1)):
                stats = fastbn.channel_stats(array, axis, extremes=True)
                found.append([getattr(stats, name).tolist() for name in NAMES])
    assert one == all_of_them
    assert one[0] == one[1]


def test_other_integers_are_refused():
    for dtype, way in (("int32", "astype"), ("uint64", "astype"), ("bool", "view")):
        with pytest.raises(TypeError, match=f"uint8.*{dtype}.*{way}"):
            fastbn.channel_stats(np.ones((2, 3), dtype))
    with pytest.raises(TypeError, match=r"fastbn\.standardize"):
        fastbn.batch_norm(np.ones((2, 3), np.uint8), training=True)


def test_empty_images():
    stats = ChannelStats.from_array(np.empty((0, 3, 4), np.uint8), extremes=True)
    np.testing.assert_array_equal(stats.count, np.zeros(3))
    np.testing.assert_array_equal(stats.min, np.full(3, np.inf))
