"""What is said where a file or a folder cannot be written."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

_ELSEWHERE = "name a place where you may write"
_NO_FOLDER = "a file is where a folder should be"
_WAYS = {
    errno.EACCES: _ELSEWHERE,
    errno.EPERM: _ELSEWHERE,
    errno.EROFS: _ELSEWHERE,
    errno.ENOSPC: "make room, or name a place on another disk",
    errno.EDQUOT: "make room, or name a place on another disk",
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
