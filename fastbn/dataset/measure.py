"""One block of a dataset: what a worker is told, does, and tells."""

from __future__ import annotations

import dataclasses
import errno
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from fastbn.dataset.arrays import Piece, Stored, cut, opened, read
from fastbn.dataset.histogram import Bins
from fastbn.dataset.images import Settings, adopt, pictures
from fastbn.functional import channel_stats
from fastbn.stats import ChannelStats

__all__ = [
    "ArrayBlock", "Block", "Found", "ImageBlock", "Kind", "Measured", "Options", "added",
    "arrays_of", "kind_of", "measure", "reason", "refuse_system",
]  # fmt: skip

#: Values that are read and summed at once: few enough to stay in a cache.
PIECE = 1 << 20
#: Errors of the machine, which say nothing about a file: the next one would meet them too.
_SYSTEM = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE}
#: What ends no channel's extremes, of a channel that has seen nothing.
_NOTHING = {"min": np.inf, "max": -np.inf}

#: Number of channels, dtype, and colours where they are unusual, such as CMYK.
Kind = tuple[int, str, str]


class Options(NamedTuple):
    """What is the same for all blocks."""

    mode: str | None
    skipna: bool
    pillow: Settings | None
    bins: Bins | None = None
    kind: Kind | None = None  # what the bins are for


class ArrayBlock(NamedTuple):
    """A piece of an array in a file; of compressed values, all of them."""

    stored: Stored
    channels: int  # of the whole array
    piece: Piece


class ImageBlock(NamedTuple):
    """Some files with a picture each."""

    paths: tuple[str, ...]


Block = ArrayBlock | ImageBlock


class Found(NamedTuple):
    """What there is of data of one `Kind`."""

    stats: ChannelStats
    nan: np.ndarray
    files: int
    first: str
    counts: np.ndarray | None


class Measured(NamedTuple):
    """What came of a block: by kind, and what could not be read.

    ``checksum``: CRC-32 of the values of a block whose array has one, else 0.
    """

    found: dict[Kind, Found]
    unreadable: dict[str, str]
    checksum: int = 0


def measure(block: Block, options: Options) -> Measured:
    """Statistics of a block."""
    found: dict[Kind, Found] = {}
    unreadable: dict[str, str] = {}
    checksum = 0
    if options.pillow is not None:
        adopt(options.pillow)
    for name, read_it in _parts(block, options):
        try:
            of_file: dict[Kind, Found] = {}
            for kind, new, data in read_it():
                of_file[kind] = added(of_file.get(kind), new)
                checksum = zlib.crc32(data, checksum)
        except (Exception, RecursionError) as error:  # Pillow and zipfile raise whatever they like
            refuse_system(error, name)
            unreadable[name] = reason(error, name)
            continue
        for kind, new in of_file.items():
            found[kind] = added(found.get(kind), new)
    return Measured(found, unreadable, checksum)


def refuse_system(error: BaseException, name: str) -> None:
    """Raise an error that is the machine's, and not of a file that is damaged."""
    if isinstance(error, OSError) and error.errno in _SYSTEM and error.filename is None:
        raise OSError(error.errno, error.strerror, name) from error
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _SYSTEM):
        raise error


def reason(error: BaseException, name: str) -> str:
    """Why a file cannot be read, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    text = " ".join(str(error).split()).replace(f" {name!r}", "") or type(error).__name__
    return text if len(text) < 300 else f"{text[:300]}…"


def _parts(
    block: Block, options: Options
) -> Iterator[tuple[str, Callable[[], Iterator[tuple[Kind, Found, Any]]]]]:
    if isinstance(block, ImageBlock):
        for path in block.paths:
            yield path, lambda path=path: _of_image(path, options)  # type: ignore[misc]
    else:
        yield block.stored.name, lambda: _of_array(block, options)


def _of_image(path: str, options: Options) -> Iterator[tuple[Kind, Found, bytes]]:
    files = 1
    for picture, colours in pictures(path, options.mode):
        height, width, channels = picture.shape
        flat = picture.reshape(height * width, channels, 1)
        step = max(1, PIECE // channels)
        kind = kind_of(channels, picture.dtype, colours)
        for k in range(0, len(flat), step):
            yield kind, _found(flat[k : k + step], files, path, options, kind), b""
            files = 0


def _of_array(block: ArrayBlock, options: Options) -> Iterator[tuple[Kind, Found, Any]]:
    kind = kind_of(block.channels, np.dtype(block.stored.dtype))
    for piece, x in arrays_of(block):
        files = int(piece.start == 0)
        found = _found(x, files, block.stored.name, options, kind, piece.channel)
        data = b"" if block.stored.checksum is None else x.reshape(-1).view(np.uint8).data
        yield kind, _spread(found, piece.channel, block.channels), data


def arrays_of(block: ArrayBlock) -> Iterator[tuple[Piece, np.ndarray]]:
    """The values, a piece after the other; the array's memory is used again for the next one."""
    start, shape, channel = block.piece
    dtype = np.dtype(block.stored.dtype)
    buffer = np.empty(min(PIECE, max(1, shape[0] * shape[1] * shape[2])), dtype)
    with opened(block.stored) as (file, offset):
        for piece in cut(shape, PIECE):
            x = buffer[: np.prod(piece.shape)].reshape(piece.shape)
            read(file, offset + (start + piece.start) * dtype.itemsize, x)
            yield Piece(start + piece.start, piece.shape, channel + piece.channel), x


def kind_of(channels: int, dtype: np.dtype, colours: str = "") -> Kind:
    """Floating-point numbers of different precision mean the same; integers do not."""
    name = "floating point" if dtype.kind == "f" else dtype.newbyteorder("=").name
    return channels, name, colours


def _found(
    x: np.ndarray, files: int, name: str, options: Options, kind: Kind, first: int = 0
) -> Found:
    """Of values (n, channels, inner), the channels from ``first`` on."""
    stats = _statistics_of(x, options.skipna)
    if options.skipna:
        nan = (x.shape[0] * x.shape[2] - stats.count).astype(np.int64)
    elif np.isnan(stats.mean).any():
        nan = np.isnan(x).sum((0, 2))
    else:
        nan = np.zeros(x.shape[1], np.int64)
    counts = None
    if options.bins is not None and options.kind == kind:
        counts = options.bins.of(first, x.shape[1]).count_of(x)
    return Found(stats, nan, files, name, counts)


def _statistics_of(x: np.ndarray, skipna: bool) -> ChannelStats:
    """The only place that takes statistics of values (n, channels, inner)."""
    if x.shape[2] == 1:  # channels last
        x = x[:, :, 0]
    return channel_stats(x, skipna=skipna)


def _spread(found: Found, first: int, channels: int) -> Found:
    """Of some channels into all; the others have seen nothing."""
    some = found.nan.size
    if some == channels:
        return found

    def wide(values: np.ndarray, nothing: float = 0) -> np.ndarray:
        all_of_them = np.full((channels, *values.shape[1:]), nothing, values.dtype)
        all_of_them[first : first + some] = values
        return all_of_them

    fields: dict[str, Any] = {}
    for field in dataclasses.fields(found.stats):
        values = getattr(found.stats, field.name)
        nothing = _NOTHING.get(field.name, 0)
        fields[field.name] = None if values is None else wide(values, nothing)
    stats = ChannelStats(**fields)
    counts = None if found.counts is None else wide(found.counts)
    return found._replace(stats=stats, nan=wide(found.nan), counts=counts)


def added(so_far: Found | None, new: Found) -> Found:
    """Both together; who calls it sees to the order."""
    if so_far is None:
        return new
    both = so_far.counts is not None and new.counts is not None
    return Found(
        so_far.stats.merge(new.stats),
        so_far.nan + new.nan,
        so_far.files + new.files,
        so_far.first,
        so_far.counts + new.counts if both else None,  # type: ignore[operator]
    )
