"""Statistics of what lies in files, however much that is."""

from __future__ import annotations  # so that `help` shows types as they are written here

import contextlib
import dataclasses
import io
import os
from collections.abc import Iterable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np

from fastbn._call.arguments import as_axis
from fastbn._call.settings import check_bool
from fastbn._system.files import check_writable
from fastbn._system.progress import Progress
from fastbn._system.threads import get_num_threads
from fastbn.dataset import images
from fastbn.dataset.arrays import checked_path
from fastbn.dataset.histogram import MOST_CHANNELS, Histograms
from fastbn.dataset.journal import Journal
from fastbn.dataset.measure import Found, Kind, Measured, Options
from fastbn.dataset.pool import Workers, can_start
from fastbn.dataset.scan import bins_of, scan, settings_of
from fastbn.dataset.sources import BLOCK_FILES, Sources, find, is_same
from fastbn.stats import ChannelStats

__all__ = ["DatasetStats", "dataset_stats"]

#: Less than so many bytes are done before other processes have started, which takes half a second:
#: packed ones, and those that are read as they are (5 to 15 GB/s).
_WORTH_A_WORKER, _WORTH_A_WORKER_AS_THEY_ARE = 128 << 20, 4 << 30


@dataclasses.dataclass(frozen=True, eq=False)
class DatasetStats:
    """What `dataset_stats` found.

    Attributes
    ----------
    stats : ChannelStats
        Count, mean and sum of squared deviations of every channel.
    files : int
        How many pictures' files and arrays these are of.
    dtype : str
        "uint8", "int8", "uint16", "int16" or "floating point".
    nan_count : ndarray of int64, shape (C,)
        How many values were NaN.
    unreadable : dict of str to str
        Files that were left out, and why.
    histograms : Histograms or None
        ``edges``, ``counts``, ``below`` and ``above`` of every channel.
    """

    stats: ChannelStats
    files: int
    dtype: str
    nan_count: np.ndarray
    unreadable: dict[str, str]
    histograms: Histograms | None = None

    @property
    def mean(self) -> np.ndarray:
        """That of ``stats``."""
        return self.stats.mean

    def std(self, ddof: int = 0) -> np.ndarray:
        """That of ``stats``."""
        return self.stats.std(ddof)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save ``stats``, for `ChannelStats.load`."""
        self.stats.save(path)

    @property
    def greatest(self) -> int | None:
        """The greatest value that unsigned integers of this dtype have; of others None."""
        return int(np.iinfo(self.dtype).max) if self.dtype.startswith("uint") else None


def dataset_stats(
    paths: Any,
    *,
    axis: int | None = None,
    mode: str | None = None,
    skipna: bool = False,
    workers: int | None = None,
    executor: Executor | None = None,
    on_unreadable: str = "raise",
    resume: str | os.PathLike[str] | None = None,
    histogram: bool = False,
    save: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> DatasetStats:
    """Statistics of every channel of arrays and images in files, read once, in little memory.

    All values of a channel count alike, as if the files were one array: a large image weighs more
    than a small one. (The average of the images' standard deviations is something else, and
    smaller.) Blocks are cut by files and positions, and their statistics merged in that order, so
    **the bits are the same for any number of workers**, and after a run that was interrupted.

    Parameters
    ----------
    paths : path or iterable of paths
        ``.npy``, ``.npz`` (all its arrays, or ``"file.npz:name"`` for one), images (PNG, JPEG,
        TIFF, WebP, BMP; they need ``pip install 'fastbn[images]'``), and folders, which are
        searched in the order of names. In a folder with images arrays are left out, which is a
        warning; statistics that were saved are left out of any. Arrays are of uint8, int8, uint16,
        int16, float16, float32 or float64.
    axis : int, optional
        Channel axis of arrays; 1 by default. That of images is always the last.
    mode : "L", "RGB" or "RGBA", optional
        Convert each image to it, as Pillow's `convert` does. Without it, palettes become RGB, black
        and white becomes L, and all images have to have equally many channels.
    skipna : bool
        Leave NaN out; else NaN makes the statistics of its channel NaN.
    workers : int, optional
        Processes; as many as `get_num_threads` says by default, or one where there is little to do.
        Within another program, where no Python can be started, this process does all.
    executor : concurrent.futures.Executor, optional
        Where the work is done instead; its workers have to see the same files.
    on_unreadable : "raise" or "skip"
        What to do about damaged files: all are listed in an error at the end, or left out.
    resume : path, optional
        A journal of what is finished. A run that finds it goes on from there; the file is removed
        at the end. Compressed arrays of an ``.npz`` are one step each.
    histogram : bool
        Also count the values in 256 bins a channel. Bins of 8-bit numbers are the values. Those of
        others are the range of the first four million values, and half of that on either side.
    save : path, optional
        Write the statistics to this ``.npz`` or ``.json`` file, before the journal is removed.
    progress : bool
        A bar on stderr.

    Returns
    -------
    DatasetStats

    Raises
    ------
    FileNotFoundError, TypeError
        If a path is not there; an array has another dtype.
    ValueError
        If there is nothing to read, or something that cannot be read; if the data is of several
        kinds, with 3 and 4 channels, with 8 and 16 bits or of CMYK and RGBA; if a file or an array
        is there twice, by whatever names and links; if ``save`` or ``resume`` is one of the files,
        or they are one; if the journal is of other data, or no journal.
    OSError, MemoryError
        If the machine fails, not a file: no memory, no more open files, a disk that cannot be read.
    ChildProcessError
        If a worker was killed. What is finished is in the journal.

    Warns
    -----
    UserWarning
        If arrays are left out of a folder, or, where no axis is given, the last one looks like it.

    Notes
    -----
    Of a TIFF all pages count, of other files the first picture. Names that begin with a dot are
    left out of folders. 16 bits a colour, and a TIFF's numbers that Pillow takes for others, are
    not read. Values of an ``.npz`` are compared with its checksums, compressed or not.
    Pillow's limits, ``MAX_IMAGE_PIXELS`` and ``LOAD_TRUNCATED_IMAGES``, are those of the process
    that calls, in each worker too.

    References
    ----------
    Chan, Golub & LeVeque 1979, as in `ChannelStats`.

    Examples
    --------
    >>> import fastbn, numpy as np, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/a.npy", np.array([[1.0], [2.0]]))
    ...     np.save(f"{folder}/b.npy", np.array([[6.0]]))
    ...     found = fastbn.dataset_stats(folder)
    >>> found.stats.mean, found.stats.var(), found.files
    (array([3.]), array([4.66666667]), 2)
    """
    axis = None if axis is None else as_axis(axis)
    if mode is not None and mode not in images.MODES:
        raise ValueError(f"mode must be one of {', '.join(images.MODES)}, got {mode!r}")
    if on_unreadable not in ("raise", "skip"):
        raise ValueError(f"on_unreadable must be 'raise' or 'skip', got {on_unreadable!r}")
    skipna = check_bool("skipna", skipna)
    target = None if save is None else _checked_target(save)
    written = {"save": target, "resume": None if resume is None else checked_path(resume)}
    written = {name: path for name, path in written.items() if path is not None}
    if len(written) == 2 and is_same(*written.values()):
        raise ValueError(f"save and resume are one file, {save}; name another with one of them")
    sources = find(_listed(paths), axis, written)
    axis = 1 if axis is None else axis
    has_images = any(isinstance(part, list) for part in sources.parts)
    quiet = images.quiet if has_images else contextlib.nullcontext
    options = Options(mode, skipna, images.settings() if has_images else None)
    with quiet():
        options = _with_bins(sources, axis, options) if histogram else options
    journal = Journal(written.get("resume"), settings_of(axis, options))
    try:
        with quiet():
            measured = _scan(sources, axis, options, journal, workers, executor, progress)
        _check_readable(measured, on_unreadable)
        kind, found = _only_kind(measured, journal)
        result = _result(kind, found, measured, options)
        if target is not None:
            result.stats.save(target)
        journal.remove()
    finally:
        journal.close()
    return result


def _scan(
    sources: Sources, axis: int, options: Options, journal: Journal, workers: int | None,
    executor: Executor | None, progress: bool,
) -> Measured:  # fmt: skip
    amount = sources.amount()
    unit = "images" if sources.only_images else "bytes"
    bar = Progress(amount, "reading", None if progress else io.StringIO(), unit=unit)
    number = _workers(workers, sources) if executor is None else 1
    own = contextlib.nullcontext() if number == 1 else Workers(number)
    with own as pool, bar:
        return scan(sources, axis, options, executor or pool, journal, bar)


def _listed(paths: Any) -> Iterable[Any]:
    if isinstance(paths, (str, os.PathLike)):
        return [paths]
    if not isinstance(paths, Iterable):
        raise TypeError(f"paths must be a path or several, got {type(paths).__name__}")
    return paths


def _workers(asked: int | None, sources: Sources) -> int:
    if asked is not None:
        if isinstance(asked, bool) or not isinstance(asked, (int, np.integer)):
            raise TypeError(f"workers must be an integer, got {asked!r}")
        if asked < 1:
            raise ValueError(f"workers must be 1 or more, got {asked}")
    if not can_start():  # Python within another program
        return 1
    if asked is not None:
        return int(asked)
    pictures = sum(len(part) for part in sources.parts if isinstance(part, list))
    stored = [part[1] for part in sources.parts if isinstance(part, tuple)]
    packed = sum(each.nbytes for each in stored if each.offset is None)
    plain = sum(each.nbytes for each in stored if each.offset is not None)
    few = packed < _WORTH_A_WORKER and plain < _WORTH_A_WORKER_AS_THEY_ARE
    return 1 if few and pictures < 8 * BLOCK_FILES else get_num_threads()


def _with_bins(sources: Sources, axis: int, options: Options) -> Options:
    options = bins_of(sources, axis, options)
    if options.bins is not None and len(options.bins.low) > MOST_CHANNELS:
        channels = len(options.bins.low)
        raise ValueError(f"histograms are for {MOST_CHANNELS} channels at most: {channels}")
    return options


def _check_readable(measured: Measured, on_unreadable: str) -> None:
    bad = measured.unreadable
    if bad and (on_unreadable == "raise" or not measured.found):
        lines = [f"\n  {path}: {why}" for path, why in list(bad.items())[:10]]
        more = f"\n  and {len(bad) - 10} more" if len(bad) > 10 else ""
        way_out = (
            "\nRepair or remove them, or leave them out with on_unreadable='skip' "
            "(--skip-unreadable)"
        )
        none = "" if measured.found else ", and there is no other"
        files = "file" if len(bad) == 1 else "files"
        raise ValueError(
            f"{len(bad)} {files} cannot be read{none}:" + "".join(lines) + more
            + way_out * bool(measured.found)
        )  # fmt: skip


def _only_kind(measured: Measured, journal: Journal) -> tuple[Kind, Found]:
    if not measured.found:
        journal.remove()
        raise ValueError("the files hold no values: every array is empty")
    if len(measured.found) > 1:
        journal.remove()  # going on would lead here again
        lines = [
            f"\n  {channels} channel{'s' * (channels != 1)} of {dtype}{colours and ', ' + colours}"
            f": {found.files} file{'s' * (found.files != 1)}, such as {found.first}"
            for (channels, dtype, colours), found in measured.found.items()
        ]
        raise ValueError(
            "the files are of several kinds:" + "".join(lines) + "\nName those of one kind; images "
            "can be converted with mode='RGB' (--mode RGB)"
        )
    return next(iter(measured.found.items()))


def _result(kind: Kind, found: Found, measured: Measured, options: Options) -> DatasetStats:
    histograms = None
    if options.kind is not None and options.kind != kind:
        raise ValueError(
            "the bins of the histogram are for the first array, which is left out as unreadable "
            f"and was of another kind than the rest: {next(iter(measured.unreadable))}; remove it"
        )
    if options.bins is not None and found.counts is not None:
        histograms = options.bins.histograms(found.counts)
    return DatasetStats(
        found.stats, found.files, kind[1], found.nan, measured.unreadable, histograms
    )


def _checked_target(save: Any) -> Path:
    """Before hours of work: whether there can be a file."""
    path = checked_path(save)
    check_writable(path)
    if path.suffix.lower() not in (".npz", ".json"):
        raise ValueError(f"statistics are saved as .npz or .json, got '{path}'")
    folder = path.absolute().parent
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"the folder {str(folder)!r} cannot be written to")
    return path
