"""Which files there are, and how the work on them is cut."""

from __future__ import annotations

import math
import operator
import os
import stat
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from fastbn.dataset import arrays, images
from fastbn.dataset.measure import ArrayBlock, Block, ImageBlock, reason

__all__ = ["Identity", "Sources", "find"]

#: A block is small enough that little is lost when a run ends, and large enough to be worth a
#: message: so many values of an array, or so many pictures.
BLOCK_VALUES, BLOCK_FILES = 8 << 20, 16

ARRAY_SUFFIXES = (".npy", ".npz")
KNOWN = ", ".join((*ARRAY_SUFFIXES, *images.SUFFIXES))


class _File(NamedTuple):
    path: str
    size: int
    changed: int  # ns


class Identity(NamedTuple):
    """Of what data a block is: with another one, statistics of it do not count."""

    first: str
    cut: list[Any]
    sizes: list[int]
    times: list[int]


class Sources(NamedTuple):
    """All that is to be read, in the order in which statistics are merged."""

    #: Of each: a group of pictures, or an array.
    parts: list[list[_File] | tuple[_File, arrays.Stored]]
    unreadable: dict[str, str]

    @property
    def only_images(self) -> bool:
        """Whether pictures are all there is."""
        return all(isinstance(part, list) for part in self.parts)

    def amount(self) -> int:
        """What `size_of` adds up to."""
        return sum(
            (len(p) if self.only_images else sum(f.size for f in p))
            if isinstance(p, list)
            else p[1].nbytes
            for p in self.parts
        )

    def size_of(self, block: Block, identity: Identity) -> int:
        """How much of the work a block is: pictures where there is nothing else, or bytes."""
        if isinstance(block, ImageBlock):
            return len(block.paths) if self.only_images else sum(identity.sizes)
        return math.prod(block.piece.shape) * np.dtype(block.stored.dtype).itemsize

    def blocks(self, axis: int) -> Iterator[list[tuple[Block, Identity]]]:
        """For each array, and each group of pictures, its blocks; by sizes and positions alone."""
        for part in self.parts:
            if isinstance(part, list):
                paths = tuple(file.path for file in part)
                sizes, times = [f.size for f in part], [f.changed for f in part]
                yield [(ImageBlock(paths), Identity(paths[0], list(paths[1:]), sizes, times))]
                continue
            file, stored = part
            shape = arrays.folded(stored, axis)
            limit = max(BLOCK_VALUES, 64 * shape[1])  # statistics are smaller than what they are of
            if stored.offset is None:
                limit = max(1, math.prod(stored.shape))
            yield [
                (
                    ArrayBlock(stored, shape[1], piece),
                    Identity(stored.name, [axis, *piece[:2]], [file.size], [file.changed]),
                )
                for piece in arrays.cut(shape, limit)
            ]


def find(paths: Iterable[Any], axis: int, without: Iterable[Any] = ()) -> Sources:
    """Look at all paths; folders are searched, in the order of names.

    ``without`` are files in these folders that are not of the data: what the scan writes.

    Raises
    ------
    FileNotFoundError, ValueError, TypeError
        Where a path is not there, no file is of a known kind, one is named twice, or an array has
        a dtype or shape that cannot be right.
    """
    parts: list[list[_File] | tuple[_File, arrays.Stored]] = []
    unreadable: dict[str, str] = {}
    seen: set[tuple[str, str | None]] = set()
    others = {os.path.abspath(path) for path in without}
    for path, member in _files(paths, others):
        if (path, member) in seen:
            raise ValueError(f"{path} is named twice, and would be counted twice")
        seen.add((path, member))
        try:
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("is no regular file")
            file = _File(path, status.st_size, status.st_mtime_ns)
            if not path.lower().endswith(ARRAY_SUFFIXES):
                if not (parts and isinstance(parts[-1], list) and len(parts[-1]) < BLOCK_FILES):
                    parts.append([])
                parts[-1].append(file)  # type: ignore[union-attr]
                continue
            found = [arrays.describe(path, name) for name in _members(path, member)]
        except TypeError:
            raise
        except Exception as error:
            unreadable[path] = reason(error, path)
            continue
        for stored in found:
            arrays.folded(stored, axis)  # or say that there is no such axis
            parts.append((file, stored))
    if not parts and not unreadable:
        raise ValueError(f"no files to read: expected {KNOWN}, or folders of them")
    return Sources(parts, unreadable)


def _members(path: str, member: str | None) -> list[str | None]:
    if path.lower().endswith(".npy"):
        return [None]
    if member is None:
        return [*arrays.members(path)]
    return [member]


def _files(paths: Iterable[Any], others: set[str]) -> Iterator[tuple[str, str | None]]:
    for given in paths:
        path = os.path.abspath(arrays.checked_path(given))
        if os.path.isdir(path):
            yield from ((file, None) for file in _files_in(path, set()) if file not in others)
            continue
        head, colon, member = path.rpartition(":")
        if colon and head.lower().endswith(".npz") and not os.path.exists(path):
            yield head, _member(head, member)
            continue
        if not os.path.exists(path):
            raise FileNotFoundError(f"there is no file or folder {str(given)!r}")
        if not path.lower().endswith((*ARRAY_SUFFIXES, *images.SUFFIXES)):
            raise ValueError(f"{given} is of no known kind; expected {KNOWN}, or a folder of them")
        yield path, None


def _member(path: str, name: str) -> str:
    """An array that was asked for by name."""
    if not os.path.exists(path):
        raise FileNotFoundError(f"there is no file {path!r}")
    try:
        there = arrays.members(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"{path}: {reason(error, path)}") from error
    if f"{name}.npy" not in there:
        names = ", ".join(member[:-4] for member in there[:10])
        raise ValueError(f"{path} has no array {name!r}; it has {names or 'none'}")
    return f"{name}.npy"


def _files_in(folder: str, above: set[tuple[int, int]]) -> Iterator[str]:
    """Files of known kinds in a folder and those in it, in the order of names.

    Hidden ones are left out. A link to a folder is followed, unless it leads back up.
    """
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    with os.scandir(folder) as entries:
        found = sorted(entries, key=operator.attrgetter("name"))
    for entry in found:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _files_in(entry.path, above | {here})
        elif entry.name.lower().endswith((*ARRAY_SUFFIXES, *images.SUFFIXES)):
            yield entry.path
