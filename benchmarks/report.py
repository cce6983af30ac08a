"""Results as a page: bars, peers, and every cell. Losses are bold."""

import statistics
from pathlib import Path

from benchmarks.bars import BARS, Outcome, outcome
from benchmarks.problem import OPERATIONS
from benchmarks.providers import PROVIDERS
from benchmarks.results import LAYOUTS, Cell, Run, Unusable

OUT, ALLOCATING = "fastbn out=", "fastbn"
PEERS = tuple(name for name in PROVIDERS if name not in (OUT, ALLOCATING))
NOTHING = "-"
#: Where the README's figures stand.
BEGIN = "<!-- figures, written by: python -m benchmarks report -->"
END = "<!-- end of figures -->"

EXPLANATION = """\
Every figure is a ratio measured in one run, call by call in turn: absolute times are not stable
on shared machines. *To a copy*: time divided by that of a copy of the same bytes with the same
threads; less than 1 is faster than the copy. A *streaming copy* writes past the caches. A figure
under a peer's name says how many times as long as fastbn (which returns a new array there) the
peer takes: **less than 1 is a loss of fastbn, and bold**."""


def page(runs: list[Run], source: str, picture: str) -> str:
    """The page, in Markdown, of runs of which the one with most threads is the main one."""
    main, *others = sorted(runs, key=lambda run: (-run.machine["threads"], -len(run.cells)))
    parts = [
        "# How fast fastbn is",
        f"Written by `python -m benchmarks report` from `{source}`; edits will be lost.",
        _machine(main),
        EXPLANATION,
        f"![Bandwidth that fastbn and its peers reach, over array size]({picture})",
        "## Bars",
        _bars(main),
        "## Against peers",
        _peers(main),
    ]
    for run in others:
        parts += [f"## Again with {_threads(run)}", _machine(run), _copies(run), _peers(run)]
    return "\n\n".join([*parts, *_cells(main)]) + "\n"


def table(head: list[str], rows: list[list[str]], texts: int = 1) -> str:
    """A Markdown table; the first ``texts`` columns are text, the others numbers."""
    from tabulate import tabulate

    align = ["left"] * texts + ["right"] * (len(head) - texts)
    return tabulate(rows, head, tablefmt="github", colalign=align, disable_numparse=True)


def number(value: float | None) -> str:
    """``value`` with three digits, which are all that mean something."""
    if value is None:
        return NOTHING
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def versus(value: float | None) -> str:
    """How a peer compares, a loss in bold."""
    return f"**{number(value)}**" if value is not None and value < 1 else number(value)


def mebibytes(count: int) -> str:
    return f"{count / 2**20:.2g}" if count < 2**20 else number(count / 2**20)


def _threads(run: Run) -> str:
    count = run.machine["threads"]
    return "1 thread" if count == 1 else f"{count} threads"


def _machine(run: Run) -> str:
    machine = run.machine
    size = machine["last_level_cache"]
    cache = f"{mebibytes(run.cache)} MiB" + ("" if size else " assumed, its size is unknown")
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    text = (
        f"Machine: {machine['cpu']}, {_threads(run)}, last-level cache {cache}. "
        f"{machine['date']}. Versions: {versions}."
    )
    absent = [name for name in PROVIDERS if not any(c.provider == name for c in run.cells)]
    return text + (f" Not measured: {', '.join(absent)}." if absent else "")


def _bars(run: Run) -> str:
    parts = []
    outcomes = [outcome(bar, run) for bar in BARS]
    for group in dict.fromkeys(bar.group for bar in BARS):
        rows = [_bar(found) for found in outcomes if found.bar.group == group]
        head = ["bar", "worst cell", "met", "limit", "reached", "cells", "meet it", "median"]
        parts += [f"### {group}", table(head, rows, texts=3)]
    met = sum(found.met is True for found in outcomes)
    missing = sum(found.met is None for found in outcomes)
    summary = f"{met} of {len(outcomes)} are met, {missing} were not measured."
    explanation = (
        "*Reached* is the geometric mean where the bar is about it, else the worst cell's figure."
    )
    return "\n\n".join([f"{summary} {explanation}", *parts])


def _bar(found: Outcome) -> list[str]:
    bar = found.bar

    def figure(value: float | None) -> str:
        return number(value) if value is None else number(value / bar.unit_size) + bar.unit

    met = {True: "yes", False: "**no**", None: "not measured"}[found.met]
    worst = NOTHING if found.worst is None else f"{found.worst} ({figure(found.worst_figure)})"
    limit = f"{'≥' if bar.at_least else '≤'} {bar.limit / bar.unit_size:g}{bar.unit}"
    return [
        bar.name, worst, met, limit, figure(found.reached), str(found.cells), str(found.meeting),
        figure(found.median),
    ]  # fmt: skip


def _peers(run: Run) -> str:
    """Operations and peers: how often, how much, and how bad it gets."""
    rows = []
    for operation in OPERATIONS:
        for peer in PEERS:
            found = [
                c for c in run.cells
                if (c.operation, c.provider) == (operation, peer) and c.ratio_to_fastbn is not None
            ]  # fmt: skip
            if not found:
                continue
            ratios = [cell.ratio_to_fastbn for cell in found]
            worst = min(found, key=lambda cell: cell.ratio_to_fastbn)
            losses = sum(ratio < 1 for ratio in ratios)
            rows.append([
                operation, peer, str(worst), versus(worst.ratio_to_fastbn), str(len(found)),
                str(losses), number(statistics.geometric_mean(ratios)),
            ])  # fmt: skip
    head = ["operation", "peer", "worst cell", "worst", "cells", "losses", "geometric mean"]
    return table(head, rows, texts=3) if rows else "No peer was measured."


def _copies(run: Run) -> str:
    """How fastbn compares with copies, in one row for each operation and layout."""
    rows = []
    for operation in OPERATIONS:
        for layout in LAYOUTS:
            ratios = [
                c.ratio_to_copy for c in run.cells
                if (c.operation, c.layout, c.provider) == (operation, layout, OUT)
                and c.ratio_to_copy is not None
                and c.bytes >= 2**20
            ]  # fmt: skip
            if ratios:
                figures = statistics.median(ratios), max(ratios)
                rows.append([operation, layout, str(len(ratios)), *map(number, figures)])
    head = ["operation", "layout", "cells", "median to a copy, out=", "worst"]
    return "From 1 MiB on:\n\n" + table(head, rows, texts=2) if rows else ""


def _cells(run: Run) -> list[str]:
    """A table of every operation, layout and dtype."""
    parts = ["## Every cell"]
    dtypes = list(dict.fromkeys(cell.dtype for cell in run.cells))
    for operation in OPERATIONS:
        for layout in LAYOUTS:
            for dtype in dtypes:
                wanted = (operation, layout, dtype)
                chosen = [c for c in run.cells if (c.operation, c.layout, c.dtype) == wanted]
                if chosen:
                    parts += [f"### {operation}, {layout}, {dtype}", _cell_table(chosen)]
    return parts


def _cell_table(cells: list[Cell]) -> str:
    by_case: dict[str, dict[str, Cell]] = {}
    for cell in cells:
        by_case.setdefault(cell.case, {})[cell.provider] = cell
    peers = [peer for peer in PEERS if any(cell.provider == peer for cell in cells)]
    rows = []
    for case, row in by_case.items():
        out, allocating = row.get(OUT), row.get(ALLOCATING)
        rows.append([
            case,
            mebibytes(next(iter(row.values())).bytes),
            number(out and out.ratio_to_copy),
            number(out and out.ratio_to_streaming_copy),
            number(allocating and allocating.ratio_to_copy),
            *(versus(row[peer].ratio_to_fastbn) if peer in row else NOTHING for peer in peers),
        ])  # fmt: skip
    head = ["shape", "MiB", "out= to copy", "out= to streaming copy", "allocating to copy", *peers]
    return table(head, rows)


def main_run(runs: list[Run]) -> Run:
    """The run with most threads, and of these with most cells."""
    return max(runs, key=lambda run: (run.machine["threads"], len(run.cells)))


def with_summary(readme: str, run: Run) -> str:
    """The README with what stands between its two marks written anew."""
    before, mark, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (mark and end):
        raise Unusable(f"README.md lacks the lines {BEGIN} and {END}, between which figures go")
    return f"{before}{mark}\n\n{_machine(run)}\n\n{_peers(run)}\n\n{end}{after}"


def write(runs: list[Run], source: str, to: Path, picture: Path) -> None:
    """Write the page and the picture."""
    from benchmarks import roofline

    roofline.draw(main_run(runs), picture)
    to.write_text(page(runs, source, picture.name), encoding="utf-8")
