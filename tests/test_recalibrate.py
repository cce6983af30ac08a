"""Running statistics taken anew are those of all batches in one array, or nothing has changed."""

import copy
import pickle
import threading

import ml_dtypes
import numpy as np
import pytest

import fastbn
from fastbn import ChannelStats, recalibrate
from tests import reference

QUIET = {"progress": False}


def state_of(*layers):
    """Everything that a layer is: arrays, settings and modes."""
    return [(pickle.dumps(layer), layer.training) for layer in layers]


def exact(batches, axis=1):
    """Mean and unbiased variance of the concatenation, in long double."""
    x = np.concatenate([np.asarray(b, np.longdouble) for b in batches])
    mean, var = reference.mean_and_var(x, axis)
    count = x.size // x.shape[axis]
    return mean.astype(float), (var * count / (count - 1)).astype(float)


def assert_statistics(bn, batches, rtol=1e-12, axis=1):
    mean, var = exact(batches, axis)
    np.testing.assert_allclose(bn.running_mean, mean, rtol=rtol, atol=rtol * np.sqrt(var).max())
    np.testing.assert_allclose(bn.running_var, var, rtol=rtol)


@pytest.mark.parametrize("kind", [fastbn.BatchNorm1d, fastbn.BatchRenorm1d])
@pytest.mark.parametrize("sizes", [(4, 4, 4), (7, 1, 2, 30), (1, 1), (2,)])
def test_statistics_are_those_of_the_concatenation(sizes, kind, rng):
    batches = [rng.normal(3 * k, 1 + k, (n, 5, 6)) for k, n in enumerate(sizes)]
    bn = kind(5, dtype=np.float64)
    stats = recalibrate(bn, batches, **QUIET)
    assert_statistics(bn, batches)
    assert isinstance(stats, ChannelStats)
    assert stats.count.tolist() == [6 * sum(sizes)] * 5
    np.testing.assert_array_equal(stats.var(ddof=1), bn.running_var)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_dtypes(dtype, rng):
    batches = [rng.normal(k, 2, (9, 3, 4, 5)).astype(dtype) for k in range(4)]
    bn = fastbn.BatchNorm2d(3)
    recalibrate(bn, batches, **QUIET)
    assert bn.running_mean.dtype == bn.running_var.dtype == np.float32
    assert_statistics(bn, batches, rtol=1e-6)


def test_means_far_from_zero_do_not_cancel(rng):
    """As E[x**2] - E[x]**2 does, in whatever precision: it has no digit left here."""
    batches = [rng.normal(1e6 + k, 1e-3, (50, 3)) for k in (0, 1e-3, 2e-3)]
    bn = fastbn.BatchNorm1d(3, dtype=np.float64)
    recalibrate(bn, batches, **QUIET)
    assert_statistics(bn, batches, rtol=1e-6)


def test_channels_last_and_single_samples(rng):
    batches = [rng.normal(1, 2, (n, 4, 5, 3)) for n in (2, 3)]
    bn = fastbn.BatchNorm2d(3, axis=-1, dtype=np.float64)
    recalibrate(bn, batches, **QUIET)
    assert_statistics(bn, batches, axis=-1)
    one = fastbn.BatchNorm2d(3, dtype=np.float64)
    samples = rng.normal(1, 2, (7, 3, 4, 5))
    recalibrate(one, list(samples), **QUIET)
    assert_statistics(one, [samples])


def test_order_and_cut_do_not_matter(rng):
    x = rng.normal(5, 2, (60, 4, 3))
    found = []
    for cuts in ([10, 20, 50], [1, 2, 59], []):
        batches = np.split(x, cuts)
        for some in (batches, batches[::-1]):
            bn = fastbn.BatchNorm1d(4, dtype=np.float64)
            recalibrate(bn, some, **QUIET)
            found.append((bn.running_mean, bn.running_var))
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-13)


def test_what_else_changes_and_what_does_not(rng):
    batches = [rng.normal(size=(6, 3)).astype(np.float32) for _ in range(4)]
    empty = np.empty((0, 3), np.float32)
    for momentum in (0.1, None):
        for prepare in (
            fastbn.BatchNorm1d.train,
            fastbn.BatchNorm1d.eval,
            fastbn.BatchNorm1d.freeze,
        ):
            bn = prepare(fastbn.BatchNorm1d(3, momentum=momentum))
            for _ in range(9):
                bn(batches[0] - 50)
            bn.weight[:] = 2
            mode, arrays = bn.training, (bn.running_mean, bn.running_var)
            recalibrate(bn, [*batches, empty], **QUIET)
            assert bn.training == mode
            assert bn.running_mean is arrays[0]  # the layer's own arrays, written into
            assert bn.running_var is arrays[1]
            assert_statistics(bn, batches, rtol=1e-5)
            assert bn.num_batches_tracked == 4
            assert bn.weight.tolist() == [2, 2, 2]
            with pytest.raises(RuntimeError, match="no training call"):
                bn.backward(batches[0])
    bn = fastbn.BatchNorm1d(3, momentum=None, dtype=np.float64)
    recalibrate(bn, batches[:3], **QUIET)
    before = bn.running_mean.copy()
    bn(batches[3])  # goes on from there, as the fourth batch
    wanted = before + (batches[3].mean(0, np.float64) - before) / 4
    np.testing.assert_allclose(bn.running_mean, wanted, rtol=1e-6)


def test_the_schedule_of_renorm_goes_on():
    bn = fastbn.BatchRenorm1d(1)
    bn.num_batches_tracked[...] = 7000
    recalibrate(bn, [np.array([[1.0], [2.0]])], **QUIET)
    assert bn.num_batches_tracked == 7000


# --- several layers -------------------------------------------------------------------------------


class Network:
    """Three norms, the last two beside each other, with what is around them."""

    def __init__(self, rng):
        self.w1, self.w2, self.w3 = (rng.normal(size=s) for s in ((4, 6), (6, 5), (6, 5)))
        self.norms = [fastbn.BatchNorm1d(n, dtype=np.float64) for n in (6, 5, 5)]
        self.norms[1].activation = "silu"
        for bn in self.norms:
            bn.weight[:] = rng.normal(1, 0.3, bn.num_features)
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        one, two, three = self.norms
        h = np.maximum(one(x @ self.w1), 0)
        shortcut = three(h @ self.w3)
        return two(h @ self.w2, residual=shortcut)

    def seen(self, x):
        """What goes into each of them in evaluation, by the oracle."""
        arrays = [bn.state_dict() for bn in self.norms]
        first = x @ self.w1
        h = reference.normalize(
            first, *(arrays[0][k] for k in ("running_mean", "running_var", "weight", "bias")),
            self.norms[0].eps, 1,
        )  # fmt: skip
        h = np.maximum(h, 0).astype(np.float64)
        return first, h @ self.w2, h @ self.w3


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_layers_in_sequence_get_the_statistics_of_what_evaluation_feeds_them(order, rng):
    net = Network(rng)
    batches = [rng.normal(2, 3, (n, 4)) for n in (40, 40, 7)]
    layers = [net.norms[k] for k in order]
    found = recalibrate(layers, batches, forward=net, **QUIET)
    assert net.calls == 9  # a pass for each layer
    inputs = [net.seen(x) for x in batches]
    for k, bn in enumerate(net.norms):
        assert_statistics(bn, [each[k] for each in inputs], rtol=1e-9)
        assert bn.num_batches_tracked == 3
    for k, stats in zip(order, found, strict=True):
        np.testing.assert_allclose(stats.mean, net.norms[k].running_mean, rtol=1e-13)


class Chain:
    """Norms one behind the other; a batch says which it goes through, in which order."""

    def __init__(self, rng, count=3):
        self.norms = [fastbn.BatchNorm1d(4, dtype=np.float64) for _ in range(count)]
        self.weights = rng.normal(size=(count, 4, 4))

    def __call__(self, item):
        return self.inputs(item, lambda k, x: self.norms[k](x))

    def inputs(self, item, norm, seen=None):
        """What comes out; and into ``seen``, what goes into each norm."""
        way, x = item
        for k in way:
            x = np.abs(x @ self.weights[k])
            if seen is not None:
                seen[k].append(x)
            x = norm(k, x)
        return x

    def seen(self, batches):
        """What goes into each of them in evaluation, by the oracle."""
        states = [bn.state_dict() for bn in self.norms]
        found = [[] for _ in self.norms]

        def norm(k, x):
            arrays = (states[k][n] for n in ("running_mean", "running_var", "weight", "bias"))
            return reference.normalize(x, *arrays, 1e-5, 1).astype(np.float64)

        for item in batches:
            self.inputs(item, norm, found)
        return found


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
@pytest.mark.parametrize(
    "ways",
    [
        [(1, 2), (0, 1, 2)],  # the first batch bypasses the first layer
        [(2,), (1, 2), (0, 1, 2), (0, 2)],
        [(2,), (1,), (0, 1), (1, 2), (2,)],
        [(0, 2), (1, 2), (0, 1)],
        [(0, 1, 2, 0, 1), (1, 2)],  # called twice: the first call counts
    ],
)
def test_batches_that_bypass_layers(ways, order, rng):
    """The order of layers is that of all batches, not of the first."""
    net = Chain(rng)
    batches = [(way, rng.normal(size=(30, 4))) for way in ways]
    layers = [net.norms[k] for k in order]
    recalibrate(layers, batches, forward=net, **QUIET)
    if len(set(ways[0])) < len(ways[0]):
        return  # what depends on itself has no exact statistics
    for bn, inputs in zip(net.norms, net.seen(batches), strict=True):
        assert_statistics(bn, inputs, rtol=1e-9)
        assert bn.num_batches_tracked == len(inputs)


def test_some_of_the_layers_of_a_network(rng):
    """The others stay, and do what they always do."""
    net = Network(rng)
    batches = [rng.normal(2, 3, (n, 4)) for n in (40, 7)]
    net.norms[0].eval()
    others = state_of(net.norms[0], net.norms[2].eval())
    recalibrate(net.norms[1], batches, forward=net, **QUIET)
    assert net.calls == 2
    assert_statistics(net.norms[1], [net.seen(x)[1] for x in batches], rtol=1e-9)
    assert state_of(net.norms[0], net.norms[2]) == others


def test_a_layer_that_is_called_twice_gets_both(rng):
    bn, x = fastbn.BatchNorm1d(3, dtype=np.float64), rng.normal(size=(8, 3))
    recalibrate(bn, [x], forward=lambda x: (bn(x), bn(x + 5)), **QUIET)
    assert_statistics(bn, [x, x + 5])
    assert bn.num_batches_tracked == 2


def test_ways_to_call_a_layer(rng):
    """With a cache, into an output, with a mask, on a masked array."""
    x, out = rng.normal(size=(8, 3)), np.empty((8, 3))
    there = np.arange(8)[:, None] < 5
    bn = fastbn.BatchNorm1d(3, dtype=np.float64)
    old = copy.deepcopy(bn).eval()
    calls = {
        "cache": lambda x: bn.forward_with_cache(x)[0],
        "out": lambda x: bn(x, out=out),
        "mask": lambda x: bn(x, mask=there),
        "masked array": lambda x: bn(np.ma.masked_array(x, np.broadcast_to(~there, x.shape))),
        "after eval": lambda x: bn.eval()(x),
        "after train": lambda x: bn.train()(x),
    }
    for name, call in calls.items():
        bn.reset_running_stats()
        seen = []
        recalibrate(bn, [x], forward=lambda x, call=call, seen=seen: seen.append(call(x)), **QUIET)
        assert_statistics(bn, [x[:5] if name.startswith("mask") else x])
        np.testing.assert_allclose(np.asarray(seen[0]), old(x), rtol=1e-12)


def test_forward_takes_whatever_batches_hold(rng):
    bn = fastbn.BatchNorm1d(3, dtype=np.float64)
    data = [{"x": rng.normal(size=(4, 3)), "label": k} for k in range(3)]
    recalibrate(bn, data, forward=lambda item: bn(item["x"]), **QUIET)
    assert_statistics(bn, [item["x"] for item in data])


def test_a_subclass_that_does_more(rng):
    class Twice(fastbn.BatchNorm1d):
        def __call__(self, x, **how):
            return super().__call__(2 * x, **how)

    bn, x = Twice(3, dtype=np.float64), rng.normal(size=(8, 3))
    recalibrate(bn, [x], **QUIET)
    assert_statistics(bn, [2 * x])


# --- what batches may be --------------------------------------------------------------------------


def test_a_generator_does_for_one_layer(rng):
    batches = [rng.normal(size=(4, 3)) for _ in range(3)]
    for source in (iter(batches), (b for b in batches), lambda: iter(batches), tuple(batches)):
        bn = fastbn.BatchNorm1d(3, dtype=np.float64)
        recalibrate(bn, source, **QUIET)
        assert_statistics(bn, batches)


def test_several_layers_need_more_than_a_generator(rng):
    net = Network(rng)
    batches = [rng.normal(size=(20, 4)) for _ in range(2)]
    before = state_of(*net.norms)
    with pytest.raises(TypeError, match=r"3 passes .*generator can be read once.*lambda"):
        recalibrate(net.norms, (b for b in batches), forward=net, **QUIET)
    once = iter(batches)
    with pytest.raises(ValueError, match="gave nothing in a second pass"):
        recalibrate(net.norms, lambda: once, forward=net, **QUIET)
    assert state_of(*net.norms) == before
    recalibrate(net.norms, lambda: (b for b in batches), forward=net, **QUIET)
    assert_statistics(net.norms[0], [net.seen(x)[0] for x in batches])


# --- around it ------------------------------------------------------------------------------------


def test_progress(capsys, monkeypatch, rng):
    batches = [rng.normal(size=(20, 4)) for _ in range(3)]
    monkeypatch.setattr("fastbn._system.progress._LOG", 0)
    net = Network(rng)
    recalibrate(net.norms, batches, forward=net)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 9
    assert lines[0] == "recalibrating, layer 1 of 3: 33%"
    assert lines[-1] == "recalibrating, layer 3 of 3: 100%"
    recalibrate(net.norms[0], iter(batches), forward=net)  # nobody knows how many
    recalibrate(net.norms[0], batches, forward=net, progress=False)
    assert capsys.readouterr().err == ""
    recalibrate(net.norms, lambda: iter(batches), forward=net)  # known after the first pass
    assert len(capsys.readouterr().err.splitlines()) == 6


def test_other_threads_evaluate_what_is_not_recalibrated(rng):
    """A layer is watched, not the process."""
    other, x = fastbn.BatchNorm1d(3).eval(), rng.normal(size=(50, 3))
    wanted, got = other(x), []
    thread = threading.Thread(target=lambda: got.extend(other(x) for _ in range(20)))
    bn = fastbn.BatchNorm1d(3)
    thread.start()
    recalibrate(bn, [x] * 20, **QUIET)
    thread.join()
    for y in got:
        np.testing.assert_array_equal(y, wanted)
    assert other.num_batches_tracked == 0
