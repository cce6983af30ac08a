"""Statistics and normalization of Dask's arrays are those of the same arrays in memory."""

import pickle
import sys

import numpy as np
import pytest

import fastbn
from fastbn.cli import main
from tests import reference
from tests import subprocess_tools as tools

da = pytest.importorskip("dask.array", reason="in the test extra")

import dask  # noqa: E402

from fastbn.distributed import on_dask  # noqa: E402

SHAPE = (13, 6, 5, 4)
#: Chunks along the samples, the channels and the rest; some empty.
CHUNKS = [
    SHAPE,
    (4, 6, 5, 4),
    (5, 4, 3, 4),
    (1, 1, 2, 3),
    ((0, 13), 6, (2, 0, 3), 4),
    ((6, 0, 7), (1, 0, 5), 5, 4),
]


def bits(stats):
    return pickle.dumps([getattr(stats, name) for name in stats.__dataclass_fields__])


def array(rng, dtype, shape=SHAPE):
    if np.dtype(dtype).kind in "ui":
        return rng.integers(0, 100, shape).astype(dtype)
    return rng.normal(30, 2, shape).astype(dtype)


# --- statistics -----------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "u1", "i2"])
def test_statistics(rng, dtype, chunks):
    x = array(rng, dtype)
    stats = on_dask.channel_stats(da.from_array(x, chunks=chunks), extremes=True)
    mean, var = reference.mean_and_var(x, 1)
    assert stats.count.tolist() == [13 * 5 * 4] * 6
    np.testing.assert_allclose(stats.mean, mean.astype(float), rtol=1e-6)
    np.testing.assert_allclose(stats.var(), var.astype(float), rtol=1e-5)
    assert np.array_equal(stats.min, x.min((0, 2, 3)))
    assert np.array_equal(stats.max, x.max((0, 2, 3)))


@pytest.mark.parametrize("chunks", CHUNKS[1:], ids=str)
def test_bits_depend_on_the_chunks_alone(rng, chunks):
    x = da.from_array(rng.normal(1e3, 1, SHAPE).astype("f4"), chunks=chunks)
    later = on_dask.channel_stats(x, compute=False)
    wanted = bits(later.compute(scheduler="sync"))
    for threads in (1, 2, 7):
        assert bits(later.compute(scheduler="threads", num_workers=threads)) == wanted
    with dask.config.set(split_every=2):
        assert bits(on_dask.channel_stats(x)) == wanted


def test_many_blocks_are_merged_in_the_order_of_the_array():
    """Merging in another order would show: values grow by 16 digits."""
    x = np.geomspace(1e-8, 1e8, 300)[:, None] * np.ones((1, 2))
    found = on_dask.channel_stats(da.from_array(x, chunks=(1, 1)))
    np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-15)
    np.testing.assert_allclose(found.var(), x.astype(np.longdouble).var(0).astype(float))


@pytest.mark.parametrize("axis", [0, 2, -1])
def test_axis(rng, axis):
    x = array(rng, "f8")
    found = on_dask.channel_stats(da.from_array(x, chunks=3), axis)
    np.testing.assert_allclose(found.mean, fastbn.channel_stats(x, axis).mean, rtol=1e-14)


def test_missing_values(rng):
    x = array(rng, "f4")
    x[3, 2], x[5, 1, 2, 2] = np.nan, np.nan
    lazy = da.from_array(x, chunks=(2, 3, 5, 4))
    assert np.isnan(on_dask.channel_stats(lazy).mean).tolist() == [False, True, True] + 3 * [False]
    found = on_dask.channel_stats(lazy, skipna=True, extremes=True)
    assert found.count.tolist() == [260, 259, 240, 260, 260, 260]
    assert found.nan_count.tolist() == [0, 1, 20, 0, 0, 0]
    np.testing.assert_allclose(found.mean, np.nanmean(x.astype("f8"), (0, 2, 3)), rtol=1e-6)


def test_masked_blocks(rng):
    x = array(rng, "f8")
    lazy = da.ma.masked_greater(da.from_array(x, chunks=4), 31)
    wanted = np.ma.masked_greater(x, 31)
    found = on_dask.channel_stats(lazy)
    assert np.array_equal(found.count, wanted.count((0, 2, 3)))
    np.testing.assert_allclose(found.mean, wanted.mean((0, 2, 3)))


def test_chunks_of_unknown_size(rng):
    x = array(rng, "f4", (20, 6))
    x[::3, 0] = -1
    lazy = da.from_array(x, chunks=(4, 4))
    some = lazy[lazy[:, 0] > 0]
    assert np.isnan(some.shape[0])
    found = on_dask.channel_stats(some)
    assert found.count.tolist() == [13] * 6
    np.testing.assert_allclose(found.mean, x[x[:, 0] > 0].mean(0, dtype="f8"), rtol=1e-6)
    channels = on_dask.channel_stats(some.T, axis=0)
    np.testing.assert_allclose(channels.mean, found.mean, rtol=1e-12)
    unknown = on_dask.channel_stats(some.T, axis=1)  # of an unknown number of channels
    assert unknown.count.tolist() == [6] * 13


def test_nothing():
    for shape in ((0, 3), (0, 3, 4, 4)):
        found = on_dask.channel_stats(da.zeros(shape, dtype="f4", chunks=2))
        assert found.count.tolist() == [0, 0, 0]
    assert on_dask.channel_stats(da.zeros((3, 0), dtype="f4")).mean.shape == (0,)


@pytest.mark.parametrize(
    ("x", "options", "error", "words"),
    [
        (np.ones((3, 2)), {}, TypeError, "must be a dask.array.Array, got ndarray"),
        (da.ones(3), {}, ValueError, "dimensions"),
        (da.ones((3, 2)), {"axis": 2}, ValueError, "axis"),
        (da.ones((3, 2)), {"axis": 1.0}, TypeError, "axis"),
        (da.ones((3, 2), dtype="i8"), {}, TypeError, "int64"),
        (da.ones((3, 2)), {"skipna": 2}, TypeError, "skipna"),
        (da.ones((3, 2)), {"compute": "later"}, TypeError, "compute"),
    ],
)
def test_refused_before_anything_is_computed(x, options, error, words):
    with pytest.raises(error, match=words):
        on_dask.channel_stats(x, **{"compute": False, **options})


def test_labelled_arrays_are_told_what_to_pass():
    xr = pytest.importorskip("xarray")
    with pytest.raises(TypeError, match=r"pass x\.data"):
        on_dask.channel_stats(xr.DataArray(da.ones((3, 2))))


# --- normalization --------------------------------------------------------------------------------


def parameters(rng, dtype="f4", channels=6):
    return [rng.uniform(0.5, 2, channels).astype(dtype) for _ in range(4)]


def same(lazy, wanted):
    """Lazy, with the dtype and shape that it says, and the same bits."""
    assert isinstance(lazy, da.Array)
    found = lazy.compute()
    assert lazy.dtype == found.dtype == wanted.dtype
    assert lazy._meta.dtype == wanted.dtype
    assert np.array_equal(found, wanted, equal_nan=True)
    if not any(map(np.isnan, lazy.shape)):
        assert lazy.shape == found.shape == wanted.shape
    return True


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
@pytest.mark.parametrize("dtype", ["f4", "f8", "f2"])
def test_batch_norm(rng, dtype, chunks):
    x, r = array(rng, dtype), array(rng, dtype)
    given = parameters(rng, "f8" if dtype == "f8" else "f4")
    lazy, residual = da.from_array(x, chunks=chunks), da.from_array(r, chunks=2)
    y = on_dask.batch_norm(lazy, *given)
    assert y.chunks == lazy.chunks
    assert same(y, fastbn.batch_norm(x, *given))
    options = {"eps": 1e-3, "activation": "relu"}
    y = on_dask.batch_norm(lazy, *given, residual=residual, **options)
    assert same(y, fastbn.batch_norm(x, *given, residual=r, **options))


def test_batch_norm_channels_last_without_weight(rng):
    x, (mean, var, *_) = array(rng, "f4", (9, 5, 5, 6)), parameters(rng)
    y = on_dask.batch_norm(da.from_array(x, chunks=(2, 5, 3, 4)), mean, var, axis=-1)
    assert same(y, fastbn.batch_norm(x, mean, var, axis=-1))


def test_lazy_parameters_and_chunks_of_unknown_size(rng):
    x, given = array(rng, "f4", (20, 6)), parameters(rng)
    lazy = da.from_array(x, chunks=(4, 4))
    some, kept = lazy[lazy[:, 0] > 30], x[x[:, 0] > 30]
    arrays = [da.from_array(values, chunks=5) for values in given]
    assert same(on_dask.batch_norm(some, *arrays), fastbn.batch_norm(kept, *given))
    one = some.T.rechunk({0: -1})
    assert same(on_dask.batch_norm(one, *given, axis=0), fastbn.batch_norm(kept.T, *given, axis=0))
    mean = fastbn.channel_stats(kept, 0).mean
    with pytest.raises(ValueError, match=r"unknown size on the channel axis 1.*compute_chunk"):
        on_dask.standardize(some.T, mean, 1, axis=1)
    with pytest.raises(ValueError, match=r"running_mean has shape \(3,\), expected \(6,\)"):
        on_dask.batch_norm(lazy, arrays[0][:3], *arrays[1:])


def test_statistics_then_evaluation_is_a_training_call(rng):
    x = array(rng, "f8")
    lazy = da.from_array(x, chunks=(4, 4, 5, 4))
    stats = on_dask.channel_stats(lazy)
    y = on_dask.batch_norm(lazy, stats.mean, stats.var()).compute()
    np.testing.assert_allclose(y, fastbn.batch_norm(x, training=True), atol=1e-10)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"training": True}, NotImplementedError, "on_dask.channel_stats"),
        ({"running_mean": None}, ValueError, "on_dask.channel_stats"),
        ({"x": np.ones((4, 6), "f4")}, TypeError, "dask.array.Array"),
        ({"running_var": np.ones(5, "f4")}, ValueError, "running_var"),
        ({"weight": [1.0] * 6}, TypeError, "weight"),
        ({"eps": -1}, ValueError, "eps"),
        ({"axis": 4}, ValueError, "axis"),
        ({"activation": "tan"}, ValueError, "activation"),
        ({"residual": np.ones((4, 6))}, TypeError, "residual must be a dask.array.Array"),
        ({"residual": da.ones((4, 5), dtype="f4")}, ValueError, r"residual has shape \(4, 5\)"),
        ({"residual": da.ones((4, 6))}, ValueError, "dtype float64"),
    ],
)
def test_batch_norm_refuses(change, error, words):
    given = {
        "x": da.ones((4, 6), dtype="f4"), "running_mean": np.zeros(6, "f4"),
        "running_var": np.ones(6, "f4"),
    }  # fmt: skip
    with pytest.raises(error, match=words):
        on_dask.batch_norm(**{**given, **change})


@pytest.mark.parametrize("kind", [fastbn.BatchNorm2d, fastbn.BatchRenorm2d])
def test_layers(rng, kind):
    bn = kind(6)
    if kind is fastbn.BatchNorm2d:
        bn.activation = "relu"
    x = array(rng, "f4")
    bn(x)
    bn.eval()
    wanted = bn(x)
    y = on_dask.evaluate(bn, da.from_array(x, chunks=(3, 4, 5, 4)))
    one = on_dask.evaluate(bn, da.from_array(x[0], chunks=(4, 5, 4)))  # a sample, channels first
    bn.train()(x + 1)
    assert same(y, wanted)
    assert same(one, wanted[0])
    with pytest.raises(ValueError, match=r"training mode.*eval\(\)"):
        on_dask.evaluate(bn, da.from_array(x))
    bn.freeze()
    assert same(on_dask.evaluate(bn, da.from_array(x, chunks=3)), bn(x))
    with pytest.raises(ValueError, match="6"):
        on_dask.evaluate(bn, da.ones((3, 7, 2, 2), dtype="f4"))


def test_layers_that_are_no_batch_norm():
    with pytest.raises(TypeError, match=r"x\.map_blocks\(layer\)"):
        on_dask.evaluate(fastbn.GroupNorm(2, 6), da.ones((4, 6), dtype="f4"))
    bn = fastbn.BatchNorm1d(6, track_running_stats=False).eval()
    with pytest.raises(ValueError, match="no running statistics"):
        on_dask.evaluate(bn, da.ones((4, 6), dtype="f4"))


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
@pytest.mark.parametrize("out_axis", [None, -1, 0])
def test_standardize(rng, chunks, out_axis):
    x, (mean, std, *_) = array(rng, "u1"), parameters(rng, "f8")
    lazy = da.from_array(x, chunks=chunks)
    options = {"scale": 1 / 255, "out_axis": out_axis}
    y = on_dask.standardize(lazy, mean, std, **options)
    wanted = fastbn.standardize(x, mean, std, **options)
    assert same(y, wanted)
    back = {"dtype": "u1", "scale": 1 / 255, "out_axis": 1}
    axis = 1 if out_axis is None else out_axis
    assert same(on_dask.destandardize(y, mean, std, axis=axis, **back), x)


def test_standardize_with_numbers_and_lazy_vectors(rng):
    x = array(rng, "f4", (10, 6))
    lazy = da.from_array(x, chunks=(3, 4))
    assert same(on_dask.standardize(lazy, 1.5, 2), fastbn.standardize(x, 1.5, 2))
    assert same(on_dask.standardize(lazy, 1.5, np.arange(1, 7)),
                fastbn.standardize(x, 1.5, np.arange(1, 7)))  # fmt: skip
    mean = da.arange(6, chunks=1, dtype="f8")
    found = on_dask.standardize(lazy, mean, [1, 2, 3, 4, 5, 6], dtype="f8")
    assert same(found, fastbn.standardize(x, np.arange(6.0), np.arange(1, 7), dtype="f8"))
    zero = [0.0, 1, 1, 1, 1, 1]
    with pytest.raises(ValueError, match="zero_std"):
        on_dask.standardize(lazy, 0, zero)
    assert same(on_dask.standardize(lazy, 0, zero, zero_std=1), x)
    with pytest.raises(ValueError, match="mean"):
        on_dask.standardize(lazy, np.ones(5), 1)
    with pytest.raises(TypeError, match="dtype"):
        on_dask.standardize(lazy, 0, 1, dtype="i4")
    with pytest.raises(ValueError, match="out_axis"):
        on_dask.standardize(lazy, 0, 1, out_axis=2)


# --- without Dask ---------------------------------------------------------------------------------


def test_nothing_imports_dask_before_it_is_used():
    tools.run(
        "import sys, fastbn\n"
        "from fastbn.distributed import on_dask\n"
        "assert not {'dask', 'distributed', 'cloudpickle'} & set(sys.modules)"
    )


@pytest.mark.parametrize(
    ("module", "call"),
    [
        ("dask.array", lambda: on_dask.channel_stats(da.ones((3, 2)))),
        ("dask.array", lambda: on_dask.standardize(da.ones((3, 2)), 0, 1)),
        ("dask.bag", lambda: on_dask.recalibrate(fastbn.BatchNorm1d(2), [])),
        ("distributed", lambda: on_dask.executor("tcp://127.0.0.1:9").__enter__()),
    ],
)
def test_without_dask(module, call, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"needs {module}: pip install 'fastbn\[dask\]'"):
        call()


def test_command_without_dask(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main(["stats", ".", "--dask", "tcp://127.0.0.1:9"]) == 2
    assert "pip install 'fastbn[dask]'" in capsys.readouterr().err
