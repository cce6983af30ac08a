"""``fastbn fold``: batch norms of a checkpoint into the convolutions before them."""

import argparse
import json
from pathlib import Path

from fastbn.cli.options import extra_cli


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "fold",
        help="fold the batch norms of a checkpoint into the convolutions before them",
        description=(
            "Write a checkpoint without the batch norms that directly follow a convolution or a "
            "linear layer: their scale and shift go into its weight and bias, which computes the "
            "same in evaluation. Which layer that is, is known by names and shapes alone; a file "
            "does not tell of an activation in between, so compare an output before and after."
        ),
        epilog="example: fastbn fold resnet18.pth -o folded.npz",
    )
    parser.add_argument("file", metavar="CHECKPOINT", type=Path, help=".pth, .safetensors or .npz")
    parser.add_argument(
        "-o", "--output", metavar="FOLDED", type=Path, required=True,
        help="the file to write, .npz or .safetensors; one that is there is replaced",
    )  # fmt: skip
    parser.add_argument(
        "--eps", type=float, metavar="X", help="of all layers (default: the file's, or 1e-5)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    import fastbn

    if not arguments.json:
        extra_cli("rich")
    folded = fastbn.fold.fold_checkpoint(arguments.file, eps=arguments.eps)
    fastbn.save(folded.tensors, arguments.output)
    if arguments.json:
        found = {
            "folded": [pair._asdict() for pair in folded.pairs],
            "left": [single._asdict() for single in folded.left],
        }
        print(json.dumps(found, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("batch norm", "goes into", "or why it stays"):
        table.add_column(title, overflow="fold")
    for pair in folded.pairs:
        table.add_row(pair.norm, pair.layer, "")
    for single in folded.left:
        table.add_row(f"[yellow]{single.norm}[/yellow]", "", single.why)
    console = Console()
    console.print(table)
    console.print(
        f"\n{arguments.output}: {len(folded.pairs)} batch norms folded, {len(folded.left)} left."
    )
