"""Where more threads run than there are processors, calls take one thread each."""

import os
import sys

import pytest

from tests import internals
from tests import subprocess_tools as tools


def test_a_quiet_machine_gives_threads(monkeypatch):
    system = internals.Switches(monkeypatch)
    for _ in range(100):
        system.pass_by(0.05, switches_a_second=20)
        assert system.threads == 4


def test_taken_processors_give_one_thread_and_are_tried_again(monkeypatch):
    system = internals.Switches(monkeypatch)
    system.pass_by(0.2, switches_a_second=100)
    assert system.threads == 1
    pauses = []
    for _ in range(8):
        begun = system.seconds
        while system.threads == 1:
            system.pass_by(0.05, switches_a_second=10)  # two workers with one thread each
        pauses.append(system.seconds - begun)
        system.pass_by(0.2, switches_a_second=100)  # two threads each
        assert system.threads == 1
    assert pauses == sorted(pauses)  # each time it is longer before it is tried again
    assert pauses[0] < 1
    assert 5 < pauses[-1] < 10


def test_one_thread_stays_while_processors_are_taken(monkeypatch):
    system = internals.Switches(monkeypatch)
    for _ in range(1000):
        system.pass_by(0.2, switches_a_second=100)
        assert system.threads == 1


def test_a_long_quiet_time_is_forgiving(monkeypatch):
    system = internals.Switches(monkeypatch)
    for _ in range(10):
        system.pass_by(0.2, switches_a_second=100)
        assert system.threads == 1
        system.pass_by(60, switches_a_second=1)
        assert system.threads == 4


def test_who_sets_a_number_gets_it(monkeypatch):
    system = internals.Switches(monkeypatch)
    system.pass_by(0.2, switches_a_second=100)
    assert system.threads == 1
    monkeypatch.setattr(internals.thread_limits, "_in_environment", lambda: 4)
    assert system.threads == 4
    monkeypatch.setattr(internals.thread_limits, "_in_environment", lambda: None)
    monkeypatch.setattr(internals.thread_limits, "_requested", 3)
    assert system.threads == 3


CROWDED = """
import os, subprocess, sys, time
import numpy as np
os.sched_setaffinity(0, {os.sched_getaffinity(0).pop()})  # children, too
os.environ.pop("FASTBN_NUM_THREADS")
import fastbn
from tests.internals import thread_limits

thread_limits._default = lambda: 2  # what a process has that was not bound to it
x = np.random.default_rng(0).normal(size=(4, 64, 56, 56)).astype("f4")
expected = fastbn.batch_norm(x)
others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
try:
    end = time.monotonic() + 60
    while thread_limits.for_a_call() == 2 and time.monotonic() < end:
        y = fastbn.batch_norm(x)
        assert y.tobytes() == expected.tobytes()
    print(thread_limits.for_a_call())
finally:
    for other in others:
        other.kill()
        other.wait()
"""


@pytest.mark.compiled
@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(os, "sched_setaffinity"),
    reason="only Linux counts the switches of a thread",
)
def test_a_crowded_processor_is_noticed():
    assert tools.run(CROWDED, threads=2).strip() == "1"
