"""The HDF5 file within a ``.keras`` file, which is a zip file, or the file itself."""

import io
import json
import mmap
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastbn.checkpoint.zip_file import Entries

_WEIGHTS, _CONFIG = "model.weights.h5", "config.json"
_LARGEST_CONFIG = 64 << 20


@contextmanager
def opened(path: Path, *, config: bool = True) -> Iterator[tuple[Any, Any]]:
    """The HDF5 part of a file as a stream, and of a ``.keras`` file its configuration, parsed."""
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            if path.suffix.lower() == ".keras":
                raise ValueError("is no .keras file, which is a zip file, or the begin is cut off")
            file.seek(0)
            yield file, None
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                entries = Entries(zipfile.ZipFile(file), data)
            except (zipfile.BadZipFile, NotImplementedError, OSError, struct.error) as error:
                raise ValueError(f"is a damaged or truncated zip file: {error}") from error
            settings = _config(entries, data) if config else None
            with memoryview(data) as view:
                window = _Window(view, *_place(entries, _WEIGHTS))
                try:
                    yield window, settings
                finally:
                    window.close()


def _place(entries: Entries, name: str) -> tuple[int, int]:
    info = entries.names.get(name)
    if info is None:
        raise ValueError(
            f"the zip file has no entry {name!r}: it is no .keras file, or a damaged one"
        )
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(
            f"entry {name!r} is compressed, which Keras does not do; unpack the file and pack it "
            "again with zip -0"
        )
    return entries.place(name)


def _config(entries: Entries, data: Any) -> Any:
    start, size = _place(entries, _CONFIG)
    if size > _LARGEST_CONFIG:
        raise ValueError(f"{_CONFIG} has {size} bytes, expected at most {_LARGEST_CONFIG}")
    try:
        return json.loads(data[start : start + size])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{_CONFIG} is no JSON: {error}") from error


class _Window(io.RawIOBase):
    """A part of a mapped file as a file of its own, for h5py."""

    def __init__(self, data: memoryview, start: int, size: int) -> None:
        self._data, self._at = data[start : start + size], 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._data)}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        part = self._data[self._at : self._at + len(buffer)]
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)

    def close(self) -> None:
        if not self.closed:
            self._data.release()
        super().close()
