"""What several commands have in common: types of options, tables, JSON."""

import argparse
import importlib.util
import json
import math
import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any


def positive(text: str) -> float:
    """Type of an option: a positive number."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return number


def at_least_one(text: str) -> int:
    """Type of an option: a whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
    return int(text)


def has_rich() -> bool:
    """Whether tables are drawn by rich: on a terminal, where it is installed."""
    return sys.stdout.isatty() and importlib.util.find_spec("rich") is not None


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str]], right: str = "") -> None:
    """Print a table; in a pipe, or without rich, as plain text whose lines are never broken.

    ``right``: a letter for each column, r where it is aligned to the right.
    """
    sides = [side == "r" for side in right.ljust(len(titles))]
    if has_rich():
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table(box=None, header_style="bold", pad_edge=False)
        for title, side in zip(titles, sides, strict=True):
            table.add_column(title, justify="right" if side else "left", overflow="fold")
        for row in rows:
            table.add_row(*map(escape, row))
        Console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    for row in (titles, *rows):
        cells = zip(row, widths, sides, strict=True)
        aligned = (cell.rjust(width) if side else cell.ljust(width) for cell, width, side in cells)
        print("  ".join(aligned).rstrip())


def print_assumed_eps(values: Collection[float]) -> None:
    """Say what was taken for an eps that is not in the file, if any was."""
    if values:
        taken = " and ".join(f"{eps:g}" for eps in sorted(set(values)))
        print(f"eps is not in the file: {taken} was taken; --eps says otherwise.")


def counted(number: int, what: str) -> str:
    """``1 batch norm``, ``2 batch norms``."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def print_json(found: Any) -> None:
    """Print JSON that every reader takes: null for NaN and infinity, which it has not."""
    print(json.dumps(_finite(found), indent=1, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def picture_file(text: str) -> Path:
    """Type of an option: a file that a picture can be written to."""
    file = Path(text)
    if importlib.util.find_spec("matplotlib") is None:
        raise argparse.ArgumentTypeError("drawing needs matplotlib: pip install 'fastbn[cli]'")
    if file.suffix not in (".png", ".svg", ".pdf"):
        raise argparse.ArgumentTypeError(
            f"expected a name that ends in .png, .svg or .pdf: {text!r}"
        )
    folder = file.absolute().parent
    if not folder.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {str(folder)!r}")
    if not os.access(file if file.exists() else folder, os.W_OK):  # before a minute's work
        raise argparse.ArgumentTypeError(
            f"cannot write {text!r}: permission denied; name a place where you may write"
        )
    return file
