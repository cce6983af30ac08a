"""`simd` in NumPy, for ``NUMBA_DISABLE_JIT=1``: kernels run, and are covered, as plain Python.

A vector is an array, a pointer an array without an end, and native code a function in a table.
"""

import itertools
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from fastbn.kernels.frame import DTYPE, WORDS

VECTOR_BYTES = 64
SHARE = 1
CONVERTS_FLOAT16 = True

_ENDLESS = 1 << 40
_bodies: dict[int, Callable[..., None]] = {}
_addresses = itertools.count(1)
_allocated: dict[int, np.ndarray] = {}
#: The latest copies of frames; a caller needs its own for as long as it runs.
_copies: deque[np.ndarray] = deque(maxlen=256)


class _Window:
    """Hands memory at an address to NumPy, through the array interface."""

    def __init__(self, address: int, dtype: np.dtype, size: int) -> None:
        self.__array_interface__: dict[str, Any] = {
            "version": 3,
            "shape": (size,),
            "typestr": dtype.str,
            "data": (int(address), False),
        }


def _at(address, dtype, size=_ENDLESS):
    return np.asarray(_Window(address, dtype, size)) if address else np.empty(0, dtype)


def address_of_body(body: Callable[..., None]) -> int:
    """A number by which `call` finds a function."""
    address = next(_addresses)
    _bodies[address] = body
    return address


def call(part, frame, task):
    with np.errstate(all="ignore"):
        _bodies[int(part)](frame, task)


def call_loop(loop, part, frame, tasks):
    _bodies[int(loop)](part, frame, tasks)


# --- addresses and memory -------------------------------------------------------------------------


def address_of(array):
    return array.__array_interface__["data"][0]


def allocate(size):
    memory = np.empty(-(-size // 8), np.int64)
    _allocated[address_of(memory)] = memory
    return address_of(memory)


def free(address):
    del _allocated[int(address)]


def data_at(address, like):
    return _at(address, like.dtype)


def values_at(address, like):
    return _at(address, _computed(like))


def singles_at(address, like):
    return _at(address, np.dtype(np.float32))


def doubles_at(address, like):
    return _at(address, np.dtype(np.float64))


def words_at(address, like):
    return _at(address, np.dtype(np.int64))


def value_rows(count):
    return lambda address, distance, like: tuple(
        values_at(address + k * distance, like) for k in range(count)
    )


def double_rows(count):
    return lambda address, distance, like: tuple(
        doubles_at(address + k * distance, like) for k in range(count)
    )


class _Frame:
    """Fields of a frame as attributes."""

    def __init__(self, words: np.ndarray) -> None:
        self.__dict__["fields"] = words.view(DTYPE)

    def __getattr__(self, name: str) -> Any:
        return self.fields[name][0]

    def __setattr__(self, name: str, value: Any) -> None:
        self.fields[name] = value


def frame_at(address):
    return _Frame(_at(address, np.dtype(np.int64), WORDS))


def copy_of(address):
    copy = _at(address, np.dtype(np.int64), WORDS).copy()
    _copies.append(copy)
    return address_of(copy)


def memory(count):
    return lambda like: np.empty(count, _computed(like))


def held_memory(count):
    return lambda like: np.empty(count, like.dtype)


def short_memory(count):
    return lambda like: np.empty(count, np.int64)


def as_held(number, like):
    return like.dtype.type(number)


def as_short(number, like):
    return number


def fence():
    pass


def fetch(pointer, index):
    pass


def to_boundary(pointer, index):
    address = address_of(pointer) + index * pointer.itemsize
    return -address // pointer.itemsize % lanes()(pointer)


# --- vectors --------------------------------------------------------------------------------------


def _computed(like):
    """What values are computed in: float16 is held as int16, bfloat16 as uint16."""
    return np.dtype(np.float32) if like.dtype.itemsize == 2 else like.dtype


def _read(pointer, start, size):
    values = pointer[start : start + size]
    if pointer.dtype == np.int16:
        return values.view(np.float16).astype(np.float32)
    if pointer.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values


def _write(pointer, start, values):
    if pointer.dtype == np.int16:
        values = values.astype(np.float16).view(np.int16)
    elif pointer.dtype == np.uint16:
        bits = values.view(np.uint32)
        rounded = bits + ((bits >> 16) & 1) + 0x7FFF
        values = np.where(np.isnan(values), bits | 0x400000, rounded) >> 16
    pointer[start : start + values.size] = values


def value_at(pointer, index):
    return np.float64(_read(pointer, index, 1)[0])


def lanes(share=1):
    return lambda like: VECTOR_BYTES // _computed(like).itemsize // share


def broadcasts(count=1, share=1, wide=False):
    def broadcast(like, value):
        size = count * lanes(share)(like)
        return np.full(size, value, np.float64 if wide else _computed(like))

    return broadcast


def loads(count=1, share=1):
    def load(pointer, index, apart):
        size = lanes(share)(pointer)
        starts = [index + k * apart for k in range(count)]
        return np.concatenate([_read(pointer, start, size) for start in starts])

    return load


def loads_first(count=1):
    def load(pointer, index, apart, number, less, rest):
        vector = rest.copy()
        for k, part in enumerate(vector.reshape(count, -1)):
            size = min(max(number - k * less, 0), part.size)
            start = index + k * apart
            part[:size] = _read(pointer, start, size)
        return vector

    return load


def loads_each(count=1):
    def load(pointers, starts, aparts, offset):
        each = zip(pointers, starts, aparts, strict=True)
        return tuple(loads(count)(p, start + offset, apart) for p, start, apart in each)

    return load


def loads_each_first(count=1):
    def load(pointers, starts, aparts, offset, number):
        each = zip(pointers, starts, aparts, strict=True)
        zero = broadcasts(count)(pointers[0], 0.0)
        return tuple(
            loads_first(count)(p, start + offset, apart, number, 0, zero)
            for p, start, apart in each
        )

    return load


def terms_along(rows, count=1):
    def load(table, columns, index, number, like):
        zero = np.zeros(lanes()(like), table.dtype)
        places = [index + k * columns for k in range(rows)]
        vectors = [loads_first()(table, place, 0, number, 0, zero) for place in places]
        return tuple(np.tile(vector, count) for vector in vectors)

    return load


def terms_of_channel(rows):
    def load(table, columns, index, like):
        numbers = [table[index + k * columns] for k in range(rows)]
        return tuple(np.full(lanes()(like), number, table.dtype) for number in numbers)

    return load


def stores(count=1):
    def store(pointer, index, apart, vector):
        for k, part in enumerate(vector.reshape(count, -1)):
            _write(pointer, index + k * apart, part)

    return store


def stores_streaming(count=1):
    def store(pointer, index, apart, vector):
        for k in range(count):
            assert to_boundary(pointer, index + k * apart) == 0
        stores(count)(pointer, index, apart, vector)

    return store


def stores_first(count=1):
    def store(pointer, index, apart, number, vector):
        for k, part in enumerate(vector.reshape(count, -1)):
            size = min(max(number, 0), part.size)
            _write(pointer, index + k * apart, part[:size])

    return store


def folded(vector):
    a, b, c, d = vector.reshape(4, -1)
    return (a + b) + (c + d)


def folded_products(one, other):
    return folded(one * other)


def total(vector):
    while vector.size > 1:
        vector = vector[: vector.size // 2] + vector[vector.size // 2 :]
    return np.float64(vector[0])


def widened(vectors):
    return tuple(vector.astype(np.float64) for vector in vectors)


def narrowed(vector, like):
    return vector.astype(like.dtype)


def chosen(marks, yes, no):
    return np.where(marks != 0, yes, no)


def compiled_formula(formula, *parameters):
    """``formula`` on vectors and float64; tuples among its arguments are its arguments."""

    def compiled(*arguments):
        flat: list[Any] = []
        for argument in arguments:
            flat += argument if isinstance(argument, tuple) else [argument]
        return formula(*(v if isinstance(v, np.ndarray) else np.float64(v) for v in flat))

    compiled.__name__ = formula.__name__
    return compiled
