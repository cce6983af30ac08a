"""Ghost batch norm: batch norm of each group of samples, and statistics of all of them."""

import copy
import pickle

import numpy as np
import pytest

import fastbn
from tests import reference

BatchNorm1d, BatchNorm2d, BatchNorm3d = fastbn.BatchNorm1d, fastbn.BatchNorm2d, fastbn.BatchNorm3d
#: Layer, shape with 3 channels, axis, size of a group, where groups begin.
INPUTS = [
    (BatchNorm1d, (8, 3), 1, 4, [0, 4]),
    (BatchNorm1d, (11, 3), 1, 4, [0, 4, 8]),
    (BatchNorm1d, (9, 3), 1, 4, [0, 4]),  # a last group of one value joins the one before
    (BatchNorm1d, (3, 3), -1, 2, [0]),
    (BatchNorm1d, (5, 3, 4), 1, 2, [0, 2, 4]),  # of one sample, which has four values
    (BatchNorm1d, (5, 3, 1), 1, 2, [0, 2]),
    (BatchNorm1d, (3, 5, 3), -1, 1, [0, 1, 2]),
    (BatchNorm2d, (5, 3, 4, 5), 1, 3, [0, 3]),
    (BatchNorm2d, (6, 4, 5, 3), -1, 2, [0, 2, 4]),
    (BatchNorm2d, (4, 3, 2, 2), 1, 4, [0]),
    (BatchNorm2d, (4, 3, 2, 2), 1, 100, [0]),
    (BatchNorm3d, (3, 3, 2, 1, 2), 1, 2, [0, 2]),
]
EPS = 1e-3

dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
inputs = pytest.mark.parametrize(("layer", "shape", "axis", "size", "starts"), INPUTS, ids=str)
affines = pytest.mark.parametrize("options", [{}, {"bias": False}, {"affine": False}], ids=str)


def made(layer, rng, size, **options):
    bn = layer(3, EPS, virtual_batch_size=size, **options)
    for array in bn.parameters().values():
        array[:] = rng.normal(1, 0.5, 3)
    return bn


def groups_of(x, starts):
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], len(x)], strict=True)]


@inputs
@dtypes
@affines
def test_it_is_batch_norm_of_each_group_to_the_bit(
    layer, shape, axis, size, starts, dtype, options, rng
):
    bn = made(layer, rng, size, axis=axis, dtype=dtype, **options)
    x, dy = rng.normal(2, 3, (2, *shape)).astype(dtype)
    x += np.arange(len(x), dtype=dtype).reshape(-1, *[1] * (x.ndim - 1))  # groups differ
    at = 1 if x.ndim == 2 else axis % x.ndim
    how = {"weight": bn.weight, "bias": bn.bias, "training": True, "eps": EPS, "axis": at}
    before = x.copy()
    y = bn(x)
    gradients = bn.backward(dy)
    sums = np.zeros((2, 3))
    for some in groups_of(x, starts):
        right, cache = fastbn.batch_norm_forward(x[some], **how)
        np.testing.assert_array_equal(y[some], right)
        of_group = fastbn.batch_norm_backward(dy[some], cache)
        np.testing.assert_array_equal(gradients.x[some], of_group.x)
        for k, value in enumerate(of_group[1:]):
            sums[k] += 0 if value is None else value
    for value, right, there in zip(gradients[1:], sums, (bn.weight, bn.bias), strict=True):
        assert (value is None) == (there is None)
        if there is not None:
            np.testing.assert_array_equal(value, right.astype(dtype))
    np.testing.assert_array_equal(x, before)
    mean, var = reference.running_step(np.zeros(3), np.ones(3), x, 0.1, at)
    rtol = 1e-6 if dtype == "float32" else 1e-13
    np.testing.assert_allclose(bn.running_mean, mean.astype(float), rtol=rtol)
    np.testing.assert_allclose(bn.running_var, var.astype(float), rtol=rtol)
    assert bn.num_batches_tracked == 1


@inputs
def test_against_the_reference(layer, shape, axis, size, starts, rng):
    bn = made(layer, rng, size, axis=axis, dtype="float64")
    x, dy = rng.normal(2, 3, (2, *shape))
    at = 1 if x.ndim == 2 else axis % x.ndim
    y = bn(x)
    found = bn.backward(dy)
    groups = groups_of(x, starts)
    right = reference.ghost_backward(dy, x, groups, bn.weight, EPS, at)
    for one, other in zip(found, right, strict=True):
        np.testing.assert_allclose(one, other.astype(float), rtol=1e-10, atol=1e-11)
    right = reference.ghost(x, groups, bn.weight, bn.bias, EPS, at)
    np.testing.assert_allclose(y, right.astype(float), rtol=1e-12, atol=1e-12)
    for values, gradient, name in ((x, found.x, 0), (bn.weight, found.weight, 1),
                                   (bn.bias, found.bias, 2)):  # fmt: skip
        given = [x, bn.weight, bn.bias]

        def loss(value, name=name, given=given):
            given[name] = value
            return float((reference.ghost(given[0], groups, *given[1:], EPS, at) * dy).sum())

        right = reference.numerical_gradient(loss, values.copy())
        np.testing.assert_allclose(gradient, right, rtol=0, atol=1e-6)


def test_running_statistics_are_those_of_the_merged_groups(rng):
    x = rng.normal(3, 2, (10, 3, 4))
    x[:4] += 100
    bn = fastbn.BatchNorm1d(3, momentum=1.0, dtype="float64", virtual_batch_size=4)
    bn(x)
    stats = fastbn.ChannelStats.empty(3)
    for some in (slice(0, 4), slice(4, 8), slice(8, 10)):
        stats = stats.merge(fastbn.channel_stats(x[some]))
    np.testing.assert_allclose(bn.running_mean, stats.mean, rtol=1e-14)
    np.testing.assert_allclose(bn.running_var, stats.var(ddof=1), rtol=1e-14)


@pytest.mark.parametrize("options", [{}, {"track_running_stats": False}, {"momentum": None}])
def test_evaluation_and_other_modes_know_nothing_of_it(options, rng):
    x = rng.normal(size=(7, 3, 4)).astype(np.float32)
    bn, plain = fastbn.BatchNorm1d(3, virtual_batch_size=2, **options), BatchNorm1d(3, **options)
    bn(x)
    plain.load_state_dict(bn.state_dict())
    for layer in (bn, plain):
        layer.eval()
    np.testing.assert_array_equal(bn(x), plain(x))
    for layer in (bn, plain):
        layer.train().freeze()
    np.testing.assert_array_equal(bn(x), plain(x))
    y, cache = bn.forward_with_cache(x)
    np.testing.assert_array_equal(
        bn.backward(y, cache).x, plain.backward(y, plain.forward_with_cache(x)[1]).x
    )


def test_it_can_be_set_and_taken_back(rng):
    x = rng.normal(size=(6, 3)).astype(np.float32)
    bn, plain = fastbn.BatchNorm1d(3), fastbn.BatchNorm1d(3)
    np.testing.assert_array_equal(bn(x), plain(x))
    bn.virtual_batch_size = np.int64(3)
    assert not np.array_equal(bn(x), plain(x))
    bn.virtual_batch_size = None
    np.testing.assert_array_equal(bn(x), plain(x))


def test_a_single_sample_is_a_group(rng):
    x = rng.normal(size=(3, 4, 5)).astype(np.float32)
    bn, plain = fastbn.BatchNorm2d(3, virtual_batch_size=1), fastbn.BatchNorm2d(3)
    np.testing.assert_array_equal(bn(x), plain(x))
    np.testing.assert_array_equal(bn.backward(x).x, plain.backward(x).x)
    for name, array in bn.state_dict().items():
        np.testing.assert_array_equal(array, plain.state_dict()[name])


@pytest.mark.parametrize("make", ["fortran", "reversed", "sliced", "swapped bytes", "unaligned"])
def test_arrays_of_any_kind(make, rng):
    x, dy = rng.normal(2, 3, (2, 5, 3, 6)).astype(np.float32)
    odd = {
        "fortran": np.asfortranarray, "reversed": lambda a: a[::-1, ::-1],
        "sliced": lambda a: np.repeat(a, 2, axis=2)[..., ::2],
        "swapped bytes": lambda a: a.astype(">f4"),
        "unaligned": lambda a: np.frombuffer(b"x" + a.tobytes(), "f4", offset=1).reshape(a.shape),
    }[make](x)  # fmt: skip
    bn = made(BatchNorm1d, rng, 2)
    y, cache = bn.forward_with_cache(odd)
    found = fastbn.norm_backward(np.asfortranarray(dy), cache)
    out, d_out = np.empty((10, 3, 6), np.float32)[::2], np.empty((5, 6, 3), np.float32)
    d_out = d_out.swapaxes(1, 2)
    assert bn(odd, out=out) is out
    np.testing.assert_array_equal(out, y)
    assert fastbn.batch_norm_backward(dy, cache, out=d_out).x is d_out
    np.testing.assert_array_equal(d_out, found.x)
    plain = np.ascontiguousarray(odd).astype("f4")
    np.testing.assert_allclose(bn(plain), y, rtol=1e-5, atol=1e-6)
    for one, other in zip(bn.backward(dy), found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_in_place(rng):
    bn = made(BatchNorm1d, rng, 2)
    x, dy = rng.normal(size=(2, 5, 3, 2)).astype(np.float32)
    expected, cache = bn.forward_with_cache(x)
    gradient = bn.backward(dy, cache).x
    there, own = dy.copy(), x.copy()
    assert fastbn.norm_backward(there, cache, out=there).x is there
    np.testing.assert_array_equal(there, gradient)
    assert bn(own, out=own) is own
    np.testing.assert_array_equal(own, expected)
    with pytest.raises(RuntimeError, match="out=x"):
        bn.backward(x)


@pytest.mark.parametrize("size", [1e-30, 1e4, 1e30])
def test_values_of_any_size(size, rng):
    x = (rng.normal(size=(9, 3, 8)) * size).astype(np.float32)
    bn = fastbn.BatchNorm1d(3, min(1e-5, 1e-5 * size**2), virtual_batch_size=4, dtype="float64")
    groups = groups_of(x, [0, 4, 8])
    right = reference.ghost(x, groups, np.ones(3), np.zeros(3), bn.eps, 1)
    np.testing.assert_allclose(bn(x), right.astype(float), rtol=0, atol=1e-5)
    mean, var = reference.running_step(np.zeros(3), np.ones(3), x, 0.1, 1)
    np.testing.assert_allclose(bn.running_var, var.astype(float), rtol=1e-5)
    np.testing.assert_allclose(bn.running_mean, mean.astype(float), rtol=1e-4)


def test_values_that_are_not_finite_stay_in_their_group(rng):
    x = rng.normal(size=(6, 3)).astype(np.float32)
    clean = fastbn.BatchNorm1d(3, virtual_batch_size=2)(x)
    x[2, 1] = np.inf
    bn = fastbn.BatchNorm1d(3, virtual_batch_size=2, on_nonfinite="skip")
    y = bn(x)
    np.testing.assert_array_equal(y[[0, 1, 4, 5]], clean[[0, 1, 4, 5]])
    assert np.isnan(y[2:4, 1]).all()
    assert bn.num_batches_tracked == 0
    bn.on_nonfinite = "raise"
    with pytest.raises(ValueError, match="holds NaN or infinity in channel 1"):
        bn(x)
    bn.on_nonfinite = "propagate"
    bn(x)
    assert np.isfinite(bn.running_mean).tolist() == [True, False, True]
    assert bn.running_mean[1] == np.inf


def test_empty_batches_change_nothing():
    bn = fastbn.BatchNorm1d(3, virtual_batch_size=1)
    x = np.empty((0, 3), np.float32)
    assert bn(x).shape == (0, 3)
    assert bn.num_batches_tracked == 0
    assert bn.backward(x).weight.tolist() == [0, 0, 0]


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda bn: pickle.loads(pickle.dumps(bn))])
def test_a_copy_has_it(clone, rng):
    bn = made(BatchNorm1d, rng, 2)
    twin = clone(bn)
    assert repr(twin) == repr(bn)
    assert repr(bn).endswith("track_running_stats=True, virtual_batch_size=2)")
    x = rng.normal(size=(5, 3)).astype(np.float32)
    np.testing.assert_array_equal(twin(x), bn(x))
    state = bn.__getstate__()
    del state["virtual_batch_size"]  # as in a pickle of an older version
    old = object.__new__(BatchNorm1d)
    old.__setstate__(state)
    assert old.virtual_batch_size is None


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda bn, x: bn(x[:1]), ValueError, "expected more than 1 value per channel"),
        (lambda bn, x: bn(x[:, :2]), ValueError, "num_features=3"),
        (lambda bn, x: bn(x, out=x[::-1]), ValueError, "out overlaps x"),
        (lambda bn, x: bn.backward(x[:2]), ValueError, "dy has shape"),
        (lambda bn, x: setattr(bn, "virtual_batch_size", 0), ValueError, "None takes the stat"),
        (lambda bn, x: setattr(bn, "virtual_batch_size", 2.0), TypeError, "must be a positive int"),
        (lambda bn, x: setattr(bn, "virtual_batch_size", True), TypeError, "must be a positive"),
    ],
)  # fmt: skip
def test_an_error_changes_nothing(call, error, says, rng):
    bn = made(BatchNorm1d, rng, 2)
    x = rng.normal(size=(5, 3)).astype(np.float32)
    bn(x)
    before, expected = bn.state_dict(), bn.backward(x)
    with pytest.raises(error, match=says):
        call(bn, x)
    for name, array in bn.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    np.testing.assert_array_equal(bn.backward(x).x, expected.x)


def test_groups_of_one_value_are_refused(rng):
    bn = fastbn.BatchNorm1d(3, virtual_batch_size=1)
    x = rng.normal(size=(5, 3)).astype(np.float32)
    with pytest.raises(ValueError, match="virtual_batch_size=1 leaves 1 value per channel"):
        bn(x)
    assert bn.num_batches_tracked == 0
    bn(x[..., None].repeat(2, axis=2))


def test_renorm_has_no_groups():
    with pytest.raises(ValueError, match="BatchNorm1d has them"):
        fastbn.BatchRenorm1d(3).virtual_batch_size = 4
    with pytest.raises(TypeError, match="no argument 'virtual_batch_size'"):
        fastbn.BatchRenorm1d(3, virtual_batch_size=4)


# --- activations --------------------------------------------------------------------------------


def no_activation(name="relu"):
    says = f"virtual_batch_size=2 and activation='{name}'; .*to the output"
    return pytest.raises(NotImplementedError, match=says)


def test_what_no_training_call_can_do_is_refused_before():
    with no_activation():
        fastbn.BatchNorm1d(3, virtual_batch_size=2, activation="relu")
    ghost, fused = fastbn.BatchNorm1d(3, virtual_batch_size=2), BatchNorm1d(3, activation="silu")
    with no_activation():
        ghost.activation = "relu"
    with no_activation("silu"):
        fused.virtual_batch_size = 2
    assert (ghost.activation, fused.virtual_batch_size) == (None, None)
    with pytest.raises(ValueError, match="activation must be None or one of"):
        ghost.activation = "rilu"
    ghost.virtual_batch_size, ghost.activation = None, "relu"  # nothing is in the way any more


@pytest.mark.parametrize("served", [BatchNorm1d.eval, BatchNorm1d.freeze])
def test_an_activation_may_be_set_where_no_group_is_normalized(served, rng):
    x = rng.normal(size=(6, 3)).astype(np.float32)
    bn = made(BatchNorm1d, rng, 2)
    bn(x)
    expected = np.maximum(served(bn)(x), 0)
    bn.activation = "relu"
    np.testing.assert_array_equal(bn(x), expected)
    twin = pickle.loads(pickle.dumps(bn))
    np.testing.assert_array_equal(twin(x), expected)
    with pytest.raises(NotImplementedError, match="no activation"):
        twin.unfreeze().train()(x)
    assert twin.num_batches_tracked == 1
