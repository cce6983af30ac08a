"""The command line: ``python -m benchmarks compare``, ``baseline``, ``record`` or ``report``."""

import argparse
import sys
from pathlib import Path

from benchmarks.results import BASELINE, RESULTS, Unusable

DESCRIPTION = """\
Speed of fastbn, as ratios to a copy of the same bytes.

  python -m benchmarks compare                  is anything slower than the baseline?
  pytest benchmarks --grid report --benchmark-json=RUN.json
  python -m benchmarks record RUN.json          keep what was measured
  python -m benchmarks report                   make the page and the picture of it
"""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_compare, _add_baseline, _add_record, _add_report):
        add(commands)
    return top


def _add_command(commands, name: str, run, text: str, more: str = "") -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=f"{text}. {more}")
    command.set_defaults(run=run)
    return command


def _add_compare(commands) -> None:
    command = _add_command(
        commands, "compare", _compare, "Measure the quick grid and compare it with the baseline",
        "Takes two to four minutes: the grid is measured three times, and what looks slower up "
        "to four times more; the median counts. "
        "Exit status: 0 if nothing is slower, 1 if something is, 2 if the two cannot be compared "
        "(another machine, other cells).",
    )  # fmt: skip
    command.add_argument(
        "--run", type=Path, metavar="FILE", nargs="*", dest="files",
        help="compare these runs, written by `pytest benchmarks --benchmark-json=FILE`, instead "
        "of measuring; without FILE the newest one that --benchmark-autosave saved",
    )  # fmt: skip
    command.add_argument(
        "--repeats", type=int, metavar="N",
        help="measure what looks slower up to N more times (default: 4; 0: never)",
    )  # fmt: skip
    command.add_argument("--all", action="store_true", help="show every cell, the worst first")
    _add_baseline_file(command, "compare with this file (default: benchmarks/baseline.json)")


def _add_baseline(commands) -> None:
    command = _add_command(
        commands, "baseline", _baseline, "Measure a new baseline for this machine",
        "Runs the quick grid several times and keeps the median of each cell. Leave the machine "
        "alone meanwhile.",
    )  # fmt: skip
    command.add_argument(
        "--runs", type=int, default=9, metavar="N", help="how often (default: %(default)s)"
    )
    _add_baseline_file(command, "write this file (default: benchmarks/baseline.json)")


def _add_baseline_file(command, text: str) -> None:
    command.add_argument("--baseline", type=Path, default=BASELINE, metavar="FILE", help=text)


def _add_record(commands) -> None:
    command = _add_command(
        commands, "record", _record, "Keep measured runs in benchmarks/results.json",
        "Runs of the same machine, number of threads and versions become one, in which the last "
        "measurement of a cell stays. To add to what is kept, name benchmarks/results.json first.",
    )  # fmt: skip
    command.add_argument(
        "files", type=Path, nargs="+", metavar="RUN.json",
        help="written by `pytest benchmarks --grid report --benchmark-json=RUN.json`",
    )  # fmt: skip
    command.add_argument(
        "--again", action="store_true",
        help="first measure again what was measured beside other work, to judge by the copies",
    )  # fmt: skip
    command.add_argument(
        "--to", type=Path, default=RESULTS, metavar="FILE",
        help="write this file (default: benchmarks/results.json)",
    )  # fmt: skip


def _add_report(commands) -> None:
    command = _add_command(
        commands, "report", _report, "Write RESULTS.md, roofline.png and the README's figures",
        "The page says which bars are met, how fastbn compares with its peers, and every cell.",
    )  # fmt: skip
    command.add_argument(
        "--results", type=Path, default=RESULTS, metavar="FILE",
        help="read this file (default: benchmarks/results.json)",
    )  # fmt: skip
    command.add_argument(
        "--to", type=Path, default=RESULTS.parent, metavar="DIRECTORY",
        help="write there, and leave the README as it is (default: benchmarks)",
    )  # fmt: skip


def _compare(arguments) -> int:
    from benchmarks import compare, grid

    files = [grid.newest_autosave()] if arguments.files == [] else arguments.files or []
    repeats = compare.REPEATS if arguments.repeats is None else arguments.repeats
    fine = compare.compare(files, arguments.baseline, repeats, all_cells=arguments.all)
    return 0 if fine else 1


def _baseline(arguments) -> int:
    from benchmarks import compare

    compare.make_baseline(arguments.baseline, arguments.runs)
    return 0


def _record(arguments) -> int:
    from benchmarks import grid, results

    runs = results.merged(run for file in arguments.files for run in results.read(file))
    if arguments.again:
        runs = [grid.calmer(run) for run in runs]
    results.write(arguments.to, runs)
    for run in runs:
        print(
            f"{run.machine['cpu']}, threads: {run.machine['threads']}, cells: {len(run.cells)}, "
            f"measured beside other work: {len(grid.disturbed(run))}"
        )
    return 0


def _report(arguments) -> int:
    from benchmarks import report, results

    page, picture = arguments.to / "RESULTS.md", arguments.to / "roofline.png"
    runs = results.read(arguments.results)
    report.write(runs, arguments.results.name, page, picture)
    print(f"Written: {page} and {picture}")
    if arguments.to == RESULTS.parent:  # not elsewhere: the README shows the picture
        readme = RESULTS.parent.parent / "README.md"
        text = report.with_summary(readme.read_text(encoding="utf-8"), report.main_run(runs))
        readme.write_text(text, encoding="utf-8")
        print(f"Written: the figures in {readme}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says and return the exit status."""
    chosen = parser().parse_args(arguments)
    try:
        return chosen.run(chosen)
    except Unusable as problem:
        print(f"benchmarks: {problem}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
