"""A pass over all blocks of a dataset, in order, from which statistics come."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

import numpy as np

from fastbn._system.progress import Progress
from fastbn.dataset.arrays import WRONG_CHECKSUM
from fastbn.dataset.checksum import combined
from fastbn.dataset.histogram import Spread
from fastbn.dataset.images import pictures
from fastbn.dataset.journal import Identity, Journal
from fastbn.dataset.measure import (
    ArrayBlock,
    Block,
    Found,
    Kind,
    Measured,
    Options,
    added,
    arrays_of,
    kind_of,
    measure,
    refuse_system,
)  # fmt: skip
from fastbn.dataset.pool import Workers, in_order
from fastbn.dataset.sources import Sources

__all__ = ["bins_of", "scan"]


class _Job(NamedTuple):
    """A block, its number among all, and whether it is the last of its part."""

    number: int
    block: Block
    identity: Identity
    last: bool


def scan(
    sources: Sources, axis: int, options: Options, where: Executor | Workers | None,
    journal: Journal, progress: Progress,
) -> Measured:  # fmt: skip
    """Measure everything that no journal knows, and merge it in the order of the sources.

    Blocks are merged to parts (an array, a group of pictures), and these to the whole, so that an
    array whose last block cannot be read is left out from its first on.
    """
    unreadable = dict(sources.unreadable)
    total: dict[Kind, Found] = {}
    part: dict[Kind, Found] = {}
    faults: dict[str, str] = {}
    checksum = 0

    def given(job: _Job) -> tuple[Block, Options] | None:
        return None if job.number in journal else (job.block, options)

    with closing(in_order(_jobs(sources, axis), measure, given, where)) as answers:
        for job, fresh in answers:
            amount = sources.size_of(job.block, job.identity)
            if fresh is None:
                measured = journal.recall(job.number, job.identity)
                progress.advance(amount, worked=False)
            else:
                measured = fresh
                journal.keep(job.number, job.identity, measured)
                progress.advance(amount)
            faults |= measured.unreadable
            _add(part, measured.found)
            stored = job.block.stored if isinstance(job.block, ArrayBlock) else None
            if stored is not None and stored.checksum is not None:
                size = sources.size_of(job.block, job.identity)
                checksum = combined(checksum, measured.checksum, size)
                if job.last and checksum != stored.checksum:
                    faults.setdefault(stored.name, WRONG_CHECKSUM)
            if job.last:
                if stored is None or not faults:
                    _add(total, part)
                unreadable |= faults
                part, faults, checksum = {}, {}, 0
    return Measured(total, unreadable)


def _add(total: dict[Kind, Found], more: dict[Kind, Found]) -> None:
    for kind, found in more.items():
        total[kind] = added(total.get(kind), found)


def _jobs(sources: Sources, axis: int) -> Iterator[_Job]:
    number = 0
    for blocks in sources.blocks(axis):
        for k, (block, identity) in enumerate(blocks, 1):
            yield _Job(number, block, identity, k == len(blocks))
            number += 1


def bins_of(sources: Sources, axis: int, options: Options) -> Options:
    """With bins of a histogram, by the first values that can be read of each channel."""
    spread: Spread | None = None
    first_kind: Kind | None = None
    for x, first, kind in _first_values(sources, axis, options):
        first_kind = first_kind or kind
        spread = spread or Spread(kind[0], x.dtype)
        if kind != first_kind:
            break
        spread.add(x, first)
        if spread.full or x.dtype.itemsize == 1:
            break
    return options if spread is None else options._replace(bins=spread.bins(), kind=first_kind)


def _first_values(
    sources: Sources, axis: int, options: Options
) -> Iterator[tuple[np.ndarray, int, Kind]]:
    for blocks in sources.blocks(axis):
        for block, _ in blocks:
            if isinstance(block, ArrayBlock):
                kind = kind_of(block.channels, np.dtype(block.stored.dtype))
                with _left_out(block.stored.name):
                    for piece, x in arrays_of(block):
                        yield x, piece.channel, kind
                continue
            for path in block.paths:
                pages: list[tuple[np.ndarray, str]] = []
                with _left_out(path):
                    pages = list(pictures(path, options.mode))  # or none of a damaged one
                for x, colours in pages:
                    kind = kind_of(x.shape[2], x.dtype, colours)
                    yield x.reshape(-1, x.shape[2], 1), 0, kind


@contextmanager
def _left_out(name: str) -> Iterator[None]:
    """Pass over what cannot be read: the scan says what is wrong."""
    try:
        yield
    except Exception as error:
        refuse_system(error, name)


def settings_of(axis: int, options: Options) -> dict[str, Any]:
    """What a journal has to agree on."""
    import fastbn

    return {
        "version": fastbn.__version__, "axis": axis, "mode": options.mode,
        "skipna": options.skipna, "histogram": options.bins is not None,
        "bins": None if options.bins is None else list(options.bins),
        "truncated images": options.pillow is not None and options.pillow.truncated,
    }  # fmt: skip
