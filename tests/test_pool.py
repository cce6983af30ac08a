"""Large outputs in the memory of dropped ones: when it is reused, and when it must not be."""

import copy
import ctypes
import gc
import itertools
import os
import pickle
import signal
import sys
import threading
import tracemalloc
import weakref

import numpy as np
import pytest

from fastbn import _memory, _pool
from tests import subprocess_tools as tools

MIB = 1 << 20
F4 = np.dtype(np.float32)

reuses = pytest.mark.skipif(_pool._madvise() is None, reason="memory is reused on Linux alone")


@pytest.fixture(autouse=True)
def empty_pool(monkeypatch):
    """A pool of 64 MiB that nobody has used, for outputs from 1 MiB on, and nothing afterwards."""
    monkeypatch.setattr(_pool, "SMALLEST", MIB)
    monkeypatch.setattr(_pool, "_limit", 64 * MIB)
    monkeypatch.setattr(_pool, "_blocks", {})
    monkeypatch.delenv("FASTBN_REUSE_LIMIT", raising=False)  # for scripts


@pytest.fixture
def small(monkeypatch):
    """Reuse from 4096 bytes on, for tests that make many outputs."""
    monkeypatch.setattr(_pool, "SMALLEST", 4096)


def output(nbytes=2 * MIB, fill=None):
    y = _pool.new_output(np.broadcast_to(F4.type(0), (nbytes // 4,)), F4)
    if fill is not None:
        y.fill(fill)
    return y


def address(array):
    return array.__array_interface__["data"][0]


def dropped(nbytes=2 * MIB):
    """Address of an output that is gone."""
    return address(output(nbytes, fill=1))


def waiting():
    """Bytes that wait for reuse."""
    return sum(block.size for block in _pool._blocks.values() if block.dropped)


# --- what comes back ------------------------------------------------------------------------


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
    y, wanted = _pool.new_output(x, dtype), np.empty_like(x, dtype=dtype, subok=False)
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
        if y.nbytes >= _pool.SMALLEST and _pool._madvise() is not None:
            assert not y.flags.owndata
            assert address(y) % 4096 == 0
        y[...] = 1
        del y


def test_random_layouts(rng, monkeypatch):
    monkeypatch.setattr(_pool, "SMALLEST", 1)
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
    assert output(_pool.SMALLEST - 4).flags.owndata
    assert output(MIB // 2).base is None
    assert type(_pool.new_output(BASE[:1, :1].view(Own), F4)) is np.ndarray
    assert not _pool._blocks


@reuses
def test_the_smallest_output_that_is_reused():
    where = dropped(_pool.SMALLEST)
    assert address(output(_pool.SMALLEST)) == where


def test_the_size_of_the_output_counts_and_not_that_of_the_input():
    x = np.zeros(MIB // 4, np.uint8)
    assert _pool.new_output(x, np.dtype(np.float16)).flags.owndata
    y = _pool.new_output(x, F4)
    assert y.flags.owndata is (_pool._madvise() is None)


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


# --- when memory is reused ------------------------------------------------------------------


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
        assert address(_pool.new_output(LAYOUTS[layout], F4)) == where
    assert address(_pool.new_output(BASE[: BASE.shape[0] // 2], np.dtype(np.float64))) == where


@reuses
def test_a_block_must_be_large_enough_and_not_much_too_large():
    kept = dropped(5 * MIB)
    for nbytes in (5 * MIB + 4, 4 * MIB - 4, 3 * MIB):
        assert address(output(nbytes)) != kept
    for nbytes in (4 * MIB, 5 * MIB):
        _pool._blocks = dict(item for item in _pool._blocks.items() if item[0][0] == 5 * MIB)
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
    "a flat view": lambda y: _memory.flat(y.reshape(4, -1).T, y.size),
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


# --- the system's side ----------------------------------------------------------------------


@reuses
def test_pages_are_offered_before_the_block_can_be_taken(monkeypatch):
    calls = []

    def madvise(address, size, advice, reference):
        if reference is not None:
            (block,) = _pool._blocks.values()
            calls.append((address, size, advice, list(block.dropped)))
        return 0

    monkeypatch.setattr(_pool, "_madvise", lambda: madvise)
    y = output(2 * MIB + 4)
    start, page = address(y), os.sysconf("SC_PAGE_SIZE")
    memory = next(iter(_pool._blocks.values()))._memory
    view = y[5:]
    del y
    assert calls == []
    del view
    assert calls == [(start, 2 * MIB + page, 8, [])]
    assert start % page == 0
    assert address(memory) <= start <= start + 2 * MIB + page <= address(memory) + memory.nbytes
    assert waiting() == 2 * MIB + page


def lazily_free():
    with open("/proc/self/smaps", encoding="ascii") as file:
        lines = [line.split() for line in file if line.startswith("LazyFree:")]
    return sum(int(line[1]) for line in lines) * 1024 if lines else None


@reuses
def test_the_system_may_take_the_pages_of_dropped_outputs_alone():
    before = lazily_free()
    other = np.ones(8 * MIB)
    page = os.sysconf("SC_PAGE_SIZE")
    _pool._madvise()(-(-address(other) // page) * page, other.nbytes - page, 8, None)
    if before is None or lazily_free() == before:
        pytest.skip("the system does not say")
    del other
    before = lazily_free()
    y = output(32 * MIB, fill=1)
    assert lazily_free() - before < 8 * MIB  # the system counts in batches
    del y
    assert lazily_free() - before > 16 * MIB
    y = output(32 * MIB, fill=1)
    assert lazily_free() - before < 8 * MIB
    np.testing.assert_array_equal(y, 1)


def test_nothing_is_kept_where_the_offer_is_refused(monkeypatch):
    monkeypatch.setattr(_pool, "_madvise", lambda: lambda *_: -1)
    y = output(fill=1)
    alive = weakref.ref(y.base.base.memory)
    assert not _pool._blocks
    assert address(output()) != address(y)
    del y
    assert alive() is None


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_other_systems_get_ordinary_arrays(platform, monkeypatch):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(_pool, "_madvise", _pool._madvise.__wrapped__)
    assert _pool._madvise() is None
    assert output().flags.owndata


def test_a_system_without_madvise_gets_ordinary_arrays(monkeypatch):
    def none(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", none)
    assert _pool._madvise.__wrapped__() is None


@reuses
def test_memory_that_waits_is_given_up_for_a_fresh_output(monkeypatch):
    blocks = _pool._blocks
    attempts = []

    def empty(size, dtype):
        attempts.append(len(blocks))
        if len(attempts) == 1:
            raise MemoryError
        return original(size, dtype)

    y = output()
    dropped()
    original = np.empty
    monkeypatch.setattr(np, "empty", empty)
    assert output(8 * MIB).size == 2 * MIB
    assert attempts == [2, 0]
    y.fill(3)


def test_a_lack_of_memory_is_an_error():
    x = np.broadcast_to(np.float32(0), (1 << 58,))
    with pytest.raises(MemoryError):
        _pool.new_output(x, F4)
    _pool.set_reuse_limit(1 << 62)
    with pytest.raises(MemoryError):
        _pool.new_output(x, F4)


@reuses
def test_under_a_limit_of_address_space():
    tools.run("""
import resource
import numpy as np
from fastbn import _pool

x = np.broadcast_to(np.float32(0), (25 << 20,))  # 100 MiB
y = _pool.new_output(x, x.dtype)
z = _pool.new_output(x, x.dtype)
y.fill(1)
del z
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (32 << 20), resource.RLIM_INFINITY))
longer = np.broadcast_to(np.float32(0), (32 << 20,))
z = _pool.new_output(longer, x.dtype)  # in the place of what waited
z.fill(2)
try:
    _pool.new_output(longer, x.dtype)
except MemoryError:
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    assert (y == 1).all() and (z == 2).all()
else:
    raise AssertionError
""")


# --- the limit ------------------------------------------------------------------------------


@reuses
def test_what_waits_stays_within_the_limit_and_the_oldest_goes_first():
    _pool.set_reuse_limit(8 * MIB)
    outputs = [output(2 * MIB, 1) for _ in range(10)]
    places = [address(y) for y in outputs]
    memory = [weakref.ref(y.base.base.memory) for y in outputs]
    assert waiting() == 0
    while outputs:
        del outputs[0]
        assert waiting() <= 8 * MIB
    assert [m() is not None for m in memory] == [False] * 6 + [True] * 4
    assert {address(y) for y in [output(2 * MIB) for _ in range(4)]} == set(places[-4:])


@reuses
def test_two_outputs_in_turn_need_no_more_than_two_blocks():
    _pool.set_reuse_limit(4 * MIB)
    places, y = set(), None
    for _ in range(20):
        y = output(2 * MIB)
        places.add(address(y))
    assert len(places) == 2


@reuses
def test_a_lower_limit_frees_what_waits_beyond():
    outputs = [output(2 * MIB, 1) for _ in range(4)]
    memory = [weakref.ref(y.base.base.memory) for y in outputs]
    del outputs
    assert waiting() == 8 * MIB
    _pool.set_reuse_limit(5 * MIB)
    assert waiting() == 4 * MIB
    _pool.set_reuse_limit(0)
    assert not any(m() is not None for m in memory)


def test_zero_switches_reuse_off():
    y = output(fill=5)
    _pool.set_reuse_limit(0)
    z = output()
    assert z.flags.owndata
    np.testing.assert_array_equal(y, 5)
    del y, z
    assert not _pool._blocks


def test_an_output_beyond_the_limit_is_an_ordinary_array():
    _pool.set_reuse_limit(2 * MIB)
    assert output(2 * MIB + 4).flags.owndata


@pytest.mark.parametrize("value", [1.5, True, False, "2", None, np.bool_(True), np.ones(2)])
def test_a_limit_that_is_no_integer_is_refused(value):
    with pytest.raises(TypeError, match="nbytes must be an integer, got"):
        _pool.set_reuse_limit(value)
    assert _pool.get_reuse_limit() == 64 * MIB


@pytest.mark.parametrize("value", [-1, -(10**30), np.int8(-1)])
def test_a_negative_limit_is_refused(value):
    with pytest.raises(ValueError, match=f"nbytes must be 0 or more, got {value}; 0 switches"):
        _pool.set_reuse_limit(value)
    assert _pool.get_reuse_limit() == 64 * MIB


@pytest.mark.parametrize("value", [0, 1, np.int16(5), 10**30])
def test_the_limit_is_what_was_set(value):
    _pool.set_reuse_limit(value)
    assert _pool.get_reuse_limit() == value
    assert type(_pool.get_reuse_limit()) is int


DEFAULT = "from fastbn import _pool; print(_pool.get_reuse_limit())"


def test_the_default_limit():
    given = None, "0", " 123456789 "
    values = [int(tools.run(DEFAULT, env={"FASTBN_REUSE_LIMIT": value})) for value in given]
    assert values == [512 * MIB, 0, 123456789]


@pytest.mark.parametrize("value", ["", "-1", "two", "1.5", "1e9", "²", "0x2", "1 GiB"])
def test_a_bad_environment_variable_is_warned_of_and_ignored(value, monkeypatch):
    monkeypatch.setenv("FASTBN_REUSE_LIMIT", value)
    with pytest.warns(RuntimeWarning, match="FASTBN_REUSE_LIMIT must be a number of bytes, got"):
        assert _pool._default.__wrapped__() == 512 * MIB


# --- threads, processes, interrupts ---------------------------------------------------------


def switching(seconds):
    before = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    return before


@reuses
def test_threads_never_share_a_block(small):
    _pool.set_reuse_limit(16 * 4096 * 3)  # too little for all of them
    errors, places = [], set()
    barrier = threading.Barrier(8)

    def work(number):
        barrier.wait()
        kept = []
        try:
            for k in range(400):
                y = output((1 + k % 3) * 4096, fill=number)
                places.add(address(y))
                kept = [*kept[-(k % 4) :], y[k:]] if k % 4 else []
                assert (y == number).all()
                assert all((view == number).all() for view in kept)
        except BaseException as error:
            errors.append(error)

    before = switching(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        switching(before)
    assert errors == []
    assert len(places) < 1600  # of 3200 outputs
    output(4096)
    assert sum(size for size, _ in _pool._blocks) <= 16 * 4096 * 3


@reuses
def test_a_block_that_another_thread_took_first_is_left_to_it(monkeypatch):
    class Contested(dict):
        def pop(self, key, default=None):
            taken.append(super().pop(key))
            return default

    taken = []
    monkeypatch.setattr(_pool, "_blocks", Contested())
    places = {address(y) for y in [output(), output()]}
    assert waiting() == 4 * MIB
    assert address(output()) not in places
    assert len(taken) == 2


@reuses
def test_outputs_made_and_dropped_by_the_garbage_collector(small):
    class Trash:
        def __init__(self, number):
            self.output, self.number, self.me = output(4096, number), number, self

        def __del__(self):
            collected.append((self.output == self.number).all())
            last[0] = output(4096, fill=-1)

    collected, last, threshold = [], [None], gc.get_threshold()
    gc.set_threshold(5)
    try:
        for k in range(300):
            Trash(k)
            y = output(4096, fill=k)
            z = output(5000, fill=k)
            assert (y == k).all()
            assert (z == k).all()
            assert last[0] is None or (last[0] == -1).all()
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    assert len(collected) == 300
    assert all(collected)


@reuses
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_and_its_parent_go_on():
    tools.run("""
import os
import numpy as np
from fastbn import _pool

_pool.SMALLEST = 1 << 20
x = np.broadcast_to(np.float32(0), (4 << 20,))


def output(value):
    y = _pool.new_output(x, x.dtype)
    y.fill(value)
    return y, y.__array_interface__["data"][0]


def same(y, value):
    assert (y == value).all()


ask, answer = os.pipe(), os.pipe()
held, _ = output(1)
_, waits = output(2)
del _
pid = os.fork()
if pid == 0:
    try:
        new, where = output(3)  # where the parent's waits, and the child's own
        assert where == waits
        os.write(answer[1], b"1")
        os.read(ask[0], 1)
        same(held, 1), same(new, 3)
        del held
        other, _ = output(5)
        same(other, 5), same(new, 3)
        os._exit(0)
    finally:
        os._exit(1)
os.close(answer[1])
assert os.read(answer[0], 1) == b"1"
new, where = output(4)
assert where == waits
os.write(ask[1], b"1")
assert os.waitpid(pid, 0)[1] == 0
same(held, 1), same(new, 4)
""")


@reuses
def test_the_interpreter_ends_without_a_word():
    process = tools.start("""
import atexit, builtins, gc, sys, threading, weakref
import numpy as np
from fastbn import _pool

x = np.broadcast_to(np.float32(0), (1 << 20,))
new = lambda: _pool.new_output(x, x.dtype)
gc.disable()


class Late:
    def __init__(self):
        self.y, self.new, self.me = new()[3:], new, self

    def __del__(self):
        self.y.fill(1)
        self.y = None


y, _z, late = new(), new(), Late()
builtins.kept = new()
sys.kept = memoryview(new())
np.kept = Late()
_pool.kept, _pool._kept = Late(), new()
threading.kept = Late()
local = threading.local()
local.y = new()
finalizer = weakref.finalize(late, new)
atexit.register(lambda y=new(): new().fill(2))
threading.Thread(target=lambda: setattr(local, "y", Late())).start()
new()
""")
    out, err = process.communicate(timeout=tools.TIMEOUT)
    assert (process.returncode, out, err) == (0, "", "")


EVERY_STEP = """
import sys
import numpy as np
from fastbn import _pool

_pool.SMALLEST = 1 << 20
x = np.broadcast_to(np.float32(0), (1 << 18,))
_pool.set_reuse_limit(3 << 20)
new = lambda: _pool.new_output(x, x.dtype)


def raise_at(step):
    left = step

    def local(frame, event, arg):
        nonlocal left
        left -= 1
        if left == 0:
            sys.settrace(None)
            raise KeyboardInterrupt
        return local

    def trace(frame, event, arg):
        if frame.f_code.co_filename == _pool.__file__:
            frame.f_trace_opcodes = True
            return local

    sys.settrace(trace)


# with a block that waits, and with a fresh one
for reused in (True, False):
    faults = 0
    for step in range(1, 10_000):
        _pool._blocks.clear()
        held = new()
        held.fill(step)
        if reused:
            new()
        try:
            raise_at(step)
            y = new()
            sys.settrace(None)
            break
        except KeyboardInterrupt:
            sys.settrace(None)
            faults += 1
        outputs = [held, *(new() for _ in range(4))]
        for k, y in enumerate(outputs):
            y.fill(k)
        assert all((y == k).all() for k, y in enumerate(outputs))
    assert faults > 20, faults  # later versions of Python trace fewer steps
"""


@reuses
def test_an_interrupt_at_any_bytecode_shares_no_block():
    tools.run(EVERY_STEP)


@reuses
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="POSIX signals")
def test_no_interrupt_is_lost_in_a_drop():
    """Python throws away what is raised in a destructor; so nothing may be raised there."""
    process = tools.start("""
import itertools, random, signal
import numpy as np
from fastbn import _pool

x = np.broadcast_to(np.float32(0), (1 << 20,))
chance = random.Random(1)


class Interrupt(KeyboardInterrupt): pass


def interrupt(*_):
    raise Interrupt


signal.signal(signal.SIGALRM, interrupt)
y = _pool.new_output(x, x.dtype)
for _ in range(300):
    try:
        signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-4, 1e-3))
        for _ in itertools.repeat(None, 10**6):
            y = _pool.new_output(x, x.dtype)
            y[::1024] = 1
        raise AssertionError("lost")
    except Interrupt:
        pass
""")
    out, err = process.communicate(timeout=tools.TIMEOUT)
    assert (process.returncode, out, err) == (0, "", "")


@reuses
def test_nothing_is_left_of_a_thousand_outputs(small):
    def repeat(times):
        for k in range(times):
            output(4096 * (1 + k % 5))

    def growth():
        gc.collect()
        tracemalloc.start()
        try:
            repeat(100)
            before = tracemalloc.get_traced_memory()[0]
            repeat(1000)
            return tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()

    repeat(100)
    gc.disable()
    try:
        assert min(growth() for _ in range(3)) < 6000
    finally:
        gc.enable()
    assert len(_pool._blocks) == 5


def test_order_of_blocks_is_that_of_their_use(small):
    if _pool._madvise() is None:
        pytest.skip("nothing is kept")
    for size in itertools.chain(range(1, 4), range(1, 4)):
        output(size * 8192)
    assert [size for size, _ in _pool._blocks] == [8192, 16384, 24576]
    output(8192)
    assert [size for size, _ in _pool._blocks] == [16384, 24576, 8192]
