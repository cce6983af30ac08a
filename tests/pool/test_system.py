"""What waits for reuse belongs to the system, and stays within a limit."""

import ctypes
import os
import sys
import weakref

import numpy as np
import pytest

from tests import subprocess_tools as tools
from tests.internals import pool
from tests.pool.tools import F4, MIB, address, dropped, output, reuses, waiting


@reuses
def test_pages_are_offered_before_the_block_can_be_taken(monkeypatch):
    calls = []

    def madvise(address, size, advice, reference):
        if reference is not None:
            (block,) = pool._blocks.values()
            calls.append((address, size, advice, list(block.dropped)))
        return 0

    monkeypatch.setattr(pool, "_madvise", lambda: madvise)
    y = output(2 * MIB + 4)
    start, page = address(y), os.sysconf("SC_PAGE_SIZE")
    memory = next(iter(pool._blocks.values()))._memory
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
    pool._madvise()(-(-address(other) // page) * page, other.nbytes - page, 8, None)
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
    monkeypatch.setattr(pool, "_madvise", lambda: lambda *_: -1)
    y = output(fill=1)
    alive = weakref.ref(y.base.base.memory)
    assert not pool._blocks
    assert address(output()) != address(y)
    del y
    assert alive() is None


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_other_systems_get_ordinary_arrays(platform, monkeypatch):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(pool, "_madvise", pool._madvise.__wrapped__)
    assert pool._madvise() is None
    assert output().flags.owndata


def test_a_system_without_madvise_gets_ordinary_arrays(monkeypatch):
    def none(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", none)
    assert pool._madvise.__wrapped__() is None


@reuses
def test_memory_that_waits_is_given_up_for_a_fresh_output(monkeypatch):
    blocks = pool._blocks
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
        pool.new_output(x, F4)
    pool.set_reuse_limit(1 << 62)
    with pytest.raises(MemoryError):
        pool.new_output(x, F4)


@reuses
def test_under_a_limit_of_address_space():
    tools.run("""
import resource
import numpy as np
from tests.internals import pool

x = np.broadcast_to(np.float32(0), (25 << 20,))  # 100 MiB
y = pool.new_output(x, x.dtype)
z = pool.new_output(x, x.dtype)
y.fill(1)
del z
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (32 << 20), resource.RLIM_INFINITY))
longer = np.broadcast_to(np.float32(0), (32 << 20,))
z = pool.new_output(longer, x.dtype)  # in the place of what waited
z.fill(2)
try:
    pool.new_output(longer, x.dtype)
except MemoryError:
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    assert (y == 1).all() and (z == 2).all()
else:
    raise AssertionError
""")


# --- the limit --------------------------------------------------------------------------------


@reuses
def test_what_waits_stays_within_the_limit_and_the_oldest_goes_first():
    pool.set_reuse_limit(8 * MIB)
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
    pool.set_reuse_limit(4 * MIB)
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
    pool.set_reuse_limit(5 * MIB)
    assert waiting() == 4 * MIB
    pool.set_reuse_limit(0)
    assert not any(m() is not None for m in memory)


def test_zero_switches_reuse_off():
    y = output(fill=5)
    pool.set_reuse_limit(0)
    z = output()
    assert z.flags.owndata
    np.testing.assert_array_equal(y, 5)
    del y, z
    assert not pool._blocks


def test_an_output_beyond_the_limit_is_an_ordinary_array():
    pool.set_reuse_limit(2 * MIB)
    assert output(2 * MIB + 4).flags.owndata


@pytest.mark.parametrize("value", [1.5, True, False, "2", None, np.bool_(True), np.ones(2)])
def test_a_limit_that_is_no_integer_is_refused(value):
    with pytest.raises(TypeError, match="nbytes must be an integer, got"):
        pool.set_reuse_limit(value)
    assert pool.get_reuse_limit() == 64 * MIB


@pytest.mark.parametrize("value", [-1, -(10**30), np.int8(-1)])
def test_a_negative_limit_is_refused(value):
    with pytest.raises(ValueError, match=f"nbytes must be 0 or more, got {value}; 0 switches"):
        pool.set_reuse_limit(value)
    assert pool.get_reuse_limit() == 64 * MIB


@pytest.mark.parametrize("value", [0, 1, np.int16(5), 10**30])
def test_the_limit_is_what_was_set(value):
    pool.set_reuse_limit(value)
    assert pool.get_reuse_limit() == value
    assert type(pool.get_reuse_limit()) is int


DEFAULT = "from tests.internals import pool; print(pool.get_reuse_limit())"


def test_the_default_limit():
    given = None, "0", " 123456789 "
    values = [int(tools.run(DEFAULT, env={"FASTBN_REUSE_LIMIT": value})) for value in given]
    assert values == [512 * MIB, 0, 123456789]


@pytest.mark.parametrize("value", ["", "-1", "two", "1.5", "1e9", "²", "0x2", "1 GiB"])
def test_a_bad_environment_variable_is_warned_of_and_ignored(value, monkeypatch):
    monkeypatch.setenv("FASTBN_REUSE_LIMIT", value)
    with pytest.warns(RuntimeWarning, match="FASTBN_REUSE_LIMIT must be a number of bytes, got"):
        assert pool._default.__wrapped__() == 512 * MIB
