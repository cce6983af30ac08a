"""What ranks tell each other in a call: statistics or sums, and whether anybody has refused.

Each rank sends a header, then two numbers for each channel (mean and m2 forward, the sums of
``dy * x_hat`` and ``dy`` backward). Messages of a layer all have one size, whatever the call, so
ranks that make different calls find that out by the headers. A rank whose checks fail sends a
message too, which says so: then all ranks raise, and none waits for ever.

MPI's own reductions are not used. In which order ``Allreduce`` adds is up to the library, to the
number of ranks and to the size of the message, and MPI only recommends that all ranks get the same
bits. Here every rank gets all parts and joins them itself, in a binary tree over the ranks: first 0
with 1, 2 with 3, and so on. So all ranks have the same bits, whichever rank comes late.

For C channels on P ranks there are two ways, with the same tree and the same bits:

- ``Allgather``: every rank gets all messages, each of ``16 * C`` bytes and a header, in one
  collective. The least latency, for few ranks or few channels.
- in slices of ``ceil(C / P)`` channels: by ``Alltoall`` each rank gets its slice from all ranks, P
  messages of a slice and a header each, and joins it; an ``Allgather`` of the joined slices
  follows. Two collectives, and besides P headers ``32 * P * ceil(C / P)`` bytes per rank: about
  ``32 * C`` where there are more channels than ranks, and ``32 * P`` where there are fewer.

The second is taken where the first would have a rank receive more than `LARGEST` bytes. There the
time that the bytes take is about that of one more collective: at 12.5 GB/s and 2 us for each of
log2(P) steps, 128 KiB take 10 us. Two ranks of one machine were found to take as long either way
between 2,048 and 8,192 channels, which is 64 to 256 KiB. P and C decide alone, so all ranks decide
alike.

What headers of whole messages cannot show is that ranks call layers of different sizes: then MPI
gets messages of different sizes, which is an error to some libraries and a hang to others. So until
the first backward of a layer is done, where mistakes of a program show, headers go ahead in a
collective of their own. It costs its latency once more, so later calls do without, and so does a
layer that nobody differentiates after `AHEAD` forwards; ``FASTBN_CHECK_CALLS=1`` in the environment
has all calls do it. Which call is made does not decide, since ranks may make different ones.
"""

import copy
import hashlib
import operator
import os
import zlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, NoReturn

import numpy as np

from fastbn._call.sync import Share, Whole
from fastbn.distributed import headers
from fastbn.distributed.collectives import (
    LIMIT,
    VARIABLE,
    Communicator,
    alltoall,
    limit_for,
)  # fmt: skip
from fastbn.stats import ChannelStats

#: Bytes that a rank may receive by one ``Allgather``; above, messages go in slices.
LARGEST = 128 * 1024
#: Forwards of a layer without a backward before headers no longer go ahead.
AHEAD = 8
#: Numbers of copies begin here; ranks count layers that they make from 1.
_COPIES = 1 << 48

#: Number of the last layer; ranks agree on the largest that any would give next.
_last = 0


def _checks_calls() -> bool:
    """Whether headers always go ahead; read whenever a layer is made."""
    return os.environ.get("FASTBN_CHECK_CALLS", "0") not in ("", "0")


class Terms(NamedTuple):
    """What ranks have agreed on for a layer: its number, and how its exchanges go."""

    number: int
    limit: float
    headers_ahead: bool


def _checksum(arrays: Iterable[np.ndarray]) -> str:
    found = 0
    for array in arrays:
        found = zlib.crc32(array.tobytes(), found)
    return f"{found:08x}"


def agree(comm: Communicator, make: Callable[[], tuple[str, Iterable[np.ndarray]]]) -> Terms:
    """Terms for a new layer, once every rank has made the same.

    ``make`` makes it and gives how, and the arrays that it starts from. Its error is raised where
    it happens; the other ranks raise one that names it. Ranks that have made different things all
    raise.
    """
    global _last
    error, limit, ahead, said = None, LIMIT, _checks_calls(), ""
    try:
        limit = limit_for(comm)
        made, arrays = make()
        said = f"{limit:g} {_checksum(arrays)} {made}{' with FASTBN_CHECK_CALLS' * ahead}"
    except BaseException as problem:  # the user's interrupt as well: others must hear of it
        error, said = problem, "!" + headers.described(problem)
    headers.check(comm, headers.all_rows(comm, headers.header_of("make"), limit), None, limit)
    texts = headers.all_texts(comm, f"{_last + 1} {said}", limit)
    numbered = [text.partition(" ") for text in texts]
    number = max(int(given) for given, _, _ in numbered)
    _last = max(_last, number)
    if error is not None:
        raise error
    _compare([text for _, _, text in numbered])
    return Terms(number, limit, ahead)


def _compare(texts: list[str]) -> None:
    """Raise if a rank has not made the layer, or another."""
    for rank, text in enumerate(texts):
        if text.startswith("!"):
            raise RuntimeError(f"rank {rank} has not made the layer: {text[1:]}")
    first = texts[0].split(" ", 2)
    for rank, text in enumerate(texts):
        limit, arrays, made = text.split(" ", 2)
        if limit != first[0]:
            raise ValueError(
                f"ranks wait {first[0]} s for each other on rank 0 and {limit} s on rank {rank}; "
                f"set {VARIABLE} alike in the environment of all ranks"
            )
        if made != first[2]:
            raise ValueError(
                f"ranks must make layers alike, in the same order: rank 0 has {first[2]}, rank "
                f"{rank} has {made}"
            )
        if arrays != first[1]:
            raise ValueError(
                f"weights or running statistics of rank {rank} are not those of rank 0, and would "
                "stay apart; first load one state dict on all ranks: "
                "bn.load_state_dict(comm.bcast(bn.state_dict()))"
            )


class Unconnected:
    """In place of an exchange where there is no communicator."""

    def together(self, call: str, prepare: Callable[[], Share], settings: Any = ()) -> Any:
        """Nothing can be told to nobody."""
        raise RuntimeError(
            "the layer has no communicator, which a pickle leaves out; set it on all ranks: "
            "layer.comm = MPI.COMM_WORLD. Evaluation needs none"
        )

    def refuse(self, call: str, error: BaseException) -> NoReturn:
        """Raise ``error``."""
        raise error


class MpiExchange:
    """The ranks of a communicator as a layer meets them: one exchange for each call."""

    def __init__(self, comm: Communicator, channels: int, terms: Terms) -> None:
        self.comm: Any = comm
        self.channels, self.number, self.limit = channels, terms.number, terms.limit
        self.ranks = comm.Get_size()
        received = self.ranks * (headers.BYTES + 16 * channels)
        self.in_slices = received > LARGEST and hasattr(comm, "Alltoall")
        self.always_ahead = terms.headers_ahead
        #: How many calls have gone well, how many messages, and whether headers still go ahead.
        self.done, self.gone, self.ahead = 0, 0, True
        #: Copies that this one has had.
        self.copies = 0

    def copied(self) -> "MpiExchange":
        """That of a copy of the layer.

        Its number follows from this one's and how many copies there were, so ranks that copy
        alike have the same without a message.
        """
        self.copies += 1
        new = copy.copy(self)
        text = f"{self.number} {self.copies}".encode()
        digest = hashlib.blake2b(text, digest_size=6).digest()
        new.number = _COPIES + int.from_bytes(digest, "big")  # exact as a float64
        new.done = new.gone = new.copies = 0
        return new

    def together(self, call: str, prepare: Callable[[], Share], settings: Any = ()) -> Any:
        """What the share that ``prepare`` makes of this rank's part finishes with.

        ``settings`` must be alike on all ranks. If ``prepare`` raises on a rank, all ranks raise:
        that one its own error, the others a RuntimeError that names it.
        """
        share: Any = None
        error, rows = None, np.zeros((2, self.channels))
        header = headers.header_of(call, self.number, self.done)
        try:
            share = prepare()
            rows = share.rows
            headers.tell_share(header, share, settings)
        except BaseException as problem:  # the user's interrupt as well: others must hear of it
            error = problem
            headers.tell_refusal(header)
        if self.ahead:
            self._check(headers.all_rows(self.comm, header, self.limit), error)
        exchange = self._sliced if self.in_slices else self._gathered
        counts, rows = exchange(header, rows, _JOINS[call], error)
        self.gone += 1
        if call == "backward" or self.gone >= AHEAD:
            self.ahead = self.always_ahead
        found = share.finish(Whole(int(counts.sum()), rows))
        self.done += 1  # not where it has failed on this rank alone: others find that out
        return found

    def refuse(self, call: str, error: BaseException) -> NoReturn:
        """Raise ``error``, and tell the other ranks, which make the call."""

        def prepare() -> Any:
            raise error

        self.together(call, prepare)
        raise AssertionError("an exchange without this rank's part has gone well")

    def _check(self, found: np.ndarray, error: BaseException | None) -> None:
        headers.check(self.comm, found, error, self.limit)

    def _gathered(self, header, rows, join, error):
        """Counts of the ranks, and rows of all together: every rank joins all of them."""
        sent = np.concatenate([header, rows.reshape(-1)])
        received = headers.all_rows(self.comm, sent, self.limit)
        found, parts = received[:, : headers.NUMBERS], received[:, headers.NUMBERS :]
        self._check(found, error)
        counts = headers.counts_of(found)
        return counts, join(counts, parts.reshape(self.ranks, 2, -1))

    def _sliced(self, header, rows, join, error):
        """The same: every rank joins a slice of the channels, then all get all slices."""
        width = -(-self.channels // self.ranks)
        sent = np.zeros((self.ranks, headers.NUMBERS + 2 * width))
        padded = np.zeros((2, self.ranks * width))
        padded[:, : self.channels] = rows
        sent[:, : headers.NUMBERS] = header
        slices = padded.reshape(2, self.ranks, width).swapaxes(0, 1)
        sent[:, headers.NUMBERS :] = slices.reshape(self.ranks, -1)
        received = np.full_like(sent, np.nan)
        alltoall(self.comm, sent, received, self.limit)
        found = received[:, : headers.NUMBERS]
        self._check(found, error)
        counts = headers.counts_of(found)
        own = join(counts, received[:, headers.NUMBERS :].reshape(self.ranks, 2, width))
        joined = headers.all_rows(self.comm, own.reshape(-1), self.limit)
        slices = joined.reshape(self.ranks, 2, width)
        rows = slices.swapaxes(0, 1).reshape(2, -1)[:, : self.channels]
        return counts, np.ascontiguousarray(rows)  # as kernels take it


def _tree(parts: np.ndarray, join: Callable[[Any, Any], Any]) -> np.ndarray:
    """Parts of all ranks, neighbours joined until one is left: the order follows from their number.

    So it takes log2(P) steps over arrays, and rounds less than one part after the other.
    """
    while len(parts) > 1:
        even = len(parts) // 2 * 2
        parts = np.concatenate([join(parts[0:even:2], parts[1:even:2]), parts[even:]])
    return parts[0]


def _merged(counts: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Mean and m2 of all ranks together."""
    ranks, _, channels = parts.shape
    count = np.broadcast_to(counts[:, None, None], (ranks, 1, channels))
    return _tree(np.concatenate([count, parts], axis=1), _merge)[1:]


def _merge(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Statistics of pairs of ranks: as if each pair had channels of its own."""
    first, second = (ChannelStats(*parts.swapaxes(0, 1).reshape(3, -1)) for parts in (one, other))
    both = first.merge(second)
    pairs, _, channels = one.shape
    return np.stack([both.count, both.mean, both.m2]).reshape(3, pairs, channels).swapaxes(0, 1)


def _added(counts: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Sums of all ranks together."""
    with np.errstate(invalid="ignore", over="ignore"):
        return _tree(parts, operator.add)


_JOINS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "forward": _merged, "backward": _added
}  # fmt: skip
