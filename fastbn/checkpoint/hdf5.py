"""HDF5 as Keras writes it: plain arrays in groups. Whatever leads out of the file is refused.

HDF5 can do much more: links and arrays that lie in other files, arrays that claim any size and
hold nothing, filters that load libraries. So each link and each array is checked before use.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from fastbn.checkpoint import dtypes

#: Filters that come with the library: deflate, shuffle, fletcher32, szip, nbit, scale-offset, and
#: h5py's lzf. Others are looked for in a folder of plugins.
_FILTERS = {1, 2, 3, 4, 5, 6, 32000}
#: How many times its size in the file a compressed array may have; small ones any number of times.
_MAX_EXPANSION, _SMALL = 100, 1 << 16
#: How a heap of texts begins: eight bytes that weights hardly have by chance.
_HEAP = b"GCOL\1\0\0\0"
_DAMAGE = (OSError, RuntimeError, KeyError, TypeError, ValueError, AttributeError, ArithmeticError)
#: Groups with the state of an optimizer, which belongs to no layer.
_OPTIMIZERS = ("optimizer", "optimizer_weights")


class Found(NamedTuple):
    """An array that was checked."""

    shape: tuple[int, ...]


class Contents(NamedTuple):
    """All arrays by place, and what Keras has noted beside them."""

    arrays: dict[str, Found]
    #: Names of layers, by the place of their group "vars"; Keras 3 notes them.
    group_names: dict[str, str]
    #: Names of weights by name of layer, in order; None where Keras 3 has numbered them.
    layer_names: dict[str, list[str]] | None
    #: Group of all layers, "" or "model_weights/".
    root: str
    config: str


def survey(stream: Any) -> Contents:
    """What there is in a file; no values are read."""
    _check_heaps(stream)
    with _opened(stream) as (file, size):
        root = "model_weights/" if "model_weights" in file else ""
        arrays, group_names, groups = _walk(file, size)
        top = groups.get(root.rstrip("/"))
        names = None if top is None else _texts(top, "layer_names", size)
        layer_names = None
        if names is not None:
            layer_names = {
                name: _texts(groups[root + name], "weight_names", size) or []
                for name in [*names, "top_level_model_weights"]
                if root + name in groups
            }
        config = _text(file, "model_config", size)
        return Contents(arrays, group_names, layer_names, root, config)


def read(stream: Any, place: str) -> np.ndarray:
    """The values at a place of a file; it is checked again, for the file may be another by now."""
    with _opened(stream) as (file, size):
        group = file
        *groups, last = place.split("/")
        for name in groups:
            group = _member(group, name)
        dataset = _member(group, last)
        _check(dataset, place, size)
        bfloat16 = dataset.dtype.kind == "V"
        if bfloat16 and not (dataset.dtype.itemsize == 2 and _is_bfloat16(dataset)):
            raise ValueError(f"{place!r} holds {dataset.dtype}, expected numbers")
        if not bfloat16 and dataset.dtype.kind not in "fiub":
            raise ValueError(f"{place!r} holds texts, references or records, expected numbers")
        values = dataset[()]
        if bfloat16:
            return dtypes.values_of(values.tobytes(), 0, "bfloat16", dataset.shape)
        return np.asarray(values, values.dtype.newbyteorder("="))


@contextmanager
def _opened(stream: Any) -> Iterator[tuple[Any, int]]:
    try:
        import h5py
    except ImportError as error:
        raise ImportError(
            f"files of Keras take h5py: pip install 'fastbn[keras]' ({error})"
        ) from error
    size = stream.seek(0, 2)
    stream.seek(0)
    try:
        with h5py.File(stream, "r") as file:
            yield file, size
    except _DAMAGE as error:
        if isinstance(error, ValueError) and not isinstance(error, UnicodeDecodeError):
            raise
        text = str(error) or type(error).__name__
        raise ValueError(f"is damaged, cut off, or no HDF5 file: {text}") from error


# --- groups ---------------------------------------------------------------------------------------


def _walk(file: Any, size: int) -> tuple[dict[str, Found], dict[str, str], dict[str, Any]]:
    """All arrays and groups; an object that has two names is met once."""
    import h5py

    arrays, names, groups = {}, {}, {"": file}
    seen, stored, waiting = set(), 0, [("", file)]
    while waiting:
        place, group = waiting.pop()
        for name in group:
            inner = f"{place}/{name}".lstrip("/")
            if not place and name in _OPTIMIZERS:
                continue
            member = _member(group, name)
            address = h5py.h5o.get_info(member.id).addr
            if address in seen:
                continue
            seen.add(address)
            if isinstance(member, h5py.Dataset):
                stored += _check(member, inner, size)
                arrays[inner] = Found(member.shape)
            elif isinstance(member, h5py.Group):
                groups[inner] = member
                waiting.append((inner, member))
                if name == "vars":
                    names[inner] = _text(member, "name", size)
    if stored > size:
        raise ValueError(f"has arrays of {stored} bytes in {size}: they overlap")
    return arrays, {place: name for place, name in names.items() if name}, groups


def _member(group: Any, name: str) -> Any:
    import h5py

    if name not in group:
        raise ValueError(f"is damaged or has changed: {group.name} has no {name!r} any more")
    link = group.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink):
        where = getattr(link, "filename", getattr(link, "path", ""))
        raise ValueError(
            f"{group.name.rstrip('/')}/{name} is a link to {where!r}; Keras writes none, and no "
            "link is followed"
        )
    return group[name]


# --- arrays ---------------------------------------------------------------------------------------


def _check(dataset: Any, place: str, size: int) -> int:
    """Refuse an array that lies elsewhere or claims more than there is; else bytes in the file."""
    import h5py

    if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
        raise ValueError(f"{place!r} is no array")
    if dataset.is_virtual or dataset.external:
        raise ValueError(f"{place!r} takes its values from other files; none is read")
    plist = dataset.id.get_create_plist()
    filters = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
    if not _FILTERS.issuperset(filters):
        raise ValueError(f"{place!r} needs the filters {filters}, of which not all are known")
    claimed = math.prod(dataset.shape) * dataset.dtype.itemsize
    stored = dataset.id.get_storage_size()
    most = max(_MAX_EXPANSION * stored, _SMALL) if filters else stored
    if stored > size or claimed > most:
        raise ValueError(
            f"{place!r} claims the shape {dataset.shape}, {claimed} bytes, and has {stored} in a "
            f"file of {size}"
        )
    return stored


def _is_bfloat16(dataset: Any) -> bool:
    return _text(dataset, "dtype", _SMALL) == "bfloat16"


def _check_heaps(stream: Any) -> None:
    """Refuse heaps of texts that HDF5 would walk without an end, at an object of no size."""
    size, at, steps = stream.seek(0, 2), stream.find(_HEAP, 0), 0
    while at >= 0:
        end, place = at + stream.number(at + 8, 8), at + 16
        while place + 16 <= end <= size:
            index, length = stream.number(place, 2), stream.number(place + 8, 8)
            step = 16 + -(-length // 8) * 8 if index else length  # 0: the free space
            steps += 1
            if step < 16 or place + step > end or steps > size // 16:
                raise ValueError(f"is damaged: the heap at {at} has an object of {length} bytes")
            place += step
        at = stream.find(_HEAP, at + 8)


# --- attributes -----------------------------------------------------------------------------------


def _attribute(item: Any, name: str, size: int) -> list[str] | None:
    """The texts of an attribute; other types are not even read."""
    import h5py

    if name not in item.attrs:
        return None
    found = item.attrs.get_id(name)
    if found.shape is not None and 0 in found.shape:
        return []
    if found.shape is None or not isinstance(found.get_type(), h5py.h5t.TypeStringID):
        raise ValueError(f"attribute {name!r} of {item.name} holds numbers, expected a text")
    if math.prod(found.shape) * found.dtype.itemsize > size:
        raise ValueError(f"attribute {name!r} of {item.name} claims more than the file has")
    texts = np.ravel(item.attrs[name]).tolist()
    return [text.decode() if isinstance(text, bytes) else str(text) for text in texts]


def _text(item: Any, name: str, size: int) -> str:
    return "".join(_attribute(item, name, size) or [])


def _texts(group: Any, name: str, size: int) -> list[str] | None:
    """A list of names; a long one is split over NAME0, NAME1, ..."""
    whole = _attribute(group, name, size)
    if whole is not None:
        return whole
    parts: list[list[str]] = []
    while (part := _attribute(group, f"{name}{len(parts)}", size)) is not None:
        parts.append(part)
    return [text for part in parts for text in part] if parts else None
