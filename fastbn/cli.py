"""The command line: ``fastbn demo``."""

import argparse
import contextlib
import math
import os
import sys
from collections.abc import Sequence

from fastbn import __version__

__all__ = ["main"]

# Exit codes of a program that a signal ended, as shells report them: 128 + its number.
_INTERRUPTED, _BROKEN_PIPE = 130, 141
_ERROR = 2  # as argparse has it


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command ``fastbn``.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name; those of the process by default.

    Returns
    -------
    int
        Exit code: 0, or 2 after an error, 130 if interrupted, 141 if nobody reads
        the output any more.
    """
    try:
        code = _run(argv)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("fastbn: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        _drop_stdout()
        return _BROKEN_PIPE
    except (OSError, MemoryError) as error:  # a full disk, for one
        _drop_stdout()
        print(f"fastbn: error: {str(error) or 'out of memory'}", file=sys.stderr)
        return _ERROR
    return code


def _drop_stdout() -> None:
    """Let what stdout still holds go nowhere: Python flushes it again when it ends."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(argv: Sequence[str] | None) -> int:
    parser = _parser()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as end:  # after --help, --version or an error message
        return end.code if isinstance(end.code, int) else 0
    if arguments.command is None:
        parser.print_help()
        return 0
    arguments.run(arguments)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastbn",
        description="Batch normalization on NumPy arrays, at the speed of the memory bus.",
    )
    parser.add_argument("--version", action="version", version=f"fastbn {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    _add_demo(commands)
    return parser


def _add_demo(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
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
        default=10,
        metavar="N",
        help="passes over the training digits, 1 to 1000 (default: %(default)s)",
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
        type=_positive,
        default=0.02,
        metavar="X",
        help="of both networks; at 0.2 only one of them learns (default: %(default)s)",
    )
    parser.add_argument(
        "--skip-timing",
        action="store_true",
        help="leave out the last part, which needs 0.6 GB of memory",
    )
    parser.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace) -> None:
    # Imported here, so that --help and other commands need not wait for it.
    from fastbn.demo import ACTIVATION, run

    activation = None if arguments.skip_timing else ACTIVATION
    run(arguments.epochs, arguments.seed, arguments.learning_rate, activation)


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


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return number
