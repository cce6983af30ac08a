"""The kernels for NVIDIA GPUs, on a device that Numba simulates: `tox -e cudasim` runs it.

The simulator starts a Python thread for each of the device's, so shapes are tiny.
"""

import copy
import pickle

import numpy as np
import pytest
from numba import config

import fastbn
from tests import internals_device as devices
from tests import reference

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
    devices.cut_on_device(monkeypatch, parts=3 if request.param == "parts" else None)
    return request.param


def put(array):
    return None if array is None else devices.simulated_device().to_device(array)


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
    cut_of, *_ = devices.device_cut()
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
    aligned = devices.device_array(x).aligned, devices.device_array(flat[:48]).aligned
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
        assert devices.device_array(y).order == devices.device_array(there).order
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
    devices.cut_on_device(monkeypatch, parts=2)
    devices.interrupt_normalize(monkeypatch)
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
        layer.load_state_dict({"weight": devices.repeated(5, 3)}, strict=False)


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
    worked_on = devices.two_gpus(monkeypatch, where=1)
    second = fastbn.BatchNorm1d(3, device="cuda:1")
    y, cache = second.forward_with_cache(x)
    second.backward(y, cache)
    second.state_dict()
    fastbn.channel_stats(x)
    assert worked_on.count(1) >= 7
    assert set(worked_on) == {1}


def test_arrays_of_one_call_lie_on_one_gpu(monkeypatch, rng):
    x, weight = put(rng.normal(size=(6, 3)).astype(np.float32)), put(np.ones(3, np.float32))
    devices.two_gpus(monkeypatch, where=lambda array: 1 if array is weight else 0)
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


# --- how work is cut ------------------------------------------------------------------------


@pytest.mark.parametrize("item", [2, 4, 8])
@pytest.mark.parametrize("arrays", [1, 2])
def test_a_cut_follows_from_the_shape(item, arrays):
    """In blocks as they are on a device; which design is taken is a matter of size alone."""
    cut_of, held, threads = devices.device_cut()
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
    found = devices.record_cuts(monkeypatch)
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
    cut_of, *_ = devices.device_cut()
    for item, most in lanes.items():
        large = cut_of(10**6, channels, length, item, True, 1, 1)
        assert (large.lanes, large.once) == (most, False)
        small = cut_of(2, channels, length, item, True, 1, 1000)
        assert (small.lanes, small.once) == (min(most, 4) if length == 1 else most, True)
        assert cut_of(10**6, channels, length, item, False, 1, 1).lanes == 1


def test_as_many_blocks_of_a_tile_as_there_are_multiprocessors(monkeypatch):
    """Two fit on each, and no more than two such kernels run at once."""
    assert devices.blocks_together(monkeypatch, 132) == 132


def test_which_design_a_tensor_of_a_network_takes():
    cut_of, _, threads = devices.device_cut()
    if threads == 256:  # as on a device: with 132 multiprocessors
        assert cut_of(256, 64, 3136, 4, True, 1, 132).once  # of 56 x 56 values, forward
        assert not cut_of(256, 64, 3136, 4, True, 2, 132).once  # and backward
        assert not cut_of(1, 1, 2**26, 4, True, 1, 132).once
    assert cut_of(2, 3, 4, 4, True, 1, 1).parts == 1


@pytest.mark.parametrize("channels", [1, 8])
def test_blocks_that_read_once_add_what_the_others_have_published(channels, rng):
    """The simulator's blocks run one after the other: what is waited for is put there before."""
    x = rng.normal(size=(64, channels)).astype(np.float32)
    y, arrivals, statistics = devices.forward_by_two_blocks(x)
    expected = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    mean, var, _ = statistics.reshape(3, channels)
    np.testing.assert_allclose(mean, x.mean(0, dtype=float), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(var, x.var(0, dtype=float), rtol=1e-6)
    assert not arrivals.any()  # ready for the next launch
