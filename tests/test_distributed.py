"""Synchronized batch norm on ranks that are threads of this process: numbers, bits, calls."""

import copy
import pickle
import subprocess
import sys
from collections import OrderedDict, namedtuple

import numpy as np
import pytest

import fastbn
from fastbn.distributed import SyncBatchNorm, convert_sync_batchnorm, exchange
from tests import reference
from tests.fake_comm import on_ranks, values

#: Where the batch is cut: evenly, unevenly, with a rank of one sample, and with empty ones.
CUTS = [(0, 12), (0, 3, 6, 9, 12), (0, 7, 8, 12), (0, 0, 5, 5, 12), (0, 1, 2, 5, 6, 6, 9, 12)]
SHAPES = [((12, 6), 1), ((12, 6, 5), 1), ((12, 4, 3, 6), -1), ((12, 6, 2, 3, 2), 1)]
EPS = 1e-5


def problem(shape=(12, 6, 5), axis=1, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    x, dy = rng.normal(3, 2, shape).astype(dtype), rng.normal(size=shape).astype(dtype)
    weight, bias = rng.uniform(0.5, 2, (2, shape[axis]))
    return x, dy, weight, bias


def part(comm, cuts, *arrays):
    rows = slice(*cuts[comm.Get_rank() :][:2])
    return [array[rows] for array in arrays]


def layer_of(comm, weight, bias, **options):
    layer = SyncBatchNorm(weight.size, comm=comm, **options)
    layer.weight[...], layer.bias[...] = weight, bias
    return layer


def step_on_ranks(cuts, x, dy, weight, bias, late=None, residual=None, **options):
    """Output, gradients and state of one step on each rank."""

    def program(comm):
        own = part(comm, cuts, x, dy, *(() if residual is None else (residual,)))
        layer = layer_of(comm, weight, bias, **options)
        y = layer(own[0], residual=own[2] if residual is not None else None)
        return y, layer.backward(own[1]), layer.state_dict()

    return values(on_ranks(len(cuts) - 1, program, late))


def joined(answers):
    """Output and gradient in x of the whole batch."""
    return [np.concatenate(parts) for parts in zip(*((y, g.x) for y, g, _ in answers), strict=True)]


def bits(array):
    return array.tobytes()


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_parts_are_as_the_whole(cuts, shape, axis):
    x, dy, weight, bias = problem(shape, axis)
    answers = step_on_ranks(cuts, x, dy, weight, bias, axis=axis, dtype=np.float64)
    y, dx = joined(answers)
    expected, mean, var = reference.forward(x, weight, bias, EPS, axis)
    gradients = reference.backward(dy, x, mean, var, weight, EPS, axis, True)
    running = reference.running_step(np.zeros(6), np.ones(6), x, 0.1, axis)
    np.testing.assert_allclose(y, expected.astype(float), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(dx, gradients[0].astype(float), rtol=1e-12, atol=1e-12)
    for name, of_whole in zip(("weight", "bias"), gradients[1:], strict=True):
        local = sum(getattr(g, name) for _, g, _ in answers)
        np.testing.assert_allclose(local, of_whole.astype(float), rtol=1e-11, atol=1e-12)
    for _, _, state in answers:
        assert state["num_batches_tracked"] == 1
        np.testing.assert_allclose(state["running_mean"], running[0].astype(float), rtol=1e-13)
        np.testing.assert_allclose(state["running_var"], running[1].astype(float), rtol=1e-12)


@pytest.mark.compiled
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_other_dtypes(dtype):
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="NumPy has no bfloat16 without ml_dtypes")
    x, dy, weight, bias = problem((64, 6, 5), dtype=dtype)
    answers = step_on_ranks((0, 20, 20, 64), x, dy, weight, bias)
    y, dx = joined(answers)
    assert y.dtype == dx.dtype == dtype
    expected, mean, var = reference.forward(x, weight, bias, EPS, 1)
    gradient = reference.backward(dy, x, mean, var, weight, EPS, 1, True)[0]
    tolerance = 4 * float(ml_dtypes.finfo(dtype).eps)
    y, dx = y.astype(float), dx.astype(float)
    np.testing.assert_allclose(y, expected.astype(float), rtol=tolerance, atol=4 * tolerance)
    np.testing.assert_allclose(dx, gradient.astype(float), rtol=tolerance, atol=4 * tolerance)
    assert answers[0][1].weight.dtype == np.float32


def test_a_mean_far_from_zero():
    """Sums and sums of squares over ranks would leave nothing of the variance."""
    rng = np.random.default_rng(0)
    x = 1e6 + rng.normal(0, 1e-2, (40, 3)) + 100 * np.arange(40)[:, None] // 1000
    _, dy, weight, bias = problem((40, 3))
    (y, _) = joined(
        step_on_ranks((0, 10, 11, 40), x, dy, weight, bias, dtype=np.float64, eps=1e-12)
    )
    expected, _, _ = reference.forward(x, weight, bias, 1e-12, 1)
    np.testing.assert_allclose(y, expected.astype(float), atol=1e-6)


@pytest.mark.compiled
@pytest.mark.parametrize("activation", [None, "relu", "silu"])
@pytest.mark.parametrize("with_residual", [False, True])
def test_residual_and_activation(activation, with_residual):
    x, dy, weight, bias = problem()
    residual = problem(seed=1)[0] if with_residual else None
    whole = fastbn.BatchNorm1d(6, activation=activation, dtype=np.float64)
    whole.weight[...], whole.bias[...] = weight, bias
    expected, gradients = whole(x, residual=residual), whole.backward(dy)
    answers = step_on_ranks(
        (0, 4, 4, 12), x, dy, weight, bias, residual=residual, activation=activation,
        dtype=np.float64,
    )  # fmt: skip
    y, dx = joined(answers)
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(dx, gradients.x, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(sum(g.weight for _, g, _ in answers), gradients.weight, rtol=1e-11)
    if with_residual:
        of_residual = np.concatenate([g.residual for _, g, _ in answers])
        np.testing.assert_allclose(of_residual, gradients.residual, rtol=1e-11, atol=1e-12)


def test_layouts_that_no_kernel_walks():
    x, dy, weight, bias = problem((12, 6, 5))
    odd = np.asfortranarray(x)[::-1], np.moveaxis(np.ascontiguousarray(np.moveaxis(dy, 1, 2)), 2, 1)
    answers = step_on_ranks((0, 5, 12), *odd, weight, bias, dtype=np.float64)
    plain = step_on_ranks((0, 5, 12), odd[0].copy(), dy.copy(), weight, bias, dtype=np.float64)
    for one, other in zip(joined(answers), joined(plain), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


def test_parameter_gradients_of_the_whole_batch():
    x, dy, weight, bias = problem()
    cuts = (0, 5, 5, 12)
    local = step_on_ranks(cuts, x, dy, weight, bias)
    everybody = step_on_ranks(cuts, x, dy, weight, bias, parameter_gradients="global")
    for name in ("weight", "bias"):
        total = sum(getattr(g, name) for _, g, _ in local)
        found = [getattr(g, name) for _, g, _ in everybody]
        np.testing.assert_allclose(found[0], total, rtol=1e-12)
        assert len({bits(gradient) for gradient in found}) == 1
    assert [bits(g.x) for _, g, _ in local] == [bits(g.x) for _, g, _ in everybody]


# --- bits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [2, 3, 4, 7])
@pytest.mark.parametrize("channels", [1, 5, 16])
def test_slices_have_the_same_bits(monkeypatch, ranks, channels):
    x, dy, weight, bias = problem((4 * ranks + 1, channels), seed=ranks)
    cuts = (*range(0, 4 * ranks, 4), 4 * ranks + 1)
    whole = step_on_ranks(cuts, x, dy, weight, bias, parameter_gradients="global")
    monkeypatch.setattr(exchange, "LARGEST", 0)
    sliced = step_on_ranks(cuts, x, dy, weight, bias, parameter_gradients="global")
    for (y, g, state), (y2, g2, state2) in zip(whole, sliced, strict=True):
        assert bits(y) == bits(y2)
        assert [bits(a) for a in g] == [bits(a) for a in g2]
        assert all(bits(state[name]) == bits(state2[name]) for name in state)


@pytest.mark.parametrize(
    ("ranks", "channels", "collectives", "nbytes"),
    [(2, 2048, 1, 56 + 16 * 2048), (2, 4096, 2, 2 * 56 + 48 * 2048), (4, 8, 1, 56 + 16 * 8)],
)
def test_large_messages_go_in_slices(ranks, channels, collectives, nbytes):
    def program(comm):
        layer, threads = SyncBatchNorm(channels, comm=comm), comm.threads
        x = np.ones((2, channels), np.float32)
        layer.backward(layer(x))  # until then headers go ahead
        comm.meet()
        before = threads.collectives, threads.nbytes
        comm.meet()
        layer(x)
        comm.meet()
        return threads.collectives - before[0], threads.nbytes - before[1]

    assert values(on_ranks(ranks, program)) == [(collectives, nbytes)] * ranks


def test_the_same_bits_on_all_ranks_whoever_is_late():
    x, dy, weight, bias = problem()
    cuts, seen = (0, 2, 6, 6, 12), set()
    for late in (None, lambda rank: 0.002 * rank, lambda rank: 0.002 * (4 - rank)):
        answers = step_on_ranks(cuts, x, dy, weight, bias, late, parameter_gradients="global")
        for _, g, state in answers:
            seen.add((bits(g.weight), bits(g.bias), *map(bits, state.values())))
    assert len(seen) == 1


# --- many steps -----------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_over_many_steps(momentum):
    """Against one process, and the bits of all ranks against each other."""
    batches = [problem((24, 6), seed=k)[0] for k in range(20)]
    whole = fastbn.BatchNorm1d(6, momentum=momentum, dtype=np.float64)
    for x in batches:
        whole(x)

    def program(comm):
        layer = SyncBatchNorm(6, momentum=momentum, comm=comm, dtype=np.float64)
        for k, x in enumerate(batches):
            cuts = (0, k, min(24, 2 * k), 24)  # empty ranks among them
            layer(*part(comm, cuts, x))
        return layer.state_dict()

    states = values(on_ranks(3, program))
    for name, expected in whole.state_dict().items():
        assert len({bits(state[name]) for state in states}) == 1
        np.testing.assert_allclose(states[0][name], expected, rtol=1e-12)


# --- which calls exchange what --------------------------------------------------------------------


def test_one_exchange_in_each_direction_and_none_in_evaluation():
    def program(comm):
        layer, seen = SyncBatchNorm(6, comm=comm), []

        def count():
            seen.append(comm.threads.collectives)
            comm.meet()  # nobody goes on before all have counted

        x = np.random.default_rng(comm.rank).normal(size=(4, 6)).astype(np.float32)
        count()
        layer.backward(layer(x))  # headers of both go ahead
        count()
        for call in (lambda: layer(x), lambda: layer.backward(x)):
            before = comm.threads.nbytes
            call()
            assert comm.threads.nbytes - before == 56 + 16 * 6
            count()
        layer.eval()
        if comm.rank == 1:  # alone
            y, cache = layer.forward_with_cache(x)
            layer.backward(y, cache)
            layer(x, out=x)
            with pytest.raises(RuntimeError, match="no training call"):
                layer.backward(x)
        count()
        return seen

    assert values(on_ranks(2, program)) == [[2, 6, 7, 8, 8]] * 2


def test_frozen_and_untracked_layers():
    x = problem()[0]

    def program(comm):
        (own,) = part(comm, (0, 5, 12), x)
        layer = SyncBatchNorm(6, track_running_stats=False, comm=comm, dtype=np.float64)
        trained = layer(own)
        alone = layer.eval()(own)  # with its own statistics, as torch's
        frozen = SyncBatchNorm(6, comm=comm).freeze()
        frozen(own)
        return trained, alone, int(frozen.num_batches_tracked)

    answers = values(on_ranks(2, program))
    trained = np.concatenate([answer[0] for answer in answers])
    expected = reference.forward(x, np.ones(6), np.zeros(6), EPS, 1)[0]
    np.testing.assert_allclose(trained, expected.astype(float), atol=1e-12)
    of_first = reference.forward(x[:5], np.ones(6), np.zeros(6), EPS, 1)[0]
    np.testing.assert_allclose(answers[0][1], of_first.astype(float), atol=1e-12)
    assert [answer[2] for answer in answers] == [0, 0]


def test_caches_of_several_forwards():
    """As functions too, in any order; other layers between."""
    batches, cuts = [problem(seed=k) for k in range(2)], (0, 5, 12)

    def program(comm):
        layer, other = (SyncBatchNorm(6, comm=comm, dtype=np.float64) for _ in "ab")
        caches = [layer.forward_with_cache(*part(comm, cuts, x))[1] for x, *_ in batches]
        assert "SyncCache of x, float64" in repr(caches[0])
        other(*part(comm, cuts, batches[0][0]))
        pairs = zip(batches, caches, strict=True)
        return [
            fastbn.batch_norm_backward(*part(comm, cuts, dy), cache).x
            for (_, dy, *_), cache in pairs
        ]

    answers = values(on_ranks(2, program))
    for k, (x, dy, _, _) in enumerate(batches):
        _, mean, var = reference.forward(x, np.ones(6), np.zeros(6), EPS, 1)
        expected = reference.backward(dy, x, mean, var, np.ones(6), EPS, 1, True)[0]
        found = np.concatenate([answer[k] for answer in answers])
        np.testing.assert_allclose(found, expected.astype(float), atol=1e-12)


def test_nothing_on_any_rank():
    def program(comm):
        layer = SyncBatchNorm(3, comm=comm)
        y = layer(np.zeros((0, 3, 4), np.float32))
        return y.shape, layer.backward(y).bias.tolist(), int(layer.num_batches_tracked)

    assert values(on_ranks(2, program)) == [((0, 3, 4), [0, 0, 0], 0)] * 2


def test_in_place():
    x, dy, weight, bias = problem()
    expected = step_on_ranks((0, 5, 12), x, dy, weight, bias, dtype=np.float64)

    def program(comm):
        own, gradient = (a.copy() for a in part(comm, (0, 5, 12), x, dy))
        layer = layer_of(comm, weight, bias, dtype=np.float64)
        y = np.empty_like(own)
        assert layer(own, out=y) is y
        assert layer.backward(gradient, out=gradient).x is gradient
        assert layer(own, out=own) is own
        return y, gradient, own

    for (y, dx, again), (y2, g, _) in zip(values(on_ranks(2, program)), expected, strict=True):
        assert bits(y) == bits(y2) == bits(again)
        assert bits(dx) == bits(g.x)


# --- copies, conversion, import -------------------------------------------------------------------


def test_pickle_and_copies():
    def program(comm):
        layer = SyncBatchNorm(3, comm=comm, activation="relu", parameter_gradients="global")
        x = np.random.default_rng(comm.rank).normal(size=(4, 3)).astype(np.float32)
        layer(x)
        loaded = pickle.loads(pickle.dumps(layer))
        assert loaded.comm is None
        assert repr(loaded) == repr(layer)
        assert bits(loaded.eval()(x)) == bits(layer.eval()(x))
        layer.train()
        with pytest.raises(RuntimeError, match=r"layer\.comm = MPI\.COMM_WORLD"):
            loaded.train()(x)
        loaded.comm = comm
        copies = [copy.deepcopy(layer), copy.copy(layer), loaded]
        assert all(new.comm is comm and new.weight is not layer.weight for new in copies)
        expected = layer(x)
        return [bits(new(x)) == bits(expected) for new in copies]

    assert values(on_ranks(2, program)) == [[True] * 3] * 2


def test_state_dicts_load_into_either():
    def program(comm):
        layer, plain = SyncBatchNorm(3, comm=comm), fastbn.BatchNorm1d(3)
        layer(np.random.default_rng(comm.rank).normal(size=(4, 3)).astype(np.float32))
        plain.load_state_dict(layer.state_dict())
        SyncBatchNorm(3, comm=comm).load_state_dict(plain.state_dict())
        return list(layer.state_dict())

    names = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    assert values(on_ranks(2, program)) == [names] * 2


Pair = namedtuple("Pair", ["first", "second"])


def test_convert():
    def program(comm):
        plain = fastbn.BatchNorm2d(
            3, eps=1e-3, momentum=None, bias=False, axis=-1, activation="relu", dtype=np.float64,
            on_nonfinite="skip",
        )  # fmt: skip
        plain.weight[...] = 2
        served = fastbn.BatchNorm1d(4).eval()
        frozen = fastbn.BatchNorm3d(5, affine=False, track_running_stats=False).freeze()
        other, group = object(), fastbn.GroupNorm(2, 4)
        network = OrderedDict(a=plain, b=[served, (other, plain)], c=Pair(frozen, {"d": group}))
        new = convert_sync_batchnorm(network, comm)
        assert network["a"] is plain
        assert type(new) is OrderedDict
        assert new["a"] is new["b"][1][1]
        assert new["b"][1][0] is other
        assert type(new["c"]) is Pair
        assert new["c"].second == {"d": group}
        for old, made in ((plain, new["a"]), (served, new["b"][0]), (frozen, new["c"].first)):
            assert type(made) is SyncBatchNorm
            assert repr(made) == repr(old).replace(type(old).__name__, "SyncBatchNorm")
            assert made.training == old.training
            assert made.weight is old.weight
            assert made.running_var is old.running_var
            assert made.num_batches_tracked is old.num_batches_tracked
        assert convert_sync_batchnorm(new, comm)["a"] is new["a"]
        single = convert_sync_batchnorm(served, comm, parameter_gradients="global")
        return single.parameter_gradients, new["c"].first.unfreeze().training

    assert values(on_ranks(2, program)) == [("global", True)] * 2


def test_nothing_imports_mpi4py_by_itself():
    code = (
        "import sys, fastbn; assert 'fastbn.distributed' not in sys.modules; "
        "import fastbn.distributed; assert 'mpi4py' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
