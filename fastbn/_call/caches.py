"""What the caches of all forwards have in common: their type, and how they are shown."""

from typing import Any

from fastbn._call.ghost import GhostCache
from fastbn._call.groups import GroupCache
from fastbn._call.operations import ForwardCache
from fastbn._call.renorm import RenormCache
from fastbn._call.rows import RowCache
from fastbn._call.sync import SyncCache

#: What a forward gives to its backward, whatever it normalizes over.
NormCache = ForwardCache | GroupCache | RowCache


def described(array: Any) -> str:
    """Dtype and shape of an array of any library, and no values."""
    if array is None:
        return "None"
    return f"{array.dtype} {tuple(array.shape)}"


def _shown(self: Any) -> str:
    dtype, shape = self.x.dtype, tuple(self.x.shape)
    return f"<{type(self).__name__} of x, {dtype} of shape {shape}>"


# A dataclass without a repr of its own inherits this; those here would show whole batches.
for _kind in (ForwardCache, GhostCache, GroupCache, RenormCache, RowCache, SyncCache):
    type.__setattr__(_kind, "__repr__", _shown)
