"""Threads, processes, interrupts and the end of the interpreter share no block."""

import gc
import itertools
import os
import signal
import sys
import threading
import tracemalloc

import pytest

from tests import subprocess_tools as tools
from tests.internals import pool
from tests.pool.tools import MIB, address, output, reuses, waiting


def switching(seconds):
    before = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    return before


@reuses
def test_threads_never_share_a_block(small):
    pool.set_reuse_limit(16 * 4096 * 3)  # too little for all of them
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
    assert sum(size for size, _ in pool._blocks) <= 16 * 4096 * 3


@reuses
def test_a_block_that_another_thread_took_first_is_left_to_it(monkeypatch):
    class Contested(dict):
        def pop(self, key, default=None):
            taken.append(super().pop(key))
            return default

    taken = []
    monkeypatch.setattr(pool, "_blocks", Contested())
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
from tests.internals import pool

pool.SMALLEST = 1 << 20
x = np.broadcast_to(np.float32(0), (4 << 20,))


def output(value):
    y = pool.new_output(x, x.dtype)
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
from tests.internals import pool

x = np.broadcast_to(np.float32(0), (1 << 20,))
new = lambda: pool.new_output(x, x.dtype)
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
pool.kept, pool._kept = Late(), new()
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
from tests.internals import pool

pool.SMALLEST = 1 << 20
x = np.broadcast_to(np.float32(0), (1 << 18,))
pool.set_reuse_limit(3 << 20)
new = lambda: pool.new_output(x, x.dtype)


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
        if frame.f_code.co_filename == pool.__file__:
            frame.f_trace_opcodes = True
            return local

    sys.settrace(trace)


# with a block that waits, and with a fresh one
for reused in (True, False):
    faults = 0
    for step in range(1, 10_000):
        pool._blocks.clear()
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
from tests.internals import pool

x = np.broadcast_to(np.float32(0), (1 << 20,))
chance = random.Random(1)


class Interrupt(KeyboardInterrupt): pass


def interrupt(*_):
    raise Interrupt


signal.signal(signal.SIGALRM, interrupt)
y = pool.new_output(x, x.dtype)
for _ in range(300):
    try:
        signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-4, 1e-3))
        for _ in itertools.repeat(None, 10**6):
            y = pool.new_output(x, x.dtype)
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
    assert len(pool._blocks) == 5


def test_order_of_blocks_is_that_of_their_use(small):
    if pool._madvise() is None:
        pytest.skip("nothing is kept")
    for size in itertools.chain(range(1, 4), range(1, 4)):
        output(size * 8192)
    assert [size for size, _ in pool._blocks] == [8192, 16384, 24576]
    output(8192)
    assert [size for size, _ in pool._blocks] == [16384, 24576, 8192]
