"""Group, layer, instance and RMS norm: functions, gradients and layers."""

import copy
import pickle
import re

import numpy as np
import pytest

import fastbn
from tests import internals, reference

#: Tables, short and long rows, groups of one channel and of all, more samples than fit in a block.
GROUPED = [
    ((5, 6), 2, 1), ((4, 6, 5), 3, 1), ((3, 8, 7, 7), 8, 1), ((2, 4, 40), 1, 1),
    ((3, 5, 4, 6), 3, -1), ((1, 4, 2), 2, 1), ((7, 12, 33), 4, 1),
]  # fmt: skip
#: What is normalized, at the end of shapes.
ROWS = [((5, 16), (16,)), ((3, 4, 5), (4, 5)), ((2, 3, 7), (7,)), ((9,), (9,)), ((70, 48), (48,))]
TOLERANCE = {"float32": 3e-6, "float64": 1e-13}

dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
parameters = pytest.mark.parametrize("given", ["both", "weight", "bias", "none"])


def drawn(rng, shape, of, dtype, given="both"):
    x = rng.normal(2, 3, shape).astype(dtype)
    dy = rng.normal(size=shape).astype(dtype)
    weight = rng.normal(size=of).astype(dtype) if given in ("both", "weight") else None
    bias = rng.normal(size=of).astype(dtype) if given in ("both", "bias") else None
    return x, dy, weight, bias


def wide(array, otherwise):
    return otherwise if array is None else array.astype(np.longdouble)


def assert_close(found, right, dtype):
    right = np.asarray(right, np.longdouble)
    assert np.abs(found - right).max() <= TOLERANCE[dtype] * max(1, np.abs(right).max())


def check_gradients(gradients, of_loss, x, weight, bias):
    """``of_loss(x, weight, bias)`` in float64, by differences."""
    values = [v if v is None else v.astype(np.float64) for v in (x, weight, bias)]
    for k, found in enumerate(gradients):
        if values[k] is None:
            assert found is None
            continue
        others = list(values)

        def loss(value, k=k, others=others):
            others[k] = value
            return float(of_loss(*others))

        right = reference.numerical_gradient(loss, values[k].copy())
        assert found.shape == values[k].shape
        np.testing.assert_allclose(found, right, rtol=0, atol=2e-5 * max(1, np.abs(right).max()))


@dtypes
@parameters
@pytest.mark.parametrize(("shape", "groups", "axis"), GROUPED, ids=str)
def test_group_norm(shape, groups, axis, dtype, given, rng):
    shape = shape if axis == 1 else (*shape[:1], *shape[2:], groups * 2)
    channels = shape[axis]
    x, dy, weight, bias = drawn(rng, shape, channels, dtype, given)
    before = x.copy()
    y, cache = fastbn.group_norm_forward(x, groups, weight, bias, axis=axis)
    parameters = wide(weight, np.ones(channels)), wide(bias, np.zeros(channels))
    assert_close(y, reference.group_norm(x, groups, *parameters, 1e-5, axis), dtype)
    assert y.dtype == dtype
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(fastbn.group_norm(x, groups, weight, bias, axis=axis), y)
    if x.size > 400 or given in ("weight", "bias"):
        return

    def loss(x, weight, bias):
        weight = np.ones(channels) if weight is None else weight
        bias = np.zeros(channels) if bias is None else bias
        return (reference.group_norm(x, groups, weight, bias, 1e-5, axis) * dy).sum()

    check_gradients(fastbn.norm_backward(dy, cache), loss, x, weight, bias)


@dtypes
@parameters
@pytest.mark.parametrize("centered", [True, False], ids=["layer norm", "RMS norm"])
@pytest.mark.parametrize(("shape", "last"), ROWS, ids=str)
def test_norms_over_the_last_axes(shape, last, centered, dtype, given, rng):
    x, dy, weight, bias = drawn(rng, shape, last, dtype, given)
    if not centered:
        bias = None
    forward = fastbn.layer_norm_forward if centered else fastbn.rms_norm_forward
    parameters = (weight, bias) if centered else (weight,)
    y, cache = forward(x, last, *parameters, 1e-5)
    axes = tuple(range(-len(last), 0))
    right = reference.norm(x, axes, wide(weight, 1), wide(bias, 0), 1e-5, centered)
    assert_close(y, right, dtype)
    if x.size > 400 or given in ("weight", "bias"):
        return

    def loss(x, weight, bias):
        weight, bias = (1 if weight is None else weight), (0 if bias is None else bias)
        return (reference.norm(x, axes, weight, bias, 1e-5, centered) * dy).sum()

    check_gradients(fastbn.norm_backward(dy, cache), loss, x, weight, bias)


@dtypes
def test_instance_norm_and_its_running_statistics(dtype, rng):
    x, dy, weight, bias = drawn(rng, (3, 4, 5, 6), 4, dtype)
    mean, var = rng.normal(size=4).astype(dtype), rng.uniform(1, 2, 4).astype(dtype)
    before = mean.copy(), var.copy()
    y, cache = fastbn.instance_norm_forward(x, mean, var, weight, bias, momentum=0.3)
    right = reference.group_norm(x, 4, wide(weight, 1), wide(bias, 0), 1e-5)
    assert_close(y, right, dtype)
    each = [reference.running_step(*before, sample[None], 0.3, 1) for sample in x]
    assert_close(mean, np.mean([m for m, _ in each], axis=0), dtype)
    assert_close(var, np.mean([v for _, v in each], axis=0), dtype)
    y = fastbn.instance_norm(x, mean, var, weight, bias, use_input_stats=False)
    np.testing.assert_array_equal(y, fastbn.batch_norm(x, mean, var, weight, bias))
    assert fastbn.norm_backward(dy, cache).x.shape == x.shape


def test_more_than_a_block_of_samples_and_more_than_one_thread(rng, monkeypatch):
    internals.small_blocks(monkeypatch)
    for shape, groups in (((50, 12, 20), 4), ((50, 12, 20), 12), ((50, 12, 3), 3)):
        x, dy, weight, bias = drawn(rng, shape, 12, "float32")
        y, cache = fastbn.group_norm_forward(x, groups, weight, bias)
        assert_close(y, reference.group_norm(x, groups, weight, bias, 1e-5), "float32")
        pieces = [fastbn.group_norm_forward(x[k : k + 1], groups, weight, bias)[1]
                  for k in range(len(x))]  # fmt: skip
        whole = fastbn.norm_backward(dy, cache)
        each = [fastbn.norm_backward(dy[k : k + 1], piece) for k, piece in enumerate(pieces)]
        assert_close(whole.x, np.concatenate([g.x for g in each]), "float32")
        assert_close(whole.weight, sum(g.weight.astype(float) for g in each), "float32")
        assert_close(whole.bias, sum(g.bias.astype(float) for g in each), "float32")
    x, dy, weight, bias = drawn(rng, (300, 40), 40, "float32")
    y, cache = fastbn.layer_norm_forward(x, 40, weight, bias)
    whole, right = fastbn.norm_backward(dy, cache), dy.sum(axis=0, dtype=float)
    assert_close(whole.bias, right, "float32")
    x_hat = reference.norm(x, -1, 1, 0, 1e-5)
    assert_close(whole.weight, (dy * x_hat).sum(axis=0), "float32")


@pytest.mark.parametrize("mean", [0, 1e4, -3e6])
@pytest.mark.parametrize("scale", [1e-6, 1, 1e6])
def test_values_far_from_zero_and_of_any_size(mean, scale, rng):
    """As batch norm's contract: right to 1e-5 for means of 10,000 standard deviations."""
    x = ((rng.normal(size=(6, 64)) + mean) * scale).astype(np.float32)
    eps = 1e-5 * scale**2
    plain = np.ones(64), np.zeros(64)
    for y, right in (
        (fastbn.layer_norm(x, 64, eps=eps), reference.norm(x, -1, 1, 0, eps)),
        (fastbn.group_norm(x, 4, eps=eps), reference.group_norm(x, 4, *plain, eps)),
        (fastbn.rms_norm(x, 64, eps=eps), reference.norm(x, -1, 1, 0, eps, centered=False)),
    ):  # fmt: skip
        np.testing.assert_allclose(y, right.astype(float), rtol=0, atol=3e-5)


@pytest.mark.parametrize("size", [1e-30, 1e25, 3e38])
def test_values_near_the_ends_of_float32(size, rng):
    x = (rng.uniform(-1, 1, (4, 32)) * size).astype(np.float32)
    dy = rng.normal(size=x.shape).astype(np.float32)
    eps = 1e-5 * size**2 if size < 1 else 1.0
    weight, bias = rng.normal(size=(2, 32)).astype(np.float32)
    for forward, right in (
        (fastbn.layer_norm_forward(x, 32, weight, bias, eps),
         reference.norm(x, -1, weight, bias, eps)),
        (fastbn.group_norm_forward(x, 4, weight, bias, eps),
         reference.group_norm(x, 4, weight, bias, eps)),
        (fastbn.rms_norm_forward(x, 32, weight, eps), reference.norm(x, -1, weight, 0, eps, False)),
    ):  # fmt: skip
        y, cache = forward
        np.testing.assert_allclose(y, right.astype(float), rtol=0, atol=1e-5)
        assert np.isfinite(fastbn.norm_backward(dy, cache).weight).all()


def test_nan_and_infinity_stay_in_their_sample(rng):
    x = rng.normal(size=(3, 4, 5)).astype(np.float32)
    clean = fastbn.group_norm(x, 2), fastbn.layer_norm(x, 5), fastbn.instance_norm(x)
    for value in (np.nan, np.inf):
        x[1, 2, 3] = value
        for y, before in zip(
            (fastbn.group_norm(x, 2), fastbn.layer_norm(x, 5), fastbn.instance_norm(x)),
            clean, strict=True,
        ):  # fmt: skip
            np.testing.assert_array_equal(y[0], before[0])
            assert np.isnan(y[1, 2]).all()


@pytest.mark.parametrize(
    "make", ["fortran", "reversed", "sliced", "swapped bytes", "unaligned", "read-only"]
)
def test_arrays_of_any_kind(make, rng):
    x = rng.normal(size=(4, 6, 5)).astype(np.float32)
    dy = rng.normal(size=x.shape).astype(np.float32)
    weight, bias = rng.normal(size=(2, 6)).astype(np.float32)
    if make == "swapped bytes":
        odd = x.astype(">f4")
    elif make == "unaligned":
        odd = np.frombuffer(b"x" + x.tobytes(), np.float32, offset=1).reshape(x.shape)
    elif make == "read-only":
        odd = x.copy()
        for array in (odd, weight, bias, dy):
            array.flags.writeable = False
    else:
        odd = {"fortran": np.asfortranarray, "reversed": lambda a: a[::-1, ::-1],
               "sliced": lambda a: np.repeat(a, 2, axis=2)[..., ::2]}[make](x)  # fmt: skip
    plain = np.ascontiguousarray(odd).astype("f4")
    last = weight[:5], bias[:5]
    for name, arguments in (("group_norm", (3, weight, bias)), ("layer_norm", (5, *last))):
        forward = getattr(fastbn, f"{name}_forward")
        y, cache = forward(odd, *arguments)
        right, plain_cache = forward(plain, *arguments)
        np.testing.assert_array_equal(y, right)
        found, expected = fastbn.norm_backward(dy, cache), fastbn.norm_backward(dy, plain_cache)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
        out = np.empty((8, 6, 5), np.float32)[::2]
        assert getattr(fastbn, name)(odd, *arguments, out=out) is out
        np.testing.assert_array_equal(out, right)
        turned = np.asfortranarray(dy)
        np.testing.assert_allclose(fastbn.norm_backward(turned, cache).x, expected.x, atol=1e-5)


def test_in_place(rng):
    x, dy, weight, bias = drawn(rng, (4, 6, 20), 6, "float32")
    for name, arguments in (("group_norm", (3, weight, bias)), ("instance_norm", ()),
                            ("layer_norm", (20,)), ("rms_norm", (20,))):  # fmt: skip
        forward = getattr(fastbn, f"{name}_forward")
        expected, cache = forward(x, *arguments)
        gradient = fastbn.norm_backward(dy, cache).x
        own, there = x.copy(), dy.copy()
        assert fastbn.norm_backward(there, cache, out=there).x is there
        np.testing.assert_allclose(there, gradient, atol=1e-6)
        y, cache = forward(own, *arguments, out=own)
        assert y is own
        np.testing.assert_array_equal(own, expected)
        with pytest.raises(RuntimeError, match="out=x"):
            fastbn.norm_backward(dy, cache)


def test_gradients_over_x_itself(rng):
    x, dy, weight, bias = drawn(rng, (6, 4, 20), 20, "float32")
    for forward in (
        lambda x: fastbn.layer_norm_forward(x, 20, weight, bias),
        lambda x: fastbn.rms_norm_forward(x, 20, weight),
        lambda x: fastbn.group_norm_forward(x, 2, weight[:4], bias[:4]),
        lambda x: fastbn.instance_norm_forward(x, None, None, weight[:4]),
    ):
        right = fastbn.norm_backward(dy, forward(x)[1])
        own = x.copy()
        found = fastbn.norm_backward(dy, forward(own)[1], out=own)
        assert found.x is own
        for one, other in zip(found, right, strict=True):
            if other is not None:
                np.testing.assert_allclose(one, other, atol=2e-6)
    weight = drawn(rng, (4, 20), (4, 20), "float32")[2]
    y, cache = fastbn.layer_norm_forward(x[0], (4, 20), weight, out=weight)
    assert y is weight
    same = fastbn.layer_norm_forward(x[0], (4, 20), cache.weight)
    np.testing.assert_array_equal(y, same[0])


def test_blocks_of_one_sample(rng, monkeypatch):
    """As where samples are large, or one is left."""
    internals.small_blocks(monkeypatch)
    for samples in (1, 2, 3):
        x, dy, weight, _ = drawn(rng, (samples, 1, 3000), 3000, "float32")
        turned = np.asfortranarray(x)
        for forward in (
            lambda x, w=weight: fastbn.layer_norm_forward(x, 3000, w),
            lambda x: fastbn.rms_norm_forward(x, 3000),
            lambda x: fastbn.instance_norm_forward(x, None, None, np.ones(1, "f4")),
            lambda x: fastbn.group_norm_forward(x.reshape(-1, 3, 1000), 1, np.ones(3, "f4")),
        ):
            y, cache = forward(x)
            other, odd = forward(turned)
            np.testing.assert_array_equal(other, y)
            found, right = (fastbn.norm_backward(dy.reshape(y.shape), c) for c in (odd, cache))
            np.testing.assert_allclose(found.x, right.x, atol=1e-6)


@pytest.mark.parametrize("name", ["group", "instance", "layer", "RMS"])
def test_x_of_another_shape_since_the_forward(name, rng):
    layer = LAYERS[name][0]()
    x = rng.normal(size=(3, 4, 5)).astype(np.float32)
    layer(x)
    x.shape = (5, 4, 3)
    with pytest.raises(RuntimeError, match="another shape since the forward"):
        layer.backward(np.ones_like(x))


def test_empty_arrays():
    for shape in ((0, 4, 3), (2, 4, 0)):
        x = np.empty(shape, np.float32)
        y, cache = fastbn.group_norm_forward(x, 2, np.ones(4, np.float32))
        assert y.shape == shape
        assert fastbn.norm_backward(x, cache).weight.tolist() == [0] * 4
    x = np.empty((0, 3), np.float32)
    y, cache = fastbn.layer_norm_forward(x, 3, np.ones(3, np.float32))
    assert (y.shape, fastbn.norm_backward(x, cache).weight.tolist()) == ((0, 3), [0, 0, 0])


@pytest.mark.compiled
def test_results_do_not_depend_on_threads(rng):
    x, dy, weight, bias = drawn(rng, (16, 32, 30, 30), 32, "float32")
    before, found = fastbn.get_num_threads(), []
    try:
        for threads in (1, 2):
            fastbn.set_num_threads(threads)
            for arguments in ((8, weight, bias), (32, weight, bias), (8,)):
                y, cache = fastbn.group_norm_forward(x, *arguments)
                found.append((y.tobytes(), fastbn.norm_backward(dy, cache).x.tobytes()))
    finally:
        fastbn.set_num_threads(before)
    assert found[:3] == found[3:]


# --- layers ---------------------------------------------------------------------------------

LAYERS = {
    "group": (lambda **how: fastbn.GroupNorm(2, 4, **how), (3, 4, 5)),
    "layer": (lambda **how: fastbn.LayerNorm((4, 5), **how), (3, 4, 5)),
    "RMS": (lambda **how: fastbn.RMSNorm(5, **how), (3, 4, 5)),
    "instance": (lambda **how: fastbn.InstanceNorm1d(4, affine=True, **how), (3, 4, 5)),
    "tracking": (
        lambda **how: fastbn.InstanceNorm1d(4, affine=True, track_running_stats=True, **how),
        (3, 4, 5),
    ),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


@every_layer
def test_a_layer_learns_and_serves(name, rng):
    make, shape = LAYERS[name]
    layer = make()
    x = rng.normal(2, 3, shape).astype(np.float32)
    y = layer(x)
    gradients = layer.backward(np.ones_like(y))
    for parameter, gradient in gradients.parameters().items():
        layer.parameters()[parameter] -= 0.1 * gradient
    learned = layer(x)
    assert not np.array_equal(learned, y)
    served = layer.eval()(x)
    if name != "tracking":
        np.testing.assert_array_equal(served, learned)
    with pytest.raises(RuntimeError, match="no training call to differentiate"):
        layer.backward(y)
    y, cache = layer.forward_with_cache(x)
    assert layer.backward(y, cache).x.shape == shape
    out = np.empty_like(x)
    assert layer(x, out=out) is out
    np.testing.assert_array_equal(out, served)


@every_layer
def test_a_layer_is_kept_and_copied(name, rng):
    make, shape = LAYERS[name]
    layer = make()
    x = rng.normal(2, 3, shape).astype(np.float32)
    layer(x)
    for array in layer.parameters().values():
        array += rng.normal(size=array.shape).astype(np.float32)
    expected = layer.eval()(x)
    other = make()
    other.load_state_dict(layer.state_dict("a."), prefix="a.")
    for same in (other.eval(), pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        np.testing.assert_array_equal(same(x), expected)
        assert repr(same) == repr(layer)
    layer.reset_parameters()
    fresh = make().state_dict()
    for key, array in layer.state_dict().items():
        np.testing.assert_array_equal(array, fresh[key])


@every_layer
def test_a_single_sample_of_an_instance_norm_and_other_dtypes(name, rng):
    make, shape = LAYERS[name]
    layer = make(dtype="float64")
    assert "float64" in repr(layer)
    x = rng.normal(size=shape)
    assert layer(x).dtype == np.float64
    assert layer(x.astype(np.float32)).dtype == np.float32
    if "Instance" in type(layer).__name__:
        y = layer(x)
        np.testing.assert_array_equal(layer(x[1]), y[1])
        assert layer.backward(x[1]).x.shape == shape[1:]
        out = np.empty_like(x[0])
        assert layer(x[1], out=out) is out
        np.testing.assert_array_equal(out, y[1])


def test_running_statistics_of_an_instance_norm(rng):
    x = rng.normal(2, 3, (3, 4, 5)).astype(np.float32)
    layer = fastbn.InstanceNorm1d(4, track_running_stats=True, momentum=None)
    for _ in range(2):
        layer(x)
    assert layer.num_batches_tracked == 2
    np.testing.assert_allclose(layer.running_mean, x.mean(axis=(0, 2)), rtol=1e-6)
    np.testing.assert_allclose(layer.running_var, x.var(axis=2, ddof=1).mean(axis=0), rtol=1e-6)
    served = layer.eval()(x)
    np.testing.assert_array_equal(
        served, fastbn.batch_norm(x, layer.running_mean, layer.running_var)
    )
    without = fastbn.InstanceNorm1d(4).eval()  # its own statistics in both modes, as in torch
    np.testing.assert_array_equal(without(x), without.train()(x))


def test_representations_are_those_of_torch():
    shown = {
        fastbn.GroupNorm(2, 4): "GroupNorm(2, 4, eps=1e-05, affine=True, bias=True)",
        fastbn.GroupNorm(2, 4, affine=False): "GroupNorm(2, 4, eps=1e-05, affine=False, "
        "bias=False)",
        fastbn.LayerNorm(64): "LayerNorm((64,), eps=1e-05, elementwise_affine=True, bias=True)",
        fastbn.LayerNorm(4, bias=False): "LayerNorm((4,), eps=1e-05, elementwise_affine=True, "
        "bias=False)",
        fastbn.RMSNorm((4, 5), eps=1e-6): "RMSNorm((4, 5), eps=1e-06, elementwise_affine=True)",
        fastbn.InstanceNorm2d(3): "InstanceNorm2d(3, eps=1e-05, momentum=0.1, affine=False, "
        "bias=False, track_running_stats=False)",
    }
    for layer, text in shown.items():
        assert repr(layer) == text


@pytest.mark.parametrize(
    ("name", "arguments", "options"),
    [
        ("GroupNorm", (4, 32), {}),
        ("GroupNorm", (4, 32), {"bias": False}),
        ("GroupNorm", (4, 32), {"affine": False}),
        ("LayerNorm", (64,), {}),
        ("LayerNorm", ((6, 4), 1e-6), {"bias": False}),
        ("LayerNorm", (64,), {"elementwise_affine": False}),
        ("RMSNorm", (64,), {}),
        ("RMSNorm", (64, 1e-6), {"elementwise_affine": False}),
        ("InstanceNorm2d", (4,), {}),
        ("InstanceNorm3d", (4,), {"affine": True, "track_running_stats": True}),
        ("BatchNorm2d", (4, 1e-3, None), {}),
    ],
)
def test_torch_itself_prints_them_so(name, arguments, options):
    torch = pytest.importorskip("torch", minversion="2.13")
    theirs = getattr(torch.nn, name)(*arguments, **options)
    assert repr(getattr(fastbn, name)(*arguments, **options)) == repr(theirs)


# --- errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda x: fastbn.group_norm(x, 3), ValueError, "num_groups=3 must divide.*has 4"),
        (lambda x: fastbn.group_norm(x, 0), ValueError, "num_groups must be a positive"),
        (lambda x: fastbn.group_norm(x, 2.0), TypeError, "num_groups must be a positive"),
        (lambda x: fastbn.group_norm(x, None), TypeError, "num_groups must be a positive"),
        (lambda x: fastbn.GroupNorm(2, 4)(x[:, :2]), ValueError, "with 2 channels on axis 1"),
        (lambda x: fastbn.InstanceNorm1d(4, device="gpu"), ValueError, "device must be None"),
        (lambda x: fastbn.group_norm(x, 2, axis=0), ValueError, "axis 0 has the samples"),
        (lambda x: fastbn.group_norm(x, 2, np.ones(3)), ValueError, "weight has length 3"),
        (lambda x: fastbn.group_norm(x[:, :, 0], 4), ValueError, "more than 1 value in each of 4"),
        (lambda x: fastbn.group_norm(x, 2, gamma=x), TypeError, "here it is weight"),
        (lambda x: fastbn.group_norm(x, x[0], x[0], 4), TypeError, r"^num_groups .*shape \(4, 5\)"),
        (lambda x: fastbn.group_norm(x, np.ones(4)), TypeError, "num_groups comes second"),
        (lambda x: fastbn.GroupNorm(2, 4, axis=x), TypeError, "axis must be an integer"),
        (lambda x: fastbn.layer_norm(x, np.ones(768)), TypeError,
         r"^normalized_shape .*, got an array of shape \(768,\); weight comes third"),
        (lambda x: fastbn.rms_norm(x, x), TypeError, r"got an array of shape \(3, 4, 5\)"),
        (lambda x: fastbn.layer_norm(x, 4), ValueError, r"normalized_shape, \(4,\)"),
        (lambda x: fastbn.layer_norm(x, (4.0,)), TypeError, "normalized_shape must be"),
        (lambda x: fastbn.layer_norm(x, ()), ValueError, "normalized_shape must be"),
        (lambda x: fastbn.layer_norm(x, 5, np.ones(4)), ValueError, r"weight of shape \(5,\)"),
        (lambda x: fastbn.layer_norm(x, 5, eps=0.0), ValueError, "eps must be positive"),
        (lambda x: fastbn.layer_norm(x, 5, eps=None), TypeError, "eps must be a positive number"),
        (lambda x: fastbn.layer_norm(x.astype(int), 5), TypeError, "x must be float32, float64"),
        (lambda x: fastbn.layer_norm(x.tolist(), 5), TypeError, r"x must be a numpy\.ndarray"),
        (lambda x: fastbn.layer_norm(x, 5, out=x[:1]), ValueError, "out has shape"),
        (lambda x: fastbn.instance_norm(x, use_input_stats=False), ValueError, "must be runn"),
        (lambda x: fastbn.instance_norm(x, np.zeros(4, "f4")), ValueError, "without running_var"),
        (lambda x: fastbn.norm_backward(x, (1, 2)), TypeError, "cache must come from a forward"),
        (lambda x: fastbn.GroupNorm(3, 4), ValueError, "must be divisible by num_groups"),
        (lambda x: fastbn.GroupNorm(2, 4, affine=False)(x[:, :2]), ValueError, "num_channels=4"),
        (lambda x: fastbn.GroupNorm(2, 4, axis=0), ValueError, "must be that of the channels"),
        (lambda x: fastbn.InstanceNorm2d(4)(x[0]), ValueError, "InstanceNorm2d expects"),
    ],
)  # fmt: skip
def test_errors_say_what_is_wrong(call, error, says, rng):
    x = rng.normal(size=(3, 4, 5)).astype(np.float32)
    before = x.copy()
    with pytest.raises(error, match=says):
        call(x)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("name", ["num_groups", "num_channels", "affine"])
def test_what_is_fixed(name):
    with pytest.raises(AttributeError, match=f"{name} is fixed"):
        setattr(fastbn.GroupNorm(2, 4), name, 1)


def test_gradients_of_a_wrong_kind(rng):
    x = rng.normal(size=(3, 4)).astype(np.float32)
    _, cache = fastbn.layer_norm_forward(x, 4)
    with pytest.raises(ValueError, match="dy has shape"):
        fastbn.norm_backward(x[:1], cache)
    with pytest.raises(ValueError, match="dy has dtype float64"):
        fastbn.norm_backward(x.astype(float), cache)
    y, cache = fastbn.batch_norm_forward(x, training=True)  # batch norm's are taken as well
    np.testing.assert_array_equal(
        fastbn.norm_backward(y, cache).x, fastbn.batch_norm_backward(y, cache).x
    )


@pytest.mark.parametrize("layer", [fastbn.GroupNorm(2, 4), fastbn.LayerNorm(4), fastbn.RMSNorm(4)])
def test_what_a_backward_without_a_forward_is_told(layer):
    with pytest.raises(RuntimeError, match="no training call to differentiate") as caught:
        layer.backward(np.ones((3, 4), np.float32))
    said = str(caught.value)
    assert "freeze" not in said
    assert "frozen" not in said
    for name in re.findall(r"(\w+)\(", said):
        assert name == "layer" or hasattr(layer, name)


def test_an_instance_norm_can_be_frozen_and_says_so():
    with pytest.raises(RuntimeError, match=r"freeze\(\)"):
        fastbn.InstanceNorm1d(4).backward(np.ones((3, 4, 2), np.float32))


def test_an_rms_norm_says_that_it_has_no_bias():
    state = fastbn.LayerNorm(4).state_dict("norm.")
    with pytest.raises(KeyError, match="RMSNorm has no bias"):
        fastbn.RMSNorm(4).load_state_dict(state, "norm.")
    with pytest.raises(KeyError, match="RMSNorm has no bias"):
        fastbn.RMSNorm(4, elementwise_affine=False).load_state_dict(state, "norm.")
    with pytest.raises(KeyError) as caught:
        fastbn.LayerNorm(4, bias=False).load_state_dict(state, "norm.")
    assert "RMSNorm" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name in dir(fastbn) if "Norm" in name or "Ren" in name])
def test_no_docstring_promises_integers(name):
    assert "any dtype of numbers" not in (getattr(fastbn, name).__doc__ or "")
