"""What ``python -m benchmarks`` makes of measurements, on made-up ones."""

import json
import math
from dataclasses import replace

import pytest

from benchmarks import bars, compare, grid, results
from benchmarks.__main__ import main
from benchmarks.results import Run

MIB = 2**20
MACHINE = {
    "cpu": "Some CPU",
    "last_level_cache": 32 * MIB,
    "threads": 2,
    "versions": {"python": "3.11.7", "fastbn": "0.1.0", "numba": "0.61.0", "numpy": "2.0.0"},
    "date": "2025-01-31",
}


@pytest.fixture
def tables():
    pytest.importorskip("tabulate", reason="tables are made with tabulate")


def measured(case, shape, provider, ratio=1.0, operation="evaluation", **more):
    """The ``extra_info`` of a cell whose copy takes its time, and a provider ``ratio`` times it."""
    size = 4 * math.prod(shape)
    copy = 1e-7 + size / 2e10
    known = {
        "case": case, "dtype": "float32", "operation": operation, "provider": provider,
        "shape": list(shape), "axis": 1, "bytes": size, "moved": 2 * size,
        "seconds": ratio * copy, "ratio_to_copy": ratio, "ratio_to_streaming_copy": 1.4 * ratio,
        "seconds_of_copy": copy, "seconds_of_streaming_copy": copy / 1.4,
    }  # fmt: skip
    return known | more


SHAPES = {
    "small: 1x64x1x1": (1, 64, 1, 1), "in cache": (8, 64, 56, 56), "large": (64, 64, 112, 112),
    "segmentation": (1, 16, 1024, 1024), "odd": (3, 5, 777, 777), "audio": (8, 512, 399),
    "table: 8x16": (8, 16), "long table": (1_000_000, 64),
}  # fmt: skip


def fastbn_cells(slowdown=1.0):
    return [
        measured(case, shape, "fastbn out=", 1 / 3 * slowdown) for case, shape in SHAPES.items()
    ]


def pytest_file(path, cells, **machine):
    """A file as pytest-benchmark writes it."""
    path.write_text(json.dumps({
        "machine_info": {"node": "name-of-this-computer"},
        "datetime": "2025-01-31T12:00:00+00:00",
        "benchmarks": [
            {"fullname": f"test[{i}]", "stats": {}, "extra_info": cell | MACHINE | machine}
            for i, cell in enumerate(cells)
        ],
    }))  # fmt: skip
    return path


def recorded(tmp_path, cells, name="results.json", **machine):
    """A file as `record` writes it."""
    run = pytest_file(tmp_path / "run.json", cells, **machine)
    assert main(["record", str(run), "--to", str(tmp_path / name)]) == 0
    return tmp_path / name


def test_results_are_read_as_they_were_written(tmp_path):
    (run,) = results.read(pytest_file(tmp_path / "run.json", fastbn_cells()))
    results.write(tmp_path / "one.json", [run])
    (again,) = results.read(tmp_path / "one.json")
    assert again.machine == MACHINE
    assert [cell.key for cell in again.cells] == [cell.key for cell in run.cells]
    for kept, cell in zip(again.cells, run.cells, strict=True):
        assert kept.shape == cell.shape
        assert kept.bytes == cell.bytes  # whole numbers are not rounded
        assert kept.ratio_to_copy == 0.3333
        assert kept.seconds == pytest.approx(cell.seconds, rel=1e-3)
        assert kept.ratio_to_fastbn is None
    results.write(tmp_path / "two.json", [again])
    assert (tmp_path / "two.json").read_text() == (tmp_path / "one.json").read_text()


def test_results_have_a_line_for_each_cell_and_no_computer_name(tmp_path):
    text = recorded(tmp_path, fastbn_cells()).read_text()
    assert "name-of-this-computer" not in text
    for case in SHAPES:
        assert sum(json.dumps(case) in line for line in text.splitlines()) == 1
    assert set(json.loads(text)["runs"][0]["machine"]) == set(results.MACHINE)


def test_record_joins_runs_of_the_same_machine(tmp_path):
    cells = fastbn_cells()
    first = pytest_file(tmp_path / "1.json", cells[:5])
    second = pytest_file(tmp_path / "2.json", [cells[4] | {"ratio_to_copy": 7.0}, *cells[5:]])
    other = pytest_file(tmp_path / "3.json", cells, threads=1)
    files = [str(file) for file in (first, second, other)]
    assert main(["record", *files, "--to", str(tmp_path / "all.json")]) == 0
    both, single = results.read(tmp_path / "all.json")
    assert [cell.case for cell in both.cells] == list(SHAPES)
    assert both.cells[4].ratio_to_copy == 7.0
    assert single.machine["threads"] == 1


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"benchmarks": []}', '{"runs": [{}]}', "3"])
def test_files_of_other_things_are_refused(tmp_path, text, capsys):
    file = tmp_path / "file.json"
    file.write_text(text)
    assert main(["record", str(file), "--to", str(tmp_path / "to.json")]) == 2
    assert "holds no results" in capsys.readouterr().err


def test_a_cell_without_an_array_can_be_kept(tmp_path):
    start = {"operation": "start", "provider": "fastbn", "seconds": 0.41234567}
    (run,) = results.read(recorded(tmp_path, [start]))
    assert run.cells[0].seconds == 0.4123


def status(tmp_path, new, old, *options, **machine):
    """The exit status of a comparison."""
    baseline = recorded(tmp_path, old, "baseline.json")
    run = pytest_file(tmp_path / "run.json", new, **machine)
    command = ["compare", "--run", str(run), "--baseline", str(baseline), "--repeats", "0"]
    return main([*command, *options])


def test_nothing_is_slower_than_itself(tmp_path, tables, capsys):
    assert status(tmp_path, fastbn_cells(), fastbn_cells()) == 0
    assert "Slower: 0 of 8 cells" in capsys.readouterr().out


@pytest.mark.parametrize(("slowdown", "groups"), [(1.1, 0), (1.15, 1), (1.201, 2)])
def test_a_fifth_slower_is_slower(tmp_path, tables, capsys, slowdown, groups):
    """Of large arrays less is enough, because the same code varies less there."""
    assert status(tmp_path, fastbn_cells(slowdown), fastbn_cells()) == (1 if groups else 0)
    assert "Slower: 0 of 8 cells" in (printed := capsys.readouterr().out)
    assert f"{groups} of 2 groups" in printed


def test_twice_as_slow_is_slower_cell_by_cell(tmp_path, tables, capsys):
    assert status(tmp_path, fastbn_cells(2.0), fastbn_cells()) == 1
    printed = capsys.readouterr().out
    assert "Slower: 8 of 8 cells" in printed
    assert all(case in printed for case in SHAPES)


def test_all_cells_a_little_slower_are_slower_as_a_whole(tmp_path, tables, capsys):
    assert status(tmp_path, fastbn_cells(1.13), fastbn_cells()) == 1
    printed = capsys.readouterr().out
    assert "Slower: 0 of 8 cells" in printed
    (row,) = [line for line in printed.splitlines() if line.endswith("slower")]
    assert row.split("  ")[0] == "evaluation"
    assert " large " in row
    assert status(tmp_path, fastbn_cells(1.07), fastbn_cells()) == 0


def test_cells_in_cache_are_slower_as_a_whole_where_they_are_a_third_slower(tmp_path, tables):
    cells = fastbn_cells()
    for i, case in enumerate(SHAPES):
        if case in ("in cache", "audio"):
            cells[i] = measured(case, SHAPES[case], "fastbn out=", 1.3 / 3)
    assert status(tmp_path, cells, fastbn_cells()) == 1


def test_a_single_slow_cell_is_named_first(tmp_path, tables, capsys):
    cells = fastbn_cells()
    cells[5] = measured("audio", SHAPES["audio"], "fastbn out=", 0.75)
    assert status(tmp_path, cells, fastbn_cells()) == 1
    lines = capsys.readouterr().out.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("---")) + 1
    assert lines[first].startswith("audio")


def test_of_small_arrays_seconds_have_to_grow_as_well(tmp_path, tables):
    cells = fastbn_cells()
    cells[0] |= {"ratio_to_copy": 0.6, "seconds_of_copy": cells[0]["seconds_of_copy"] / 1.5}
    assert status(tmp_path, cells, fastbn_cells()) == 0


@pytest.mark.parametrize(
    ("machine", "message"),
    [({"cpu": "Other CPU"}, "on Some CPU, this run on Other CPU"), ({"threads": 8}, "8 threads")],
)
def test_another_machine_cannot_be_compared(tmp_path, capsys, machine, message):
    assert status(tmp_path, fastbn_cells(), fastbn_cells(), **machine) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "python -m benchmarks baseline" in printed


def test_another_machine_is_noticed_before_the_grid_is_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(grid, "run_grid", lambda: pytest.fail("measured"))
    baseline = recorded(tmp_path, fastbn_cells())
    assert main(["compare", "--baseline", str(baseline)]) == 2
    assert "the baseline was measured on Some CPU" in capsys.readouterr().err


def test_missing_cells_cannot_be_compared_and_more_are_left_out(tmp_path, tables, capsys):
    assert status(tmp_path, fastbn_cells()[1:], fastbn_cells()) == 2
    assert "lacks 1 cells" in capsys.readouterr().err
    assert status(tmp_path, fastbn_cells(), fastbn_cells()[1:]) == 0


def test_no_baseline(tmp_path, capsys):
    assert main(["compare", "--run", "x", "--baseline", str(tmp_path / "none.json")]) == 2
    assert "there is no baseline" in capsys.readouterr().err


def test_a_busy_machine_cannot_be_compared(tmp_path, tables, capsys):
    cells = fastbn_cells()
    cells[2] |= {"ratio_to_copy": 0.1, "seconds_of_copy": 3 * cells[2]["seconds_of_copy"]}
    assert status(tmp_path, cells, fastbn_cells()) == 2  # one cell of eight is too many
    assert "1 cells cannot be compared" in capsys.readouterr().err


def run_of(cells):
    return Run(MACHINE, tuple(results._cell(cell, f"test[{i}]") for i, cell in enumerate(cells)))


def test_what_looks_slower_is_measured_again(monkeypatch):
    """Noise goes away, a slow kernel stays; nothing else is measured again."""
    old = run_of(fastbn_cells())
    new = list(old.cells)
    for i, ratio in ((1, 0.7), (4, 0.8)):
        new[i] = replace(new[i], ratio_to_copy=ratio)
    asked = []

    def again(tests, run):
        asked.append(tests)
        found = [replace(c, ratio_to_copy=1 / 3) if c is new[4] else c for c in new]
        return Run(MACHINE, tuple(cell for cell in found if cell.test in tests))

    monkeypatch.setattr(grid, "measure_again", again)
    known = compare.compared(old.cells)
    grown = compare.settle([Run(MACHINE, tuple(new))], known, 4)
    assert set(asked[0]) >= {"test[1]", "test[4]"}
    assert "test[1]" in asked[-1]
    assert new[1].key in compare.slower(grown, known)
    assert new[4].key not in compare.slower(grown, known)


def test_every_clock_of_a_kind_of_array_counts():
    """What is slower by all of them is slower; by one of three it may be that clock."""
    (cell,) = [c for c in run_of(fastbn_cells()).cells if c.case == "large"]
    before = replace(cell, ratio_to_read=1.0)
    one = replace(before, ratio_to_read=1.2)
    every = replace(
        one,
        ratio_to_copy=1.2 * cell.ratio_to_copy,
        ratio_to_streaming_copy=1.2 * cell.ratio_to_streaming_copy,
    )
    assert compare.growth(one, before) == pytest.approx(1.2 ** (1 / 3))
    assert compare.growth(every, before) == pytest.approx(1.2)
    assert compare.growth(every, cell) == pytest.approx(1.2)  # a baseline without that clock
    of_statistics = [replace(c, operation="statistics") for c in (one, before)]
    assert compare.growth(*of_statistics) == 1.0  # timed by the copy alone


def test_of_several_runs_the_median_counts(tmp_path, tables):
    baseline = recorded(tmp_path, fastbn_cells(), "baseline.json")
    ratios = {"fast": 0.5, "usual": 1.0, "slow": 9.0}
    for name, slowdown in ratios.items():
        pytest_file(tmp_path / f"{name}.json", fastbn_cells(slowdown))

    def status_of(*names):
        files = [str(tmp_path / f"{name}.json") for name in names]
        return main(["compare", "--baseline", str(baseline), "--repeats", "0", "--run", *files])

    assert status_of("slow", "usual", "fast") == 0
    assert status_of("slow", "usual", "slow") == 1


def test_the_baseline_is_the_median_of_calm_runs():
    """A busy machine makes every ratio small; small arrays are judged by their seconds."""
    cells = fastbn_cells()
    busy = [c | {"ratio_to_copy": 0.1, "seconds_of_copy": 9 * c["seconds_of_copy"]} for c in cells]
    runs = [run_of(some) for some in (fastbn_cells(1.1), busy, cells)]
    assert {round(cell.ratio_to_copy, 3) for cell in compare.typical(runs).cells} == {0.333}
    assert [cell.case for cell in grid.disturbed(Run(MACHINE, runs[1].cells + runs[2].cells))] == [
        *SHAPES
    ]


def all_cells():
    shape, table = SHAPES["large"], SHAPES["long table"]
    return [
        *fastbn_cells(),
        measured("large", shape, "fastbn", 1.5),
        measured("large", shape, "torch", 4.5, ratio_to_fastbn=3.0),
        measured("large", shape, "JAX", 1.2, ratio_to_fastbn=0.8),
        measured("large", shape, "fastbn out=", 1.9, operation="training"),
        measured("long table", table, "fastbn", 1.0),
        measured("long table", table, "torch", 7.0, ratio_to_fastbn=7.0),
        {"operation": "start", "provider": "fastbn", "seconds": 0.5},
        {"operation": "start", "provider": "torch", "seconds": 2.0},
    ]


def outcome_of(name):
    (bar,) = [bar for bar in bars.BARS if bar.name == name]
    return bars.outcome(bar, run_of(all_cells()))


@pytest.mark.parametrize(
    ("name", "met", "reached", "worst"),
    [
        ("evaluation, channels first, beyond the last-level cache", True, 1 / 3, "large"),
        ("training, channels first, beyond the last-level cache", False, 1.9, "large"),
        ("training, channels first, in cache", None, None, None),
        ("evaluation, JAX: every cell", False, 0.8, "large"),
        ("evaluation, torch: every cell", True, 3.0, "large"),
        ("evaluation, torch: geometric mean", False, 21**0.5, "large"),
        ("process start to first result", True, 0.5, ""),
        ("process start to first result, part of torch's", True, 0.25, ""),
    ],
)
def test_bars(name, met, reached, worst):
    found = outcome_of(name)
    assert found.met is met
    assert found.reached == (None if reached is None else pytest.approx(reached))
    assert (found.worst and found.worst.case) == worst


def test_every_bar_has_a_name_of_its_own():
    assert len({bar.name for bar in bars.BARS}) == len(bars.BARS)


def test_page(tmp_path, tables):
    from benchmarks import report

    single = replace(run_of(fastbn_cells()), machine=MACHINE | {"threads": 1})
    text = report.page([single, run_of(all_cells())], "results.json", "picture.png")
    assert "Some CPU, 2 threads, last-level cache 32.0 MiB" in text
    assert "Not measured: NumPy, ONNX Runtime." in text
    assert "## Again with 1 thread" in text
    rows = [[part.strip() for part in line.split("|")] for line in text.splitlines()]
    assert ["", "large", "196", "0.33", "0.47", "1.50", "3.00", "**0.80**", ""] in rows
    bar = "training, channels first, beyond the last-level cache"
    assert [bar, "large float32 (1.90)", "**no**"] in [row[1:4] for row in rows]
    assert any(row[1:3] == ["evaluation", "JAX"] and "**0.80**" in row for row in rows)


def test_report_writes_page_and_picture(tmp_path, tables):
    pytest.importorskip("matplotlib", reason="the picture is made with matplotlib")
    file = recorded(tmp_path, all_cells())
    assert main(["report", "--results", str(file), "--to", str(tmp_path)]) == 0
    assert "(roofline.png)" in (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert (tmp_path / "roofline.png").read_bytes().startswith(b"\x89PNG")
