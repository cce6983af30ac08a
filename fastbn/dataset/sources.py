"""Which files there are, and how the work on them is cut."""

from __future__ import annotations

import math
import operator
import os
import stat
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from fastbn.dataset import arrays, images
from fastbn.dataset.journal import Identity, is_journal
from fastbn.dataset.measure import ArrayBlock, Block, ImageBlock, reason, refuse_system
from fastbn.stats import ChannelStats

__all__ = ["Sources", "find", "is_same"]

#: A block is small enough that little is lost when a run ends, and large enough to be worth a
#: message: so many values of an array, or so many pictures.
BLOCK_VALUES, BLOCK_FILES = 8 << 20, 16

ARRAY_SUFFIXES = (".npy", ".npz")
KNOWN = ", ".join((*ARRAY_SUFFIXES, *images.SUFFIXES))


class _File(NamedTuple):
    path: str
    size: int
    changed: int  # ns


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


def find(paths: Iterable[Any], axis: int | None, written: Mapping[str, Any]) -> Sources:
    """Look at all paths; folders are searched, in the order of names.

    ``written`` are the files that the scan writes, by argument. The channel axis of arrays is 1
    where it is None.

    Raises
    ------
    FileNotFoundError, ValueError, TypeError
        Where a path is not there, no file is of a known kind, one is there twice, or is one that
        would be written, or an array has a dtype or shape that cannot be right.
    """
    parts: list[list[_File] | tuple[_File, arrays.Stored]] = []
    unreadable: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    targets = {_identity(path, status): name for name, path, status in _existing(written)}
    for path, member, named in _files(paths, unreadable):
        found: list[arrays.Stored] = []
        try:
            status = os.stat(path)
            target = targets.get(_identity(path, status))
            if target == "resume" and not named and is_journal(path):
                continue
            if target is None:
                found = _arrays_of(path, member, status)
        except TypeError:
            raise
        except Exception as error:
            refuse_system(error, path)
            unreadable[path] = reason(error, path)
            continue
        if target is not None:
            raise ValueError(
                f"{target} names {path}, which is of the data and would be overwritten; name "
                "another file"
            )
        file = _File(path, status.st_size, status.st_mtime_ns)
        for stored in found:
            _count_once(seen, (*_identity(path, status), stored.member), stored.name)
            arrays.folded(stored, 1 if axis is None else axis)  # or say that there is no such axis
            parts.append((file, stored))
        if not path.lower().endswith(ARRAY_SUFFIXES):
            _count_once(seen, _identity(path, status), path)
            if not (parts and isinstance(parts[-1], list) and len(parts[-1]) < BLOCK_FILES):
                parts.append([])
            parts[-1].append(file)  # type: ignore[union-attr]
    if not parts and not unreadable:
        raise ValueError(f"no files to read: expected {KNOWN}, or folders of them")
    if axis is None:
        _doubt_axis([part[1] for part in parts if isinstance(part, tuple)])
    return Sources(parts, unreadable)


def _existing(written: Mapping[str, Any]) -> Iterator[tuple[str, str, os.stat_result]]:
    for name, path in written.items():
        with suppress(FileNotFoundError):
            yield name, os.path.abspath(path), os.stat(path)


def _identity(path: str, status: os.stat_result) -> tuple[Any, ...]:
    """Of a file, under whatever name; where the file system has none, its path."""
    return (status.st_dev, status.st_ino) if status.st_ino else (path,)


def _count_once(seen: dict[tuple[Any, ...], str], identity: tuple[Any, ...], name: str) -> None:
    """Refuse a file, or an array of one, that was found before."""
    if identity in seen:
        other = "" if seen[identity] == name else f", as {seen[identity]} too"
        raise ValueError(f"{name} is named twice{other}, and would be counted twice")
    seen[identity] = name


def _arrays_of(path: str, member: str | None, status: os.stat_result) -> list[arrays.Stored]:
    """What is in a file of arrays, or one of them."""
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("is no regular file")
    if not path.lower().endswith(ARRAY_SUFFIXES):
        return []
    if path.lower().endswith(".npy"):
        return [arrays.describe(path)]
    names = arrays.members(path) if member is None else [member]
    return [arrays.describe(path, name) for name in names]


def _doubt_axis(found: list[arrays.Stored]) -> None:
    """Warn of the first array that looks like images whose channels are last."""
    for stored in found:
        shape = stored.shape
        if len(shape) > 2 and shape[-1] in (1, 3, 4) and shape[1] > 4:
            warnings.warn(
                f"{stored.name} has shape {shape}, and the statistics are of its {shape[1]} "
                f"channels on axis 1; the last axis has {shape[-1]}: axis=-1 (--axis -1)?",
                stacklevel=2,
            )
            return


def _files(
    paths: Iterable[Any], unreadable: dict[str, str]
) -> Iterator[tuple[str, str | None, bool]]:
    """Each file, the array of it that was asked for, and whether it was named or found."""
    for given in paths:
        path, name = arrays.split(os.path.abspath(arrays.checked_path(given)))
        if name is None and os.path.isdir(path):
            yield from ((file, None, False) for file in _of_folder(path, unreadable))
            continue
        if not os.path.exists(path):
            what = "file or folder" if name is None else "file"
            raise FileNotFoundError(f"there is no {what} {str(given)!r}")
        if not path.lower().endswith((*ARRAY_SUFFIXES, *images.SUFFIXES)):
            raise ValueError(f"{given} is of no known kind; expected {KNOWN}, or a folder of them")
        yield path, None if name is None else _member(path, name), True


def is_same(path: Any, other: Any) -> bool:
    """Whether both are one file, that is there or is not yet."""
    try:
        return os.path.samefile(path, other)
    except OSError:
        return os.path.realpath(path) == os.path.realpath(other)


def _member(path: str, name: str) -> str:
    try:
        return arrays.member_of(path, name)
    except (zipfile.BadZipFile, OSError) as error:
        refuse_system(error, path)
        raise ValueError(f"{path}: {reason(error, path)}") from error


def _of_folder(folder: str, unreadable: dict[str, str]) -> Iterator[str]:
    """The data in a folder: images, or, where there are none, arrays that are no statistics."""
    found = list(_files_in(folder, set(), unreadable))
    has_images = any(path.lower().endswith(images.SUFFIXES) for path in found)
    left_out = []
    for path in found:
        if path.lower().endswith(images.SUFFIXES):
            yield path
        elif not _is_statistics(path):
            if has_images:
                left_out.append(path)
            else:
                yield path
    if left_out:
        number = f"{len(left_out)} file{'s' * (len(left_out) != 1)}"
        warnings.warn(
            f"{folder} has images, and its arrays are left out: {number}, such as {left_out[0]}; "
            "name those that are of the data",
            stacklevel=2,
        )


def _is_statistics(path: str) -> bool:
    """Whether it is what `DatasetStats.save` writes, whatever its name."""
    try:
        if path.lower().endswith(".npz") and {"format.npy", "m2.npy"} <= {*arrays.members(path)}:
            ChannelStats.load(path)
            return True
    except Exception as error:  # of a file that is something else, or damaged
        refuse_system(error, path)
    return False


def _files_in(
    folder: str, above: set[tuple[int, int]], unreadable: dict[str, str]
) -> Iterator[str]:
    """Files of known kinds in a folder and those in it, in the order of names.

    Hidden ones are left out. A link to a folder is followed, unless it leads back up.
    """
    try:
        status = os.stat(folder)
        here = (status.st_dev, status.st_ino)
        if here in above:
            return
        with os.scandir(folder) as entries:
            found = sorted(entries, key=operator.attrgetter("name"))
    except OSError as error:
        refuse_system(error, folder)
        unreadable[folder] = reason(error, folder)
        return
    for entry in found:
        if entry.name.startswith("."):
            continue
        try:
            is_folder = entry.is_dir()
        except OSError as error:  # a link to itself
            refuse_system(error, entry.path)
            unreadable[entry.path] = reason(error, entry.path)
            continue
        if is_folder:
            yield from _files_in(entry.path, above | {here}, unreadable)
        elif entry.name.lower().endswith((*ARRAY_SUFFIXES, *images.SUFFIXES)):
            yield entry.path
