"""What ``python -m benchmarks`` makes of measurements, on made-up ones."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import bars, compare, results
from benchmarks.__main__ import main
from benchmarks.compare import Cell
from benchmarks.results import Run
from tests.cases import Case

MIB = 2**20
MACHINE = {
    "cpu": "Some CPU",
    "last_level_cache": 32 * MIB,
    "threads": 2,
    "versions": {"python": "3.11.7", "fastbn": "0.1.0", "numba": "0.61.0", "numpy": "2.0.0"},
    "date": "2025-01-31",
}


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


# --- compare: the rule ------------------------------------------------------------------------

CELLS = [
    Cell(operation, dtype, case)
    for case in (Case("small", (8, 16)), Case("middle", (4, 5, 60)), Case("large", (9, 9, 999)))
    for operation in ("evaluation", "training")
    for dtype in ("float32", "float64")
]


def times(slowdown=lambda cell: 1.0, noise=0.0, rounds=8, seed=0):
    """Rounds of made-up cells, of which some are slower; the noise is that of a ratio."""
    rng = np.random.default_rng(seed)
    found = {}
    for i, cell in enumerate(CELLS):
        old = 1e-6 * 10**i * np.exp(noise / 2**0.5 * rng.standard_normal(rounds))
        new = 1e-6 * 10**i * np.exp(noise / 2**0.5 * rng.standard_normal(rounds)) * slowdown(cell)
        found[cell] = list(zip(old.tolist(), new.tolist(), strict=True))
    return found


def never(cells):
    pytest.fail(f"measured again: {cells}")


def test_the_same_is_not_slower():
    assert compare.judged(times(), never)[1:] == ([], [])


@pytest.mark.parametrize("seed", range(20))
def test_noise_of_a_tenth_is_not_slower(seed):
    new = iter(range(1000 + seed, 9000, 1000))

    def again(cells):
        return {cell: times(noise=0.1, seed=next(new))[cell] for cell in cells}

    _, cells, operations = compare.judged(times(noise=0.1, seed=seed), again)
    assert (cells, operations) == ([], [])


@pytest.mark.parametrize("seed", range(5))
def test_a_fifth_slower_is_found_in_noise(seed):
    slow = CELLS[seed]

    def slowdown(cell):
        return 1.2 if cell == slow else 1.0

    def again(cells):
        return {cell: times(slowdown, 0.05, seed=100 + seed)[cell] for cell in cells}

    _, cells, _ = compare.judged(times(slowdown, 0.05, seed=seed), again)
    assert cells == [slow]


@pytest.mark.parametrize(("slowdown", "slow"), [(1.049, False), (1.051, True)])
def test_what_a_cell_may_take(slowdown, slow):
    found = times(lambda cell: slowdown if cell == CELLS[3] else 1.0)
    assert compare.slower(found)[0] == ([CELLS[3]] if slow else [])


@pytest.mark.parametrize(("slowdown", "slow"), [(1.019, []), (1.021, ["training"])])
def test_what_an_operation_may_take(slowdown, slow):
    found = times(lambda cell: slowdown if cell.operation == "training" else 1.0)
    assert compare.slower(found) == ([], slow)


def test_the_mean_of_few_cells_is_none_of_an_operation():
    found = times(lambda cell: 1.04)
    few = {cell: found[cell] for cell in CELLS[:4]}
    assert compare.slower(few) == ([], [])


@pytest.mark.parametrize(
    ("ratios", "figure"),
    [
        ([1.3], 1.3), ([1.1, 1.2], 1.1), ([0.9, 1.1, 1.2, 1.3], 1.1),
        ([9.0, 0.9, 1.1, 1.2, 0.8, 1.3, 1.4, 1.5], 1.1), ([0.9, 0.9, 1.1, 1.2], 0.9),
    ],
)  # fmt: skip
def test_three_rounds_of_four_must_agree(ratios, figure):
    assert compare.agreed(ratios) == figure


def test_what_looks_slower_is_measured_again_and_nothing_else():
    """The cell alone; for an operation all of its cells."""
    asked = []

    def again(cells):
        asked.append(cells)
        fine = times()
        return {cell: fine[cell] for cell in cells}

    for slow in CELLS[5:6], [cell for cell in CELLS if cell.operation == "training"]:
        found = times(lambda cell, slow=slow: 1.1 if cell in slow else 1.0)
        counted, cells, operations = compare.judged(found, again)
        assert (cells, operations) == ([], [])
        assert counted == times()
        assert asked.pop() == slow


def test_the_operation_of_one_very_slow_cell_is_slower_too():
    found = times(lambda cell: 1.3 if cell == CELLS[0] else 1.0)
    _, cells, operations = compare.judged(found, lambda cells: {c: found[c] for c in cells})
    assert (cells, operations) == ([CELLS[0]], ["evaluation"])


def test_noise_is_that_of_one_tree():
    """A slower tree is no noise, nor is one round."""
    assert compare.noise([(1.0, 2.0)] * 4) == 0
    assert compare.noise([(1.0, 2.0), (1.1, 2.2), (1.0, 2.0)]) == pytest.approx(0.1)
    assert math.isnan(compare.noise([(1.0, 2.0)]))


def test_on_a_busy_machine_nothing_can_be_told():
    assert not compare.too_noisy(times(noise=0.02))
    assert compare.too_noisy(times(noise=0.5))


def test_report_names_what_is_slower_first(tables):
    found = times(lambda cell: 1.1 if cell == CELLS[7] else 1.0)
    lines = compare.report(found, [CELLS[7]], [], show_all=False).splitlines()
    assert lines[2].startswith("training")
    assert "middle float64" in lines[2]
    assert lines[2].endswith("slower")
    assert lines[-1] == "Slower: 1 of 12 cells, 0 of 2 operations."
    every = compare.report(found, [], [], show_all=True)
    assert all(f"{cell.case.name} {cell.dtype}" in every for cell in CELLS)


def test_the_grid_has_every_operation_dtype_and_layout():
    found = compare.grid()
    assert len(set(map(str, found))) == len(found)
    for operation in ("evaluation", "training", "backward", "statistics"):
        own = {
            (cell.dtype, len(cell.case.shape) == 2, cell.case.axis)
            for cell in found
            if cell.operation == operation
        }
        assert len(own) == 6
    assert {"layer evaluation", "layer step"} < {cell.operation for cell in found}
    quick = compare.grid(quick=True)
    assert set(quick) < set(found)
    assert {cell.dtype for cell in quick} == {"float32"}


def test_cells_are_chosen_by_a_part_of_their_name(capsys):
    assert {cell.case.name for cell in compare.grid(pattern="training*8x16")} == {"table: 8x16"}
    assert main(["compare", "HEAD", "--cells", "no such cell"]) == 2
    assert "no cell is called" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["compare", "cold"])
def test_the_rule_is_in_the_help(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    rule = {"compare": compare.RULE, "cold": "1.25 times its processor time"}
    assert rule[command] in text


# --- the report ---------------------------------------------------------------------------------


def run_of(cells):
    return Run(MACHINE, tuple(map(results._cell, cells)))


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


@pytest.mark.compiled
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("parallel", [False, True])
def test_copies_copy(rng, streaming, parallel):
    from benchmarks.copies import COPIERS, aligned

    source = rng.standard_normal(100_003).astype(np.float32)[1:]
    target = aligned(source)
    target[...] = 0
    lines = source.nbytes // 64
    COPIERS[streaming, parallel](target.ctypes.data, source.ctypes.data, lines)
    assert np.array_equal(target[: 16 * lines], source[: 16 * lines])
    assert not target[16 * lines :].any()
