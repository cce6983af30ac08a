"""The command line of the benchmarks, and how several processes share the processors."""

import json
import re
from dataclasses import replace

import pytest

import fastbn
from benchmarks import __main__ as command_line
from benchmarks import around, cold, compare, results, scaler, sharing, standardize, trees
from benchmarks.__main__ import main
from tests.cases import Case
from tests.test_benchmarks import CELLS


@pytest.mark.parametrize(("missing", "extra"), [("tabulate", "track"), ("matplotlib", "bench")])
def test_a_package_that_is_missing_names_the_extra(missing, extra, monkeypatch, capsys):
    def parser():
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr(command_line, "parser", parser)
    assert command_line.main([]) == 2
    assert f"no {missing}; pip install '.[{extra}]'" in capsys.readouterr().err


@pytest.mark.compiled
def test_around_measures_every_call(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(around, "FUSED", ((2, 3, 4, 4),))
    monkeypatch.setattr(around, "ROWS", ((4, 8),))
    monkeypatch.setattr(around, "GROUPED", (((2, 4, 3, 3), 2),))
    threads = fastbn.get_num_threads()
    assert command_line.main(["around", "--to", str(tmp_path / "around.json")]) in (0, 1)
    rows = json.loads((tmp_path / "around.json").read_text(encoding="utf-8"))
    shown = capsys.readouterr().out
    for row in rows:
        assert row["call"] in shown
        assert row["ms"] > 0
    assert sum("/ plain" in row for row in rows) >= 8
    assert {"layer norm: 4x8", "group norm of 2, backward: 2x4x3x3"} <= {r["call"] for r in rows}
    assert fastbn.get_num_threads() == threads


@pytest.mark.compiled
def test_standardize_measures_every_layout(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(standardize, "IMAGES", (((5, 7), 0), ((5, 7), 2)))
    monkeypatch.setattr(standardize, "OTHERS", ("no_such_package",))
    to = tmp_path / "standardize.json"
    assert command_line.main(["standardize", "--to", str(to)]) in (0, 1)
    rows, shown = json.loads(to.read_text(encoding="utf-8")), capsys.readouterr().out
    assert "no_such_package is not installed" in shown
    assert len(rows) == 2 * (len(standardize.LAYOUTS) + 1)
    assert {"NHWC to NCHW: 5x7x3", "NCHW: 2x3x5x7"} <= {row["call"] for row in rows}
    assert all(row["call"] in shown and row["/ copy"] > 0 for row in rows)
    assert sum("/ numpy" in row for row in rows) == 2 * len(standardize.LAYOUTS)


@pytest.mark.compiled
def test_scaler_measures_every_call(monkeypatch, capsys, tmp_path, tables):
    monkeypatch.setattr(scaler, "SHAPES", ((50, 4),))
    monkeypatch.setattr(scaler, "SMALL", (20, 3))
    monkeypatch.setattr(scaler, "ERROR_ROWS", 100)
    file = tmp_path / "scaler.json"
    assert command_line.main(["scaler", "--rounds", "1", "--to", str(file)]) in (0, 1)
    found, shown = json.loads(file.read_text(encoding="utf-8")), capsys.readouterr().out
    assert len(found["rows"]) == 2 * 2 * 6
    for row in found["rows"]:
        assert row["call"] in shown
        assert min(row["fastbn, ms"], row["sklearn, ms"], row["times"]) > 0
    assert {row["bar"] for row in found["rows"]} == {None, 4.0, 3.0}
    assert 0 < found["errors"]["float32"]["fastbn"] < 2e-6
    assert "Slower than scikit-learn" in shown


@pytest.mark.compiled
def test_sharing_counts_the_calls_of_all_processes(monkeypatch, capsys):
    monkeypatch.setattr(sharing, "COUNTS", (1, 2))
    assert command_line.main(["sharing", "--seconds", "0.05"]) == 0
    rows = re.findall(r"^\| +(\d) \| +(\d+) \| +(\d+) \|$", capsys.readouterr().out, re.MULTILINE)
    assert [row[0] for row in rows] == ["1", "2"]
    assert all(int(rate) > 0 for row in rows for rate in row[1:])


# --- compare and cold ---------------------------------------------------------------------------

ROOT = results.ROOT
needs_git = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the other commit")


@needs_git
def test_trees_have_sources_and_caches_of_their_own(tmp_path):
    new, old = trees.working_tree(tmp_path / "new"), trees.commit("HEAD", tmp_path / "old")
    caches = set()
    for tree in (new, old):
        assert (tree.folder / "fastbn" / "__init__.py").exists()
        assert not list(tree.folder.rglob("__pycache__"))  # fastbn would load what is there
        caches.add(tree.environment()["NUMBA_CACHE_DIR"])
    assert len(caches) == 2
    assert re.fullmatch(r"HEAD \([0-9a-f]{7,}\)", old.name)


@needs_git
@pytest.mark.parametrize("command", ["compare", "cold"])
def test_no_such_commit(command, capsys):
    assert main([command, "no-such-commit"]) == 2
    assert "no-such-commit" in capsys.readouterr().err


@pytest.mark.compiled
def test_worker_times_what_it_is_asked_for_and_tells_what_it_cannot(tmp_path):
    tree = trees.working_tree(tmp_path)
    with compare.Worker(tree, 1) as worker:
        assert 0 < worker.time(CELLS[0], 0.001) < 1
        answer = worker.time(replace(CELLS[0], case=Case("no axis", (8, 16), "one")), 0.001)
        assert isinstance(answer, str)
        assert 0 < worker.time(CELLS[0], 0.001) < 1


@pytest.mark.slow
@pytest.mark.compiled
@needs_git
def test_compare_with_a_commit(tables, capsys):
    status = main(["compare", "HEAD", "--cells", "evaluation*1x64*32", "--rounds", "2"])
    assert status in (0, 1, 2)  # HEAD may be faster, the machine busy
    printed = capsys.readouterr().out
    assert "working tree against HEAD" in printed
    assert "of 2 cells" in printed


@pytest.mark.parametrize(
    ("functions", "seconds", "verdict"),
    [(9, 1.2, ""), (10, 9.0, "slower"), (11, 0.1, "too many functions")],
)
def test_cold_is_judged_by_functions_and_by_another_commit(functions, seconds, verdict):
    now, before = cold.Cold(functions, seconds, seconds), cold.Cold(1, 1.0, 1.0)
    assert cold.judged(now, 10, before) == verdict
    assert cold.judged(now, 10) == (verdict if functions > 10 else "")


@pytest.mark.compiled
def test_cold_counts_what_is_compiled(tmp_path):
    tree = trees.working_tree(tmp_path)
    found = [cold.measure(tree, "evaluation") for _ in range(2)]
    assert found[0].functions == found[1].functions > 5  # nothing stays from the first
    assert found[0].cpu > 0.1
