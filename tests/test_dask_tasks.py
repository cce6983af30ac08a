"""Recalibration over batches of Dask's, and the threads that tasks take."""

import numpy as np
import pytest

import fastbn
from tests import internals

da = pytest.importorskip("dask.array", reason="in the test extra")

import dask  # noqa: E402
import dask.bag  # noqa: E402

from fastbn.distributed import on_dask  # noqa: E402
from tests.test_dask import bits  # noqa: E402


def batches_of(rng, count=5, shape=(7, 4)):
    return [rng.normal(k, 2, shape).astype("f4") for k in range(count)]


def as_bag(batches):
    return dask.bag.from_sequence(batches, npartitions=3)


def as_delayed(batches):
    return [dask.delayed(batch) for batch in batches]


def arrays_of(*layers):
    return [array.tobytes() for bn in layers for array in bn.state_dict().values()]


@pytest.mark.parametrize("lazily", [as_bag, as_delayed])
@pytest.mark.parametrize("scheduler", ["sync", "threads"])
def test_recalibrate(rng, lazily, scheduler):
    batches = batches_of(rng)
    bn, wanted = fastbn.BatchNorm1d(4), fastbn.BatchNorm1d(4)
    with dask.config.set(scheduler=scheduler):
        stats = on_dask.recalibrate(bn, lazily(batches))
    assert bits(stats) == bits(fastbn.recalibrate(wanted, batches, progress=False))
    assert arrays_of(bn) == arrays_of(wanted)
    assert bn.training


class Network:
    """Three layers, which are not called in the order of the list; one batch bypasses the first."""

    def __init__(self):
        self.c, self.a, self.b = (fastbn.BatchNorm1d(4) for _ in range(3))
        self.matrix = np.random.default_rng(1).normal(size=(4, 4)).astype("f4")

    def layers(self):
        return [self.c, self.a, self.b]

    def forward(self, x):
        if len(x) != 6:
            x = np.maximum(self.a(x), 0) @ self.matrix
        return self.c(np.maximum(self.b(x), 0) @ self.matrix)


@pytest.mark.parametrize("first", [6, 7])
def test_recalibrate_layers_one_after_the_other(rng, first):
    batches = [rng.normal(k, 2, (n, 4)).astype("f4") for k, n in enumerate([first, 7, 9, 8])]
    local, remote = Network(), Network()
    wanted = fastbn.recalibrate(local.layers(), batches, forward=local.forward, progress=False)
    found = on_dask.recalibrate(remote.layers(), as_delayed(batches), forward=remote.forward)
    assert list(map(bits, found)) == list(map(bits, wanted))
    assert arrays_of(*remote.layers()) == arrays_of(*local.layers())


OF_THE_MODULE = fastbn.BatchNorm1d(4)


def of_the_module(x):
    return OF_THE_MODULE(x)


def test_recalibrate_refuses(rng):
    bn, batches = fastbn.BatchNorm1d(4), as_delayed(batches_of(rng))
    before = arrays_of(bn)

    def refused(error, words, *given, **options):
        with pytest.raises(error, match=words):
            on_dask.recalibrate(*given, **options)
        assert arrays_of(bn) == before
        bn(np.ones((2, 4), "f4"))  # nobody watches it
        bn.load_state_dict(fastbn.BatchNorm1d(4).state_dict())

    refused(TypeError, "a bag or a list of Delayed, got an array", bn, da.ones((4, 4)))
    refused(TypeError, "Bag or a list of Delayed, got generator", bn, (b for b in batches))
    refused(TypeError, "a list with ndarray; fastbn.recalibrate", bn, batches_of(rng))
    refused(TypeError, "need forward", [bn, fastbn.BatchNorm1d(4)], batches)
    refused(ValueError, "batches gave nothing", bn, [])
    refused(ValueError, "NaN or infinity", bn, [dask.delayed(np.full((3, 4), np.nan, "f4"))])
    refused(ZeroDivisionError, "zero", bn, batches, forward=lambda x: 1 / 0)
    refused(ValueError, "forward has not called", bn, batches, forward=of_the_module)


# --- threads --------------------------------------------------------------------------------------


@pytest.fixture
def four_threads(monkeypatch):
    monkeypatch.setattr(internals.thread_limits, "_requested", 4)


def test_one_thread_in_a_context(four_threads):
    number = internals.thread_limits.for_a_call
    with internals.thread_limits.one_thread():
        with internals.thread_limits.one_thread():
            assert number() == 1
        assert number() == 1
        assert fastbn.get_num_threads() == 4  # of the process, whose other threads go on
    assert number() == 4


@pytest.mark.compiled
@pytest.mark.parametrize("scheduler", ["sync", "threads"])
def test_tasks_start_no_threads(four_threads, monkeypatch, scheduler):
    """However large a block is."""
    numbers, launch = [], internals.thread_limits.launch

    def noting(entry, frame_for, in_place, threads, args):
        numbers.append(threads)
        return launch(entry, frame_for, in_place, 1, args)

    monkeypatch.setattr(internals.thread_limits, "launch", noting)
    x = da.ones((64, 8, 4096), chunks=(32, 8, 4096), dtype="f4")  # blocks of 4 MB
    ones, bn = np.ones(8, "f4"), fastbn.BatchNorm1d(8)
    with dask.config.set(scheduler=scheduler):
        on_dask.channel_stats(x)
        on_dask.batch_norm(x, ones, ones).compute()
        on_dask.standardize(x, ones, ones).compute()
        on_dask.recalibrate(bn, x.to_delayed().ravel().tolist())
    assert numbers
    assert set(numbers) <= {1}
    numbers.clear()
    fastbn.channel_stats(np.ones((32, 8, 4096), "f4"))
    assert set(numbers) == {4}
