"""Ranks that are no longer together, or not alike: found, and no silent wrong number."""

import copy
import pickle
import re
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

import fastbn
from fastbn._call import sync
from fastbn.distributed import SyncBatchNorm, collectives, convert_sync_batchnorm, exchange
from tests import reference
from tests.fake_comm import AskedComm, FakeComm, on_ranks, values

GOOD = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)


def raised(answers, kind, match, on=(0, 1)):
    for rank in on:
        assert isinstance(answers[rank], kind), f"rank {rank}: {answers[rank]!r}"
        assert re.search(match, str(answers[rank])), str(answers[rank])


def of_rank(comm, seed=0):
    return np.random.default_rng(seed + comm.rank).normal(size=(4, 6)).astype(np.float32)


# --- gradients of parameters without batch statistics ---------------------------------------------


@pytest.mark.parametrize("mode", ["eval", "freeze"])
@pytest.mark.parametrize("out", [False, True])
def test_global_gradients_of_layers_that_do_not_train(mode, out):
    """Over all ranks, those without samples included, with the same bits on each."""
    cuts, rng = (0, 5, 5, 12), np.random.default_rng(1)
    x, dy = rng.normal(2, 3, (2, 12, 6))
    weight, mean, var = rng.uniform(0.5, 2, (3, 6))

    def program(comm):
        layer = SyncBatchNorm(6, comm=comm, dtype=np.float64, parameter_gradients="global")
        for array, start in zip(
            (layer.weight, layer.running_mean, layer.running_var), (weight, mean, var), strict=True
        ):
            array[...] = start
        getattr(layer, mode)()
        own = slice(*cuts[comm.rank :][:2])
        _, cache = layer.forward_with_cache(x[own])
        gradient = dy[own].copy()
        found = layer.backward(gradient, cache, out=gradient if out else None)
        assert (found.x is gradient) == out
        return found

    found = values(on_ranks(3, program))
    dx, d_weight, d_bias = reference.backward(dy, x, mean, var, weight, 1e-5, 1, False)
    expected_x = np.concatenate([g.x for g in found])
    np.testing.assert_allclose(expected_x, dx.astype(float), rtol=1e-12, atol=1e-12)
    for g in found:
        np.testing.assert_allclose(g.weight, d_weight.astype(float), rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(g.bias, d_bias.astype(float), rtol=1e-11, atol=1e-12)
    assert len({g.weight.tobytes() + g.bias.tobytes() for g in found}) == 1


def test_global_gradients_with_statistics_of_each_part():
    def program(comm):
        options = {"track_running_stats": False, "dtype": np.float64}
        x, dy = of_rank(comm).astype(float), of_rank(comm, 7).astype(float)
        layer = SyncBatchNorm(6, comm=comm, parameter_gradients="global", **options).eval()
        plain = fastbn.BatchNorm1d(6, **options)
        found = layer.backward(dy, layer.forward_with_cache(x)[1])
        plain(x)
        return found, plain.backward(dy)

    answers = values(on_ranks(2, program))
    for found, own in answers:
        np.testing.assert_allclose(found.x, own.x, rtol=1e-12, atol=1e-13)
        total = sum(plain.weight for _, plain in answers)
        np.testing.assert_allclose(found.weight, total, rtol=1e-11, atol=1e-13)


def test_frozen_layers_whose_running_statistics_have_come_apart():
    def program(comm):
        layer = SyncBatchNorm(6, comm=comm, parameter_gradients="global").freeze()
        layer.running_mean[...] = comm.rank
        return layer.backward(GOOD, layer.forward_with_cache(GOOD)[1])

    raised(on_ranks(2, program)[0], RuntimeError, "running statistics are others")


def test_a_refused_gradient_of_a_frozen_layer():
    def program(comm):
        layer = SyncBatchNorm(6, comm=comm, parameter_gradients="global").freeze()
        _, cache = layer.forward_with_cache(GOOD)
        return layer.backward(GOOD[: 4 - comm.rank], cache)

    answers, _ = on_ranks(2, program)
    raised(answers, RuntimeError, "rank 1 has refused its part", [0])
    raised(answers, ValueError, "dy has shape", [1])


def test_a_frozen_layer_without_communicator():
    def program(comm):
        made = SyncBatchNorm(6, comm=comm, parameter_gradients="global").freeze()
        layer = pickle.loads(pickle.dumps(made))
        y, cache = layer.forward_with_cache(GOOD)
        return layer.backward(y, cache)

    raised(on_ranks(2, program)[0], RuntimeError, "the layer has no communicator")


# --- limits ---------------------------------------------------------------------------------------


#: Seconds; a busy machine takes some of them for a call that finds its kernels compiled.
SOON = 1.0


@pytest.fixture(scope="module")
def compiled():
    def program(comm):
        layer = SyncBatchNorm(6, comm=comm)
        layer.backward(layer(GOOD))

    values(on_ranks(1, program))


@pytest.fixture
def limited(monkeypatch, compiled):
    monkeypatch.setenv("FASTBN_RANKS_TIMEOUT", str(SOON))


def test_after_a_timeout_nothing_is_exchanged(limited):
    """A retry would meet the next call of the other rank, and give wrong statistics."""

    def program(comm):
        layer = SyncBatchNorm(6, comm=comm)
        if comm.rank == 1:
            comm.meet()
            layer.forward_with_cache(of_rank(comm))  # by what the other has sent before
            return layer(of_rank(comm, 10))
        with pytest.raises(TimeoutError, match="within 1 s"):
            layer(GOOD)
        comm.meet()
        for call in (layer, copy.copy(layer), lambda _: SyncBatchNorm(6, comm=comm)):
            with pytest.raises(RuntimeError, match="was given up"):
                call(GOOD)
        return layer(GOOD)

    answers, _ = on_ranks(2, program, kind=AskedComm)
    raised(answers, RuntimeError, "was given up", [0])
    raised(answers, TimeoutError, "not all ranks", [1])


def test_ranks_one_call_apart(limited):
    """Were a rank to go on after all, the number of calls behind it would tell."""

    def program(comm):
        layer = SyncBatchNorm(6, comm=comm)
        layer.backward(layer(GOOD))
        if comm.rank == 1:
            comm.meet()
            layer(GOOD)
            return layer(GOOD)
        with pytest.raises(TimeoutError):
            layer(GOOD)
        collectives._lost.remove(comm)
        comm.meet()
        return layer(GOOD)

    answers, _ = on_ranks(2, program, kind=AskedComm)
    raised(answers, RuntimeError, "2 have gone well on rank 0, and on rank 1 3")


@pytest.mark.parametrize("call", ["forward", "backward"])
def test_a_call_that_fails_on_one_rank_after_the_exchange(monkeypatch, call):
    """As where there is no memory: a retry does not pass for the next call of the others."""
    kind = {"forward": sync.Sync, "backward": sync._Gradient}[call]
    finish, fails = kind.finish, []

    def scarce(self, whole):
        if threading.get_ident() in fails:
            raise MemoryError
        return finish(self, whole)

    monkeypatch.setattr(kind, "finish", scarce)

    def program(comm):
        layer = SyncBatchNorm(6, comm=comm)
        layer.backward(layer(GOOD))
        if comm.rank == 1:
            fails.append(threading.get_ident())
            with pytest.raises(MemoryError):
                getattr(layer, call)(GOOD)
            fails.clear()
        else:
            getattr(layer, call)(GOOD)
        return getattr(layer, call)(GOOD)

    answers, _ = on_ranks(2, program)
    raised(answers, RuntimeError, "3 have gone well on rank 0, and on rank 1 2")


def test_an_interrupted_wait_ends_the_exchanges(monkeypatch):
    """MPI may still write to its arrays, and meets later calls of other ranks."""

    def interrupted(_):
        raise KeyboardInterrupt

    def program(comm):
        layer = SyncBatchNorm(6, comm=comm)
        comm.meet()
        if comm.rank == 1:
            return None
        clock = SimpleNamespace(monotonic=time.monotonic, sleep=interrupted)
        monkeypatch.setattr(collectives, "time", clock)
        kept = len(collectives._given_up)
        with pytest.raises(KeyboardInterrupt):
            layer(GOOD)
        monkeypatch.undo()
        assert len(collectives._given_up) == kept + 1
        return layer(GOOD)

    raised(on_ranks(2, program, kind=AskedComm)[0], RuntimeError, "was given up", [0])


def test_ranks_wait_ten_minutes_at_most(monkeypatch, compiled):
    monkeypatch.delenv("FASTBN_RANKS_TIMEOUT", raising=False)
    assert collectives.limit_for(AskedComm) == 600
    monkeypatch.setattr(collectives, "LIMIT", SOON)

    def program(comm):
        layer = SyncBatchNorm(6, comm=comm)
        if comm.rank == 1:
            layer.eval()
        return layer(GOOD)

    answers, _ = on_ranks(2, program, kind=AskedComm)
    raised(answers, TimeoutError, "within 1 s", [0])


def test_without_a_limit(monkeypatch):
    monkeypatch.setenv("FASTBN_RANKS_TIMEOUT", "0")
    monkeypatch.setattr(collectives, "LIMIT", 0.01)

    def program(comm):
        layer = SyncBatchNorm(6, comm=comm)
        if comm.rank == 1:
            time.sleep(0.2)
        return layer(GOOD).tobytes()

    one, other = values(on_ranks(2, program, kind=AskedComm))
    assert one == other


def test_communicators_without_what_can_be_given_up(monkeypatch):
    """They wait themselves, by default."""
    monkeypatch.delenv("FASTBN_RANKS_TIMEOUT", raising=False)
    assert collectives.limit_for(FakeComm) == float("inf")
    monkeypatch.setenv("FASTBN_RANKS_TIMEOUT", "0")
    assert collectives.limit_for(FakeComm) == float("inf")


def test_a_limit_that_cannot_be_kept(limited):
    raised(
        on_ranks(2, lambda comm: SyncBatchNorm(6, comm=comm))[0], TypeError, "has no Iallgather"
    )  # fmt: skip


def test_limits_that_ranks_were_told_otherwise(monkeypatch):
    monkeypatch.setattr(exchange, "limit_for", lambda comm: 60.0 if comm.rank else 1.0)
    answers, _ = on_ranks(2, lambda comm: SyncBatchNorm(6, comm=comm), kind=AskedComm)
    raised(answers, ValueError, "wait 1 s .* on rank 0 and 60 s on rank 1; set FASTBN")


def test_waiting_does_not_sleep_at_first(monkeypatch):
    """`time.sleep(0)` takes as long as the system lets timers be late."""

    class Third:
        asked = 0

        def Test(self):
            self.asked += 1
            return self.asked == 3

    slept = []
    clock = SimpleNamespace(monotonic=lambda: 0.0, sleep=slept.append)
    monkeypatch.setattr(collectives, "time", clock)
    collectives._wait(Third(), 10)
    assert not slept


# --- copies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("trained", [False, True])
def test_copies_are_not_mixed_up(trained):
    def program(comm):
        layer = SyncBatchNorm(6, comm=comm)
        if trained:
            layer.backward(layer(GOOD))
        one, other = copy.deepcopy(layer), copy.copy(layer)
        numbers = {new._exchange.number for new in (layer, one, other, copy.copy(one))}
        assert len(numbers) == 4
        assert all(float(number) == number for number in numbers)
        return (one if comm.rank else layer)(GOOD), (other if comm.rank else one)(GOOD)

    raised(on_ranks(2, program)[0], RuntimeError, "rank 1 calls another layer than rank 0")


# --- errors that others hear of -------------------------------------------------------------------


def test_a_keyword_that_a_call_has_not():
    def program(comm):
        layer = SyncBatchNorm(6, comm=comm)
        try:
            layer(GOOD, **({"foo": 1} if comm.rank else {}))
        except Exception as error:
            layer(GOOD)
            return error

    answers, _ = on_ranks(2, program)
    raised(answers, RuntimeError, "rank 1 has refused.*'foo'", [0])
    raised(answers, TypeError, "no argument 'foo'", [1])


def test_an_interrupt_in_the_checks(monkeypatch):
    def program(comm):
        layer, checked = SyncBatchNorm(6, comm=comm), SyncBatchNorm._checked_call

        def interrupted(self, *arguments):
            if self is layer and comm.rank == 1:
                raise KeyboardInterrupt
            return checked(self, *arguments)

        comm.meet()
        if comm.rank == 1:
            monkeypatch.setattr(SyncBatchNorm, "_checked_call", interrupted)
        comm.meet()
        if comm.rank == 0:
            return layer(GOOD)
        with pytest.raises(KeyboardInterrupt):
            layer(GOOD)

    raised(on_ranks(2, program)[0], RuntimeError, "rank 1 has refused.*KeyboardInterrupt", [0])


def test_a_communicator_taken_away_on_one_rank():
    def program(comm):
        layer = SyncBatchNorm(6, comm=comm)
        try:
            layer.comm = None if comm.rank else comm
        except Exception as error:
            assert layer.comm is comm
            layer(GOOD)
            return error

    answers, _ = on_ranks(2, program)
    raised(answers, RuntimeError, "rank 1 has not made the layer: TypeError: comm is None", [0])
    raised(answers, TypeError, "comm is None", [1])


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({}, "comm is None, expected a communicator of mpi4py"),
        ({"process_group": None}, "no argument 'process_group'; .*comm has the ranks"),
    ],
)
def test_a_layer_without_communicator(arguments, match):
    with pytest.raises(TypeError, match=match):
        SyncBatchNorm(6, **arguments)


# --- what must be alike ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["weight", "running_var", "num_batches_tracked"])
def test_arrays_that_differ(name):
    """They would stay apart, and outputs with them."""

    def layer_of(comm):
        layer = fastbn.BatchNorm1d(6)
        getattr(layer, name)[...] = 2 + comm.rank
        return layer

    def convert(comm):
        return convert_sync_batchnorm([layer_of(comm)], comm)

    def connect(comm):
        layer = pickle.loads(pickle.dumps(SyncBatchNorm(6, comm=comm)))
        getattr(layer, name)[...] = 2 + comm.rank
        layer.comm = comm

    match = r"rank 1 are not those of rank 0.*comm\.bcast"
    for program in (convert, connect):
        raised(on_ranks(2, program)[0], ValueError, match)


def test_containers_in_another_order():
    def program(comm):
        names = ["a", "b"] if comm.rank else ["b", "a"]
        return convert_sync_batchnorm({name: fastbn.BatchNorm1d(6) for name in names}, comm)

    raised(on_ranks(2, program)[0], ValueError, r"layers\['b'\].* rank 1 has .*layers\['a'\]")


def test_keys_that_each_process_shows_otherwise():
    def program(comm):
        return len(convert_sync_batchnorm({object(): fastbn.BatchNorm1d(6)}, comm))

    assert values(on_ranks(2, program)) == [1, 1]


class Net:
    def __init__(self):
        self.bn = fastbn.BatchNorm1d(6)


@pytest.mark.parametrize("nothing", [Net, dict, lambda: [fastbn.GroupNorm(2, 4)]])
def test_nothing_to_convert(nothing):
    def program(comm):
        return convert_sync_batchnorm(nothing(), comm)

    kind = type(nothing()).__name__
    raised(on_ranks(2, program)[0], TypeError, rf"got a {kind}; .*vars\(network\)")


def test_attributes_of_a_network_are_converted():
    def program(comm):
        made = convert_sync_batchnorm(vars(Net()), comm)
        assert convert_sync_batchnorm(made, comm)["bn"] is made["bn"]  # and finds it
        return type(made["bn"])

    assert values(on_ranks(2, program)) == [SyncBatchNorm] * 2


def test_parameter_gradients_are_alike():
    def program(comm):
        layer = SyncBatchNorm(6, comm=comm)
        layer.parameter_gradients = "global" if comm.rank else "local"
        return layer(GOOD)

    raised(on_ranks(2, program)[0], ValueError, "parameter_gradients.* others on rank 1")


def test_other_forwards_that_differ_in_the_last_channel_only():
    def program(comm):
        layer, x = SyncBatchNorm(20, comm=comm), np.random.default_rng(0).normal(size=(4, 20))
        x = x.astype(np.float32)
        other = np.concatenate([x[:, :19], 1 + 2 * x[:, 19:]], axis=1)
        caches = [layer.forward_with_cache(of)[1] for of in (x, other)]
        return layer.backward(x, caches[comm.rank])

    raised(on_ranks(2, program)[0], RuntimeError, "rank 1 differentiates another forward")
