"""Is the working tree slower than another commit? Both are measured here and now, side by side.

Each round starts a process of either commit. They take turns, cell by cell: what the machine does
meanwhile is the same for both. What differs from process to process, such as where arrays lie in
memory, differs from round to round. So a round gives one ratio per cell, and three quarters of
the rounds must agree. `RULE` is the rule.
"""

import itertools
import json
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from tabulate import tabulate

from benchmarks import results, trees
from benchmarks.problem import LARGE, QUICK
from benchmarks.results import Unusable
from benchmarks.trees import Tree
from tests.cases import Case

#: How many times as long a cell, or the geometric mean of an operation's cells, may take.
CELL, OPERATION = 1.05, 1.02
RULE = (
    f"A cell is slower if it takes more than {CELL} times as long as before in at least three "
    f"rounds of four, an operation if the geometric mean of its cells takes more than {OPERATION} "
    "times as long in as many, and either only if it does so again when it is measured again."
)
#: Nothing can be told where half of the cells differ by more from one round to the next.
NOISE = 0.1
#: The mean of fewer cells is not that of an operation.
LEAST_CELLS = 5
ROUNDS, SECONDS = 8, 0.03
QUICK_ROUNDS, QUICK_SECONDS = 4, 0.015
#: How often the two change turns within a cell.
TURNS = 3
#: Rows of the table if less than that is slower.
FEW = 10


@dataclass(frozen=True)
class Cell:
    """What is timed: one operation on arrays of one shape, layout and dtype."""

    operation: str
    dtype: str
    case: Case

    def __str__(self) -> str:
        return f"{self.operation}, {self.case.name} {self.dtype}"


#: Of each cell the seconds that the old and the new tree took, round by round.
Times = dict[Cell, list[tuple[float, float]]]


def grid(quick: bool = False, pattern: str = "") -> list[Cell]:
    """The quick grid in both dtypes, large arrays in float32 alone; and calls of layers."""
    found = []
    for case in QUICK:
        large = case.size > LARGE
        if quick and large:
            continue
        for dtype in ("float32",) if quick or large else ("float32", "float64"):
            operations = ["evaluation"]
            if case.count > 1:
                operations += ["training", "backward", "statistics"]
            if case.size <= 2**10 and dtype == "float32":
                operations += ["layer evaluation", "layer step"][: 1 + (case.count > 1)]
            found += [Cell(operation, dtype, case) for operation in operations]
    chosen = [cell for cell in found if fnmatchcase(str(cell), f"*{pattern}*")]
    if not chosen:
        raise Unusable(f"no cell is called *{pattern}*; `--show all` shows what they are called")
    return chosen


# --- measuring --------------------------------------------------------------------------------


class Worker:
    """A process that times cells in one tree."""

    def __init__(self, tree: Tree, threads: int) -> None:
        self._tree = tree
        shutil.copy(Path(__file__).with_name("worker.py"), tree.folder)
        self._process = subprocess.Popen(
            [sys.executable, "worker.py", str(threads)], cwd=tree.folder, text=True,
            env=tree.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.communicate()

    def ask(self, cell: Cell, seconds: float) -> None:
        """Let it time a cell for so long."""
        request = [cell.operation, cell.dtype, cell.case.shape, cell.case.axis, seconds]
        print(json.dumps(request), file=self._process.stdin, flush=True)

    def answer(self) -> float | str:
        """The seconds of the fastest call, or what the tree cannot do."""
        line = self._process.stdout.readline()
        if not line:
            raise Unusable(f"the process that measures {self._tree.name} has ended")
        return json.loads(line)

    def time(self, cell: Cell, seconds: float) -> float:
        self.ask(cell, seconds)
        return self.answer()


def compiled(old: Tree, new: Tree, cells: Sequence[Cell], threads: int) -> list[Cell]:
    """Let both compile all that the cells need; those that both can do are returned."""
    from fastbn._system.progress import track

    able = []
    with Worker(old, threads) as before, Worker(new, threads) as now:
        for cell in track(cells, "compiling"):
            before.ask(cell, 0)
            now.ask(cell, 0)
            old_answer, new_answer = before.answer(), now.answer()
            if isinstance(new_answer, str):
                raise Unusable(f"{cell}: {new_answer}")
            if isinstance(old_answer, str):
                print(f"Left out: {cell}; {old.name} cannot do it ({old_answer}).")
            else:
                able.append(cell)
    if not able:
        raise Unusable(f"{old.name} can do none of it")
    return able


def measured(
    old: Tree, new: Tree, cells: Sequence[Cell], threads: int, rounds: int, seconds: float
) -> Times:
    """The times of all cells, in fresh processes each round."""
    from fastbn._system.progress import Progress

    times: Times = {cell: [] for cell in cells}
    with Progress(rounds * len(cells), "measuring") as progress:
        for first in range(rounds):
            with Worker(old, threads) as before, Worker(new, threads) as now:
                for cell in cells:
                    times[cell].append(_in_turn((before, now), cell, seconds, first))
                    progress.advance()
    return times


def _in_turn(
    workers: tuple[Worker, Worker], cell: Cell, seconds: float, first: int
) -> tuple[float, float]:
    """The best of some turns each; who begins changes every turn and every round."""
    best = [math.inf, math.inf]
    for turn in range(TURNS):
        for k in (0, 1) if (first + turn) % 2 == 0 else (1, 0):
            best[k] = min(best[k], workers[k].time(cell, seconds / TURNS))
    return best[0], best[1]


# --- judging ----------------------------------------------------------------------------------


def ratios(rounds: Iterable[tuple[float, float]]) -> list[float]:
    """How many times as long as before, in each round."""
    return [new / old for old, new in rounds]


def agreed(ratios: Iterable[float]) -> float:
    """What at least three ratios of four reach."""
    ordered = sorted(ratios)
    return ordered[len(ordered) // 4]


def noise(rounds: Sequence[tuple[float, float]]) -> float:
    """How much the same code differs from one round to the next: 0.1 is a tenth."""
    logs = [[math.log(seconds) for seconds in tree] for tree in zip(*rounds, strict=True)]
    steps = [abs(b - a) for tree in logs for a, b in itertools.pairwise(tree)]
    return math.expm1(statistics.median(steps)) if steps else math.nan


def too_noisy(times: Times) -> bool:
    """Whether what else the machine does hides what is slower."""
    return statistics.median(map(noise, times.values())) > NOISE


def means(times: Times) -> dict[str, list[float]]:
    """The geometric mean of the ratios of each operation's cells, in each round."""
    cells: dict[str, list[list[float]]] = {}
    for cell, rounds in times.items():
        cells.setdefault(cell.operation, []).append(ratios(rounds))
    return {
        operation: [statistics.geometric_mean(each) for each in zip(*found, strict=True)]
        for operation, found in cells.items()
        if len(found) >= LEAST_CELLS
    }


def slower(times: Times) -> tuple[list[Cell], list[str]]:
    """The cells and operations that are slower in three rounds of four."""
    return (
        [cell for cell, rounds in times.items() if agreed(ratios(rounds)) > CELL],
        [operation for operation, mean in means(times).items() if agreed(mean) > OPERATION],
    )


def judged(times: Times, measure_again) -> tuple[Times, list[Cell], list[str]]:
    """By `RULE`: the times that count, and the cells and operations that are slower.

    ``measure_again`` takes cells and returns their new `Times`.
    """
    cells, operations = slower(times)
    again = [cell for cell in times if cell in cells or cell.operation in operations]
    if again:
        times = {**times, **measure_again(again)}
    cells_again, operations_again = slower(times)
    return (
        times,
        [cell for cell in cells if cell in cells_again],
        [operation for operation in operations if operation in operations_again],
    )


# --- telling ----------------------------------------------------------------------------------


def report(times: Times, cells: list[Cell], operations: list[str], show_all: bool) -> str:
    """Tables of the operations and of the worst cells, and what is slower."""

    def row(found: list[float], slow: bool) -> list[str]:
        ratio = statistics.median(found)
        return [f"{ratio:.3f}", f"{agreed(found):.3f}", "slower" if slow else ""]

    in_order = sorted(times, key=lambda cell: agreed(ratios(times[cell])), reverse=True)
    shown = in_order if show_all else in_order[: max(FEW, len(cells))]
    cell_rows = []
    for cell in shown:
        old, new = (statistics.median(tree) for tree in zip(*times[cell], strict=True))
        text = f"{cell.case.name} {cell.dtype}"
        seconds = [f"{old * 1e6:.4g}", f"{new * 1e6:.4g}", f"{noise(times[cell]):.1%}"]
        cell_rows.append([cell.operation, text, *seconds, *row(ratios(times[cell]), cell in cells)])
    mean_rows = [
        [name, str(sum(cell.operation == name for cell in times)), *row(mean, name in operations)]
        for name, mean in means(times).items()
    ]
    head = ["ratio", "in 3 of 4", ""]
    cell_head = ["operation", "cell", "old µs", "new µs", "noise", *head]
    tables = [tabulate(cell_rows, cell_head, disable_numparse=True)]
    if mean_rows:
        mean_head = ["operation", "cells", *head]
        tables.append(tabulate(mean_rows, mean_head, disable_numparse=True))
    return "\n\n".join([
        *tables,
        "ratio: the median round's; in 3 of 4: what at least three rounds of four reach; noise: "
        "what the same code differs by from one round to the next.\n" + RULE,
        f"Slower: {len(cells)} of {len(times)} cells, {len(operations)} of {len(mean_rows)} "
        "operations.",
    ])  # fmt: skip


def compare(
    ref: str, cells: Sequence[Cell], threads: int, rounds: int, seconds: float, show_all: bool
) -> bool:
    """Print how the working tree compares with a commit; whether nothing is slower."""
    with tempfile.TemporaryDirectory() as folder:
        old = trees.commit(ref, Path(folder) / "old")
        new = trees.working_tree(Path(folder) / "new")
        able = compiled(old, new, cells, threads)
        print(
            f"{new.name} against {old.name}, {results.cpu_model()}, "
            f"threads: {threads or 'all'}, cells: {len(able)}, rounds: {rounds}.",
            flush=True,
        )

        def measure(some: Sequence[Cell]) -> Times:
            return measured(old, new, some, threads, rounds, seconds)

        def measure_again(some: Sequence[Cell]) -> Times:
            print(f"Measured again, alone or with their operation: {len(some)} cells.", flush=True)
            return measure(some)

        times, slow_cells, slow_operations = judged(measure(able), measure_again)
    print(report(times, slow_cells, slow_operations, show_all))
    fine = not (slow_cells or slow_operations)
    if fine and too_noisy(times):
        raise Unusable(
            "no cell is found slower, but the machine is too busy to tell: half of the cells "
            f"differ by more than {NOISE:.0%} from one round to the next"
        )
    return fine
