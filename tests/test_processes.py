"""Children of every kind compute right and end normally, whatever their parent has run."""

import multiprocessing
import os

import pytest

from tests import subprocess_tools as tools

pytestmark = [
    pytest.mark.compiled,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system"),
]


@pytest.fixture(params=tools.LAYERS)
def layer(request):
    return tools.require(request.param)


#: Runs on parallel kernels what children then compute again; `same` raises if it differs.
PARENT = """
import os, sys, time, signal
import numba, numpy as np, fastbn
import numpy.testing  # now, not while another thread imports it and forks

x = np.random.default_rng(2).normal(4, 3, (4, 6, 20_000)).astype(np.float32)  # 1.9 MB


def compute():
    bn = fastbn.BatchNorm1d(6, momentum=None)
    y = bn(x)
    return y, *bn.backward(x), bn.running_mean, bn.running_var, bn.eval()(x)


def same():
    for wanted, got in zip(parents, compute(), strict=True):
        np.testing.assert_array_equal(got, wanted)


def wait(pid, seconds=600):
    '''Exit code of a child; a child that hangs is killed.'''
    for _ in range(20 * seconds):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    return f"hangs, {os.waitpid(pid, 0)}"


def fork(function):
    '''Exit code of a forked child that calls function.'''
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            function()
            code = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return wait(pid)


fastbn.set_num_threads(4)
parents = compute()
assert fastbn.get_num_threads() == 4
"""

FORK = (
    PARENT
    + """
def child():
    assert fastbn.get_num_threads() == 1
    same()


def nested():
    child()
    assert fork(child) == 0
    assert fork(lambda: fork(child) == 0 or os._exit(5)) == 0
    same()


for _ in range(3):
    assert (code := fork(child)) == 0, code
    same()  # and the parent goes on with its threads
assert (code := fork(nested)) == 0, code
same()
assert fastbn.get_num_threads() == 4
print(numba.threading_layer())
"""
)


def test_forked_children_and_theirs(layer):
    assert tools.run(FORK, layer=layer).split() == [layer]


ASKS = (
    PARENT
    + """
def asks():
    fastbn.set_num_threads(1)
    same()
    try:
        fastbn.set_num_threads(2)
    except RuntimeError as error:
        assert "spawn or forkserver" in str(error)
        assert fastbn.get_num_threads() == 1
        same()
        print("refused", flush=True)
    else:
        assert fastbn.get_num_threads() == 2
        same()
        assert fork(lambda: same()) == 0
        same()
        print("works", flush=True)


assert (code := fork(asks)) == 0, code
same()
"""
)


def test_a_forked_child_that_asks_for_threads(layer):
    """GNU OpenMP would end it, so it is refused; the others can start anew."""
    assert tools.run(ASKS, layer=layer).split() == ["refused" if layer == "omp" else "works"]


UNSTARTED = """
import os, sys
import numpy as np, fastbn

x = np.random.default_rng(2).normal(4, 3, (4, 6, 20_000)).astype(np.float32)
pid = os.fork()
fastbn.set_num_threads(2)
y = fastbn.batch_norm(x, training=True)
fastbn.set_num_threads(1)
assert np.array_equal(y, fastbn.batch_norm(x, training=True))
if pid:
    assert os.waitpid(pid, 0)[1] == 0
"""


def test_a_child_of_a_parent_without_threads_may_have_some(layer):
    tools.run(UNSTARTED, layer=layer)


BY_MULTIPROCESSING = """
import multiprocessing, os, sys
import numba, numpy as np, fastbn


def work(seed):
    x = np.random.default_rng(seed).normal(seed, 3, (4, 6, 20_000)).astype(np.float32)
    bn = fastbn.BatchNorm1d(6, momentum=None)
    y = bn(x)
    return y[..., ::999], bn.backward(x).x[..., ::999], bn.running_mean, bn.running_var


def work_on_threads(seed):
    fastbn.set_num_threads(2)
    return work(seed)


def how_many(_):
    return fastbn.get_num_threads()


def check(wanted, results):
    for one, other in zip(wanted, results, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


def pool(method, size):
    with multiprocessing.get_context(method).Pool(size) as workers:
        yield workers
        workers.close()
        workers.join()


if __name__ == "__main__":
    fastbn.set_num_threads(4)
    wanted = [work(seed) for seed in range(12)]
    layer = numba.threading_layer()
    for workers in pool("fork", 4):
        check(wanted, workers.map(work, range(12), chunksize=1))
        assert set(workers.map(how_many, range(8))) == {1}
    check(wanted, map(work, range(12)))
    for method in sys.argv[1:]:
        for workers in pool(method, 2):
            check(wanted[:4], workers.map(work_on_threads, range(4), chunksize=1))
    print(layer)
"""


def test_pools_of_every_start_method(layer, tmp_path):
    """Spawned children import the script, so it has to be a file."""
    script = tmp_path / "pools.py"
    script.write_text(BY_MULTIPROCESSING)
    others = [m for m in multiprocessing.get_all_start_methods() if m != "fork"]
    code = f"""
import runpy, sys
sys.argv = [{str(script)!r}, *{others!r}]
import subprocess
sys.exit(subprocess.call([sys.executable, *sys.argv]))
"""
    assert tools.run(code, layer=layer).split() == [layer]


BUSY = (
    PARENT
    + """
import threading

stop, rounds = threading.Event(), 0


def train():
    global rounds
    while not stop.is_set():
        same()
        rounds += 1


threads = [threading.Thread(target=train) for _ in range(2)]
for thread in threads: thread.start()
codes = []
while len(codes) < 100 and (len(codes) < 8 or rounds < 3) and not any(codes):
    codes.append(fork(same))
stop.set()
for thread in threads: thread.join()
assert not any(codes), codes
assert rounds > 2
print(numba.threading_layer())
"""
)


def test_fork_while_other_threads_run_kernels(layer):
    # before the layer's name TBB may say that its threads did not end in time for the fork
    assert tools.run(BUSY, layer=layer).split()[-1] == layer


COMPILING = """
import os, signal, sys, threading
import numpy as np, fastbn
from tests.internals import Native

begun = threading.Event()
native = Native(begun.set)
fastbn.set_num_threads(1)
x = np.random.default_rng(2).normal(4, 3, (4, 6, 20)).astype(np.float32)
one = np.ones(6, np.float32)
thread = threading.Thread(target=fastbn.batch_norm, args=(x, one, one))
thread.start()
begun.wait()
sys.stdout.flush()
pid = os.fork()
if pid == 0:
    signal.alarm(600)
    y = fastbn.batch_norm(x.astype(np.float64), 1.0 * one, 1.0 * one)
    os._exit(0 if abs(y - (x - 1)).max() < 1e-4 else 1)
thread.join()
assert native.compiled and not native.loaded
sys.exit(os.waitpid(pid, 0)[1])
"""


def test_fork_while_another_thread_compiles(tmp_path):
    """The child inherits the compiler's lock, and nobody in it who would release it."""
    tools.copy_package(tmp_path)
    env = dict.fromkeys(("NUMBA_CACHE_DIR", "HOME", "XDG_CACHE_HOME"), tmp_path / "cache")
    tools.run(COMPILING, path=tmp_path, env=env)
