"""Folding at the ends of what numbers can be: extreme channels, other dtypes, odd arrays."""

import copy

import ml_dtypes
import numpy as np
import pytest

import fastbn
from fastbn import fold
from tests import reference_fold
from tests.test_fold import CASES, assert_close, oracle


def extreme(channels=4, dtype=np.float32, **values):
    bn = fastbn.BatchNorm1d(channels, dtype=dtype).eval()
    for name, value in values.items():
        setattr(bn, name, value) if name == "eps" else getattr(bn, name).fill(value)
    return bn


def test_variance_zero(rng):
    """A channel that never changes has eps alone below the root."""
    bn = extreme(running_var=0, eps=1e-12, running_mean=3)
    weight, x = rng.normal(size=(4, 2, 1)).astype(np.float32), rng.normal(size=(5, 2, 9))
    new = fold.fold_conv_bn(weight, None, bn)
    np.testing.assert_allclose(new.weight, weight * np.float64(1e6), rtol=1e-6)
    got = reference_fold.conv(x, *new)
    assert_close(got, oracle(bn, reference_fold.conv(x, weight, None)), np.float32)


def test_weight_zero_after_a_convolution(rng):
    bn = extreme(weight=0, bias=2.5, running_mean=1e30)
    new = fold.fold_conv_bn(rng.normal(size=(4, 2, 3)).astype(np.float32), None, bn)
    np.testing.assert_array_equal(new.weight, 0)
    np.testing.assert_array_equal(new.bias, 2.5)


def test_weight_zero_before_a_convolution_has_no_padding(rng):
    """NaN where the channel is constant and not 0; the rest is exact, without padding."""
    bn = extreme(dtype=np.float64, running_mean=7)
    bn.weight[:], bn.bias[:] = (0, 0, 1, 1e-320), (2, 0, 3, 1)
    weight, x = rng.normal(size=(5, 4, 3)), rng.normal(size=(2, 4, 9))
    new = fold.fold_bn_conv(bn, weight, None)
    np.testing.assert_array_equal(np.isnan(new.padding), [True, False, False, True])
    assert new.padding[1] == 7
    assert bn(np.full((1, 4), new.padding[2]))[0, 2] == pytest.approx(0, abs=1e-15)
    got = reference_fold.conv(x, new.weight, new.bias)
    assert_close(got, reference_fold.conv(bn(x), weight, None), np.float64)


def test_huge_scales(rng):
    bn = extreme(running_var=1e-30, eps=1e-38, weight=1e15, running_mean=5)
    weight = rng.normal(size=(4, 2, 3)).astype(np.float32)
    new = fold.fold_conv_bn(weight, None, bn)
    np.testing.assert_allclose(new.weight, weight * np.float64(1e30), rtol=1e-6)
    bn.weight.fill(1e25)
    with pytest.raises(ValueError, match=r"folded weight does not fit float32.*astype\(np.float64"):
        fold.fold_conv_bn(weight, None, bn)
    with pytest.raises(ValueError, match=r"does not fit float16.*astype\(np.float32"):
        fold.fold_conv_bn(weight.astype(np.float16), None, bn)
    with pytest.raises(ValueError, match="folded bias does not fit"):
        fold.fold_conv_bn(0 * weight, None, bn)


def test_nan_of_the_network_stays_where_it_is(rng):
    bn = extreme()
    bn.running_mean[1] = np.nan
    weight = rng.normal(size=(4, 2, 3)).astype(np.float32)
    weight[2, 0, 0] = np.inf
    new = fold.fold_conv_bn(weight, None, bn)
    np.testing.assert_array_equal(np.isnan(new.bias), [False, True, False, False])
    assert np.isinf(new.weight).sum() == 1


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16])
def test_results_are_rounded_once(dtype, rng):
    """To the nearest, with float64 before it; exact halves included."""
    weight = rng.normal(size=(64, 32, 3)).astype(dtype)
    bn = extreme(64)
    bn.running_var[:] = rng.uniform(0.1, 5, 64)
    new = fold.fold_conv_bn(weight, None, bn)
    assert new.weight.dtype == new.bias.dtype == dtype
    scale = 1 / np.sqrt(bn.running_var.astype(np.float64) + bn.eps)
    exact = weight.astype(np.float64) * scale[:, None, None]
    error = np.abs(new.weight.astype(np.float64) - exact)
    for direction in (-np.inf, np.inf):
        neighbour = np.nextafter(new.weight, dtype(direction)).astype(np.float64)
        assert (error <= np.abs(neighbour - exact)).all()


def test_bfloat16_does_not_go_by_float32(rng):
    """1 + 2**-8 + 2**-40 is above the middle of two bfloat16, in float32 it is the middle."""
    bn = extreme(1, np.float64, eps=1e-300)
    bn.weight[0] = 1 + 2**-8 + 2**-40
    one = np.ones((1, 1, 1), ml_dtypes.bfloat16)
    assert float(fold.fold_conv_bn(one, None, bn).weight[0, 0, 0]) == 1 + 2**-7
    assert float(fold.fold_conv_bn(-one, None, bn).weight[0, 0, 0]) == -1 - 2**-7
    bn.weight[0] = 1 + 2**-8 - 2**-40
    assert float(fold.fold_conv_bn(one, None, bn).weight[0, 0, 0]) == 1


def test_odd_arrays(rng):
    """Read-only, big-endian, strided: results are plain and new."""
    bn = CASES[2].norm(5, rng, np.float32)
    weight = rng.normal(size=(5, 3, 3, 3)).astype(np.float32)
    wanted = fold.fold_conv_bn(weight, None, bn)
    odd = weight.astype(">f4")
    odd.flags.writeable = False
    for other in (odd, np.asfortranarray(weight), np.repeat(weight, 2, 0)[::2]):
        got = fold.fold_conv_bn(other, None, bn)
        np.testing.assert_array_equal(got.weight, wanted.weight)
        assert got.weight.flags.c_contiguous
        assert got.weight.dtype.isnative
    other = fold.fold_conv_bn(weight, None, copy.deepcopy(bn).train())  # the mode does not matter
    np.testing.assert_array_equal(other.weight, wanted.weight)
    last = fastbn.BatchNorm2d(5, axis=-1, eps=bn.eps)
    last.load_state_dict(bn.state_dict())
    np.testing.assert_array_equal(fold.fold_conv_bn(weight, None, last).bias, wanted.bias)
