"""``fastbn inspect``: the batch norms of a checkpoint, and what is wrong with them."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastbn.cli.options import extra_cli, picture_file

if TYPE_CHECKING:
    from fastbn.checkpoint.health import Health


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "inspect",
        help="list the batch norms of a checkpoint, and what is wrong with them",
        description=(
            "List every batch norm of a checkpoint (.pth, .pt, .safetensors, .npz, .onnx, .keras, "
            ".h5) with its health: channels that are dead, that explode, whose variance is almost "
            "nothing, NaN, layers that were never updated. Needs the extra cli, but for --json."
        ),
        epilog="example: fastbn inspect resnet18.pth --plot resnet18.png",
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="the checkpoint")
    parser.add_argument(
        "--prefix", default="", metavar="P", help="only layers whose names begin with it"
    )
    parser.add_argument(
        "--eps", type=float, metavar="X", help="of all layers (default: the file's, or 1e-5)"
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

    found = fastbn.inspect_batch_norms(arguments.file, prefix=arguments.prefix, eps=arguments.eps)
    shown = [health for health in found if health.faults or not arguments.faulty]
    if arguments.json:
        layers = [{**health._asdict(), "faults": health.faults} for health in shown]
        print(json.dumps({"file": str(arguments.file), "layers": layers}, indent=1))
    else:
        _print(arguments.file, shown, len(found))
    if arguments.plot is not None:
        from fastbn.cli import distributions

        distributions.draw(arguments.file, arguments.prefix, arguments.eps, arguments.plot)


def _print(file: Path, shown: "list[Health]", layers: int) -> None:
    """A table, and a line that sums up."""
    extra_cli("rich")
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("layer", overflow="fold")
    for title in ("channels", "scale", "running mean", "running var"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("faults", overflow="fold")
    for health in shown:
        faults = "; ".join(health.faults)
        table.add_row(
            health.name, str(health.channels),
            _range(health.scale), _range(health.mean), _range(health.var),
            f"[red]{faults}[/red]" if faults else "[green]none[/green]",
        )  # fmt: skip
    console = Console(soft_wrap=False)
    console.print(table)
    faulty = sum(bool(health.faults) for health in shown)
    console.print(
        f"\n{file.name}: {layers} batch norms, something to look at in {faulty}. Each range is the "
        "least and the greatest of a layer's channels."
    )


def _range(spread: Any) -> str:
    return f"{spread[0]:.3g} to {spread[2]:.3g}"
