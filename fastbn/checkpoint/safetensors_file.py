"""Files of safetensors: its own library checks them, and reads what NumPy has a dtype for."""

import json
import mmap
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fastbn.checkpoint import dtypes
from fastbn.checkpoint.contents import Checkpoint, Lazy, Tensors
from fastbn.checkpoint.names import flatten
from fastbn.checkpoint.settings import KEY, by_names, settings_of

#: Dtypes that NumPy has not, by the names of the format.
_NOT_OF_NUMPY = {"BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}


def library() -> Any:
    """The module `safetensors`, or ImportError that says where it comes from."""
    try:
        import safetensors
    except ImportError as error:
        raise ImportError(
            "files of safetensors need that package: pip install 'fastbn[safetensors]'"
        ) from error
    return safetensors


def read(path: Path) -> Checkpoint:
    """The tensors of a file. Their order says nothing: torch's writer sorts them by name."""
    safetensors = library()
    if not path.stat().st_size:
        raise ValueError("the file is empty")
    try:
        handle = safetensors.safe_open(str(path), framework="numpy")
        shapes = {name: tuple(handle.get_slice(name).get_shape()) for name in handle.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"is no whole file of safetensors: {error}") from error
    names = flatten({name: name for name in shapes}, lambda _, value: isinstance(value, str))
    entries = {
        name: Lazy(partial(_values, path, handle, key), shapes[key]) for name, key in names.items()
    }
    settings = settings_of((handle.metadata() or {}).get(KEY))
    return Checkpoint(Tensors(entries), None, ordered=False, settings=by_names(settings, names))


def _values(path: Path, handle: Any, name: str) -> np.ndarray:
    dtype = handle.get_slice(name).get_dtype()
    if dtype in _NOT_OF_NUMPY:
        return _values_in_place(path, name, _NOT_OF_NUMPY[dtype])
    try:
        return np.array(handle.get_tensor(name))
    except Exception as error:  # the library has several for a dtype that it has no name for
        raise ValueError(f"tensor {name!r} has dtype {dtype}, which NumPy has not") from error


def _values_in_place(path: Path, name: str, dtype: str) -> np.ndarray:
    """Values of a dtype that the library cannot give; it has checked the header when it opened."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(size))[name]
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return dtypes.values_of(data, 8 + size + entry["data_offsets"][0], dtype, entry["shape"])
