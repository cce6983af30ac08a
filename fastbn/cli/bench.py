"""``fastbn bench``: how fast fastbn is on this machine."""

import argparse
import json
from typing import TYPE_CHECKING

from fastbn.cli.options import extra_cli, picture_file

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
            "are there. Needs the extra cli, but for --json."
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

    if not arguments.json:
        extra_cli("rich")
    figures = list(_watched(measure.figures(arguments.quick), arguments))
    if arguments.json:
        print(json.dumps({"figures": [f._asdict() for f in figures]}, indent=1))
    else:
        _print(figures)
    if arguments.plot is not None:
        measure.draw(figures, arguments.plot)


def _watched(figures, arguments):
    """The figures, with a bar of progress on stderr unless JSON is asked for."""
    from fastbn.cli import measure

    if arguments.json:
        return figures
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    total = measure.count(arguments.quick)
    return track(figures, "measuring", total=total, console=console, transient=True)


def _print(figures: "list[Figure]") -> None:
    from rich.console import Console
    from rich.table import Table

    import fastbn

    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("operation", "shape"):
        table.add_column(title)
    for title in ("time", "GB/s", "copy = 1", "NumPy takes"):
        table.add_column(title, justify="right")
    for f in figures:
        times = "" if f.numpy is None else f"{f.numpy / f.seconds:.1f} x"
        table.add_row(
            f.operation, "x".join(map(str, f.shape)), _time(f.seconds), f"{f.bandwidth:.1f}",
            f"{f.seconds / f.copy:.2f}", times,
        )  # fmt: skip
    console = Console()
    console.print(table)
    console.print(
        f"\n{fastbn.get_num_threads()} threads. GB/s: bytes that have to be read and written, once "
        "each. copy = 1: as a multiple of a copy's time."
    )


def _time(seconds: float) -> str:
    return f"{1e6 * seconds:.1f} us" if seconds < 1e-3 else f"{1e3 * seconds:.2f} ms"
