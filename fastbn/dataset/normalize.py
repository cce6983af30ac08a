"""Normalizing an array in a file into another file, window by window."""

from __future__ import annotations  # so that `help` shows types as they are written here

import errno
import io
import math
import os
import shutil
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy

from fastbn._call.arguments import as_axis
from fastbn._call.standardize_terms import number, numbers
from fastbn._system.files import check_writable, replacing
from fastbn._system.progress import Progress
from fastbn.dataset.arrays import (
    Stored,
    WrongChecksum,
    check_values,
    checked_path,
    cut,
    describe,
    folded,
    member_of,
    members,
    memory_axis,
    opened,
    read,
    split,
)
from fastbn.dataset.measure import PIECE, reason, refuse_system
from fastbn.standardize import standardize

__all__ = ["normalize_dataset"]

#: Values that are held at once where the channel axis moves.
WINDOW = 8 << 20


class _Terms(NamedTuple):
    """``(x * scale - mean) / std``; mean and std of every channel."""

    mean: np.ndarray
    std: np.ndarray
    scale: float

    def of(self, first: int, channels: int) -> _Terms:
        some = slice(first, first + channels)
        return _Terms(self.mean[some], self.std[some], self.scale)


def normalize_dataset(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    mean: Any,
    std: Any,
    *,
    scale: float = 1.0,
    axis: int | None = None,
    dtype: Any = np.float32,
    out_axis: int | None = None,
    progress: bool = True,
) -> None:
    """Write ``(x * scale - mean) / std`` of an array in a file to another file.

    Both files are gone through in windows of some megabytes, so arrays may be larger than memory.
    ``target`` is there at the end, as a whole, or not at all.

    Parameters
    ----------
    source : path
        A ``.npy``, or ``"file.npz:name"`` (``file.npz`` where it holds one array), of uint8, int8,
        uint16, int16, float16, float32 or float64.
    target : path
        The ``.npy`` to write. One that is there is replaced.
    mean, std : array_like, shape (C,), or numbers
        Such as those of `dataset_stats`. ``std`` may be negative, as a layer's negative weight
        makes it, and not 0.
    scale : float
        What takes the values to the units of mean and std: ``1 / 255`` for means of 0.4.
    axis : int, optional
        The channel axis; 1 by default.
    dtype : float32 or float64
        Of the target.
    out_axis : int, optional
        Where the channel axis is in the target: ``axis=-1, out_axis=1`` makes NCHW of NHWC. By
        default it stays.
    progress : bool
        A bar on stderr.

    Raises
    ------
    FileNotFoundError, TypeError
        If there is no such file or folder; the array is of another dtype.
    ValueError
        If source and target are one file, the array cannot be read or has no such axis, or mean
        and std do not fit its channels, are not finite, or std is 0.
    OSError
        If the disk is too full for the target, which is checked before.

    Warns
    -----
    UserWarning
        If the array is of integers, and mean and std look like those of values from 0 to 1.

    Notes
    -----
    An array in an ``.npz`` that is not compressed is read twice: its checksum is compared before.

    A source in Fortran order makes a target in Fortran order.

    Examples
    --------
    >>> import fastbn, numpy as np, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     x, y = f"{folder}/x.npy", f"{folder}/y.npy"
    ...     np.save(x, np.array([[0, 10], [2, 30]], np.uint8))
    ...     stats = fastbn.dataset_stats(x).stats
    ...     fastbn.normalize_dataset(x, y, stats.mean, stats.std())
    ...     np.load(y)
    array([[-1., -1.],
           [ 1.,  1.]], dtype=float32)
    """
    path, stored = _source(source)
    axis = 1 if axis is None else as_axis(axis)
    position = memory_axis(stored, axis)
    moved = axis if out_axis is None else as_axis(out_axis)
    to = memory_axis(stored, moved)
    terms = _checked_terms(mean, std, scale, folded(stored, axis)[1])
    _doubt_scale(terms, np.dtype(stored.dtype))
    kind = np.dtype(dtype)
    if kind not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise ValueError(f"dtype must be float32 or float64, got {kind}")
    out = _checked_target(target, path)
    rank = len(stored.shape)
    shape = _moved(stored.shape, axis % rank, moved % rank)
    header = _header(shape, kind, stored.fortran)
    values = math.prod(shape)
    _check_room(out, len(header) + values * kind.itemsize)
    shown = None if progress else io.StringIO()
    with (
        replacing(out) as part,
        part.open("wb") as file,
        Progress(stored.nbytes, "writing", shown, unit="bytes") as bar,
    ):
        file.write(header)
        steps = (
            _straight(stored, axis, terms, kind, file)
            if position == to
            else _moving(stored, position, to, terms, kind, file, len(header))
        )
        try:
            check_values(stored)
            for done in steps:
                bar.advance(done)
        except (EOFError, WrongChecksum, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{stored.name}: {error}") from error
        if file.seek(0, os.SEEK_END) != len(header) + values * kind.itemsize:
            raise AssertionError("a part of the array was not written")


def _straight(
    stored: Stored, axis: int, terms: _Terms, kind: np.dtype, target: IO[bytes]
) -> Iterator[int]:
    """Value after value, in the order of memory."""
    dtype = np.dtype(stored.dtype)
    shape = folded(stored, axis)
    buffer = np.empty(min(PIECE, max(1, math.prod(shape))), dtype)
    out = np.empty(buffer.size, kind)
    with opened(stored) as (file, offset):
        for piece in cut(shape, PIECE):
            count = math.prod(piece.shape)
            x, y = buffer[:count].reshape(piece.shape), out[:count].reshape(piece.shape)
            read(file, offset + piece.start * dtype.itemsize, x)
            _standardize(x, terms.of(piece.channel, piece.shape[1]), 1, 1, y)
            target.write(y.reshape(-1).view(np.uint8).data)
            yield x.nbytes


def _moving(
    stored: Stored, position: int, to: int, terms: _Terms, kind: np.dtype, target: IO[bytes],
    begin: int,
) -> Iterator[int]:  # fmt: skip
    """With the channel axis moved past others.

    Both arrays are (n, first, second, inner), where the second array has first and second
    swapped; one of them is the channel axis.
    """
    dtype = np.dtype(stored.dtype)
    shape = stored.shape[::-1] if stored.fortran else stored.shape
    low, high = min(position, to), max(position, to)
    middle = low + 1 if position < to else high
    n, first, second, inner = (
        math.prod(part)
        for part in (shape[:low], shape[low:middle], shape[middle : high + 1], shape[high + 1 :])
    )
    channel = 1 if position < to else 2  # where it is in (n, first, second, inner)
    slab = first * second * inner
    if not n * slab:
        return
    if stored.offset is None and slab > WINDOW:
        raise ValueError(
            f"{stored.name} is compressed and its samples are too large for moving the channel "
            "axis; unpack it to .npy before"
        )
    with opened(stored) as (file, offset):
        for k, count, box in _boxes((n, first, second, inner), channel):
            x = np.empty((count, *(b - a for a, b in box)), dtype)
            y = np.empty((count, *(x.shape[j] for j in (2, 1, 3))), kind)
            for run, view in _runs(x, k, (first, second, inner), box):
                read(file, offset + run * dtype.itemsize, view)
            some = terms.of(box[channel - 1][0], x.shape[channel])
            _standardize(x, some, channel, 3 - channel, y)
            swapped = (box[1], box[0], box[2])
            for run, view in _runs(y, k, (second, first, inner), swapped):
                target.seek(begin + run * kind.itemsize)
                target.write(view.reshape(-1).view(np.uint8).data)
            yield x.nbytes


def _boxes(
    shape: tuple[int, int, int, int], channel: int
) -> Iterator[tuple[int, int, tuple[tuple[int, int], ...]]]:
    """Cut into whole samples (index, how many), or into parts of one; as ranges of three axes."""
    n, first, second, inner = shape
    slab = first * second * inner
    if slab <= WINDOW:
        step = WINDOW // slab
        for k in range(0, n, step):
            yield k, min(step, n - k), ((0, first), (0, second), (0, inner))
        return
    lengths = [first, second, inner]
    steps = list(lengths)
    for j in (2 - channel, 2, channel - 1):  # the other axis, what is within, channels at last
        rest = math.prod(steps) // steps[j]
        steps[j] = max(1, min(steps[j], WINDOW // rest))
        if math.prod(steps) <= WINDOW:
            break
    ranges = [
        [(a, min(a + step, length)) for a in range(0, length, step)]
        for step, length in zip(steps, lengths, strict=True)
    ]
    for k in range(n):
        for one in ranges[0]:
            for two in ranges[1]:
                for three in ranges[2]:
                    yield k, 1, (one, two, three)


def _runs(
    box: np.ndarray, k: int, shape: tuple[int, int, int], ranges: tuple[tuple[int, int], ...]
) -> Iterator[tuple[int, np.ndarray]]:
    """Parts of a box that lie in one run in the whole array: where each begins, and its values."""
    one, two, inner = shape
    (a, a_end), (b, b_end), (c, c_end) = ranges
    begin = ((k * one + a) * two + b) * inner + c
    rows, lines = b_end - b == two, c_end - c == inner
    if rows and lines:  # several samples too, which are whole
        yield begin, box
    elif lines:
        for i in range(a_end - a):
            yield begin + i * two * inner, box[0, i]
    else:
        for i in range(a_end - a):
            for j in range(b_end - b):
                yield begin + (i * two + j) * inner, box[0, i, j]


def _standardize(x: np.ndarray, terms: _Terms, axis: int, out_axis: int, out: np.ndarray) -> None:
    """The only place that computes; ``out`` has the channel axis at ``out_axis``."""
    standardize(
        x, terms.mean, abs(terms.std), scale=terms.scale, axis=axis, dtype=out.dtype, out=out,
        out_axis=out_axis,
    )  # fmt: skip
    channels = np.moveaxis(out, out_axis, 0)
    for channel in np.flatnonzero(terms.std < 0):
        # np.negative in place is wrong where values are 16 or 64 bytes apart (NumPy 2.2 to 2.4)
        channels[channel] *= -1


def _source(source: Any) -> tuple[str, Stored]:
    path, name = split(os.path.abspath(checked_path(source)))
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no file {str(source)!r}")
    if not path.lower().endswith((".npy", ".npz")):
        raise ValueError(f"the source must be a .npy, or an array of an .npz, got {source}")
    try:
        member = None
        if path.lower().endswith(".npz"):
            member = _only_member(path) if name is None else member_of(path, name)
        return path, describe(path, member)
    except TypeError:
        raise
    except Exception as error:
        refuse_system(error, path)
        raise ValueError(f"{source}: {reason(error, path)}") from error


def _only_member(path: str) -> str:
    there = members(path)
    if len(there) != 1:
        names = ", ".join(name[:-4] for name in there[:10]) or "none"
        raise ValueError(f"name one of its arrays, as in file.npz:name; it has {names}")
    return there[0]


def _checked_target(target: Any, source: str) -> Path:
    path = checked_path(target)
    if path.suffix.lower() != ".npy":
        raise ValueError(f"the target must end in .npy, got '{path}'")
    if path.exists() and os.path.samefile(path, source):
        raise ValueError(f"source and target are one file, {path}; name another target")
    check_writable(path)
    return path


def _checked_terms(mean: Any, std: Any, scale: Any, channels: int) -> _Terms:
    found = []
    for name, value in (("mean", mean), ("std", std)):
        given = numbers(name, value)
        if given is None:
            raise TypeError(f"{name} must be numbers, got {value!r}")
        array = given.astype(np.float64)
        if array.shape not in ((), (1,), (channels,)):
            raise ValueError(
                f"{name} has shape {array.shape}, and the array has {channels} channels; is axis "
                "(--axis) right?"
            )
        array = np.broadcast_to(array, (channels,))
        bad = np.flatnonzero(~np.isfinite(array) | (array == 0) * (name == "std"))
        if bad.size:
            raise ValueError(f"{name} is {array[bad[0]]} in channel {bad[0]}")
        found.append(array)
    scale = float(number("scale", scale))
    if scale == 0:
        raise ValueError(f"scale must be a number other than 0, got {scale}")
    return _Terms(found[0], found[1], scale)


def _doubt_scale(terms: _Terms, dtype: np.dtype) -> None:
    """Warn of mean and std of values from 0 to 1 for values that are integers."""
    small = (abs(terms.mean) <= 1).all() and (abs(terms.std) <= 1).all()
    trivial = not terms.mean.any() and (terms.std == 1).all()
    if dtype.kind in "ui" and terms.scale == 1 and small and not trivial:
        most = np.iinfo(dtype).max
        warnings.warn(
            f"the values are {dtype}, and mean and std are at most 1: scale=1/{most} (--scale "
            f"1/{most}) is probably meant, unless the values are as small",
            stacklevel=3,
        )


def _moved(shape: tuple[int, ...], axis: int, to: int) -> tuple[int, ...]:
    rest = [length for k, length in enumerate(shape) if k != axis]
    return (*rest[:to], shape[axis], *rest[to:])


def _header(shape: tuple[int, ...], dtype: np.dtype, fortran: bool) -> bytes:
    file = io.BytesIO()
    npy.write_array_header_1_0(file, {"descr": dtype.str, "fortran_order": fortran, "shape": shape})
    return file.getvalue()


def _check_room(target: Path, size: int) -> None:
    free = shutil.disk_usage(target.absolute().parent).free
    if size > free:
        raise OSError(
            errno.ENOSPC, f"{target} takes {size / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free"
        )
