"""Which reader a file needs: by what it begins with, and by its suffix where that says nothing."""

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastbn.checkpoint import zip_file
from fastbn.checkpoint.contents import Checkpoint

_SUFFIXES = {
    ".onnx": "onnx", ".keras": "keras", ".h5": "keras", ".hdf5": "keras", ".json": "sharded",
    ".safetensors": "safetensors", ".npz": "npz", ".pth": "torch", ".pt": "torch",
    ".bin": "torch", ".ckpt": "torch",
}  # fmt: skip
#: Of pickles that the format before torch 1.6 begins with.
_PROTOCOLS = (b"\x02", b"\x03", b"\x04", b"\x05")
KNOWN = ".npz, .safetensors, .pth and .pt, .onnx, .keras and .h5, and .index.json of several files"


def read(path: Path) -> Checkpoint:
    """What a file holds; ValueError where it is damaged or of no known kind."""
    if not path.is_file():
        raise _not_a_file(path)
    return _reader(_kind(path))(path)


@contextmanager
def naming(source: Any) -> Iterator[None]:
    """Put the path, if there is one, before the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        if not isinstance(source, (str, os.PathLike)):
            raise
        raise ValueError(f"{os.fsdecode(source)}: {error}") from error


def _not_a_file(path: Path) -> Exception:
    if not path.exists():
        return FileNotFoundError(f"there is no file {str(path)!r}")
    if not path.is_dir():
        return ValueError("is neither a file nor a folder")
    found = sorted(p.name for p in path.glob("*.index.json"))[:1] or sorted(
        p.name for p in path.iterdir() if p.suffix in _SUFFIXES and p.suffix != ".json"
    )
    hint = f", such as {str(path / found[0])!r}" if found else ""
    return ValueError(f"is a folder; name the file in it{hint}")


def _kind(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(16)
    suffix = path.suffix.lower()
    # the length that safetensors begins with may have any bytes, so it is looked for first
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        return "safetensors"
    if start[:8] == b"\x89HDF\r\n\x1a\n" or suffix == ".keras":
        return "keras"
    if start[:2] == b"PK" and suffix not in (".npz", ".onnx"):
        return _kind_of_zip(path)
    if start[:1] == b"\x80" and start[1:2] in _PROTOCOLS and suffix != ".onnx":
        return "torch"
    if suffix not in _SUFFIXES:
        raise ValueError(f"is of no known kind; expected one of {KNOWN}")
    return _SUFFIXES[suffix]


def _kind_of_zip(path: Path) -> str:
    """torch's files and NumPy's may have any suffix."""
    try:
        with zip_file.opened(path) as archive:
            names = archive.namelist()
    except ValueError:  # the reader says what is wrong
        return _SUFFIXES.get(path.suffix.lower(), "torch")
    if "model.weights.h5" in names:
        return "keras"
    return "npz" if any(name.endswith(".npy") for name in names) else "torch"


def _reader(kind: str) -> Callable[[Path], Checkpoint]:
    """Imported when it is asked for: each reader needs what only its own files need."""
    return importlib.import_module(f"fastbn.checkpoint.{kind}_file").read
