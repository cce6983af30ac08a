"""Large outputs in the memory of earlier ones.

The pages of a fresh large array are cleared by the system as they are first touched, which
takes longer than the work on them. So the memory of a large output that nobody refers to
any more serves the next one. Until then it is offered to the system (``MADV_FREE``), which
takes it when it is short of memory, and else leaves the pages where they are.

An output views a lease, and so does, directly or not, whatever views the output. What runs
when the lease goes is C code alone: no exception or Ctrl-C can come in between, in a destructor,
in garbage collection or at the end of the interpreter.
"""

import operator
import os
import sys
import warnings
import weakref
from collections.abc import Callable
from functools import lru_cache, partial
from itertools import count
from typing import Any

import numpy as np

__all__ = ["get_reuse_limit", "set_reuse_limit"]

#: Bytes below which an output is an array like any other. glibc keeps the memory of arrays up
#: to 32 MiB by itself, and hands it on faster.
SMALLEST = 32 * 1024 * 1024
#: Bytes of smaller outputs, where they are reused at all, that may wait without being offered to
#: the system: as much as glibc keeps for itself. Offering takes longer than the work on them.
WARM = 2 * SMALLEST
#: Bytes that are reused where nobody says otherwise.
DEFAULT_LIMIT = 512 * 1024 * 1024
_MADV_FREE = 8

_limit: int | None = None
#: The latest blocks, in use or dropped, oldest first, by size and age. Changed by single
#: operations that no other thread can split: a block belongs to who has popped it.
_blocks: "dict[tuple[int, int], _Block]" = {}
_serial = count()


def get_reuse_limit() -> int:
    """Bytes of memory that large outputs may reuse.

    By default the environment variable ``FASTBN_REUSE_LIMIT``, or 512 MiB.
    `set_reuse_limit` says what is reused.

    Examples
    --------
    >>> import fastbn
    >>> fastbn.get_reuse_limit() >= 0
    True
    """
    return _default() if _limit is None else _limit


def set_reuse_limit(nbytes: int) -> None:
    """Set how many bytes of memory large outputs may reuse, for the whole process.

    The latest outputs of 32 MiB or more (8 MiB or more of `standardize` and `destandardize`),
    up to ``nbytes`` in all, leave their memory to later outputs of about the same size when
    nothing refers to them any more. Reuse works best where the outputs that are alive at once
    fit in. Memory that waits for reuse still counts as the process's, but the system takes it
    when it is short; not so up to 64 MiB of the outputs below 32 MiB, which wait as they are.
    Only Linux can; on other systems nothing is reused.

    Parameters
    ----------
    nbytes : int
        0 switches reuse off. What waits beyond the new limit is freed.

    Raises
    ------
    TypeError, ValueError
        If ``nbytes`` is not an integer, or negative.

    Examples
    --------
    >>> import fastbn
    >>> before = fastbn.get_reuse_limit()
    >>> fastbn.set_reuse_limit(64 * 1024 * 1024)
    >>> fastbn.get_reuse_limit()
    67108864
    >>> fastbn.set_reuse_limit(before)
    """
    global _limit
    try:
        if isinstance(nbytes, (bool, np.bool_)):
            raise TypeError
        number = operator.index(nbytes)
    except TypeError:
        raise TypeError(f"nbytes must be an integer, got {nbytes!r}") from None
    if number < 0:
        raise ValueError(f"nbytes must be 0 or more, got {number}; 0 switches reuse off")
    _limit = number
    _forget_oldest()


def new_output(like: np.ndarray, dtype: np.dtype, smallest: int | None = None) -> np.ndarray:
    """``np.empty_like(like, dtype, subok=False)``, where large in the memory of a dropped one.

    ``dtype`` is one of numbers. A large output does not own its memory, as its flags say;
    ``smallest`` bytes are large, by default `SMALLEST`.
    """
    if like.size * dtype.itemsize < (SMALLEST if smallest is None else smallest):
        return np.empty_like(like, dtype, subok=False)
    nbytes = like.size * dtype.itemsize
    madvise = _madvise()
    if madvise is None or nbytes > get_reuse_limit():
        return _allocate(np.empty_like, like, dtype, subok=False)
    block = _take(nbytes) or _Block(nbytes, madvise, warm=nbytes < SMALLEST)
    memory = block.lend(nbytes)
    if block.reusable:
        _blocks[block.size, -next(_serial)] = block
        _forget_oldest()
    return np.ndarray(like.shape, dtype, memory, strides=strides_like(like, dtype.itemsize))


class _Lease:
    """Hands memory to NumPy, and lives as long as any array over it."""

    __slots__ = ("__array_interface__", "__weakref__", "memory")

    def __init__(self, memory: np.ndarray, address: int, nbytes: int) -> None:
        self.memory = memory
        self.__array_interface__: dict[str, Any] = {
            "version": 3,
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (address, False),
        }


class _Block:
    """Whole pages of memory, which one output has after the other.

    Attributes
    ----------
    size : bytes
    reusable : whether the system takes the offer of its pages
    warm : whether it waits without that offer
    dropped : empty while the block is lent
    """

    __slots__ = (
        "_address", "_memory", "_offer", "_references", "dropped", "reusable", "size", "warm"
    )  # fmt: skip

    def __init__(self, nbytes: int, madvise: Callable[..., int], warm: bool = False) -> None:
        self.warm = warm
        page = os.sysconf("SC_PAGE_SIZE")
        self.size = -(-nbytes // page) * page
        self._memory = _allocate(np.empty, self.size + page, np.uint8)
        self._address = -(-self._memory.ctypes.data // page) * page
        self._offer = partial(madvise, self._address, self.size, _MADV_FREE)
        self.reusable = self._offer(None) == 0

    def lend(self, nbytes: int) -> np.ndarray:
        lease = _Lease(self._memory, self._address, nbytes)
        self.dropped: list[Any] = []
        # the later reference is called first: pages are offered before the block is dropped
        # for others to see, and never when another output may have written to them
        calls = (self.dropped.append,) if self.warm else (self.dropped.append, self._offer)
        self._references = [weakref.ref(lease, call) for call in calls]
        return np.asarray(lease)


def _take(nbytes: int) -> _Block | None:
    """The smallest dropped block that fits well, the latest of these, for the caller alone."""
    most = nbytes * 5 // 4
    for key in sorted(key for key in list(_blocks) if nbytes <= key[0] <= most):
        block = _blocks.get(key)
        if block is not None and block.dropped and _blocks.pop(key, None) is not None:
            return block
    return None


def _forget_oldest() -> None:
    """Leave alone the oldest blocks beyond the limits: their memory goes when nobody uses it."""
    _forget(list(_blocks), get_reuse_limit())
    # `items` makes tuples, and with them the garbage collector may run, which drops outputs
    warm = (key for key in list(_blocks) if getattr(_blocks.get(key), "warm", False))
    _forget(list(warm), WARM)


def _forget(keys: list[tuple[int, int]], limit: int) -> None:
    excess = sum(size for size, _ in keys) - limit
    for key in keys:
        if excess <= 0:
            break
        _blocks.pop(key, None)
        excess -= key[0]


def _allocate(empty: Callable[..., np.ndarray], *args: Any, **kwargs: Any) -> np.ndarray:
    try:
        return empty(*args, **kwargs)
    except MemoryError:
        _blocks.clear()
    return empty(*args, **kwargs)


def strides_like(like: np.ndarray, itemsize: int) -> tuple[int, ...]:
    """Strides of ``np.empty_like(like)`` for values of another size."""
    inner_first = list(range(like.ndim))
    if like.flags.c_contiguous:
        inner_first.reverse()
    elif not like.flags.f_contiguous:
        inner_first.sort(key=lambda axis: (abs(like.strides[axis]), -axis))
    strides = [0] * like.ndim
    for axis in inner_first:
        strides[axis] = itemsize
        itemsize *= like.shape[axis]
    return tuple(strides)


@lru_cache(maxsize=1)
def _madvise() -> Any:
    """The system's ``madvise``, or None where it cannot be had."""
    if sys.platform != "linux":
        return None
    import ctypes

    try:
        function = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    # the last argument is the weak reference that calls, which C does not look at
    function.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.py_object
    return function


@lru_cache(maxsize=1)
def _default() -> int:
    wanted = os.environ.get("FASTBN_REUSE_LIMIT")
    if wanted is None:
        return DEFAULT_LIMIT
    if wanted.strip().isdecimal():
        return int(wanted)
    warnings.warn(
        f"FASTBN_REUSE_LIMIT must be a number of bytes, got {wanted!r}; it is ignored",
        RuntimeWarning,
        stacklevel=3,
    )
    return DEFAULT_LIMIT
