"""Synchronized batch norm where something is wrong on one rank: all raise, and nobody waits."""

import re

import numpy as np
import pytest

import fastbn
from fastbn.distributed import SyncBatchNorm, convert_sync_batchnorm, exchange
from tests.fake_comm import FakeComm, on_ranks

RANKS = 3
GOOD = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
NAN = np.where(GOOD[2, 3] == GOOD, np.nan, GOOD).astype(np.float32)


def raised(answers, kind, match, on=range(RANKS)):
    for rank in on:
        assert isinstance(answers[rank], kind), f"rank {rank}: {answers[rank]!r}"
        assert re.search(match, str(answers[rank]))


@pytest.fixture(params=[False, True], ids=["allgather", "slices"], autouse=True)
def way(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(exchange, "LARGEST", 0)


BAD_X = {
    "channels": (np.ones((4, 7), np.float32), {}, ValueError, "num_features=6"),
    "dimensions": (np.ones(6, np.float32), {}, ValueError, "single sample is x"),
    "axis": (np.ones((2, 6, 1), np.float32), {"axis": 3}, ValueError, "no channel axis 3"),
    "integers": (np.ones((4, 6), int), {}, TypeError, "astype"),
    "a list": ([[1.0] * 6], {}, TypeError, "numpy.ndarray"),
    "NaN": (NAN, {"on_nonfinite": "raise"}, ValueError, "NaN or infinity in channel 3"),
    "masked array": (np.ma.masked_less(GOOD, 0), {}, NotImplementedError, "takes no mask"),
}


@pytest.mark.parametrize(("bad", "options", "kind", "match"), BAD_X.values(), ids=BAD_X)
def test_a_refused_batch(bad, options, kind, match):
    """Nothing has changed on any rank, and all can go on."""
    first = GOOD if "axis" not in options else GOOD.reshape(2, 2, 1, 6)

    def program(comm):
        layer = SyncBatchNorm(6, comm=comm, **options)
        before, out = layer.state_dict(), np.full_like(first, 7)
        try:
            layer(bad if comm.rank == 1 else first, **({} if comm.rank == 1 else {"out": out}))
        except Exception as error:
            after = layer.state_dict()
            assert all((before[name] == after[name]).all() for name in before)
            assert (out == 7).all()
            layer(first)
            assert layer.num_batches_tracked == 1
            return error

    answers, _ = on_ranks(RANKS, program)
    raised(answers, kind, match, [1])
    raised(answers, RuntimeError, f"rank 1 has refused its part.*{kind.__name__}: ", [0, 2])


def test_several_refuse():
    def program(comm):
        return SyncBatchNorm(6, comm=comm)(GOOD[:, : 6 - comm.rank])

    answers, _ = on_ranks(RANKS, program)
    raised(answers, RuntimeError, "rank 1 has refused", [0])
    raised(answers, ValueError, "5 channels", [1])
    raised(answers, ValueError, "4 channels", [2])


BAD_BACKWARD = {
    "shape": (lambda layer: layer.backward(GOOD[:2]), ValueError, "dy has shape"),
    "dtype": (lambda layer: layer.backward(GOOD.astype(float)), ValueError, "dy.astype"),
    "no dy": (lambda layer: layer.backward(None), TypeError, "numpy.ndarray"),
    "no cache": (lambda layer: layer.backward(GOOD, "cache"), TypeError, "cache must come from"),
    "out": (lambda layer: layer.backward(GOOD, out=GOOD[:2].copy()), ValueError, "out has shape"),
}


@pytest.mark.parametrize(("bad", "kind", "match"), BAD_BACKWARD.values(), ids=BAD_BACKWARD)
@pytest.mark.parametrize("activation", [None, "relu"])
def test_a_refused_gradient(bad, kind, match, activation):
    def program(comm):
        layer = SyncBatchNorm(6, comm=comm, activation=activation)
        layer(GOOD)
        out = GOOD.copy()
        try:
            bad(layer) if comm.rank == 2 else layer.backward(out, out=out)
        except Exception as error:
            assert (out == GOOD).all()
            layer.backward(GOOD)
            return error

    answers, _ = on_ranks(RANKS, program)
    raised(answers, kind, match, [2])
    raised(answers, RuntimeError, "rank 2 has refused", [0, 1])


def test_gradients_of_different_forwards():
    def program(comm):
        layer = SyncBatchNorm(6, comm=comm)
        caches = [layer.forward_with_cache(GOOD * scale)[1] for scale in np.float32([1, 2])]
        return layer.backward(GOOD, caches[comm.rank == 1])

    match = "rank 1 differentiates another forward than rank 0"
    raised(on_ranks(RANKS, program)[0], RuntimeError, match)


def test_backward_without_a_forward():
    def program(comm):
        layer = SyncBatchNorm(6, comm=comm)
        layer(GOOD)
        if comm.rank == 0:
            layer.reset_parameters()
        return layer.backward(GOOD)

    answers, _ = on_ranks(RANKS, program)
    raised(answers, RuntimeError, "no training call", [0])
    raised(answers, RuntimeError, "rank 0 has refused", [1, 2])


def test_the_forward_has_overwritten_its_input():
    def program(comm):
        layer, x = SyncBatchNorm(6, comm=comm), GOOD.copy()
        layer(x, out=x if comm.rank == 0 else None)
        return layer.backward(GOOD)

    answers, _ = on_ranks(RANKS, program)
    raised(answers, RuntimeError, "wrote its output over x", [0])
    raised(answers, RuntimeError, "rank 0 has refused", [1, 2])


def test_too_few_values():
    def program(comm):
        layer = SyncBatchNorm(6, comm=comm)
        try:
            layer(GOOD[:1] if comm.rank == 1 else GOOD[:0])
        finally:
            assert layer.num_batches_tracked == 0
            layer(GOOD[:1])

    raised(on_ranks(RANKS, program)[0], ValueError, "got 1 in the batches of all ranks")


def different(comm, one, other):
    return other if comm.rank == 2 else one


DIFFERENT = {
    "dtype": (
        lambda comm, layer, _: layer(different(comm, GOOD, GOOD.astype(float))),
        ValueError, "dtype float32 on rank 0, and on rank 2 dtype float64",
    ),
    "dtype of nothing": (
        lambda comm, layer, _: layer(different(comm, GOOD, np.zeros((0, 6)))),
        ValueError, "for an empty batch too",
    ),
    "call": (
        lambda comm, layer, _: different(comm, layer.forward, layer.backward)(GOOD),
        RuntimeError, "rank 0 calls forward of a layer, and rank 2 calls its backward",
    ),
    "layer": (
        lambda comm, layer, other: different(comm, layer, other)(GOOD),
        RuntimeError, "rank 2 calls another layer than rank 0",
    ),
    "settings": (
        lambda comm, layer, _: (setattr(layer, "momentum", 0.1 + comm.rank // 2 / 2), layer(GOOD)),
        ValueError, "are others on rank 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "match"), DIFFERENT.values(), ids=DIFFERENT)
def test_ranks_that_do_different_things(call, kind, match):
    def program(comm):
        layer, other = (SyncBatchNorm(6, comm=comm, momentum=0.1) for _ in "ab")
        layer(GOOD)
        other(GOOD)
        before = layer.state_dict()["running_mean"]
        try:
            return call(comm, layer, other)
        finally:
            assert (layer.running_mean == before).all()

    raised(on_ranks(RANKS, program)[0], kind, match)


@pytest.mark.parametrize("always", [False, True])
def test_layers_of_different_sizes(monkeypatch, always):
    """Found by headers that go ahead: of the first calls of a layer, or of all."""
    monkeypatch.setenv("FASTBN_CHECK_CALLS", str(int(always)))

    def program(comm):
        layers = [SyncBatchNorm(channels, comm=comm) for channels in (6, 7)]
        if always:
            for layer in layers:
                layer.backward(layer(np.ones((4, layer.num_features), "f4")))
        try:
            return different(comm, *layers)(GOOD if comm.rank < 2 else np.ones((4, 7), "f4"))
        finally:
            layers[0].backward(layers[0](GOOD))

    raised(on_ranks(RANKS, program)[0], RuntimeError, "rank 2 calls another layer than rank 0")


def test_a_layer_made_while_others_call_one():
    def program(comm):
        layer = SyncBatchNorm(6, comm=comm)
        return SyncBatchNorm(6, comm=comm) if comm.rank == 1 else layer(GOOD)

    raised(on_ranks(RANKS, program)[0], RuntimeError, "rank 1 makes a layer, and rank 0 calls one")


def test_a_message_too_short_is_no_header():
    """What two ranks of three see where MPI lets a short message pass."""

    def program(comm):
        layers = [SyncBatchNorm(channels, comm=comm) for channels in (6, 2)]
        for layer in layers:
            layer.backward(layer(np.ones((4, layer.num_features), "f4")))
        return different(comm, *layers)(GOOD if comm.rank < 2 else np.ones((4, 2), "f4"))

    answers, _ = on_ranks(RANKS, program)
    raised(answers, RuntimeError, "rank 2 calls another layer than rank 0", [0, 1])
    raised(answers, AssertionError, "message truncated", [2])


@pytest.mark.parametrize("policy", ["skip", "raise"])
def test_statistics_that_overflow(policy):
    """Finite on every rank, and not together."""
    large = np.float32(3e38) * np.sign(np.arange(4) - 1.5).astype(np.float32)[:, None]

    def program(comm):
        layer = SyncBatchNorm(1, comm=comm, on_nonfinite=policy)
        try:
            layer(large)
        finally:
            assert layer.num_batches_tracked == 0
            assert layer.running_var == 1

    answers, _ = on_ranks(RANKS, program)
    if policy == "raise":
        raised(answers, ValueError, "would make running_var infinite in channel 0")
    assert policy == "raise" or answers == [None] * RANKS


@pytest.mark.parametrize("policy", ["propagate", "skip"])
def test_nan_of_one_rank_is_that_of_all(policy):
    def program(comm):
        layer = SyncBatchNorm(6, comm=comm, on_nonfinite=policy)
        y = layer(NAN if comm.rank == 0 else GOOD)
        layer.backward(GOOD)
        assert np.isnan(y[:, 3]).all()
        assert np.isfinite(np.delete(y, 3, axis=1)).all()
        return np.isnan(layer.running_mean).tolist(), int(layer.num_batches_tracked)

    expected = [c == 3 and policy == "propagate" for c in range(6)], int(policy == "propagate")
    assert on_ranks(RANKS, program)[0] == [expected] * RANKS


# --- making layers --------------------------------------------------------------------------------


def test_a_constructor_that_fails_on_one_rank():
    def program(comm):
        try:
            return SyncBatchNorm(6 if comm.rank else -6, comm=comm)
        finally:
            SyncBatchNorm(6, comm=comm)(GOOD)

    answers, _ = on_ranks(RANKS, program)
    raised(answers, ValueError, "positive integer, got -6", [0])
    raised(answers, RuntimeError, "rank 0 has not made the layer: ValueError", [1, 2])


ARGUMENTS = {
    "unknown": ({"inplace": True}, TypeError, "no argument 'inplace'"),
    "torch's": ({"process_group": 1}, TypeError, "here it is comm|comm has the ranks"),
    "device": ({"device": "cuda"}, NotImplementedError, "no SyncBatchNorm on a device"),
    "gradients": ({"parameter_gradients": "mean"}, ValueError, "'local' or 'global'"),
    "axis": ({"axis": 0}, ValueError, "axis must be that of the channels"),
    "groups": ({"virtual_batch_size": 2}, TypeError, "virtual_batch_size"),
}


@pytest.mark.parametrize(("arguments", "kind", "match"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments_of_the_constructor(arguments, kind, match):
    raised(
        on_ranks(RANKS, lambda comm: SyncBatchNorm(6, comm=comm, **arguments))[0], kind, match
    )  # fmt: skip


@pytest.mark.parametrize("option", [{"eps": 1e-3}, {"affine": False}, {"dtype": np.float64}])
def test_layers_made_differently(option):
    def program(comm):
        return SyncBatchNorm(6, comm=comm, **(option if comm.rank == 1 else {}))

    raised(on_ranks(RANKS, program)[0], ValueError, "rank 0 has SyncBatchNorm.* rank 1 has Sync")


def test_a_communicator_set_on_different_layers():
    def program(comm):
        layer = SyncBatchNorm(6, comm=comm)
        layer.momentum = 0.1 + comm.rank / 10
        layer.comm = comm

    raised(on_ranks(RANKS, program)[0], ValueError, "ranks must make layers alike")


class Null(FakeComm):
    def __bool__(self):
        return False


class Inter(FakeComm):
    def Is_inter(self):
        return True


COMMS = {
    "None": (None, TypeError, "comm is None.*COMM_WORLD.*BatchNorm1d"),
    "a module": (np, TypeError, "got module.*COMM_WORLD"),
    "a class": (FakeComm, TypeError, "got FakeComm"),
    "null": (Null(None, 0), ValueError, "not one of its ranks"),
    "between groups": (Inter(None, 0), ValueError, r"comm\.Merge"),
}


@pytest.mark.parametrize(("comm", "kind", "match"), COMMS.values(), ids=COMMS)
def test_what_is_no_communicator(comm, kind, match):
    with pytest.raises(kind, match=match):
        SyncBatchNorm(6, comm=comm)
    with pytest.raises(kind, match=match):
        convert_sync_batchnorm(fastbn.BatchNorm1d(6), comm)


class Derived(fastbn.BatchNorm1d):
    pass


NOT_CONVERTED = {
    "renorm": (fastbn.BatchRenorm2d(3), TypeError, r"layers\['a'\]\[1\] is a BatchRenorm2d"),
    "derived": (Derived(3), TypeError, r"layers\['a'\]\[1\] is a Derived"),
    "ghosts": (
        fastbn.BatchNorm1d(3, virtual_batch_size=4), NotImplementedError, "virtual_batch_size=4",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("layer", "kind", "match"), NOT_CONVERTED.values(), ids=NOT_CONVERTED)
def test_what_is_not_converted(layer, kind, match):
    def program(comm):
        return convert_sync_batchnorm({"a": [fastbn.BatchNorm1d(2), layer]}, comm)

    raised(on_ranks(RANKS, program)[0], kind, match)


def test_converting_different_layers():
    def program(comm):
        layers = [fastbn.BatchNorm1d(2) for _ in range(1 + comm.rank)]
        return convert_sync_batchnorm(layers, comm)

    raised(on_ranks(RANKS, program)[0], ValueError, "1 layers to convert.* 2 layers to convert")


def test_attributes_that_a_layer_has_not():
    def program(comm):
        layer = SyncBatchNorm(6, comm=comm)
        with pytest.raises(ValueError, match=r"comm\.Split"):
            layer.virtual_batch_size = 2
        with pytest.raises(NotImplementedError, match="device"):
            layer.to("cuda")
        return layer.to("cpu") is layer

    assert on_ranks(1, program)[0] == [True]


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf"])
def test_a_limit_that_is_none(monkeypatch, text):
    monkeypatch.setenv("FASTBN_RANKS_TIMEOUT", text)
    answers, _ = on_ranks(1, lambda comm: SyncBatchNorm(6, comm=comm))
    raised(answers, ValueError, f"positive number of seconds, .*got '{text}'", [0])
