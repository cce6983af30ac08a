"""Group, layer, instance and RMS norm on a simulated device: see `test_device`."""

import ml_dtypes
import numpy as np
import pytest
from numba import config

import fastbn
from tests import internals_device as devices
from tests import reference
from tests.test_device import got, put

pytestmark = [
    pytest.mark.skipif(not config.ENABLE_CUDASIM, reason="needs NUMBA_ENABLE_CUDASIM=1"),
    pytest.mark.filterwarnings("ignore"),
]

TOLERANCE = {"float32": 1e-5, "float64": 1e-13, "float16": 1e-2, "bfloat16": 1e-1}
#: Shape, axis, groups: rows that are read at once and not, groups of several channels and of one,
#: tables, all channels together, channels last; and the blocks of a tile, in two launches.
GROUPED = [
    ((2, 4, 8), 1, 2, "float32", None), ((2, 4, 8), 1, 2, "float64", 2),
    ((3, 6, 5), 1, 2, "bfloat16", None), ((2, 4, 3), 1, 1, "float16", 3),
    ((2, 3, 8), 1, 3, "float16", None), ((3, 8), 1, 2, "float32", None),
    ((2, 3, 2, 8), -1, 2, "float32", None), ((2, 3, 2, 8), -1, 2, "float16", 2),
    ((2, 5, 8), -1, 8, "float32", None), ((2, 5, 3), -1, 3, "float64", 2),
]  # fmt: skip
#: Shape, what is normalized, dtype, blocks; a single row, a row of one value.
ROWS = [
    ((3, 16), (16,), "float32", None), ((2, 2, 5), (5,), "float64", None),
    ((2, 3, 4), (3, 4), "bfloat16", None), ((3, 24), (24,), "float16", 2),
    ((9,), (9,), "float32", 2), ((8, 1), (1,), "float32", None),
]  # fmt: skip


def drawn(rng, shape, of, dtype):
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    x, dy = ((rng.normal(size=shape) * 2 + 1).astype(kind) for _ in range(2))
    parameters = "float64" if dtype == "float64" else "float32"
    weight, bias = (rng.normal(size=of).astype(parameters) for _ in range(2))
    return x, dy, weight, bias


def assert_close(found, right, dtype):
    found, right = got(found).astype(np.longdouble), np.asarray(right, np.longdouble)
    assert found.shape == right.shape
    assert np.abs(found - right).max() <= TOLERANCE[dtype] * max(1.0, float(np.abs(right).max()))


def right_gradients(x, dy, axes, weight, sums, centered=True):
    """Of ``x_hat * weight``, by the formula; weight broadcasts, and its gradients are ``sums``."""
    x, dy = (a.astype(np.longdouble) for a in (x, dy))
    mean = x.mean(axes, keepdims=True) if centered else 0
    rstd = 1 / np.sqrt(((x - mean) ** 2).mean(axes, keepdims=True) + 1e-5)
    x_hat, g = (x - mean) * rstd, dy * weight
    left_out = g.mean(axes, keepdims=True) if centered else 0
    dx = rstd * (g - left_out - x_hat * (g * x_hat).mean(axes, keepdims=True))
    return dx, sums(dy * x_hat), sums(dy)


def check(result, right_y, right, dtype):
    y, gradients = result
    assert_close(y, right_y, dtype)
    assert str(got(y).dtype) == str(got(gradients.x).dtype) == dtype
    for found, expected, kind in zip(gradients, right, (dtype, "float32", "float32"), strict=True):
        if found is not None:
            assert_close(found, expected, kind if dtype != "float64" else dtype)


@pytest.mark.parametrize(("shape", "axis", "groups", "dtype", "parts"), GROUPED, ids=str)
def test_group_and_instance_norm(shape, axis, groups, dtype, parts, monkeypatch, rng):
    devices.cut_on_device(monkeypatch, parts)
    channels = shape[axis]
    x, dy, weight, bias = drawn(rng, shape, channels, dtype)
    if groups == channels:
        y, cache = fastbn.instance_norm_forward(
            put(x), None, None, put(weight), put(bias), axis=axis
        )
    else:
        y, cache = fastbn.group_norm_forward(put(x), groups, put(weight), put(bias), axis=axis)
    gradients = fastbn.norm_backward(put(dy), cache)
    first, dy_first = (np.moveaxis(a, axis, 1) for a in (x, dy))
    each = reference.per_channel(weight, x.ndim, 1)

    def grouped(a):
        return np.broadcast_to(a, first.shape).reshape(len(x), groups, -1)

    def sums(a):
        a = a.reshape(first.shape)
        return a.sum(tuple(k for k in range(a.ndim) if k != 1))

    dx, *others = right_gradients(grouped(first), grouped(dy_first), -1, grouped(each), sums)
    dx = np.moveaxis(dx.reshape(first.shape), 1, axis)
    right_y = reference.group_norm(x, groups, weight, bias, 1e-5, axis)
    check((y, gradients), right_y, (dx, *others), dtype)


@pytest.mark.parametrize("centered", [True, False], ids=["layer norm", "RMS norm"])
@pytest.mark.parametrize(("shape", "last", "dtype", "parts"), ROWS, ids=str)
def test_norms_over_the_last_axes(shape, last, dtype, parts, centered, monkeypatch, rng):
    devices.cut_on_device(monkeypatch, parts)
    x, dy, weight, bias = drawn(rng, shape, last, dtype)
    if centered:
        y, cache = fastbn.layer_norm_forward(put(x), last, put(weight), put(bias))
    else:
        bias, (y, cache) = 0 * bias, fastbn.rms_norm_forward(put(x), last, put(weight), 1e-5)
    axes = tuple(range(-len(last), 0))
    right_y = reference.norm(x, axes, weight, bias, 1e-5, centered)

    def sums(a):
        return a.sum(tuple(range(a.ndim - len(last))))

    right = right_gradients(x, dy, axes, weight, sums, centered)
    check((y, fastbn.norm_backward(put(dy), cache)), right_y, right, dtype)


@pytest.mark.parametrize("given", ["weight", "bias", "none"])
def test_parameters_that_are_absent(given, rng):
    x, dy, weight, bias = drawn(rng, (3, 8), 8, "float32")
    weight = put(weight) if given == "weight" else None
    bias = put(bias) if given == "bias" else None
    y, cache = fastbn.layer_norm_forward(put(x), 8, weight, bias)
    gradients = fastbn.norm_backward(put(dy), cache)
    w, b = (d if v is None else got(v) for v, d in ((weight, np.ones(8)), (bias, np.zeros(8))))
    right = right_gradients(x, dy, -1, w, lambda a: a.sum(0))
    check((y, gradients), reference.norm(x, -1, w, b, 1e-5), right, "float32")
    assert (gradients.weight is None, gradients.bias is None) == (weight is None, bias is None)


@pytest.mark.parametrize("axis", [1, 2])
def test_running_statistics_of_an_instance_norm(axis, rng):
    x = rng.normal(2, 3, (2, 4, 4)).astype(np.float32)
    layer = fastbn.InstanceNorm1d(
        4, affine=True, track_running_stats=True, momentum=None, axis=axis, device="cuda"
    )
    for _ in range(2):
        layer(put(x))
    state, along = layer.state_dict(), 3 - axis
    assert state["num_batches_tracked"] == 2
    np.testing.assert_allclose(state["running_mean"], x.mean((0, along)), rtol=1e-5)
    np.testing.assert_allclose(state["running_var"], x.var(along, ddof=1).mean(0), rtol=1e-5)
    gradients = layer.backward(put(x))
    assert gradients.x.shape == x.shape
    served = got(layer.eval()(put(x)))
    right = reference.normalize(
        x, state["running_mean"], state["running_var"], np.ones(4), np.zeros(4), 1e-5, axis
    )
    np.testing.assert_allclose(served, right.astype(float), rtol=1e-4, atol=1e-5)


def test_layers(rng):
    x, dy = rng.normal(2, 3, (2, 2, 4, 4)).astype(np.float32)
    for make in (
        lambda **how: fastbn.GroupNorm(2, 4, **how),
        lambda **how: fastbn.LayerNorm((4, 4), **how),
        lambda **how: fastbn.RMSNorm(4, **how),
        lambda **how: fastbn.InstanceNorm1d(4, affine=True, **how),
    ):
        layer = make(device="cuda")
        assert "device='cuda'" in repr(layer)
        y = layer(put(x))
        assert type(y) is type(layer.backward(put(dy)).x)
        state = layer.to("cpu").state_dict()
        assert all(type(array) is np.ndarray for array in state.values())
        layer.to("cuda").load_state_dict(state)
        np.testing.assert_array_equal(got(layer.eval()(put(x))), got(y))
    single = fastbn.InstanceNorm1d(4, affine=True, device="cuda")
    np.testing.assert_array_equal(got(single(put(x[1]))), got(y)[1])
    assert single.backward(put(dy[1])).x.shape == (4, 4)


def test_in_place_and_what_is_gone_then(rng):
    x, dy, weight, bias = drawn(rng, (3, 8), 8, "float32")
    expected, cache = fastbn.layer_norm_forward(put(x), 8, put(weight), put(bias))
    right = fastbn.norm_backward(put(dy), cache)
    there = put(x)
    y, gone = fastbn.layer_norm_forward(there, 8, put(weight), put(bias), out=there)
    np.testing.assert_array_equal(got(y), got(expected))
    with pytest.raises(RuntimeError, match="out=x"):
        fastbn.norm_backward(put(dy), gone)
    over = put(dy)
    found = fastbn.norm_backward(over, cache, out=over)
    np.testing.assert_array_equal(got(over), got(right.x))
    np.testing.assert_array_equal(got(found.weight), got(right.weight))


def test_an_empty_batch():
    x = put(np.empty((0, 4, 3), np.float32))
    for y, cache in (fastbn.group_norm_forward(x, 2), fastbn.layer_norm_forward(x, 3)):
        assert y.shape == fastbn.norm_backward(x, cache).x.shape == (0, 4, 3)


def ones(*shape):
    return put(np.ones(shape, np.float32))


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda x: fastbn.group_norm(x, 3), ValueError, "num_groups=3 must divide.*has 4"),
        (lambda x: fastbn.group_norm(x, 2, axis=0), ValueError, "axis 0 has the samples"),
        (lambda x: fastbn.group_norm(ones(3, 4), 4), ValueError, "more than 1 value in each of 4"),
        (lambda x: fastbn.group_norm(x, 2, ones(3)), ValueError, r"weight has shape \(3,\)"),
        (lambda x: fastbn.layer_norm(x, 4), ValueError, r"must be normalized_shape, \(4,\)"),
        (lambda x: fastbn.layer_norm(x, 5, np.ones(5)), TypeError, "weight is in host memory"),
        (lambda x: fastbn.layer_norm(x.transpose((0, 2, 1)), 4), NotImplementedError, "copy it"),
        (lambda x: fastbn.group_norm(x.transpose((2, 1, 0)), 2), NotImplementedError, "copy it"),
        (lambda x: fastbn.layer_norm(x, 5, eps=0.0), ValueError, "eps must be positive"),
        (lambda x: fastbn.layer_norm(put(np.ones((2, 3), int)), 3), TypeError, "x must be float16"),
        (lambda x: fastbn.instance_norm(x, ones(4)), ValueError, "without running_var"),
        (lambda x: fastbn.BatchRenorm1d(4, device="cuda"), NotImplementedError, "on a device yet"),
    ],
)  # fmt: skip
def test_errors_say_what_is_wrong(call, error, says, rng):
    with pytest.raises(error, match=says):
        call(put(rng.normal(size=(3, 4, 5)).astype(np.float32)))
