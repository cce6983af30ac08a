"""Arrays in ``.npy`` and ``.npz``: where their values lie, and reading them window by window.

A file is never mapped and never read as a whole: whoever may take little memory or address space
can read files of any size.
"""

from __future__ import annotations

import math
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from fastbn.checkpoint import zip_file
from fastbn.checkpoint.npz_file import checked_header
from fastbn.dataset.checksum import combined

__all__ = [
    "DTYPES", "Piece", "Stored", "WrongChecksum", "check_values", "cut", "describe", "folded",
    "member_of", "members", "opened", "read", "split",
]  # fmt: skip

#: What statistics are taken of.
DTYPES = "uint8, int8, uint16, int16, float16, float32, float64"
#: Why a member cannot be read.
WRONG_CHECKSUM = "its values are damaged: they do not have the checksum that the zip file has"


class WrongChecksum(ValueError):
    """Values are not those that were written."""


class Stored(NamedTuple):
    """An array in a file.

    ``offset`` is where its values begin in the file; None if they are compressed, in ``member``.
    ``checksum`` is the CRC-32 that the values of a member have, which is not compressed; None where
    there is none, or whoever unpacks checks it.
    """

    path: str
    member: str | None
    offset: int | None
    shape: tuple[int, ...]
    dtype: str
    fortran: bool
    checksum: int | None = None

    @property
    def name(self) -> str:
        """What the user calls it."""
        return self.path if self.member is None else f"{self.path}:{self.member[:-4]}"

    @property
    def nbytes(self) -> int:
        """Size of its values."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class Piece(NamedTuple):
    """Values that follow each other in a file, of shape (n, channels, inner).

    ``start`` is the index of the first value, ``channel`` the first channel.
    """

    start: int
    shape: tuple[int, int, int]
    channel: int


def cut(shape: tuple[int, int, int], limit: int) -> Iterator[Piece]:
    """Cut (n, channels, inner) into pieces of at most ``limit`` values, in their order in memory.

    By the shape alone: whole rows of all channels, else some channels of a row, else a part of one.
    """
    n, channels, inner = shape
    row = channels * inner
    if row == 0:
        return
    if row <= limit:
        step = limit // row
        for k in range(0, n, step):
            yield Piece(k * row, (min(step, n - k), channels, inner), 0)
        return
    step = max(1, limit // inner)
    for k in range(n):
        for c in range(0, channels, step):
            start, some = k * row + c * inner, min(step, channels - c)
            for i in range(0, inner, limit):
                length = min(limit, inner - i) if inner > limit else inner
                yield Piece(start + i, (1, some, length), c)


def folded(stored: Stored, axis: int) -> tuple[int, int, int]:
    """(n, channels, inner): the axes before, at and after the channel axis, as memory has them."""
    shape, position = stored.shape, memory_axis(stored, axis)
    if stored.fortran:
        shape = shape[::-1]
    return math.prod(shape[:position]), shape[position], math.prod(shape[position + 1 :])


def memory_axis(stored: Stored, axis: int) -> int:
    """Which axis it is in the order of memory; an array in Fortran order is transposed there."""
    dimensions = len(stored.shape)
    if not -dimensions <= axis < dimensions or dimensions < 2:
        raise ValueError(
            f"{stored.name}: there is no channel axis {axis} in an array of shape {stored.shape}"
            + ("" if dimensions < 2 else "; choose another with axis (--axis)")
        )
    position = axis % dimensions
    return dimensions - 1 - position if stored.fortran else position


def split(path: str) -> tuple[str, str | None]:
    """A path and the name of one of its arrays, of ``file.npz:name``; names may have colons."""
    if os.path.exists(path):
        return path, None
    ends = [found.start() + 4 for found in re.finditer(r"\.npz:", path, re.IGNORECASE)]
    if not ends:
        return path, None
    end = next((end for end in reversed(ends) if os.path.isfile(path[:end])), ends[0])
    return path[:end], path[end + 1 :]


def members(path: str) -> list[str]:
    """The arrays of an ``.npz``, in their order; ValueError for two of one name."""
    with zip_file.opened(path) as archive:
        return [name for name in zip_file.entries_of(archive) if name.endswith(".npy")]


def member_of(path: str, name: str) -> str:
    """An array that was asked for by name."""
    there = members(path)
    if f"{name}.npy" not in there:
        names = ", ".join(member[:-4] for member in there[:10])
        raise ValueError(f"{path} has no array {name!r}; it has {names or 'none'}")
    return f"{name}.npy"


def describe(path: str, member: str | None = None) -> Stored:
    """Read the header of a ``.npy``, or of a member of an ``.npz``.

    Anything that is wrong with the file raises some exception; a dtype of which no statistics are
    taken raises a TypeError.
    """
    offset: int | None
    checksum = None
    if member is None:
        with open(path, "rb") as file:
            shape, dtype, fortran = checked_header(file, os.path.getsize(path))
            offset = file.tell()
    else:
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo(member)
            with archive.open(info) as entry:
                shape, dtype, fortran = checked_header(entry, info.file_size)
                header = entry.tell()
            offset, checksum = _values_of(path, archive, info, header)
    stored = Stored(path, member, offset, shape, dtype.str, fortran, checksum)
    if not (dtype.kind in "ui" and dtype.itemsize <= 2) and dtype.str[1:] not in ["f2", "f4", "f8"]:
        hint = "; name the array that is meant: FILE.npz:NAME" if member else ""
        raise TypeError(f"{stored.name} has dtype {dtype}, expected one of {DTYPES}{hint}")
    return stored


class _Bytes:
    """Slices of a file, which is not mapped."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def __getitem__(self, some: slice) -> bytes:
        self._file.seek(some.start)
        return self._file.read(some.stop - some.start)


def _values_of(
    path: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo, header: int
) -> tuple[int | None, int | None]:
    """Where the values of a member begin, if they are stored as they are, and their checksum."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        return None, None
    with open(path, "rb") as file:
        at, size = zip_file.Entries(archive, _Bytes(file), "NumPy").place(info.filename)
        file.seek(at)
        before = zlib.crc32(file.read(header))
    # that of the whole member is that of its header, and of its values after it
    return at + header, info.CRC ^ combined(before, 0, size - header)


def check_values(stored: Stored) -> None:
    """Read all values of a member that has a checksum; ValueError if they have another one."""
    if stored.checksum is None:
        return
    found, left = 0, stored.nbytes
    with opened(stored) as (file, offset):
        file.seek(offset)
        while left:
            data = file.read(min(left, 1 << 20))
            if not data:
                raise EOFError(f"the file ends {left} bytes too early")
            found, left = zlib.crc32(data, found), left - len(data)
    if found != stored.checksum:
        raise WrongChecksum(WRONG_CHECKSUM)


@contextmanager
def opened(stored: Stored) -> Iterator[tuple[IO[bytes], int]]:
    """A file to read values from, and where in it they begin."""
    if stored.offset is not None:
        with open(stored.path, "rb", buffering=0) as file:
            yield file, stored.offset
        return
    with zipfile.ZipFile(stored.path) as archive, archive.open(str(stored.member)) as entry:
        checked_header(entry, archive.getinfo(str(stored.member)).file_size)
        yield entry, entry.tell()


def read(file: IO[bytes], position: int, into: np.ndarray) -> None:
    """Fill a C-contiguous array with the bytes from ``position`` on."""
    if file.tell() != position:
        file.seek(position)
    view: Any = into.reshape(-1).view(np.uint8).data
    while len(view):
        # not too much at once: Ctrl-C is heard between two reads
        count = file.readinto(view[: 64 << 20])  # type: ignore[attr-defined]
        if not count:
            raise EOFError(f"the file ends {len(view)} bytes too early")
        view = view[count:]


def checked_path(path: Any) -> Path:
    """A path that was given by a caller."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"expected a path, got {type(path).__name__}")
    return Path(os.fsdecode(path))
