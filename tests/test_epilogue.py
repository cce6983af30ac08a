"""``y = act(bn(x) + residual)`` in one call, and its gradients."""

import copy
import pickle

import numpy as np
import pytest

import fastbn
from tests import internals, reference

NAMES = [None, *reference.ACTIVATIONS]
SHAPES = [((4, 3, 5, 5), 1), ((7, 5), 1), ((3, 6, 40), 1), ((2, 4, 4, 40), -1), ((2, 3, 300), 1)]
SLOPE = 0.2
#: Of the largest value, for z is rounded before it goes through the activation.
TOLERANCE = {"float32": 4e-6, "float64": 1e-13}

each_name = pytest.mark.parametrize("name", NAMES)
each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
each_residual = pytest.mark.parametrize("added", [False, True], ids=["", "residual"])
each_mode = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])


def textbook(name, z, derivative=False):
    """The activation of a long double array, or its derivative."""
    if name is None:
        return np.ones_like(z) if derivative else z
    parameters = (SLOPE,) if name == "leaky_relu" else ()
    return reference.ACTIVATIONS[name][int(derivative)](z, *parameters)


def drawn(rng, shape, axis, dtype):
    x, dy, residual = rng.normal(size=(3, *shape)).astype(dtype)
    weight, bias, mean = rng.normal(size=(3, shape[axis])).astype(dtype)
    return 3 * x + 1, dy, residual, weight, bias, mean, rng.uniform(1, 4, shape[axis]).astype(dtype)


def assert_close(found, right, dtype):
    right = np.asarray(right, np.longdouble)
    assert np.abs(found - right).max() <= TOLERANCE[dtype] * max(1, np.abs(right).max())


@each_dtype
@each_mode
@each_residual
@each_name
@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
def test_against_the_textbook(shape, axis, name, added, training, dtype, rng):
    if not added and name is None:
        return  # a plain batch norm
    x, dy, residual, weight, bias, mean, var = drawn(rng, shape, axis, dtype)
    how = {"activation": name, "negative_slope": SLOPE, "axis": axis}
    if added:
        how["residual"] = residual
    kept = x.copy(), residual.copy()
    given = (mean.copy(), var.copy())
    y, cache = fastbn.batch_norm_forward(x, *given, weight, bias, training=training, **how)
    of = axis % len(shape)
    statistics = reference.mean_and_var(x, of) if training else (mean, var)
    z = reference.normalize(x, *statistics, weight, bias, 1e-5, of)
    z = z + residual if added else z
    assert_close(y, textbook(name, z), dtype)
    again = fastbn.batch_norm(x, mean.copy(), var.copy(), weight, bias, training=training, **how)
    np.testing.assert_array_equal(again, y)
    if training:
        for one, other in zip(given, reference.running_step(mean, var, x, 0.1, of), strict=True):
            assert_close(one, other, dtype)
    gradients = fastbn.batch_norm_backward(dy, cache)
    dz = dy * textbook(name, z, derivative=True)
    right = reference.backward(dz, x, *statistics, weight, 1e-5, of, training)
    for found, wanted in zip(gradients, right, strict=True):
        assert_close(found, wanted, dtype)
    if added:
        assert_close(gradients.residual, dz, dtype)
    else:
        assert gradients.residual is None
    for array, before in zip((x, residual), kept, strict=True):
        np.testing.assert_array_equal(array, before)


@each_name
def test_gradients_by_finite_differences(name, rng):
    x, dy, residual, weight, bias, *_ = drawn(rng, (5, 2, 3), 1, "float64")
    how = {"activation": name, "negative_slope": SLOPE, "training": True}

    def loss(x, weight, bias, residual):
        return (fastbn.batch_norm(x, None, None, weight, bias, residual=residual, **how) * dy).sum()

    _, cache = fastbn.batch_norm_forward(x, None, None, weight, bias, residual=residual, **how)
    gradients = fastbn.batch_norm_backward(dy, cache)
    values = [x, weight, bias, residual]
    for k, found in enumerate((*gradients, gradients.residual)):
        others = list(values)

        def of_one(value, k=k, others=others):
            others[k] = value
            return loss(*others)

        right = reference.numerical_gradient(of_one, values[k].copy())
        np.testing.assert_allclose(found, right, atol=1e-6)


@pytest.mark.parametrize("where", ["new", "x", "residual", "strided", "dense after a view"])
@pytest.mark.parametrize("kind", ["first", "last", "reversed", "strided", "mixed"])
def test_arrays_of_any_kind_into_any_output(kind, where, rng):
    x, dy, residual, weight, bias, *_ = drawn(rng, (4, 6, 10), 1, "float32")
    lay = {
        "first": lambda a: a.copy(), "reversed": lambda a: a[::-1, ::-1].copy()[::-1, ::-1],
        "last": lambda a: np.ascontiguousarray(a.transpose(0, 2, 1)).transpose(0, 2, 1),
        "strided": lambda a: np.repeat(a, 2, axis=2)[..., ::2], "mixed": lambda a: a.copy(),
    }[kind]  # fmt: skip
    how = {"training": True, "weight": weight, "bias": bias, "activation": "silu"}
    odd, other = lay(x), lay(residual)
    if kind == "mixed":
        other = np.asfortranarray(residual)
    expected, plain = fastbn.batch_norm_forward(
        odd.copy(), residual=np.ascontiguousarray(other), **how
    )
    gradients = fastbn.batch_norm_backward(dy, plain)
    out = {"new": None, "x": odd, "residual": other, "strided": np.empty((4, 12, 10), "f4")[:, ::2],
           "dense after a view": np.empty(x.shape, "f4")}[where]  # fmt: skip
    y, cache = fastbn.batch_norm_forward(odd, residual=other, out=out, **how)
    assert out is None or y is out
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-6)
    if where in ("x", "residual"):
        with pytest.raises(RuntimeError, match="out="):
            fastbn.batch_norm_backward(dy, cache)
        return
    for into in (None, lay(dy), np.empty_like(odd)):
        gradient = lay(dy) if into is None else into
        if into is not None and into.strides == gradient.strides:
            np.copyto(gradient, dy)
        found = fastbn.batch_norm_backward(gradient, cache, out=into)
        np.testing.assert_allclose(found.x, gradients.x, rtol=0, atol=2e-6)
        np.testing.assert_allclose(found.residual, gradients.residual, rtol=0, atol=2e-6)


def test_a_sum_in_place_can_be_differentiated(rng):
    x, dy, residual, *_ = drawn(rng, (4, 6, 10), 1, "float32")
    y, cache = fastbn.batch_norm_forward(x, training=True, residual=residual, out=residual)
    assert y is residual
    gradients = fastbn.batch_norm_backward(dy, cache)
    np.testing.assert_array_equal(gradients.residual, dy)
    assert not np.shares_memory(gradients.residual, dy)


def test_results_do_not_depend_on_threads_or_tiles(rng, monkeypatch):
    x, dy, residual, weight, bias, *_ = drawn(rng, (16, 8, 30, 30), 1, "float32")
    how = {"training": True, "weight": weight, "bias": bias, "residual": residual,
           "activation": "gelu_tanh"}  # fmt: skip
    before, found = fastbn.get_num_threads(), []
    try:
        for threads, limits in ((1, {}), (2, {}), (2, {"tile_bytes": 1 << 16, "shared_rows": 99}),
                                (2, {"cache_bytes": 1 << 16})):  # fmt: skip
            internals.set_limits(monkeypatch, parallel_bytes=1, **limits)
            fastbn.set_num_threads(threads)
            y, cache = fastbn.batch_norm_forward(x, **how)
            gradients = fastbn.batch_norm_backward(dy, cache)
            found.append([a.tobytes() for a in (y, *gradients, gradients.residual)])
    finally:
        fastbn.set_num_threads(before)
        internals.forget_plans()
    assert found[0] == found[1] == found[2] == found[3]


def test_16_bits(rng):
    x, dy, residual, weight, bias, *_ = drawn(rng, (4, 6, 40), 1, "float32")
    x, dy, residual = (a.astype(np.float16) for a in (x, dy, residual))
    how = {"training": True, "activation": "hardswish", "weight": weight, "bias": bias}
    y, cache = fastbn.batch_norm_forward(x, residual=residual, **how)
    wide = [a.astype(np.float32) for a in (x, residual)]
    right, wide_cache = fastbn.batch_norm_forward(wide[0], residual=wide[1], **how)
    np.testing.assert_array_equal(y, right.astype(np.float16))
    found = fastbn.batch_norm_backward(dy, cache)
    expected = fastbn.batch_norm_backward(dy.astype(np.float32), wide_cache)
    np.testing.assert_array_equal(found.residual, expected.residual.astype(np.float16))
    np.testing.assert_allclose(found.x.astype("f4"), expected.x, atol=3e-3)


def test_channels_that_float32_cannot_hold(rng):
    x = np.stack([rng.normal(size=64) * s for s in (1e-30, 1, 1e30)], 1).astype(np.float32)
    residual = rng.normal(size=x.shape).astype(np.float32)
    y, cache = fastbn.batch_norm_forward(
        x, training=True, residual=residual, activation="tanh", eps=1e-80
    )
    z = reference.forward(x, np.ones(3), np.zeros(3), 1e-80, 1)[0] + residual
    np.testing.assert_allclose(y, np.tanh(z).astype(float), atol=1e-6)
    np.testing.assert_allclose(
        fastbn.batch_norm_backward(np.ones_like(x), cache).residual,
        (1 - np.tanh(z) ** 2).astype(float), atol=2e-6,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["relu_residual", "residual", "", "relu "])
def test_a_name_that_is_none_does_not_pass_for_a_pair_of_names(name, rng):
    x, _, residual, *_, mean, var = drawn(rng, (4, 6, 10), 1, "float32")
    for activation in ("relu", None):  # calls like it have been before
        fastbn.batch_norm(x, mean, var, activation=activation, residual=residual)
    for how in ({}, {"residual": residual}):
        with pytest.raises(ValueError, match="activation must be None or one of"):
            fastbn.batch_norm(x, mean, var, activation=name, **how)


@pytest.mark.parametrize("name", ["relu", "silu"])
def test_gradients_into_an_output_that_no_kernel_walks(name, rng):
    x, dy, *_ = drawn(rng, (4, 6, 10), 1, "float32")
    _, cache = fastbn.batch_norm_forward(x, training=True, activation=name)
    right = fastbn.batch_norm_backward(dy, cache).x
    for out in (np.empty_like(x)[::-1], np.empty((4, 6, 20), "f4")[..., ::2],
                np.empty((4, 8, 12), "f4")[:, 1:7, 1:11]):  # fmt: skip
        found = fastbn.batch_norm_backward(dy, cache, out=out).x
        assert found is out
        np.testing.assert_allclose(out, right, atol=2e-6)


def test_an_empty_batch():
    x = np.empty((0, 3, 4), np.float32)
    y, cache = fastbn.batch_norm_forward(x, training=True, residual=x, activation="relu")
    gradients = fastbn.batch_norm_backward(y, cache)
    assert gradients.residual.shape == x.shape


# --- layers ---------------------------------------------------------------------------------


def test_a_layer_with_an_activation(rng):
    x, dy, residual, *_ = drawn(rng, (4, 6, 10), 1, "float32")
    layer = fastbn.BatchNorm1d(6, activation="leaky_relu", negative_slope=SLOPE)
    assert repr(layer).endswith("activation='leaky_relu', negative_slope=0.2)")
    y = layer(x, residual=residual)
    how = {"activation": "leaky_relu", "negative_slope": SLOPE, "training": True}
    ones, zeros = np.ones(6, np.float32), np.zeros(6, np.float32)
    expected, cache = fastbn.batch_norm_forward(
        x, None, None, ones, zeros, residual=residual, **how
    )
    np.testing.assert_array_equal(y, expected)
    found, right = layer.backward(dy), fastbn.batch_norm_backward(dy, cache)
    for one, other in zip((*found, found.residual), (*right, right.residual), strict=True):
        np.testing.assert_array_equal(one, other)
    assert set(found.parameters()) == {"weight", "bias"}
    served = layer.eval()(x, residual=residual)
    assert not np.array_equal(served, y)
    for same in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        np.testing.assert_array_equal(same(x, residual=residual), served)
    layer.activation = None
    plain = layer(x)
    np.testing.assert_allclose(layer(x, residual=residual), plain + residual, atol=1e-6)
    z = plain + residual
    np.testing.assert_allclose(np.where(z > 0, z, z * np.float32(SLOPE)), served, atol=1e-6)


def test_a_copy_of_gradients_keeps_the_residual(rng):
    x, dy, residual, *_ = drawn(rng, (4, 6), 1, "float32")
    _, cache = fastbn.batch_norm_forward(x, training=True, residual=residual)
    gradients = fastbn.batch_norm_backward(dy, cache)
    dx, d_weight, d_bias = gradients
    for same in (copy.copy(gradients), pickle.loads(pickle.dumps(gradients))):
        np.testing.assert_array_equal(same.residual, gradients.residual)
        np.testing.assert_array_equal(same.x, dx)
    assert d_weight is d_bias is None
    assert repr(gradients) == (
        "Gradients(x=float32 (4, 6), weight=None, bias=None, residual=float32 (4, 6))"
    )
    same = gradients._replace(x=dy)
    assert (same.x is dy, same.residual is gradients.residual) == (True, True)
    assert gradients._replace(residual=dx).residual is dx


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ({"activation": "gelu"}, ValueError, "'gelu_tanh' is gelu in its tanh form"),
        ({"activation": "swish"}, ValueError, "here it is 'silu'"),
        ({"activation": "ReLU"}, ValueError, "here it is 'relu'"),
        ({"activation": "LeakyReLU"}, ValueError, "here it is 'leaky_relu'"),
        ({"activation": np.tanh}, ValueError, "call it on the output"),
        ({"activation": ["relu"]}, ValueError, "must be None or one of relu"),
        ({"activation": "relu", "negative_slope": "0.1"}, TypeError, "negative_slope must be a"),
        ({"activation": "leaky_relu", "negative_slope": np.inf}, ValueError, "must be finite"),
        ({"residual": np.ones((4, 5), "f4")}, ValueError, "residual has shape"),
        ({"residual": np.ones((4, 6))}, ValueError, r"expected those .*residual.astype\(x.dtype\)"),
        ({"residual": [[1.0]]}, TypeError, r"residual must be a numpy\.ndarray"),
    ],
)
def test_errors_say_what_is_wrong(how, error, says):
    x, mean, var = np.eye(4, 6, dtype="f4"), np.zeros(6, "f4"), np.ones(6, "f4")
    with pytest.raises(error, match=says):
        fastbn.batch_norm(x, mean, var, training=True, **how)
    assert var.tolist() == [1] * 6
    if "activation" in how:
        with pytest.raises(error, match=says):
            fastbn.BatchNorm1d(6, **how)


def test_an_output_that_overlaps_the_residual_in_part(rng):
    memory = rng.normal(size=(5, 6)).astype(np.float32)
    x = rng.normal(size=(4, 6)).astype(np.float32)
    with pytest.raises(ValueError, match="residual"):
        fastbn.batch_norm(x, training=True, residual=memory[:4], out=memory[1:])
