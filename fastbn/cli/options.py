"""What the options of several commands have in common."""

import argparse
import importlib.util
from pathlib import Path


def extra_cli(package: str) -> None:
    """Raise unless a package of the extra cli is there."""
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"this needs {package}: pip install 'fastbn[cli]' (--json needs nothing)")


def picture_file(text: str) -> Path:
    """Type of an option: a file that a picture can be written to."""
    file = Path(text)
    if importlib.util.find_spec("matplotlib") is None:
        raise argparse.ArgumentTypeError(
            "drawing needs matplotlib: pip install 'fastbn[cli]'; without a file name the figures "
            "are printed alone"
        )
    if file.suffix not in (".png", ".svg", ".pdf"):
        raise argparse.ArgumentTypeError(
            f"expected a name that ends in .png, .svg or .pdf: {text!r}"
        )
    if not file.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {str(file.absolute().parent)!r}")
    return file
