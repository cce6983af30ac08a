"""Checkpoints in several files, with an index: ``model.safetensors.index.json`` and the like."""

import json
from functools import partial
from pathlib import Path
from typing import Any

from fastbn.checkpoint.contents import Checkpoint, Lazy, Tensors
from fastbn.checkpoint.names import flatten, shortenings
from fastbn.checkpoint.settings import by_names

#: Bytes of an index; one of a thousand tensors has a hundred thousand.
_MAX_INDEX = 64 << 20
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".npz")


def read(path: Path) -> Checkpoint:
    """The tensors of all files that the index names; each file is opened once."""
    from fastbn.checkpoint import files

    places = _places(path)
    shards = {}
    for shard in dict.fromkeys(places.values()):
        beside = path.parent / shard
        if not beside.is_file():
            raise ValueError(f"the index names {shard!r}, which is not beside it")
        with files.naming(beside):
            shards[shard] = files.read(beside)
    entries = {}
    settings: dict[str, Any] = {}
    names = flatten({name: name for name in places}, lambda _, value: isinstance(value, str))
    for short, name in names.items():
        tensors = shards[places[name]].tensors
        inside = next((known for known in shortenings(name) if known in tensors), None)
        if inside is None or not isinstance(tensors, Tensors):
            raise ValueError(f"the index has {name[:200]!r} in {places[name]!r}, where it is not")
        entries[short] = Lazy(partial(tensors.__getitem__, inside), tensors.shape(inside))
        settings |= by_names(shards[places[name]].settings, {short: inside})
    ordered = all(shard.ordered for shard in shards.values())
    return Checkpoint(Tensors(entries), None, ordered, settings)


def _places(path: Path) -> dict[str, str]:
    """In which file each tensor is, after a look at each name of a file."""
    if path.stat().st_size > _MAX_INDEX:
        raise ValueError(f"is too long for an index: more than {_MAX_INDEX} bytes")
    try:
        index: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no index of a checkpoint: it is no JSON ({error})") from error
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places:
        raise ValueError("is no index of a checkpoint: it has no 'weight_map' from names to files")
    for name, shard in places.items():
        if not isinstance(shard, str) or shard != Path(shard).name or "\\" in shard or not shard:
            raise ValueError(
                f"the index has {name[:200]!r} in {str(shard)[:200]!r}, which is no name of a file "
                "in the same folder"
            )
        if not shard.endswith(_SUFFIXES):
            raise ValueError(f"the index names {shard[:200]!r}; expected one of {_SUFFIXES}")
    return places
