"""Batch renormalization: against its paper in float64, and batch norm where it is that."""

import copy
import math
import pickle
import re

import numpy as np
import pytest

import fastbn
from tests import reference

NORMS = {
    fastbn.BatchRenorm1d: fastbn.BatchNorm1d,
    fastbn.BatchRenorm2d: fastbn.BatchNorm2d,
    fastbn.BatchRenorm3d: fastbn.BatchNorm3d,
}
#: Layer, shape with 3 channels, axis of the layer, axis of the channels in that shape.
INPUTS = [
    (fastbn.BatchRenorm1d, (6, 3), 1, 1),
    (fastbn.BatchRenorm1d, (2, 3), -1, 1),
    (fastbn.BatchRenorm1d, (4, 3, 5), 1, 1),
    (fastbn.BatchRenorm1d, (4, 5, 3), -1, 2),
    (fastbn.BatchRenorm2d, (2, 3, 4, 5), 1, 1),
    (fastbn.BatchRenorm2d, (3, 4, 5), 1, 0),
    (fastbn.BatchRenorm2d, (2, 4, 5, 3), -1, 3),
    (fastbn.BatchRenorm3d, (2, 3, 2, 3, 2), 1, 1),
    (fastbn.BatchRenorm3d, (2, 3, 2, 3), -1, 3),
]
EPS = 1e-3
TOLERANCE = {"float32": 4e-6, "float64": 1e-13}
#: From no correction over some that are cut off to none that is.
LIMITS = [(1, 0), (1.5, 0.3), (3, 5), (math.inf, math.inf)]

dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
inputs = pytest.mark.parametrize(("layer", "shape", "axis", "at"), INPUTS, ids=str)
limits = pytest.mark.parametrize(("r_max", "d_max"), LIMITS)
affines = pytest.mark.parametrize("options", [{}, {"bias": False}, {"affine": False}], ids=str)


def made(layer, rng, r_max=3, d_max=5, **options):
    """A layer with random parameters and running statistics."""
    bn = layer(3, EPS, r_max=r_max, d_max=d_max, **options)
    for array in bn.parameters().values():
        array[:] = rng.normal(1, 0.5, 3)
    bn.running_mean[:] = rng.normal(0, 1, 3)
    bn.running_var[:] = rng.uniform(0.5, 4, 3)
    return bn


def wide(bn):
    """Weight, bias and running statistics in long double."""
    plain = {"weight": np.ones(3), "bias": np.zeros(3)}
    names = "weight", "bias", "running_mean", "running_var"
    state = {**plain, **bn.state_dict()}
    return [state[name].astype(np.longdouble) for name in names]


def assert_close(found, right, dtype):
    right = np.asarray(right, np.longdouble)
    assert found.dtype == dtype
    assert np.abs(found - right).max() <= TOLERANCE[dtype] * max(1, np.abs(right).max())


@inputs
@dtypes
@limits
@affines
def test_one_step_is_the_paper_s(layer, shape, axis, at, dtype, r_max, d_max, options, rng):
    bn = made(layer, rng, r_max, d_max, axis=axis, dtype=dtype, **options)
    weight, bias, mean, var = wide(bn)
    x, dy = rng.normal(0.5, 2, (2, *shape)).astype(dtype)
    before = x.copy()
    r, d = reference.renorm_terms(x, mean, var, r_max, d_max, EPS, at)
    y = bn(x)
    assert_close(y, reference.renorm(x, r, d, weight, bias, EPS, at), dtype)
    wanted = reference.renorm_running_step(mean, var, x, 0.1, EPS, at)
    for found, right in zip((bn.running_mean, bn.running_var), wanted, strict=True):
        assert_close(found, right, dtype)
    assert bn.num_batches_tracked == 1
    gradients = bn.backward(dy)
    right = reference.renorm_backward(dy, x, r, d, weight, EPS, at)
    for found, value in zip(gradients, right, strict=True):
        if found is not None:
            assert_close(found, value, dtype)
    assert (gradients.weight is None, gradients.bias is None) == (
        bn.weight is None, bn.bias is None)  # fmt: skip
    np.testing.assert_array_equal(x, before)


def test_gradients_are_those_of_finite_differences(rng):
    bn = made(fastbn.BatchRenorm1d, rng, 1.3, 0.4, dtype="float64")
    weight, bias, mean, var = (v.astype(float) for v in wide(bn))
    x, dy = rng.normal(0.5, 2, (2, 5, 3))
    r, d = (v.astype(float) for v in reference.renorm_terms(x, mean, var, 1.3, 0.4, EPS, 1))
    assert len(set(r) | set(d)) > 3  # some are cut off, some are not
    bn(x)
    found = bn.backward(dy)
    for values, gradient, at in ((x, found.x, 0), (weight, found.weight, 1), (bias, found.bias, 2)):
        given = [x, weight, bias]

        def loss(value, at=at, given=given):
            given[at] = value
            return float((reference.renorm(given[0], r, d, *given[1:], EPS, 1) * dy).sum())

        right = reference.numerical_gradient(loss, values.copy())
        np.testing.assert_allclose(gradient, right, rtol=0, atol=1e-7)


@inputs
@dtypes
@affines
def test_without_correction_it_is_batch_norm_to_the_bit(
    layer, shape, axis, at, dtype, options, rng
):
    bn = made(layer, rng, 1, 0, axis=axis, dtype=dtype, **options)
    plain = NORMS[layer](3, EPS, axis=axis, dtype=dtype, **options)
    plain.load_state_dict(bn.state_dict())
    for _ in range(2):
        x, dy = rng.normal(3, 2, (2, *shape)).astype(dtype)
        np.testing.assert_array_equal(bn(x), plain(x))
        for one, other in zip(bn.backward(dy), plain.backward(dy), strict=True):
            np.testing.assert_array_equal(one, other)
    with_out, fresh = np.empty_like(x), np.empty_like(x)
    np.testing.assert_array_equal(bn(x, out=with_out), plain(x, out=fresh))


@inputs
def test_a_state_dict_moves_either_way(layer, shape, axis, at, rng):
    bn = made(layer, rng, axis=axis)
    x = rng.normal(size=shape).astype(np.float32)
    bn(x)
    plain = NORMS[layer](3, EPS, axis=axis)
    assert list(bn.state_dict()) == list(plain.state_dict())
    assert plain.load_state_dict(bn.state_dict()) == ([], [])
    np.testing.assert_array_equal(plain.eval()(x), bn.eval()(x))
    for one, other in zip(plain.affine_terms(), bn.affine_terms(), strict=True):
        np.testing.assert_array_equal(one, other)
    plain.train()(x)
    assert bn.load_state_dict(plain.state_dict()) == ([], [])
    np.testing.assert_array_equal(plain.eval()(x), bn(x))


def test_a_state_dict_goes_on_with_the_schedule(rng):
    ramp = fastbn.Ramp(1, 3, 5, 10)
    seen = []
    bn = fastbn.BatchRenorm1d(3, r_max=lambda step: seen.append(step) or ramp(step), d_max=0)
    x = rng.normal(size=(4, 3)).astype(np.float32)
    bn(x)
    bn(x)
    bn.load_state_dict({**bn.state_dict(), "num_batches_tracked": np.array(7)})
    bn(x)
    bn.eval()(x)
    bn.train().reset_running_stats()
    bn(x)
    assert seen == [0, 1, 7, 0]


def test_the_default_is_the_paper_s_schedule():
    bn = fastbn.BatchRenorm2d(3)
    for step, r_max, d_max in (
        (0, 1, 0), (5_000, 1, 0), (15_000, 1 + 2 * 10 / 35, 2.5), (25_000, 1 + 2 * 20 / 35, 5),
        (40_000, 3, 5), (10**9, 3, 5),
    ):  # fmt: skip
        assert bn.r_max(step) == pytest.approx(r_max)
        assert bn.d_max(step) == pytest.approx(d_max)


def test_first_steps_are_those_of_the_paper(rng):
    """Running statistics start at 0 and 1, and the first batch's is far from them."""
    bn = fastbn.BatchRenorm1d(3, r_max=3, d_max=5, momentum=0.3)
    mean, var = np.zeros(3), np.ones(3)
    for step in range(8):
        x = rng.normal(20, 10, (4, 3)).astype(np.float32)
        r, d = reference.renorm_terms(x, mean, var, 3, 5, 1e-5, 1)
        assert_close(bn(x), reference.renorm(x, r, d, np.ones(3), np.zeros(3), 1e-5, 1), "float32")
        assert step or (d == 5).all()
        mean, var = reference.renorm_running_step(mean, var, x, 0.3, 1e-5, 1)
        np.testing.assert_allclose(bn.running_mean, mean.astype(float), rtol=1e-5)
        np.testing.assert_allclose(bn.running_var, var.astype(float), rtol=1e-5)
        mean, var = bn.running_mean.copy(), bn.running_var.copy()


def test_within_the_limits_training_gives_what_evaluation_gives(rng):
    bn = made(fastbn.BatchRenorm1d, rng, math.inf, math.inf, dtype="float64", momentum=0.0)
    x = rng.normal(size=(2, 3))
    np.testing.assert_allclose(bn(x), copy.deepcopy(bn).eval()(x), rtol=1e-12)


def test_cumulative_average_and_a_counter_below_zero(rng):
    bn = fastbn.BatchRenorm1d(3, momentum=None, dtype="float64", r_max=2, d_max=1)
    bn.num_batches_tracked[...] = -3
    batches = rng.normal(3, 2, (4, 5, 3))
    bn(batches[0])
    bn.reset_running_stats()
    for x in batches:
        bn(x)
    np.testing.assert_allclose(bn.running_mean, batches.mean((0, 1)), rtol=1e-12)
    sigma = np.sqrt(batches.var(axis=1) + 1e-5).mean(axis=0)
    np.testing.assert_allclose(np.sqrt(bn.running_var + 1e-5), sigma, rtol=1e-12)


@pytest.mark.parametrize("make", ["fortran", "reversed", "sliced", "swapped bytes", "unaligned"])
def test_arrays_of_any_kind(make, rng):
    x = rng.normal(2, 3, (4, 3, 6)).astype(np.float32)
    odd = {
        "fortran": np.asfortranarray, "reversed": lambda a: a[::-1, ::-1],
        "sliced": lambda a: np.repeat(a, 2, axis=2)[..., ::2],
        "swapped bytes": lambda a: a.astype(">f4"),
        "unaligned": lambda a: np.frombuffer(b"x" + a.tobytes(), "f4", offset=1).reshape(a.shape),
    }[make](x)  # fmt: skip
    plain = np.ascontiguousarray(odd).astype("f4")
    bn = made(fastbn.BatchRenorm1d, rng)
    twin = copy.deepcopy(bn)
    np.testing.assert_allclose(bn(odd), twin(plain), rtol=1e-6, atol=1e-6)
    for one, other in zip(bn.backward(x), twin.backward(x), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    out = np.empty((4, 3, 12), np.float32)[..., ::2]
    assert twin(odd, out=out) is out


def test_in_place(rng):
    bn = made(fastbn.BatchRenorm1d, rng)
    twin = copy.deepcopy(bn)
    x = rng.normal(size=(5, 3)).astype(np.float32)
    expected = twin(x)
    own = x.copy()
    assert bn(own, out=own) is own
    np.testing.assert_array_equal(own, expected)
    with pytest.raises(RuntimeError, match="out=x"):
        bn.backward(x)


def test_the_functions_differentiate_it_as_the_layer_does(rng):
    bn = made(fastbn.BatchRenorm1d, rng)
    x, dy = rng.normal(size=(2, 5, 3)).astype(np.float32)
    _, cache = bn.forward_with_cache(x)
    expected = bn.backward(dy)
    assert isinstance(cache, fastbn.ForwardCache)
    out = np.empty_like(dy)
    for found in (
        fastbn.norm_backward(dy, cache), fastbn.batch_norm_backward(dy, cache),
        bn.backward(dy, cache), fastbn.norm_backward(dy, cache, out=out),
    ):  # fmt: skip
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(out, expected.x)


def test_an_earlier_cache_does_not_change_with_the_layer(rng):
    bn = made(fastbn.BatchRenorm1d, rng)
    x, other, dy = rng.normal(size=(3, 5, 3)).astype(np.float32)
    _, cache = bn.forward_with_cache(x)
    expected = bn.backward(dy)
    bn(other)
    bn.weight[:] = 7
    for one, right in zip(bn.backward(dy, cache), expected, strict=True):
        np.testing.assert_array_equal(one, right)


@pytest.mark.parametrize("size", [1e-30, 1e18, 1e30])
def test_values_near_the_ends_of_float32(size, rng):
    bn = fastbn.BatchRenorm1d(3, 1e-5 * size**2 if size < 1 else 1e-5, dtype="float64", r_max=2,
                              d_max=1)  # fmt: skip
    bn.running_var[:] = size**2
    x = (rng.uniform(-1, 1, (64, 3)) * size).astype(np.float32)
    r, d = reference.renorm_terms(x, np.zeros(3), bn.running_var, 2, 1, bn.eps, 1)
    wanted = reference.renorm(x, r, d, np.ones(3), np.zeros(3), bn.eps, 1)
    np.testing.assert_allclose(bn(x), wanted.astype(float), rtol=0, atol=1e-5)
    assert np.isfinite(bn.backward(x / np.float32(size)).weight).all()


def test_a_mean_far_from_zero_and_a_constant_channel(rng):
    bn = fastbn.BatchRenorm1d(3, r_max=3, d_max=5)
    bn.running_mean[:], bn.running_var[:] = 1e4, 1
    x = (rng.normal(size=(512, 3)) + 1e4).astype(np.float32)
    x[:, 2] = 1e4
    r, d = reference.renorm_terms(x, bn.running_mean, bn.running_var, 3, 5, 1e-5, 1)
    wanted = reference.renorm(x, r, d, np.ones(3), np.zeros(3), 1e-5, 1)
    y = bn(x)
    np.testing.assert_allclose(y, wanted.astype(float), rtol=0, atol=1e-4)
    assert (y[:, 2] == y[0, 2]).all()
    for _ in range(200):
        bn(x)
    assert bn.running_var[2] >= 0  # sigma**2 - eps


# --- NaN and infinity -------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(value, rng):
    x = rng.normal(size=(6, 3)).astype(np.float32)
    clean = x.copy()
    x[2, 1] = value
    layers = {policy: made(fastbn.BatchRenorm1d, np.random.default_rng(1), on_nonfinite=policy)
              for policy in ("propagate", "skip", "raise")}  # fmt: skip
    before = layers["skip"].state_dict()
    y = layers["skip"](x)
    assert np.isnan(y[:, 1]).all()
    np.testing.assert_array_equal(y[:, [0, 2]], layers["propagate"](x)[:, [0, 2]])
    with pytest.raises(ValueError, match="holds NaN or infinity in channel 1"):
        layers["raise"](x)
    for policy in ("skip", "raise"):
        for name, array in layers[policy].state_dict().items():
            np.testing.assert_array_equal(array, before[name])
    assert not np.isfinite(layers["propagate"].running_mean[1])
    assert np.isfinite(layers["propagate"].running_mean[[0, 2]]).all()
    np.testing.assert_array_equal(layers["raise"](clean), layers["skip"](clean))


def test_running_statistics_that_would_overflow(rng):
    x = (rng.uniform(0.5, 1, (6, 3)) * 3e38).astype(np.float32)
    bn = fastbn.BatchRenorm1d(3, momentum=1.0, on_nonfinite="raise")
    with pytest.raises(ValueError, match="would make running_var infinite"):
        bn(x)
    bn.on_nonfinite = "skip"
    bn(x)
    assert bn.num_batches_tracked == 0


# --- a layer's life ---------------------------------------------------------------------------


def test_modes(rng):
    bn = made(fastbn.BatchRenorm2d, rng)
    x = rng.normal(size=(2, 3, 4, 4)).astype(np.float32)
    before = bn.state_dict()
    plain = fastbn.BatchNorm2d(3, EPS)
    plain.load_state_dict(before)
    plain.eval()
    for layer in (bn.eval(), bn.train().freeze()):
        np.testing.assert_array_equal(layer(x), plain(x))
        y, cache = layer.forward_with_cache(x)
        np.testing.assert_array_equal(
            layer.backward(y, cache).x, plain.backward(y, plain.forward_with_cache(x)[1]).x
        )
        with pytest.raises(RuntimeError, match="no training call"):
            layer.backward(y)
    for name, array in bn.unfreeze().state_dict().items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda bn: pickle.loads(pickle.dumps(bn))])
@pytest.mark.parametrize("layer", NORMS)
def test_a_copy_is_equal_and_independent(clone, layer, rng):
    bn = made(layer, rng, fastbn.Ramp(1, 3, 0, 10), 0.5)
    shape = next(shape for of, shape, *_ in INPUTS if of is layer)
    x = rng.normal(size=shape).astype(np.float32)
    bn(x)
    twin = clone(bn)
    assert repr(twin) == repr(bn)
    assert twin.r_max == bn.r_max
    np.testing.assert_array_equal(twin(x), bn(x))
    twin(x)
    assert (twin.num_batches_tracked, bn.num_batches_tracked) == (3, 2)


def test_repr():
    assert repr(fastbn.BatchRenorm1d(3, r_max=2, d_max=math.inf, axis=-1)) == (
        "BatchRenorm1d(3, eps=1e-05, momentum=0.1, affine=True, bias=True, "
        "track_running_stats=True, r_max=2.0, d_max=inf, axis=-1)"
    )
    assert "d_max=Ramp(start=0, end=5, first=5000, last=25000)" in repr(fastbn.BatchRenorm3d(3))


def test_empty_batches_change_nothing():
    bn = fastbn.BatchRenorm1d(3, r_max=3, d_max=5)
    x = np.empty((0, 3), np.float32)
    assert bn(x).shape == (0, 3)
    assert bn.num_batches_tracked == 0
    assert bn.backward(x).weight.tolist() == [0, 0, 0]


# --- errors -----------------------------------------------------------------------------------


def changed(**how):
    """A training call of a layer with other limits."""
    return lambda bn, x: [setattr(bn, *item) for item in how.items()] and bn(x)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda bn, x: bn(x[:1]), ValueError, "expected more than 1 value per channel"),
        (lambda bn, x: bn(x[:, :2]), ValueError, "num_features=3"),
        (lambda bn, x: bn(x.astype(int)), TypeError, "x must be float32, float64"),
        (lambda bn, x: bn(x, out=x[:2]), ValueError, "out has shape"),
        (lambda bn, x: setattr(bn, "r_max", 0.5), ValueError, "r_max must be 1 or more, got 0.5"),
        (lambda bn, x: setattr(bn, "d_max", -1), ValueError, "d_max must be 0 or more, got -1"),
        (lambda bn, x: setattr(bn, "d_max", math.nan), ValueError, "d_max must be 0 or more"),
        (lambda bn, x: setattr(bn, "r_max", "3"), TypeError, "a number or a callable of the step"),
        (lambda bn, x: setattr(bn, "r_max", None), TypeError, "a number or a callable of the step"),
        (changed(r_max=lambda step: 0), ValueError, "r_max must be 1 or more, got 0 at step 1"),
        (changed(d_max=lambda step: None), TypeError, "d_max must be a number, got None"),
        (changed(d_max=lambda step: 1 / 0), ZeroDivisionError, "division"),
        (lambda bn, x: bn.to("cuda"), NotImplementedError, "BatchNorm1d there, which loads"),
        (lambda bn, x: bn.backward(x[:2]), ValueError, "dy has shape"),
    ],
)  # fmt: skip
def test_an_error_changes_nothing(call, error, says, rng):
    bn = made(fastbn.BatchRenorm1d, rng)
    x = rng.normal(size=(5, 3)).astype(np.float32)
    bn(x)
    before, expected = bn.state_dict(), bn.backward(x)
    with pytest.raises(error, match=says):
        call(bn, x)
    for name, array in bn.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    np.testing.assert_array_equal(bn.backward(x).x, expected.x)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: fastbn.BatchRenorm2d(3, track_running_stats=False), ValueError,
         "take BatchNorm2d to go without"),
        (lambda: fastbn.BatchRenorm2d(3, device="cuda"), NotImplementedError,
         "no BatchRenorm2d on a device yet.*take BatchNorm2d there"),
        (lambda: fastbn.BatchRenorm2d(3, rmax=3), TypeError, "did you mean 'r_max'"),
        (lambda: fastbn.Ramp(1, 3, 10, 5), ValueError, "last must not be before first"),
        (lambda: fastbn.Ramp(1, "3", 10, 15), TypeError, "end must be a number"),
        (lambda: fastbn.Ramp(1, math.inf, 10, 15), ValueError, "end must be finite"),
    ],
)  # fmt: skip
def test_what_cannot_be_made(make, error, says):
    with pytest.raises(error, match=says):
        make()


def test_a_ramp_may_jump():
    ramp = fastbn.Ramp(1, 3, 10, 10)
    assert [ramp(step) for step in (0, 9, 10, 11)] == [1, 1, 3, 3]


# --- masks --------------------------------------------------------------------------------------

OF_RANK = {
    1: (fastbn.BatchRenorm1d, fastbn.BatchNorm1d),
    2: (fastbn.BatchRenorm2d, fastbn.BatchNorm2d),
    3: (fastbn.BatchRenorm3d, fastbn.BatchNorm3d),
}


def refused(layer, x, mask=None):
    with pytest.raises(NotImplementedError, match="takes no mask") as caught:
        layer(x, mask=mask)
    return str(caught.value)


def followed(said, **names):
    """What the advice to leave out whole samples gives."""
    return eval(re.search(r"samples: (\S+\[.*?\)\]|x\[mask\])", said)[1], {"np": np, **names})


@pytest.mark.parametrize("positions", [(), (2,), (2, 3), (2, 3, 2)])
def test_the_advice_on_a_mask_can_be_followed(positions, rng):
    renorm, norm = OF_RANK[max(1, len(positions))]
    x = rng.normal(size=(4, 3, *positions)).astype(np.float32)
    kept = np.array([True, False, True, True])
    mask = np.broadcast_to(kept.reshape(4, *[1] * (x.ndim - 1)), (4, 1, *positions))
    for layer in (renorm(3), norm(3, virtual_batch_size=2)):
        said = refused(layer, x, mask)
        np.testing.assert_array_equal(followed(said, x=x, mask=mask), x[kept])
        np.testing.assert_array_equal(followed(refused(layer, x, kept), x=x, mask=kept), x[kept])
        masked = np.ma.MaskedArray(x, ~np.broadcast_to(mask, x.shape))
        np.testing.assert_array_equal(followed(refused(layer, masked), x=masked), x[kept])
        assert layer.num_batches_tracked == 0
    assert f"otherwise train with {norm.__name__}" in refused(renorm(3), x, mask)
    assert "otherwise train without groups" in refused(layer, x, mask)


def test_no_sample_is_to_be_left_out_where_the_mask_has_none(rng):
    x = rng.normal(size=(4, 3, 2)).astype(np.float32)
    for mask in (np.ones((1, 1, 2), bool), [True], "mask"):
        said = refused(fastbn.BatchRenorm1d(3), x, mask)
        assert "samples" not in said
        assert said.endswith("train with BatchNorm1d")
    single = rng.normal(size=(3, 2, 2)).astype(np.float32)
    assert "samples" not in refused(fastbn.BatchRenorm2d(3), single, single > 0)
