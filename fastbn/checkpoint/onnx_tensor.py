"""Tensors of an ONNX model as arrays: sizes are checked before memory is taken."""

import contextlib
import math
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

_EXTERNAL = 1  # TensorProto.EXTERNAL
#: Tensors may show the same bytes of a file so many times.
_MAX_COPIES, _FREE = 8, 64 << 20
_NOT_NUMERIC = (0, 8)  # TensorProto.UNDEFINED, STRING


def is_numeric(tensor: Any) -> bool:
    """Whether it holds numbers: some constants are texts."""
    return tensor.data_type not in _NOT_NUMERIC


def read(tensor: Any, name: str, path: Path) -> np.ndarray:
    """A tensor as an array of its own, or an error that names it."""
    from onnx import numpy_helper

    try:
        _check_dims(tensor)
        whole = _with_bytes(tensor, path.parent) if tensor.data_location == _EXTERNAL else tensor
        if whole.HasField("raw_data"):
            _check_bytes(whole)
        return np.array(numpy_helper.to_array(whole))
    except (ArithmeticError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"tensor {name!r} cannot be read: {error}") from error


def _check_dims(tensor: Any) -> None:
    if any(length < 0 for length in tensor.dims):
        raise ValueError(f"it claims the shape {tuple(tensor.dims)}")


def _itemsize(tensor: Any) -> int:
    from onnx import helper

    return helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def _check_bytes(tensor: Any) -> None:
    """Types of less than a byte are packed: at most eight values in a byte."""
    claimed, held = math.prod(tensor.dims), len(tensor.raw_data)
    if claimed > 8 * held:
        raise ValueError(f"it claims the shape {tuple(tensor.dims)} and has {held} bytes")


def _with_bytes(tensor: Any, folder: Path) -> Any:
    """A copy of a tensor with its values, which lie in a file of their own."""
    keys = {entry.key: entry.value for entry in tensor.external_data}
    file = _within(folder, _location(tensor))
    offset, expected = int(keys.get("offset") or 0), math.prod(tensor.dims) * _itemsize(tensor)
    length = int(keys.get("length") or expected)
    size = file.stat().st_size
    if not 0 <= offset <= offset + length <= size:
        raise ValueError(f"it claims {length} bytes from {offset} on of {file}, which has {size}")
    if length > expected:
        raise ValueError(f"it claims {length} bytes of {file}, and its shape takes {expected}")
    with file.open("rb") as stream:
        stream.seek(offset)
        content = stream.read(length)
    copy = type(tensor)(dims=tensor.dims, data_type=tensor.data_type)
    copy.raw_data = content
    return copy


def check_copies(tensors: Iterable[Any], folder: Path) -> None:
    """Refuse tensors that show the same bytes of a file over and over, until memory is full."""
    sizes, claimed = {}, 0
    for tensor in tensors:
        if tensor.data_location == _EXTERNAL:
            with contextlib.suppress(KeyError, OSError, RuntimeError, ValueError):
                file = _within(folder, _location(tensor))
                sizes[file] = file.stat().st_size
                claimed += min(math.prod(tensor.dims) * _itemsize(tensor), sizes[file])
    if claimed > max(_MAX_COPIES * sum(sizes.values()), _FREE):
        raise ValueError(
            f"describes tensors of {claimed} bytes in files of {sum(sizes.values())} beside it"
        )


def _location(tensor: Any) -> str:
    return next((e.value for e in tensor.external_data if e.key == "location"), "")


def _within(folder: Path, location: str) -> Path:
    """The file that a model names, if it is a plain file within the folder of the model."""
    folder = folder.resolve()
    file = (folder / location).resolve()
    if not location or Path(location).is_absolute() or folder not in file.parents:
        raise ValueError(
            f"its values lie in {location!r}, which is not within {folder}; nothing else is read"
        )
    if not stat.S_ISREG(file.stat().st_mode):
        raise ValueError(f"its values lie in {location!r}, which is no plain file")
    return file
