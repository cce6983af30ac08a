"""Layers: modes, state, torch's names, pickling."""

import copy
import pickle
import threading
import weakref

import numpy as np
import pytest

import fastbn
from tests import internals, reference

LAYERS = [fastbn.BatchNorm1d, fastbn.BatchNorm2d, fastbn.BatchNorm3d]
SHAPES = {
    fastbn.BatchNorm1d: (6, 3, 4),
    fastbn.BatchNorm2d: (6, 3, 4, 2),
    fastbn.BatchNorm3d: (6, 3, 2, 2, 2),
}


def trained(layer=fastbn.BatchNorm2d, seed=0, **options):
    """A layer with random parameters after one training step."""
    rng = np.random.default_rng(seed)
    bn = layer(3, **options)
    for array in (bn.weight, bn.bias):
        if array is not None:
            array[:] = rng.normal(1, 0.3, 3)
    bn(rng.normal(2, 3, SHAPES[layer]).astype(np.float32))
    return bn


def assert_same_state(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("layer", LAYERS)
def test_torch_prints_it_the_same_way(layer):
    name = layer.__name__
    assert repr(layer(3)) == (
        f"{name}(3, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)"
    )
    assert repr(layer(8, 1e-3, None, False, False)) == (
        f"{name}(8, eps=0.001, momentum=None, affine=False, bias=False, track_running_stats=False)"
    )
    assert repr(layer(2, axis=-1)).endswith(", axis=-1)")


@pytest.mark.parametrize("dtype", [None, np.float32, np.float64, "float64"])
def test_parameters_and_buffers(dtype):
    bn = fastbn.BatchNorm2d(4, dtype=dtype)
    wanted = np.dtype(dtype or np.float32)
    for name, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
        array = getattr(bn, name)
        assert array.dtype == wanted
        np.testing.assert_array_equal(array, np.full(4, value))
    assert bn.num_batches_tracked.dtype == np.int64
    assert bn.num_batches_tracked.shape == ()


def test_without_affine_and_without_bias(rng):
    x = rng.normal(size=(5, 3))
    plain = fastbn.BatchNorm1d(3, affine=False, dtype=np.float64)
    assert plain.weight is plain.bias is None
    expected = reference.forward(x, np.ones(3), np.zeros(3), 1e-5, 1)[0].astype(float)
    np.testing.assert_allclose(plain(x), expected, rtol=1e-12)
    assert plain.backward(x)[1:] == (None, None)
    scaled = fastbn.BatchNorm1d(3, bias=False, dtype=np.float64)
    assert scaled.bias is None
    scaled.weight[:] = 2
    np.testing.assert_allclose(scaled(x), 2 * expected, rtol=1e-12)
    grads = scaled.backward(x)
    assert grads.weight.shape == (3,)
    assert grads.bias is None


def test_modes_return_the_layer():
    bn = fastbn.BatchNorm2d(3)
    assert bn.training
    assert bn.eval() is bn
    assert not bn.training
    assert bn.train() is bn
    assert bn.training
    assert bn.train(False) is bn
    assert not bn.training
    bn.training = True
    assert bn.training


def test_frozen_stays_in_evaluation(rng):
    bn = trained().freeze()
    before = bn.state_dict()
    assert not bn.train().training
    bn(rng.normal(size=(4, 3, 2, 2)).astype(np.float32))
    assert_same_state(bn.state_dict(), before)
    assert bn.unfreeze().training
    assert not bn.eval().freeze().unfreeze().training


@pytest.mark.parametrize("layer", LAYERS)
def test_channels_last(layer, rng):
    shape = SHAPES[layer]
    first, last = trained(layer), trained(layer)
    last.axis = -1
    x = rng.normal(size=shape).astype(np.float32)
    for sample in (x, x[0]) if layer is not fastbn.BatchNorm1d else (x,):
        axis = 1 if sample is x else 0
        moved = np.ascontiguousarray(np.moveaxis(sample, axis, -1))
        for bn in (first, last):
            bn.train()
        y, z = first(sample), last(moved)
        np.testing.assert_allclose(np.moveaxis(z, -1, axis), y, rtol=1e-5, atol=1e-6)
        y, z = first.eval()(sample), last.eval()(moved)
        np.testing.assert_allclose(np.moveaxis(z, -1, axis), y, rtol=1e-5, atol=1e-6)


def test_two_dimensions_to_1d_are_always_samples_and_channels(rng):
    x = rng.normal(size=(5, 3)).astype(np.float32)
    np.testing.assert_array_equal(fastbn.BatchNorm1d(3, axis=2)(x), fastbn.BatchNorm1d(3)(x))


def test_an_unbatched_input_is_one_sample(rng):
    x = rng.normal(size=(3, 5, 4)).astype(np.float32)
    single, batch = fastbn.BatchNorm2d(3), fastbn.BatchNorm2d(3)
    np.testing.assert_array_equal(single(x), batch(x[None])[0])
    assert_same_state(single.state_dict(), batch.state_dict())


def test_backward_uses_the_last_training_forward(rng):
    bn = fastbn.BatchNorm1d(3, dtype=np.float64)
    other, x, dy = rng.normal(size=(3, 6, 3))
    bn(other)
    bn.train()(x)
    mean, var = reference.mean_and_var(x, 1)
    expected = reference.backward(dy, x, mean, var, bn.weight, 1e-5, 1, batch_statistics=True)
    for actual, wanted in zip(bn.backward(dy), expected, strict=True):
        np.testing.assert_allclose(actual, wanted.astype(float), rtol=1e-10, atol=1e-12)


FORGETS = {
    "eval": lambda bn: bn.eval(),
    "train(False)": lambda bn: bn.train(False),
    "training": lambda bn: setattr(bn, "training", False),
    "freeze": lambda bn: bn.freeze(),
    "load_state_dict": lambda bn: bn.load_state_dict(bn.state_dict()),
    "reset_running_stats": lambda bn: bn.reset_running_stats(),
    "reset_parameters": lambda bn: bn.reset_parameters(),
}


@pytest.mark.parametrize("change", FORGETS)
def test_backward_never_differentiates_a_batch_of_before(change, rng):
    bn = fastbn.BatchNorm1d(3)
    x, other = rng.normal(size=(2, 6, 3)).astype(np.float32)
    bn(x)
    batch = weakref.ref(x)
    FORGETS[change](bn)
    if not bn.training:
        bn(other)
    with pytest.raises(RuntimeError, match=r"bn\.forward_with_cache\(x\)"):
        bn.backward(np.ones_like(other))
    del x
    assert batch() is None  # nor is its memory kept


@pytest.mark.parametrize("change", ["train", "unfreeze"])
def test_backward_survives_what_changes_no_mode(change, rng):
    """Many training loops call train() at each step."""
    bn = fastbn.BatchNorm1d(3)
    x, dy = rng.normal(size=(2, 6, 3)).astype(np.float32)
    bn(x)
    expected = bn.backward(dy).x
    getattr(bn, change)()
    np.testing.assert_array_equal(bn.backward(dy).x, expected)


def test_a_load_that_fails_forgets_nothing(rng):
    bn = fastbn.BatchNorm1d(3)
    x = rng.normal(size=(6, 3)).astype(np.float32)
    bn(x)
    with pytest.raises(KeyError):
        bn.load_state_dict({})
    assert bn.backward(x).x.shape == x.shape


def test_backward_without_a_forward_helps_a_frozen_layer_too():
    bn, dy = fastbn.BatchNorm1d(3), np.ones((4, 3), np.float32)
    with pytest.raises(RuntimeError, match=r"train\(\) mode first.*forward_with_cache\(x\)"):
        bn.backward(dy)
    with pytest.raises(RuntimeError, match=r"frozen .*, y, cache = bn\.forward_w"):
        bn.freeze().backward(dy)


# --- gradients by name ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "names"),
    [({}, ["weight", "bias"]), ({"bias": False}, ["weight"]), ({"affine": False}, [])],
)
def test_parameters_and_their_gradients_have_the_same_names(options, names, rng):
    bn = fastbn.BatchNorm1d(3, **options)
    x = rng.normal(size=(6, 3)).astype(np.float32)
    bn(x)
    grads = bn.backward(x)
    parameters, gradients = bn.parameters(), grads.parameters()
    assert list(parameters) == list(gradients) == names
    for name in names:
        assert parameters[name] is getattr(bn, name)  # so that a step in place is one of the layer
        assert gradients[name] is getattr(grads, name)
        assert gradients[name].shape == parameters[name].shape


def test_a_frozen_layer_has_its_parameters_still():
    assert list(fastbn.BatchNorm1d(3).freeze().parameters()) == ["weight", "bias"]


def test_backward_in_evaluation_through_an_explicit_cache(rng):
    bn = trained(fastbn.BatchNorm1d).eval()
    x, dy = rng.normal(size=(2, 6, 3, 4)).astype(np.float32)
    before = pickle.dumps(bn)
    y, cache = bn.forward_with_cache(x)
    np.testing.assert_array_equal(y, bn(x))
    expected = reference.backward(
        dy, x, bn.running_mean, bn.running_var, bn.weight, 1e-5, 1, batch_statistics=False
    )
    for actual, wanted in zip(bn.backward(dy, cache), expected, strict=True):
        np.testing.assert_allclose(actual, wanted.astype(float), rtol=1e-4, atol=1e-5)
    assert pickle.dumps(bn) == before


def test_backward_belongs_to_the_last_training_call_however_it_was_made(rng):
    bn = fastbn.BatchNorm1d(3, dtype=np.float64)
    other, x, dy = rng.normal(size=(3, 6, 3))
    bn(other)
    _, cache = bn.forward_with_cache(x)
    expected = bn.backward(dy, cache).x
    np.testing.assert_array_equal(bn.backward(dy).x, expected)
    bn(other)
    np.testing.assert_array_equal(bn.backward(dy, cache).x, expected)
    assert not np.array_equal(bn.backward(dy).x, expected)


def test_an_evaluation_s_explicit_cache_is_not_kept_on_the_layer(rng):
    bn = fastbn.BatchNorm1d(3, dtype=np.float64).eval()
    bn.forward_with_cache(rng.normal(size=(6, 3)))
    with pytest.raises(RuntimeError, match="no training call"):
        bn.backward(np.ones((6, 3)))


def test_an_evaluation_call_stores_nothing(rng):
    bn = trained().eval()
    names = [name for name in internals.attributes(bn) if hasattr(bn, name)]
    before = {name: getattr(bn, name) for name in names}
    bn(rng.normal(size=(4, 3, 2, 2)).astype(np.float32))
    assert {"weight", "running_var", "eps", "_cache"} <= before.keys()
    assert all(getattr(bn, name) is before[name] for name in names)
    assert not hasattr(bn, "__dict__")  # so there is nowhere else to store anything


@pytest.mark.compiled
def test_many_threads_evaluate_one_layer(rng):
    bn = trained().eval()
    inputs = [rng.normal(size=(7, 3, 64, 64)).astype(np.float32) for _ in range(8)]
    expected = [bn(x) for x in inputs]
    wrong = []

    def work(k):
        wrong.extend(k for _ in range(50) if not np.array_equal(bn(inputs[k]), expected[k]))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- state ----------------------------------------------------------------------------------


def test_state_dict_has_the_names_and_dtypes_of_torch():
    state = fastbn.BatchNorm2d(3).state_dict()
    assert list(state) == ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    assert state["num_batches_tracked"].dtype == np.int64
    assert state["num_batches_tracked"].shape == ()
    assert list(fastbn.BatchNorm2d(3, affine=False).state_dict("bn1.")) == [
        "bn1.running_mean", "bn1.running_var", "bn1.num_batches_tracked",
    ]  # fmt: skip
    assert list(fastbn.BatchNorm2d(3, track_running_stats=False, bias=False).state_dict()) == [
        "weight"
    ]


def test_a_state_dict_is_a_snapshot(rng):
    bn = trained()
    state = bn.state_dict()
    kept = copy.deepcopy(state)
    bn(rng.normal(size=(4, 3, 2, 2)).astype(np.float32))
    assert_same_state(state, kept)
    assert not np.array_equal(bn.running_mean, kept["running_mean"])


def test_round_trip_through_a_state_dict(rng):
    source, target = trained(seed=1), fastbn.BatchNorm2d(3)
    arrays = target.weight, target.running_mean
    result = target.load_state_dict(source.state_dict())
    assert result == ([], [])
    assert_same_state(target.state_dict(), source.state_dict())
    assert arrays[0] is target.weight  # loaded in place: an optimizer's references stay good
    x = rng.normal(size=(4, 3, 2, 2)).astype(np.float32)
    np.testing.assert_array_equal(target.eval()(x), source.eval()(x))


def test_reset():
    bn = trained()
    weight = bn.weight.copy()
    bn.reset_running_stats()
    np.testing.assert_array_equal(bn.running_mean, np.zeros(3))
    np.testing.assert_array_equal(bn.running_var, np.ones(3))
    assert bn.num_batches_tracked == 0
    np.testing.assert_array_equal(bn.weight, weight)
    bn.reset_parameters()
    np.testing.assert_array_equal(bn.weight, np.ones(3))
    np.testing.assert_array_equal(bn.bias, np.zeros(3))
    fastbn.BatchNorm2d(3, affine=False, track_running_stats=False).reset_parameters()


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"bias": False}])
def test_affine_terms_are_what_evaluation_applies(options, rng):
    bn = trained(dtype=np.float64, **options).eval()
    scale, shift = bn.affine_terms()
    x = rng.normal(size=(4, 3, 2, 2))
    np.testing.assert_allclose(
        x * scale[:, None, None] + shift[:, None, None], bn(x), rtol=1e-12, atol=1e-13
    )
    assert trained(**options).affine_terms()[0].dtype == np.float32


def test_affine_terms_need_running_statistics():
    with pytest.raises(RuntimeError, match="track_running_stats=False"):
        fastbn.BatchNorm1d(3, track_running_stats=False).affine_terms()


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda bn: pickle.loads(pickle.dumps(bn))])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_copy_is_equal_and_independent(clone, layer, rng):
    bn = trained(layer, momentum=None).freeze()
    twin = clone(bn)
    assert repr(twin) == repr(bn)
    assert_same_state(twin.state_dict(), bn.state_dict())
    assert not twin.training
    twin.unfreeze()(rng.normal(size=SHAPES[layer]).astype(np.float32))
    assert twin.num_batches_tracked == 2
    assert bn.num_batches_tracked == 1


def test_a_copy_does_not_carry_the_last_batch(rng):
    bn = fastbn.BatchNorm1d(3)
    bn(rng.normal(size=(10_000, 3)).astype(np.float32))
    assert len(pickle.dumps(bn)) < 5_000
    with pytest.raises(RuntimeError, match="no training call"):
        copy.deepcopy(bn).backward(np.zeros((10_000, 3), np.float32))


@pytest.mark.parametrize("counter", [-1, -5])
def test_a_counter_that_somebody_has_set_below_zero_starts_anew(counter, rng):
    bn = fastbn.BatchNorm1d(3, momentum=None)
    bn.num_batches_tracked[...] = counter
    x = rng.normal(size=(8, 3)).astype(np.float32)
    bn(x)
    np.testing.assert_allclose(bn.running_mean, x.mean(0), rtol=1e-5, atol=1e-6)


# --- gradients into an array that is there ----------------------------------------------------

LEARNERS = {
    "batch": (lambda: fastbn.BatchNorm2d(4), (3, 4, 5, 5)),
    "batch, one sample": (lambda: fastbn.BatchNorm2d(4), (4, 5, 5)),
    "ghost": (lambda: fastbn.BatchNorm1d(4, virtual_batch_size=2), (6, 4)),
    "renorm": (lambda: fastbn.BatchRenorm1d(4, r_max=2, d_max=1), (6, 4)),
    "activation": (lambda: fastbn.BatchNorm1d(4, activation="silu"), (6, 4)),
    "group": (lambda: fastbn.GroupNorm(2, 4), (3, 4, 5)),
    "layer": (lambda: fastbn.LayerNorm(4), (3, 4)),
    "rms": (lambda: fastbn.RMSNorm(4), (3, 4)),
    "instance": (lambda: fastbn.InstanceNorm1d(4, affine=True), (3, 4, 5)),
    "instance, one sample": (lambda: fastbn.InstanceNorm1d(4, affine=True), (4, 5)),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_a_backward_writes_where_it_is_told(name, rng):
    make, shape = LEARNERS[name]
    layer = make()
    x, dy = rng.normal(size=(2, *shape)).astype(np.float32)
    _, cache = layer.forward_with_cache(x)
    expected = layer.backward(dy)
    out = np.full_like(x, np.nan)
    for given in ({}, {"cache": cache}):
        found = layer.backward(dy, **given, out=out)
        assert found.x is out
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)
    in_place = dy.copy()
    found = layer.backward(in_place, out=in_place)
    assert found.x is in_place
    np.testing.assert_array_equal(in_place, expected.x)
    with pytest.raises(ValueError, match="out has dtype float64"):
        layer.backward(dy, out=out.astype(float))
    with pytest.raises(ValueError, match="out has shape"):
        layer.backward(dy, out=out[..., :1].copy())
    with pytest.raises(TypeError, match=r"out must be a numpy\.ndarray"):
        layer.backward(dy, out=out.tolist())
    np.testing.assert_array_equal(layer.backward(dy).x, expected.x)


@pytest.mark.parametrize("name", LEARNERS)
def test_caches_and_gradients_are_shown_in_a_line(name, rng):
    make, shape = LEARNERS[name]
    layer = make()
    x = rng.normal(size=shape).astype(np.float32)
    y, cache = layer.forward_with_cache(x)
    assert isinstance(cache, fastbn.NormCache)
    batch = (1, *shape) if name == "instance, one sample" else shape
    assert repr(cache) == f"<{type(cache).__name__} of x, float32 of shape {batch}>"
    gradients = layer.backward(y)
    bias = "None" if name == "rms" else "float32 (4,)"
    assert repr(gradients) == f"Gradients(x=float32 {shape}, weight=float32 (4,), bias={bias})"
