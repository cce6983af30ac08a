"""Processes that are started, and programs that must not start any."""

import os
import subprocess
import sys

import numpy as np
import pytest

import fastbn
from fastbn.dataset import pool, stats

SCRIPT = """
import fastbn
print(fastbn.dataset_stats("x.npy", workers=2, progress=False).mean)
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    np.save(tmp_path / "data" / "x.npy", np.ones((4, 3)))
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path


def run(folder, *more):
    package = os.path.dirname(os.path.dirname(fastbn.__file__))
    done = subprocess.run(
        [sys.executable, str(folder / "script.py")], capture_output=True, text=True, timeout=300,
        cwd=folder / "data", check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([package, *map(str, more)])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("module", ["pickle", "queue", "subprocess", "zipfile"])
def test_modules_in_the_current_folder_are_not_run(folder, module):
    (folder / "data" / f"{module}.py").write_text("raise SystemExit('from the current folder')")
    done = run(folder)
    assert (done.stdout, done.stderr) == ("[1. 1. 1.]\n", "")


def test_what_is_printed_at_start_up_is_no_answer(folder):
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(
        "import os, sys\nprint('hello')\nprint('now', flush=True)\nos.write(1, b'raw')\n"
    )
    assert run(folder, folder / "site").stdout.endswith("[1. 1. 1.]\n")


@pytest.mark.parametrize(
    ("name", "value"), [("frozen", True), ("executable", "/usr/bin/editor"), ("executable", "")]
)
def test_other_programs_start_nothing(folder, monkeypatch, name, value):
    def refused(number):
        raise AssertionError("a process would be started")

    monkeypatch.setattr(sys, name, value, raising=False)
    monkeypatch.setattr(stats, "Workers", refused)
    monkeypatch.setattr(stats, "_WORTH_A_WORKER_AS_THEY_ARE", 0)
    monkeypatch.setattr(stats, "get_num_threads", lambda: 4)
    for workers in (2, None):
        assert fastbn.dataset_stats(folder / "data", workers=workers).files == 1


def test_workers_start_no_others(folder, monkeypatch):
    with pool.Workers(1) as workers:
        mark = workers.submit(os.getenv, pool._MARK).result(60)
    assert mark
    monkeypatch.setenv(pool._MARK, mark)
    assert fastbn.dataset_stats(folder / "data", workers=2).files == 1
    with pool.Workers(1) as workers, pytest.raises(RuntimeError, match="starts no others"):
        workers.submit(int).result(60)


def test_a_worker_that_does_not_start(folder, monkeypatch):
    monkeypatch.setattr(pool, "_PROGRAM", "raise SystemExit(1)")
    with pool.Workers(1) as workers, pytest.raises(ChildProcessError, match="a worker process"):
        workers.submit(int).result(60)
