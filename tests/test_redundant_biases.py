"""Which biases a batch norm takes away, told from the numbers of networks whose answer is known."""

import numpy as np
import pytest

import fastbn
from fastbn import fold
from tests import reference, reference_fold


class Network:
    """Layers in a row, measured on data: a state dict in which the answer is known."""

    def __init__(self, rng, x):
        self.rng, self.x, self.state = rng, x, {}

    def conv(self, name, out, kernel=(1, 1), noise=1.0, **how):
        """A convolution with torch's initial weights, and a bias that noise has made larger."""
        bound = 1 / np.sqrt(self.x.shape[1] * np.prod(kernel))
        inputs = self.x.shape[1] // how.get("groups", 1)
        weight = self.rng.uniform(-bound, bound, (out, inputs, *kernel))
        bias = self.rng.uniform(-bound, bound, out) * noise
        self.x = reference_fold.conv(self.x, weight, bias, **how)
        return self.put(name, weight=weight, bias=bias)

    def transposed(self, name, out, kernel=(2, 2), **how):
        inputs = self.x.shape[1]
        weight = self.rng.normal(size=(inputs, out // how.get("groups", 1), *kernel))
        bias = self.rng.normal(size=out)
        self.x = reference_fold.conv_transposed(self.x, weight, bias, **how)
        return self.put(name, weight=weight, bias=bias)

    def norm(self, name):
        """With the statistics of a training's last batches: averages, of few samples each."""
        channels = self.x.shape[1]
        mean, var = np.zeros(channels), np.ones(channels)
        for _ in range(60):
            some = self.x[self.rng.permutation(len(self.x))[: len(self.x) // 4]]
            mean += 0.1 * (some.mean((0, 2, 3)) - mean)
            var += 0.1 * (some.var((0, 2, 3), ddof=1) - var)
        weight, bias = self.rng.normal(1, 0.2, channels), self.rng.normal(0, 0.3, channels)
        self.x = reference.normalize(self.x, mean, var, weight, bias, 1e-5, 1).astype(np.float64)
        state = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": var}
        return self.put(name, **{key: array.astype(np.float32) for key, array in state.items()})

    def relu(self):
        self.x = np.maximum(self.x, 0)
        return self

    def put(self, name, **arrays):
        self.state.update({f"{name}.{key}": np.asarray(v) for key, v in arrays.items()})
        return self


@pytest.fixture
def network(rng):
    return Network(rng, np.maximum(rng.normal(0.3, 1, (64, 6, 8, 8)), 0))


def answers(state):
    return {found.bias: (found.norm, found.certainty) for found in fold.redundant_biases(state)}


def test_a_network_of_convolutions_and_norms(network):
    """Every bias is found, with the norm behind it; the last one, that none follows, is not."""
    network.conv("conv1", 64, noise=3).norm("bn1").relu()
    network.conv("conv2", 64, (3, 3), padding=1).norm("bn2").relu()
    network.conv("depthwise", 64, (3, 3), groups=64, padding=1).norm("bn3").relu()
    network.conv("head", 64)
    found = answers(network.state)
    assert list(found) == ["conv1.bias", "conv2.bias", "depthwise.bias"]
    assert [norm for norm, _ in found.values()] == ["bn1", "bn2", "bn3"]
    assert found["conv1.bias"] == ("bn1", "measured")


def test_convolutions_first_and_norms_after_as_many_classes_are_written(network):
    """Neither order nor names say which norm is behind which convolution: the numbers do."""
    network.conv("a", 96, noise=3).norm("z").relu()
    network.conv("b", 16).relu().conv("c", 96, noise=3).norm("y")
    state = network.state
    shuffled = {key: state[key] for key in sorted(state)}  # a, b, c, y, z
    expected = {"a.bias": ("z", "measured"), "c.bias": ("y", "measured")}
    assert answers(shuffled) == expected
    renamed = {f"layer{key.replace('.', '1.')}": value for key, value in shuffled.items()}
    assert list(answers(renamed)) == ["layera1.bias", "layerc1.bias"]


def test_a_relu_in_between_is_seen(network):
    """Convolution, ReLU, norm: the same names and shapes, and the bias counts."""
    network.conv("conv1", 64, noise=3).relu().norm("bn1")
    network.conv("conv2", 64, (3, 3), padding=1).relu().norm("bn2")
    assert answers(network.state) == {}


def test_another_norm_is_no_partner(network):
    """A convolution whose output is returned, and beside it a norm with as many channels."""
    x = network.x
    network.conv("conv1", 64, noise=3)
    network.x = x
    network.conv("other", 64, noise=3).norm("bn").relu()
    state = {key: value for key, value in network.state.items() if not key.startswith("other")}
    assert answers(state) == {}


def test_leaving_biases_out_as_it_says_changes_nothing(rng, network):
    x = network.x
    network.conv("conv", 48, (3, 3), noise=5, padding=1).norm("bn")
    found, = fold.redundant_biases(network.state)  # fmt: skip
    bn = fastbn.BatchNorm2d(48).eval()
    bn.load_state_dict(network.state, prefix="bn.")
    weight, bias = network.state["conv.weight"], network.state["conv.bias"]
    wanted = bn(reference_fold.conv(x, weight, bias, padding=1))
    without = bn(reference_fold.conv(x, weight, None, padding=1))
    assert np.abs(without - wanted).max() == pytest.approx(found.effect, rel=1e-3)
    assert found.effect > 1
    bn.running_mean = found.running_mean
    np.testing.assert_allclose(
        bn(reference_fold.conv(x, weight, None, padding=1)), wanted, atol=1e-5
    )
    assert "conv.bias" in found.advice
    assert "bn.running_mean" in found.advice


def test_transposed_in_groups(network):
    network.transposed("up", 96, groups=2).norm("bn")
    assert answers(network.state)["up.bias"][0] == "bn"


def test_exact_statistics_are_measured_exactly(rng):
    weight, bias = rng.normal(size=(64, 8)), rng.normal(size=64)
    x = rng.normal(1, 2, (500, 8))
    bn = fastbn.BatchNorm1d(64, dtype=np.float64)
    fastbn.recalibrate(bn, [x @ weight.T + bias], progress=False)
    state = {"0.weight": weight, "0.bias": bias, **bn.state_dict("1.")}
    found, = fold.redundant_biases(state)  # fmt: skip
    assert found.certainty == "measured"
    assert abs(found.carried - 1) < 1e-6
    assert found.error < 1e-6
    half = {**state, "1.running_mean": (x @ weight.T).mean(0) + bias / 2}
    assert fold.redundant_biases(half) == []


def test_the_error_is_honest(rng):
    """Of 300 networks, the factor is within two standard errors of 1 in about 95 of 100."""
    inside = 0
    for _ in range(300):
        weight, bias = rng.normal(size=(64, 8)), rng.normal(size=64)
        mean = weight @ rng.normal(size=8) + bias + rng.normal(0, 0.3, 64)
        state = {
            "fc.weight": weight, "fc.bias": bias,
            "bn.running_mean": mean, "bn.running_var": np.full(64, 2.0),
        }  # fmt: skip
        found, = fold.redundant_biases(state)  # fmt: skip
        inside += abs(found.carried - 1) < 2 * found.error
    assert 0.9 < inside / 300 < 0.99


def test_untrained_and_small_networks_are_possible_at_most(rng):
    fc = {"fc.weight": rng.normal(size=(4, 3)), "fc.bias": rng.normal(size=4)}
    untrained = {**fc, **fastbn.BatchNorm1d(4).state_dict("bn.")}
    assert answers(untrained) == {"fc.bias": ("bn", "possible")}
    positive = {**fc, "bn.running_mean": np.ones(4), "bn.running_var": np.ones(4)}
    assert answers(positive) == {"fc.bias": ("bn", "possible")}
    signs = {**positive, "bn.running_mean": np.array([1, -1, 1, 1])}
    assert answers(signs) == {"fc.bias": ("bn", "likely")}
    apart = {**fc, "x.weight": np.ones((2, 2)), **fastbn.BatchNorm1d(4).state_dict("bn.")}
    assert answers(apart) == {}


def test_odd_state_dicts(rng):
    assert fold.redundant_biases({}) == []
    plain = {"weight": rng.normal(size=(4, 3)), "bias": rng.normal(size=4)}
    assert fold.redundant_biases(plain) == []  # no norm
    assert fold.redundant_biases({"bn.running_mean": 0.0, "bn.running_var": 1.0}) == []
    nan = {
        "fc.weight": np.full((40, 3), np.nan), "fc.bias": np.ones(40),
        "bn.running_mean": -np.ones(40), "bn.running_var": np.ones(40),
    }  # fmt: skip
    assert answers(nan) == {"fc.bias": ("bn", "likely")}
    zero = {**nan, "fc.weight": np.ones((40, 3)), "fc.bias": np.zeros(40)}
    found, = fold.redundant_biases(zero)  # fmt: skip
    assert (found.certainty, found.effect) == ("likely", 0)
    for wrong in ([], {1: np.ones(3)}):
        with pytest.raises(TypeError, match=r"state must be|keys of state"):
            fold.redundant_biases(wrong)
