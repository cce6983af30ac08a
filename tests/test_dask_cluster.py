"""A cluster of two worker processes: the bits of one process, whatever becomes of a worker."""

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import Executor

import numpy as np
import pytest

import fastbn
from fastbn.cli import main
from fastbn.dataset import sources

pytest.importorskip("distributed", reason="in the test extra")

import dask.array as da
import dask.bag
import distributed

from fastbn.distributed import on_dask
from tests.test_dask import bits

pytestmark = [
    pytest.mark.compiled,
    pytest.mark.skipif(os.name != "posix", reason="processes are killed as POSIX does it"),
]


@pytest.fixture(scope="module")
def cluster():
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=":0", host="127.0.0.1",
        memory_limit=0, silence_logs=50,
    ) as cluster:  # fmt: skip
        yield cluster


@pytest.fixture(scope="module")
def client(cluster):
    with distributed.Client(cluster, set_as_default=False) as client:
        yield client


@pytest.fixture
def folder(rng, tmp_path, monkeypatch):
    """Two arrays of 20 blocks each."""
    monkeypatch.setattr(sources, "BLOCK_VALUES", 6000)
    (tmp_path / "data").mkdir()
    for k in range(2):
        x = rng.normal(k, 2, (40, 3, 1000)).astype(np.float32)
        np.save(tmp_path / "data" / f"{k}.npy", x)
    return tmp_path / "data"


# --- arrays and bags ------------------------------------------------------------------------------


def test_arrays(client, rng):
    x = da.from_array(rng.normal(100, 3, (40, 6, 9, 9)).astype("f4"), chunks=(7, 4, 9, 9))
    mean, var = np.full(6, 100, "f4"), np.full(6, 9, "f4")
    later = on_dask.channel_stats(x, compute=False)
    y = on_dask.batch_norm(x, mean, var, activation="relu")
    z = on_dask.standardize(x, mean, 3.0)
    stats, *found = client.gather(client.compute([later, y, z]))
    assert bits(stats) == bits(later.compute(scheduler="sync"))
    for lazy, values in zip((y, z), found, strict=True):
        assert np.array_equal(lazy.compute(scheduler="sync"), values)


def test_recalibrate(client, rng):
    batches = [rng.normal(k, 2, (50, 4)).astype("f4") for k in range(6)]
    layers, wanted = ([fastbn.BatchNorm1d(4), fastbn.BatchNorm1d(4)] for _ in range(2))

    def network(one, other):
        return lambda x: other(np.maximum(one(x), 0))

    local = fastbn.recalibrate(wanted, batches, forward=network(*wanted), progress=False)
    with client.as_current():
        bag = dask.bag.from_sequence(batches, npartitions=3)
        found = on_dask.recalibrate(layers, bag, forward=network(*layers))
        futures = client.scatter(batches)
        again = on_dask.recalibrate(layers, list(futures), forward=network(*layers))
    assert list(map(bits, local)) == list(map(bits, found)) == list(map(bits, again))


# --- files ----------------------------------------------------------------------------------------


def test_files(client, folder):
    wanted = fastbn.dataset_stats(folder, workers=1, histogram=True, progress=False)
    with on_dask.executor(client) as workers:
        found = fastbn.dataset_stats(folder, executor=workers, histogram=True, progress=False)
    assert bits(found.stats) == bits(wanted.stats)
    assert found.stats.count.tolist() == [80_000] * 3
    assert np.array_equal(found.histograms.counts, wanted.histograms.counts)
    assert client.status == "running"  # it is not ours to close


class Killing(Executor):
    """Kills a worker that has something to do, once some blocks are on their way."""

    def __init__(self, workers, client):
        self._workers, self._client, self.killed, self._count = workers, client, None, 0
        self._max_workers = workers._max_workers

    def submit(self, call, /, *given, **named):
        self._count += 1
        if self._count == 10:
            busy = [worker for worker, tasks in self._client.processing().items() if tasks]
            self.killed = self._client.run(os.getpid, workers=busy[:1])
            for pid in self.killed.values():
                os.kill(pid, signal.SIGKILL)
        return self._workers.submit(call, *given, **named)


def slowly(call, *given):
    time.sleep(0.05)
    return call(*given)


class Slow(Executor):
    def __init__(self, workers):
        self._workers, self._max_workers = workers, 2

    def submit(self, call, /, *given, **named):
        return self._workers.submit(slowly, call, *given, **named)


def test_a_worker_is_killed(client, folder):
    wanted = fastbn.dataset_stats(folder, workers=1, progress=False)
    with on_dask.executor(client) as workers:
        killing = Killing(Slow(workers), client)
        found = fastbn.dataset_stats(folder, executor=killing, progress=False)
    assert len(killing.killed) == 1
    assert bits(found.stats) == bits(wanted.stats)
    client.wait_for_workers(2, timeout=60)
    assert not set(killing.killed.values()) & set(client.run(os.getpid).values())


def test_command(client, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the workers are not
    assert main(["stats", "data", "-o", "one.npz", "--workers", "1"]) == 0
    wanted = capsys.readouterr().out
    address = client.scheduler.address
    assert main(["stats", "data", "-o", "two.npz", "--dask", address]) == 0
    assert capsys.readouterr().out == wanted.replace("one.npz", "two.npz")
    with np.load("one.npz") as one, np.load("two.npz") as two:
        assert all(one[name].tobytes() == two[name].tobytes() for name in one.files)
    assert not list(tmp_path.glob("*.partial"))


@pytest.fixture
def begun(tmp_path):
    """Starts the command, and returns when some of its 90 blocks are done."""
    folder, journal = tmp_path / "data", tmp_path / "s.npz.partial"
    folder.mkdir()
    for k in range(90):  # of 20 MB, which is one block; they take no room on the disk
        np.lib.format.open_memmap(folder / f"{k}.npy", "w+", np.float32, (100, 3, 128, 128))

    started = []

    def begin(address):
        command = [sys.executable, "-m", "fastbn", "stats", folder, "-o", tmp_path / "s.npz"]
        process = subprocess.Popen(
            [*command, "--dask", address], text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        end = time.monotonic() + 60
        while not (journal.exists() and journal.stat().st_size > 1000):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.01)
        return process

    yield begin
    for process in started:
        with process:  # closes its pipes
            process.kill()


def test_command_is_interrupted(client, begun):
    process = begun(client.scheduler.address)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert "goes on from" in err
    assert "Traceback" not in err
    end = time.monotonic() + 60
    while any(client.processing().values()):
        assert time.monotonic() < end
        time.sleep(0.1)


# --- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("tcp://127.0.0.1:9", "no Dask scheduler answers at 'tcp://127.0.0.1:9' within 0.5 sec"),
        ("nowhere", "no Dask scheduler answers at 'nowhere'.*dask scheduler"),
    ],
)
def test_a_scheduler_that_is_not_there(address, words):
    begin = time.monotonic()
    with pytest.raises(ConnectionError, match=words), on_dask.executor(address, timeout=0.5):
        pass
    assert time.monotonic() - begin < 20


def test_a_scheduler_that_is_lost(begun):
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0",
        silence_logs=50, protocol="tcp", host="127.0.0.1",
    ) as cluster:  # fmt: skip
        process = begun(cluster.scheduler_address)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2, out + err
    assert re.fullmatch(r"fastbn: error: the scheduler tcp://\S+ was lost, or .*\n", err)


def test_the_address_of_a_worker(client):
    worker = next(iter(client.nthreads()))
    words = "of a Worker; give the scheduler's"
    with pytest.raises(ConnectionError, match=words), on_dask.executor(worker):
        pass


def test_a_scheduler_without_workers():
    with distributed.LocalCluster(
        n_workers=0, processes=False, dashboard_address=":0", silence_logs=50, protocol="tcp",
        host="127.0.0.1",
    ) as empty:  # fmt: skip
        found = on_dask.executor(empty.scheduler_address, timeout=0.5)
        with pytest.raises(ConnectionError, match="has no workers; `dask worker tcp://"):
            found.__enter__()


def test_files_that_workers_do_not_see(client, folder):
    paths = [folder / "0.npy", f"{folder}/1.npy:x", folder / "not.npy"]
    found = on_dask.executor(client, paths=paths)
    with pytest.raises(FileNotFoundError, match=r"worker tcp.* sees no '.*not\.npy'; all workers"):
        found.__enter__()


def test_workers_with_another_version(client, monkeypatch):
    monkeypatch.setattr(fastbn, "__version__", "9.9")
    words = r"need fastbn 9\.9, and tcp://.* has "
    with pytest.raises(ValueError, match=words), on_dask.executor(client):
        pass


def test_command_without_a_scheduler(folder, capsys):
    assert main(["stats", str(folder), "--dask", "nowhere"]) == 2
    assert "fastbn: error: no Dask scheduler answers at 'nowhere'" in capsys.readouterr().err
    assert main(["stats", str(folder), "--dask", "nowhere", "--workers", "2"]) == 2
    assert "not allowed with" in capsys.readouterr().err


# --- more than memory -----------------------------------------------------------------------------

GIGABYTES = 12


@pytest.mark.slow
def test_twelve_gigabytes_in_workers_of_half_a_gigabyte():
    """An array that is made as it is read: its statistics, and those of what they normalize."""
    shape, chunks = (GIGABYTES * 125, 3, 816, 816), (2, 3, 816, 816)
    x = da.random.default_rng(7).normal(20, 4, shape, chunks=chunks).astype("f4")
    assert x.nbytes > GIGABYTES * 0.99e9
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=":0", host="127.0.0.1",
        memory_limit="500MB", silence_logs=50,
    ) as cluster, distributed.Client(cluster) as client:  # fmt: skip
        pids = client.run(os.getpid)
        begin = time.monotonic()
        stats = on_dask.channel_stats(x)
        first = time.monotonic() - begin
        y = on_dask.standardize(x, stats.mean, stats.std())
        after = on_dask.channel_stats(y)
        second = time.monotonic() - begin - first
        peaks = client.run(peak_memory)
        assert client.run(os.getpid) == pids  # none was killed for its memory
    print(f"\n{x.nbytes / 1e9:.1f} GB: {first:.1f} s, {second:.1f} s, peak {peaks} MB")
    assert (stats.count == x.size // 3).all()
    np.testing.assert_allclose(stats.mean, 20, atol=4 * 6 / np.sqrt(stats.count[0]))
    np.testing.assert_allclose(stats.std(), 4, rtol=1e-3)
    np.testing.assert_allclose(after.mean, 0, atol=1e-6)
    np.testing.assert_allclose(after.std(), 1, rtol=1e-6)
    assert max(peaks.values()) < 500


def peak_memory():
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
