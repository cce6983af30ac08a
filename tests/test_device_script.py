"""``python -m benchmarks device`` on a simulated device, and what it makes of measurements."""

import contextlib
import json
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from tests.subprocess_tools import ROOT, TIMEOUT

pytest.importorskip("tabulate", reason="tables are made with tabulate")

pytestmark = pytest.mark.compiled  # a simulated device runs Python in any case: once is enough


@pytest.fixture
def script(tmp_path):
    """Run the command after some code, in a process that simulates a device."""

    def run(*arguments, before=""):
        file = tmp_path / "device.json"
        code = f"import sys\n{before}\nfrom benchmarks.__main__ import main\n"
        code += f"sys.exit(main({['device', '--quick', '--to', str(file), *arguments]}))"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, text=True, timeout=TIMEOUT,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        return done.returncode, done.stdout, json.loads(file.read_text(encoding="utf-8"))

    return run


def test_it_runs_to_its_end(script):
    status, printed, result = script()
    assert status == 0, printed
    assert "simulated: figures mean nothing" in printed
    assert "0 of 109 checks failed" in printed
    assert result["simulated"]
    assert result["device"]["name"] == "simulated"
    assert set(result["missing"]) == {"torch", "cupy"}
    assert all(check["met"] for check in result["checks"])
    plain = {"evaluation", "training", "backward"}
    operations = {cell["operation"] for cell in result["cells"]}
    assert operations > plain
    assert {"training, relu + residual", "layer norm", "group norm backward"} < operations
    assert all(set(cell["samples"]) == {"copy", "fastbn"} for cell in result["cells"])
    assert not any(cell["errors"] for cell in result["cells"])
    assert all(bar["met"] is None for bar in result["bars"])
    assert set(result["sanitizer"].values()) == {"not run: simulated"}


ONE_CASE = "from benchmarks import device_checks\ndevice_checks.TINY = device_checks.TINY[:1]\n"


@pytest.mark.parametrize(
    ("before", "quantity"),
    [
        # a reference that is wrong in the fourth digit stands for a result that is
        (
            "from tests import reference\nright = reference.running_step\n"
            "reference.running_step = lambda *a: [1.0001 * v for v in right(*a)]",
            "training, running var",
        ),
        (
            "import fastbn\n"
            "def batch_norm_backward(dy, cache, out=None): raise RuntimeError('no kernel')\n"
            "fastbn.batch_norm_backward = batch_norm_backward",
            "runs",
        ),
    ],
)
def test_what_is_wrong_fails(script, before, quantity):
    status, printed, result = script("--only", "check", before=ONE_CASE + before)
    assert status == 1, printed
    assert "FAILED" in printed
    assert quantity in {check["quantity"] for check in result["checks"] if not check["met"]}
    assert "cells" not in result  # nothing else was asked for


# --- pieces, which need Numba's CUDA target but no device --------------------------------------


@pytest.fixture
def times():
    try:
        from benchmarks import device_times
    except ImportError as error:  # some versions of Numba need NVIDIA's packages
        pytest.skip(f"no CUDA target: {error}")
    return device_times


@pytest.fixture
def report(times):
    from benchmarks import device_report

    return device_report


def test_errors_are_relative_and_nan_is_one(times):
    from benchmarks.device_checks import Check, error_of, worst

    right = np.array([1.0, 100.0])
    assert error_of(right + np.array([0.0, 1.0]), right, right) == pytest.approx(0.01)
    assert error_of(right[:1], right, right) == math.inf
    nan = error_of(np.array([1.0, math.nan]), right, right)
    found = [Check("numba", "float32", f"case {e}", "y", e, 1e-5) for e in (1e-6, 2e-6, 1.0, nan)]
    assert [check.met for check in found] == [True, True, False, False]
    assert [check.error for check in worst(found)[:2]] == [2e-6, 1.0]
    assert len(worst(found)) == 3


def cell(times, operation="evaluation", size=2**28, channel=2**20, **seconds):
    samples = {k.replace("_", " "): times.Sample(v, v) for k, v in seconds.items()}
    return times.Cell("case", "float32", operation, size, channel, 1, samples)


def test_bars(times, report):
    cells = [
        cell(times, copy=93.0, fastbn=100.0, torch_cuDNN=200.0, torch_native=99.0),
        cell(times, copy=10.0, fastbn=100.0, size=2**20),
        cell(times, "training", copy=79.0, fastbn=100.0),
        cell(times, "training", copy=61.0, fastbn=100.0, channel=2**30),
        cell(times, "backward", copy=60.0, fastbn=100.0, channel=2**22),
    ]
    found = report.outcomes(cells, multiprocessors=64, launch=2.0)
    assert [(o.met, o.reached) for o in found] == [
        (True, 0.93), (False, 0.79), (True, pytest.approx(0.915)), (True, pytest.approx(0.9)),
        (None, None), (True, pytest.approx(2.02)), (True, 2.0), (True, pytest.approx(1.01)),
        (False, pytest.approx(0.99)),
    ]  # fmt: skip
    assert "NOT MET" in report.bars(found)
    assert "not measured" in report.bars(found)


class FakeCuda:
    """A device on which everything takes a millisecond, and which is behind or not."""

    def __init__(self, behind):
        self.now, self.behind = 0.0, behind

    def current_context(self):
        return SimpleNamespace(get_memory_info=lambda: SimpleNamespace(free=2**10))

    def device_array(self, *_):
        return SimpleNamespace(copy_to_device=lambda _: self.work())

    def work(self):
        self.now += 1e-3

    def event(self):
        return FakeEvent(self)

    def synchronize(self):
        pass

    def defer_cleanup(self):
        return contextlib.nullcontext()


class FakeEvent:
    def __init__(self, device):
        self.device = device

    def record(self):
        self.at = self.device.now

    def query(self):
        return not self.device.behind

    def synchronize(self):
        pass

    def elapsed_time(self, other):
        return 1e3 * (other.at - self.at)


@pytest.mark.parametrize("behind", [True, False])
def test_the_clock_knows_whether_calls_were_launched_ahead(times, monkeypatch, behind):
    device = FakeCuda(behind)
    monkeypatch.setattr(times, "cuda", device)
    called = []

    def twice():
        called.append(2)
        device.work()
        device.work()

    calls = {"one": [device.work], "two": [twice, lambda: (device.work(), device.work())]}
    found = times.DeviceClock().compare(calls, 3)
    assert found["one"].device == pytest.approx(1e-3)
    assert found["two"].device == pytest.approx(2e-3)
    assert found["one"].ahead is behind
    assert len(called) >= 3  # calls take turns
