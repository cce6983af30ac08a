"""Arrays of other libraries are read where they lie, or refused with the way out."""

import subprocess
import sys
import warnings

import numpy as np
import pytest

import fastbn
from tests import reference

N, C = 6, 3


@pytest.fixture
def values(rng):
    return rng.normal(3, 2, (N, C)).astype(np.float32)


class HasArray:
    """The least there is: NumPy may ask for its values."""

    def __init__(self, values):
        self.held, self.shape, self.ndim = values, values.shape, values.ndim

    def __array__(self, dtype=None, copy=None):
        return self.held


class HasDlpack:
    """Lends its memory by DLPack alone."""

    def __init__(self, values):
        self.held, self.shape, self.ndim = values, values.shape, values.ndim

    def __dlpack__(self, **how):
        return self.held.__dlpack__()

    def __dlpack_device__(self):
        return 1, 0


class Copies(HasArray):
    """Gives NumPy another copy at each time."""

    def __array__(self, dtype=None, copy=None):
        return self.held.copy()


class OnDevice(HasDlpack):
    """On a GPU that is not NVIDIA's."""

    def __dlpack__(self, **how):
        raise AssertionError("somebody has copied from the device")

    def __dlpack_device__(self):
        return 8, 0


class OnlyNamed:
    """As TensorFlow's: it says by name where it is."""

    __module__ = "tensorflow.python.framework.ops"

    def __init__(self, values, device):
        self.held, self.shape, self.ndim, self._device = values, values.shape, values.ndim, device

    @property
    def device(self):
        return f"/job:localhost/replica:0/task:0/device:{self._device}:0"

    def __array__(self, dtype=None, copy=None):
        assert self._device == "CPU", "somebody has copied from the device"
        return self.held


def torch_tensor(values):
    return pytest.importorskip("torch", reason="not in the test extra").from_numpy(values)


def jax_array(values):
    jax = pytest.importorskip("jax", reason="not in the test extra")
    return jax.numpy.asarray(values)


def frame(values):
    import pandas as pd

    return pd.DataFrame(values) if values.ndim == 2 else pd.Series(values)


def data_array(values):
    import xarray as xr

    return xr.DataArray(values, dims=("n", "c", "h", "w")[: values.ndim])


KINDS = {
    "torch": torch_tensor, "jax": jax_array, "pandas": frame, "xarray": data_array,
    "__array__": HasArray, "__dlpack__": HasDlpack, "on the CPU": lambda v: OnlyNamed(v, "CPU"),
}  # fmt: skip
SHARES = sorted(KINDS.keys() - {"jax", "pandas"})  # which those two may do or not, by version


def memory_of(array):
    """Where it begins, as NumPy sees it."""
    if isinstance(array, HasDlpack):
        return array.held.ctypes.data
    return np.asarray(array).ctypes.data


@pytest.mark.parametrize("kind", KINDS)
def test_every_function_takes_it_for_every_array(kind, values, rng):
    """The bits of a call with NumPy's arrays, and arrays of NumPy's own come out."""
    vectors = rng.uniform(0.5, 2, (4, C)).astype(np.float32)
    x, dy = KINDS[kind](values), KINDS[kind](values[::-1].copy())
    mean, var, weight, bias = map(KINDS[kind], vectors)
    plain = [values, values[::-1].copy()]
    if kind == "pandas":  # lays out memory as it likes, and bits depend on that
        plain = [np.asarray(x), np.asarray(dy)]

    def evaluation(x, dy, mean, var, weight, bias):
        y, cache = fastbn.batch_norm_forward(x, mean, var, weight, bias, residual=dy)
        return y, *fastbn.batch_norm_backward(dy, cache)

    def training(x, dy, mean, var, weight, bias):
        y, cache = fastbn.batch_norm_forward(
            x, weight=weight, bias=bias, training=True, activation="relu"
        )
        return y, *fastbn.batch_norm_backward(dy, cache)

    def layer(x, dy, mean, var, weight, bias):
        bn = fastbn.BatchNorm1d(C)
        bn.weight, bn.bias, bn.running_mean, bn.running_var = weight, bias, mean, var
        y, cache = bn.eval().forward_with_cache(x)
        return y, bn(x), *bn.backward(dy, cache)

    def trained(x, dy, mean, var, weight, bias):
        results = []
        for bn in (fastbn.BatchNorm1d(C), fastbn.BatchRenorm1d(C),
                   fastbn.BatchNorm1d(C, virtual_batch_size=3)):  # fmt: skip
            results += [bn(x), *bn.backward(dy), bn.running_mean]
        return results

    def norms(x, dy, mean, var, weight, bias):
        results = []
        for y, cache in (
            fastbn.group_norm_forward(x, 1, weight, bias),
            fastbn.layer_norm_forward(x, C, weight, bias),
            fastbn.rms_norm_forward(x, C, weight),
        ):
            results += [y, *(g for g in fastbn.norm_backward(dy, cache) if g is not None)]
        return results

    def layers(x, dy, mean, var, weight, bias):
        results = []
        for norm in (fastbn.GroupNorm(1, C), fastbn.LayerNorm(C), fastbn.RMSNorm(C),
                     fastbn.InstanceNorm1d(N)):  # fmt: skip
            results += [norm(x), norm.backward(dy).x]
        return results

    def statistics(x, dy, mean, var, weight, bias):
        stats = fastbn.channel_stats(x, skipna=True)
        return stats.count, stats.mean, stats.m2

    for call in (evaluation, training, layer, trained, norms, layers, statistics):
        wanted = call(*plain, *vectors)
        got = call(x, dy, mean, var, weight, bias)
        for one, other in zip(got, wanted, strict=True):
            if one is None or other is None:  # the residual without one
                assert one is other
                continue
            assert type(one) is np.ndarray, call.__name__
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other, err_msg=call.__name__)


@pytest.mark.parametrize("kind", SHARES)
def test_nothing_is_copied(kind, values):
    """The forward's cache refers to the memory of the other library's array."""
    x = KINDS[kind](values)
    _, cache = fastbn.batch_norm_forward(x, training=True)
    assert cache.x.ctypes.data == memory_of(x) == values.ctypes.data
    bn = fastbn.BatchNorm1d(C)
    weight = np.ones(C, np.float32)
    bn.weight = KINDS[kind](weight)
    assert bn.weight.ctypes.data == weight.ctypes.data


def test_memory_maps_give_plain_arrays(values, tmp_path):
    x = np.memmap(tmp_path / "x.bin", np.float32, "w+", shape=values.shape)
    x[...] = values
    read_only = np.memmap(tmp_path / "x.bin", np.float32, "r", shape=values.shape)
    y = fastbn.batch_norm(read_only, training=True)
    assert type(y) is np.ndarray
    np.testing.assert_array_equal(y, fastbn.batch_norm(values, training=True))
    assert fastbn.batch_norm(values, training=True, out=x) is x
    np.testing.assert_array_equal(np.asarray(x), y)


@pytest.mark.parametrize("kind", KINDS)
def test_out_is_an_array_of_numpys(kind, values):
    out = KINDS[kind](np.zeros_like(values))
    _, cache = fastbn.batch_norm_forward(values, training=True)
    for call in (
        lambda: fastbn.batch_norm(values, training=True, out=out),
        lambda: fastbn.batch_norm_backward(values, cache, out=out),
        lambda: fastbn.layer_norm(values, C, out=out),
        lambda: fastbn.InstanceNorm1d(N)(values, out=out),
    ):
        with pytest.raises(TypeError, match=r"out must be a numpy\.ndarray, got"):
            call()
    np.testing.assert_array_equal(np.asarray(getattr(out, "held", out)), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_of_another_library(kind, values):
    mask = np.arange(N * C).reshape(N, C) % 4 > 0
    wanted = fastbn.batch_norm(values, training=True, mask=mask)
    got = fastbn.batch_norm(values, training=True, mask=KINDS[kind](mask))
    np.testing.assert_array_equal(got, wanted)
    stats = fastbn.channel_stats(values, mask=KINDS[kind](mask))
    np.testing.assert_array_equal(stats.mean, fastbn.channel_stats(values, mask=mask).mean)
    with pytest.raises(TypeError, match=r"mask must be a numpy\.ndarray of bools"):
        fastbn.channel_stats(values, mask=KINDS[kind](values))
    with pytest.raises(TypeError, match=r"mask must be a numpy\.ndarray of bools.*got list"):
        fastbn.channel_stats(values, mask=mask.tolist())


# --- running statistics ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["torch", "__array__", "on the CPU", "xarray"])
def test_running_statistics_in_shared_memory_move(kind, values):
    ones, zeros = np.ones(C), np.zeros(C)
    mean, var = KINDS[kind](np.zeros(C)), KINDS[kind](np.ones(C))
    fastbn.batch_norm(values, mean, var, training=True)
    _, of_batch, biased = reference.forward(values, ones, zeros, 1e-5, 1)
    held = [np.asarray(getattr(each, "held", each)) for each in (mean, var)]
    np.testing.assert_allclose(held[0], 0.1 * of_batch.astype(float), rtol=1e-5)
    unbiased = biased.astype(float) * N / (N - 1)
    np.testing.assert_allclose(held[1], 0.9 + 0.1 * unbiased, rtol=1e-5)
    fastbn.instance_norm(values[None], mean, var, axis=2)
    assert (np.asarray(getattr(mean, "held", mean)) != held[0] * 0).all()


def test_running_statistics_that_would_not_move_are_refused(values):
    """A copy that nobody sees, or memory that is read-only."""
    fine = np.ones(C, np.float32)
    for name, call in {
        "batch_norm": lambda m, v: fastbn.batch_norm(values, m, v, training=True),
        "instance_norm": lambda m, v: fastbn.instance_norm(values[None], m, v, axis=2),
    }.items():
        for mean, var in ((Copies(fine), fine), (fine, Copies(fine))):
            with pytest.raises(ValueError, match=r"is a Copies that NumPy gets a copy of.*np\.arr"):
                call(mean, var)
        np.testing.assert_array_equal(fine, 1, err_msg=name)
    fastbn.batch_norm(values, Copies(fine), Copies(fine))  # evaluation reads them alone


def test_running_statistics_of_jax_are_read_only(values):
    mean, var = jax_array(np.zeros(C, np.float32)), jax_array(np.ones(C, np.float32))
    with pytest.raises(ValueError, match=r"running_mean is read-only.*np\.array\(running_mean\)"):
        fastbn.batch_norm(values, mean, var, training=True)
    np.testing.assert_array_equal(np.asarray(mean), 0)


# --- torch ----------------------------------------------------------------------------------------


def test_a_tensor_that_requires_grad_is_refused(values):
    x = torch_tensor(values).requires_grad_()
    weight = torch_tensor(np.ones(C, np.float32)).requires_grad_()
    for name, call in {
        "x": lambda: fastbn.batch_norm(x, training=True),
        "weight": lambda: fastbn.batch_norm(values, weight=weight, training=True),
    }.items():
        with pytest.raises(TypeError, match=rf"{name} requires grad.*{name}\.detach\(\)"):
            call()
    got = fastbn.batch_norm(x.detach(), weight=weight.detach(), training=True)
    np.testing.assert_array_equal(got, fastbn.batch_norm(values, training=True))


def test_bfloat16_tensors_are_read_where_they_are(values):
    import ml_dtypes

    plain = values.astype(ml_dtypes.bfloat16)
    x = torch_tensor(values).bfloat16()
    for tensor, array in ((x, plain), (x.T, plain.T), (x[::2], plain[::2])):
        y, cache = fastbn.batch_norm_forward(tensor, training=True)
        assert y.dtype == ml_dtypes.bfloat16
        assert cache.x.ctypes.data == tensor.data_ptr()
        np.testing.assert_array_equal(
            y.astype(float), fastbn.batch_norm(array, training=True).astype(float)
        )


def test_bfloat16_without_ml_dtypes_has_another_way(values, monkeypatch):
    x = torch_tensor(values).bfloat16()
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(TypeError, match=r"ml_dtypes.*x\.detach\(\)\.cpu\(\)\.float\(\)\.numpy"):
        fastbn.batch_norm(x, training=True)


def test_other_tensors_that_cannot_be_read(values):
    torch = pytest.importorskip("torch", reason="not in the test extra")
    meta = torch.empty(N, C, device="meta")
    with pytest.raises(TypeError, match="got Tensor of torch on meta"):
        fastbn.batch_norm(meta, training=True)
    sparse = torch.from_numpy(values).to_sparse()
    with pytest.raises(TypeError, match="got Tensor of torch, which cannot be read"):
        fastbn.batch_norm(sparse, training=True)
    with pytest.raises(TypeError, match="got dtype int64"):
        fastbn.batch_norm(torch.ones(N, C, dtype=torch.int64), training=True)


def test_tracers_of_jax(values):
    jax = pytest.importorskip("jax", reason="not in the test extra")
    with pytest.raises(TypeError, match="cannot be read"):
        jax.jit(lambda x: fastbn.batch_norm(x, training=True))(values)


def test_bfloat16_of_jax(values):
    import ml_dtypes

    x = jax_array(values).astype("bfloat16")
    y = fastbn.batch_norm(x, training=True)
    assert y.dtype == ml_dtypes.bfloat16


# --- what stays where it is -----------------------------------------------------------------------


def test_nothing_comes_from_a_device(values):
    for x, where in ((OnDevice(values), r"DLPack's device \(8, 0\)"),
                     (OnlyNamed(values, "GPU"), "device:GPU:0")):  # fmt: skip
        with pytest.raises(TypeError, match=where):
            fastbn.batch_norm(x, training=True)


def test_nothing_lazy_is_loaded(values, tmp_path):
    import dask.array as da
    import h5py
    import xarray as xr

    def fail(block):
        raise AssertionError("somebody has computed it")

    lazy = da.from_array(values, chunks=(2, C)).map_blocks(fail, dtype=np.float32)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        stored = file.create_dataset("x", data=values)
        for x, way in (
            (lazy, r"Array of dask; x\.compute\(\).*map_blocks"),
            (xr.DataArray(lazy), r"of (dask|xarray).*x\.(compute|to_numpy)\(\)"),
            (stored, r"Dataset of h5py; x\[\.\.\.\]"),
        ):
            for call in (
                lambda x=x: fastbn.batch_norm(x, training=True),
                lambda x=x: fastbn.channel_stats(x),
                lambda x=x: fastbn.BatchNorm1d(C)(x),
            ):
                with pytest.raises(TypeError, match=way):
                    call()


def test_frames_that_hold_no_floats():
    import pandas as pd

    mixed = pd.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"]})
    with pytest.raises(TypeError, match=r"x must be float32.*got dtype object"):
        fastbn.batch_norm(mixed, training=True)
    whole = pd.DataFrame({"a": [1, 2], "b": [3, 5]})
    with pytest.raises(TypeError, match=r"int64.*x\.astype\(np\.float32\)"):
        fastbn.batch_norm(whole, training=True)
    assert fastbn.batch_norm(whole.astype(np.float32), training=True).dtype == np.float32


# --- Dask asks for a dtype ------------------------------------------------------------------------


@pytest.fixture
def picture(rng):
    return rng.normal(3, 2, (8, C, 6, 4)).astype(np.float32)


def chunked(picture):
    import dask.array as da

    return da.from_array(picture, chunks=(3, C, 4, 4))


@pytest.mark.parametrize("how", [
    "positional", "keywords", "layer", "silu layer", "instance", "group", "renorm",
])  # fmt: skip
def test_map_blocks_without_a_dtype(how, picture, rng):
    """Axes without channels are chunked; nothing that has state moves."""
    import dask.array as da

    x = chunked(picture)
    mean, var, weight, bias = rng.uniform(0.5, 2, (4, C)).astype(np.float32)
    layers = {
        "layer": fastbn.BatchNorm2d(C), "silu layer": fastbn.BatchNorm2d(C, activation="silu"),
        "renorm": fastbn.BatchRenorm2d(C),
        "instance": fastbn.InstanceNorm2d(C, affine=True, track_running_stats=True),
        "group": fastbn.GroupNorm(C, C),
    }  # fmt: skip
    if how == "positional":
        y = da.map_blocks(fastbn.batch_norm, x, mean, var, weight, bias)
        wanted = fastbn.batch_norm(picture, mean, var, weight, bias)
    elif how == "keywords":
        y = x.map_blocks(fastbn.batch_norm, running_mean=mean, running_var=var, weight=weight)
        wanted = fastbn.batch_norm(picture, mean, var, weight)
    else:
        layer = layers[how].eval()
        y = x.map_blocks(layer)
        wanted = None if how == "group" else layer(picture)
    assert y.dtype == np.float32
    y = y.compute(scheduler="threads")
    assert y.dtype == np.float32
    if wanted is None:  # a group norm has statistics of its own in each block
        assert y.shape == picture.shape
    else:
        np.testing.assert_array_equal(y, wanted)


def test_map_blocks_of_norms_over_the_last_axis(picture):
    x = chunked(picture)
    y = x.map_blocks(fastbn.LayerNorm(4))
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y.compute(), fastbn.layer_norm(picture, 4))
    y = x.astype(np.float64).map_blocks(fastbn.layer_norm, 4)
    assert y.dtype == np.float64


def test_float16_blocks_stay_float16(picture):
    y = chunked(picture.astype(np.float16)).map_blocks(fastbn.BatchNorm2d(C).eval())
    assert y.dtype == np.float16


def test_a_layer_that_dask_asks_in_training_learns_nothing(picture):
    bn = fastbn.BatchNorm2d(C)
    chunked(picture).map_blocks(bn)  # and computes nothing yet
    assert bn.num_batches_tracked == 0
    np.testing.assert_array_equal(bn.running_mean, 0)


@pytest.mark.parametrize("shape", [(0, 0, 0, 0), (2, 0, 3, 1), (0, 0, 5, 5)])
def test_x_without_channels_fits_any_number_of_them(shape):
    x = np.empty(shape, np.float32)
    mean, var, ones = np.zeros(C, np.float32), np.ones(C, np.float32), np.ones(C)
    for training in (False, True):
        y, cache = fastbn.batch_norm_forward(x, mean, var, ones, ones, training)
        assert (y.shape, y.dtype) == (shape, np.float32)
        assert fastbn.batch_norm_backward(y, cache).x.shape == shape
    bn = fastbn.BatchNorm2d(C)
    assert bn(x).shape == bn.eval()(x).shape == shape
    assert bn.num_batches_tracked == 0
    np.testing.assert_array_equal((mean, var), [[0] * C, [1] * C])
    assert fastbn.channel_stats(x).mean.shape == (0,)
    with pytest.raises(TypeError, match="weight must be float32"):
        fastbn.batch_norm(x, mean, var, np.ones(C, int))
    with pytest.raises(ValueError, match="weight has shape"):
        fastbn.batch_norm(x, mean, var, np.ones((C, C)))


def test_one_value_is_no_question_unless_dask_asks():
    one = np.zeros((1, 1, 1, 1), np.float32)
    import dask.array  # noqa: F401

    with pytest.raises(ValueError, match="num_features=3"):
        fastbn.BatchNorm2d(C).eval()(one)
    with pytest.raises(ValueError, match="running_mean has length 3"):
        fastbn.batch_norm(one, np.zeros(C), np.ones(C))
    assert fastbn.BatchNorm2d(1).eval()(one).shape == one.shape


def test_apply_ufunc_of_xarray(picture):
    import xarray as xr

    x = xr.DataArray(picture, dims=("time", "channel", "y", "x"))
    mean, var = np.zeros(C, np.float32), np.full(C, 4, np.float32)
    wanted = fastbn.batch_norm(picture, mean, var)
    core = ["time", "channel", "y", "x"]
    y = xr.apply_ufunc(
        fastbn.batch_norm, x, mean, var,
        input_core_dims=[core, ["channel"], ["channel"]], output_core_dims=[core],
    )  # fmt: skip
    assert y.dims == x.dims
    np.testing.assert_array_equal(y.values, wanted)
    lazy = xr.apply_ufunc(
        fastbn.batch_norm, x.chunk(time=3, y=2), mean, var, kwargs={"axis": -1},
        input_core_dims=[["channel"]] * 3, output_core_dims=[["channel"]],
        dask="parallelized", output_dtypes=[np.float32],
    )  # fmt: skip
    np.testing.assert_array_equal(lazy.transpose(*core).compute().values, wanted)


def test_nothing_of_them_is_imported():
    code = (
        "import numpy as np, fastbn, sys; fastbn.channel_stats(np.ones((1, 1), 'f4'));"
        "print(sorted({'torch', 'jax', 'dask', 'xarray', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- ways out -------------------------------------------------------------------------------------


def test_pictures_become_arrays_of_bytes_where_these_are_taken():
    image = pytest.importorskip("PIL.Image", reason="another library's images").new("RGB", (4, 5))
    for call in (lambda x: fastbn.standardize(x, 0, 1, axis=-1), fastbn.channel_stats):
        with pytest.raises(TypeError, match=r"np\.asarray\(x\) converts"):
            call(image)
        call(np.asarray(image))
    with pytest.raises(TypeError, match=r"np\.asarray\(x, np\.float32\) converts"):
        fastbn.batch_norm(image, training=True)


@pytest.mark.parametrize("kind", ["negative", "conjugate", "sparse", "meta", "quantized"])
def test_the_way_out_of_an_odd_tensor_leads_out(kind):
    torch = pytest.importorskip("torch", reason="another library's tensors")
    z = torch.arange(12.0).reshape(4, 3)
    x = {
        "negative": lambda: torch.complex(z, z).conj().imag,
        "conjugate": lambda: torch.complex(z, z).conj(),
        "sparse": z.to_sparse,
        "meta": lambda: z.to("meta"),
        "quantized": lambda: torch.quantize_per_tensor(z, 0.1, 0, torch.qint8),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = x[kind]()
    with pytest.raises(TypeError) as caught:
        fastbn.batch_norm(x, training=True)
    way = str(caught.value).rpartition("; ")[2].partition(" ")[0]
    if kind == "meta":
        assert "has no values" in str(caught.value)
    else:
        assert isinstance(eval(way, {"x": x}), np.ndarray)


def test_frames_of_integers_say_how_they_become_numbers():
    pandas = pytest.importorskip("pandas", reason="another library's frames")
    frame = pandas.DataFrame({"a": [1, 2, 4], "b": [3, 4, 5]})
    for call in (fastbn.channel_stats, lambda x: fastbn.standardize(x, 0, 1)):
        with pytest.raises(TypeError, match=r"x\.to_numpy\(np\.float64\)"):
            call(frame)
        with pytest.raises(TypeError, match=r"x\.astype\(np\.float64\)"):
            call(frame.to_numpy())
        call(frame.to_numpy(np.float64))
