"""What ranks tell each other in a call: statistics or sums, and whether anybody has refused.

Each rank sends one message in each direction: a header, then two numbers for each channel (mean and
m2 forward, the sums of ``dy * x_hat`` and ``dy`` backward). Messages of a layer all have one size,
whatever the call, so ranks that make different calls find that out by the headers. A rank whose
checks fail sends a message too, which says so: then all ranks raise, and none waits for ever.

MPI's own reductions are not used. In which order ``Allreduce`` adds is up to the library, to the
number of ranks and to the size of the message, and MPI only recommends that all ranks get the same
bits. Here every rank gets all parts and joins them itself, in a binary tree over the ranks: first 0
with 1, 2 with 3, and so on. So all ranks have the same bits, whichever rank comes late.

For C channels on P ranks there are two ways, with the same tree and the same bits:

- ``Allgather``: every rank gets all messages, one collective of ``16 * C * P`` bytes per rank. The
  least latency, for few ranks or few channels.
- in slices: by ``Alltoall`` each rank gets its C / P of the channels from all ranks, joins them,
  and an ``Allgather`` of the results follows. Two collectives, and ``32 * C`` bytes per rank for
  any number of ranks, besides ``48 * P`` of headers.

The second is taken where the first would have a rank receive more than `LARGEST` bytes. There the
time that the bytes take is about that of one more collective: at 12.5 GB/s and 2 us for each of
log2(P) steps, 128 KiB take 10 us. Two ranks of one machine were found to take as long either way
between 2,048 and 8,192 channels, which is 64 to 256 KiB. P and C decide alone, so all ranks decide
alike.

What headers cannot show is that ranks call layers of different sizes: then MPI gets messages of
different sizes, which is an error to some libraries and a hang to others. With the environment
variable ``FASTBN_CHECK_CALLS=1`` the headers go ahead, in a collective of their own. It finds that
too, and costs its latency once more.
"""

import operator
import os
import zlib
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from fastbn._call.sync import Part, Whole
from fastbn.distributed.collectives import Communicator, allgather, alltoall
from fastbn.stats import ChannelStats

#: Bytes that a rank may receive by one ``Allgather``; above, messages go in slices.
LARGEST = 128 * 1024
#: Bytes of a text that ranks show each other: why one has refused, or how its layer was made.
_TEXT = 512
_CALLS = "forward", "backward"
_DTYPES = "float16", "bfloat16", "float32", "float64"
_REFUSED, _CALL, _LAYER, _DTYPE, _SETTINGS, _COUNT = range(6)
_HEADER = 6
_ALIKE = "; all ranks of comm must make the same calls in the same order"

#: Number of the last layer; ranks agree on the largest that any would give next.
_last = 0


def _text_of(received: np.ndarray) -> str:
    return bytes(received).rstrip(b"\0").decode(errors="ignore")


def _all_texts(comm: Communicator, text: str) -> list[str]:
    """The texts of all ranks."""
    sent = np.zeros(_TEXT, np.uint8)
    kept = text.encode()[:_TEXT]
    sent[: len(kept)] = np.frombuffer(kept, np.uint8)
    received = np.zeros((comm.Get_size(), _TEXT), np.uint8)
    allgather(comm, sent, received)
    return [_text_of(row) for row in received]


def _checks_calls() -> bool:
    """Whether headers go ahead; read whenever a layer is made."""
    return os.environ.get("FASTBN_CHECK_CALLS", "0") not in ("", "0")


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def agree(comm: Communicator, make: Callable[[], str]) -> int:
    """A number for a new layer, once every rank has made the same.

    ``make`` makes it and says how. Its error is raised where it happens; the other ranks raise one
    that names it. Ranks that have made different things all raise.
    """
    error, said = None, ""
    try:
        said = make() + (" with FASTBN_CHECK_CALLS" if _checks_calls() else "")
    except Exception as problem:
        error = problem
        said = "!" + _described(problem)
    global _last
    numbered = [text.partition(" ") for text in _all_texts(comm, f"{_last + 1} {said}")]
    for rank, (given, _, _) in enumerate(numbered):
        if not (given.isascii() and given.isdigit()):
            raise RuntimeError(
                f"rank {rank} does not make a layer, as rank {comm.Get_rank()} does{_ALIKE}"
            )
    number = max(int(given) for given, _, _ in numbered)
    _last = max(_last, number)
    texts = [text for _, _, text in numbered]
    if error is not None:
        raise error
    for rank, text in enumerate(texts):
        if text.startswith("!"):
            raise RuntimeError(f"rank {rank} has not made the layer: {text[1:]}")
        if text != texts[0]:
            raise ValueError(
                f"ranks must make layers alike, in the same order: rank 0 has {texts[0]}, rank "
                f"{rank} has {text}"
            )
    return number


class MpiExchange:
    """The ranks of a communicator as a layer meets them: one exchange for each call."""

    def __init__(self, comm: Communicator, channels: int, number: int) -> None:
        self.comm: Any = comm
        self.channels, self.number = channels, number
        self.ranks = comm.Get_size()
        received = 8 * self.ranks * (_HEADER + 2 * channels)
        self.in_slices = received > LARGEST and hasattr(comm, "Alltoall")
        self.headers_ahead = _checks_calls()

    def together(self, call: str, prepare: Callable[[], Part], settings: Any = ()) -> Whole:
        """What ``prepare`` makes of this rank's part, and count and rows of all ranks together.

        ``settings`` must be alike on all ranks. If ``prepare`` raises on a rank, all ranks raise:
        that one its own error, the others a RuntimeError that names it.
        """
        header, rows = np.zeros(_HEADER), np.zeros((2, self.channels))
        header[_CALL], header[_LAYER] = _CALLS.index(call), self.number
        error, part = None, None
        try:
            part = prepare()
            rows = part.rows
            header[_DTYPE] = _DTYPES.index(part.dtype.name)
            header[_SETTINGS] = zlib.crc32(repr(settings).encode())
            header[_COUNT] = part.count
        except Exception as problem:
            error = problem
            header[_REFUSED] = 1
        if self.headers_ahead:
            self._check(self._allgather(header), error)
        exchange = self._sliced if self.in_slices else self._gathered
        counts, rows = exchange(header, rows, _JOINS[call], error)
        return Whole(part, int(counts.sum()), rows)

    def refuse(self, call: str, error: Exception) -> NoReturn:
        """Raise ``error``, and tell the other ranks, which make the call."""

        def prepare() -> Any:
            raise error

        self.together(call, prepare)
        raise AssertionError("an exchange without this rank's part has gone well")

    def _gathered(self, header, rows, join, error):
        """Counts of the ranks, and rows of all together: every rank joins all of them."""
        received = self._allgather(np.concatenate([header, rows.reshape(-1)]))
        headers, parts = received[:, :_HEADER], received[:, _HEADER:]
        self._check(headers, error)
        counts = headers[:, _COUNT]
        return counts, join(counts, parts.reshape(self.ranks, 2, -1))

    def _sliced(self, header, rows, join, error):
        """The same: every rank joins a slice of the channels, then all get all slices."""
        width = -(-self.channels // self.ranks)
        sent = np.zeros((self.ranks, _HEADER + 2 * width))
        padded = np.zeros((2, self.ranks * width))
        padded[:, : self.channels] = rows
        sent[:, :_HEADER] = header
        slices = padded.reshape(2, self.ranks, width).swapaxes(0, 1)
        sent[:, _HEADER:] = slices.reshape(self.ranks, -1)
        received = np.full_like(sent, np.nan)
        alltoall(self.comm, sent, received)
        headers = received[:, :_HEADER]
        self._check(headers, error)
        counts = headers[:, _COUNT]
        own = join(counts, received[:, _HEADER:].reshape(self.ranks, 2, width))
        slices = self._allgather(own.reshape(-1)).reshape(self.ranks, 2, width)
        rows = slices.swapaxes(0, 1).reshape(2, -1)[:, : self.channels]
        return counts, np.ascontiguousarray(rows)  # as kernels take it

    def _allgather(self, sent: np.ndarray) -> np.ndarray:
        """What every rank has sent, by rank."""
        if self.ranks == 1:
            return sent[None]
        # NaN, so that what a message too short has left empty is no header
        received = np.full((self.ranks, sent.size), np.nan)
        allgather(self.comm, sent, received)
        return received

    def _check(self, headers: np.ndarray, error: Exception | None) -> None:
        """Raise on all ranks if one has refused, or if they make different calls."""
        refused = np.flatnonzero(headers[:, _REFUSED] == 1)  # not NaN
        if refused.size:
            texts = _all_texts(self.comm, "" if error is None else _described(error))
            if error is not None:
                raise error
            rank = int(refused[0])
            raise RuntimeError(
                f"rank {rank} has refused its part, so no rank has changed anything: {texts[rank]}"
            )
        same = headers[:, :_COUNT] == headers[0, :_COUNT]
        if not same.all():
            _differ(headers, max(1, int(np.flatnonzero(~same.all(axis=1))[0])))


def _differ(headers: np.ndarray, rank: int) -> NoReturn:
    """Say what a rank does otherwise than rank 0."""
    one, other = headers[0], headers[rank]
    if one[_LAYER] != other[_LAYER]:
        raise RuntimeError(f"rank {rank} calls another layer than rank 0{_ALIKE}")
    if one[_CALL] != other[_CALL]:
        calls = (_CALLS[int(header[_CALL])] for header in (one, other))
        raise RuntimeError(
            "rank 0 calls {} of a layer, and rank {} calls its {}".format(*_between(calls, rank))
            + _ALIKE
        )
    if one[_DTYPE] != other[_DTYPE]:
        names = (_DTYPES[int(header[_DTYPE])] for header in (one, other))
        raise ValueError(
            "x has dtype {} on rank 0, and on rank {} dtype {}".format(*_between(names, rank))
            + "; expected one dtype on all ranks, for an empty batch too: x.astype(np.float32)"
        )
    if _CALLS[int(one[_CALL])] == "backward":
        raise RuntimeError(f"rank {rank} differentiates another forward than rank 0{_ALIKE}")
    raise ValueError(
        f"eps, momentum, on_nonfinite, activation or negative_slope of the layer are others on "
        f"rank {rank} than on rank 0; set them alike on all ranks"
    )


def _between(pair, rank: int):
    one, other = pair
    return one, rank, other


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
