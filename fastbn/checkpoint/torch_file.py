"""Files of ``torch.save``, read without torch: zip files, and the format before torch 1.6.

Both hold a pickle that describes tensors, and the values of their storages. The pickle is read by
`unpickler`, which runs nothing; the values stay in the file, which is mapped into memory, until
they are asked for.
"""

import mmap
import struct
from pathlib import Path
from typing import Any

from fastbn.checkpoint import dtypes
from fastbn.checkpoint.contents import Checkpoint, Lazy, Tensors
from fastbn.checkpoint.names import flatten
from fastbn.checkpoint.pickled_names import Storage, Tensor
from fastbn.checkpoint.pickled_values import Constant
from fastbn.checkpoint.unpickler import PickleMachine
from fastbn.checkpoint.zip_file import Entries, opened

#: Of the format before torch 1.6: the first two pickles.
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
#: Copies of all tensors may be so many times as large as the file: views of tied weights.
_MAX_COPIES, _FREE = 8, 64 << 20


def read(path: Path) -> Checkpoint:
    """The tensors of a file, in their order; ValueError if it is damaged or wants more."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise ValueError("the file is empty")
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start = data[:8]
        if start[:2] == b"PK":
            with opened(file) as archive:
                tree = _tree_of_zip(Entries(archive, data, "torch.save"), data)
        elif start[:1] == b"\x80":
            tree = _tree_of_old(data)
        else:
            old = " (a tar file, as before torch 0.1.10)" if data[257:262] == b"ustar" else ""
            raise ValueError(
                f"is no file of torch.save{old}: it begins with {bytes(start)!r}, neither a zip "
                "file nor a pickle"
            )
    found = flatten(tree, lambda key, value: isinstance(value, Tensor))
    total = sum(tensor.nbytes for tensor in found.values())
    if total > max(_MAX_COPIES * len(data), _FREE):
        raise ValueError(
            f"describes tensors of {total} bytes in a file of {len(data)}: most of them show the "
            "same values; save clones of those that are needed"
        )
    return Checkpoint(Tensors({name: _lazy(data, found[name]) for name in found}), None)


def _lazy(data: Any, tensor: Tensor) -> Lazy:
    at = tensor.storage.at
    assert at is not None  # the readers below leave none without
    at += tensor.offset * dtypes.size_of(tensor.dtype)
    return Lazy(
        lambda: dtypes.values_of(data, at, tensor.dtype, tensor.shape, tensor.steps), tensor.shape
    )


# --- zip files ------------------------------------------------------------------------------------


def _tree_of_zip(entries: Entries, data: Any) -> Any:
    pickles = [
        name for name in entries.names if name.count("/") == 1 and name.endswith("/data.pkl")
    ]
    if len(pickles) != 1:
        raise ValueError(f"has {len(pickles)} entries data.pkl, expected one, as torch.save writes")
    root = pickles[0].removesuffix("data.pkl")
    if root + "constants.pkl" in entries.names:
        raise ValueError(
            "is a TorchScript archive (torch.jit.save), which holds code; where torch is: "
            "torch.save(torch.jit.load(path).state_dict(), 'state.pth')"
        )
    if root + "byteorder" in entries.names:
        at, size = entries.place(root + "byteorder")
        if data[at : at + min(size, 8)] != b"little":
            raise ValueError("was written on a big-endian machine; save it on another one")

    def storage_of(name: Any) -> Storage:
        storage = _storage(name)
        storage.at, size = entries.place(f"{root}data/{storage.key}")
        if storage.nbytes > size:
            raise ValueError(
                f"storage {storage.key!r} is said to have {storage.nbytes} bytes, and has {size}"
            )
        return storage

    at, size = entries.place(pickles[0])
    return PickleMachine(data[at : at + size], persistent=storage_of).load()


def _storage(name: Any) -> Storage:
    """A storage of a persistent id: ('storage', its type, key, device, number of values)."""
    fits = type(name) is tuple and len(name) in (5, 6) and name[0] == "storage"
    if not fits or not isinstance(name[1], Constant) or not name[1].storage:
        raise ValueError("the pickle refers to something that is no storage of values")
    kind, key, count = name[1], name[2], name[4]
    if type(key) is not str or type(count) is not int or not 0 <= count < 1 << 62:
        raise ValueError(f"a storage has no key, or no number of values from 0 on: {kind.name}")
    return Storage(key, kind.dtype or "uint8", count)


# --- the format before torch 1.6 ------------------------------------------------------------------


def _tree_of_old(data: Any) -> Any:
    """Pickles of a magic number, version, machine, objects and keys; then a length and the values
    of each key."""
    roots: dict[str, Storage] = {}
    views: list[tuple[Storage, Storage, int]] = []

    def storage_of(name: Any) -> Storage:
        storage = _storage(name)
        root = roots.setdefault(storage.key, storage)
        if (root.dtype, root.count) != (storage.dtype, storage.count):
            raise ValueError(f"storage {storage.key!r} is described in two ways")
        view = name[5] if len(name) == 6 else None
        return root if view is None else _view_of(root, view, views)

    position = 0
    parts = []
    for persistent in (None, None, None, storage_of, None):
        machine = PickleMachine(data, position, persistent)
        parts.append(machine.load())
        position = machine.position
        _check_head(parts)
    keys = parts[4]
    if type(keys) is not list or sorted(map(str, keys)) != sorted(roots):
        raise ValueError("the list of storages is not that of the tensors")
    for key in keys:
        storage = roots[key]
        count = struct.unpack("<q", data[position : position + 8].ljust(8, b"\xff"))[0]
        storage.at = position + 8
        position = storage.at + storage.nbytes
        if count != storage.count or position > len(data):
            raise ValueError(
                f"storage {key!r} of {storage.nbytes} bytes is not whole in the file: it is "
                "truncated or damaged"
            )
    for view, root, offset in views:
        assert root.at is not None
        view.at = root.at + offset
    return parts[3]


def _check_head(parts: list[Any]) -> None:
    """What the pickles so far must say."""
    match parts:
        case [magic] if magic != _MAGIC:
            raise ValueError(
                "is a pickle, but none of torch.save: its first value is no magic number"
            )
        case [_, version] if version != _VERSION:
            raise ValueError(f"has a version other than {_VERSION} of the format before torch 1.6")
        case [_, _, machine] if type(machine) is not dict or not machine.get("little_endian"):
            raise ValueError("was written on a big-endian machine; save it on another one")


def _view_of(root: Storage, view: Any, views: list[tuple[Storage, Storage, int]]) -> Storage:
    """A part of a storage, as torch before 0.4 wrote: (key, first value, number of values)."""
    _, first, count = view if type(view) is tuple and len(view) == 3 else (None, -1, -1)
    if type(first) is not int or type(count) is not int or min(first, count) < 0:
        raise ValueError(f"a part of storage {root.key!r} has no place in it")
    if first + count > root.count:
        raise ValueError(f"a part of storage {root.key!r} reaches beyond it")
    part = Storage(root.key, root.dtype, count)
    views.append((part, root, first * dtypes.size_of(root.dtype)))
    return part
