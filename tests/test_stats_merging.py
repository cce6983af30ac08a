"""Sums of statistics keep every digit; they are saved and read without a loss."""

import json
import os
import pickle
from fractions import Fraction

import numpy as np
import pytest

import fastbn
from fastbn import ChannelStats

NAMES = ("count", "mean", "m2", "mean_low", "m2_low")


def merged_exactly(one, other):
    """Count, mean and m2 of both as fractions."""
    n = one[0] + other[0]
    delta = other[1] - one[1]
    return n, one[1] + delta * other[0] / n, one[2] + other[2] + delta**2 * one[0] * other[0] / n


def rounded(value):
    return value.numerator / value.denominator


def blocks(rng, number, channels, size):
    """Statistics of blocks with huge counts, far from zero, and their sums exactly."""
    for _ in range(number):
        count = np.full(channels, float(size))
        mean = 1e4 + rng.normal(0, 1e-3, channels)
        yield ChannelStats(count, mean, count * rng.random(channels))


def test_the_last_digit_is_right_after_many_merges(rng):
    """10**12 values a channel in 2000 blocks."""
    total, right = 0, [(0, Fraction(0), Fraction(0))] * 3
    for block in blocks(rng, 2000, 3, 500_000_000):
        total = total + block
        for c in range(3):
            added = (int(block.count[c]), Fraction(float(block.mean[c])),
                     Fraction(float(block.m2[c])))  # fmt: skip
            right[c] = added if right[c][0] == 0 else merged_exactly(right[c], added)
            n, mean, m2 = right[c]
            # the reference in 300 bits, or its fractions would grow without an end
            right[c] = n, *(Fraction(round(v * 2**300), 2**300) for v in (mean, m2))
    for c, (n, mean, m2) in enumerate(right):
        assert (total.count[c], total.mean[c], total.m2[c]) == (n, rounded(mean), rounded(m2))


@pytest.mark.compiled
def test_a_million_blocks(rng):
    """A tree of merges of a million blocks side by side, as channels."""
    number = 1 << 20
    values = rng.integers(0, 256, (number, 3))
    stats = ChannelStats(np.ones(3 * number), values.ravel(), np.zeros(3 * number))
    while stats.count.size > 3:
        parts = []
        for half in (slice(None, stats.count.size // 2), slice(stats.count.size // 2, None)):
            arrays = {name: getattr(stats, name)[half] for name in NAMES}
            parts.append(ChannelStats(**arrays))
        stats = parts[0] + parts[1]
    for c in range(3):
        total, squares = int(values[:, c].sum()), int((values[:, c] ** 2).sum())
        assert stats.mean[c] == total / number
        assert stats.m2[c] == (number * squares - total**2) / number


def test_sum_begins_with_zero(rng):
    parts = [fastbn.channel_stats(rng.normal(size=(5, 2))) for _ in range(4)]
    total = sum(parts)
    right = parts[0].merge(parts[1]).merge(parts[2]).merge(parts[3])
    for name in NAMES:
        np.testing.assert_array_equal(getattr(total, name), getattr(right, name))


@pytest.mark.parametrize("other", [1, 0.0, None, "a", np.zeros(2), np.float64(1), False])
def test_nothing_else_is_added(other):
    stats = ChannelStats.empty(2)
    with pytest.raises(TypeError):
        stats + other
    with pytest.raises(TypeError):
        other + stats


def test_extremes_are_merged_if_both_are_known(rng):
    x = rng.normal(size=(20, 3))
    x[3, 1] = np.nan
    known = [fastbn.channel_stats(x[some], extremes=True) for some in (slice(9), slice(9, None))]
    both, whole = known[0] + known[1], fastbn.channel_stats(x, extremes=True)
    for name in ("min", "max", "nan_count"):
        np.testing.assert_array_equal(getattr(both, name), getattr(whole, name))
        same = getattr(both + ChannelStats.empty(3), name)
        np.testing.assert_array_equal(same, getattr(whole, name))
        assert getattr(both + fastbn.channel_stats(x), name) is None


@pytest.mark.parametrize("mean", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite(mean):
    spoiled, plain = ChannelStats([3], [mean], [np.nan]), ChannelStats([2], [1.0], [2.0])
    for total in (spoiled + plain, plain + spoiled):
        np.testing.assert_array_equal(total.mean, [mean])
        assert np.isnan(total.m2[0])
        np.testing.assert_array_equal(total.m2_low, [0])
    unlike = ChannelStats([3], [np.inf], [np.nan]) + ChannelStats([3], [-np.inf], [np.nan])
    assert np.isnan(unlike.mean[0])
    empty = ChannelStats.empty(1)
    for total in (spoiled + empty, empty + spoiled):
        np.testing.assert_array_equal([total.mean, total.m2], [spoiled.mean, spoiled.m2])


def test_numbers_at_the_ends_of_the_range():
    """Where twice the digits have no room, float64's remain."""
    large = ChannelStats([2.0], [1e305], [1e300]) + ChannelStats([2.0], [1e305], [0.0])
    np.testing.assert_allclose([large.mean, large.m2], [[1e305], [1e300]])
    small = ChannelStats([1.0], [1e-320], [0.0]) + ChannelStats([1.0], [3e-320], [0.0])
    np.testing.assert_allclose([small.mean, small.m2], [[2e-320], [0.0]], rtol=1e-3)


# --- fields, repr, pickles ------------------------------------------------------------------------


def test_fields_are_checked():
    stats = ChannelStats([1], [2], [3])
    np.testing.assert_array_equal([stats.mean_low, stats.m2_low], np.zeros((2, 1)))
    assert stats.min is stats.max is stats.nan_count is None
    assert stats.count.dtype == stats.m2_low.dtype == np.float64
    with pytest.raises(ValueError, match="m2_low"):
        ChannelStats([1], [2], [3], m2_low=[1, 2])
    with pytest.raises(ValueError, match="max"):
        ChannelStats([1], [2], [3], max=[[1]])


def test_repr():
    stats = ChannelStats([4, 4], [0.5, 0.25], [4, 1])
    assert repr(stats) == "ChannelStats(channels=2, count=4, mean=[0.5 , 0.25], std=[1. , 0.5])"
    many = repr(ChannelStats(np.arange(500), np.arange(500), np.ones(500)))
    assert "channels=500" in many
    assert "..." in many
    assert "\n" not in many
    assert len(many) < 300
    assert "channels=0" in repr(ChannelStats.empty(0))


def test_pickles_also_of_three_fields():
    stats = fastbn.channel_stats(np.arange(12, dtype=np.uint8).reshape(4, 3), extremes=True)
    for name in (*NAMES, "min"):
        same = getattr(pickle.loads(pickle.dumps(stats)), name)
        np.testing.assert_array_equal(same, getattr(stats, name))
    old = ChannelStats.__new__(ChannelStats)
    old.__setstate__({name: getattr(stats, name) for name in ("count", "mean", "m2")})
    np.testing.assert_array_equal(old.mean_low, np.zeros(3))
    assert old.min is None
    np.testing.assert_array_equal((old + old).mean, stats.mean)


def test_arrays_of_the_caller_are_copied():
    given = [np.ones(2) for _ in range(8)]
    names = "mean_low", "m2_low", "min", "max", "nan_count"
    stats = ChannelStats(*given[:3], **dict(zip(names, given[3:], strict=True)))
    for array in given:
        array[...] = 7
    for name in ("count", "mean", "m2", *names):
        np.testing.assert_array_equal(getattr(stats, name), [1, 1])


def test_sums_begin_with_nothing_where_types_are_checked():
    parts = [ChannelStats([1], [2], [3]), ChannelStats([1], [4], [3])]
    assert sum(parts, ChannelStats.empty(1)).mean == sum(parts).mean == [3]


# --- files ----------------------------------------------------------------------------------------


def odd():
    return ChannelStats(
        [3.0, 1e15, 0, 5e-324], [0.1, np.inf, np.nan, -0.0], [np.nan, 1 / 3, 1e308, 0],
        mean_low=[1e-18, 0, 0, 0], m2_low=[0, -1e-17, 0, 0], min=[-np.inf, 0, 1, np.inf],
        max=[1, 2, 3, -np.inf], nan_count=[0, 1, 2, 3],
    )  # fmt: skip


@pytest.mark.parametrize("suffix", [".npz", ".json", ".JSON"])
def test_files_keep_every_bit(suffix, tmp_path):
    for stats in (odd(), ChannelStats([1], [2], [3]), ChannelStats.empty(0)):
        stats.save(tmp_path / f"a{suffix}")
        found = ChannelStats.load(str(tmp_path / f"a{suffix}"))
        for name in (*NAMES, "min", "max", "nan_count"):
            one, other = getattr(stats, name), getattr(found, name)
            if one is None:
                assert other is None
            else:
                assert one.tobytes() == other.tobytes()
    assert os.listdir(tmp_path) == [f"a{suffix}"]


def test_json_is_json(tmp_path):
    odd().save(tmp_path / "a.json")
    content = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
    assert content["version"] == 1
    assert content["mean"][:3] == [0.1, "inf", "nan"]


@pytest.mark.parametrize(
    ("suffix", "module", "name"),
    [
        (".npz", np, "savez"),
        (".npz", os, "replace"),
        (".json", json, "dumps"),
        (".json", os, "replace"),
    ],
)
def test_a_file_is_replaced_wholly_or_not_at_all(suffix, module, name, tmp_path, monkeypatch):
    def full(*arguments, **keywords):
        raise OSError("full")

    path = tmp_path / f"a{suffix}"
    ChannelStats([1], [2], [3]).save(path)
    before = path.read_bytes()
    monkeypatch.setattr(module, name, full)
    with pytest.raises(OSError, match="full"):
        odd().save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_paths_are_checked(tmp_path):
    for path in ("a.txt", "a", "a.pkl"):
        for call in (odd().save, ChannelStats.load):
            with pytest.raises(ValueError, match=r"\.npz or \.json"):
                call(tmp_path / path)
    for call in (odd().save, ChannelStats.load):
        with pytest.raises(TypeError, match="path"):
            call(3)
    with pytest.raises(FileNotFoundError, match="folder"):
        odd().save(tmp_path / "nowhere" / "a.npz")
    with pytest.raises(FileNotFoundError, match="no file"):
        ChannelStats.load(tmp_path / "a.npz")
    (tmp_path / "b.npz").mkdir()
    with pytest.raises(ValueError, match="no file"):
        ChannelStats.load(tmp_path / "b.npz")


def test_foreign_and_damaged_files(tmp_path):
    good = {"format": "fastbn.ChannelStats", "version": 1,
            **{name: [1.0] for name in NAMES}}  # fmt: skip
    bad = [
        {**good, "format": "other"}, {**good, "version": 2}, {**good, "version": "x"}, [1], 3, {},
        {**good, "mean": [1.0, 2.0]}, {**good, "mean": 3}, {**good, "mean": ["abc"]},
        {**good, "mean": [True]}, {**good, "mean": [[1.0]]}, {**good, "mean": [None]},
        {name: value for name, value in good.items() if name != "m2"}, {**good, "count": 1},
        {**good, "mean": [10**400]}, {**good, "count": [-1.0]}, {**good, "count": ["nan"]},
        {**good, "count": ["inf"]}, {**good, "nan_count": [-1.0]}, {**good, "nan_count": ["nan"]},
    ]  # fmt: skip
    path = tmp_path / "a.json"
    for content in bad:
        path.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"a\.json"):
            ChannelStats.load(path)
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"a\.json"):
        ChannelStats.load(path)
    path.write_text(json.dumps(good))
    assert ChannelStats.load(path).mean == [1.0]
    path = tmp_path / "a.npz"
    odd().save(path)
    whole = path.read_bytes()
    for content in (
        b"",
        b"PK",
        whole[: len(whole) // 2],
        pickle.dumps(3),
        whole.replace(b"<f8", b"|O8"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.npz"):
            ChannelStats.load(path)
    np.savez(path, a=np.ones(3))
    with pytest.raises(ValueError, match="no file of"):
        ChannelStats.load(path)
    np.savez_compressed(path, format="fastbn.ChannelStats", count=np.zeros(100_000))
    with pytest.raises(ValueError, match="unpacks"):
        ChannelStats.load(path)
