"""State dicts: what torch loads is loaded, all or nothing, and a wrong prefix is soon mended."""

import pathlib

import numpy as np
import pytest

import fastbn
from tests.test_layers import assert_same_state, trained


def test_load_with_a_prefix_looks_at_its_own_keys_only():
    state = {**trained().state_dict("a.bn."), "a.conv.weight": np.zeros(9), "bn": 3}
    target = fastbn.BatchNorm2d(3)
    target.load_state_dict(state, prefix="a.bn.")
    assert target.num_batches_tracked == 1


def test_load_converts_the_dtype():
    state = {k: v.astype(np.float64) for k, v in trained().state_dict().items()}
    state["num_batches_tracked"] = 7
    target = fastbn.BatchNorm2d(3)
    target.load_state_dict(state)
    assert target.weight.dtype == np.float32
    assert target.num_batches_tracked == 7


def test_load_not_strict_takes_what_matches():
    state = trained().state_dict()
    del state["num_batches_tracked"]
    state["extra"] = np.zeros(3)
    target = fastbn.BatchNorm2d(3)
    result = target.load_state_dict(state, strict=False)
    assert result == ([], ["extra"])
    np.testing.assert_array_equal(target.weight, state["weight"])
    del state["running_var"]
    target = trained()
    result = target.load_state_dict(state, strict=False)
    assert result.missing_keys == ["running_var", "num_batches_tracked"]
    assert target.num_batches_tracked == 1  # a mean alone says nothing of how many batches


@pytest.mark.parametrize("strict", [True, False])
def test_a_missing_counter_starts_at_0(strict):
    """Files from before torch 0.4.1, from ONNX and hand-made ones have none."""
    state = trained(seed=1).state_dict("bn.")
    del state["bn.num_batches_tracked"]
    target = trained(seed=2, momentum=None)
    assert target.load_state_dict(state, "bn.", strict) == ([], [])
    assert target.num_batches_tracked == 0
    np.testing.assert_array_equal(target.running_mean, state["bn.running_mean"])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda s: s.pop("bias"), KeyError, "missing 'bias'"),
        (lambda s: s.update(gamma=np.zeros(3)), KeyError, "unexpected 'gamma'"),
        (lambda s: s.update(running_mean=np.zeros(4)), ValueError, "'running_mean' has shape (4,)"),
        (lambda s: s.update(weight=np.zeros((3, 1))), ValueError, "'weight' has shape (3, 1)"),
        (lambda s: s.update(weight=None), ValueError, "'weight' must hold a real number"),
        (lambda s: s.update(weight=["a"] * 3), ValueError, "'weight' must hold a real number"),
        (lambda s: s.update(weight=[[1], [2, 3], 4]), ValueError, "'weight'"),
        (lambda s: s.update(bias=np.zeros(3, complex)), ValueError, "'bias' must hold a real"),
        (
            lambda s: s.update(running_var=[1, np.nan, 1]),
            ValueError,
            "'running_var' holds negative",
        ),
        (lambda s: s.update(running_var=[1, -1e-9, 1]), ValueError, "'running_var' holds negative"),
        (lambda s: s.update(num_batches_tracked=1.5), ValueError, "must hold an integer"),
        (lambda s: s.update(num_batches_tracked=-1), ValueError, "must be 0 to 2**63 - 1"),
        (lambda s: s.update(num_batches_tracked=np.uint64(2**63 + 5)), ValueError, "2**63 - 1"),
        (lambda s: s.update(weight=[1e300] * 3), ValueError, "too large for float32"),
        (lambda s: s.update({3: 4}), TypeError, "keys of state must be strings"),
    ],
)
def test_a_load_that_fails_loads_nothing(change, error, message):
    state = trained(seed=1).state_dict()
    change(state)
    target = trained(seed=2)
    before = target.state_dict()
    with pytest.raises(error) as caught:
        target.load_state_dict(state)
    assert message in str(caught.value)
    assert_same_state(target.state_dict(), before)


def network(prefix="", blocks=2):
    """A state dict with the names and shapes of a ResNet."""
    state = {f"{prefix}conv1.weight": np.zeros((64, 3, 7, 7), np.float32)}
    names = {f"{prefix}bn1.": 64}
    for layer in range(4):
        for block in range(blocks):
            for k in (1, 2):
                names[f"{prefix}layer{layer + 1}.{block}.bn{k}."] = 64 << layer
    for name, channels in names.items():
        state |= fastbn.BatchNorm2d(channels).state_dict(name)
    return state


@pytest.mark.parametrize(
    ("state", "prefix", "first"),
    [
        (network(), "bn1", "'bn1.' or"),
        (network("module."), "bn1.", "'module.bn1.' or"),
        (network(), "", "'bn1.' or"),
        (network(), "layer1.bn1.", "'layer1.0.bn1.' or"),
        (network("module."), "layer1.1.bn2.", "'module.layer1.1.bn2.' or"),
        (network(), "model.layer1.1.bn2.", "'layer1.1.bn2.' or"),
        (trained().state_dict("layer1."), "", "'layer1.'?"),
    ],
)
def test_a_wrong_prefix_names_the_right_one(state, prefix, first):
    channels = state["layer1.weight"].size if "layer1.weight" in state else 64
    bn = fastbn.BatchNorm2d(channels)
    before = bn.state_dict()
    with pytest.raises(KeyError) as caught:
        bn.load_state_dict(state, prefix)
    message = caught.value.args[0]
    assert f"did you mean prefix={first}" in message
    assert f"missing '{prefix}weight', '{prefix}bias', '{prefix}running_mean' and 1 more" in message
    assert "nothing was loaded" in message
    assert "strict=False" not in message  # which would load nothing
    assert_same_state(bn.state_dict(), before)


class Uninitialized:
    """As torch's lazy parameters."""

    @property
    def shape(self):
        raise RuntimeError("no shape before the first call")


def test_values_that_have_no_shape_do_not_matter_to_a_message():
    state = {**network(), "lazy.weight": Uninitialized(), "odd.weight": [[1], [2, 3]]}
    with pytest.raises(KeyError, match=r"did you mean prefix='bn1\.'"):
        fastbn.BatchNorm2d(64).load_state_dict(state, "bn1")


def test_no_prefix_is_proposed_that_would_not_load():
    without = {k: v for k, v in network().items() if not k.endswith(".bias")}
    for state, bn in (
        (network(), fastbn.BatchNorm2d(64, affine=False)),
        (network(), fastbn.BatchNorm2d(64, track_running_stats=False)),
        (without, fastbn.BatchNorm2d(64)),
        ({"weight": np.ones(3), "fc.weight": np.ones((3, 3))}, fastbn.BatchNorm2d(3)),
    ):
        with pytest.raises(KeyError) as caught:
            bn.load_state_dict(state, "bn9.")
        assert "did you mean" not in str(caught.value)
    with pytest.raises(KeyError, match=r"is it that of a layer with other options"):
        fastbn.BatchNorm2d(64).load_state_dict(without, "bn1.")


def test_the_prefix_that_is_proposed_loads():
    bn = fastbn.BatchNorm2d(256)
    with pytest.raises(KeyError, match=r"did you mean prefix='layer3\.0\.bn1\.'"):
        bn.load_state_dict(network(), "layer3.bn1.")
    bn.load_state_dict(network(), "layer3.0.bn1.")


def test_a_message_is_short_however_large_the_model():
    bn = fastbn.BatchNorm2d(64)
    for state in (network(blocks=2), network(blocks=200)):
        with pytest.raises(KeyError) as caught:
            bn.load_state_dict(state)
        assert len(caught.value.args[0]) < 400
    assert "unexpected 'conv1.weight', 'bn1.weight', 'bn1.bias' and 8003 more" in str(caught.value)


def test_names_of_keras_are_translated():
    state = {f"bn/{name}": np.ones(3) for name in ("gamma", "beta", "moving_mean")}
    with pytest.raises(KeyError, match="'bn/gamma' looks like Keras; rename gamma to weight"):
        fastbn.BatchNorm2d(3).load_state_dict(state, "bn/")


def test_what_else_may_be_wrong_with_a_prefix():
    bn = fastbn.BatchNorm2d(48)
    with pytest.raises(KeyError, match=r"no prefix in it has a batch norm of shape \(48,\)"):
        bn.load_state_dict(network(), "bn1")
    whole = {"optimizer": {"step": 3}, "model": network(), "epoch": 3}
    with pytest.raises(KeyError, match=r"did you mean state\['model'\]\?"):
        fastbn.BatchNorm2d(64).load_state_dict(whole, "bn1.")
    with pytest.raises(KeyError, match="state has no keys at all"):
        bn.load_state_dict({})
    plain = fastbn.BatchNorm2d(64, affine=False)
    with pytest.raises(
        KeyError, match=r"is it that of a layer with other options.*strict=False loads what matches"
    ):
        plain.load_state_dict(network(), "bn1.")
    assert plain.load_state_dict(network(), "bn1.", strict=False).missing_keys == []
    nothing = fastbn.BatchNorm2d(64, affine=False, track_running_stats=False)
    with pytest.raises(
        KeyError, match=r"unexpected 'bn1\.weight'.*this layer has no arrays to load"
    ):
        nothing.load_state_dict(network(), "bn1.")


@pytest.mark.parametrize("path", ["resnet.pth", pathlib.Path("model.onnx")])
def test_a_path_is_told_how_to_become_arrays(path):
    told = rf"got a path, .*read the file first: fastbn\.load_tensors\('{path}'\)"
    with pytest.raises(TypeError, match=told):
        fastbn.BatchNorm2d(3).load_state_dict(path)


def test_what_is_no_mapping():
    with pytest.raises(TypeError, match="state must be a mapping of names to arrays, got list"):
        fastbn.BatchNorm2d(3).load_state_dict([1, 2])
    with pytest.raises(TypeError, match="prefix must be a string, got 3"):
        fastbn.BatchNorm2d(3).load_state_dict({}, 3)


def test_an_npz_file_is_a_mapping(tmp_path):
    source, target = trained(), fastbn.BatchNorm2d(3)
    np.savez(tmp_path / "bn.npz", **source.state_dict())
    with np.load(tmp_path / "bn.npz") as state:
        target.load_state_dict(state)
    assert_same_state(target.state_dict(), source.state_dict())
    again = fastbn.BatchNorm2d(3)
    again.load_state_dict(fastbn.load_tensors(tmp_path / "bn.npz"))
    assert_same_state(again.state_dict(), source.state_dict())


class Bfloat16:
    """As a torch tensor of bfloat16 on the CPU, which NumPy cannot read."""

    dtype = "torch.bfloat16"

    def __init__(self, values):
        self.values = np.asarray(values, np.float32)
        self.shape = self.values.shape

    def __array__(self, *args, **kwargs):
        raise TypeError("Got unsupported ScalarType BFloat16")

    def float(self):
        return self.values


def test_tensors_of_bfloat16_are_read():
    layer = fastbn.LayerNorm(3)
    layer.load_state_dict({"weight": Bfloat16([1, 2, 0.5]), "bias": Bfloat16([0, -1, 3])})
    assert (layer.weight.tolist(), layer.bias.tolist()) == ([1, 2, 0.5], [0, -1, 3])
    assert layer.weight.dtype == np.float32
    with pytest.raises(ValueError, match=r"'weight' has shape \(4,\)"):
        layer.load_state_dict({"weight": Bfloat16([1] * 4), "bias": Bfloat16([0, -1, 3])})


def test_a_network_of_bfloat16_loads_from_torch():
    torch = pytest.importorskip("torch")
    theirs = torch.nn.BatchNorm2d(3)
    theirs(torch.randn(4, 3, 2, 2))
    state = theirs.to(torch.bfloat16).state_dict()
    bn = fastbn.BatchNorm2d(3)
    bn.load_state_dict(state)
    np.testing.assert_array_equal(bn.running_var, state["running_var"].float().numpy())
    assert bn.num_batches_tracked == 1
