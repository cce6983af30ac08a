"""A pass over all blocks of a dataset, in order, from which statistics come."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import closing, suppress
from typing import Any, NamedTuple

import numpy as np

from fastbn._system.progress import Progress
from fastbn.dataset.histogram import Bins, Spread
from fastbn.dataset.images import pictures
from fastbn.dataset.journal import Journal
from fastbn.dataset.measure import (
    ArrayBlock,
    Block,
    Found,
    Measured,
    Options,
    added,
    arrays_of,
    measure,
)  # fmt: skip
from fastbn.dataset.pool import Workers, in_order
from fastbn.dataset.sources import Identity, Sources

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
    total: dict[tuple[int, str], Found] = {}
    part: dict[tuple[int, str], Found] = {}
    faults: dict[str, str] = {}

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
            if job.last:
                if not (isinstance(job.block, ArrayBlock) and faults):
                    _add(total, part)
                unreadable |= faults
                part, faults = {}, {}
    return Measured(total, unreadable)


def _add(total: dict[tuple[int, str], Found], more: dict[tuple[int, str], Found]) -> None:
    for kind, found in more.items():
        total[kind] = added(total.get(kind), found)


def _jobs(sources: Sources, axis: int) -> Iterator[_Job]:
    number = 0
    for blocks in sources.blocks(axis):
        for k, (block, identity) in enumerate(blocks, 1):
            yield _Job(number, block, identity, k == len(blocks))
            number += 1


def bins_of(sources: Sources, axis: int, options: Options) -> Bins | None:
    """Bins of a histogram, by the first values that can be read of each channel."""
    spread: Spread | None = None
    for x, first, channels in _first_values(sources, axis, options):
        spread = spread or Spread(channels, x.dtype)
        if channels != spread.least.size:
            break
        spread.add(x, first)
        if spread.full or x.dtype.itemsize == 1:
            break
    return None if spread is None else spread.bins()


def _first_values(
    sources: Sources, axis: int, options: Options
) -> Iterator[tuple[np.ndarray, int, int]]:
    for blocks in sources.blocks(axis):
        for block, _ in blocks:
            with suppress(Exception):  # the scan says what is wrong
                if isinstance(block, ArrayBlock):
                    for piece, x in arrays_of(block):
                        yield x, piece.channel, block.channels
                else:
                    for path in block.paths:
                        yield from _of_pictures(path, options)


def _of_pictures(path: str, options: Options) -> Iterator[tuple[np.ndarray, int, int]]:
    with suppress(Exception):
        for x in pictures(path, options.mode, options.max_pixels):
            yield x.reshape(-1, x.shape[2], 1), 0, x.shape[2]


def settings_of(axis: int, options: Options, version: str) -> dict[str, Any]:
    """What a journal has to agree on."""
    return {
        "version": version, "axis": axis, "mode": options.mode, "skipna": options.skipna,
        "histogram": options.bins is not None,
        "bins": None if options.bins is None else list(options.bins),
    }  # fmt: skip
