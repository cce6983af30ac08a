"""What is finished of a scan, in a file, so that a run that was killed can go on.

A first line that says what it is, then one for each block: a checksum, and what was measured as
JSON, whose numbers come back to the last bit. A line that was not written to its end is dropped.
"""

from __future__ import annotations

import dataclasses
import json
import os
import zlib
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from fastbn.dataset.measure import Found, Measured
from fastbn.stats import ChannelStats

__all__ = ["Identity", "Journal", "is_journal"]

FORMAT = 2
#: The first line: what does not begin like this is somebody else's.
_MAGIC = b"journal of fastbn stats\n"
#: What may differ, in words.
_WORDS = {
    "cut": "is cut differently, or other files follow it",
    "sizes": "has another size",
    "times": "was changed since",
}


class Identity(NamedTuple):
    """Of what data a block is: with another one, statistics of it do not count."""

    first: str
    cut: list[Any]
    sizes: list[int]
    times: list[int]


class Journal:
    """The journal of a scan in a file, or of one that keeps none.

    Parameters
    ----------
    path : path or None
    settings : dict
        What the answer depends on besides the data.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self.path, self._file = path, None
        self._known: dict[int, dict[str, Any]] = {}
        if path is None:
            return
        settings = {"format": FORMAT, **settings}
        self._file = _locked(path)
        try:
            self._read(settings)
        except BaseException:
            self.close()
            raise

    def _read(self, settings: dict[str, Any]) -> None:
        assert self._file is not None
        if not _begins_like_a_journal(self._file):
            raise ValueError(f"{self.path} is no journal of fastbn; name another file")
        lines, whole = [], self._file.tell()
        for line in self._file:
            record = _record(line)
            if record is None:
                break
            lines.append(record)
            whole += len(line)
        if lines:
            self._compare_settings(lines[0], settings)
            self._known = {record["block"]: record for record in lines[1:]}
        self._file.seek(whole)
        self._file.truncate()
        if not whole:
            self._file.write(_MAGIC)
        if not lines:
            self._write(settings)

    def _compare_settings(self, was: dict[str, Any], settings: dict[str, Any]) -> None:
        for name in {**settings, **was}:
            if was.get(name) != settings.get(name):
                raise ValueError(
                    f"{self.path} is the journal of another scan: it had {name} "
                    f"{_short(was.get(name))}, and this one has {_short(settings.get(name))}. "
                    + self._way_out()
                )

    def _way_out(self) -> str:
        return "Remove it to begin anew, or name another with resume (--resume)"

    def __contains__(self, block: int) -> bool:
        return block in self._known

    def recall(self, block: int, identity: Identity) -> Measured:
        """What was measured, if it was of the same data."""
        record = self._known[block]
        was, now = Identity(*record["of"]), identity
        if was.first != now.first:
            raise ValueError(
                f"{self.path} is the journal of other data: block {block} was {was.first}, and is "
                f"{now.first}. {self._way_out()}"
            )
        for name, words in _WORDS.items():
            if getattr(was, name) != json.loads(json.dumps(getattr(now, name))):
                raise ValueError(
                    f"{self.path} is the journal of other data: {_which(was, now, name)} {words}. "
                    f"{self._way_out()}"
                )
        return _measured(record["found"], record["checksum"])

    def keep(self, block: int, identity: Identity, measured: Measured) -> None:
        """Note a block; one with files that could not be read is read again next time."""
        if self._file is not None and not measured.unreadable:
            found = _plain(measured)
            self._write(
                {"block": block, "of": identity, "found": found, "checksum": measured.checksum}
            )

    def _write(self, record: dict[str, Any]) -> None:
        assert self._file is not None
        text = json.dumps(record).encode()
        try:
            self._file.write(b"%08x %s\n" % (zlib.crc32(text), text))
            self._file.flush()
        except OSError as error:
            raise OSError(
                error.errno,
                f"the journal {self.path} cannot be written: {error.strerror}; with room, the same "
                "call goes on from it, and resume (--resume) names another place",
            ) from error

    def close(self) -> None:
        """Keep the file, for another run."""
        if self._file is not None:
            with suppress(OSError):  # a full disk: what is there, is
                self._file.close()
            self._file = None

    def remove(self) -> None:
        """All is done. What has taken the file's place meanwhile stays."""
        if self._file is None or self.path is None:
            return
        with suppress(FileNotFoundError):
            own = os.path.samestat(os.fstat(self._file.fileno()), os.stat(self.path))
            if os.name == "nt":  # where an open file cannot be removed
                self.close()
            if own:
                self.path.unlink()
        self.close()


def is_journal(path: str) -> bool:
    """Whether it begins like a journal, or like one whose first line is torn."""
    with open(path, "rb") as file:
        return _begins_like_a_journal(file)


def _begins_like_a_journal(file: IO[bytes]) -> bool:
    """Go past the first line, or to the start where it is torn."""
    begin = file.read(len(_MAGIC))
    if begin != _MAGIC:
        file.seek(0)
    return _MAGIC.startswith(begin)


def _locked(path: Path) -> Any:
    """Open to read and append; one run at a time may."""
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"there is no folder {str(path.absolute().parent)!r}")
    file = open(path, "a+b")  # noqa: SIM115
    with suppress(ImportError):  # not on Windows
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise ValueError(f"another run is using {path}") from None
        except OSError:  # a file system without locks
            pass
    file.seek(0)
    return file


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:80]}…"


def _record(line: bytes) -> dict[str, Any] | None:
    """A line that is whole."""
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    try:
        if not line.endswith(b"\n") or int(checksum, 16) != zlib.crc32(text):
            return None
        record = json.loads(text)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _which(was: Identity, now: Identity, name: str) -> str:
    """The file that differs."""
    if name == "cut" or len(now.sizes) == 1:
        return now.first
    files = [now.first, *now.cut]
    pairs = zip(files, getattr(was, name), getattr(now, name), strict=False)
    return next((file for file, before, after in pairs if before != after), now.first)


def _plain(measured: Measured) -> list[Any]:
    """Numbers for JSON, which has them to the last bit."""
    return [
        [
            kind,
            {
                f.name: None if (v := getattr(found.stats, f.name)) is None else v.tolist()
                for f in dataclasses.fields(found.stats)
            },
            found.nan.tolist(), found.files, found.first,
            None if found.counts is None else found.counts.tolist(),
        ]
        for kind, found in measured.found.items()
    ]  # fmt: skip


def _measured(records: list[Any], checksum: int) -> Measured:
    found = {
        (kind[0], kind[1], kind[2]): Found(
            ChannelStats(**fields), np.array(nan, np.int64), files, first,
            None if counts is None else np.array(counts, np.int64),
        )
        for kind, fields, nan, files, first, counts in records
    }  # fmt: skip
    return Measured(found, {}, checksum)
