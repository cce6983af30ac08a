"""Files of ``np.savez``. Pickled arrays are refused; sizes are checked before memory is taken."""

import zipfile
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from fastbn.checkpoint import zip_file
from fastbn.checkpoint.contents import Checkpoint, Lazy, Tensors
from fastbn.checkpoint.names import flatten
from fastbn.checkpoint.settings import KEY, by_names, settings_of

#: An array may unpack to so many bytes, or to so many times its bytes in the file.
_FREE, _MAX_RATIO = 256 << 20, 200
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_ERRORS = (*zip_file.ERRORS, SyntaxError, TypeError, MemoryError)


def read(path: Path) -> Checkpoint:
    """The arrays of a file, in their order."""
    archive = zip_file.opened(path)  # closes itself when the last array that uses it is gone
    infos = zip_file.entries_of(archive)
    size, packed = (
        sum(getattr(i, n) for i in infos.values()) for n in ("file_size", "compress_size")
    )
    if size > max(_FREE, _MAX_RATIO * packed):
        raise ValueError(f"unpacks from {packed} bytes to {size}, as a zip bomb does")
    arrays = {
        name.removesuffix(".npy"): info for name, info in infos.items() if name.endswith(".npy")
    }
    note = arrays.pop(KEY, None)
    settings = settings_of(None if note is None else str(_values(archive, note)))
    found = flatten(arrays, lambda _, value: isinstance(value, zipfile.ZipInfo))
    entries = {
        name: Lazy(partial(_values, archive, info), _shape(archive, info))
        for name, info in found.items()
    }
    names = {name: info.filename.removesuffix(".npy") for name, info in found.items()}
    return Checkpoint(Tensors(entries), None, settings=by_names(settings, names))


def _shape(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[int, ...] | None:
    """Shape by the header; None if there is something wrong, which is told when it is read."""
    try:
        with archive.open(info) as file:
            return checked_header(file, info.file_size)[0]
    except _ERRORS:
        return None


def _values(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    name = info.filename
    if info.file_size > max(_FREE, _MAX_RATIO * info.compress_size):
        raise ValueError(
            f"{name!r} unpacks from {info.compress_size} bytes to {info.file_size}, as a zip bomb "
            "does; if the file is yours, save it with np.savez, not compressed"
        )
    try:
        with archive.open(info) as file:
            _, dtype, _ = checked_header(file, info.file_size)
            file.seek(0)
            array = npy.read_array(file, allow_pickle=False)
            if file.read(1):
                raise ValueError("there is more in it than the array")
    except _ERRORS as error:
        raise ValueError(f"{name!r} cannot be read as an array: {error}") from error
    if dtype.kind == "V":
        raise ValueError(
            f"{name!r} has dtype {dtype}, which np.savez makes of bfloat16 and of what NumPy does "
            "not know; save array.astype(np.float32)"
        )
    return array


def checked_header(file: IO[bytes], length: int) -> tuple[tuple[int, ...], np.dtype, bool]:
    """Shape, dtype and Fortran order of a ``.npy`` whose header is right about its length."""
    header = _HEADERS.get(npy.read_magic(file))
    if header is None:
        raise ValueError("it is in a version of the format that is for named fields")
    shape, fortran, dtype = header(file)
    if dtype.hasobject:
        raise ValueError(
            "it holds Python objects, which are a pickle and are not read; save it as numbers"
        )
    size = dtype.itemsize
    for extent in shape:
        size *= extent
    if size != length - file.tell() or min(shape, default=0) < 0:
        raise ValueError(
            f"its header says {size if size < 1 << 64 else 'absurdly many'} bytes of values, and "
            f"there are {length - file.tell()}"
        )
    return shape, dtype, fortran
