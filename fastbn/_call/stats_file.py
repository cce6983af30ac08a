"""Statistics as files: ``.npz``, and ``.json`` for people and other programs. No pickles."""

import json
import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastbn._system.files import replacing

#: Says what a file holds, and how.
FORMAT, VERSION = "fastbn.ChannelStats", 1
_WORDS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_DAMAGED = (
    zipfile.BadZipFile, OSError, EOFError, ValueError, TypeError, KeyError, RuntimeError,
    NotImplementedError, OverflowError, MemoryError, RecursionError, SyntaxError, AttributeError,
)  # fmt: skip


def write(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays of float64, each (C,), by name."""
    place, suffix = _place(path)
    with replacing(place) as part:
        _WRITERS[suffix](part, arrays)


def read(path: str | os.PathLike[str], names: Mapping[str, bool]) -> dict[str, np.ndarray]:
    """The arrays of such a file; ``names`` says which must be there."""
    place, suffix = _place(path)
    if not place.exists():
        raise FileNotFoundError(f"there is no file {str(place)!r}")
    if not place.is_file():
        raise ValueError(f"{place}: is no file")
    try:
        content = _READERS[suffix](place)
        kind, version = str(content.get("format")), int(content.get("version", 0))
        arrays = {name: content[name] for name in names if name in content}
    except _DAMAGED as error:
        raise ValueError(f"{place}: is damaged, or no file of {FORMAT}: {error}") from error
    if kind != FORMAT:
        raise ValueError(f"{place}: is no file of {FORMAT}, which ChannelStats.save writes")
    if version > VERSION:
        raise ValueError(
            f"{place}: has version {version}, this fastbn reads {VERSION}; upgrade fastbn"
        )
    missing = [name for name, needed in names.items() if needed and name not in arrays]
    if missing:
        raise ValueError(f"{place}: lacks {missing[0]!r}")
    for name, array in arrays.items():
        shape, of_count = np.shape(array), np.shape(arrays["count"])
        if getattr(array, "dtype", None) != np.float64 or len(shape) != 1 or shape != of_count:
            raise ValueError(f"{place}: {name!r} is no list of one float64 for each channel")
    for name in ("count", "nan_count"):
        if name in arrays and not ((arrays[name] >= 0) & (arrays[name] < math.inf)).all():
            raise ValueError(f"{place}: {name!r} holds negative numbers, NaN or infinity")
    return arrays


def _place(path: Any) -> tuple[Path, str]:
    try:
        place = Path(os.fsdecode(path))
    except TypeError:
        raise TypeError(f"path must be a path, got {type(path).__name__}") from None
    suffix = place.suffix.lower()
    if suffix not in _WRITERS:
        raise ValueError(f"path must end in .npz or .json, got {suffix!r} in {str(place)!r}")
    return place, suffix


# --- .npz -----------------------------------------------------------------------------------------


def _write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    note = {"format": np.array(FORMAT), "version": np.array(VERSION)}
    content: dict[str, Any] = {**note, **arrays}
    with path.open("wb") as file:
        np.savez(file, **content)


def _read_npz(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        if sum(info.file_size for info in archive.infolist()) > path.stat().st_size:
            raise ValueError("it unpacks to more than it has, and what `save` writes is not packed")
    with np.load(path, allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


# --- .json ----------------------------------------------------------------------------------------


def _write_json(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Each number in the fewest digits that give it back; a word for what is none."""
    content: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    for name, array in arrays.items():
        content[name] = [v if math.isfinite(v) else str(v) for v in array.tolist()]
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("it has no names")
    for name, value in content.items():
        if isinstance(value, list):
            content[name] = np.array([_number(each) for each in value], np.float64)
    return content


def _number(value: Any) -> float:
    if isinstance(value, bool) or (isinstance(value, str) and value not in _WORDS):
        raise ValueError(f"{value!r} is no number")
    return _WORDS[value] if isinstance(value, str) else float(value)


_WRITERS = {".npz": _write_npz, ".json": _write_json}
_READERS = {".npz": _read_npz, ".json": _read_json}
