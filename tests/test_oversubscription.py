"""Where more threads run than there are processors, calls take one thread each."""

import os
import sys
import threading

import pytest

import fastbn
from tests import internals
from tests import subprocess_tools as tools


@pytest.fixture
def processors(monkeypatch):
    return internals.Processors(monkeypatch)


def test_a_quiet_machine_gives_threads(processors):
    for waiting in (0.0, 0.05, 0.15):  # up to where one thread would be as fast
        processors.pass_by(5, waiting)
        assert processors.threads == 4


def test_taken_processors_give_one_thread_and_are_tried_again(processors):
    processors.pass_by(0.3, waiting=0.5)
    assert processors.threads == 1
    pauses = []
    for _ in range(8):
        begun = processors.seconds
        while processors.threads == 1:
            processors.pass_by(0.05, waiting=0.01)  # two workers with one thread each
        pauses.append(processors.seconds - begun)
        processors.pass_by(0.3, waiting=0.5)  # two threads each
        assert processors.threads == 1
    assert pauses == sorted(pauses)  # each time it is longer before it is tried again
    assert pauses[0] < 1
    assert 5 < pauses[-1] < 10


def test_one_thread_stays_while_processors_are_taken(processors):
    processors.pass_by(0.3, waiting=0.5)
    for _ in range(1000):
        processors.pass_by(0.2, waiting=0.5)
        assert processors.threads == 1


def test_a_long_quiet_time_is_forgiving(processors):
    for _ in range(10):
        processors.pass_by(0.3, waiting=0.5)
        assert processors.threads == 1
        processors.pass_by(60, waiting=0.01)
        assert processors.threads == 4


def test_what_was_long_ago_does_not_count(processors):
    """Between two calls somebody else's code ran, and waited."""
    for _ in range(10):
        processors.seconds += 30
        processors.waited += 20
        assert processors.threads == 4


def test_one_thread_finds_out_for_all(processors):
    processors.pass_by(0.3, waiting=0.5)
    found = []
    thread = threading.Thread(target=lambda: found.append(processors.threads))
    thread.start()
    thread.join()
    assert found == [1]


def test_who_sets_a_number_gets_it_until_it_is_taken_back(monkeypatch, processors):
    processors.pass_by(0.3, waiting=0.5)
    assert processors.threads == 1
    monkeypatch.setattr(internals.thread_limits, "_in_environment", lambda: 4)
    assert processors.threads == 4
    monkeypatch.setattr(internals.thread_limits, "_in_environment", lambda: None)
    fastbn.set_num_threads(1)
    assert fastbn.get_num_threads() == 1
    fastbn.set_num_threads(None)
    assert fastbn.get_num_threads() == 4
    assert processors.threads == 1


def test_a_system_that_counts_nothing_gives_threads(monkeypatch):
    monkeypatch.setattr("builtins.open", refused)
    assert internals.waited() == 0


def refused(*_args):
    raise FileNotFoundError


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
    reason="only Linux counts how long a thread waits",
)
def test_a_crowded_processor_is_noticed():
    assert tools.run(CROWDED, threads=2).strip() == "1"
