"""``fastbn demo``."""

import argparse

from fastbn.cli.options import picture_file, positive


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "demo",
        help="train a small network with and without batch norm, and time fastbn (half a minute)",
        description=(
            "Train a small convolutional network on handwritten digits with and without "
            "batch normalization, show why evaluation mode matters, and time fastbn "
            "against NumPy on a large array. Takes about half a minute."
        ),
    )
    parser.add_argument(
        "--epochs",
        type=_integer(1, 1000),
        metavar="N",
        help="passes over the training digits, 1 to 1000 (default: 10, of small batches 20)",
    )
    parser.add_argument(
        "--seed",
        type=_integer(0, 2**32 - 1),
        default=0,
        metavar="N",
        help="of held-out digits, initial weights and batches (default: %(default)s)",
    )
    parser.add_argument(
        "--learning-rate",
        type=positive,
        metavar="X",
        help="of both networks; at 0.2 only one of them learns (default: 0.02, of small batches "
        "0.01)",
    )
    parser.add_argument(
        "--skip-timing",
        action="store_true",
        help="leave out the last part, which needs 0.6 GB of memory",
    )
    parser.add_argument(
        "--small-batches",
        nargs="?",
        const=True,
        type=picture_file,
        metavar="FILE",
        help="instead: how batch norm and others do with batches of 2 to 64 (one to three "
        "minutes), and a picture of it if a file is named, such as small_batches.png, "
        "which needs matplotlib",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the demo."""
    # Imported here, so that --help and other commands need not wait for it.
    from fastbn import demo

    given = {"epochs": arguments.epochs, "learning_rate": arguments.learning_rate}
    options = {name: value for name, value in given.items() if value is not None}
    if arguments.small_batches:
        found = demo.run_small_batches(seed=arguments.seed, **options)
        if arguments.small_batches is not True:
            from fastbn.demo import picture

            picture.draw(found, arguments.small_batches)
        return
    activation = None if arguments.skip_timing else demo.ACTIVATION
    demo.run(seed=arguments.seed, activation=activation, **options)


class _integer:
    """Type of an option: a whole number in a range."""

    def __init__(self, lowest: int, highest: int) -> None:
        self.lowest, self.highest = lowest, highest

    def __call__(self, text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = self.lowest - 1
        if not self.lowest <= number <= self.highest:
            raise argparse.ArgumentTypeError(
                f"expected a whole number from {self.lowest} to {self.highest}, got {text!r}"
            )
        return number
