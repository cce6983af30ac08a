"""The kernels for NVIDIA GPUs, on a device that Numba simulates: `tox -e cudasim` runs it.

The simulator starts a Python thread for each of the device's, so shapes are tiny.
"""

import copy
import gc
import pickle
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from numba import config

import fastbn
from tests import internals, reference

pytestmark = [
    pytest.mark.skipif(not config.ENABLE_CUDASIM, reason="needs NUMBA_ENABLE_CUDASIM=1"),
    pytest.mark.filterwarnings("ignore"),
]

#: Rows that can and cannot be read 16 bytes at once, tables, channels last, more channels than
#: lie side by side, one channel, one value a row.
SHAPES = [((3, 2, 8), 1), ((3, 2, 5), 1), ((7, 3), 1), ((2, 2, 2, 11), -1), ((5, 1, 4), 1),
          ((2, 4, 3, 3), 1), ((2, 3, 4, 1), 1)]  # fmt: skip
#: Channels last, of which a thread reads several at once: a whole tile, half of the last one, many.
ACROSS = [((7, 8), 1), ((2, 2, 2, 12), -1), ((3, 5, 40), -1)]
TOLERANCE = {"float16": 2e-3, "float32": 2e-6, "float64": 1e-14}


@pytest.fixture(params=["once", "parts"])
def cut(request, monkeypatch):
    """Each value read once, by one block a tile; or twice, by several blocks."""
    internals.cut_on_device(monkeypatch, parts=3 if request.param == "parts" else None)
    return request.param


def put(array):
    return None if array is None else internals.simulated_device().to_device(array)


def got(array):
    return array.copy_to_host()


def problem(shape, axis, dtype, rng):
    parameters = "float32" if dtype == "float16" else dtype
    channels = shape[axis]
    x, dy = ((rng.normal(size=shape) * 3 + 2).astype(dtype) for _ in range(2))
    weight, bias = (rng.normal(size=channels).astype(parameters) for _ in range(2))
    mean = rng.normal(size=channels).astype(parameters)
    var = rng.uniform(0.5, 2, channels).astype(parameters)
    return x, dy, weight, bias, mean, var


def assert_close(found, right, dtype):
    size = max(1.0, np.abs(right).max())
    assert np.abs(found.astype(float) - right.astype(float)).max() <= 8 * TOLERANCE[dtype] * size


@pytest.mark.parametrize(("shape", "axis"), SHAPES + ACROSS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_training_and_its_gradients(shape, axis, dtype, cut, rng):
    x, dy, weight, bias, mean, var = problem(shape, axis, dtype, rng)
    running = put(mean), put(var)
    y, cache = fastbn.batch_norm_forward(
        put(x), *running, put(weight), put(bias), training=True, momentum=0.3, axis=axis
    )
    gradients = fastbn.batch_norm_backward(put(dy), cache)
    axis %= len(shape)
    m, v = reference.mean_and_var(x, axis)
    assert_close(got(y), reference.normalize(x, m, v, weight, bias, 1e-5, axis), dtype)
    after = reference.running_step(mean, var, x, 0.3, axis)
    parameters = "float32" if dtype == "float16" else dtype
    for found, right in zip(running, after, strict=True):
        assert_close(got(found), right, parameters)
    wanted = reference.backward(dy, x, m, v, weight, 1e-5, axis, True)
    for found, right, kind in zip(gradients, wanted, (dtype, parameters, parameters), strict=True):
        assert_close(got(found), right, kind)
    assert got(y).dtype == got(gradients.x).dtype == dtype


@pytest.mark.parametrize(("shape", "axis"), SHAPES[:4] + ACROSS[:2], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_evaluation_and_its_gradients(shape, axis, dtype, cut, rng):
    x, dy, weight, bias, mean, var = problem(shape, axis, dtype, rng)
    arguments = put(x), put(mean), put(var), put(weight), put(bias)
    y = fastbn.batch_norm(*arguments, axis=axis)
    axis %= len(shape)
    assert_close(got(y), reference.normalize(x, mean, var, weight, bias, 1e-5, axis), dtype)
    again, cache = fastbn.batch_norm_forward(*arguments, axis=axis)
    np.testing.assert_array_equal(got(again), got(y))
    wanted = reference.backward(dy, x, mean, var, weight, 1e-5, axis, False)
    gradients = fastbn.batch_norm_backward(put(dy), cache)
    parameters = "float32" if dtype == "float16" else dtype
    for found, right, kind in zip(gradients, wanted, (dtype, parameters, parameters), strict=True):
        assert_close(got(found), right, kind)


def test_eight_channels_a_thread(rng):
    """In two launches; half of the last tile's threads have no channel."""
    x, dy, weight, bias, *_ = problem((70, 24), 1, "float16", rng)
    cut_of, *_ = internals.device_cut()
    cut = cut_of(70, 24, 1, 2, True, 1, 1)
    assert (cut.lanes, cut.once) == (8, False)
    assert cut.parts > 1
    y, cache = fastbn.batch_norm_forward(put(x), None, None, put(weight), put(bias), training=True)
    m, v = reference.mean_and_var(x, 1)
    assert_close(got(y), reference.normalize(x, m, v, weight, bias, 1e-5, 1), "float16")
    wanted = reference.backward(dy, x, m, v, weight, 1e-5, 1, True)
    gradients = fastbn.batch_norm_backward(put(dy), cache)
    for found, right, kind in zip(
        gradients, wanted, ("float16", "float32", "float32"), strict=True
    ):
        assert_close(got(found), right, kind)


@pytest.mark.parametrize(("shape", "axis"), [SHAPES[0], SHAPES[3], ACROSS[1]], ids=str)
def test_statistics_far_from_zero(shape, axis, cut, rng):
    """The contract's: right to 1e-5 for means of 10,000 standard deviations; here to 1e-9."""
    x = (rng.normal(size=shape) + 1e4).astype(np.float32)
    stats = fastbn.channel_stats(put(x), axis)
    mean, var = reference.mean_and_var(x, axis % len(shape))
    np.testing.assert_allclose(stats.mean, mean.astype(float), rtol=1e-12)
    np.testing.assert_allclose(stats.var(), var.astype(float), rtol=1e-9)
    assert stats.count.tolist() == [x.size // shape[axis]] * shape[axis]


@pytest.mark.parametrize("shape", [(3, 2, 4), (6, 8)], ids=str)
def test_a_constant_channel_gives_exactly_its_bias(shape, cut, rng):
    x = np.full(shape, 1234.567, np.float32)
    bias = rng.normal(size=shape[1]).astype(np.float32)
    y = got(fastbn.batch_norm(put(x), bias=put(bias), training=True))
    np.testing.assert_array_equal(
        np.moveaxis(y, 1, -1), np.broadcast_to(bias, y[:, 0].shape + bias.shape)
    )


@pytest.mark.parametrize("shape", [(3, 2, 4), (6, 8)], ids=str)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_stay_in_their_channel(shape, value, cut, rng):
    x = rng.normal(size=shape).astype(np.float32)
    expected = got(fastbn.batch_norm(put(x), training=True))
    x[(0, 1, 0)[: x.ndim]] = value
    y = got(fastbn.batch_norm(put(x), training=True))
    assert np.isnan(y[:, 1]).all()
    others = np.arange(shape[1]) != 1
    np.testing.assert_array_equal(y[:, others], expected[:, others])


@pytest.mark.parametrize("shape", [(5, 3, 7), (9, 12)], ids=str)
def test_two_runs_give_the_same_bits_and_tickets_serve_again(shape, cut, rng):
    x = put(rng.normal(size=shape).astype(np.float32))
    first = got(fastbn.batch_norm(x, training=True))
    for _ in range(2):
        np.testing.assert_array_equal(got(fastbn.batch_norm(x, training=True)), first)


@pytest.mark.parametrize("shape", [(3, 2, 4), (6, 8)], ids=str)
def test_in_place_and_into_an_array(shape, cut, rng):
    x = rng.normal(size=shape).astype(np.float32)
    expected = got(fastbn.batch_norm(put(x), training=True))
    there, out = put(x), put(np.empty_like(x))
    assert fastbn.batch_norm(there, training=True, out=out) is out
    np.testing.assert_array_equal(got(out), expected)
    y, cache = fastbn.batch_norm_forward(there, training=True, out=there)
    np.testing.assert_array_equal(got(y), expected)
    with pytest.raises(RuntimeError, match="out=x"):
        fastbn.batch_norm_backward(put(x), cache)


@pytest.mark.parametrize("axis", [1, -1])
def test_memory_that_is_not_aligned_is_read_value_by_value(axis, cut, rng):
    flat = put(rng.normal(size=49).astype(np.float32))
    x = flat[1:].reshape(2, 3, 8)  # four bytes further
    aligned = internals.device_array(x).aligned, internals.device_array(flat[:48]).aligned
    assert aligned.count(False) >= 1  # 4 bytes apart, they cannot both be
    y = got(fastbn.batch_norm(x, training=True, axis=axis))
    assert_close(y, fastbn.batch_norm(got(x), training=True, axis=axis), "float32")


def test_an_out_that_overlaps_in_part(cut, rng):
    flat = put(rng.normal(size=60).astype(np.float32))
    x, out = flat[:48].reshape(2, 3, 8), flat[4:52].reshape(2, 3, 8)
    before, other = got(flat), put(np.ones(60, np.float32))
    with pytest.raises(ValueError, match="out overlaps x without being the same array"):
        fastbn.batch_norm(x, training=True, out=out)
    _, cache = fastbn.batch_norm_forward(x, training=True)
    with pytest.raises(ValueError, match="out overlaps dy"):
        fastbn.batch_norm_backward(
            other[4:52].reshape(2, 3, 8), cache, out=other[:48].reshape(2, 3, 8)
        )
    np.testing.assert_array_equal(got(flat), before)
    y, cache = fastbn.batch_norm_forward(x, training=True, out=flat[:48].reshape(2, 3, 8))
    with pytest.raises(RuntimeError, match="out=x"):  # the same memory, by another object
        fastbn.batch_norm_backward(y, cache)


def test_axes_with_one_value_and_turned_axes(cut, rng):
    """Their steps mean nothing; the output lies as the input does."""
    for shape, order in (((2, 3, 4, 1), (0, 3, 1, 2)), ((4, 1, 1, 3), (0, 3, 1, 2)),
                         ((5, 4, 3), (2, 1, 0))):  # fmt: skip
        x = rng.normal(size=shape).astype(np.float32)
        there = put(x).transpose(order)
        y = fastbn.batch_norm(there, training=True)
        assert_close(got(y), fastbn.batch_norm(x.transpose(order), training=True), "float32")
        assert internals.device_array(y).order == internals.device_array(there).order
        dy = put(np.ascontiguousarray(x.transpose(order)))
        if shape[1:3] == (1, 1):  # the same memory, by other steps
            _, cache = fastbn.batch_norm_forward(there, training=True)
            assert fastbn.batch_norm_backward(dy, cache).x.shape == there.shape


def test_no_channels():
    x = put(np.empty((4, 0, 3), np.float32))
    assert fastbn.batch_norm(x, training=True).shape == (4, 0, 3)


def test_running_statistics_in_memory_of_their_own(rng):
    x = put(rng.normal(size=(6, 3)).astype(np.float32))
    both = put(np.ones(3, np.float32))
    with pytest.raises(ValueError, match="running_mean and running_var share memory"):
        fastbn.batch_norm(x, both, both, training=True)
    with pytest.raises(ValueError, match="running_mean and weight share memory"):
        fastbn.batch_norm(x, both, put(np.ones(3, np.float32)), both, training=True)
    assert got(both).tolist() == [1, 1, 1]


def test_an_interrupt_while_the_second_kernel_is_compiled_changes_nothing(monkeypatch, rng):
    internals.cut_on_device(monkeypatch, parts=2)
    internals.interrupt_normalize(monkeypatch)
    layer = fastbn.BatchNorm1d(3, device="cuda")
    with pytest.raises(KeyboardInterrupt):
        layer(put(rng.normal(2, 3, (6, 3)).astype(np.float32)))
    state = layer.state_dict()
    assert state["num_batches_tracked"] == 0
    assert state["running_var"].tolist() == [1, 1, 1]


def test_a_cache_keeps_the_weight_of_its_forward(rng):
    x, dy = rng.normal(size=(2, 6, 3)).astype(np.float32)
    weight = put(np.full(3, 2, np.float32))
    _, cache = fastbn.batch_norm_forward(put(x), weight=weight, training=True)
    expected = got(fastbn.batch_norm_backward(put(dy), cache).x)
    weight.copy_to_device(np.zeros(3, np.float32))
    np.testing.assert_array_equal(got(fastbn.batch_norm_backward(put(dy), cache).x), expected)


@pytest.mark.parametrize("training", [True, False])
def test_an_empty_batch(training):
    x = put(np.empty((0, 3, 4), np.float32))
    mean, var = put(np.zeros(3, np.float32)), put(np.ones(3, np.float32))
    y, cache = fastbn.batch_norm_forward(x, mean, var, training=training)
    assert y.shape == (0, 3, 4)
    assert got(var).tolist() == [1, 1, 1]
    gradients = fastbn.batch_norm_backward(x, cache)
    assert gradients.x.shape == (0, 3, 4)


# --- layers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_layer_learns_on_the_device_as_on_the_cpu(momentum, rng):
    there = fastbn.BatchNorm1d(3, momentum=momentum, device="cuda")
    here = fastbn.BatchNorm1d(3, momentum=momentum)
    for _ in range(2):
        x, dy = rng.normal(size=(2, 6, 3)).astype(np.float32)
        np.testing.assert_allclose(got(there(put(x))), here(x), atol=1e-6)
        found, right = there.backward(put(dy)), here.backward(dy)
        for name, gradient in right.parameters().items():
            np.testing.assert_allclose(got(found.parameters()[name]), gradient, atol=1e-5)
    for name, array in there.state_dict().items():
        assert type(array) is np.ndarray
        np.testing.assert_allclose(array, here.state_dict()[name], rtol=1e-5)
    assert there.num_batches_tracked == 2
    np.testing.assert_allclose(there.affine_terms(), here.affine_terms(), rtol=1e-5, atol=1e-6)
    x = rng.normal(size=(6, 3)).astype(np.float32)
    np.testing.assert_allclose(got(there.eval()(put(x))), here.eval()(x), atol=1e-5)


def test_a_layer_moves_loads_and_is_copied(rng):
    here, x = fastbn.BatchNorm1d(3), rng.normal(size=(6, 3)).astype(np.float32)
    here(x)
    there = fastbn.BatchNorm1d(3, device="cuda")
    there.load_state_dict(here.state_dict())
    moved = copy.deepcopy(here).to("cuda")
    expected = here.eval()(x)
    for layer in (there, moved, pickle.loads(pickle.dumps(there)), copy.deepcopy(moved)):
        assert "device='cuda'" in repr(layer)
        np.testing.assert_allclose(got(layer.eval()(put(x))), expected, atol=1e-6)
    assert moved.to("cpu").eval()(x).tobytes() == expected.tobytes()
    there.reset_running_stats()
    assert there.state_dict()["running_var"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("place", ["cpu", "cuda"])
def test_a_state_dict_of_arrays_on_the_device(place, rng):
    values = {"weight": rng.normal(size=3).astype(np.float32), "bias": np.ones(3, np.float32),
              "running_mean": np.zeros(3), "running_var": np.ones(3),
              "num_batches_tracked": np.array(7)}  # fmt: skip
    layer = fastbn.BatchNorm1d(3, device=place)
    layer.load_state_dict({name: put(value) for name, value in values.items()})
    for name, array in layer.state_dict().items():
        np.testing.assert_array_equal(array, values[name])
    with pytest.raises(
        ValueError, match=r"'weight' cannot be read as an array.*has gaps in memory"
    ):
        layer.load_state_dict({"weight": internals.repeated(5, 3)}, strict=False)


def test_a_layer_on_a_gpu_by_its_number(monkeypatch, rng):
    first = fastbn.BatchNorm1d(3, device="cuda:0")
    assert "device='cuda:0'" in repr(first)
    x = put(rng.normal(size=(6, 3)).astype(np.float32))
    assert got(first(x)).shape == (6, 3)
    before = first.state_dict()
    for call in (lambda: fastbn.BatchNorm1d(3, device="cuda:5"), lambda: first.to("cuda:5")):
        with pytest.raises(RuntimeError, match=r"device='cuda:5': NVIDIA GPUs found: 1"):
            call()
    for name, array in first.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    # the simulator has one; as if there were two, and the arrays on the second
    worked_on = internals.two_gpus(monkeypatch, where=1)
    second = fastbn.BatchNorm1d(3, device="cuda:1")
    y, cache = second.forward_with_cache(x)
    second.backward(y, cache)
    second.state_dict()
    fastbn.channel_stats(x)
    assert worked_on.count(1) >= 7
    assert set(worked_on) == {1}


def test_arrays_of_one_call_lie_on_one_gpu(monkeypatch, rng):
    x, weight = put(rng.normal(size=(6, 3)).astype(np.float32)), put(np.ones(3, np.float32))
    internals.two_gpus(monkeypatch, where=lambda array: 1 if array is weight else 0)
    with pytest.raises(ValueError, match="weight lies on GPU 1, and x on GPU 0"):
        fastbn.batch_norm(x, weight=weight, training=True)
    layer = fastbn.BatchNorm1d(3, device="cuda:0")
    with pytest.raises(ValueError, match="lies on GPU 1, and the layer's arrays on 0"):
        layer.weight = weight


# --- errors ---------------------------------------------------------------------------------


def test_arrays_of_one_call_lie_in_one_place(rng):
    x = rng.normal(size=(6, 3)).astype(np.float32)
    with pytest.raises(TypeError, match="x lies on a device, and weight is in host memory"):
        fastbn.batch_norm(put(x), weight=np.ones(3, np.float32), training=True)
    with pytest.raises(TypeError, match=r"weight must be a numpy\.ndarray.*all arrays of a call"):
        fastbn.batch_norm(x, weight=put(np.ones(3, np.float32)), training=True)
    with pytest.raises(TypeError, match="x lies on a device, and weight is in host memory"):
        fastbn.BatchNorm1d(3)(put(x))
    with pytest.raises(TypeError, match=r"weight must be a numpy\.ndarray"):
        fastbn.BatchNorm1d(3, device="cuda")(x)
    _, cache = fastbn.batch_norm_forward(put(x), training=True)
    with pytest.raises(TypeError, match="x lies on a device, and dy is in host memory"):
        fastbn.batch_norm_backward(x, cache)
    layer = fastbn.BatchNorm1d(3, device="cuda")
    with pytest.raises(TypeError, match="the layer is on 'cuda', and weight of type ndarray"):
        layer.weight = np.ones(3, np.float32)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"x": np.ones((6, 3), int)}, TypeError, "float16, bfloat16, float32 or float64"),
        ({"x": np.ones((6, 4), np.float32)}, ValueError, "weight has shape"),
        ({"weight": np.ones(3)}, TypeError, "weight has dtype float64, expected float32"),
        (
            {"x": np.ones((6, 3))},
            TypeError,
            r"float32, expected float64 .*x\.astype.*dtype='float64'",
        ),
        ({"out": np.ones((6, 2), np.float32)}, ValueError, "out has shape"),
        ({"running_var": None}, ValueError, "running_mean was given without running_var"),
        ({"x": np.ones((1, 3), np.float32)}, ValueError, "more than 1 value per channel"),
    ],
)
def test_what_does_not_fit(change, error, says):
    arguments = {"x": np.ones((6, 3), np.float32), "weight": np.ones(3, np.float32),
                 "running_mean": np.ones(3, np.float32), "running_var": np.ones(3, np.float32),
                 "out": None}  # fmt: skip
    arguments = {name: put(value) for name, value in {**arguments, **change}.items()}
    with pytest.raises(error, match=says):
        fastbn.batch_norm(**arguments, training=True)


def test_a_gradient_that_lies_otherwise_than_x(rng):
    x, dy = (put(rng.normal(size=(2, 3, 4)).astype(np.float32)) for _ in range(2))
    _, cache = fastbn.batch_norm_forward(x.transpose((0, 2, 1)), training=True)
    with pytest.raises(
        ValueError, match=r"lies as x does: in torch, .*empty_like\(x\)\.copy_\(dy\)"
    ):
        fastbn.batch_norm_backward(dy.reshape(2, 4, 3), cache)


def test_a_policy_that_would_wait_for_the_device():
    with pytest.raises(NotImplementedError, match="would wait for the device"):
        fastbn.batch_norm(put(np.ones((6, 3), np.float32)), training=True, on_nonfinite="skip")


# --- memory ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var"])
@pytest.mark.parametrize("training", [True, False])
def test_an_out_that_overlaps_a_vector(name, training):
    flat = put(np.arange(15, dtype=np.float32))
    x, vector = put(np.ones((4, 3), np.float32)), flat[:3]
    arguments = {"running_mean": put(np.ones(3, np.float32)),
                 "running_var": put(np.ones(3, np.float32)), name: vector}  # fmt: skip
    for out in (flat[:12], flat[2:14]):
        with pytest.raises(ValueError, match=f"out overlaps {name}|{name} and out share memory"):
            fastbn.batch_norm(x, **arguments, training=training, out=out.reshape(4, 3))
    assert got(flat).tolist() == list(range(15))
    fastbn.batch_norm(x, **arguments, training=training, out=flat[3:].reshape(4, 3))


def test_an_out_that_is_a_vector():
    """One sample has as many values as a vector, so both may be the same memory."""
    weight, ones = put(np.ones(3, np.float32)), put(np.ones(3, np.float32))
    with pytest.raises(ValueError, match="out overlaps weight"):
        fastbn.batch_norm(
            put(np.ones((1, 3), np.float32)), ones, ones, weight, out=weight.reshape(1, 3)
        )


def test_memory_that_is_lent_to_be_read(rng):
    def ones():
        return put(np.ones(3, np.float32))

    x, frozen = put(rng.normal(size=(6, 3)).astype(np.float32)), internals.read_only(ones())
    out = internals.read_only(put(np.zeros((6, 3), np.float32)))
    with pytest.raises(ValueError, match="out is read-only"):
        fastbn.batch_norm(x, training=True, out=out)
    _, cache = fastbn.batch_norm_forward(x, training=True)
    with pytest.raises(ValueError, match="out is read-only"):
        fastbn.batch_norm_backward(x, cache, out=out)
    for running in ((frozen, ones()), (ones(), frozen)):
        with pytest.raises(ValueError, match=r"running_\w+ is read-only, but training updates it"):
            fastbn.batch_norm(x, *running, training=True)
    fastbn.batch_norm(x, frozen, ones(), frozen, training=False)  # is only read
    layer = fastbn.BatchNorm1d(3, device="cuda")
    with pytest.raises(ValueError, match="running_var is read-only; load_state_dict copies it"):
        layer.running_var = frozen


def test_who_says_that_memory_is_lent_to_be_read(monkeypatch):
    arrays = internals.on_a_device(monkeypatch)

    def of(flag, module="cupy"):
        interface = {"data": (0, flag), "typestr": "<f4", "shape": (3,)}
        return type("A", (), {"__module__": module, "__cuda_array_interface__": interface})()

    assert arrays.is_readonly(of(True))
    assert not arrays.is_readonly(of(False))
    assert arrays.is_readonly(of(False, "jaxlib._jax"))  # its DLPack does not say so
    owner = of(True)
    assert arrays.owner_of(SimpleNamespace(gpu_data=SimpleNamespace(owner=owner))) is owner
    assert not arrays.is_readonly(SimpleNamespace(gpu_data=SimpleNamespace(owner=None)))


def test_one_value_with_a_step_of_zero_is_no_vector(monkeypatch):
    layer = fastbn.BatchNorm1d(64, device="cuda")
    with pytest.raises(ValueError, match=r"weight of shape .* has gaps in memory"):
        layer.weight = internals.repeated(1, 64)
    arrays = internals.on_a_device(monkeypatch)
    numba = SimpleNamespace(
        gpu_data=None, strides=(0,), dtype=np.dtype("f4"),
        __cuda_array_interface__={"shape": (64,), "strides": None, "typestr": "<f4"},
    )  # fmt: skip
    assert arrays.strides_of(numba, (64,)) == (0,)


def test_no_output_of_bfloat16_for_arrays_of_others():
    """Numba has no such dtype."""
    arrays, *_ = internals.device_modules()
    array = internals.as_bfloat16(internals.lent(put(np.zeros((4, 3), np.uint16))))
    with pytest.raises(TypeError, match=r"no output of bfloat16 can be made .* lender; pass out="):
        arrays.empty_like(array)


def test_bfloat16_comes_to_the_host_as_float32(monkeypatch):
    arrays, *_ = internals.device_modules()
    bits = put(np.array([0x3F80, 0xC040], np.uint16))
    known = internals.as_bfloat16(bits)
    monkeypatch.setattr(arrays, "described", lambda name, array: known)
    assert arrays.to_host("weight", bits).tolist() == [1.0, -3.0]


def test_a_batch_of_another_size_allocates_nothing_and_waits_for_nobody(monkeypatch, rng):
    assert all(
        a is b for a, b in zip(internals.scratch_of(5), internals.scratch_of(8), strict=True)
    )
    assert internals.scratch_of(9)[0] is not internals.scratch_of(8)[0]
    cuda = internals.simulated_device()
    monkeypatch.setattr(cuda, "synchronize", lambda: pytest.fail("waits for the device"))
    x = put(rng.normal(size=(6, 11)).astype(np.float32))  # no other test has 11 channels so
    fastbn.batch_norm(x, training=True)


# --- streams --------------------------------------------------------------------------------


def on(stream, array):
    return put(array).bind(stream)


def test_a_call_comes_after_what_other_streams_were_asked_for_and_before_what_follows(monkeypatch):
    asked, _ = internals.record_streams(monkeypatch)
    ones = np.ones(3, np.float32)
    x, out = on(7, np.eye(4, 3, dtype=np.float32)), on(6, np.empty((4, 3), np.float32))
    arguments = on(9, ones), on(9, ones), on(8, ones), on(7, ones)
    fastbn.batch_norm(x, *arguments, training=True, out=out)
    launched = asked.index(("forward", 7))
    before, after = asked[:launched], asked[launched + 1 :]
    assert {(7, "waits for", stream) for stream in (6, 8, 9)} == {a for a in before if len(a) == 3}
    assert {a for a in after if len(a) == 3} == {(6, "waits for", 7), (9, "waits for", 7)}
    assert after.count(("record", 7)) == 2
    del asked[:]
    fastbn.batch_norm(x, on(7, ones), on(7, ones), out=on(7, got(out)))
    assert [a[0] for a in asked] == ["normalize"]  # one stream needs no events


def test_statistics_come_to_the_host_when_they_are_there(monkeypatch):
    asked, _ = internals.record_streams(monkeypatch)
    fastbn.channel_stats(on(7, np.eye(4, 3, dtype=np.float32)))
    assert asked == [("moments", 7), ("record", 7), ("finish", 7)]


def test_a_backward_on_another_stream_comes_after_the_statistics_of_its_forward(monkeypatch):
    x = on(7, np.eye(4, 3, dtype=np.float32))
    y, cache = fastbn.batch_norm_forward(x, weight=on(7, np.ones(3, np.float32)), training=True)
    asked, _ = internals.record_streams(monkeypatch)
    x.stream = 8  # as torch's current one changes
    fastbn.batch_norm_backward(y.bind(8), cache, out=on(8, got(y)))
    assert asked == [
        ("record", 7), (8, "waits for", 7), ("backward", 8), ("record", 8), (7, "waits for", 8),
    ]  # fmt: skip


def test_an_empty_batch_keeps_to_its_stream(monkeypatch):
    streams, x = [], on(7, np.empty((0, 3), np.float32))
    cuda = internals.simulated_device()
    original = cuda.to_device
    monkeypatch.setattr(
        cuda, "to_device", lambda a, stream=0: (streams.append(stream), original(a, stream))[1]
    )
    fastbn.batch_norm(x, training=True)
    assert streams == [7]


def test_memory_of_others_is_kept_until_the_kernels_are_done(monkeypatch):
    asked, event = internals.record_streams(monkeypatch)

    def call(array):
        fastbn.batch_norm(array, training=True)
        return weakref.ref(array)

    first = call(internals.lent(on(7, np.eye(4, 3, dtype=np.float32))))
    gc.collect()
    assert first() is not None
    assert asked[-1] == ("record", 7)
    second = call(internals.lent(on(7, np.eye(5, 3, dtype=np.float32))))
    event.ready = True
    del asked[:]
    third = call(put(np.eye(5, 3, dtype=np.float32)))  # Numba's own needs nobody to keep it
    gc.collect()
    assert (first(), second(), third()) == (None, None, None)


def test_no_more_than_two_kernels_whose_blocks_wait_for_each_other(monkeypatch):
    """One stream runs its own one by one; from the second on, each waits for the one before."""
    asked, _ = internals.record_streams(monkeypatch, launch=False)
    internals.share_once(monkeypatch, parts=2)
    x, kernel = np.eye(4, 3, dtype=np.float32), "forward"
    for stream in (7, 7, 8, 7, 9):
        fastbn.batch_norm(on(stream, x), training=True, out=on(stream, x))
    assert asked == [
        (kernel, 7), (kernel, 7),
        (kernel, 8), ("record", 8),
        (7, "waits for", 8), (kernel, 7), ("record", 7),
        (9, "waits for", 7), (kernel, 9), ("record", 9),
    ]  # fmt: skip


class Lender:
    """An array with an interface and DLPack; it notes for which stream it is asked."""

    def __init__(self, stream):
        self.array, self.asked = np.ones((4, 3), np.float32), []
        self.__cuda_array_interface__ = {"data": (0, False), "version": 2, **stream}

    def __dlpack__(self, stream=None):
        self.asked.append(stream)
        return self.array.__dlpack__()


def test_an_interface_without_a_stream_is_not_taken_where_dlpack_orders_the_call(monkeypatch):
    arrays = internals.on_a_device(monkeypatch)
    named = Lender({"stream": 5})
    assert arrays.with_interface(named) is named
    for unnamed in (Lender({}), Lender({"stream": None})):
        borrowed = arrays.with_interface(unnamed)
        assert unnamed.asked == [1]
        assert borrowed.__cuda_array_interface__["stream"] == 1
        assert borrowed.__cuda_array_interface__["version"] == 3
    alone = SimpleNamespace(__cuda_array_interface__={"data": (0, False)})
    assert arrays.with_interface(alone) is alone


# --- which GPU ------------------------------------------------------------------------------


@pytest.mark.parametrize("binding", [True, False])
def test_the_driver_says_where_memory_lies(monkeypatch, binding):
    assert internals.driver_of_a_device(monkeypatch, binding, gpu=1)(4096) == 1


def test_where_an_array_lies_whose_owner_says_it_or_not(monkeypatch):
    arrays = internals.on_a_device(monkeypatch)
    monkeypatch.setattr(arrays, "gpu_by_driver", {4096: 3}.get)
    interface = {"data": (4096, False)}
    silent = type("Silent", (), {"__cuda_array_interface__": interface})()
    says = type("Says", (), {"__cuda_array_interface__": interface,
                             "__dlpack_device__": lambda self: (2, 1)})()  # fmt: skip
    context = SimpleNamespace(device=SimpleNamespace(id=0))
    for owner, gpu in ((silent, 3), (says, 1), (None, 0)):
        view = SimpleNamespace(gpu_data=SimpleNamespace(owner=owner, context=context))
        assert arrays.gpu_of(view) == gpu  # of the owner, whichever was current
        assert owner is None or arrays.gpu_of(owner) == gpu


# --- how work is cut ------------------------------------------------------------------------


@pytest.mark.parametrize("item", [2, 4, 8])
@pytest.mark.parametrize("arrays", [1, 2])
def test_a_cut_follows_from_the_shape(item, arrays):
    """In blocks as they are on a device; which design is taken is a matter of size alone."""
    cut_of, held, threads = internals.device_cut()
    rng = np.random.default_rng(0)
    for _ in range(500):
        samples, channels = int(rng.integers(1, 5000)), int(rng.integers(1, 3000))
        length = int(rng.choice([1, 1, 49, 64, 3136, 12544, 7]))
        together = int(rng.choice([1, 16, 132]))
        cut = cut_of(samples, channels, length, item, True, arrays, together)
        unaligned = cut_of(samples, channels, length, item, False, arrays, together)
        assert unaligned.lanes == 1
        across = cut.lanes if length == 1 else 1  # channels that a thread reads
        assert (cut.width > 1) == (length == 1)
        assert cut.tiles * cut.width * across >= channels > (cut.tiles - 1) * cut.width * across
        assert (channels if length == 1 else length) % cut.lanes == 0
        assert cut.lanes * item in (item, 4 * item, 16)
        room = cut.parts * (threads // cut.width) * held(cut.lanes, item == 8, arrays)
        fits = samples * length * across // cut.lanes <= room
        assert fits or not cut.once  # what is read once is kept
        assert cut.parts <= together or not cut.once  # and nobody waits for who cannot come
        assert cut.parts >= 1


def test_what_a_cut_is_told(monkeypatch, rng):
    """Arrays that are read, and blocks that may wait: none where nothing is read once."""
    found = internals.record_cuts(monkeypatch)
    x = put(rng.normal(size=(6, 3)).astype(np.float32))
    fastbn.channel_stats(x)
    y, cache = fastbn.batch_norm_forward(x, training=True)
    fastbn.batch_norm_backward(y, cache)
    fastbn.batch_norm(x, put(np.zeros(3, np.float32)), put(np.ones(3, np.float32)))
    assert found == [(1, 0), (1, 1), (2, 1), (1, 0)]


@pytest.mark.parametrize(
    ("channels", "length", "lanes"),
    [  # by the bytes of a value
        (64, 3136, {2: 8, 4: 4, 8: 2}),
        (64, 196, {2: 4, 4: 4, 8: 2}),
        (64, 49, {2: 1, 4: 1, 8: 1}),
        (64, 1, {2: 8, 4: 4, 8: 2}),
        (12, 1, {2: 4, 4: 4, 8: 2}),
        (10, 1, {2: 1, 4: 1, 8: 2}),
        (3, 1, {2: 1, 4: 1, 8: 1}),
    ],
)
def test_what_lies_side_by_side_is_read_at_once(channels, length, lanes):
    """Along a row, or of neighbouring channels: of four, where a thread keeps what it reads."""
    cut_of, *_ = internals.device_cut()
    for item, most in lanes.items():
        large = cut_of(10**6, channels, length, item, True, 1, 1)
        assert (large.lanes, large.once) == (most, False)
        small = cut_of(2, channels, length, item, True, 1, 1000)
        assert (small.lanes, small.once) == (min(most, 4) if length == 1 else most, True)
        assert cut_of(10**6, channels, length, item, False, 1, 1).lanes == 1


def test_as_many_blocks_of_a_tile_as_there_are_multiprocessors(monkeypatch):
    """Two fit on each, and no more than two such kernels run at once."""
    assert internals.blocks_together(monkeypatch, 132) == 132


def test_which_design_a_tensor_of_a_network_takes():
    cut_of, _, threads = internals.device_cut()
    if threads == 256:  # as on a device: with 132 multiprocessors
        assert cut_of(256, 64, 3136, 4, True, 1, 132).once  # of 56 x 56 values, forward
        assert not cut_of(256, 64, 3136, 4, True, 2, 132).once  # and backward
        assert not cut_of(1, 1, 2**26, 4, True, 1, 132).once
    assert cut_of(2, 3, 4, 4, True, 1, 1).parts == 1


@pytest.mark.parametrize("channels", [1, 8])
def test_blocks_that_read_once_add_what_the_others_have_published(channels, rng):
    """The simulator's blocks run one after the other: what is waited for is put there before."""
    x = rng.normal(size=(64, channels)).astype(np.float32)
    y, arrivals, statistics = internals.forward_by_two_blocks(x)
    expected = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    mean, var, _ = statistics.reshape(3, channels)
    np.testing.assert_allclose(mean, x.mean(0, dtype=float), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(var, x.var(0, dtype=float), rtol=1e-6)
    assert not arrivals.any()  # ready for the next launch
