"""The command line of the benchmarks, and how several processes share the processors."""

import json
import re

import pytest

import fastbn
from benchmarks import __main__ as command_line
from benchmarks import around, sharing


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
def test_sharing_counts_the_calls_of_all_processes(monkeypatch, capsys):
    monkeypatch.setattr(sharing, "COUNTS", (1, 2))
    assert command_line.main(["sharing", "--seconds", "0.05"]) == 0
    rows = re.findall(r"^\| +(\d) \| +(\d+) \| +(\d+) \|$", capsys.readouterr().out, re.MULTILINE)
    assert [row[0] for row in rows] == ["1", "2"]
    assert all(int(rate) > 0 for row in rows for rate in row[1:])
