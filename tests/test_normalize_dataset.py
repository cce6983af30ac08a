"""Arrays in files, normalized into files."""

import itertools
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import fastbn
from fastbn.dataset import normalize

from .test_dataset import numbers

DTYPES = ["u1", "i1", "u2", "i2", "f2", "f4", "f8", ">f4"]


def expected(x, mean, std, scale=1.0, axis=1, out_axis=None):
    x = np.moveaxis(x, axis, -1).astype(np.float64)
    y = np.moveaxis((x * scale - mean) / std, -1, axis)
    return y if out_axis is None else np.moveaxis(y, axis, out_axis)


def close(y, right, dtype):
    tolerance = 1e-12 if np.dtype(dtype) == np.float64 else 2e-5
    np.testing.assert_allclose(y, right, rtol=tolerance, atol=tolerance * abs(right).max())


@pytest.fixture
def small_windows(monkeypatch):
    monkeypatch.setattr(normalize, "WINDOW", 500)
    monkeypatch.setattr(normalize, "PIECE", 300)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("to", ["float32", "float64"])
def test_dtypes(rng, tmp_path, dtype, to, small_windows):
    x = numbers(rng, (9, 3, 8, 17), dtype)
    np.save(tmp_path / "x.npy", x)
    mean, std = rng.normal(size=3), rng.uniform(0.5, 2, 3) * (1, -1, 1)
    fastbn.normalize_dataset(
        tmp_path / "x.npy", tmp_path / "y.npy", mean, std, scale=0.25, dtype=to
    )
    y = np.load(tmp_path / "y.npy")
    assert y.dtype == to
    close(y, expected(x, mean, std, 0.25), to)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 8, 16])
@pytest.mark.parametrize("to", ["float32", "float64"])
@pytest.mark.parametrize("out_axis", [1, 0])
def test_negative_stds_of_channels_that_are_last(rng, tmp_path, channels, to, out_axis):
    """NumPy negates in place wrongly where values are 16 or 64 bytes apart."""
    x = rng.normal(size=(500, channels))
    np.save(tmp_path / "x.npy", x)
    mean, std = rng.normal(size=channels), rng.uniform(0.5, 2, channels)
    std[::2] *= -1
    fastbn.normalize_dataset(
        tmp_path / "x.npy", tmp_path / "y.npy", mean, std, dtype=to, out_axis=out_axis
    )
    close(np.load(tmp_path / "y.npy"), expected(x, mean, std, out_axis=out_axis), to)


SHAPES = [(700, 5), (4, 3, 6, 7), (3, 40, 40, 3), (2, 3, 900), (2, 30, 2, 3, 40), (1, 600, 1, 2)]


@pytest.mark.parametrize("fortran", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_channel_axis_to_every_other(rng, tmp_path, shape, fortran, small_windows):
    x = rng.normal(size=shape)
    np.save(tmp_path / "x.npy", np.asfortranarray(x) if fortran else x)
    for axis, out_axis in itertools.product(range(len(shape)), repeat=2):
        mean, std = rng.normal(size=shape[axis]), rng.uniform(0.5, 2, shape[axis])
        fastbn.normalize_dataset(
            tmp_path / "x.npy", tmp_path / "y.npy", mean, std, dtype=np.float64,
            axis=axis - len(shape), out_axis=out_axis,
        )  # fmt: skip
        y = np.load(tmp_path / "y.npy")
        right = expected(x, mean, std, axis=axis, out_axis=out_axis)
        assert y.shape == right.shape
        assert y.flags.f_contiguous if fortran else y.flags.c_contiguous
        close(y, right, np.float64)


@pytest.mark.parametrize("compressed", [False, True])
def test_npz(rng, tmp_path, compressed):
    save = np.savez_compressed if compressed else np.savez
    x = rng.normal(size=(40, 3, 50))
    save(tmp_path / "x.npz", x=x, other=x[:1])
    fastbn.normalize_dataset(f"{tmp_path}/x.npz:x", tmp_path / "y.npy", 1.0, 2.0, dtype="float64")
    close(np.load(tmp_path / "y.npy"), (x - 1) / 2, np.float64)
    with pytest.raises(ValueError, match=r"name one of its arrays.*it has x, other"):
        fastbn.normalize_dataset(tmp_path / "x.npz", tmp_path / "z.npy", 0, 1)
    save(tmp_path / "x.npz", x=x)
    fastbn.normalize_dataset(tmp_path / "x.npz", tmp_path / "y.npy", 0, 1, out_axis=2)
    close(np.load(tmp_path / "y.npy"), np.moveaxis(x, 1, 2), np.float32)


def test_a_compressed_array_is_not_read_again_and_again(rng, tmp_path, small_windows):
    np.savez_compressed(tmp_path / "x.npz", rng.normal(size=(2, 3, 400)))
    with pytest.raises(ValueError, match=r"unpack it to \.npy before"):
        fastbn.normalize_dataset(tmp_path / "x.npz", tmp_path / "y.npy", 0, 1, out_axis=2)
    assert not (tmp_path / "y.npy").exists()


@pytest.mark.parametrize("shape", [(0, 3, 5), (4, 0, 5), (4, 3, 0)])
@pytest.mark.parametrize("out_axis", [1, 2])
def test_empty_arrays(tmp_path, shape, out_axis):
    np.save(tmp_path / "x.npy", np.ones(shape, np.float32))
    fastbn.normalize_dataset(tmp_path / "x.npy", tmp_path / "y.npy", 0, 1, out_axis=out_axis)
    assert np.load(tmp_path / "y.npy").shape == np.moveaxis(np.ones(shape), 1, out_axis).shape


def test_what_statistics_are_for(rng, tmp_path):
    x = rng.integers(0, 256, (50, 3, 20, 20), np.uint8)
    np.save(tmp_path / "x.npy", x)
    stats = fastbn.dataset_stats(tmp_path / "x.npy").stats
    fastbn.normalize_dataset(tmp_path / "x.npy", tmp_path / "y.npy", stats.mean, stats.std())
    y = np.load(tmp_path / "y.npy").astype(np.float64)
    np.testing.assert_allclose(y.mean((0, 2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(y.std((0, 2, 3)), 1, rtol=1e-6)


class TestErrors:
    @pytest.fixture
    def folder(self, tmp_path):
        np.save(tmp_path / "x.npy", np.ones((4, 3), np.float32))
        np.save(tmp_path / "y.npy", np.zeros(2))
        return tmp_path

    def refused(self, folder, error, words, source="x.npy", target="y.npy", **options):
        options = {"mean": 0.0, "std": 1.0, **options}
        names = {path.name for path in folder.iterdir()}
        with pytest.raises(error, match=words):
            fastbn.normalize_dataset(folder / source, folder / target, **options)
        assert {path.name for path in folder.iterdir()} == names
        if "y.npy" in names:
            assert np.load(folder / "y.npy").tolist() == [0, 0]

    @pytest.mark.parametrize(
        ("options", "error", "words"),
        [
            ({"mean": [1, 2]}, ValueError, r"mean has shape \(2,\), and the array has 3 channels"),
            ({"std": [1, 0, 1]}, ValueError, "std is 0.0 in channel 1"),
            ({"std": np.nan}, ValueError, "std is nan in channel 0"),
            ({"mean": np.inf}, ValueError, "mean is inf in channel 0"),
            ({"mean": "much"}, TypeError, "mean must be numbers"),
            ({"scale": 0}, ValueError, "scale must be a number other than 0"),
            ({"dtype": "float16"}, ValueError, "dtype must be float32 or float64, got float16"),
            ({"axis": 2}, ValueError, "no channel axis 2"),
            ({"out_axis": -3}, ValueError, "no channel axis -3"),
            ({"source": "no.npy"}, FileNotFoundError, "no file"),
            ({"source": "x.txt"}, FileNotFoundError, "no file"),
            ({"target": "y.npz"}, ValueError, "the target must end in .npy"),
            ({"target": "x.npy"}, ValueError, "source and target are one file"),
            ({"target": "no/y.npy"}, FileNotFoundError, "there is no folder"),
        ],
    )
    def test_arguments(self, folder, options, error, words):
        self.refused(folder, error, words, **options)

    def test_links_to_the_source(self, folder):
        os.symlink(folder / "x.npy", folder / "link.npy")
        os.link(folder / "x.npy", folder / "same.npy")
        for target in ("link.npy", "same.npy"):
            self.refused(folder, ValueError, "are one file", target=target)

    def test_damaged_sources(self, folder):
        data = (folder / "x.npy").read_bytes()
        (folder / "x.npy").write_bytes(data[:-3])
        self.refused(folder, ValueError, "its header says 48 bytes of values, and there are 45")
        np.save(folder / "x.npy", np.ones((3, 3), int))
        self.refused(folder, TypeError, "has dtype int64, expected one of uint8")
        np.savez_compressed(folder / "x.npz", np.arange(30000.0).reshape(-1, 3))
        data = bytearray((folder / "x.npz").read_bytes())
        data[2000] ^= 255
        (folder / "x.npz").write_bytes(data)
        self.refused(folder, ValueError, "x.npz", source="x.npz")

    def test_too_little_room(self, folder, monkeypatch):
        usage = type("usage", (), {"free": 100})
        monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
        self.refused(folder, OSError, r"takes 1.76e-07 GB, and 1e-07 GB are free")

    @pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
    def test_a_disk_that_fills_up(self, folder):
        np.save(folder / "x.npy", np.ones((4000, 30), np.float32))
        import resource

        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
        try:
            self.refused(folder, OSError, r"cannot write .*y\.npy")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    @pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() == 0, reason="root may write")
    def test_a_folder_that_is_read_only(self, folder):
        (folder / "sub").mkdir(mode=0o500)
        self.refused(folder, PermissionError, "sub", target="sub/y.npy")


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(tmp_path, how):
    np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float64, (4000, 3, 32, 32)).flush()
    np.save(tmp_path / "y.npy", np.zeros(2))
    command = [sys.executable, "-m", "fastbn", "normalize", tmp_path / "x.npy", tmp_path / "y.npy",
               "--mean", "0", "--std", "1"]  # fmt: skip
    process = subprocess.Popen(list(map(str, command)), text=True, stderr=subprocess.PIPE)
    while process.poll() is None and not list(tmp_path.glob(".*.part")):
        time.sleep(0.001)
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + how, err
    assert "Traceback" not in err
    assert {path.name for path in tmp_path.iterdir()} == {"x.npy", "y.npy"}
    assert np.load(tmp_path / "y.npy").tolist() == [0, 0]


LIMITED = """
import resource, sys, time
import fastbn
import numpy as np
from fastbn.cli import main

def address_space():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()

fastbn.dataset_stats({small!r}, workers=1)  # what is compiled is there
limit = address_space() + (1 << 30)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    np.memmap({file!r})
    raise AssertionError("the limit is none")
except OSError:
    pass
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
begun = time.perf_counter()
with open({file!r}, "rb", buffering=0) as file:
    window = bytearray(32 << 20)
    while file.readinto(window):
        pass
reading = time.perf_counter() - begun
begun = time.perf_counter()
found = fastbn.dataset_stats({file!r}, workers=1, progress=False)
statistics = time.perf_counter() - begun
begun = time.perf_counter()
mean, std = (",".join(map(repr, v.tolist())) for v in (found.stats.mean, found.stats.std()))
assert main(["normalize", {file!r}, {out!r}, "--mean", mean, "--std", std, "--json"]) == 0
writing = time.perf_counter() - begun
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(*found.stats.mean, *found.stats.std(), reading, statistics, writing, grown)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="limits of Linux")
def test_4_gb_in_1_gb_of_address_space(rng, tmp_path, capsys):
    shape = (6700, 3, 224, 224)
    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, shape)
    block = rng.normal([[[[3]]], [[[4]]], [[[5]]]], 2, (3, 100, 224, 224)).astype(np.float32)
    block = block.transpose(1, 0, 2, 3)
    for k in range(0, shape[0], 100):
        x[k : k + 100] = block
    x.flush()
    del x
    np.save(tmp_path / "small.npy", np.ones((2, 3, 4, 5), np.float32))
    names = {n: str(tmp_path / f"{n}.npy") for n in ("small", "file", "out")}
    names["file"] = str(tmp_path / "x.npy")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED.format(**names)], text=True, capture_output=True,
        timeout=1200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *found, reading, statistics, writing, grown = map(float, done.stdout.splitlines()[-1].split())
    wide = block.astype(np.float64)
    np.testing.assert_allclose(found[:3], wide.mean((0, 2, 3)), rtol=1e-9)
    np.testing.assert_allclose(found[3:], wide.std((0, 2, 3)), rtol=1e-7)
    y = np.load(names["out"], mmap_mode="r")
    assert y.shape == shape
    mean, std = (np.array(v)[:, None, None] for v in (found[:3], found[3:]))
    for k in (0, 3350, 6650):
        np.testing.assert_allclose(y[k : k + 2], (wide[k % 100 :][:2] - mean) / std, atol=1e-5)
    assert grown < 100_000  # KB
    size = 4 * np.prod(shape) / 1e9
    with capsys.disabled():
        print(
            f"\n{size:.2f} GB: reading alone {size / reading:.1f} GB/s, statistics "
            f"{size / statistics:.1f} GB/s, normalizing {size / writing:.1f} GB/s, "
            f"{grown / 1000:.0f} MB more memory"
        )
    assert statistics < 2 * reading + 0.5


@pytest.mark.parametrize(
    "given",
    [
        {"mean": np.ma.array([0.0, 1.0], mask=[True, False])},
        {"mean": ["1", "2"]},
        {"scale": "2"},
        {"axis": True},
        {"axis": 1.5},
    ],
)
def test_arguments_are_those_of_standardize(tmp_path, given):
    np.save(tmp_path / "x.npy", np.zeros((3, 2), np.float32))
    arguments = {"mean": [0.0, 0.0], "std": [1.0, 1.0], **given}
    with pytest.raises(TypeError, match=next(iter(given))):
        fastbn.normalize_dataset(tmp_path / "x.npy", tmp_path / "y.npy", **arguments)
    assert os.listdir(tmp_path) == ["x.npy"]
