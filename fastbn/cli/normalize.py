"""``fastbn normalize``: an array in a file, normalized into another file."""

import argparse
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from fastbn.cli.options import print_json


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "normalize",
        help="write (x * scale - mean) / std of an array in a file to another file",
        description=(
            "Write (x * scale - mean) / std of a .npy, or of an array of an .npz, to a .npy, in "
            "windows of some megabytes: arrays may be larger than memory. Mean and std come from "
            "fastbn stats, from options, or from a batch norm of a checkpoint, as evaluation "
            "applies it. OUT is there at the end, as a whole, or not at all."
        ),
        epilog="example: fastbn normalize train.npy normalized.npy --stats stats.npz",
    )
    parser.add_argument("source", metavar="IN", help="a .npy, or FILE.npz:NAME")
    parser.add_argument("target", metavar="OUT", type=Path, help="the .npy to write")
    parser.add_argument(
        "--stats",
        type=Path,
        metavar="STATS",
        help="what fastbn stats -o has written, of the values as they are in the files",
    )
    parser.add_argument(
        "--mean", type=_numbers, metavar="X,X,...",
        help="of each channel, or one of all; with brackets and spaces too: '[0.1, 0.2]'",
    )  # fmt: skip
    parser.add_argument("--std", type=_numbers, metavar="X,X,...", help="likewise")
    parser.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="take a batch norm's evaluation instead"
    )
    parser.add_argument("--layer", metavar="NAME", help="which one of the checkpoint's")
    parser.add_argument(
        "--scale", type=_number, default=1.0, metavar="X",
        help="takes the values to the units of mean and std, such as 1/255 (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--axis", type=int, metavar="N", help="the channel axis (default: 1, or the layer's)"
    )
    parser.add_argument(
        "--channels-first", action="store_true",
        help="put the channel axis at 1 in OUT: NCHW of NHWC, with --axis -1",
    )  # fmt: skip
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="of OUT")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a sentence")
    # argparse takes only single numbers with a minus for values of an option, not -0.1,0.2
    parser._negative_number_matcher = re.compile(r"-[\d.][-\d.,eE+/ ]*$")
    parser.set_defaults(run=run, parser=parser)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    import fastbn

    mean, std, axis = _terms(arguments)
    fastbn.normalize_dataset(
        arguments.source, arguments.target, mean, std, scale=arguments.scale, axis=axis,
        dtype=arguments.dtype, out_axis=1 if arguments.channels_first else None,
    )  # fmt: skip
    with open(arguments.target, "rb") as file:
        np.lib.format.read_magic(file)
        written, _, _ = np.lib.format.read_array_header_1_0(file)
    if arguments.json:
        print_json({
            "output": str(arguments.target), "shape": list(written),
            "dtype": arguments.dtype, "mean": np.ravel(mean).tolist(),
            "std": np.ravel(std).tolist(), "scale": arguments.scale,
        })  # fmt: skip
    else:
        print(f"{arguments.target}: {' x '.join(map(str, written))}, {arguments.dtype}")


def _terms(arguments: argparse.Namespace) -> tuple[Any, Any, int | None]:
    """Mean, std and the channel axis, from the one place that was named."""
    given = [
        arguments.stats is not None,
        arguments.mean is not None or arguments.std is not None,
        arguments.checkpoint is not None or arguments.layer is not None,
    ]
    if sum(given) != 1:
        arguments.parser.error("give one of --stats, --mean with --std, --checkpoint with --layer")
    if given[0]:
        from fastbn import ChannelStats

        if arguments.scale != 1:
            raise ValueError(
                "--scale does not go with --stats: statistics are of the values as they are in the "
                "files. Leave --scale out, or give --mean and --std of values that are scaled"
            )
        stats = ChannelStats.load(arguments.stats)
        return stats.mean, stats.std(), arguments.axis
    if given[1]:
        if arguments.mean is None or arguments.std is None:
            arguments.parser.error("--mean and --std belong together")
        return arguments.mean, arguments.std, arguments.axis
    if arguments.checkpoint is None or arguments.layer is None:
        arguments.parser.error("--checkpoint and --layer belong together")
    return _of_layer(arguments)


def _of_layer(arguments: argparse.Namespace) -> tuple[Any, Any, int]:
    """Evaluation ``x * a + b`` as ``(x - mean) / std``."""
    import fastbn

    layers = fastbn.load_batch_norms(arguments.checkpoint)
    layer = layers.get(arguments.layer)
    if layer is None:
        names = ", ".join(list(layers)[:10]) + ", ..." * (len(layers) > 10)
        raise ValueError(f"{arguments.checkpoint} has no batch norm {arguments.layer!r}: {names}")
    if layer.activation is not None:
        raise ValueError(
            f"the layer {arguments.layer!r} has the activation {layer.activation}, which is not "
            "normalizing; call the layer on windows of the array in Python"
        )
    scale, shift = (np.asarray(term, np.float64) for term in layer.affine_terms())
    nothing = np.flatnonzero(scale == 0)
    if nothing.size:
        raise ValueError(
            f"the weight of the layer {arguments.layer!r} is 0 in channel {nothing[0]}, which no "
            "mean and std express; call the layer on windows of the array in Python"
        )
    axis = layer.axis if arguments.axis is None else arguments.axis
    return -shift / scale, 1 / scale, axis


def _numbers(text: str) -> list[float]:
    """Type of an option: numbers with commas between them, in brackets or not."""
    bare = text.strip()
    if bare.startswith("[") and bare.endswith("]"):
        bare = bare[1:-1]
    return [_number(part) for part in bare.split(",")]


def _number(text: str) -> float:
    """Type of an option: a number, or a fraction such as 1/255."""
    above, slash, below = text.partition("/")
    try:
        number = float(above) / (float(below) if slash else 1.0)
    except (ValueError, ZeroDivisionError):
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"expected a number such as 0.5 or 1/255, got {text!r}")
    return number
