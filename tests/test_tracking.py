"""Performance is tracked as benchmarks/README.md says: its commands are run, on a checkout."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import cold, estimate, measure, results
from benchmarks.problem import OPERATIONS
from tests.subprocess_tools import PACKAGE, ROOT, TIMEOUT

#: The longest names of the quick grid, small and large figures.
SOME = "-k '8x16 or (32x64x56x56 and last)'"
SLEEP = """
import time
_channel_stats = channel_stats
def channel_stats(*args):
    time.sleep(0.001)
    return _channel_stats(*args)
"""


def section():
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    return text.partition("## Tracking performance\n")[2].partition("\n## ")[0]


def block(language):
    (found,) = re.findall(rf"```{language}\n(.*?)```", section(), re.DOTALL)
    return found


def workflow(name):
    """The command of the workflow that has ``name`` in it, for a pull request to main."""
    (command,) = [c for c in re.findall(r"- run: (.+)", block("yaml")) if name in c]
    return command.replace("${{ github.base_ref }}", "main")


def history(option):
    (command,) = [line for line in block("sh").splitlines() if option in line]
    return command.partition("#")[0].rstrip()


def git(folder, *arguments):
    author = "-c", "user.name=Test", "-c", "user.email=test@example.org"
    subprocess.run(["git", *author, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path):
    """A copy of the checkout, in a repository with one commit, which is origin/main."""
    if not (ROOT / ".git").exists():
        pytest.skip("not in a checkout")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    git(tmp_path, "init", "--quiet")
    commit(tmp_path)
    return tmp_path


def commit(folder, origin=True):
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "A commit")
    if origin:
        git(folder, "update-ref", "refs/remotes/origin/main", "HEAD")


def run(folder, command, more, package=None):
    """Run a command of the README, which ``more`` confines to what takes seconds."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    changed = {
        "COLUMNS": "120",
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
        "PYTHONPATH": str(package or folder),
    }
    done = subprocess.run(
        f"{command} {more}", shell=True, cwd=folder, env={**kept, **changed},
        capture_output=True, text=True, timeout=TIMEOUT,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


# --- the workflow -------------------------------------------------------------------------------


def test_the_workflow_has_three_commands_and_all_commits():
    assert re.findall(r"- run: (.+)", block("yaml"))[0] == "pip install '.[track]'"
    assert len(re.findall("run:", block("yaml"))) == 3
    assert "fetch-depth: 0" in block("yaml")


@pytest.mark.compiled
@pytest.mark.parametrize("faster", [True, False])
def test_compare_of_the_workflow(checkout, faster):
    """A pull request that makes the slow fast passes, and one that does the reverse does not."""
    package = checkout / "fastbn" / "__init__.py"
    fast = package.read_text()
    for slow in (faster, not faster):
        package.write_text(fast + SLEEP if slow else fast)
        commit(checkout, origin=slow == faster)
    status, out, err = run(checkout, workflow("compare"), "--cells 'statistics*8x16' --rounds 1")
    assert status == (0 if faster else 1), out + err
    assert f"Slower: {0 if faster else 1} of 1 cells" in out


@pytest.mark.compiled
def test_cold_of_the_workflow(checkout):
    status, out, err = run(checkout, workflow("cold"), "--cases evaluation")
    assert status == 0, out + err
    assert "evaluation" in out


def test_cases_of_cold_are_chosen_by_a_part_of_their_name():
    assert cold.chosen("") == list(cold.CASES)
    assert cold.chosen("training") == [
        "training step",
        "training step (N, C)",
        "fused training step",
    ]
    with pytest.raises(results.Unusable, match="no such case"):
        cold.chosen("no such case")


# --- the history --------------------------------------------------------------------------------


@pytest.mark.compiled
def test_history(checkout):
    pytest.importorskip("pytest_benchmark", reason="runs are kept by pytest-benchmark")
    status, out, err = run(checkout, history("autosave"), SOME)
    assert status == 0, out + err
    assert "14 measurements, about 10 seconds on a quiet machine" in out
    assert_readable(out, rows=14)
    (file,) = checkout.glob(".benchmarks/*/*.json")
    assert_kept(file)

    on_another = file.read_text().replace('"threads": ', '"threads": 1')
    file.write_text(on_another)
    status, out, err = run(checkout, history("compare"), SOME)
    assert status == 0, out + err
    assert_readable(out, rows=28)
    pairs = re.findall(r"^(\S.*?) +\d+\.\d+ copies \((0001|NOW)\)", out, re.MULTILINE)
    assert [when for _, when in pairs] == 14 * ["0001", "NOW"]
    assert [name for name, _ in pairs[::2]] == [name for name, _ in pairs[1::2]]
    assert "machine_info is different" in err


def assert_readable(out, rows):
    """Operation by operation, in 120 columns, with short names."""
    table = out[out.index("- benchmark '") :]
    assert re.findall(r"- benchmark '(.+)':", table) == list(OPERATIONS)
    assert len(re.findall(r"^\d\S+ (?:last )?float32 .* copies", table, re.MULTILINE)) == rows
    assert table.count("Name (time in us)") == len(OPERATIONS)
    assert max(map(len, table.splitlines())) <= 120


def assert_kept(file):
    """The figures are those of one call, and the file can be recorded."""
    rows = json.loads(file.read_text())["benchmarks"]
    for row in rows:
        assert row["stats"]["median"] == pytest.approx(row["extra_info"]["seconds"])
        assert row["stats"]["iterations"] == row["extra_info"]["calls_per_round"]
    assert min(row["stats"]["min"] for row in rows) < measure.SAMPLE_SECONDS / 2
    (recorded,) = results.read(file)
    assert len(recorded.cells) == len(rows) == 14


@pytest.mark.compiled
def test_the_command_line_has_the_last_word_on_the_table():
    pytest.importorskip("pytest_benchmark", reason="the table is made by pytest-benchmark")
    more = "-k 'statistics and 8x16' --benchmark-columns=max,rounds -p no:cacheprovider"
    status, out, err = run(ROOT, "pytest benchmarks", more)
    assert status == 0, out + err
    assert re.search(r"^Name \(time in .+\) +Max +Rounds$", out, re.MULTILINE)


def test_rows_of_an_operation_have_names_of_their_own():
    from benchmarks.test_speed import _cells

    cells = [parameters.values for parameters in _cells()]
    names = {(operation, measure.row_name(*cell, by)) for *cell, operation, by in cells}
    assert len(names) == len(cells)
    assert ("training", "32x64x56x56 last float32 out=") in names
    assert ("statistics", "8x16 float64 torch") in names


@pytest.mark.parametrize(
    ("sizes", "processes", "text"),
    [
        ([512], 0, "1 measurement, about 10 seconds on a quiet machine"),
        ([2**20] * 120, 0, "120 measurements, about 30 seconds on a quiet machine"),
        ([2**20] * 120, 3, "123 measurements, about 60 seconds on a quiet machine"),
        ([20 * 10**6] * 2000, 0, "2000 measurements, about 15 minutes on a quiet machine"),
    ],
)
def test_how_long_it_takes(sizes, processes, text):
    seconds = estimate.expected_seconds(sizes, processes)
    assert estimate.in_words(len(sizes) + processes, seconds) == text


# --- the code of others -------------------------------------------------------------------------


@pytest.mark.compiled
def test_the_test_of_a_layer(tmp_path):
    pytest.importorskip("pytest_benchmark", reason="the test uses its fixture")
    (tmp_path / "test_layer.py").write_text(block("python"))
    status, out, err = run(tmp_path, "pytest", "test_layer.py", PACKAGE.parent)
    assert status == 0, out + err
    assert re.search(r"^test_layer +\d", out, re.MULTILINE)
