"""Files that are written wholly or not at all, and what is said where they cannot be."""

import errno
import itertools
import os
import stat
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
#: Of files that are being written, so that one thread may write several in a folder.
_NUMBERS = itertools.count()


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

    After an exception there is neither, and what was there before is as it was. A file that is
    replaced keeps its mode, and a link leads to the new file, wherever the old one was.
    """
    check_writable(path)
    with writing_to(path):
        place = Path(os.path.realpath(path))  # replacing a link would leave its file as it was
        if place.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    check_writable(place)
    # a short name: that of the file may be as long as the system allows
    part = place.with_name(f".{os.getpid():x}.{threading.get_ident():x}.{next(_NUMBERS):x}.part")
    try:
        with writing_to(path):
            part.touch()
            mode = stat.S_IMODE((place if place.exists() else part).stat().st_mode)
            part.chmod(mode & 0o700 | 0o600)  # nobody may read who may not read the file
            yield part
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            part.chmod(mode)
            part.replace(place)
    finally:
        with suppress(OSError):
            part.unlink()


def check_writable(path: Path) -> None:
    """Refuse a path in a folder that is not there, or of a folder."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {str(folder)!r}")
    with writing_to(path):  # a name may be too long to be looked up
        there = path.is_dir()
    if there:
        raise ValueError(f"{path} is a folder; name a file")
