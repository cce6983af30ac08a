"""``fastbn fold``: batch norms of a checkpoint into the convolutions before them."""

import argparse
from pathlib import Path

from fastbn.cli.options import positive, print_json, print_table


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
    parser.add_argument(
        "file", metavar="CHECKPOINT", type=Path, help=".pth, .safetensors, .npz or .onnx"
    )
    parser.add_argument(
        "-o", "--output", metavar="FOLDED", type=Path, required=True,
        help="the file to write, .npz or .safetensors; one that is there is replaced",
    )  # fmt: skip
    parser.add_argument(
        "--eps", type=positive, metavar="X", help="of all layers (default: the file's, or 1e-5)"
    )
    parser.add_argument(
        "--pair", metavar="NORM=CONV", type=_pair, action="append", default=[],
        help="the layer that a norm goes into, where names do not tell; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--skip", metavar="NAME", action="append", default=[],
        help="a norm that stays; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--transposed", metavar="NAME", action="append",
        help="a transposed convolution, where names and shapes do not tell; may be repeated",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def _pair(text: str) -> tuple[str, str]:
    """Type of an option: two names."""
    norm, sign, layer = text.partition("=")
    if not (norm and sign and layer):
        raise argparse.ArgumentTypeError(f"expected NORM=CONV, got {text!r}")
    return norm, layer


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    import fastbn

    pairs = dict(arguments.pair)
    if len(pairs) < len(arguments.pair):
        norms = [norm for norm, _ in arguments.pair]
        raise ValueError(f"--pair names {max(norms, key=norms.count)!r} twice")
    folded = fastbn.fold.fold_checkpoint(
        arguments.file, eps=arguments.eps, pairs=pairs, skip=arguments.skip,
        transposed=arguments.transposed,
    )  # fmt: skip
    fastbn.save({**folded.tensors, **folded.layers}, arguments.output)
    if arguments.json:
        print_json({
            "folded": [pair._asdict() for pair in folded.pairs],
            "left": [single._asdict() for single in folded.left],
        })  # fmt: skip
        return
    rows = [(pair.norm, pair.layer, "") for pair in folded.pairs]
    rows += [(single.norm, "", single.why) for single in folded.left]
    print_table(("batch norm", "goes into", "or why it stays"), rows)
    assumed = sum(bool(pair.assumed) for pair in folded.pairs)
    if assumed:
        print(
            f"\n{assumed} of them are taken as not transposed: their weights have as many input as "
            "output channels, and do not tell. --transposed NAME says which is."
        )
    print(
        f"\n{arguments.output}: {len(folded.pairs)} batch norms folded, {len(folded.left)} left. "
        "Compare an output before and after: a file does not say what lies between two layers."
    )
