"""``fastbn inspect``: the batch norms of a checkpoint, and what is wrong with them."""

import argparse
import math
from pathlib import Path
from typing import Any

from fastbn.cli.options import (
    counted,
    picture_file,
    positive,
    print_assumed_eps,
    print_json,
    print_table,
)


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "inspect",
        help="list the batch norms of a checkpoint, and what is wrong with them",
        description=(
            "List every batch norm of a checkpoint (.pth, .pt, .safetensors, .npz, .onnx, .keras, "
            ".h5) with its health: channels that are dead, that explode, whose variance is almost "
            "nothing, NaN, layers that were never updated. --plot needs the extra cli."
        ),
        epilog="example: fastbn inspect resnet18.pth --plot resnet18.png",
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="the checkpoint")
    parser.add_argument(
        "--prefix",
        default="",
        metavar="P",
        help="only layers whose names begin with it; it is left off",
    )
    parser.add_argument(
        "--eps", type=positive, metavar="X", help="of all layers (default: the file's, or 1e-5)"
    )
    parser.add_argument(
        "--faulty", action="store_true", help="only layers with which something is wrong"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--plot", type=picture_file, metavar="OUT.png",
        help="draw scale, shift, running mean and variance of every layer (.png, .svg or .pdf)",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    import fastbn

    which = {"prefix": arguments.prefix, "eps": arguments.eps}
    found = dict(enumerate(fastbn.inspect_batch_norms(arguments.file, **which), 1))
    faulty = [number for number, health in found.items() if health.faults]
    if arguments.plot is not None:  # first: who reads the table may not read to its end
        from fastbn.checkpoint import channel_terms
        from fastbn.cli import distributions

        terms = channel_terms(arguments.file, **which)
        distributions.draw(terms, arguments.file.name, arguments.plot, faulty)
    shown = {number: found[number] for number in (faulty if arguments.faulty else found)}
    if arguments.json:
        layers = [
            {"number": number, **health._asdict(), "faults": health.faults}
            for number, health in shown.items()
        ]
        print_json({"file": str(arguments.file), "layers": layers})
        return
    titles = "#", "layer", "channels", "scale", "running mean", "running var", "faults"
    rows = [
        (
            str(number), health.name, str(health.channels), _range(health.scale),
            _range(health.mean), _range(health.var), "; ".join(health.faults) or "none",
        )
        for number, health in shown.items()
    ]  # fmt: skip
    if rows:
        print_table(titles, rows, right="r rrrr")
    else:
        print("nothing found")
    each = " Each range is the least and the greatest of a layer's channels." if rows else ""
    norms = counted(len(found), "batch norm")
    print(f"\n{arguments.file.name}: {norms}, faults in {len(faulty) or 'none'}.{each}")
    print_assumed_eps([health.eps for health in found.values() if health.eps_assumed])


def _range(spread: Any) -> str:
    return "-" if math.isnan(spread[0]) else f"{spread[0]:.3g} to {spread[2]:.3g}"
