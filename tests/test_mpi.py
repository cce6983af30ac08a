"""Synchronized batch norm under MPI: programs in ``tests/mpi``, each started by mpiexec."""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import scaling
from benchmarks.__main__ import main
from tests.subprocess_tools import PACKAGE, ROOT

PROGRAMS = Path(__file__).parent / "mpi"
#: Seconds until all ranks must have ended: of a program that works, which may have to compile; and
#: of one that loses a rank.
WORKS, LOSES = 600, 120


def _mpiexec():
    """That of this environment (the wheel ``mpich`` brings one), or another, or None."""
    beside = Path(sys.executable).parent / "mpiexec"
    return str(beside) if beside.exists() else shutil.which("mpiexec")


pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("mpi4py") is None, reason="no mpi4py: pip install '.[mpi-test]'"
    ),
    pytest.mark.skipif(_mpiexec() is None, reason="no mpiexec: pip install '.[mpi-test]'"),
]


def mpiexec(ranks, *program, timeout=WORKS, cwd=None, env=()):
    """Exit status and output; a failed test if it does not end in time."""
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (PACKAGE.parent, ROOT))),
        "FASTBN_NUM_THREADS": "1",  # of each rank
        **dict(env),
    }
    process = subprocess.Popen(
        [_mpiexec(), "-n", str(ranks), sys.executable, "-W", "error", *map(str, program)],
        env=variables, cwd=cwd or PACKAGE.parent, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        return process, process.communicate(timeout=timeout)[0]
    except subprocess.TimeoutExpired:
        process.terminate()  # mpiexec ends its ranks
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"no end after {timeout} s:\n{process.communicate()[0]}")


def fine(ranks, *program, **options):
    process, said = mpiexec(ranks, *program, **options)
    assert process.returncode == 0, said
    return said


@pytest.mark.compiled
@pytest.mark.parametrize("ranks", [4, 3])
def test_ranks_train_as_one_process(ranks):
    assert f"fine on {ranks}" in fine(ranks, PROGRAMS / "train.py")


@pytest.mark.parametrize("way", ["allgather", "slices"])
@pytest.mark.parametrize("limit", [{}, {"FASTBN_RANKS_TIMEOUT": "0"}], ids=["", "no limit"])
def test_an_error_of_one_rank_is_one_of_all(way, limit):
    assert "fine on 3" in fine(3, PROGRAMS / "errors.py", way, env=limit)


@pytest.mark.parametrize("loss", ["killed", "raises"])
def test_a_lost_rank_ends_all(loss):
    process, said = mpiexec(3, "-m", "mpi4py", PROGRAMS / "lost.py", loss, timeout=LOSES)
    assert process.returncode != 0
    assert said.count("started") == 3
    assert "went on" not in said
    assert loss == "killed" or "the data of rank 1 is gone" in said


def test_ranks_wait_no_longer_than_they_are_told():
    """For one in evaluation, which exchanges nothing."""
    limit = {"FASTBN_RANKS_TIMEOUT": "3"}
    program = "-m", "mpi4py", PROGRAMS / "lost.py", "evaluates"
    process, said = mpiexec(2, *program, timeout=LOSES, env=limit)
    assert process.returncode != 0
    assert "went on" not in said
    # a busy machine may take as long to start the ranks
    assert "TimeoutError: not all ranks of comm have come within 3 s" in said


@pytest.mark.compiled
def test_scaling_is_measured_and_written(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(scaling, "MEASURED", (1, 2))
    page = tmp_path / "page.md"
    assert main(["scaling", "--batch", "1", "--rounds", "1", "--to", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    first, model, _ = text.split("## ")[1:]
    for part, ranks in ((first, scaling.MEASURED), (model, scaling.MODELLED)):
        rows = re.findall(r"^\| +(\d+) \|((?: +[\de.+ %-]+ \|)+)$", part, re.MULTILINE)
        assert {int(row[0]) for row in rows} == set(ranks)
        assert all(float(cell.strip(" %")) >= 0 for row in rows for cell in row[1].split("|")[:-1])


@pytest.mark.compiled
@pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="not in a checkout")
def test_the_program_in_the_readme(tmp_path):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(# train_mpi\.py.*?)```", text, re.DOTALL)
    (expected,) = re.findall(r"train_mpi\.py\n```\n\n```\n(.*?)```", text, re.DOTALL)
    (tmp_path / "train_mpi.py").write_text(program, encoding="utf-8")
    assert fine(4, "-m", "mpi4py", "train_mpi.py", cwd=tmp_path) == expected
