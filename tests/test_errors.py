"""Every row of the table of errors; a call that raises has changed nothing."""

from contextlib import contextmanager

import numpy as np
import pytest

import fastbn
from fastbn import BatchNorm1d, BatchNorm2d, BatchNorm3d

X = np.arange(24, dtype=np.float32).reshape(4, 3, 2)


@contextmanager
def raises(error, *parts):
    """pytest.raises, and every part must be in the message."""
    with pytest.raises(error) as caught:
        yield caught
    for part in parts:
        assert part in str(caught.value)


class Own(BatchNorm1d):
    """A user's own layer."""


NOT_ARRAYS = [None, "abc", [[1.0, 2.0]], 3.0, object()]


@pytest.mark.parametrize("value", NOT_ARRAYS, ids=repr)
def test_not_an_array(value):
    for call in (
        lambda: fastbn.batch_norm(value),
        lambda: fastbn.batch_norm_forward(value, training=True),
        lambda: fastbn.channel_stats(value),
        lambda: BatchNorm1d(3)(value),
        lambda: BatchNorm2d(3).eval()(value),
    ):
        with raises(
            TypeError,
            "x must be a numpy.ndarray",
            type(value).__name__,
            "np.asarray(x, np.float32)",
        ):
            call()


def test_masked_array():
    """Taken where a mask is; refused elsewhere, and not with np.asarray, which would drop it."""
    x = np.ma.masked_less(X, 3)
    for name, call in (
        ("x", lambda: fastbn.layer_norm(x, x.shape[-1])),
        ("x", lambda: fastbn.GroupNorm(1, x.shape[1])(x)),
        ("weight", lambda: fastbn.batch_norm(X, weight=np.ma.ones(3, "f4"), training=True)),
    ):
        with raises(TypeError, "masked array", f"{name}.filled(value)") as caught:
            call()
        assert "asarray" not in str(caught.value)


@pytest.mark.parametrize(
    ("module", "way"),
    [
        ("dask.array.core", "x.compute() loads all of it into memory"),
        ("torch", "x.detach().cpu().numpy()"),
        ("cupy", "x.get()"),
        ("pandas.core.frame", "x.to_numpy("),
        ("h5py._hl.dataset", "x[...]"),
    ],
)
def test_arrays_of_other_libraries(module, way):
    """By where their type comes from: nothing is imported, and nothing of theirs is called."""
    foreign = type("Array", (), {"__module__": module})()
    with raises(TypeError, f"got Array of {module.split('.')[0]}; {way}") as caught:
        fastbn.batch_norm(foreign)
    assert "np.asarray" not in str(caught.value)


def test_a_tensor_of_bfloat16_has_another_way():
    """NumPy knows no bfloat16, and torch refuses to convert it."""
    foreign = type("Tensor", (), {"__module__": "torch", "dtype": "torch.bfloat16"})()
    with raises(TypeError, "x.detach().cpu().float().numpy()"):
        fastbn.batch_norm(foreign)


@pytest.mark.parametrize(
    ("dtype", "fix"),
    [
        (np.int64, "x.astype(np.float32)"),
        (np.uint8, "x.astype(np.float32)"),
        (bool, "x.astype(np.float32)"),
        (np.complex64, "x.real"),
        (object, "x.astype(np.float32)"),
        (np.longdouble, "x.astype(np.float64)"),
        ("datetime64[s]", "x.astype(np.float32)"),
        ("U3", "x.astype(np.float32)"),
        ([("a", "f4")], "x.astype(np.float32)"),
    ],
)
def test_dtype_names_the_fix(dtype, fix):
    x = np.zeros((4, 3, 2), dtype)
    calls = [lambda: fastbn.batch_norm(x, training=True), lambda: BatchNorm1d(3)(x)]
    if x.dtype.kind not in "iub":  # which is for tests/test_stats_integers.py to say
        calls.append(lambda: fastbn.channel_stats(x))
    for call in calls:
        with raises(TypeError, str(np.dtype(dtype)), fix):
            call()


@pytest.mark.parametrize(
    ("layer", "shapes"),
    [
        (BatchNorm1d, [(3,), (2, 3, 4, 4), ()]),
        (BatchNorm2d, [(2, 3), (3,), (2, 3, 4, 4, 4)]),
        (BatchNorm3d, [(2, 3), (2, 3, 4), (1, 2, 3, 4, 4, 4)]),
    ],
)
def test_number_of_dimensions(layer, shapes):
    bn = layer(3)
    for shape in shapes:
        with raises(ValueError, layer.__name__, f"{len(shape)} dimensions", str(shape)):
            bn(np.zeros(shape, np.float32))
    assert bn.num_batches_tracked == 0


@pytest.mark.parametrize(
    ("bn", "shape", "parts"),
    [
        (BatchNorm2d(8), (4, 8, 16), ["a batch (N, C, L), take", "1d", "4 channels on axis 0"]),
        (BatchNorm2d(8), (4, 16), ["got 2 dimensions", "(N, C), take", "BatchNorm1d"]),
        (BatchNorm3d(2), (4, 2, 5, 5), ["(N, C, H, W), take", "2d", "4 channels on axis 0"]),
        (BatchNorm1d(8), (4, 8, 5, 5), ["got 4 dimensions", "(N, C, H, W), take", "BatchNorm2d"]),
        (BatchNorm2d(8), (4, 5, 5, 8), ["num_features=8", "make the layer with axis=-1"]),
        (BatchNorm2d(8, axis=-1), (4, 8, 5, 5), ["5 channels on axis -1", "with axis=1"]),
        (BatchNorm1d(8), (4, 16, 8), ["num_features=8", "make the layer with axis=-1"]),
        (Own(8), (8, 4), ["as (N, C), with 4 channels on axis 1"]),
    ],
    ids=str,
)
def test_a_wrong_shape_names_dimensions_first_then_channels_then_the_way_out(bn, shape, parts):
    for layer in (bn, bn.eval()):
        with raises(ValueError, str(shape), *parts) as caught:
            layer(np.zeros(shape, np.float32))
        places = [str(caught.value).index(part, len(str(shape))) for part in parts]
        assert places == sorted(places)


@pytest.mark.parametrize("shape", [(), (5,)])
def test_functions_need_two_dimensions(shape):
    with raises(ValueError, "at least 2 dimensions", str(shape)):
        fastbn.batch_norm(np.zeros(shape, np.float32), training=True)


@pytest.mark.parametrize("axis", [3, -4, 1.0, None, "1", [1], True])
def test_axis(axis):
    error = ValueError if type(axis) is int else TypeError
    fastbn.batch_norm(X, training=True, axis=1)  # which must not be found again for 1.0
    with raises(error, "axis"):
        fastbn.batch_norm(X, training=True, axis=axis)
    with raises(error, "axis"):
        fastbn.channel_stats(X, axis)


def test_number_of_channels():
    with raises(ValueError, "num_features=5", "(4, 3, 2)", "3 channels on axis 1"):
        BatchNorm1d(5)(X)
    with raises(ValueError, "num_features=3", "2 channels on axis -1"):
        BatchNorm1d(3, axis=-1)(X)


@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var"])
@pytest.mark.parametrize("training", [True, False])
def test_vectors_of_the_wrong_length(name, training):
    good = {k: np.ones(3, np.float32) for k in ("running_mean", "running_var", "weight", "bias")}
    for value, came in ((np.ones(4, np.float32), "length 4"), (np.ones((3, 1)), "shape (3, 1)")):
        vectors = {**good, name: value}
        with raises(ValueError, name, came, "(4, 3, 2)", "3 channels"):
            fastbn.batch_norm(X, **vectors, training=training)
    for value, part in (
        ([1, 2, 3], "numpy.ndarray"),
        (np.ones(3, int), "int64"),
        (np.ma.ones(3), "masked"),
    ):
        with raises(TypeError, name, part):
            fastbn.batch_norm(X, **{**good, name: value}, training=training)
    for array in good.values():
        np.testing.assert_array_equal(array, np.ones(3))


@pytest.mark.parametrize(
    "shape", [(1, 3), (1, 3, 1), (1, 3, 1, 1), (1, 3, 1, 1, 1)], ids=lambda s: f"{len(s)}d"
)
def test_one_value_per_channel(shape):
    layer = {2: BatchNorm1d, 3: BatchNorm1d, 4: BatchNorm2d, 5: BatchNorm3d}[len(shape)]
    bn = layer(3)
    before = bn.state_dict()
    x = np.ones(shape, np.float32)
    parts = str(shape), "more than 1 value per channel", "eval()", "larger batch"
    with raises(ValueError, *parts):
        bn(x)
    with raises(ValueError, *parts):
        fastbn.batch_norm(x)
    for name, array in bn.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    assert bn.eval()(x).shape == shape


def test_only_one_running_statistic():
    for name, missing in (("running_mean", "running_var"), ("running_var", "running_mean")):
        with raises(ValueError, f"{name} was given without {missing}", "both"):
            fastbn.batch_norm(X, **{name: np.ones(3, np.float32)})


@pytest.mark.parametrize("layer", [BatchNorm1d, BatchNorm2d, BatchNorm3d])
class TestConstructor:
    @pytest.mark.parametrize("eps", [0, 0.0, -1e-5, float("nan"), float("inf")])
    def test_eps_value(self, layer, eps):
        with raises(ValueError, "eps", repr(eps)):
            layer(3, eps=eps)

    @pytest.mark.parametrize("eps", ["1e-5", None, True, 1j])
    def test_eps_type(self, layer, eps):
        with raises(TypeError, "eps", repr(eps)):
            layer(3, eps=eps)

    @pytest.mark.parametrize("momentum", ["0.1", [0.1], True, 1j])
    def test_momentum_type(self, layer, momentum):
        with raises(TypeError, "momentum", repr(momentum)):
            layer(3, momentum=momentum)

    @pytest.mark.parametrize("momentum", [float("nan"), -0.1, 1.01])
    def test_momentum_value(self, layer, momentum):
        with raises(ValueError, "momentum", repr(momentum)):
            layer(3, momentum=momentum)

    @pytest.mark.parametrize("number", [0, -1, np.int64(0)])
    def test_num_features_value(self, layer, number):
        with raises(ValueError, "num_features", repr(number)):
            layer(number)

    @pytest.mark.parametrize("number", [3.0, "3", None, True, (3,)])
    def test_num_features_type(self, layer, number):
        with raises(TypeError, "num_features", repr(number)):
            layer(number)

    @pytest.mark.parametrize("dtype", [np.float16, int, complex, "float128"])
    def test_dtype_value(self, layer, dtype):
        with raises(ValueError, "dtype", repr(dtype)):
            layer(3, dtype=dtype)

    @pytest.mark.parametrize("dtype", ["no such type", 3, object()])
    def test_dtype_type(self, layer, dtype):
        with raises(TypeError, "dtype", repr(dtype)):
            layer(3, dtype=dtype)

    @pytest.mark.parametrize("device", ["cuda:x", "gpu", 0, "CUDA"])
    def test_device(self, layer, device):
        with raises(
            ValueError,
            "device",
            repr(device),
            "'cpu', 'cuda' (the current NVIDIA GPU)",
            "leave it out",
        ):
            layer(3, device=device)
        assert layer(3, device="cpu").num_features == 3

    @pytest.mark.parametrize("axis", [0, 9, -9])
    def test_axis_value(self, layer, axis):
        with raises(ValueError, "axis", repr(axis)):
            layer(3, axis=axis)

    def test_axis_type(self, layer):
        with raises(TypeError, "axis", "1.0"):
            layer(3, axis=1.0)

    def test_numpy_integers_are_taken(self, layer):
        assert layer(np.int32(3), axis=np.int8(-1)).num_features == 3


def test_mode_must_be_a_bool():
    with raises(TypeError, "mode", "'yes'"):
        BatchNorm1d(3).train("yes")


@pytest.mark.parametrize("eps", [0, -1.0, float("nan")])
def test_eps_of_a_function(eps):
    with raises(ValueError, "eps", repr(eps)):
        fastbn.batch_norm(X, training=True, eps=eps)


@pytest.mark.parametrize("training", [0.1, 1, None, "yes"])
def test_training_of_a_function(training):
    with raises(TypeError, "training must be True or False", repr(training)):
        fastbn.batch_norm(X, None, None, None, None, training)


def test_one_array_for_both_statistics():
    both = np.ones(3, np.float32)
    with raises(ValueError, "running_mean and running_var share memory", "copy()"):
        fastbn.batch_norm(X, both, both, training=True)
    x, one = X.copy(), np.ones(3, np.float32)
    with raises(ValueError, "running_var and x share memory"):
        fastbn.batch_norm(x, one, x[0, :, 0], training=True)
    with raises(ValueError, "running_mean has strides (0,)"):
        zero = np.lib.stride_tricks.as_strided(np.ones(1, np.float32), (3,), (0,))
        fastbn.batch_norm(x, zero, one, training=True)


def test_momentum_of_a_function():
    mean, var = np.zeros(3, np.float32), np.ones(3, np.float32)
    with raises(TypeError, "momentum", "None", "layer"):
        fastbn.batch_norm(X, mean, var, training=True, momentum=None)
    for momentum in (float("inf"), -0.1, 1.1):
        with raises(ValueError, "momentum", repr(momentum), "0 to 1"):
            fastbn.batch_norm(X, mean, var, training=True, momentum=momentum)
    np.testing.assert_array_equal(mean, np.zeros(3))


def test_an_array_for_a_number_is_named():
    with raises(TypeError, "virtual_batch_size must be a positive integer"):
        BatchNorm1d(3, virtual_batch_size=X)
