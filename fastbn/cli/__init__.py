"""The command line: ``fastbn COMMAND``. Each command is a file of its own."""

import argparse
import contextlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence

from fastbn import __version__
from fastbn.cli import bench, demo, fold, info, inspect, normalize, stats, warmup

__all__ = ["main"]

# Exit codes of a program that a signal ended, as shells report them: 128 + its number.
_INTERRUPTED, _BROKEN_PIPE, _TERMINATED = 130, 141, 143
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
        the output any more, 143 if terminated.
    """
    try:
        with warnings.catch_warnings(), _ending_in_order():
            warnings.showwarning = _show_warning
            code = _run(argv)
            sys.stdout.flush()
    except _Terminated:
        print("fastbn: terminated", file=sys.stderr)
        return _TERMINATED
    except KeyboardInterrupt:
        print("fastbn: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        _drop_stdout()
        return _BROKEN_PIPE
    except (ValueError, TypeError, ImportError, FileNotFoundError, PermissionError) as error:
        print(f"fastbn: error: {error}", file=sys.stderr)
        return _ERROR
    except (OSError, MemoryError) as error:  # a full disk, for one
        _drop_stdout()
        print(f"fastbn: error: {str(error) or 'out of memory'}", file=sys.stderr)
        return _ERROR
    return code


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Print a warning as a sentence, without the line of the sources that it comes from."""
    print(f"fastbn: warning: {message}", file=sys.stderr)


class _Terminated(KeyboardInterrupt):
    """The process is asked to end: as with Ctrl-C, nothing half-written may stay."""


@contextlib.contextmanager
def _ending_in_order() -> Iterator[None]:
    """Let SIGTERM raise an exception, unless somebody else answers it."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return

    def end(number: int, frame: object) -> None:
        raise _Terminated

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _drop_stdout() -> None:
    """Let what stdout still holds go nowhere: Python flushes it again when it ends."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(argv: Sequence[str] | None) -> int:
    parser = _parser()
    try:
        arguments = parser.parse_args(argv)
        if arguments.command is None:
            parser.print_help()
        else:
            arguments.run(arguments)
    except SystemExit as end:  # after --help, --version or an error message
        return end.code if isinstance(end.code, int) else 0
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastbn",
        description="Batch normalization on NumPy arrays, at the speed of the memory bus.",
    )
    parser.add_argument("--version", action="version", version=f"fastbn {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    for command in (demo, inspect, fold, stats, normalize, bench, warmup, info):
        command.add(commands)
    return parser
