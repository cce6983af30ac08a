"""The commands ``fastbn stats`` and ``fastbn normalize``."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import fastbn
from fastbn.cli import main


@pytest.fixture
def bytes_file(tmp_path):
    x = np.zeros((2, 3, 2), np.uint8)
    x[1, 0], x[0, 1], x[:, 2] = 255, 51, 102
    np.save(tmp_path / "x.npy", x)
    return tmp_path / "x.npy"


def run(capsys, *arguments, code=0):
    assert main([str(argument) for argument in arguments]) == code
    return capsys.readouterr()


def test_table(bytes_file, capsys):
    out, err = run(capsys, "stats", bytes_file)
    assert out.splitlines() == [
        "channel    count   mean    std  mean / 255  std / 255",
        "0 (red)        4  127.5  127.5    0.500000   0.500000",
        "1 (green)      4   25.5   25.5    0.100000   0.100000",
        "2 (blue)       4    102      0    0.400000   0.000000",
        "",
        "1 file, uint8.",
        "For values scaled to 0..1: mean=[0.500000, 0.100000, 0.400000], "
        "std=[0.500000, 0.100000, 0.000000]",
    ]
    assert err == ""


def test_table_of_floating_point_numbers(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.array([[1.0, np.nan], [3.0, 5.0]]))
    out, _ = run(capsys, "stats", tmp_path / "x.npy")
    assert out.splitlines() == [
        "channel  count  mean  std  NaN",
        "0            2     2    1    0",
        "1            2   nan  nan    1",
        "",
        "1 file, floating point.",
        "There is NaN, which makes NaN of its channel's statistics; --skipna leaves it out.",
    ]
    out, _ = run(capsys, "stats", tmp_path / "x.npy", "--skipna")
    assert "1            1     5    0    1" in out


def test_json_and_files(bytes_file, tmp_path, capsys):
    for name in ("s.npz", "s.json"):
        out, _ = run(capsys, "stats", bytes_file, "--json", "-o", tmp_path / name, "--workers", 1)
        found = json.loads(out)
        assert found["mean"] == [127.5, 25.5, 102.0]
        assert found["scaled_to_1"]["std"] == [0.5, 0.1, 0.0]
        assert (found["files"], found["dtype"], found["nan"]) == (1, "uint8", [0, 0, 0])
    assert {f.name for f in tmp_path.iterdir()} == {"x.npy", "s.npz", "s.json"}
    with np.load(tmp_path / "s.npz") as file:
        assert file["m2"].tolist() == [4 * 127.5**2, 4 * 25.5**2, 0]


def test_json_has_no_nan(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.full((2, 2), np.nan))
    out, _ = run(capsys, "stats", tmp_path, "--json")
    assert json.loads(out)["mean"] == [None, None]


def test_unreadable_files(bytes_file, tmp_path, capsys):
    (tmp_path / "y.npy").write_bytes(b"nothing")
    _, err = run(capsys, "stats", tmp_path, code=2)
    assert err.startswith("fastbn: error: 1 file cannot be read:")
    assert "--skip-unreadable" in err
    out, err = run(capsys, "stats", tmp_path, "--json", "--skip-unreadable")
    assert "left out, because unreadable: 1" in err
    assert list(json.loads(out)["unreadable"]) == [str(tmp_path / "y.npy")]


@pytest.mark.parametrize("suffix", [".png", ".svg"])
@pytest.mark.parametrize("channels", [1, 3, 7, 20])
def test_plot(rng, tmp_path, suffix, channels, capsys):
    pytest.importorskip("matplotlib")
    x = rng.normal(100, 30, (50, channels, 40)).clip(0, 255)
    x[0, 0, 0] = 0
    for dtype in ("u1", "f4"):
        np.save(tmp_path / "x.npy", x.astype(dtype))
        picture = tmp_path / f"{dtype}{suffix}"
        run(capsys, "stats", tmp_path / "x.npy", "--json", "--plot", picture)
        assert picture.stat().st_size > 5000


def test_plot_of_what_has_no_range(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    np.save(tmp_path / "x.npy", np.array([[np.nan, 7.0, np.inf], [np.nan, 7.0, 1.0]]))
    run(capsys, "stats", tmp_path / "x.npy", "--plot", tmp_path / "h.png")
    assert (tmp_path / "h.png").stat().st_size > 5000


@pytest.mark.parametrize("most", [1.7e308, 1e-310])
def test_plot_of_ends_of_the_range(tmp_path, capsys, most):
    pytest.importorskip("matplotlib")
    np.save(tmp_path / "x.npy", np.array([[most, 1.0], [-most, 2.0], [0.0, 3.0]]))
    run(capsys, "stats", tmp_path / "x.npy", "--plot", tmp_path / "h.png")
    assert (tmp_path / "h.png").stat().st_size > 5000


def test_images(rng, tmp_path, capsys):
    image = pytest.importorskip("PIL.Image")
    for k in range(3):
        pixels = rng.integers(0, 256, (20, 30, 3 + k % 2), np.uint8)
        image.fromarray(pixels).save(tmp_path / f"{k}.png")
    _, err = run(capsys, "stats", tmp_path, code=2)
    assert "3 channels of uint8: 2 files" in err
    out, _ = run(capsys, "stats", tmp_path, "--mode", "L")
    assert out.splitlines()[1].startswith("0         1800")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["stats"], "PATH"),
        (["stats", "x.npy", "--workers", "0"], "expected a whole number from 1 on, got '0'"),
        (["stats", "x.npy", "--mode", "CMYK"], "invalid choice"),
        (["normalize", "x.npy", "y.npy"], "give one of --stats"),
        (["normalize", "x.npy", "y.npy", "--mean", "0"], "--mean and --std belong together"),
        (["normalize", "x.npy", "y.npy", "--layer", "bn"], "--checkpoint and --layer belong"),
        (["normalize", "x.npy", "y.npy", "--mean", "a", "--std", "1"], "such as 0.5 or 1/255"),
        (["normalize", "x.npy", "y.npy", "--stats", "s", "--mean", "1"], "give one of"),
        (["normalize", "x.npy", "y.npy", "--mean", "0", "--std", "1/0"], "got '1/0'"),
    ],
)
def test_usage(arguments, words, capsys):
    assert words in run(capsys, *arguments, code=2).err


@pytest.mark.parametrize("command", ["stats", "normalize"])
def test_help_has_an_example(command, capsys):
    assert f"example: fastbn {command} " in run(capsys, command, "--help").out


class TestNormalize:
    def normalized(self, capsys, source, *options):
        out = source.parent / "y.npy"
        said, err = run(capsys, "normalize", source, out, *options)
        assert err == ""
        assert str(out) in said
        return np.load(out)

    def test_stats(self, rng, tmp_path, capsys):
        x = rng.integers(0, 256, (9, 3, 8), np.uint8)
        np.save(tmp_path / "x.npy", x)
        for name in ("s.npz", "s.json"):
            run(capsys, "stats", tmp_path / "x.npy", "-o", tmp_path / name)
            y = self.normalized(capsys, tmp_path / "x.npy", "--stats", tmp_path / name)
            np.testing.assert_allclose(y.mean((0, 2)), 0, atol=1e-6)

    def test_numbers(self, rng, tmp_path, capsys):
        x = rng.integers(0, 256, (5, 6, 7, 3), np.uint8)
        np.save(tmp_path / "x.npy", x)
        y = self.normalized(
            capsys, tmp_path / "x.npy", "--mean", "-0.485,0.456,0.406",
            "--std", "[0.229, 0.224, 0.225]", "--scale", "1/255", "--axis", "-1",
            "--channels-first", "--dtype", "float64",
        )  # fmt: skip
        right = (x / 255 - [-0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        assert y.shape == (5, 3, 6, 7)
        np.testing.assert_allclose(y, right.transpose(0, 3, 1, 2), rtol=1e-12)

    @pytest.mark.parametrize("affine", [True, False])
    def test_a_layer_of_a_checkpoint(self, rng, tmp_path, capsys, affine):
        bn = fastbn.BatchNorm2d(4, eps=1e-3, affine=affine)
        if affine:
            bn.weight[:] = [1, -2, 0.5, 3]
            bn.bias[:] = rng.normal(size=4)
        bn.running_mean[:], bn.running_var[:] = rng.normal(size=4), rng.uniform(0.5, 2, 4)
        fastbn.save({"bn": bn}, tmp_path / "net.npz")
        x = rng.normal(size=(5, 4, 6, 6)).astype(np.float32)
        np.save(tmp_path / "x.npy", x)
        options = "--checkpoint", tmp_path / "net.npz", "--layer"
        y = self.normalized(capsys, tmp_path / "x.npy", *options, "bn")
        np.testing.assert_allclose(y, bn.eval()(x), rtol=2e-5, atol=2e-5)
        arguments = "normalize", tmp_path / "x.npy", tmp_path / "z.npy"
        assert "no batch norm 'b': bn" in run(capsys, *arguments, *options, "b", code=2).err
        if affine:
            bn.weight[2] = 0
            fastbn.save({"bn": bn}, tmp_path / "net.npz")
            err = run(capsys, *arguments, *options, "bn", code=2).err
            assert "the weight of the layer 'bn' is 0 in channel 2" in err
        assert not (tmp_path / "z.npy").exists()

    @pytest.mark.parametrize(("channels", "dtype"), [(4, "float32"), (8, "float64")])
    def test_a_layer_with_negative_weights_channels_last(
        self, rng, tmp_path, capsys, channels, dtype
    ):
        bn = fastbn.BatchNorm1d(channels, dtype=dtype)
        bn.weight[:] = -np.arange(1.0, channels + 1)
        bn.running_mean[:] = rng.normal(size=channels)
        fastbn.save({"bn": bn}, tmp_path / "net.npz")
        x = rng.normal(size=(300, channels)).astype(dtype)
        np.save(tmp_path / "x.npy", x)
        options = "--checkpoint", tmp_path / "net.npz", "--layer", "bn", "--dtype", dtype
        y = self.normalized(capsys, tmp_path / "x.npy", *options)
        np.testing.assert_allclose(y, bn.eval()(x), rtol=2e-5, atol=2e-5)

    def test_a_layer_with_an_activation(self, tmp_path, capsys):
        fastbn.save({"bn": fastbn.BatchNorm2d(4, activation="relu")}, tmp_path / "net.npz")
        np.save(tmp_path / "x.npy", np.ones((2, 4), np.float32))
        err = run(
            capsys, "normalize", tmp_path / "x.npy", tmp_path / "y.npy", "--layer", "bn",
            "--checkpoint", tmp_path / "net.npz", code=2,
        ).err  # fmt: skip
        assert "has the activation relu" in err

    def test_files_that_hold_no_statistics(self, tmp_path, capsys):
        np.save(tmp_path / "x.npy", np.ones((2, 3)))
        (tmp_path / "s.npz").write_text("nothing")
        (tmp_path / "s.json").write_text('{"mean": [1]}')
        for name in ("s.npz", "s.json", "x.npy", "no.npz"):
            arguments = "normalize", tmp_path / "x.npy", tmp_path / "y.npy", "--stats"
            err = run(capsys, *arguments, tmp_path / name, code=2).err
            assert name in err
            assert not (tmp_path / "y.npy").exists()

    @pytest.mark.filterwarnings("default")
    def test_units_that_do_not_fit(self, rng, bytes_file, tmp_path, capsys):
        run(capsys, "stats", bytes_file, "-o", tmp_path / "s.npz")
        arguments = "normalize", bytes_file, tmp_path / "y.npy"
        err = run(capsys, *arguments, "--stats", tmp_path / "s.npz", "--scale", "1/255", code=2).err
        assert "statistics are of the values as they are in the files" in err
        assert not (tmp_path / "y.npy").exists()
        err = run(capsys, *arguments, "--mean", "0.4", "--std", "0.2").err
        assert "warning: the values are uint8, and mean and std are at most 1: scale=1/255" in err
        scaled = "--scale", "1/255"
        assert run(capsys, *arguments, "--mean", "0.4", "--std", "0.2", *scaled).err == ""
        assert run(capsys, *arguments, "--mean", "0", "--std", "1").err == ""

    @pytest.mark.parametrize("mean", ["[0.5, 1/4, -1e-3]", " 0.5,0.25, -0.001", "[0.5,.25,-.001]"])
    def test_numbers_as_they_are_printed(self, bytes_file, capsys, mean):
        y = self.normalized(capsys, bytes_file, "--mean", mean, "--std", "2")
        np.testing.assert_allclose(y[0, :, 0], [-0.25, (0 - 0.25) / 2 + 25.5, 51.0005], rtol=1e-6)

    @pytest.mark.parametrize("mean", ["-0.5,-1/4,-1e-3", "-.5,-0.25,-0.001", "-0.5, -0.25, -0.001"])
    def test_numbers_that_begin_with_a_minus(self, bytes_file, capsys, mean):
        y = self.normalized(capsys, bytes_file, "--mean", mean, "--std", "2")
        np.testing.assert_allclose(y[0, :, 0], [0.25, 25.625, 51.0005], rtol=1e-6)

    def test_json(self, bytes_file, tmp_path, capsys):
        out, _ = run(
            capsys, "normalize", bytes_file, tmp_path / "y.npy", "--mean", 1, "--std", 2, "--json"
        )
        found = json.loads(out)
        assert (found["shape"], found["dtype"]) == ([2, 3, 2], "float32")


def test_as_a_program_with_workers(rng, tmp_path):
    """`python -m fastbn` is what workers are started from, and do not run again."""
    np.save(tmp_path / "x.npy", rng.normal(size=(1000, 3)))
    done = subprocess.run(
        [sys.executable, "-m", "fastbn", "stats", "x.npy", "--workers", "2", "--json"],
        capture_output=True, text=True, check=True, cwd=tmp_path, timeout=300,
        env={**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(fastbn.__file__))},
    )  # fmt: skip
    stats = fastbn.dataset_stats(tmp_path).stats
    assert json.loads(done.stdout)["std"] == stats.std().tolist()
    assert done.stderr == ""
