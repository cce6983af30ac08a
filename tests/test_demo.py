import os
import re
import subprocess
import sys
import zlib

import numpy as np
import pytest

import fastbn
from fastbn import cli, demo
from fastbn.demo import network, small_batches, timing, training

SMALL_ACTIVATION = (2, 3, 8, 8)
#: stderr where it is no terminal: nothing, or progress in full lines while kernels compile
PLAIN_PROGRESS = r"(?:[a-z, ]+: \d+%\n)*"


def small_network(batch_norm):
    return network.convolutional_network(
        3, batch_norm, size=8, stages=((2, 3), (4,)), hidden=5, classes=3, dtype=np.float64
    )


def finite_differences(loss, array, step=1e-6):
    """Central differences of ``loss()`` in every element of ``array``, changed in place."""
    result = np.empty_like(array)
    for index in np.ndindex(array.shape):
        value = array[index]
        array[index] = value + step
        above = loss()
        array[index] = value - step
        result[index] = (above - loss()) / (2 * step)
        array[index] = value
    return result


@pytest.mark.compiled
class TestNetwork:
    @pytest.mark.parametrize("batch_norm", [False, True])
    def test_gradients_are_those_of_finite_differences(self, batch_norm, rng):
        net = small_network(batch_norm)
        for parameter in net.parameters:  # off the zeros and ones that they start from
            parameter += rng.normal(0, 0.1, parameter.shape)
        x, labels = rng.normal(size=(5, 8, 8, 1)), np.array([0, 2, 1, 1, 0])

        def loss():
            return network.cross_entropy(net.forward(x), labels)[0]

        dx = net.backward(network.cross_entropy(net.forward(x), labels)[1])
        gradients = list(net.gradients)
        assert len(gradients) == len(net.parameters) == (14 if batch_norm else 10)
        for array, gradient in zip([x, *net.parameters], [dx, *gradients], strict=True):
            expected = finite_differences(loss, array)
            assert np.abs(expected).max() > 1e-4
            np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-8)

    def test_convolution_is_the_sum_over_the_patch(self, rng):
        x, weight = rng.normal(size=(2, 4, 5, 3)), rng.normal(size=(3, 3, 3, 2))
        bias = rng.normal(size=2)
        y = network.Conv2d(weight, bias).forward(x)
        expected = np.zeros((2, 4, 5, 2)) + bias
        for n, i, j, di, dj in np.ndindex(2, 4, 5, 3, 3):
            row, column = i + di - 1, j + dj - 1
            if 0 <= row < 4 and 0 <= column < 5:
                expected[n, i, j] += x[n, row, column] @ weight[di, dj]
        np.testing.assert_allclose(y, expected, rtol=1e-12)

    def test_both_networks_start_from_the_same_weights(self):
        plain, normalized = (network.convolutional_network(4, bn) for bn in (False, True))
        weights = [
            [layer.weight for layer in net.layers if hasattr(layer, "weight")]
            for net in (plain, normalized)
        ]
        assert len(weights[0]) == 8
        for a, b in zip(*weights, strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == np.float32
        assert all(layer.bias is None for layer in normalized.layers[:-1] if hasattr(layer, "bias"))

    def test_cross_entropy(self):
        loss, gradient = network.cross_entropy(np.full((2, 4), 1e4), np.array([1, 3]))
        assert loss == pytest.approx(np.log(4))
        np.testing.assert_allclose(gradient[0], [0.125, -0.375, 0.125, 0.125])

    def test_sgd_gathers_momentum(self):
        net = network.Network([network.Linear(np.zeros((1, 1)), None)])
        net.layers[0].gradients = [np.array([[2.0]])]
        optimizer = network.SGD(net, learning_rate=0.1, momentum=0.5)
        optimizer.step()
        assert net.parameters[0].item() == pytest.approx(-0.2)
        optimizer.step()
        assert net.parameters[0].item() == pytest.approx(-0.2 - 0.3)


class TestDigits:
    def test_file(self):
        with np.load(os.path.join(os.path.dirname(demo.__file__), "digits.npz")) as arrays:
            images, labels = arrays["images"], arrays["labels"]
        assert images.shape == (1797, 8, 8)
        assert images.dtype == labels.dtype == np.uint8
        assert (images.min(), images.max()) == (0, 16)
        assert zlib.crc32(images.tobytes()) == 4087501628  # scikit-learn's, as uint8
        counts = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
        np.testing.assert_array_equal(np.bincount(labels), counts)

    def test_split(self):
        digits = training.Digits.load(1)
        assert digits.train_images.shape == (1347, 8, 8, 1)
        assert digits.held_out_images.shape == (450, 8, 8, 1)
        assert digits.train_images.dtype == np.float32
        assert digits.train_images.max() == 1
        together = np.concatenate([digits.train_images, digits.held_out_images])
        assert together.sum() * 16 == 561718  # every image once
        again, other = training.Digits.load(1), training.Digits.load(2)
        np.testing.assert_array_equal(digits.held_out_labels, again.held_out_labels)
        assert not np.array_equal(digits.held_out_labels, other.held_out_labels)

    def test_training_takes_full_batches_and_evaluation_all(self):
        parts = training.training_batches(np.arange(100))
        assert [len(part) for part in parts] == [32, 32, 32]
        parts = training.batches(np.arange(100), 32)
        np.testing.assert_array_equal(np.concatenate(parts), np.arange(100))

    def test_training_mode_statistics_leave_the_network_alone(self):
        digits = training.Digits.load(0)
        trial = training.Trial(network.convolutional_network(0, True), 0.02)
        trial.run_epoch(digits, np.arange(64))
        norms = [x.layer for x in trial.network.layers if isinstance(x, network.BatchNorm)]
        before = [norm.state_dict() for norm in norms]
        images, labels = digits.held_out_images, digits.held_out_labels
        training.batch_statistics_accuracy(trial.network, images, labels, [np.arange(450)])
        assert before[0]["num_batches_tracked"] == 2
        for norm, state in zip(norms, before, strict=True):
            for name, value in norm.state_dict().items():
                np.testing.assert_array_equal(value, state[name])
            assert not norm.training


class TestTiming:
    def test_numpy_and_fastbn_agree(self):
        results = list(timing.compare(SMALL_ACTIVATION))
        assert [result.name for result in results] == list(timing.COMPARISONS)
        for result in results:
            assert 0 <= result.largest_difference < 1e-5
            assert result.ratio == result.numpy_seconds / result.fastbn_seconds > 0

    def test_batch_is_halved_until_it_fits(self):
        assert timing.fitting_shape((32, 256, 56, 56), np.inf) == (32, 256, 56, 56)
        assert timing.fitting_shape((32, 256, 56, 56), 300e6) == (8, 256, 56, 56)
        assert timing.fitting_shape((32, 256, 56, 56), 0) == (1, 256, 56, 56)


@pytest.mark.compiled
class TestRun:
    def test_output(self, capsys):
        demo.run(epochs=2, seed=1, activation=SMALL_ACTIVATION)
        out, err = capsys.readouterr()
        assert re.fullmatch(PLAIN_PROGRESS, err)
        assert out.isascii()
        assert max(map(len, out.splitlines())) < 80

        rows = re.findall(r"^ +([12]) +([\d.]+)% +([\d.]+)% +([\d.]+)% +([\d.]+)%$", out, re.M)
        assert [row[0] for row in rows] == ["1", "2"]
        for row in rows:
            plain, normalized = float(row[2]), float(row[4])
            assert 20 < plain < normalized
            assert normalized > 90

        rows = re.findall(r"^  (\S.*?)  +(\S+) +([\d.]+)%$", out, re.M)
        together, _, _, sorted_by_class, one = (row[1] for row in rows)
        assert len({row[2] for row in rows}) == 1  # eval() does not care how they come
        assert float(together[:-1]) > 90
        assert float(sorted_by_class[:-1]) < 50
        assert one == "error"

        assert out.count("times as fast") == 3
        assert f"shape {SMALL_ACTIVATION}" in out

    def test_epochs_and_skip_timing(self, capsys):
        assert cli.main(["demo", "--epochs", "1", "--skip-timing", "--learning-rate", "0.03"]) == 0
        out = capsys.readouterr().out
        assert "learning rate, 0.03." in out
        assert re.search(r"^ +1 .*%$", out, re.M)
        assert not re.search(r"^ +2 .*%$", out, re.M)
        assert "why eval() matters" in out
        assert "times as fast" not in out


@pytest.mark.compiled
class TestSmallBatches:
    def test_output(self, capsys):
        assert cli.main(["demo", "--small-batches", "--epochs", "1", "--seed", "1"]) == 0
        out, err = capsys.readouterr()
        assert re.fullmatch(PLAIN_PROGRESS, err)
        assert out.isascii()
        assert max(map(len, out.splitlines())) < 80
        rows = re.findall(r"^ +(\d+)" + r" +(\d+)% \((\d+)%\)" * 3 + "$", out, re.M)
        assert [int(row[0]) for row in rows] == list(small_batches.SIZES)
        for size, *errors in (map(int, row) for row in rows):
            expected = [100 * (2 / (m * size - 1)) ** 0.5 for m in (64, 16, 1)]
            for k in range(3):
                assert errors[2 * k + 1] == pytest.approx(expected[k], abs=0.51)
                assert errors[2 * k] == pytest.approx(expected[k], rel=0.4, abs=1)
        rows = re.findall(r"^ +(\d+)" + r" +([\d.]+)%" * 5 + "$", out, re.M)
        assert [int(row[0]) for row in rows] == list(small_batches.SIZES)
        for size, *shares in (map(float, row) for row in rows):
            assert (shares[0] == shares[2]) or size > small_batches.GHOST
        assert float(rows[0][4]) > float(rows[0][1]) + 20  # group norm, and batch norm, of two

    def test_norms_are_what_they_are_called(self):
        kinds = {
            name: {type(make(8, images)).__name__ for images in (False, True)}
            for name, make in small_batches._norms(16, 80).items()
        }
        assert list(kinds.values()) == [
            {"BatchNorm1d", "BatchNorm2d"}, {"BatchRenorm1d", "BatchRenorm2d"},
            {"BatchNorm1d", "BatchNorm2d"}, {"GroupNorm"}, {"LayerNorm"},
        ]  # fmt: skip
        ghost = small_batches._norms(16, 80)[list(kinds)[2]](8, True)
        assert (ghost.virtual_batch_size, ghost.momentum) == (8, 0.05)

    def test_picture(self, tmp_path):
        pytest.importorskip("matplotlib")
        from fastbn.demo import picture

        sizes = small_batches.SIZES
        errors = {str(n): (n, [n / size for size in sizes]) for n in (64, 16, 1)}
        shares = {
            name: [0.9 - size / 1000 for size in sizes] for name in small_batches._norms(1, 1)
        }
        picture.draw(small_batches.Found(sizes, errors, shares), tmp_path / "small.png")
        assert (tmp_path / "small.png").read_bytes().startswith(b"\x89PNG")

    @pytest.mark.parametrize(
        ("there", "file", "says"),
        [
            (False, "a.png", r"needs matplotlib: pip install 'fastbn\[cli\]'"),
            (True, "a.txt", "expected a name that ends in .png, .svg or .pdf: 'a.txt'"),
            (True, "nowhere/a.png", "there is no folder .*nowhere'"),
        ],
    )
    def test_what_cannot_be_drawn_is_said_before_the_work(
        self, there, file, says, capsys, monkeypatch
    ):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: there or None)
        assert cli.main(["demo", "--small-batches", file]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert re.search(says, " ".join(err.split()))


class TestCommandLine:
    def test_version(self, capsys):
        assert cli.main(["--version"]) == 0
        assert capsys.readouterr().out == f"fastbn {fastbn.__version__}\n"

    def test_without_a_command_prints_help(self, capsys):
        assert cli.main([]) == 0
        out = capsys.readouterr().out
        assert out.startswith("usage: fastbn ")
        assert re.search(r"^ +demo +train", out, re.M)

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            ("demo --epochs 0", "--epochs: expected a whole number from 1 to 1000, got '0'"),
            ("demo --epochs 2.5", "--epochs"),
            ("demo --epochs 1001", "--epochs"),
            ("demo --seed -1", "--seed"),
            ("demo --seed x", "--seed"),
            ("demo --learning-rate 0", "--learning-rate: expected a positive number, got '0'"),
            ("demo --learning-rate nan", "--learning-rate"),
            ("demo --learning-rate inf", "--learning-rate"),
            ("demo more", "more"),
            ("nothing", "nothing"),
        ],
    )
    def test_wrong_arguments(self, arguments, named, capsys):
        assert cli.main(arguments.split()) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert named in err

    @pytest.mark.parametrize(
        ("raised", "code", "message"),
        [
            (KeyboardInterrupt(), 130, "fastbn: interrupted\n"),
            (OSError("No space left"), 2, "fastbn: error: No space left\n"),
            (MemoryError(), 2, "fastbn: error: out of memory\n"),
        ],
    )
    def test_what_ends_a_command(self, raised, code, message, capsys, monkeypatch):
        def run(**options):
            raise raised

        monkeypatch.setattr(demo, "run", run)
        assert cli.main(["demo"]) == code
        assert capsys.readouterr().err == message

    def test_module_and_closed_pipe(self):
        command = [sys.executable, "-m", "fastbn", "demo", "--epochs", "1000", "--skip-timing"]
        # With a buffer, as users have it: Python flushes that once more when it ends.
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, env=environment, **pipes) as process:
            assert process.stdout.readline() == "1. Training\n"
            process.stdout.close()
            assert re.fullmatch(PLAIN_PROGRESS, process.stderr.read())
        assert process.returncode == 141

    def test_import_is_light(self):
        code = "import sys, fastbn.cli; print('fastbn.demo' in sys.modules)"
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        assert result.stdout.split() == [b"False"]
