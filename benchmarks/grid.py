"""Runs of the grid, in processes of their own, and whether the machine was calm meanwhile."""

import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import results
from benchmarks.machine import machine
from benchmarks.results import ROOT, Cell, Run, Unusable

#: A copy that takes this many times as long as it can was measured beside other work. When that
#: takes a processor, every parallel call waits for it, and all ratios become 1.
BUSY = 1.6


def run_grid(tests: Sequence[str] = (), threads: int | None = None) -> Run:
    """Run the quick grid, or only ``tests`` by their ids, in a process of its own."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "run.json"
        command = [sys.executable, "-m", "pytest", *(tests or ["benchmarks"])]
        command += ["--quiet", "--benchmark-quiet", f"--benchmark-json={file}"]
        if tests:
            command.append("--grid=full")  # they may be of either
        if threads is not None:
            command.append(f"--threads={threads}")
        if subprocess.run(command, cwd=ROOT).returncode:
            raise Unusable("the benchmarks failed; their output is above")
        return results.read(file)[0]


def measure_again(tests: Sequence[str], run: Run) -> Run:
    """Measure ``tests`` as ``run`` was measured, on the same kind of machine."""
    here, there = machine(), run.machine
    if here["cpu"] != there["cpu"]:
        raise Unusable(f"the run was measured on {there['cpu']}, this is {here['cpu']}")
    return run_grid(tests, None if there["threads"] == here["threads"] else there["threads"])


def newest_autosave() -> Path:
    """The file that pytest-benchmark saved last."""
    found = list((ROOT / ".benchmarks").glob("*/*.json"))
    if not found:
        raise Unusable("no run is saved; `pytest benchmarks --benchmark-autosave` saves one")
    return max(found, key=lambda path: path.stat().st_mtime)


def disturbed(run: Run) -> list[Cell]:
    """Cells beside which a copy took much longer than beside others of the same array."""
    fastest: dict[tuple[str, str], float] = {}
    timed = [cell for cell in run.cells if cell.seconds_of_copy is not None]
    for cell in timed:
        array = cell.case, cell.dtype
        fastest[array] = min(fastest.get(array, cell.seconds_of_copy), cell.seconds_of_copy)
    return [c for c in timed if c.seconds_of_copy > BUSY * fastest[c.case, c.dtype]]


def calmer(run: Run) -> Run:
    """``run`` with its disturbed cells measured again, where that was calmer."""
    tests = [cell.test for cell in disturbed(run) if cell.test]
    if not tests:
        return run
    print(f"{len(tests)} cells were measured beside other work. Again:", flush=True)
    cells = run.by_key()
    for cell in measure_again(tests, run).cells:
        if cell.seconds_of_copy < cells[cell.key].seconds_of_copy:
            cells[cell.key] = cell
    return replace(run, cells=tuple(cells.values()))


def calm(cells: Iterable[Cell]) -> list[Cell]:
    """Of measurements of one cell those that were not disturbed."""
    cells = list(cells)
    fastest = min(cell.seconds_of_copy for cell in cells)
    return [cell for cell in cells if cell.seconds_of_copy <= BUSY * fastest]
