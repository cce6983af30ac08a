"""Is it slower than it was? A new run of the quick grid against the committed baseline."""

import statistics
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from benchmarks import grid, results
from benchmarks.machine import machine
from benchmarks.results import Cell, Run, Unusable

#: All cells of an operation and layout together, relative to a copy: their errors cancel for the
#: most part, so that a kernel that is a fifth slower stands out.
GROUP_GROWTH = 1.10
GROUP_CELLS = 3
#: One cell alone on a shared machine is off by a fifth at times, where its array just fits into a
#: cache by a third: alone it counts only when it is off by more, again and again.
CELL_GROWTH = 1.5
#: How many more times a suspect is measured. Noise goes away, a slower kernel stays.
REPEATS = 3
#: Arrays below this take as long as a few Python calls. Beside other work a copy of so little
#: slows down more than fastbn does, so that the ratio falls; on a calm machine the seconds are
#: stable to a few percent. So both have to grow.
SMALL_BYTES = 256 * 1024
#: Part of the cells that a machine may have been too busy for.
MOST_UNSURE = 0.1
#: Rows of the table when nothing is slower.
FEW = 5

Key = tuple[str, ...]
#: How many times as long as before a cell takes; None where the machine was too busy to say.
Growths = dict[Key, float | None]

WAY_OUT = "`python -m benchmarks baseline` makes a new baseline"


def compared(cells: Iterable[Cell]) -> dict[Key, Cell]:
    """The cells that can be compared: those that were measured next to a copy."""
    return {c.key: c for c in cells if c.ratio_to_copy is not None and c.seconds_of_copy}


def growth(new: Cell, old: Cell) -> float | None:
    """How many times as long as before, by the clock that a copy is."""
    if len(grid.calm([new, old])) < 2:
        return None
    ratio = new.ratio_to_copy / old.ratio_to_copy
    return min(ratio, new.seconds / old.seconds) if new.bytes < SMALL_BYTES else ratio


def group_of(key: Key) -> str:
    """Operation and layout of a cell."""
    last = key[0].endswith(" last") or key[0].startswith("table")
    return f"{key[2]}, {'channels last' if last else 'channels first'}"


def by_group(grown: Growths) -> dict[str, float]:
    """The geometric mean of each operation and layout that has several cells."""
    found: dict[str, list[float]] = {}
    for key, g in grown.items():
        if g is not None:
            found.setdefault(group_of(key), []).append(g)
    return {
        group: statistics.geometric_mean(g) for group, g in found.items() if len(g) >= GROUP_CELLS
    }


def slower(grown: Growths) -> list[Key]:
    """Cells that are slower, and all cells of groups that are slower as a whole."""
    slow = {name for name, mean in by_group(grown).items() if mean > GROUP_GROWTH}
    return [
        k for k, g in grown.items() if g is not None and (g > CELL_GROWTH or group_of(k) in slow)
    ]


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


def settle(new: dict[Key, Cell], old: dict[Key, Cell], run: Run, repeats: int) -> Growths:
    """Measure again what is slower or unsure, keeping the smallest growth of each cell."""
    grown = {key: growth(new[key], old[key]) for key in old}
    for attempt in range(repeats):
        keys = slower(grown) + unsure(grown)
        if not keys:
            break
        print(
            f"{len(keys)} cells look slower, or were measured beside other work. "
            f"Again ({attempt + 1} of {repeats}):",
            flush=True,
        )
        repeated = grid.measure_again([new[key].test for key in keys], run)
        check_machines(repeated.machine, run.machine)
        for key, cell in compared(repeated.cells).items():
            both = [g for g in (grown[key], growth(cell, old[key])) if g is not None]
            grown[key] = min(both, default=None)
    return grown


def compare(
    run_file: Path | None, baseline_file: Path, repeats: int = REPEATS, all_cells: bool = False
) -> bool:
    """Print how a run compares with the baseline, and return whether nothing is slower."""
    if not baseline_file.exists():
        raise Unusable(f"there is no baseline {baseline_file.name}; {WAY_OUT}")
    baseline = results.read(baseline_file)[0]
    if run_file is None:
        check_machines(machine(), baseline.machine)  # before the minute that the grid takes
        run = grid.run_grid()
    else:
        run = results.read(run_file)[0]
    check_machines(run.machine, baseline.machine)
    new, old = compared(run.cells), compared(baseline.cells)
    check_cells(new, old, more=run_file is not None)
    can_repeat = all(new[key].test for key in old)  # not in what `record` wrote
    grown = settle(new, old, run, repeats if can_repeat else 0)
    print(summary(grown, baseline, run, all_cells))
    fine = not slower(grown)
    if fine and len(unsure(grown)) > MOST_UNSURE * len(grown):
        raise Unusable(
            f"{len(unsure(grown))} cells cannot be compared: the copies beside them took another "
            f"time than in the baseline. Leave the machine alone and try again; if that does not "
            f"help, it is another machine: {WAY_OUT}"
        )
    return fine


def summary(grown: Growths, baseline: Run, run: Run, all_cells: bool) -> str:
    """What was found, in words and tables; the worst cells first."""
    from tabulate import tabulate

    means = by_group(grown)
    known = sorted((key for key in grown if grown[key] is not None), key=grown.get, reverse=True)
    slow = sum(grown[key] > CELL_GROWTH for key in known)
    failed = sum(mean > GROUP_GROWTH for mean in means.values())
    shown = known if all_cells else known[: max(FEW, slow)]

    def mark(value: float, limit: float) -> str:
        return "slower" if value > limit else ""

    cells = [(*key, f"{grown[key]:.2f}", mark(grown[key], CELL_GROWTH)) for key in shown]
    cells += [(*key, "?", "machine busy") for key in unsure(grown)]
    groups = [(group, f"{g:.3f}", mark(g, GROUP_GROWTH)) for group, g in means.items()]
    head = ["case", "dtype", "operation", "provider", "times as long", ""]
    means_head = ["operation, layout", "geometric mean", ""]
    return "\n\n".join([
        f"Times as long as in the baseline of {baseline.machine['date']}, relative to a copy:",
        tabulate(cells, head, disable_numparse=True),
        *([tabulate(groups, means_head, disable_numparse=True)] if groups else []),
        *changed_versions(run, baseline),
        f"Slower: {slow} of {len(known)} cells (more than {CELL_GROWTH} times as long), "
        f"{failed} of {len(means)} groups (more than {GROUP_GROWTH}).",
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
    runs = []
    for i in range(count):
        print(f"Run {i + 1} of {count}:", flush=True)
        runs.append(grid.run_grid())
    results.write(to, [typical(runs)])
    print(f"Written: {to}, {len(compared(runs[0].cells))} cells.")
