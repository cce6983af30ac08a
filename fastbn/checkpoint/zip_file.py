"""Archives that are zip files: what is in them, and where it lies, for reading it in place."""

import struct
import zipfile
import zlib
from typing import Any

#: What `zipfile` raises where an archive is damaged.
ERRORS = (
    zipfile.BadZipFile, NotImplementedError, OSError, struct.error, zlib.error, EOFError,
    ValueError, RuntimeError,
)  # fmt: skip
#: Of a local header, and how it begins.
_HEADER, _SIGNATURE = 30, b"PK\x03\x04"


def opened(file: Any) -> zipfile.ZipFile:
    """The archive in a file, by its path or open; ValueError if it is damaged."""
    try:
        return zipfile.ZipFile(file)
    except ERRORS as error:
        raise ValueError(f"is a damaged or truncated zip file: {error}") from error


def entries_of(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """What is in an archive, by name; ValueError for names that are suspicious."""
    infos = archive.infolist()
    found = {info.filename: info for info in infos}
    if len(found) < len(infos):
        raise ValueError("the zip file has two entries of the same name")
    for name in found:
        why = leads_out(name)
        if why:
            raise ValueError(f"the zip file has an entry {name[:200]!r}, which {why}")
    return found


def leads_out(name: str) -> str:
    """Why a name leads out of a folder; empty where it does not.

    Nothing is unpacked here, but who knows of others.
    """
    out = name.startswith("/") or "\\" in name or ".." in name.split("/")
    return "is a path out of its folder" if out else ""


class Entries:
    """The entries of an archive that is mapped as ``data``; ValueError for what is suspicious.

    ``writer``: what has written such files, for messages; it does not compress.
    """

    def __init__(self, archive: zipfile.ZipFile, data: Any, writer: str) -> None:
        self.names = entries_of(archive)
        self._data, self._writer = data, writer
        starts = sorted(info.header_offset for info in self.names.values())
        self._next = dict(zip(starts, [*starts[1:], archive.start_dir], strict=True))
        if len(self._next) < len(starts):
            raise ValueError("entries of the zip file overlap")

    def place(self, name: str) -> tuple[int, int]:
        """First byte and size of an entry that is stored as it is."""
        info = self.names.get(name)
        if info is None:
            raise ValueError(
                f"the zip file has no entry {name!r}: it is truncated or damaged, or not of "
                f"{self._writer}"
            )
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise ValueError(
                f"entry {name!r} is compressed or encrypted, which {self._writer} does not do; "
                "unpack the file and pack it again with zip -0"
            )
        start = info.header_offset
        head = self._data[start : start + _HEADER] if start >= 0 else b""
        if len(head) < _HEADER or head[:4] != _SIGNATURE:
            raise ValueError(f"entry {name!r} is not where the zip file says")
        lengths = int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
        at = start + _HEADER + lengths
        if info.compress_size != info.file_size or at + info.file_size > self._next[start]:
            raise ValueError(f"entry {name!r} overlaps the next one, or reaches beyond the file")
        return at, info.file_size
