"""``fastbn bench``: how fast fastbn is on this machine."""

import argparse
from typing import TYPE_CHECKING

from fastbn.cli.options import has_rich, picture_file, print_json, print_table

if TYPE_CHECKING:
    from fastbn.cli.measure import Figure


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "bench",
        help="measure fastbn on this machine, beside a copy and NumPy (half a minute)",
        description=(
            "Time evaluation, training and the backward on arrays from 64 KB to 64 MB, beside a "
            "copy of the same bytes and the formula in NumPy. All in float32, into outputs that "
            "are there. --plot needs the extra cli."
        ),
        epilog="example: fastbn bench --plot roofline.png",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--plot", type=picture_file, metavar="OUT.png",
        help="draw bandwidth over size (.png, .svg or .pdf)",
    )  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true", help="fewer sizes and repeats: a few seconds"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from fastbn.cli import measure

    figures = list(_watched(measure.figures(arguments.quick), arguments))
    if arguments.plot is not None:
        measure.draw(figures, arguments.plot)
    if arguments.json:
        print_json({"figures": [f._asdict() for f in figures]})
    else:
        _print(figures)


def _watched(figures, arguments):
    """The figures, with a bar of progress on stderr unless JSON is asked for."""
    from fastbn.cli import measure

    if arguments.json or not has_rich():
        return figures
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    total = measure.count(arguments.quick)
    return track(figures, "measuring", total=total, console=console, transient=True)


def _print(figures: "list[Figure]") -> None:
    import fastbn

    rows = [
        (
            f.operation, "x".join(map(str, f.shape)), _time(f.seconds), f"{f.bandwidth:.1f}",
            f"{f.seconds / f.copy:.2f}",
            "" if f.numpy is None else f"{f.numpy / f.seconds:.1f} x",
        )
        for f in figures
    ]  # fmt: skip
    titles = "operation", "shape", "time", "GB/s", "copy = 1", "NumPy takes"
    print_table(titles, rows, right="  rrrr")
    threads = fastbn.get_num_threads()
    print(
        f"\n{threads} thread{'s' * (threads > 1)}. GB/s: bytes that have to be read and written, "
        "once each. copy = 1: as a multiple of a copy's time."
    )


def _time(seconds: float) -> str:
    return f"{1e6 * seconds:.1f} us" if seconds < 1e-3 else f"{1e3 * seconds:.2f} ms"
