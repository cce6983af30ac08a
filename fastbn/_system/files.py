"""Files that are written wholly or not at all, and what is said where they cannot be."""

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_ELSEWHERE = "name a place where you may write"
_NO_FOLDER = "a file is where a folder should be"
_NO_ROOM = "make room, or name a place on another disk"
_WAYS = {
    errno.EACCES: _ELSEWHERE,
    errno.EPERM: _ELSEWHERE,
    errno.EROFS: _ELSEWHERE,
    errno.ENOSPC: _NO_ROOM,
    errno.EDQUOT: _NO_ROOM,
    errno.EFBIG: _NO_ROOM,
    errno.ENOTDIR: _NO_FOLDER,
    errno.EEXIST: _NO_FOLDER,
}


@contextmanager
def writing_to(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let an OSError name the path that the caller gave, not a temporary file, and the way out.

    One that has a message of its own passes as it is.

    Examples
    --------
    >>> with writing_to("net.npz"):
    ...     raise PermissionError(13, "Permission denied", ".net.npz.part")
    Traceback (most recent call last):
    PermissionError: cannot write 'net.npz': permission denied; name a place where you may write
    """
    try:
        yield
    except OSError as error:
        if error.strerror is None or error.errno is None:
            raise
        way = f"; {_WAYS[error.errno]}" if error.errno in _WAYS else ""
        said = type(error)(f"cannot write {os.fsdecode(path)!r}: {error.strerror.lower()}{way}")
        said.errno = error.errno
        raise said from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """An empty file beside ``path``, to be written, which takes its place at the end of the block.

    After an exception there is neither, and what was there before is as it was.
    """
    check_writable(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        with writing_to(path):
            part.touch()
            mode = part.stat().st_mode
            yield part
            os.chmod(part, mode)  # safetensors makes files that only their owner can read
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
    finally:
        with suppress(OSError):
            part.unlink()


def check_writable(path: Path) -> None:
    """Refuse a path in a folder that is not there, or of a folder."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {str(folder)!r}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file")
