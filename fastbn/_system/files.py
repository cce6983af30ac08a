"""Files that are written wholly or not at all."""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def check_folder(path: Path) -> None:
    """Refuse a path in a folder that is not there."""
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"there is no folder {str(path.absolute().parent)!r}")


def replace(path: Path, write: Callable[[Path], None]) -> None:
    """Write beside a file, and put it in its place when it is whole."""
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        part.touch()
        mode = part.stat().st_mode
        write(part)
        os.chmod(part, mode)  # safetensors makes files that only their owner can read
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        with suppress(OSError):
            part.unlink()
