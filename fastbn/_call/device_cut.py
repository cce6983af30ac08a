"""How a tensor's work is cut into blocks of a GPU: a matter of its shape and dtype alone."""

from typing import NamedTuple

from fastbn.kernels.cuda.helpers import across_of
from fastbn.kernels.cuda.once import KEPT_ACROSS, held_groups
from fastbn.kernels.cuda.sums import ALONG, ALONG_AT_ONCE, THREADS


class Cut(NamedTuple):
    """How a tensor's work is cut into blocks."""

    samples: int
    channels: int
    length: int
    width: int
    lanes: int
    tiles: int
    #: Blocks that share the values of a tile.
    parts: int
    #: Each value is read once, and kept in registers; else sums and the rest are two launches.
    once: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """What kernels are told of the tensor."""
        return self.samples, self.channels, self.length


#: A block of two launches has at least so many groups for each of its threads.
_GROUPS = 4
#: So many blocks keep a device busy.
_BLOCKS = 1024


def cut_of(
    samples: int, channels: int, length: int, item: int, aligned: bool, arrays: int, together: int
) -> Cut:
    """The cut of a tensor, by its shape, and by how many blocks of a tile may be ``together``.

    Blocks that read once wait for each other, so all of a tile must be on the device. Up to 16
    bytes are read at once where memory is ``aligned`` to them.
    """
    side_by_side = channels if length == 1 else length
    most = 8 if aligned else 1
    lanes = _lanes(side_by_side, item, min(most, KEPT_ACROSS) if length == 1 else most)
    width, tiles, per_thread = _tiles(samples, channels, length, lanes)
    parts = -(-per_thread // held_groups(lanes, item == 8, arrays))
    once = parts <= together
    if not once:
        lanes = _lanes(side_by_side, item, most)
        width, tiles, per_thread = _tiles(samples, channels, length, lanes)
        parts = max(1, min(per_thread // _GROUPS, -(-_BLOCKS // tiles)))
    return Cut(samples, channels, length, width, lanes, tiles, parts, once)


def _lanes(side_by_side: int, item: int, most: int) -> int:
    """Values that are read at once: 16 bytes, 4 values or one, as they divide what lies so."""
    return next(n for n in (16 // item, 4, 1) if n <= most and side_by_side % n == 0)


def _tiles(samples: int, channels: int, length: int, lanes: int) -> tuple[int, int, int]:
    """Threads side by side, tiles, and how many groups of a tile each thread of a block has."""
    width = 1 if length > 1 else ALONG if lanes == 1 else ALONG_AT_ONCE
    across = across_of(lanes, width)
    tiles = max(1, -(-channels // (width * across)))
    return width, tiles, -(-samples * (length * across // lanes) * width // THREADS)
