"""Interrupted calls leave running statistics as they were, or wholly updated."""

import os
import sys

import numpy as np
import pytest

import fastbn
from tests import internals
from tests import subprocess_tools as tools

INTERRUPTED = """
import os, random, signal, sys, threading, time
import numba, numpy as np, fastbn
from tests.internals import nobody_runs_on_threads

CHANNELS, FAULTS = 300, {faults}
rng, chance = np.random.default_rng(5), random.Random(5)
fastbn.set_num_threads(2)
# (N, C) and (N, C, L); a large one on several threads
batches = [
    rng.normal(2, 3, shape).astype(np.float32)
    for shape in ((9, CHANNELS), (4, CHANNELS, 5), (8, CHANNELS, 40))
]


def after(layer, x):
    '''The state after one more batch, from a layer that nobody interrupts.'''
    copy = fastbn.BatchNorm1d(CHANNELS, momentum=layer.momentum)
    copy.load_state_dict(layer.state_dict())
    copy(x)
    return copy.state_dict()


def same(a, b):
    return all(np.array_equal(a[name], b[name]) for name in a)
"""

SIGNALS = (
    INTERRUPTED
    + """
class Interrupt(KeyboardInterrupt): pass

def interrupt(*_):
    raise Interrupt

signal.signal(signal.SIGALRM, interrupt)
faults = whole = 0
for x in batches:
    after(fastbn.BatchNorm1d(CHANNELS), x)  # compiled
    bn = fastbn.BatchNorm1d(CHANNELS, momentum=None)
    durations = []
    for _ in range(9):  # of a call alone: the signal is to come within it
        start = time.perf_counter()
        bn(x)
        durations.append(time.perf_counter() - start)
    duration = 1.2 * sorted(durations)[4]
    for _ in range(FAULTS):
        before, wanted = bn.state_dict(), after(bn, x)
        try:
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, duration))
            bn(x)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except Interrupt:
            faults += 1
            whole += same(bn.state_dict(), wanted)
            assert same(bn.state_dict(), before) or same(bn.state_dict(), wanted)
        else:
            assert same(bn.state_dict(), wanted)
        signal.setitimer(signal.ITIMER_REAL, 0)
assert nobody_runs_on_threads()
print(faults, whole)
"""
)


@pytest.mark.compiled
@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX signals")
def test_ctrl_c_at_any_time_leaves_statistics_before_or_after():
    faults, _ = map(int, tools.run(SIGNALS.replace("{faults}", "300")).split())
    assert faults > 100  # of 900 sent; the others came between two calls


EVERY_STEP = (
    INTERRUPTED
    + """
KIND = {kind}

def raise_at(step):
    '''Raise at the step-th bytecode that fastbn runs from now on.'''
    left = step

    def local(frame, event, arg):
        nonlocal left
        if event == "opcode":
            left -= 1
            if left == 0:
                sys.settrace(None)
                raise KIND(step)
        return local

    def trace(frame, event, arg):
        # not where an exception could not come from: inside __exit__ or a finally's body
        if "/fastbn/" in frame.f_code.co_filename.replace(os.sep, "/"):
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            return local

    sys.settrace(trace)


faults = whole = 0
x = batches[{batch}]
bn = fastbn.BatchNorm1d(CHANNELS, momentum=None)
after(bn, x)
step = 1
while True:
    before, wanted = bn.state_dict(), after(bn, x)
    try:
        raise_at(step)
        bn(x)
    except KIND:
        sys.settrace(None)
        faults += 1
        whole += same(bn.state_dict(), wanted)
        assert same(bn.state_dict(), before) or same(bn.state_dict(), wanted), step
    else:
        sys.settrace(None)
        assert same(bn.state_dict(), wanted)
        break
    step += {stride}
print(faults, whole)
"""
)


@pytest.mark.compiled
@pytest.mark.parametrize("kind", ["KeyboardInterrupt", "MemoryError"])
@pytest.mark.parametrize(("batch", "stride"), [(0, 3), (2, 5)])
def test_an_exception_at_any_bytecode_leaves_statistics_before_or_after(kind, batch, stride):
    values = {"{faults}": "0", "{kind}": kind, "{batch}": str(batch), "{stride}": str(stride)}
    code = EVERY_STEP
    for name, value in values.items():
        code = code.replace(name, value)
    faults, whole = map(int, tools.run(code).split())
    assert whole < faults
    if sys.version_info < (3, 12):
        assert faults > 100
        assert whole > 0  # both happened
    else:  # later versions trace fewer steps, and none of the last
        assert faults > 50


NO_MEMORY = (
    INTERRUPTED
    + """
import resource

x = rng.normal(0, 1, (4000, CHANNELS, 20)).astype(np.float32)  # 92 MB
bn = fastbn.BatchNorm1d(CHANNELS, momentum=None)
out = np.empty_like(x)
bn(x, out=out)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
before, failed = bn.state_dict(), 0
for room in (0, 1, 8, 32, 64, 80):
    resource.setrlimit(resource.RLIMIT_AS, (used + (room << 20), resource.RLIM_INFINITY))
    try:
        bn(x)
    except MemoryError:
        failed += 1
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    assert same(bn.state_dict(), before)
wanted = after(bn, x)
bn(x, out=out)
assert same(bn.state_dict(), wanted)
print(failed)
"""
)


@pytest.mark.compiled
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs RLIMIT_AS")
def test_too_little_memory_is_a_memory_error_that_changes_nothing():
    assert int(tools.run(NO_MEMORY.replace("{faults}", "0"))) == 6


@pytest.mark.compiled
@pytest.mark.parametrize("like_before", [False, True], ids=["first of its kind", "like before"])
@pytest.mark.parametrize("statistics", ["f4", "f8", ">f8", "f8 strided", "f4 and f8"])
def test_a_numpy_call_that_fails_leaves_statistics_before_or_after(
    statistics, like_before, monkeypatch
):
    """Training fails at its first, second, ... NumPy call, until there are no more."""
    x = np.random.default_rng(0).normal(1, 2, (8, 6, 50)).astype(np.float32)
    kinds = statistics.split(" and ") * 2

    def fresh():
        running = [np.zeros(12, kind.split()[0]) for kind in kinds[:2]]
        return [r[::2] if "strided" in statistics else r[:6].copy() for r in running]

    fastbn.batch_norm(x, *fresh(), training=True)  # Numba must not compile against a changed np
    for step in range(1, 100):
        running = fresh()
        calls = 0
        if not like_before:
            internals.forget_plans()

        def counted(original, step=step):
            def call(*args, **kwargs):
                nonlocal calls
                calls += 1
                if calls == step:
                    raise MemoryError
                return original(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            internals.count_numpy_calls(patch, counted)
            try:
                fastbn.batch_norm(x, *running, training=True, momentum=1.0)
                done = True
            except MemoryError:
                done = False
        touched = [bool(statistic.any()) for statistic in running]
        assert touched[0] == touched[1], f"half updated by a failure in call {step}"
        if done:
            break
    assert all(touched)
    # at least the output and the statistics were made by NumPy
    assert step > (2 if like_before and statistics == "f4" else 3)
