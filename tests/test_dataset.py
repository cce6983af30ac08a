"""Statistics of arrays in files: every layout, dtype and way of keeping them."""

import concurrent.futures
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest

import fastbn
from fastbn.dataset import sources

DTYPES = ["u1", "i1", "u2", "i2", "f2", "f4", "f8", ">u2", ">f4"]


def reference(x, axis=1):
    """Mean and variance in the widest floating-point numbers there are."""
    x = np.moveaxis(np.asarray(x), axis, -1)
    x = x.reshape(-1, x.shape[-1]).astype(np.longdouble)
    return x.mean(0), ((x - x.mean(0)) ** 2).mean(0)


def check(stats, x, axis=1, rtol=1e-12):
    mean, var = reference(x, axis)
    assert stats.mean.shape == mean.shape
    assert (stats.count == np.asarray(x).size / mean.size).all()
    spread = np.sqrt(var.max()) + abs(mean).max()
    np.testing.assert_allclose(stats.mean, mean.astype(float), rtol=rtol, atol=rtol * spread)
    np.testing.assert_allclose(stats.var(), var.astype(float), rtol=max(rtol, 1e-12))


def same(a, b):
    return all(
        np.array_equal(getattr(a, name), getattr(b, name), equal_nan=True)
        for name in ("count", "mean", "m2")
    )


def numbers(rng, shape, dtype):
    kind = np.dtype(dtype)
    if kind.kind in "ui":
        ends = np.iinfo(kind)
        return rng.integers(ends.min, ends.max, shape, endpoint=True).astype(kind)
    return rng.normal(3, 2, shape).astype(kind)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(sources, "BLOCK_VALUES", 1000)
    monkeypatch.setattr("fastbn.dataset.measure.PIECE", 300)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fortran", [False, True])
def test_dtypes(rng, tmp_path, dtype, fortran, small_blocks):
    x = numbers(rng, (9, 3, 8, 17), dtype)
    np.save(tmp_path / "x.npy", np.asfortranarray(x) if fortran else x)
    found = fastbn.dataset_stats(tmp_path / "x.npy")
    check(found.stats, x, rtol=1e-6 if np.dtype(dtype).itemsize < 8 else 1e-12)
    if np.dtype(dtype).kind in "ui":
        check(found.stats, x)
    assert found.files == 1
    assert not found.nan_count.any()


@pytest.mark.parametrize("fortran", [False, True])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((700, 5), 1), ((700, 5), 0), ((3, 5000), 0), ((2, 3, 4000), 1), ((2, 4000, 3), 2),
        ((2, 4000, 3), -1), ((1, 1), 1), ((4, 3, 20, 9, 2), 1), ((7, 900, 2), 1), ((3, 2500), 1),
        ((2, 3, 333), 0), ((1000, 1), 1),
    ],
)  # fmt: skip
def test_layouts(rng, tmp_path, shape, axis, fortran, small_blocks):
    x = rng.normal(3, 2, shape)
    np.save(tmp_path / "x.npy", np.asfortranarray(x) if fortran else x)
    check(fastbn.dataset_stats(tmp_path / "x.npy", axis=axis).stats, x, axis)


def test_bits_do_not_depend_on_workers(rng, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BLOCK_VALUES", 5000)
    for name in "abc":
        np.save(tmp_path / f"{name}.npy", rng.normal(1e3, 1, (50, 3, 20, 20)).astype(np.float32))
    found = [fastbn.dataset_stats(tmp_path, workers=n, histogram=True) for n in (1, 2, 3)]
    assert same(found[0].stats, found[1].stats)
    assert same(found[0].stats, found[2].stats)
    assert np.array_equal(found[0].histograms.counts, found[2].histograms.counts)


def test_an_executor_of_the_callers(rng, tmp_path, small_blocks):
    np.save(tmp_path / "x.npy", rng.normal(size=(500, 7)))
    alone = fastbn.dataset_stats(tmp_path / "x.npy")
    with concurrent.futures.ThreadPoolExecutor(3) as executor:
        assert same(alone.stats, fastbn.dataset_stats(tmp_path, executor=executor).stats)
        executor.submit(int).result()  # it is still the caller's


def test_jobs_under_way_are_bounded(rng, tmp_path, small_blocks):
    np.save(tmp_path / "x.npy", rng.normal(size=(20000, 7)))
    most = 0

    class Counting(concurrent.futures.ThreadPoolExecutor):
        def submit(self, *args):
            nonlocal most
            most = max(most, self._work_queue.qsize())
            return super().submit(*args)

    with Counting(2) as executor:
        fastbn.dataset_stats(tmp_path, executor=executor)
    assert most <= 8


@pytest.mark.parametrize("compressed", [False, True])
def test_npz(rng, tmp_path, compressed, small_blocks):
    a, b = rng.normal(size=(2, 40, 3, 50))
    save = np.savez_compressed if compressed else np.savez
    save(tmp_path / "x.npz", a=a, b=np.asfortranarray(b))
    found = fastbn.dataset_stats(tmp_path / "x.npz")
    check(found.stats, np.concatenate([a, b]))
    assert found.files == 2
    check(fastbn.dataset_stats(f"{tmp_path}/x.npz:b").stats, b)
    with pytest.raises(ValueError, match=r"has no array 'c'; it has a, b"):
        fastbn.dataset_stats(f"{tmp_path}/x.npz:c")


@pytest.mark.compiled
def test_a_large_compressed_member_takes_little_memory(tmp_path):
    with (
        zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("x.npy", "w", force_zip64=True) as file,
    ):
        header = {"descr": "|u1", "fortran_order": False, "shape": (3 << 20, 100)}
        np.lib.format.write_array_header_1_0(file, header)
        for _ in range(300):
            file.write(bytes(1 << 20))
    code = f"""
import resource, fastbn
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = fastbn.dataset_stats({str(tmp_path / "x.npz")!r}, workers=1)
assert found.stats.count[0] == 3 << 20 and not found.stats.mean.any()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600
    )
    assert int(done.stdout) < 150_000  # KB, of 300 MB


def test_several_paths_are_one_dataset(rng, tmp_path):
    x = rng.normal(size=(90, 4))
    (tmp_path / "sub").mkdir()
    np.save(tmp_path / "a.npy", x[:10])
    np.save(tmp_path / "sub" / "B.NPY".lower(), x[10:60])
    np.savez(tmp_path / "sub" / "c.npz", x[60:])
    (tmp_path / "notes.txt").write_text("not of the data")
    np.save(tmp_path / ".hidden.npy", np.ones((3, 9)))
    found = fastbn.dataset_stats(tmp_path)
    check(found.stats, x)
    assert found.files == 3
    check(fastbn.dataset_stats([tmp_path / "a.npy", str(tmp_path / "sub")]).stats, x)


def test_links_that_lead_back_are_not_followed(rng, tmp_path):
    np.save(tmp_path / "a.npy", rng.normal(size=(9, 2)))
    os.symlink(tmp_path, tmp_path / "round")
    assert fastbn.dataset_stats(tmp_path).files == 1


def test_what_a_run_writes_is_not_of_the_data(rng, tmp_path):
    x = rng.normal(size=(9, 2))
    np.save(tmp_path / "x.npy", x)
    for _ in range(2):
        found = fastbn.dataset_stats(tmp_path, save=tmp_path / "s.npz", resume=tmp_path / "j.npz")
        check(found.stats, x)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.npy")
    with pytest.raises(ValueError, match="is no regular file"):
        fastbn.dataset_stats(tmp_path)


def test_nan(rng, tmp_path, small_blocks):
    x = rng.normal(size=(400, 3))
    x[5, 0] = x[399, 0] = x[7, 2] = np.nan
    np.save(tmp_path / "x.npy", x)
    found = fastbn.dataset_stats(tmp_path)
    assert found.nan_count.tolist() == [2, 0, 1]
    assert np.isnan(found.stats.mean).tolist() == [True, False, True]
    without = fastbn.dataset_stats(tmp_path, skipna=True)
    assert without.nan_count.tolist() == [2, 0, 1]
    assert without.stats.count.tolist() == [398, 400, 399]
    np.testing.assert_allclose(without.stats.mean, np.nanmean(x, 0), rtol=1e-12)


def test_infinity_is_no_nan(tmp_path):
    np.save(tmp_path / "x.npy", np.array([[np.inf, np.inf], [-np.inf, 1]]))
    found = fastbn.dataset_stats(tmp_path)
    assert not found.nan_count.any()
    assert not np.isfinite(found.stats.mean).any()


def test_histogram_of_bytes_is_exact(rng, tmp_path, small_blocks):
    for dtype in ("u1", "i1"):
        x = numbers(rng, (50, 3, 40), dtype)
        np.save(tmp_path / "x.npy", x)
        found = fastbn.dataset_stats(tmp_path, histogram=True).histograms
        for c in range(3):
            values, counts = np.unique(x[:, c], return_counts=True)
            expected = np.zeros(256, int)
            expected[values.astype(int) - int(found.edges[c, 0])] = counts
            assert found.counts[c].tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", ["u2", "i2", "f4", "f8"])
def test_histogram_of_others(rng, tmp_path, dtype):
    x = (1000 * rng.normal(size=(5000, 3))).clip(-30000, 30000)
    x = abs(x).astype(dtype) if dtype == "u2" else x.astype(dtype)
    np.save(tmp_path / "x.npy", x)
    found = fastbn.dataset_stats(tmp_path, histogram=True).histograms
    assert found.counts.shape == (3, 256)
    for c in range(3):
        assert found.counts[c].tolist() == np.histogram(x[:, c], found.edges[c])[0].tolist()
        assert found.counts[c].sum() + found.below[c] + found.above[c] == 5000
        assert np.count_nonzero(found.counts[c]) > 50


def test_histogram_of_numbers_that_are_no_range(tmp_path):
    np.save(tmp_path / "x.npy", np.array([[np.nan, 7.0, np.inf], [np.nan, 7.0, 1.0]]))
    found = fastbn.dataset_stats(tmp_path, histogram=True).histograms
    assert found.counts.sum(1).tolist() == [0, 2, 1]
    assert found.above.tolist() == [0, 0, 1]


@pytest.mark.parametrize("suffix", [".npz", ".json"])
def test_saving(rng, tmp_path, suffix):
    np.save(tmp_path / "x.npy", rng.normal(size=(40, 3)))
    file = tmp_path / f"stats{suffix}"
    found = fastbn.dataset_stats(tmp_path / "x.npy", save=file)

    assert same(fastbn.ChannelStats.load(file), found.stats)
    assert {path.name for path in tmp_path.iterdir()} == {"x.npy", file.name}


class TestErrors:
    @pytest.fixture
    def folder(self, tmp_path):
        np.save(tmp_path / "x.npy", np.ones((4, 3)))
        return tmp_path

    def test_nothing_there(self, folder):
        with pytest.raises(FileNotFoundError, match=r"no file or folder .*nowhere"):
            fastbn.dataset_stats(folder / "nowhere")
        (folder / "empty").mkdir()
        with pytest.raises(ValueError, match="no files to read: expected"):
            fastbn.dataset_stats(folder / "empty")
        (folder / "a.txt").write_text("text")
        with pytest.raises(ValueError, match="of no known kind"):
            fastbn.dataset_stats(folder / "a.txt")
        np.save(folder / "empty" / "e.npy", np.ones((0, 3)))
        with pytest.raises(ValueError, match="every array is empty"):
            fastbn.dataset_stats(folder / "empty")

    def test_twice(self, folder):
        with pytest.raises(ValueError, match="named twice"):
            fastbn.dataset_stats([folder, folder / "x.npy"])

    def test_axes_and_dtypes(self, folder):
        with pytest.raises(ValueError, match=r"no channel axis 2 .* shape \(4, 3\)"):
            fastbn.dataset_stats(folder, axis=2)
        np.save(folder / "y.npy", np.ones(4))
        with pytest.raises(ValueError, match=r"no channel axis 1 .* shape \(4,\)"):
            fastbn.dataset_stats(folder)
        np.save(folder / "y.npy", np.ones((4, 3), np.int64))
        with pytest.raises(TypeError, match="dtype int64, expected one of uint8"):
            fastbn.dataset_stats(folder)

    def test_kinds(self, folder):
        np.save(folder / "y.npy", np.ones((4, 2)))
        np.save(folder / "z.npy", np.ones((4, 3), np.uint8))
        with pytest.raises(ValueError, match="several kinds") as caught:
            fastbn.dataset_stats(folder)
        for words in ("3 channels of floating point: 1 file", "2 channels of", "of uint8"):
            assert words in str(caught.value)

    def test_precisions_are_one_kind(self, folder):
        np.save(folder / "y.npy", np.ones((4, 3), np.float32))
        assert fastbn.dataset_stats(folder).files == 2

    def test_truncated_files(self, folder):
        (folder / "y.npy").write_bytes((folder / "x.npy").read_bytes()[:-1])
        (folder / "z.npz").write_bytes(b"PK nothing")
        with pytest.raises(ValueError, match="2 files cannot be read") as caught:
            fastbn.dataset_stats(folder)
        assert "y.npy: its header says 96 bytes of values, and there are 95" in str(caught.value)
        assert "z.npz" in str(caught.value)
        found = fastbn.dataset_stats(folder, on_unreadable="skip")
        assert found.files == 1
        assert [path.rpartition("/")[2] for path in found.unreadable] == ["y.npy", "z.npz"]
        (folder / "x.npy").unlink()
        with pytest.raises(ValueError, match="and there is no other"):
            fastbn.dataset_stats(folder, on_unreadable="skip")

    def test_a_damaged_member_is_left_out_from_its_first_value_on(self, rng, folder, small_blocks):
        np.savez_compressed(folder / "y.npz", rng.normal(size=(4000, 3)))
        data = bytearray((folder / "y.npz").read_bytes())
        data[len(data) // 2] ^= 255
        (folder / "y.npz").write_bytes(data)
        found = fastbn.dataset_stats(folder, on_unreadable="skip")
        assert found.stats.count.tolist() == [4, 4, 4]
        assert "y.npz" in next(iter(found.unreadable))

    @pytest.mark.parametrize(
        ("arguments", "error", "words"),
        [
            ({"workers": 0}, ValueError, "workers must be 1 or more, got 0"),
            ({"workers": "two"}, TypeError, "workers must be an integer, got 'two'"),
            ({"on_unreadable": "ignore"}, ValueError, "on_unreadable must be"),
            ({"mode": "CMYK"}, ValueError, "mode must be one of L, RGB, RGBA"),
            ({"skipna": 1}, TypeError, "skipna"),
            ({"save": "stats.txt"}, ValueError, "saved as .npz or .json"),
            ({"save": "no/stats.npz"}, FileNotFoundError, "no folder"),
            ({"resume": "no/journal"}, FileNotFoundError, "no folder"),
        ],
    )
    def test_arguments(self, folder, arguments, error, words):
        with pytest.raises(error, match=words):
            fastbn.dataset_stats(folder, **arguments)

    def test_paths(self):
        with pytest.raises(TypeError, match="paths must be a path or several, got int"):
            fastbn.dataset_stats(3)
        with pytest.raises(TypeError, match="expected a path, got ndarray"):
            fastbn.dataset_stats([np.ones((3, 4))])


def test_a_folder_in_the_place_of_the_result_is_refused_before_the_work(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((3, 2), np.float32))
    (tmp_path / "stats.npz").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        fastbn.dataset_stats(tmp_path / "x.npy", save=tmp_path / "stats.npz", progress=False)
    assert sorted(os.listdir(tmp_path)) == ["stats.npz", "x.npy"]  # and no journal
