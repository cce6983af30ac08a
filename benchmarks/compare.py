"""Is it slower than it was? New runs of the quick grid against the committed baseline.

Copies and reads beside each call take out most of what a shared machine does to its time, not
all: where an array lies in memory and who else uses it make a cell of a large array 5 % slower or
faster from one process to the next, of one that is in cache 5 to 20 %. So a cell is measured in
several processes and their median counts, and cells are judged together.
"""

import statistics
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from benchmarks import grid, results
from benchmarks.machine import machine
from benchmarks.results import Cell, Run, Unusable

#: What a cell is timed by, for each kind of array: the geometric mean of its ratios to these.
CLOCKS = {"large": ("copy", "streaming_copy", "read"), "in cache": ("copy", "read")}
#: The clock that varied least with statistics of large arrays, which read alone; by all three
#: the same code gave up to 1.12.
STATISTICS_CLOCKS = ("copy",)
#: How many times as long all cells of an operation, layout and kind of array may take together,
#: by geometric mean. Any three of ten runs of the same code gave at most 1.07 for large arrays
#: (1.10 for their statistics), and 1.07 (evaluation) to 1.16 (statistics) for those in cache.
GROUP_GROWTH = {"large": 1.12, "in cache": 1.2}
GROUP_CELLS = 2
#: One cell alone counts only when it is off by more.
CELL_GROWTH = 1.5
#: In how many processes the grid is measured, and how many more times what looks slower then.
RUNS, REPEATS = 3, 4
#: Arrays below this take as long as a few Python calls. Beside other work a copy of so little
#: slows down more than fastbn does, so that the ratio falls; on a calm machine the seconds are
#: stable to a few percent. So both have to grow, and such cells are not judged together.
SMALL_BYTES = 256 * 1024
#: x and an output of more than this are in no cache of a usual machine.
LARGE_BYTES = 32 * 2**20
#: Part of the cells that a machine may have been too busy for.
MOST_UNSURE = 0.1
#: Rows of the table when nothing is slower.
FEW = 5

Key = tuple[str, ...]
Group = tuple[str, str, str]
#: How many times as long as before a cell takes; None where the machine was too busy to say.
Growths = dict[Key, float | None]

WAY_OUT = "`python -m benchmarks baseline` makes a new baseline"


def compared(cells: Iterable[Cell]) -> dict[Key, Cell]:
    """The cells that can be compared: those that were measured next to a copy."""
    return {c.key: c for c in cells if c.ratio_to_copy is not None and c.seconds_of_copy}


def growth(new: Cell, old: Cell) -> float | None:
    """How many times as long as before, by the clocks of that kind of array."""
    if len(grid.calm([new, old])) < 2:
        return None
    ratio = new.ratio_to_copy / old.ratio_to_copy
    if new.bytes < SMALL_BYTES:
        return min(ratio, new.seconds / old.seconds)
    pairs = [
        (getattr(cell, f"ratio_to_{clock}") for cell in (new, old)) for clock in clocks_of(new)
    ]
    return statistics.geometric_mean(now / before for now, before in pairs if now and before)


def clocks_of(cell: Cell) -> tuple[str, ...]:
    """What an array that is not small is timed by."""
    kind = kind_of(cell)
    if (cell.operation, kind) == ("statistics", "large"):
        return STATISTICS_CLOCKS
    return CLOCKS[kind]


def kind_of(cell: Cell) -> str:
    """Whether x and an output fit into the last-level cache; "small" is neither."""
    if cell.bytes < SMALL_BYTES:
        return "small"
    return "large" if 2 * cell.bytes > LARGE_BYTES else "in cache"


def group_of(cell: Cell) -> Group:
    """Operation, layout, and kind of array."""
    layout = "channels first" if cell.layout == "channels first" else "channels last"
    return cell.operation, layout, kind_of(cell)


def limit_of(group: Group) -> float | None:
    """What counts as slower for a group; None if its cells are not judged together."""
    return GROUP_GROWTH.get(group[2])


def by_group(grown: Growths, cells: dict[Key, Cell]) -> dict[Group, float]:
    """The geometric mean of each group that has a limit and several cells."""
    found: dict[Group, list[float]] = {}
    for key, g in grown.items():
        if g is not None:
            found.setdefault(group_of(cells[key]), []).append(g)
    return {
        group: statistics.geometric_mean(g)
        for group, g in found.items()
        if limit_of(group) and len(g) >= GROUP_CELLS
    }


def slower(grown: Growths, cells: dict[Key, Cell]) -> list[Key]:
    """Cells that are slower, and all cells of groups that are slower as a whole."""
    means = by_group(grown, cells)
    slow = {group for group, mean in means.items() if mean > limit_of(group)}
    return [
        k for k, g in grown.items()
        if g is not None and (g > CELL_GROWTH or group_of(cells[k]) in slow)
    ]  # fmt: skip


def unsure(grown: Growths) -> list[Key]:
    """Cells that were measured on a machine too busy to say."""
    return [key for key, g in grown.items() if g is None]


def check_machines(new: dict, old: dict) -> None:
    """Refuse to compare what cannot be compared."""
    for name, words in (("cpu", "on {}"), ("threads", "with {} threads")):
        if new[name] != old[name]:
            raise Unusable(
                f"the baseline was measured {words.format(old[name])}, this run "
                f"{words.format(new[name])}; {WAY_OUT}"
            )


def check_cells(new: dict[Key, Cell], old: dict[Key, Cell], more: bool) -> None:
    """Refuse a run without cells of the baseline, or with ``more`` unless that is wanted."""
    absent = [key for key in old if key not in new]
    unknown = [] if more else [key for key in new if key not in old]
    for keys, words in ((absent, "the run lacks"), (unknown, "the baseline lacks")):
        if keys:
            example = " ".join(keys[0])
            raise Unusable(f"{words} {len(keys)} cells of the other, such as {example}; {WAY_OUT}")


def growths(runs: list[dict[Key, Cell]], old: dict[Key, Cell]) -> Growths:
    """The median over all runs that measured a cell and were calm."""
    found: Growths = {}
    for key, cell in old.items():
        each = [growth(run[key], cell) for run in runs if key in run]
        sure = [g for g in each if g is not None]
        found[key] = statistics.median(sure) if sure else None
    return found


def settle(runs: list[Run], old: dict[Key, Cell], repeats: int) -> Growths:
    """Measure what is slower or unsure again, up to ``repeats`` times, until it is not."""
    measured = [compared(run.cells) for run in runs]
    grown = growths(measured, old)
    for attempt in range(repeats):
        keys = slower(grown, old) + unsure(grown)
        if not keys:
            break
        print(
            f"{len(keys)} cells look slower, or were measured beside other work. "
            f"Again ({attempt + 1} of {repeats}):",
            flush=True,
        )
        repeated = grid.measure_again([measured[0][key].test for key in keys], runs[0])
        check_machines(repeated.machine, runs[0].machine)
        measured.append(compared(repeated.cells))
        grown = growths(measured, old)
    return grown


def run_again_and_again(count: int) -> list[Run]:
    """The quick grid, ``count`` times."""
    runs = []
    for i in range(count):
        print(f"Run {i + 1} of {count}:", flush=True)
        runs.append(grid.run_grid())
    return runs


def compare(
    run_files: list[Path], baseline_file: Path, repeats: int = REPEATS, all_cells: bool = False
) -> bool:
    """Print how runs compare with the baseline, and return whether nothing is slower.

    Without files they are measured.
    """
    if not baseline_file.exists():
        raise Unusable(f"there is no baseline {baseline_file.name}; {WAY_OUT}")
    baseline = results.read(baseline_file)[0]
    if not run_files:
        check_machines(machine(), baseline.machine)  # before the minutes that the grid takes
        runs = run_again_and_again(RUNS)
    else:
        runs = [results.read(file)[0] for file in run_files]
    old = compared(baseline.cells)
    for run in runs:
        check_machines(run.machine, baseline.machine)
        check_cells(compared(run.cells), old, more=bool(run_files))
    can_repeat = all(compared(runs[0].cells)[key].test for key in old)  # not in what `record` wrote
    grown = settle(runs, old, repeats if can_repeat else 0)
    print(summary(grown, old, baseline, runs[0], all_cells))
    fine = not slower(grown, old)
    if fine and len(unsure(grown)) > MOST_UNSURE * len(grown):
        raise Unusable(
            f"{len(unsure(grown))} cells cannot be compared: the copies beside them took another "
            f"time than in the baseline. Leave the machine alone and try again; if that does not "
            f"help, it is another machine: {WAY_OUT}"
        )
    return fine


def summary(grown: Growths, old: dict[Key, Cell], baseline: Run, run: Run, all_cells: bool) -> str:
    """What was found, in words and tables; the worst cells first."""
    from tabulate import tabulate

    means = by_group(grown, old)
    known = sorted((key for key in grown if grown[key] is not None), key=grown.get, reverse=True)
    slow = sum(grown[key] > CELL_GROWTH for key in known)
    failed = sum(mean > limit_of(group) for group, mean in means.items())
    shown = known if all_cells else known[: max(FEW, slow)]

    def mark(value: float, limit: float) -> str:
        return "slower" if value > limit else ""

    cells = [(*key, f"{grown[key]:.2f}", mark(grown[key], CELL_GROWTH)) for key in shown]
    cells += [(*key, "?", "machine busy") for key in unsure(grown)]
    groups = [
        (*group, f"{mean:.3f}", limit_of(group), mark(mean, limit_of(group)))
        for group, mean in means.items()
    ]
    head = ["case", "dtype", "operation", "provider", "times as long", ""]
    means_head = ["operation", "layout", "arrays", "geometric mean", "limit", ""]
    return "\n\n".join([
        f"Times as long as in the baseline of {baseline.machine['date']}, relative to a copy:",
        tabulate(cells, head, disable_numparse=True),
        *([tabulate(groups, means_head, disable_numparse=True)] if groups else []),
        *changed_versions(run, baseline),
        f"Slower: {slow} of {len(known)} cells (more than {CELL_GROWTH} times as long), "
        f"{failed} of {len(means)} groups.",
    ])  # fmt: skip


def changed_versions(run: Run, baseline: Run) -> list[str]:
    """A sentence about what else is not as it was."""
    before, now = baseline.machine["versions"], run.machine["versions"]
    used = ("python", "fastbn", "numba", "numpy")
    changed = [f"{p} {before.get(p)} -> {now.get(p)}" for p in used if before.get(p) != now.get(p)]
    return [f"Other versions than the baseline's: {', '.join(changed)}."] if changed else []


def typical(runs: list[Run]) -> Run:
    """Of each cell the median of the calm runs: by its ratio to a copy; if small, by its seconds.

    Not the best: a new run would hardly ever be as lucky.
    """

    def median_of(cells: list[Cell]) -> Cell:
        calm = grid.calm(cells)
        calm.sort(key=lambda c: c.seconds if c.bytes < SMALL_BYTES else c.ratio_to_copy)
        return calm[(len(calm) - 1) // 2]

    measured = [compared(run.cells) for run in runs]
    cells = [median_of([found[key] for found in measured]) for key in measured[0]]
    return replace(runs[-1], cells=tuple(cells))


def make_baseline(to: Path, count: int) -> None:
    """Run the quick grid ``count`` times and keep the median of each cell."""
    runs = run_again_and_again(count)
    results.write(to, [typical(runs)])
    print(f"Written: {to}, {len(compared(runs[0].cells))} cells.")
