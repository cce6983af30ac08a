"""What is said of small batches is what happens."""

import math

import numpy as np
import pytest

import fastbn
from fastbn import small_batch_report

#: Layer, shape, values, samples, whether that is too large.
CASES = [
    (fastbn.BatchNorm1d(5), (32, 5), 32, 32, False),
    (fastbn.BatchNorm1d(5), (9, 5), 9, 9, False),
    (fastbn.BatchNorm1d(5), (8, 5), 8, 8, True),
    (fastbn.BatchNorm1d(5), (1, 5), 1, 1, True),
    (fastbn.BatchNorm1d(5, axis=-1), (3, 7, 5), 21, 3, True),
    (fastbn.BatchNorm2d(5), (2, 5, 3, 4), 24, 2, True),
    (fastbn.BatchNorm2d(5), [16, 5, 3, 4], 192, 16, False),
    (fastbn.BatchNorm2d(5), (5, 3, 4), 12, 1, True),
    (fastbn.BatchNorm3d(5, axis=-1), (2, 2, 3, 4, 5), 48, 2, True),
    (fastbn.BatchNorm1d(5, virtual_batch_size=16), (32, 5), 16, 16, False),
    (fastbn.BatchNorm1d(5, virtual_batch_size=16), (33, 5), 16, 16, False),
    (fastbn.BatchNorm1d(5, virtual_batch_size=16), (34, 5), 2, 2, True),
    (fastbn.BatchNorm1d(5, virtual_batch_size=4), (32, 5, 2), 8, 4, True),
    (fastbn.BatchNorm2d(5, virtual_batch_size=4), (5, 3, 4), 12, 1, True),
    (fastbn.BatchRenorm2d(5), (2, 5, 3, 4), 24, 2, False),
    (fastbn.InstanceNorm2d(5), (2, 5, 3, 4), 12, 1, False),
    (fastbn.InstanceNorm2d(5, track_running_stats=True), (5, 3, 4), 12, 1, False),
    (fastbn.GroupNorm(2, 4), (2, 4, 3), 6, 1, False),
    (fastbn.GroupNorm(2, 4, axis=-1), (2, 3, 3, 4), 18, 1, False),
    (fastbn.LayerNorm((3, 4)), (2, 7, 3, 4), 12, 1, False),
    (fastbn.GroupNorm(64, 64), (2, 64), 1, 1, True),
    (fastbn.GroupNorm(1, 1), (2, 1), 1, 1, True),
    (fastbn.InstanceNorm1d(4), (2, 4, 1), 1, 1, True),
    (fastbn.LayerNorm(1), (2, 4, 1), 1, 1, True),
]


@pytest.mark.parametrize(("layer", "shape", "values", "samples", "too_large"), CASES, ids=str)
def test_what_is_counted(layer, shape, values, samples, too_large):
    report = small_batch_report(layer, shape)
    assert isinstance(report, fastbn.SmallBatchReport)
    assert report.layer == type(layer).__name__
    assert (report.values, report.samples, report.too_large) == (values, samples, too_large)
    assert report.mean_error == pytest.approx(1 / math.sqrt(values))
    expected = math.sqrt(2 / (values - 1)) if values > 1 else math.inf
    assert report.var_error == pytest.approx(expected)
    assert report.mean_error <= report.mean_error_at_most
    assert report.var_error <= report.var_error_at_most
    assert bool(report.instead) == too_large
    text = str(report)
    assert text.startswith(f"{report.layer} takes each mean and variance of {values} value")
    assert ("That is too large. Instead: " in text) == too_large
    assert text.endswith(".")
    assert "\n" not in text
    for way in report.instead:
        assert way in text


def test_the_standard_errors_are_those_of_normal_values(rng):
    for count in (2, 8, 50):
        x = rng.normal(3, 2, (count, 40_000))
        stats = fastbn.channel_stats(x)
        report = small_batch_report(fastbn.BatchNorm1d(1), (count, 1))
        assert stats.mean.std() / 2 == pytest.approx(report.mean_error, rel=0.02)
        assert (stats.var(ddof=1) / 4).std() == pytest.approx(report.var_error, rel=0.03)


def test_the_truth_is_between_for_positions_that_are_alike(rng):
    """Sums of a value of the sample and one of the position: half of the variance each."""
    shape = 4, 20_000, 6
    x = rng.normal(size=shape[:2])[..., None] + rng.normal(size=shape)
    stats = fastbn.channel_stats(x)
    report = small_batch_report(fastbn.BatchNorm1d(1), (4, 1, 6))
    found = stats.mean.std() / math.sqrt(2)
    assert report.mean_error * 1.2 < found < report.mean_error_at_most / 1.2


def test_what_to_take_instead():
    ways = small_batch_report(fastbn.BatchNorm2d(5), (2, 5, 3, 4)).instead
    for name in ("GroupNorm", "LayerNorm", "BatchRenorm2d", "freeze()", "reset_running_stats()"):
        assert any(name in way for way in ways)
    ghost = fastbn.BatchNorm2d(5, virtual_batch_size=2)
    assert (
        "a larger virtual_batch_size than 2" in small_batch_report(ghost, (16, 5, 2, 2)).instead[0]
    )
    assert small_batch_report(ghost, (4, 5, 2, 2)).instead == ways  # a larger one would not help
    assert "r_max and d_max" in str(small_batch_report(fastbn.BatchRenorm1d(5), (2, 5)))
    assert "does not depend on the batch" in str(small_batch_report(fastbn.LayerNorm(5), (2, 5)))


def test_one_value_of_a_sample():
    """It has no variance: such a call is an error, or gives nothing but the bias."""
    ones = np.ones((2, 64), np.float32)
    report = small_batch_report(fastbn.GroupNorm(64, 64), ones.shape)
    assert "fewer groups" in report.instead[0]
    assert "does not depend" not in str(report)
    with pytest.raises(ValueError, match="more than 1 value"):
        fastbn.GroupNorm(64, 64)(ones)
    assert not small_batch_report(fastbn.GroupNorm(32, 64), ones.shape).too_large
    assert "fewer groups" not in str(small_batch_report(fastbn.GroupNorm(1, 1), (2, 1)))
    assert "GroupNorm" in small_batch_report(fastbn.InstanceNorm1d(4), (2, 4, 1)).instead[0]
    assert "normalized_shape" in small_batch_report(fastbn.LayerNorm(1), (2, 1)).instead[0]


def test_when_renorm_begins_to_correct():
    says = "nothing is corrected for 5,000 steps"
    ways = small_batch_report(fastbn.BatchNorm2d(5), (2, 5, 3, 4)).instead
    (way,) = (way for way in ways if "BatchRenorm2d" in way)
    for name in (says, "r_max", "d_max", "Ramp"):
        assert name in way
    assert says in str(small_batch_report(fastbn.BatchRenorm2d(5), (2, 5, 3, 4)))
    short = {"r_max": fastbn.Ramp(1, 3, 100, 1000), "d_max": 1.0}
    assert says not in str(small_batch_report(fastbn.BatchRenorm2d(5, **short), (2, 5, 3, 4)))


def test_it_does_not_look_at_arrays_and_changes_nothing():
    bn = fastbn.BatchNorm1d(5).eval()
    before = bn.state_dict()
    assert small_batch_report(bn.freeze(), np.zeros((4, 5)).shape).too_large
    for name, value in bn.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize(
    ("layer", "shape", "error", "says"),
    [
        (fastbn.BatchNorm2d(5), (2, 4, 3, 3), ValueError, "num_features=5"),
        (fastbn.BatchNorm2d(5), (2, 5), ValueError, r"BatchNorm2d expects"),
        (fastbn.BatchNorm2d(5), (0, 5, 3, 3), ValueError, "must be of positive integers"),
        (fastbn.BatchNorm2d(5), (), ValueError, "must be of positive integers"),
        (fastbn.BatchNorm2d(5), (2.0, 5, 3, 3), TypeError, "shape must be a tuple of integers"),
        (fastbn.BatchNorm2d(5), "2533", TypeError, "shape must be a tuple of integers"),
        (fastbn.BatchNorm2d(5), np.zeros((2, 5, 3, 3)), TypeError, r"pass x\.shape"),
        (fastbn.GroupNorm(2, 4), (2, 6, 3), ValueError, "num_channels=4"),
        (fastbn.LayerNorm((3, 4)), (2, 4), ValueError, "end with its normalized_shape"),
        (fastbn.RMSNorm(4), (2, 4), TypeError, "that takes means and variances.*got RMSNorm"),
        (None, (2, 4), TypeError, "got NoneType"),
    ],
)
def test_errors_say_what_is_wrong(layer, shape, error, says):
    with pytest.raises(error, match=says):
        small_batch_report(layer, shape)
