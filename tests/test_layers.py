"""Layers: modes, state, torch's names, pickling."""

import copy
import pickle
import threading

import numpy as np
import pytest

import fastbn
from tests import reference

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
        axis = sample.ndim - (layer._dimensions[-1] - 1)
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
    x, other, dy = rng.normal(size=(3, 6, 3))
    bn(x)
    bn.eval()(other)
    mean, var = reference.mean_and_var(x, 1)
    expected = reference.backward(dy, x, mean, var, bn.weight, 1e-5, 1, batch_statistics=True)
    for actual, wanted in zip(bn.backward(dy), expected, strict=True):
        np.testing.assert_allclose(actual, wanted.astype(float), rtol=1e-10, atol=1e-12)


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


def test_an_explicit_cache_is_not_kept_on_the_layer(rng):
    bn = fastbn.BatchNorm1d(3, dtype=np.float64)
    x, other, dy = rng.normal(size=(3, 6, 3))
    bn(x)
    expected = bn.backward(dy).x
    bn.forward_with_cache(other)
    np.testing.assert_array_equal(bn.backward(dy).x, expected)


def test_an_evaluation_call_stores_nothing(rng):
    bn = trained().eval()
    before = dict(bn.__dict__)
    bn(rng.normal(size=(4, 3, 2, 2)).astype(np.float32))
    assert bn.__dict__.keys() == before.keys()
    assert all(bn.__dict__[key] is before[key] for key in before)


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


def test_load_with_a_prefix_looks_at_its_own_keys_only():
    state = {**trained().state_dict("a.bn."), "a.conv.weight": np.zeros(9), "bn": 3}
    target = fastbn.BatchNorm2d(3)
    target.load_state_dict(state, prefix="a.bn.")
    assert target.num_batches_tracked == 1


def test_load_converts_the_dtype():
    state = {k: v.astype(np.float64) for k, v in trained().state_dict().items()}
    state["num_batches_tracked"] = 7
    target = fastbn.BatchNorm2d(3)
    target.load_state_dict(state)
    assert target.weight.dtype == np.float32
    assert target.num_batches_tracked == 7


def test_load_not_strict_takes_what_matches():
    state = trained().state_dict()
    del state["num_batches_tracked"]
    state["extra"] = np.zeros(3)
    target = fastbn.BatchNorm2d(3)
    result = target.load_state_dict(state, strict=False)
    assert result.missing_keys == ["num_batches_tracked"]
    assert result.unexpected_keys == ["extra"]
    np.testing.assert_array_equal(target.weight, state["weight"])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda s: s.pop("bias"), KeyError, "missing 'bias'"),
        (lambda s: s.update(gamma=np.zeros(3)), KeyError, "unexpected 'gamma'"),
        (lambda s: s.update(running_mean=np.zeros(4)), ValueError, "'running_mean' has shape (4,)"),
        (lambda s: s.update(weight=np.zeros((3, 1))), ValueError, "'weight' has shape (3, 1)"),
        (lambda s: s.update(weight=None), ValueError, "'weight' must hold a real number"),
        (lambda s: s.update(weight=["a"] * 3), ValueError, "'weight' must hold a real number"),
        (lambda s: s.update(weight=[[1], [2, 3], 4]), ValueError, "'weight'"),
        (lambda s: s.update(bias=np.zeros(3, complex)), ValueError, "'bias' must hold a real"),
        (
            lambda s: s.update(running_var=[1, np.nan, 1]),
            ValueError,
            "'running_var' holds negative",
        ),
        (lambda s: s.update(running_var=[1, -1e-9, 1]), ValueError, "'running_var' holds negative"),
        (lambda s: s.update(num_batches_tracked=1.5), ValueError, "must hold an integer"),
        (lambda s: s.update(num_batches_tracked=-1), ValueError, "must be 0 to 2**63 - 1"),
        (lambda s: s.update(num_batches_tracked=np.uint64(2**63 + 5)), ValueError, "2**63 - 1"),
        (lambda s: s.update(weight=[1e300] * 3), ValueError, "too large for float32"),
        (lambda s: s.update({3: 4}), TypeError, "keys of state must be strings"),
    ],
)
def test_a_load_that_fails_loads_nothing(change, error, message):
    state = trained(seed=1).state_dict()
    change(state)
    target = trained(seed=2)
    before = target.state_dict()
    with pytest.raises(error) as caught:
        target.load_state_dict(state)
    assert message in str(caught.value)
    assert_same_state(target.state_dict(), before)


def test_load_names_the_way_out_when_the_prefix_is_wrong():
    with pytest.raises(KeyError, match="pass the right prefix"):
        fastbn.BatchNorm2d(3).load_state_dict(trained().state_dict("layer1."))
    with pytest.raises(TypeError, match="state must be a mapping"):
        fastbn.BatchNorm2d(3).load_state_dict([1, 2])


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
    with pytest.raises(RuntimeError, match="no training forward"):
        copy.deepcopy(bn).backward(np.zeros((10_000, 3), np.float32))


@pytest.mark.parametrize("counter", [-1, -5])
def test_a_counter_that_somebody_has_set_below_zero_starts_anew(counter, rng):
    bn = fastbn.BatchNorm1d(3, momentum=None)
    bn.num_batches_tracked[...] = counter
    x = rng.normal(size=(8, 3)).astype(np.float32)
    bn(x)
    np.testing.assert_allclose(bn.running_mean, x.mean(0), rtol=1e-5, atol=1e-6)
