"""Many threads, and their number."""

import os

import numba
import numpy as np
import pytest

import fastbn
from tests import internals
from tests import subprocess_tools as tools


@pytest.fixture(params=tools.LAYERS)
def layer(request):
    return tools.require(request.param)


# --- many threads ---------------------------------------------------------------------------

CONCURRENT = """
import sys, threading
import numba, numpy as np, fastbn
from tests import reference

sys.setswitchinterval(1e-4)
THREADS, ROUNDS, CHANNELS = 8, 12, 16
rng = np.random.default_rng(7)
shared = fastbn.BatchNorm1d(CHANNELS).eval()
for name in ("weight", "bias", "running_mean", "running_var"):
    getattr(shared, name)[...] = rng.uniform(0.5, 2, CHANNELS)
# 768 KiB each: parallel kernels, some with tiles and some without
batches = [
    rng.normal(k, 2, (8, CHANNELS, 1500) if k % 2 else (4, CHANNELS, 3000)).astype(np.float32)
    for k in range(THREADS)
]


def work(x, rounds):
    own = fastbn.BatchNorm1d(CHANNELS, momentum=None)
    results = []
    for _ in range(rounds):
        y = own(x)
        results.append([shared(x), y, *own.backward(x), own.running_mean.copy(), own.running_var])
    assert own.num_batches_tracked == rounds
    return results


fastbn.set_num_threads(1)
alone = [work(x, 1)[0] for x in batches]
w, b, m, v = (np.asarray(a, np.float64) for a in shared.state_dict().values() if a.ndim)
for x, wanted in zip(batches, alone):
    y = reference.normalize(x, m, v, w, b, shared.eps, 1)
    np.testing.assert_allclose(wanted[0], y, rtol=1e-5, atol=1e-5)
    y, _, _ = reference.forward(x, np.ones(CHANNELS), np.zeros(CHANNELS), shared.eps, 1)
    np.testing.assert_allclose(wanted[1], y, rtol=1e-5, atol=1e-5)

fastbn.set_num_threads(4)
work(batches[0], 1), work(batches[1], 1)  # compiled before the race begins
together, barrier = [None] * THREADS, threading.Barrier(THREADS)


def run(k):
    barrier.wait()
    together[k] = work(batches[k], ROUNDS)


threads = [threading.Thread(target=run, args=(k,)) for k in range(THREADS)]
for thread in threads: thread.start()
for thread in threads: thread.join()
for one, many in zip(alone, together, strict=True):
    assert many is not None and len(many) == ROUNDS
    for each in many:
        for wanted, got in zip(one[:5], each[:5], strict=True):
            np.testing.assert_array_equal(got, wanted)
        for wanted, got in zip(one[5:], each[5:], strict=True):  # averages of equal numbers
            np.testing.assert_allclose(got, wanted, rtol=1e-6)
print(numba.threading_layer())
"""


@pytest.mark.compiled
def test_eight_threads_evaluate_one_layer_and_train_their_own(layer):
    assert tools.run(CONCURRENT, layer=layer).split() == [layer]


SAME_LAYER = """
import sys, threading
import numba, numpy as np, fastbn

sys.setswitchinterval(1e-5)
CHANNELS, ROUNDS = 200_000, 150
rng = np.random.default_rng(3)
batches = [rng.normal(k, 1 + k, (2, CHANNELS)).astype(np.float32) for k in range(2)]
fastbn.set_num_threads(4)


def pair_of(x):
    bn = fastbn.BatchNorm1d(CHANNELS, momentum=1.0)
    bn(x)
    return bn.running_mean, bn.running_var


pairs = [pair_of(x) for x in batches]
bn = fastbn.BatchNorm1d(CHANNELS, momentum=1.0)
torn = []
barrier = threading.Barrier(3)


def train(x):
    out = np.empty_like(x)
    for _ in range(ROUNDS):
        barrier.wait()
        bn(x, out=out)
        barrier.wait()


threads = [threading.Thread(target=train, args=(x,)) for x in batches]
for thread in threads: thread.start()
for k in range(ROUNDS):
    barrier.wait()
    barrier.wait()
    now = bn.running_mean, bn.running_var
    assert all(np.isfinite(a).all() for a in now)
    if not any(all(map(np.array_equal, now, pair)) for pair in pairs):
        torn.append(k)
for thread in threads: thread.join()
assert not torn, f"half updated after {len(torn)} of {ROUNDS} rounds"
assert bn.num_batches_tracked == 2 * ROUNDS
print(numba.threading_layer())
"""


@pytest.mark.compiled
def test_two_threads_that_train_one_layer_never_leave_it_half_updated(layer):
    """Whose batch comes last is open; that the pair is one batch's is not."""
    assert tools.run(SAME_LAYER, layer=layer).split() == [layer]


COUNTER = """
import sys, threading
import numpy as np, fastbn

sys.setswitchinterval(1e-6)
bn = fastbn.BatchNorm1d(4)
batches = [np.random.default_rng(k).normal(k, 1, (8, 4)).astype(np.float32) for k in range(4)]
CALLS = 4000


def train(x):
    for _ in range(CALLS):
        bn(x)


threads = [threading.Thread(target=train, args=(x,)) for x in batches]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert bn.num_batches_tracked == 4 * CALLS, (int(bn.num_batches_tracked), 4 * CALLS)
assert (bn.running_var > 0).all() and (abs(bn.running_mean) < 5).all()
"""


@pytest.mark.compiled
def test_no_batch_goes_uncounted_when_threads_train_one_layer():
    tools.run(COUNTER)


LEARNING = """
import numpy as np, fastbn
from tests.internals import prepared_evaluate

def call(dtype, threads):
    x, (mean, var) = np.ones((8, 64, 16, 16), dtype), np.ones((2, 64), dtype)  # worth two threads
    fastbn.set_num_threads(threads)
    fastbn.batch_norm(x, mean, var)  # at least the first time the long way
    return prepared_evaluate(x, mean, var, None, None, 1e-5, 1, None) is not None

assert call(np.float64, 2)
assert call(np.float64, 1) and call(np.float32, 1)
assert call(np.float32, 2)
"""


@pytest.mark.compiled
def test_the_fast_path_learns_of_every_kernel():
    """Compiled for one thread or for many, for one dtype after the other."""
    tools.run(LEARNING, threads=2)


FIRST_WIDE = """
import threading, time
import numpy as np, pytest
import fastbn
from tests import internals

internals.write_frames_slowly(pytest.MonkeyPatch())
x = np.random.default_rng(0).normal(size=(4, 8, 30)).astype(np.float32)
dy = np.sin(x)
far = x.copy()
far[:, 3] *= 1e30


def work(x):
    y, cache = fastbn.batch_norm_forward(x, training=True)
    return y, *fastbn.batch_norm_backward(dy, cache)


normal = work(x)
wanted = work(far)
for _ in range(5):
    internals.forget_plans()
    work(x)
    results = []
    threads = [threading.Thread(target=lambda: results.append(work(far))) for _ in range(20)]
    for thread in threads:  # while the first of them adds one thing after the other
        thread.start()
        time.sleep(0.003)
    for thread in threads: thread.join()
    assert len(results) == 20
    for got in results:
        for a, b in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(a, b)
"""


@pytest.mark.compiled
def test_threads_that_meet_the_first_channel_that_float32_cannot_hold():
    """What works in float64 is added to what other threads are using."""
    tools.run(FIRST_WIDE)


# --- how many threads -----------------------------------------------------------------------


@pytest.fixture
def restored():
    """The number of threads as it was."""
    with internals.threads_put_back():
        yield


@pytest.mark.parametrize(
    ("number", "error"),
    [(0, ValueError), (-1, ValueError), (10**6, ValueError), (10**30, ValueError)]
    + [(value, TypeError) for value in (1.5, True, False, "2", np.bool_(True), np.ones(2))],
    ids=repr,
)
def test_a_bad_number_of_threads_is_an_error_and_changes_nothing(number, error, restored):
    fastbn.set_num_threads(1)
    with pytest.raises(error, match="number of threads must be"):
        fastbn.set_num_threads(number)
    assert fastbn.get_num_threads() == 1


@pytest.mark.parametrize("number", [1, np.int8(1), numba.config.NUMBA_NUM_THREADS])
def test_the_number_of_threads_is_what_was_set(number, restored):
    fastbn.set_num_threads(number)
    assert fastbn.get_num_threads() == number
    assert type(fastbn.get_num_threads()) is int


@pytest.fixture
def default(monkeypatch):
    """The default number of threads, worked out anew on a machine with 8 processors."""
    internals.pretend_machine(monkeypatch, numba_threads=8, quota=None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.delenv("FASTBN_NUM_THREADS", raising=False)
    return internals.default_threads


def test_the_default_is_the_smallest_of_all_limits(default, monkeypatch):
    assert default() == 8
    monkeypatch.setenv("FASTBN_NUM_THREADS", "9")
    assert default() == 8
    monkeypatch.setenv("FASTBN_NUM_THREADS", " 7 ")
    assert default() == 7
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 4, 5, 9, 11, 12})
    assert default() == 6
    internals.pretend_machine(monkeypatch, quota=4.2)
    assert default() == 5
    internals.pretend_machine(monkeypatch, numba_threads=3)
    assert default() == 3
    internals.pretend_machine(monkeypatch, quota=0.25)
    assert default() == 1


@pytest.mark.parametrize("value", ["", "0", "-1", "two", "1.5", "1e1", "²", "0x2"])
def test_a_bad_environment_variable_is_warned_of_and_ignored(value, default, monkeypatch):
    monkeypatch.setenv("FASTBN_NUM_THREADS", value)
    with pytest.warns(RuntimeWarning, match="FASTBN_NUM_THREADS must be a positive integer"):
        assert default() == 8


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "400000 100000\n"}, 4),
        ({"cpu.max": "100 \xff"}, None),
        ({"cpu.max": "a b"}, None),
        ({"cpu.max": "100000 0"}, None),
        ({"cpu.max": "100000"}, None),
        ({"cpu.max": ""}, None),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "0\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "?", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max/not a file": ""}, None),
        (
            {
                "cpu.max": "max 100000",
                "cpu/cpu.cfs_quota_us": "200000",
                "cpu/cpu.cfs_period_us": "100000",
            },
            2,
        ),
    ],
    ids=lambda value: (
        "+".join(f"{k}={v.strip()!r}" for k, v in value.items())
        if isinstance(value, dict)
        else str(value)
    ),
)
def test_quota_of_the_container(files, quota, tmp_path):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("latin-1"))
    assert internals.cgroup_quota(str(tmp_path)) == quota


COUNT = "import fastbn; print(fastbn.get_num_threads())"


def test_environment_of_a_new_process():
    assert int(tools.run(COUNT, env={"FASTBN_NUM_THREADS": 1})) == 1
    code = """
import numpy as np, fastbn
assert fastbn.get_num_threads() == 1
fastbn.set_num_threads(1)
try:
    fastbn.set_num_threads(2)
except ValueError as error:
    print(error)
"""
    assert "1 to 1, got 2" in tools.run(code, threads=1)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_affinity_of_a_new_process():
    before = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
    assert int(tools.run(before + COUNT)) == 1


ANY_NUMBER = """
import numba, numpy as np, fastbn

rng = np.random.default_rng(11)
CASES = [((2, 5, 40_000), 1), ((64, 64, 49), 1), ((3000, 40), 1), ((8, 30, 30, 24), -1)]
cases = [(rng.normal(3, 2, shape).astype(np.float32), axis) for shape, axis in CASES]


def results(x, axis):
    c = x.shape[axis]
    mean, var, w = np.zeros(c, x.dtype), np.ones(c, x.dtype), np.linspace(1, 2, c, dtype=x.dtype)
    y, cache = fastbn.batch_norm_forward(x, mean, var, w, w, training=True, axis=axis)
    stats = fastbn.channel_stats(x, axis)
    yield from (y, mean, var, stats.mean, stats.m2)
    yield from fastbn.batch_norm_backward(np.sin(x), cache)
    yield fastbn.batch_norm(x, mean, var, w, w, axis=axis)


for n in (1, 2, 3, 4):
    fastbn.set_num_threads(n)
    got = [list(results(*case)) for case in cases]
    first = got if n == 1 else first
    for a, b in zip(first, got, strict=True):
        for one, many in zip(a, b, strict=True):
            assert one.tobytes() == many.tobytes(), n

# and Numba's own number, the user's, is the user's
for theirs in (1, 3, 4):
    for ours in (1, 2, 4):
        numba.set_num_threads(theirs)
        fastbn.set_num_threads(ours)
        list(results(*cases[0]))
        assert numba.get_num_threads() == theirs, (theirs, ours)
print(numba.threading_layer())
"""


@pytest.mark.compiled
def test_results_do_not_depend_on_the_number_of_threads_bit_for_bit():
    tools.run(ANY_NUMBER)


@pytest.mark.compiled
def test_a_call_uses_no_more_threads_than_it_may(monkeypatch, restored, rng):
    """Else all of the above would be about numbers that nobody looks at."""
    used = internals.Granted(monkeypatch).numbers
    large, small = (rng.normal(size=(8, 64, n)).astype(np.float32) for n in (400, 4))
    for n in {1, min(2, numba.config.NUMBA_NUM_THREADS), numba.config.NUMBA_NUM_THREADS}:
        fastbn.set_num_threads(n)
        internals.forget_plans()
        for call in (fastbn.batch_norm, fastbn.batch_norm, fastbn.channel_stats):
            call(large)
            assert used.pop() == min(n, numba.get_num_threads())
        call(small)
        assert used.pop() == 1
        assert not used
