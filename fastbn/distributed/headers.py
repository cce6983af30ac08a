"""The first numbers of every message: which call it is of, and whether its rank has refused.

All ranks see the headers of all, so all find out, and raise, if calls do not belong together.
"""

import zlib
from typing import Any, NoReturn

import numpy as np

from fastbn._call.sync import Share
from fastbn.distributed.collectives import allgather

#: Numbers of a header, and its bytes.
NUMBERS = 7
BYTES = 8 * NUMBERS
#: What a header is of: a call of a layer, or that one is made.
CALLS = "forward", "backward", "make"
_DTYPES = "float16", "bfloat16", "float32", "float64"
#: `_DONE`: how many calls of the layer have gone well, `_COUNT`: values of a
#: channel, which alone may differ.
_REFUSED, _CALL, _LAYER, _DONE, _DTYPE, _SETTINGS, _COUNT = range(NUMBERS)
#: Bytes of a text that ranks show each other: why one has refused, or how its layer was made.
_TEXT = 512
ALIKE = "; all ranks of comm must make the same calls in the same order"


def header_of(call: str, layer: int = 0, done: int = 0) -> np.ndarray:
    """Of one message, as yet without a share."""
    header = np.zeros(NUMBERS)
    header[[_CALL, _LAYER, _DONE]] = CALLS.index(call), layer, done
    return header


def tell_share(header: np.ndarray, share: Share, settings: Any) -> None:
    """What must be alike of shares, and how many values there are."""
    header[_DTYPE] = _DTYPES.index(share.dtype.name)
    header[_SETTINGS] = zlib.crc32(repr(settings).encode())
    header[_COUNT] = share.count


def tell_refusal(header: np.ndarray) -> None:
    """That the rank has an error in place of a share."""
    header[_REFUSED] = 1


def counts_of(headers: np.ndarray) -> np.ndarray:
    """Values of a channel on each rank."""
    return headers[:, _COUNT]


def described(error: BaseException) -> str:
    """For the other ranks."""
    return f"{type(error).__name__}: {error}"


def all_texts(comm: Any, text: str, limit: float) -> list[str]:
    """The texts of all ranks; of long ones the beginning."""
    sent = np.zeros(_TEXT, np.uint8)
    kept = text.encode()[:_TEXT]
    sent[: len(kept)] = np.frombuffer(kept, np.uint8)
    received = np.zeros((comm.Get_size(), _TEXT), np.uint8)
    allgather(comm, sent, received, limit)
    return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in received]


def all_rows(comm: Any, sent: np.ndarray, limit: float) -> np.ndarray:
    """What every rank has sent, by rank."""
    ranks = comm.Get_size()
    if ranks == 1:
        return sent[None]
    # NaN, so that what a message too short has left empty is no header
    received = np.full((ranks, sent.size), np.nan)
    allgather(comm, sent, received, limit)
    return received


def check(comm: Any, headers: np.ndarray, error: BaseException | None, limit: float) -> None:
    """Raise on all ranks if one has refused, or if they make different calls."""
    refused = np.flatnonzero(headers[:, _REFUSED] == 1)  # not NaN
    if refused.size:
        texts = all_texts(comm, "" if error is None else described(error), limit)
        if error is not None:
            raise error
        rank = int(refused[0])
        raise RuntimeError(
            f"rank {rank} has refused its part, so no rank has changed anything: {texts[rank]}"
        )
    same = headers[:, :_COUNT] == headers[0, :_COUNT]
    if not same.all():
        rank = max(1, int(np.flatnonzero(~same.all(axis=1))[0]))
        _differ(headers[0], headers[rank], rank)


def _differ(one: np.ndarray, other: np.ndarray, rank: int) -> NoReturn:
    """Say what a rank does otherwise than rank 0."""
    calls = [CALLS[int(c)] if c in range(len(CALLS)) else "" for c in (one[_CALL], other[_CALL])]
    if (calls[0] == "make") != (calls[1] == "make") and all(calls):
        maker, caller = (0, rank) if calls[0] == "make" else (rank, 0)
        raise RuntimeError(f"rank {maker} makes a layer, and rank {caller} calls one{ALIKE}")
    if one[_LAYER] != other[_LAYER]:
        raise RuntimeError(f"rank {rank} calls another layer than rank 0{ALIKE}")
    if one[_CALL] != other[_CALL]:
        raise RuntimeError(
            f"rank 0 calls {calls[0]} of a layer, and rank {rank} calls its {calls[1]}{ALIKE}"
        )
    if one[_DONE] != other[_DONE]:
        raise RuntimeError(
            f"of the layer's calls {one[_DONE]:.0f} have gone well on rank 0, and on rank {rank} "
            f"{other[_DONE]:.0f}: one has failed on one rank alone{ALIKE}"
        )
    if one[_DTYPE] != other[_DTYPE]:
        names = [_DTYPES[int(header[_DTYPE])] for header in (one, other)]
        raise ValueError(
            f"x has dtype {names[0]} on rank 0, and on rank {rank} dtype {names[1]}; expected one "
            "dtype on all ranks, for an empty batch too: x.astype(np.float32)"
        )
    if calls[0] == "backward":
        raise RuntimeError(
            f"rank {rank} differentiates another forward than rank 0, or its running statistics "
            f"are others{ALIKE}"
        )
    raise ValueError(
        "eps, momentum, on_nonfinite, activation, negative_slope or parameter_gradients of the "
        f"layer are others on rank {rank} than on rank 0; set them alike on all ranks"
    )
