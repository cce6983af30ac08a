"""``fastbn fold``: batch norms of a checkpoint into the convolutions before them."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fastbn.cli.options import (
    counted,
    positive,
    print_assumed_eps,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from fastbn.fold import FoldedCheckpoint

#: Names in a sentence; JSON has them all.
_SHOWN = 3


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
        "-o", "--output", metavar="FOLDED", type=_output, required=True,
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
    parser.add_argument(
        "--not-transposed", action="store_true",
        help="no convolution but those that --transposed names is a transposed one",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def _output(text: str) -> Path:
    """Type of an option: a file that folded arrays can be written to."""
    file = Path(text)
    if file.suffix.lower() in (".npz", ".safetensors"):
        return file
    way = ""
    if file.suffix.lower() in (".pth", ".pt", ".bin", ".ckpt"):
        way = (
            "; write one, and where torch is: torch.save({name: torch.from_numpy(array) for name, "
            f"array in fastbn.load_tensors('{file.stem}.npz').items()}}, {text!r})"
        )
    raise argparse.ArgumentTypeError(f"must end in .npz or .safetensors, got {text!r}{way}")


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
    transposed = arguments.transposed
    if transposed is None and arguments.not_transposed:
        transposed = []
    folded = fastbn.fold.fold_checkpoint(
        arguments.file, eps=arguments.eps, pairs=pairs, skip=arguments.skip, transposed=transposed
    )
    fastbn.save({**folded.tensors, **folded.layers}, arguments.output)
    if arguments.json:
        print_json({
            "folded": [pair._asdict() for pair in folded.pairs],
            "left": [single._asdict() for single in folded.left],
            "assumed_eps": folded.assumed_eps,
        })  # fmt: skip
        return
    rows = [(pair.norm, pair.layer, "") for pair in folded.pairs]
    rows += [(single.norm, "", single.why) for single in folded.left]
    print_table(("batch norm", "goes into", "or why it stays"), rows)
    _print_assumed(folded)
    done = counted(len(folded.pairs), "batch norm")
    print(
        f"\n{arguments.output}: {done} folded, {len(folded.left)} left. "
        "Compare an output before and after: a file does not say what lies between two layers."
    )
    if not folded.pairs and len(folded.left) > len(set(arguments.skip)):
        print("--pair NORM=CONV says which convolution a norm goes into.")
    print_assumed_eps(folded.assumed_eps)


def _print_assumed(folded: "FoldedCheckpoint") -> None:
    """Name convolutions that were taken as not transposed, where they may well be.

    Most networks have none, and a shape that does not tell means nothing there.
    """
    from fastbn.fold.pairs import sounds_transposed

    words = any(map(sounds_transposed, folded.tensors))
    layers = [
        pair.layer
        for pair in folded.pairs
        if pair.assumed
        and (words or any(k % 2 == 0 for k in folded.tensors[f"{pair.layer}.weight"].shape[2:]))
    ]
    if layers:
        shown = ", ".join(layers[:_SHOWN]) + (", …" if len(layers) > _SHOWN else "")
        print(
            f"\nTaken as not transposed: {shown} ({len(layers)} in all). Weights of as many input "
            "as output channels do not tell; --transposed NAME says which is, --not-transposed "
            "that none is."
        )
