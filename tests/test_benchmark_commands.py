"""The command line of the benchmarks, and how several processes share the processors."""

import re

import pytest

from benchmarks import __main__ as command_line
from benchmarks import sharing


@pytest.mark.parametrize(("missing", "extra"), [("tabulate", "track"), ("matplotlib", "bench")])
def test_a_package_that_is_missing_names_the_extra(missing, extra, monkeypatch, capsys):
    def parser():
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr(command_line, "parser", parser)
    assert command_line.main([]) == 2
    assert f"no {missing}; pip install '.[{extra}]'" in capsys.readouterr().err


@pytest.mark.compiled
def test_sharing_counts_the_calls_of_all_processes(monkeypatch, capsys):
    monkeypatch.setattr(sharing, "COUNTS", (1, 2))
    assert command_line.main(["sharing", "--seconds", "0.05"]) == 0
    rows = re.findall(r"^\| +(\d) \| +(\d+) \| +(\d+) \|$", capsys.readouterr().out, re.MULTILINE)
    assert [row[0] for row in rows] == ["1", "2"]
    assert all(int(rate) > 0 for row in rows for rate in row[1:])
