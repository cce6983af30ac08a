"""The command line: ``python -m benchmarks compare``, ``cold``, ``sharing`` and so on."""

import argparse
import sys
from pathlib import Path

from benchmarks.results import RESULTS, ROOT, Unusable


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m benchmarks", description="How fast fastbn is.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for add in (
        _add_compare,
        _add_cold,
        _add_sharing,
        _add_scaling,
        _add_around,
        _add_standardize,
        _add_scaler,
        _add_device,
        _add_record,
        _add_report,
    ):
        add(commands)
    return top


def _add_command(commands, name: str, run, text: str, more: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=f"{text}. {more}")
    command.set_defaults(run=run)
    return command


def _add_compare(commands) -> None:
    from benchmarks import compare

    command = _add_command(
        commands, "compare", _compare, "See whether the working tree is slower than another commit",
        "Measures both side by side, in processes that take turns. " + compare.RULE + " "
        "Exit status: 0 if nothing is slower, 1 if something is, 2 if it cannot be told.",
    )  # fmt: skip
    command.add_argument("ref", metavar="REF", help="the other commit, such as origin/main")
    command.add_argument(
        "--threads", type=int, default=0, metavar="N", help="of each call (default: all there are)"
    )
    command.add_argument(
        "--rounds", type=int, metavar="N",
        help=f"processes of each commit (default: {compare.ROUNDS})",
    )  # fmt: skip
    command.add_argument(
        "--seconds", type=float, metavar="S",
        help=f"time per cell, commit and round (default: {compare.SECONDS})",
    )  # fmt: skip
    command.add_argument(
        "--quick", action="store_true",
        help=f"float32 alone, no large arrays, {compare.QUICK_ROUNDS} rounds of "
        f"{compare.QUICK_SECONDS} s",
    )  # fmt: skip
    command.add_argument(
        "--cells", default="", metavar="PATTERN",
        help="only those whose name has this in it, such as 'training*8x16'",
    )  # fmt: skip
    command.add_argument(
        "--show", choices=("worst", "all"), default="worst", help="which cells (default: worst)"
    )


def _add_cold(commands) -> None:
    from benchmarks import cold

    command = _add_command(
        commands, "cold", _cold, "See what the first calls cost, with nothing compiled yet",
        "Runs each case in a process of its own with an empty cache. Exit status: 1 if a case "
        f"compiles more functions than its bar allows or, given REF, takes more than "
        f"{cold.GROWTH} times its processor time.",
    )  # fmt: skip
    command.add_argument("ref", metavar="REF", nargs="?", help="a commit to compare with")
    command.add_argument(
        "--cases", default="", metavar="PATTERN",
        help="only those whose name has this in it, such as 'training'",
    )  # fmt: skip


def _add_sharing(commands) -> None:
    from benchmarks import sharing

    command = _add_command(
        commands, "sharing", _sharing, "See how several processes share the processors",
        "Each evaluates batch after batch, all at once, with threads as they are by default and "
        "with one thread each.",
    )  # fmt: skip
    command.add_argument(
        "--seconds", type=float, default=sharing.SECONDS, metavar="S",
        help=f"how long they run each time (default: {sharing.SECONDS})",
    )  # fmt: skip


def _add_scaling(commands) -> None:
    from benchmarks import scaling

    command = _add_command(
        commands, "scaling", _scaling, "See what batch norm over MPI ranks costs",
        "Measures 1, 2 and 4 ranks here, works out more by a model of latency and bandwidth, and "
        "writes SCALING.md. Needs pip install '.[mpi-test]'.",
    )  # fmt: skip
    command.add_argument(
        "--batch", type=int, default=scaling.BATCH, metavar="N",
        help=f"samples of a rank (default: {scaling.BATCH})",
    )  # fmt: skip
    command.add_argument(
        "--rounds", type=int, default=scaling.ROUNDS, metavar="N",
        help=f"steps that are timed (default: {scaling.ROUNDS})",
    )  # fmt: skip
    command.add_argument(
        "--latency", type=float, default=scaling.LATENCY, metavar="US",
        help=f"of the model's network, in microseconds (default: {scaling.LATENCY:g})",
    )  # fmt: skip
    command.add_argument(
        "--bandwidth", type=float, default=scaling.BANDWIDTH, metavar="GBIT",
        help=f"of the model's network, in Gbit/s (default: {scaling.BANDWIDTH:g})",
    )  # fmt: skip
    command.add_argument(
        "--to", type=Path, default=scaling.PAGE, metavar="FILE",
        help="write this page (default: benchmarks/SCALING.md)",
    )  # fmt: skip


def _add_device(commands) -> None:
    from benchmarks import device

    command = _add_command(
        commands, "device", _device, "Check and measure the CUDA path on an NVIDIA GPU",
        "Beside the float64 reference, a device-to-device copy, torch and CuPy; what is missing "
        "is named and left out. `benchmarks/device.sh` takes the same arguments and installs all "
        "it needs first: pip install '.[cuda]' 'numba-cuda[cu13]' tabulate torch cupy-cuda13x, "
        "or cu12 and cupy-cuda12x. With NUMBA_ENABLE_CUDASIM=1 it runs without a GPU, on a few "
        "numbers. Exit status: 1 if a result is wrong or compute-sanitizer finds an error.",
    )  # fmt: skip
    command.add_argument(
        "--quick", action="store_true", help="float32 and bfloat16 alone, few shapes, few samples"
    )
    command.add_argument(
        "--only", choices=device.PARTS, action="append", metavar="PART",
        help=f"one of {', '.join(device.PARTS)}; may be given again (default: all, in this order)",
    )  # fmt: skip
    command.add_argument(
        "--alone", action="store_true", help="without torch and CuPy, even if they are there"
    )
    command.add_argument(
        "--to", type=Path, default=device.RESULTS, metavar="FILE",
        help="write this file (default: benchmarks/device.json)",
    )  # fmt: skip


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
    from benchmarks import compare

    rounds, seconds = compare.ROUNDS, compare.SECONDS
    if arguments.quick:
        rounds, seconds = compare.QUICK_ROUNDS, compare.QUICK_SECONDS
    fine = compare.compare(
        arguments.ref,
        compare.grid(arguments.quick, arguments.cells),
        arguments.threads,
        rounds if arguments.rounds is None else arguments.rounds,
        seconds if arguments.seconds is None else arguments.seconds,
        arguments.show == "all",
    )
    return 0 if fine else 1


def _cold(arguments) -> int:
    from benchmarks import cold

    return 0 if cold.cold(arguments.ref, cold.chosen(arguments.cases)) else 1


def _sharing(arguments) -> int:
    from benchmarks import sharing

    sharing.sharing(arguments.seconds)
    return 0


def _scaling(arguments) -> int:
    from benchmarks import scaling

    network = arguments.latency, arguments.bandwidth
    scaling.scaling(arguments.batch, arguments.rounds, *network, arguments.to)
    return 0


def _add_around(commands) -> None:
    command = _add_command(
        commands, "around", _around, "Time what is around the layer",
        "Fused passes, 16 bits and norms of samples, beside torch (if it is installed), NumPy and "
        "the plain call. Exit status 1 if a bar is not met.",
    )  # fmt: skip
    command.add_argument(
        "--threads", type=int, default=0, metavar="N", help="of each call (default: all there are)"
    )
    command.add_argument("--to", type=Path, metavar="FILE", help="keep the figures as JSON")


def _around(arguments) -> int:
    from benchmarks import around

    return 0 if around.around(arguments.threads, arguments.to) else 1


def _add_standardize(commands) -> None:
    command = _add_command(
        commands, "standardize", _standardize, "Time images of bytes to normalized float32",
        "Beside NumPy, and torchvision and albumentations if they are installed. Exit status 1 if "
        "a bar is not met.",
    )  # fmt: skip
    command.add_argument(
        "--threads", type=int, default=0, metavar="N", help="of each call (default: all there are)"
    )
    command.add_argument("--to", type=Path, metavar="FILE", help="keep the figures as JSON")


def _standardize(arguments) -> int:
    from benchmarks import standardize

    return 0 if standardize.standardize(arguments.threads, arguments.to) else 1


def _add_scaler(commands) -> None:
    command = _add_command(
        commands, "scaler", _scaler, "Time StandardScaler beside scikit-learn's",
        "fit, transform and fit_transform of float32 and float64, and how far results are from "
        "those of extended precision. Exit status 1 if a bar is not met.",
    )  # fmt: skip
    command.add_argument(
        "--threads", type=int, default=0, metavar="N", help="of each call (default: all there are)"
    )
    command.add_argument(
        "--rounds", type=int, default=0, metavar="N", help="of each row (default: 7 or more)"
    )
    command.add_argument("--to", type=Path, metavar="FILE", help="keep the figures as JSON")


def _scaler(arguments) -> int:
    from benchmarks import scaler

    return 0 if scaler.scaler(arguments.threads, arguments.rounds, arguments.to) else 1


def _device(arguments) -> int:
    from benchmarks import device

    parts = tuple(arguments.only or device.PARTS)
    return device.measure(parts, arguments.quick, arguments.alone, arguments.to)


def _record(arguments) -> int:
    from benchmarks import results

    runs = results.merged(run for file in arguments.files for run in results.read(file))
    results.write(arguments.to, runs)
    for run in runs:
        print(f"{run.machine['cpu']}, {run.machine['threads']} threads, {len(run.cells)} cells")
    return 0


def _report(arguments) -> int:
    from benchmarks import report, results

    page, picture = arguments.to / "RESULTS.md", arguments.to / "roofline.png"
    runs = results.read(arguments.results)
    report.write(runs, arguments.results.name, page, picture)
    print(f"Written: {page} and {picture}")
    if arguments.to == RESULTS.parent:  # not elsewhere: the README shows the picture
        readme = ROOT / "README.md"
        text = report.with_summary(readme.read_text(encoding="utf-8"), report.main_run(runs))
        readme.write_text(text, encoding="utf-8")
        print(f"Written: the figures in {readme}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says and return the exit status."""
    try:
        chosen = parser().parse_args(arguments)
        return chosen.run(chosen)
    except ModuleNotFoundError as missing:
        extra = {"tabulate": "track", "mpi4py": "mpi-test"}.get(missing.name or "", "bench")
        print(f"benchmarks: no {missing.name}; pip install '.[{extra}]'", file=sys.stderr)
        return 2
    except Unusable as problem:
        print(f"benchmarks: {problem}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
