"""What an output is, and when its memory is used again."""

import copy
import ctypes
import gc
import pickle
import weakref

import numpy as np
import pytest

from tests.internals import flat, pool
from tests.pool.tools import F4, MIB, address, dropped, output, reuses


class Own(np.ndarray):
    pass


BASE = np.zeros((6, 70, 80, 50), np.float32)
LAYOUTS = {
    "C": BASE,
    "one dimension": BASE.ravel(),
    "Fortran": BASE.T,
    "a permutation": BASE.transpose(0, 3, 1, 2),
    "another": BASE.transpose(2, 0, 3, 1),
    "a step": BASE[:, :, ::2],
    "a step along rows": BASE[..., ::2],
    "reversed": BASE[:, ::-1],
    "reversed and permuted": BASE[::-1, :, ::-1].transpose(1, 3, 0, 2),
    "one dimension with a step": BASE.ravel()[::2],
    "some channels": BASE[:, 3:60],
    "some channels of a permutation": BASE.transpose(0, 3, 1, 2)[:, 1:],
    "broadcast": np.broadcast_to(BASE[:, :1], BASE.shape),
    "broadcast and permuted": np.broadcast_to(BASE[:, :1], BASE.shape).transpose(3, 1, 0, 2),
    "one value": np.broadcast_to(np.float32(0), BASE.shape),
    "axes of one": BASE.reshape(1, 6, 1, -1, 1),
    "permuted axes of one": BASE.reshape(6, 1, -1, 1).transpose(3, 2, 0, 1),
    "Fortran with axes of one": np.asfortranarray(BASE.reshape(6, 1, -1))[:, :, :],
    "Fortran with an axis cut to one": BASE.T[:, :1],
    "a subclass": BASE.view(Own).transpose(0, 2, 1, 3),
    "read-only": np.frombuffer(BASE.tobytes(), np.float32),
    "big-endian": BASE.astype(">f4").transpose(1, 0, 2, 3),
    "bytes": np.zeros((3, 800, 900), np.uint8).transpose(1, 2, 0),
}


def assert_like_empty_like(x, dtype):
    y, wanted = pool.new_output(x, dtype), np.empty_like(x, dtype=dtype, subok=False)
    assert type(y) is np.ndarray
    assert (y.shape, y.strides, y.dtype) == (wanted.shape, wanted.strides, wanted.dtype)
    for flag in ("WRITEABLE", "ALIGNED", "C_CONTIGUOUS", "F_CONTIGUOUS", "WRITEBACKIFCOPY"):
        assert y.flags[flag] == wanted.flags[flag]
    assert y.flags.carray == wanted.flags.carray
    return y


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ">f4"])
def test_an_output_is_what_empty_like_gives(layout, dtype):
    x = LAYOUTS[layout]
    for _ in range(2):  # the second time in used memory
        y = assert_like_empty_like(x, np.dtype(dtype))
        if y.nbytes >= pool.SMALLEST and pool._madvise() is not None:
            assert not y.flags.owndata
            assert address(y) % 4096 == 0
        y[...] = 1
        del y


def test_random_layouts(rng, monkeypatch):
    monkeypatch.setattr(pool, "SMALLEST", 1)
    for _ in range(500):
        rank = rng.integers(0, 6)
        x = np.zeros(rng.integers(0 if rng.random() < 0.1 else 1, 4, rank), np.float32)
        x = np.broadcast_to(x, (*rng.integers(1, 3, 2), *x.shape)) if rng.random() < 0.3 else x
        x = x.transpose(rng.permutation(x.ndim))
        for axis in range(x.ndim):
            step = int(rng.choice([1, 1, 1, 2, -1]))
            x = x[(slice(None),) * axis + (slice(None, None, step),)]
        y = assert_like_empty_like(x, np.dtype(rng.choice(["f4", "f8", "f2"])))
        y[...] = 3


def test_a_small_output_is_an_ordinary_array():
    assert output(pool.SMALLEST - 4).flags.owndata
    assert output(MIB // 2).base is None
    assert type(pool.new_output(BASE[:1, :1].view(Own), F4)) is np.ndarray
    assert not pool._blocks


@reuses
def test_the_smallest_output_that_is_reused():
    where = dropped(pool.SMALLEST)
    assert address(output(pool.SMALLEST)) == where


def test_the_size_of_the_output_counts_and_not_that_of_the_input():
    x = np.zeros(MIB // 4, np.uint8)
    assert pool.new_output(x, np.dtype(np.float16)).flags.owndata
    y = pool.new_output(x, F4)
    assert y.flags.owndata is (pool._madvise() is None)


def test_an_output_can_be_made_read_only_and_writable_again():
    y = output()
    y.setflags(write=False)
    with pytest.raises(ValueError, match="read-only"):
        y[0] = 1
    y.setflags(write=True)
    y[0] = 1
    view = y[::2]
    view.flags.writeable = False
    view.flags.writeable = True


# --- when memory is reused --------------------------------------------------------------------


@reuses
def test_memory_of_a_dropped_output_is_used_again():
    where = dropped()
    for _ in range(5):
        y = output(fill=2)
        assert address(y) == where
        del y
    first, second = output(), output()
    assert address(first) == where
    assert address(second) != where


@reuses
def test_a_block_serves_other_shapes_and_dtypes():
    where = dropped(BASE.nbytes)
    for layout in ("C", "a permutation", "Fortran", "reversed"):
        assert address(pool.new_output(LAYOUTS[layout], F4)) == where
    assert address(pool.new_output(BASE[: BASE.shape[0] // 2], np.dtype(np.float64))) == where


@reuses
def test_a_block_must_be_large_enough_and_not_much_too_large():
    kept = dropped(5 * MIB)
    for nbytes in (5 * MIB + 4, 4 * MIB - 4, 3 * MIB):
        assert address(output(nbytes)) != kept
    for nbytes in (4 * MIB, 5 * MIB):
        pool._blocks = dict(item for item in pool._blocks.items() if item[0][0] == 5 * MIB)
        assert address(output(nbytes)) == kept


@reuses
def test_the_smallest_block_that_fits_is_taken():
    both = [output(size * MIB // 10, 1) for size in (44, 41, 48)]
    places = [address(y) for y in both]
    del both
    assert [address(y) for y in [output(4 * MIB) for _ in range(3)]] == [
        places[1], places[0], places[2],
    ]  # fmt: skip


def cycle(y):
    holder = [y]
    holder.append(holder)
    return weakref.ref(y)


class Struct:
    def __init__(self, y):
        self.__array_struct__ = y.__array_struct__


#: What may be all that is left of an output.
HOLDERS = {
    "a slice": lambda y: y[5:6],
    "a view": lambda y: y.view(np.uint8),
    "a view of a view of a view": lambda y: y.view(np.uint8)[3:][::-1][2:],
    "reshape": lambda y: y.reshape(4, -1),
    "transpose": lambda y: y.reshape(4, -1).T,
    "ravel": lambda y: y.reshape(4, -1).ravel(),
    "swapped axes of a slice": lambda y: y.reshape(4, 2, -1)[:, 1:].swapaxes(0, 2),
    "real": lambda y: y.view(np.complex64).imag,
    "a diagonal": lambda y: y[:16].reshape(4, 4).diagonal(),
    "asarray": lambda y: np.asarray(y[:]),
    "a subclass": lambda y: y.view(Own),
    "an array of a subclass": lambda y: np.asarray(y.view(Own)),
    "a subclass of a view": lambda y: y[1:].view(Own)[1:].view(np.ndarray),
    "a record array": lambda y: y.view([("a", "f4"), ("b", "f4")])["b"],
    "a masked array": lambda y: np.ma.masked_array(y),
    "broadcast": lambda y: np.broadcast_to(y[:4], (3, 4)),
    "strided": lambda y: np.lib.stride_tricks.as_strided(y, (3, 3), (4, 4)),
    "windows": lambda y: np.lib.stride_tricks.sliding_window_view(y, 3),
    "an iterator": lambda y: iter(y),
    "a flat iterator": lambda y: y.flat,
    "nditer": lambda y: np.nditer(y),
    "memoryview": lambda y: memoryview(y),
    "a part of a memoryview": lambda y: memoryview(y).cast("B")[4:8],
    "frombuffer": lambda y: np.frombuffer(y, np.uint8),
    "frombuffer of a memoryview": lambda y: np.frombuffer(memoryview(y)[4:], np.uint8),
    "ndarray of a buffer": lambda y: np.ndarray(3, np.float32, y),
    "a ctypes array": lambda y: np.ctypeslib.as_ctypes(y),
    "a part of a ctypes array": lambda y: np.ctypeslib.as_ctypes(y.reshape(4, -1))[1],
    "a ctypes pointer": lambda y: y.ctypes.data_as(ctypes.c_void_p),
    "an exported buffer": lambda y: (ctypes.c_char * 4).from_buffer(y),
    "dlpack": lambda y: np.from_dlpack(y),
    "a capsule": lambda y: y.__dlpack__(),
    "the array interface": lambda y: np.asarray(Struct(y)),
    "a pickle buffer": lambda y: pickle.PickleBuffer(y),
    "out of band": lambda y: pickle.loads(
        pickle.dumps(y, 5, buffer_callback=(kept := []).append), buffers=kept
    ),
    "base": lambda y: y.base,
    "base of base": lambda y: y.base.base,
    "an array of the base": lambda y: np.asarray(y.base.base)[3:],
    "a flat view": lambda y: flat(y.reshape(4, -1).T, y.size),
    "an object array": lambda y: np.array([y, None], object),
    "a bound method": lambda y: y.sum,
    "a closure": lambda y: lambda: y,
    "a cycle": cycle,
}


@reuses
@pytest.mark.parametrize("name", HOLDERS)
def test_memory_is_not_reused_while_anything_refers_to_it(name):
    gc.collect()
    gc.disable()
    try:
        y = output(fill=7)
        where = address(y)
        holder = HOLDERS[name](y)
        del y
        others = [output(fill=0) for _ in range(3)]
        assert where not in map(address, others)
        assert ctypes.string_at(where, 2 * MIB) == F4.type(7).tobytes() * (MIB // 2)
        del holder
        gc.collect()
        assert address(output()) == where
    finally:
        gc.enable()


@reuses
@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda y: pickle.loads(pickle.dumps(y)), np.array]
)
def test_a_copy_has_memory_of_its_own(duplicate):
    y = output(fill=7)
    where, twin = address(y), duplicate(y)
    del y
    assert address(output(fill=0)) == where
    np.testing.assert_array_equal(twin, 7)
