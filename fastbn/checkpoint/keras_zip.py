"""The HDF5 part of a Keras file: an entry of a ``.keras`` zip file, or all of an ``.h5`` file."""

import io
import json
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastbn.checkpoint import zip_file
from fastbn.checkpoint.zip_file import Entries

_WEIGHTS, _CONFIG = "model.weights.h5", "config.json"
_LARGEST_CONFIG = 64 << 20


@contextmanager
def opened(path: Path, *, config: bool = True) -> Iterator[tuple["Window", Any]]:
    """The HDF5 part of a file as a stream, and of a ``.keras`` file its configuration, parsed."""
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"
        if not zipped and path.suffix.lower() == ".keras":
            raise ValueError("is no .keras file, which is a zip file, or its begin is missing")
        if not path.stat().st_size:
            raise ValueError("is empty, cut off at its begin: no HDF5 file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            start, size, settings = 0, len(data), None
            if zipped:
                entries = Entries(zip_file.opened(file), data, "Keras")
                settings = _config(entries, data) if config else None
                start, size = entries.place(_WEIGHTS)
            with Window(data, start, size) as window:
                yield window, settings


def _config(entries: Entries, data: Any) -> Any:
    start, size = entries.place(_CONFIG)
    if size > _LARGEST_CONFIG:
        raise ValueError(f"{_CONFIG} has {size} bytes, expected at most {_LARGEST_CONFIG}")
    try:
        return json.loads(data[start : start + size])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{_CONFIG} is no JSON: {error}") from error


class Window(io.RawIOBase):
    """A part of a mapped file as a file of its own, for h5py."""

    def __init__(self, data: mmap.mmap, start: int, size: int) -> None:
        self._map, self._start, self._end = data, start, start + size
        with memoryview(data) as whole:
            self._data = whole[start : start + size]
        self._at = 0

    def readable(self) -> bool:  # noqa: D102
        return True

    def seekable(self) -> bool:  # noqa: D102
        return True

    def tell(self) -> int:  # noqa: D102
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:  # noqa: D102
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._data)}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:  # noqa: D102
        part = self._data[self._at : self._at + len(buffer)]
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)

    def find(self, pattern: bytes, start: int) -> int:
        """Where a pattern begins, from ``start`` on; -1: nowhere."""
        at = self._map.find(pattern, self._start + start, self._end)
        return at - self._start if at >= 0 else -1

    def number(self, at: int, size: int) -> int:
        """The number in the bytes from ``at`` on."""
        return int.from_bytes(self._data[at : at + size], "little")

    def close(self) -> None:  # noqa: D102
        if not self.closed:
            self._data.release()
        super().close()
