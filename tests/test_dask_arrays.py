"""Dask's arrays of unusual kinds: how blocks lie, what is not counted, what is yet to come."""

import pickle

import numpy as np
import pytest

from fastbn.kernels import disk_cache

pytest.importorskip("dask.array", reason="the extra dask is not installed")
import dask.array as da

from fastbn.distributed import on_dask


@pytest.mark.parametrize("masked", [False, True])
def test_bits_do_not_depend_on_how_a_block_came(rng, masked):
    """A block that was sent to a process lies together; here it may be a view."""
    a = rng.normal(2, 3, (4000, 12)).astype(np.float32)
    x = np.ma.array(a, mask=a > 8) if masked else a
    blocks = da.from_array(x, chunks=(500, 5), asarray=False)
    sent = blocks.map_blocks(lambda block: pickle.loads(pickle.dumps(block)), meta=blocks._meta)
    here, there = (on_dask.channel_stats(each) for each in (blocks, sent))
    for name in ("count", "mean", "m2", "mean_low", "m2_low"):
        np.testing.assert_array_equal(getattr(here, name), getattr(there, name))


def test_a_residual_in_other_blocks_of_unknown_size_is_refused():
    x = da.ones((6, 2), chunks=(2, 2), dtype="f4")
    x = x[da.ones(6, chunks=2) > 0]  # Dask has not counted them
    residual = da.from_array(np.array([[10, 10], [20, 20]], "f4"), chunks=2)
    with pytest.raises(ValueError, match="unknown which belong together"):
        on_dask.batch_norm(x, np.zeros(2, "f4"), np.ones(2, "f4"), residual=residual)


def test_numbers_that_are_not_computed_yet(rng):
    a = rng.normal(3, 2, (20, 4)).astype(np.float32)
    x = da.from_array(a, chunks=(7, 3))
    y = on_dask.standardize(x, x.mean(), x.std()).compute()
    np.testing.assert_allclose(y, (a - a.mean()) / a.std(), rtol=1e-4, atol=1e-5)


def test_numbers_are_copied(rng):
    x, mean = da.from_array(rng.normal(size=(8, 2)).astype("f4"), chunks=4), np.array(1.0)
    y = on_dask.standardize(x, mean, 2.0)
    before = y.compute()
    mean[...] = 100
    np.testing.assert_array_equal(y.compute(), before)


def test_another_byte_order_becomes_that_of_the_machine(rng):
    a = rng.normal(size=(6, 3)).astype(">f4")
    y = on_dask.batch_norm(da.from_array(a, chunks=2), np.zeros(3), np.ones(3))
    assert y.dtype.isnative
    assert y.dtype == y.compute().dtype


def test_masked_arrays_are_refused_before_anything_is_computed():
    x = da.from_array(np.ma.array(np.ones((4, 2), "f4"), mask=False), chunks=2, asarray=False)
    with pytest.raises(TypeError, match="masked"):
        on_dask.standardize(x, 0.0, 1.0)


@pytest.mark.compiled
def test_a_compilation_that_fails_holds_up_nobody(tmp_path, monkeypatch):
    from fastbn.kernels import compile as compiling

    monkeypatch.setattr(disk_cache, "_folders", lambda: [tmp_path])
    cache = compiling._Cache("failing")

    def fail():
        cache._lock.enter_context(disk_cache.compiling("failing", "digest"))
        raise MemoryError

    with pytest.raises(MemoryError):
        cache.around(fail)
    handle, _ = disk_cache._lock_file(".failing.digest.lock")
    assert disk_cache._locked(handle)


def test_who_gives_up_waiting_leaves_the_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(disk_cache, "_folders", lambda: [tmp_path])
    monkeypatch.setattr(disk_cache, "_PATIENCE", 0.01)
    with disk_cache.compiling("name", "digest"):
        (lock,) = tmp_path.iterdir()
        with disk_cache.compiling("name", "digest"):
            pass
        assert lock.exists()


def test_statistics_of_a_view_are_those_of_its_values(rng):
    a = rng.integers(0, 256, (40, 6), np.uint8)
    found = on_dask.channel_stats(da.from_array(a, chunks=(10, 4))[:, ::2])
    np.testing.assert_allclose(found.mean, a[:, ::2].mean(0), rtol=1e-15)
