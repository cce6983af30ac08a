"""A folded network gives what the network gives: every kind of convolution, both directions."""

from dataclasses import dataclass

import numpy as np
import pytest

import fastbn
from fastbn import fold
from tests import reference, reference_fold

LAYERS = {
    1: (fastbn.BatchNorm1d, fastbn.BatchRenorm1d),
    2: (fastbn.BatchNorm2d, fastbn.BatchRenorm2d),
    3: (fastbn.BatchNorm3d, fastbn.BatchRenorm3d),
}


@dataclass(frozen=True)
class Case:
    """A convolution with a batch norm beside it."""

    name: str
    image: tuple
    channels: tuple  # in and out
    kernel: tuple
    how: dict
    transposed: bool = False
    bias: bool = True
    weight: bool = True  # of the norm
    shift: bool = True
    renorm: bool = False

    @property
    def groups(self):
        return self.how.get("groups", 1)

    def conv(self, x, weight, bias, **how):
        kind = reference_fold.conv_transposed if self.transposed else reference_fold.conv
        return kind(x, weight, bias, **{**self.how, **how})

    def arrays(self, rng, dtype):
        inputs, outputs = self.channels
        first, second = (inputs, outputs) if self.transposed else (outputs, inputs)
        weight = rng.normal(0.1, 0.4, (first, second // self.groups, *self.kernel)).astype(dtype)
        bias = rng.normal(0.3, 1, outputs).astype(dtype) if self.bias else None
        return rng.normal(0.5, 2, (3, inputs, *self.image)).astype(dtype), weight, bias

    def norm(self, channels, rng, dtype):
        kind = LAYERS[len(self.image)][self.renorm]
        bn = kind(channels, eps=1e-3, affine=self.weight, bias=self.shift, dtype=dtype)
        bn.running_mean[:] = rng.normal(1, 3, channels)
        bn.running_var[:] = rng.uniform(0.05, 9, channels)
        if self.weight:
            bn.weight[:] = rng.normal(1, 0.7, channels)
        if self.weight and self.shift:
            bn.bias[:] = rng.normal(0.5, 1, channels)
        return bn.eval()


CASES = [
    Case("1d", (11,), (4, 6), (3,), {}),
    Case("1d, stride, padding, dilation", (14,), (4, 6), (3,),
         {"stride": 2, "padding": 3, "dilation": 2}),
    Case("2d", (7, 6), (3, 5), (3, 2), {}),
    Case("2d without a bias", (7, 6), (3, 5), (3, 3), {"padding": 1}, bias=False),
    Case("2d, norm without weight", (7, 6), (3, 5), (3, 3), {"padding": 1}, weight=False),
    Case("2d, norm without bias", (7, 6), (3, 5), (3, 3), {"padding": 1}, shift=False),
    Case("2d, anisotropic", (9, 8), (3, 5), (3, 2), {"stride": (1, 2), "padding": (2, 0)}),
    Case("2d, 1x1", (5, 5), (6, 8), (1, 1), {}),
    Case("2d in groups", (6, 7), (6, 9), (3, 3), {"groups": 3, "padding": 1}),
    Case("2d depthwise", (6, 7), (6, 6), (3, 3), {"groups": 6, "padding": 1, "stride": 2}),
    Case("2d depthwise, twice as many out", (6, 7), (4, 8), (3, 3), {"groups": 4}, bias=False),
    Case("3d", (4, 5, 6), (3, 4), (2, 3, 2), {"padding": 1}),
    Case("3d in groups", (4, 5, 6), (4, 6), (2, 3, 2), {"groups": 2, "dilation": (1, 2, 1)}),
    Case("renorm", (7, 6), (4, 6), (3, 3), {"groups": 2, "padding": 1}, renorm=True),
]  # fmt: skip
TRANSPOSED = [
    Case("1d", (7,), (4, 6), (3,), {"stride": 2, "output_padding": 1}, transposed=True),
    Case("2d", (5, 6), (4, 3), (3, 2), {"stride": 2, "padding": 1}, transposed=True),
    Case("2d without a bias", (5, 6), (4, 3), (3, 2), {}, transposed=True, bias=False),
    Case("2d in groups", (5, 4), (4, 6), (3, 3), {"groups": 2, "dilation": 2}, transposed=True),
    Case("2d in groups, as many in as out", (5, 4), (6, 6), (3, 3),
         {"groups": 3, "stride": 2, "padding": 1}, transposed=True),
    Case("2d depthwise", (5, 4), (6, 6), (2, 2), {"groups": 6, "stride": 2}, transposed=True),
    Case("3d in groups", (3, 4, 2), (6, 4), (2, 3, 2), {"groups": 2, "stride": (1, 2, 1)},
         transposed=True),
    Case("renorm", (7,), (4, 6), (3,), {"groups": 2}, transposed=True, renorm=True),
]  # fmt: skip
TOLERANCE = {np.float32: 1e-5, np.float64: 1e-12}


def named(case):
    return ("transposed " if case.transposed else "") + case.name


def assert_close(got, wanted, dtype, axis=1):
    """To a part of the largest value of each channel."""
    got, wanted = (np.moveaxis(np.asarray(v, np.float64), axis, 0) for v in (got, wanted))
    got, wanted = (v.reshape(len(v), -1) for v in (got, wanted))
    assert np.isfinite(wanted).all()
    off, largest = np.abs(got - wanted).max(1), np.abs(wanted).max(1)
    assert largest.any()
    assert (off <= TOLERANCE[dtype] * largest).all(), (off / largest).max()


def oracle(bn, x, axis=1):
    """What evaluation gives, in long double."""
    arrays = bn.state_dict()
    ones = np.ones(bn.num_features)
    return reference.normalize(
        x, arrays["running_mean"], arrays["running_var"], arrays.get("weight", ones),
        arrays.get("bias", 0 * ones), bn.eps, axis,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", CASES + TRANSPOSED, ids=named)
def test_convolution_then_norm(case, dtype, rng):
    x, weight, bias = case.arrays(rng, dtype)
    bn = case.norm(case.channels[1], rng, dtype)
    kept = [a.copy() for a in (weight, *bn.state_dict().values())]
    folded = fold.fold_conv_bn(weight, bias, bn, transposed=case.transposed, groups=case.groups)
    new_weight, new_bias = folded
    assert new_weight.dtype == new_bias.dtype == dtype
    assert new_weight.shape == weight.shape
    assert new_bias.shape == (case.channels[1],)
    got = case.conv(x, new_weight, new_bias)
    assert_close(got, bn(case.conv(x, weight, bias)), dtype)
    exact = case.conv(*(v if v is None else v.astype(np.float64) for v in (x, weight, bias)))
    assert_close(got, oracle(bn, exact), dtype)
    for before, after in zip(kept, (weight, *bn.state_dict().values()), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", CASES, ids=named)
def test_norm_then_convolution(case, dtype, rng):
    """Padded with what the norm makes 0, where the convolution pads with 0."""
    x, weight, bias = case.arrays(rng, dtype)
    bn = case.norm(case.channels[0], rng, dtype)
    folded = fold.fold_bn_conv(bn, weight, bias, groups=case.groups)
    assert {array.dtype for array in folded} == {np.dtype(dtype)}
    got = case.conv(x, folded.weight, folded.bias, value=folded.padding)
    wanted = case.conv(bn(x), weight, bias)
    assert_close(got, wanted, dtype)
    if case.how.get("padding") and case.shift:  # else the test could not see a wrong value
        with pytest.raises(AssertionError):
            assert_close(case.conv(x, folded.weight, folded.bias), wanted, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", [c for c in TRANSPOSED if c.how.get("stride", 1) == 1], ids=named)
def test_norm_then_transposed_convolution(case, dtype, rng):
    """With the border that its documentation asks for."""
    x, weight, bias = case.arrays(rng, dtype)
    bn = case.norm(case.channels[0], rng, dtype)
    folded = fold.fold_bn_conv(
        bn, weight, bias, transposed=True, groups=case.groups, stride=1
    )  # fmt: skip
    border = [case.how.get("dilation", 1) * (k - 1) for k in case.kernel]
    padded = reference_fold.pad(x, border, folded.padding)
    inner = [case.how.get("padding", 0) + b for b in border]
    got = case.conv(padded, folded.weight, folded.bias, padding=inner)
    assert_close(got, case.conv(bn(x), weight, bias), dtype)


def test_norm_then_transposed_convolution_with_a_stride(rng):
    """Exact where there is no shift, and refused elsewhere."""
    case = TRANSPOSED[1]
    x, weight, bias = case.arrays(rng, np.float64)
    bn = case.norm(4, rng, np.float64)
    with pytest.raises(ValueError, match="no bias per channel"):
        fold.fold_bn_conv(bn, weight, bias, transposed=True, stride=(1, 2))
    with pytest.raises(TypeError, match="needs its stride"):
        fold.fold_bn_conv(bn, weight, bias, transposed=True)
    bn.running_mean[:] = bn.bias[:] = 0
    folded = fold.fold_bn_conv(bn, weight, bias, transposed=True, stride=2)
    got = case.conv(x, folded.weight, folded.bias)
    assert_close(got, case.conv(bn(x), weight, bias), np.float64)
    for wrong, error in (
        (0, ValueError),
        ((1, 2, 3), ValueError),
        (1.5, TypeError),
        (True, TypeError),
    ):
        with pytest.raises(error, match="stride must be"):
            fold.fold_bn_conv(bn, weight, bias, transposed=True, stride=wrong)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("with_bias", [True, False])
def test_linear(dtype, with_bias, rng):
    x, weight = rng.normal(1, 2, (20, 5)).astype(dtype), rng.normal(size=(7, 5)).astype(dtype)
    bias = rng.normal(size=7).astype(dtype) if with_bias else None
    plain = Case("", (1,), (5, 7), (), {})
    after, before = plain.norm(7, rng, dtype), plain.norm(5, rng, dtype)

    def linear(x, w, b):
        return x @ w.T + (0 if b is None else b)

    got = linear(x, *fold.fold_linear_bn(weight, bias, after))
    assert_close(got, after(linear(x, weight, bias)), dtype)
    got = linear(x, *fold.fold_bn_linear(before, weight, bias))
    assert_close(got, linear(before(x), weight, bias), dtype)
    both = fold.fold_bn_linear(before, *fold.fold_linear_bn(weight, bias, after))
    assert_close(linear(x, *both), after(linear(before(x), weight, bias)), dtype)


def test_norm_then_flatten_then_linear(rng):
    """As the message about channels says."""
    bn = CASES[2].norm(3, rng, np.float64)
    x, weight = rng.normal(size=(4, 3, 2, 5)), rng.normal(size=(7, 30))
    with pytest.raises(ValueError, match=r"fold_bn_conv\(bn, weight.reshape\(7, 3, 10\)"):
        fold.fold_bn_linear(bn, weight, None)
    folded = fold.fold_bn_conv(bn, weight.reshape(7, 3, 10), None)
    got = x.reshape(4, 30) @ folded.weight.reshape(7, 30).T + folded.bias
    assert_close(got, bn(x).reshape(4, 30) @ weight.T, np.float64)


def test_a_network_folded_as_a_whole(rng):
    """Convolution, norm, ReLU, four times: depthwise, in groups, transposed; then linear."""
    x = rng.normal(size=(2, 3, 12, 12)).astype(np.float32)
    cases = [
        Case("", (12, 12), (3, 8), (3, 3), {"padding": 1}, bias=False),
        Case("", (12, 12), (8, 8), (3, 3), {"padding": 1, "groups": 8, "stride": 2}),
        Case("", (6, 6), (8, 12), (1, 1), {"groups": 4}),
        Case("", (6, 6), (12, 6), (2, 2), {"groups": 2, "stride": 2}, transposed=True),
    ]
    y = folded = x
    for case in cases:
        _, weight, bias = case.arrays(rng, np.float32)
        bn = case.norm(case.channels[1], rng, np.float32)
        z = case.conv(y, weight, bias)
        fastbn.recalibrate(bn, [z], progress=False)
        y = np.maximum(bn(z), 0)
        new = fold.fold_conv_bn(weight, bias, bn, transposed=case.transposed, groups=case.groups)
        folded = np.maximum(case.conv(folded, *new), 0)
    assert y.any()
    assert_close(folded, y, np.float32)


# --- what is not folded ---------------------------------------------------------------------------


def test_an_activation_stays_behind_the_convolution(rng):
    x, weight, bias = CASES[2].arrays(rng, np.float32)
    bn = CASES[2].norm(5, rng, np.float32)
    bn.activation = "relu"
    with pytest.warns(UserWarning, match="'relu' is not folded"):
        new = fold.fold_conv_bn(weight, bias, bn)
    got = np.maximum(CASES[2].conv(x, *new), 0)
    assert_close(got, bn(CASES[2].conv(x, weight, bias)), np.float32)
    with pytest.warns(UserWarning, match="stays behind") as caught:
        fold.fold_linear_bn(np.ones((5, 3)), None, bn)
    assert caught[0].filename == __file__


def test_an_activation_before_a_convolution_cannot_be_folded():
    bn = fastbn.BatchNorm2d(3, activation="silu")
    with pytest.raises(ValueError, match=r"activation='silu'.*stands between"):
        fold.fold_bn_conv(bn, np.ones((5, 3, 2, 2)), None)
    with pytest.raises(ValueError, match="stands between"):
        fold.fold_bn_linear(bn, np.ones((5, 3)), None)


W = np.ones((6, 4, 3, 3), np.float32)
BN = fastbn.BatchNorm2d(6)
OF_BATCHES = fastbn.BatchNorm2d(6, track_running_stats=False)
WRONG = {
    "no statistics": (ValueError, "track_running_stats=False", (W, None, OF_BATCHES), {}),
    "a norm of samples": (TypeError, "cannot be folded", (W, None, fastbn.GroupNorm(2, 6)), {}),
    "no layer": (TypeError, "must be a batch norm layer", (W, None, {"weight": 1}), {}),
    "other channels": (ValueError, "=5.*6 output channels", (W, None, fastbn.BatchNorm2d(5)), {}),
    "transposed": (ValueError, "with transposed=True", (W, None, fastbn.BatchNorm2d(4)), {}),
    "Keras": (ValueError, r"transpose\(3, 2, 0, 1\)", (np.ones((3, 3, 4, 6)), None, BN), {}),
    "linear": (ValueError, "'linear' in its name", (np.ones((6, 4)), None, BN), {}),
    "integers": (TypeError, "floats, got dtype int8", (W.astype(np.int8), None, BN), {}),
    "complex": (TypeError, "floats, got dtype complex", (W + 1j, None, BN), {}),
    "not an array": (TypeError, "weight must be an array", ("weights", None, BN), {}),
    "bias of another length": (ValueError, r"shape \(6,\)", (W, np.ones(4), BN), {}),
    "groups that do not divide": (ValueError, "must divide", (W, None, BN), {"groups": 4}),
    "groups of 0": (ValueError, "groups must divide", (W, None, BN), {"groups": 0}),
    "groups of another type": (TypeError, "must be an integer", (W, None, BN), {"groups": 2.0}),
    "transposed is no bool": (TypeError, "transposed must be", (W, None, BN), {"transposed": 1}),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_mistakes(mistake):
    error, message, arguments, how = WRONG[mistake]
    with pytest.raises(error, match=message):
        fold.fold_conv_bn(*arguments, **how)


def test_what_cannot_be_read():
    class Gone:
        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("call detach() first")

    with pytest.raises(TypeError, match=r"weight cannot be read as an array: call detach"):
        fold.fold_conv_bn(Gone(), None, BN)


def test_mistakes_of_what_stands_behind():
    with pytest.raises(ValueError, match="4 input channels; it fits with groups=3"):
        fold.fold_bn_conv(fastbn.BatchNorm2d(12), W, None)
    with pytest.raises(ValueError, match="it fits with transposed=True"):
        fold.fold_bn_conv(BN, W, None)
    with pytest.raises(ValueError, match=r"pass weight\.T"):
        fold.fold_linear_bn(np.ones((4, 6)), None, BN)
