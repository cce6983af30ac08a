"""Whole checkpoints, folded: which norm goes where, and that the network computes the same."""

import json

import numpy as np
import pytest

import fastbn
from fastbn.cli import main

CHANNELS = {"conv1": (4, 3), "conv2": (6, 4), "downsample.0": (6, 3)}


def network(rng, *, weights=CHANNELS, norms=("bn1", "bn2", "downsample.1"), bias=False):
    """Arrays of 1x1 convolutions and batch norms, each convolution before its norm."""
    state = {}
    for (name, shape), norm in zip(weights.items(), norms, strict=True):
        state[f"block.{name}.weight"] = rng.normal(size=(*shape, 1, 1)).astype(np.float32)
        if bias:
            state[f"block.{name}.bias"] = rng.normal(size=shape[0]).astype(np.float32)
        bn = fastbn.BatchNorm2d(shape[0])
        bn.weight, bn.bias = rng.normal(1, 0.3, (2, shape[0])).astype(np.float32)
        for _ in range(3):
            bn(rng.normal(1, 2, (4, shape[0], 3, 3)).astype(np.float32))
        state |= bn.state_dict(prefix=f"block.{norm}.")
    return state


def names(pairs):
    return {pair.norm.removeprefix("block."): pair.layer.removeprefix("block.") for pair in pairs}


@pytest.mark.parametrize("bias", [False, True])
def test_a_residual_block_computes_the_same(rng, bias):
    state = network(rng, bias=bias)
    folded = fastbn.fold.fold_checkpoint(state)
    assert names(folded.pairs) == {"bn1": "conv1", "bn2": "conv2", "downsample.1": "downsample.0"}
    assert folded.left == []
    assert not any("bn" in name or "downsample.1" in name for name in folded.tensors)
    layers = fastbn.load_batch_norms(state)
    for norm, layer in names(folded.pairs).items():
        x = rng.normal(size=(2, CHANNELS[layer][1], 5, 5)).astype(np.float32)
        before = np.einsum("oi,nihw->nohw", state[f"block.{layer}.weight"][..., 0, 0], x)
        if bias:
            before += state[f"block.{layer}.bias"][:, None, None]
        right = layers[f"block.{norm}"](before)
        weight, added = (folded.tensors[f"block.{layer}.{n}"] for n in ("weight", "bias"))
        found = np.einsum("oi,nihw->nohw", weight[..., 0, 0], x) + added[:, None, None]
        np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-5 * np.abs(right).max())


def test_the_state_that_was_given_is_not_changed(rng):
    state = network(rng)
    before = {name: array.copy() for name, array in state.items()}
    fastbn.fold.fold_checkpoint(state)
    assert state.keys() == before.keys()
    assert all(np.array_equal(state[name], before[name]) for name in state)


def test_numbers_of_a_sequential_must_be_neighbours(rng):
    weights = {"0": (4, 3), "3": (6, 4)}
    folded = fastbn.fold.fold_checkpoint(network(rng, weights=weights, norms=("1", "5")))
    assert names(folded.pairs) == {"1": "0"}  # between 3 and 5 something stands
    assert [single.norm for single in folded.left] == ["block.5"]


def test_norms_before_their_convolutions_are_left(rng):
    """As in a residual network that normalizes first: bn1, conv1, bn2, conv2."""
    state = network(rng, weights={"conv1": (6, 4), "conv2": (6, 6)}, norms=("bn2", "bn3"))
    first = fastbn.BatchNorm2d(4)
    state = {**first.state_dict(prefix="block.bn1."), **state}
    folded = fastbn.fold.fold_checkpoint(state)
    assert names(folded.pairs) == {}
    assert "no layer of a fitting name" in folded.left[0].why


def test_a_file_that_is_sorted_by_name_says_less(rng, tmp_path):
    """There, one norm with another number of channels tells that all come first."""
    pytest.importorskip("safetensors")
    state = network(rng, weights={"conv1": (6, 4), "conv2": (6, 6)}, norms=("bn2x", "bn3x"))
    state = {name: a for name, a in state.items() if "x." not in name}
    for k, channels in ((1, 4), (2, 6)):
        state |= fastbn.BatchNorm2d(channels).state_dict(prefix=f"block.bn{k}.")
    fastbn.save(state, tmp_path / "first.safetensors")
    folded = fastbn.fold.fold_checkpoint(tmp_path / "first.safetensors")
    assert folded.pairs == []
    assert "may come before its convolution" in folded.left[-1].why
    equal = network(rng, weights={"conv1": (6, 6), "conv2": (6, 6)}, norms=("bn1", "bn2"))
    fastbn.save(equal, tmp_path / "equal.safetensors")  # may be either
    assert fastbn.fold.fold_checkpoint(tmp_path / "equal.safetensors").pairs == []
    assert len(fastbn.fold.fold_checkpoint(equal).pairs) == 2
    fastbn.save(network(rng), tmp_path / "usual.safetensors")
    assert len(fastbn.fold.fold_checkpoint(tmp_path / "usual.safetensors").pairs) == 3


def test_one_layer_with_several_norms_is_left(rng):
    """One of them is for other data, or an average: nothing says which the layer goes with."""
    state = network(rng, weights={"conv1": (4, 3)}, norms=("bn1",))
    for name in ("norm1", "bn1_aux"):
        state |= fastbn.BatchNorm2d(4).state_dict(prefix=f"block.{name}.")
    folded = fastbn.fold.fold_checkpoint(state)
    assert folded.pairs == []
    assert all("several norms" in single.why for single in folded.left)
    assert np.array_equal(folded.tensors["block.conv1.weight"], state["block.conv1.weight"])


def test_norms_that_stay_keep_their_settings(rng, tmp_path):
    state = network(rng, weights={"conv1": (4, 3)}, norms=("bn1",))
    tail = fastbn.BatchNorm2d(7, eps=1e-3)
    act = fastbn.BatchNorm2d(4, activation="relu")
    norms = {"block.bn1": fastbn.load_batch_norms(state)["block.bn1"], "tail": tail, "b2.bn1": act}
    arrays = {"block.conv1.weight": state["block.conv1.weight"],
              "b2.conv1.weight": state["block.conv1.weight"]}  # fmt: skip
    fastbn.save({**arrays, **norms}, tmp_path / "net.npz")
    folded = fastbn.fold.fold_checkpoint(tmp_path / "net.npz")
    assert names(folded.pairs) == {"bn1": "conv1"}
    assert folded.layers["tail"].eps == 1e-3
    assert "relu" in next(single.why for single in folded.left if single.norm == "b2.bn1")
    fastbn.save({**folded.tensors, **folded.layers}, tmp_path / "folded.npz")
    again = fastbn.load_batch_norms(tmp_path / "folded.npz")
    assert again.keys() == {"tail", "b2.bn1"}
    assert again["tail"].eps == 1e-3
    assert again["b2.bn1"].activation == "relu"


def test_errors_name_the_file(tmp_path):
    (tmp_path / "empty.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=r"empty\.pth: .*empty"):
        fastbn.fold.fold_checkpoint(tmp_path / "empty.pth")


def test_linear_and_transposed_layers(rng):
    state = {
        "fc1.weight": rng.normal(size=(4, 7)).astype(np.float32),
        **fastbn.BatchNorm1d(4).state_dict(prefix="bn1."),
        "up.deconv2.weight": rng.normal(size=(4, 5, 2, 2)).astype(np.float32),
        **fastbn.BatchNorm2d(5).state_dict(prefix="up.bn2."),
    }
    folded = fastbn.fold.fold_checkpoint(state)
    assert [pair.transposed for pair in folded.pairs] == [False, True]
    assert folded.tensors["up.deconv2.bias"].shape == (5,)


@pytest.mark.parametrize(
    ("weights", "norms", "left"),
    [
        ({"conv": (4, 3), "pointwise": (4, 4)}, ("bn", None), "pointwise may stand between"),
        ({"linear1": (6, 4), "linear2": (6, 6)}, ("norm1", None), "linear2 may stand between"),
        ({"upconv1.1": (6, 6)}, ("upconv1.2",), "may not have its 6 channels"),
    ],
)
def test_what_may_lie_between_or_be_transposed_is_left(rng, weights, norms, left):
    names_of = [norm or "other" for norm in norms]
    state = network(rng, weights=weights, norms=tuple(names_of))
    state = {name: a for name, a in state.items() if ".other." not in name}
    kernels = {name: a for name, a in state.items() if name.endswith("weight") and a.ndim > 1}
    state = {**kernels, **{name: a for name, a in state.items() if name not in kernels}}
    folded = fastbn.fold.fold_checkpoint(state)
    assert folded.pairs == []
    assert left in folded.left[0].why


def test_words_that_only_look_transposed(rng):
    folded = fastbn.fold.fold_checkpoint(
        network(rng, weights={"firstconv.0": (6, 6)}, norms=("firstconv.1",))
    )
    assert [pair.transposed for pair in folded.pairs] == [False]


def test_a_mapping_in_alphabetical_order_has_lost_its_order(rng):
    state = network(rng, weights={"conv1": (6, 6)}, norms=("bn1",))
    assert len(fastbn.fold.fold_checkpoint(state).pairs) == 1
    folded = fastbn.fold.fold_checkpoint({name: state[name] for name in sorted(state)})
    assert folded.pairs == []
    assert "does not keep the order" in folded.left[0].why


def test_a_pruned_layer_is_left(rng):
    state = network(rng, weights={"conv1": (6, 3)}, norms=("bn1",))
    state["block.conv1.bias_orig"] = np.ones(6, np.float32)
    assert "made of others" in fastbn.fold.fold_checkpoint(state).left[0].why


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_the_command(rng, tmp_path, suffix, capsys):
    pytest.importorskip("safetensors")
    np.savez(tmp_path / "net.npz", **network(rng))
    out = tmp_path / f"folded{suffix}"
    assert main(["fold", str(tmp_path / "net.npz"), "-o", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert len(said["folded"]) == 3
    found = fastbn.load_tensors(out)
    right = fastbn.fold.fold_checkpoint(tmp_path / "net.npz").tensors
    assert found.keys() == right.keys()
    assert all(np.array_equal(found[name], right[name]) for name in right)


def test_the_table_of_the_command(rng, tmp_path, capsys):
    np.savez(tmp_path / "net.npz", **network(rng))
    assert main(["fold", str(tmp_path / "net.npz"), "-o", str(tmp_path / "out.npz")]) == 0
    assert "3 batch norms folded, 0 left" in capsys.readouterr().out
    assert main(["fold", str(tmp_path / "net.npz"), "-o", str(tmp_path / "no" / "out.npz")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_a_damaged_network_is_not_folded_and_nothing_written(rng, tmp_path, capsys):
    state = network(rng)
    state["block.bn2.running_mean"][0] = np.nan
    np.savez(tmp_path / "net.npz", **state)
    assert main(["fold", str(tmp_path / "net.npz"), "-o", str(tmp_path / "out.npz"), "--json"]) == 2
    assert "block.bn2.running_mean" in capsys.readouterr().err
    assert not (tmp_path / "out.npz").exists()


def test_the_way_back_to_torch(tmp_path):
    torch = pytest.importorskip("torch", reason="compares with torch itself")
    nn = torch.nn
    model = nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU())
    x = torch.linspace(-3, 3, 2 * 3 * 6 * 6).reshape(2, 3, 6, 6)
    for _ in range(3):
        model(x)
    with torch.no_grad():
        right = model.eval()(x)
    torch.save(model.state_dict(), tmp_path / "net.pth")
    assert main(["fold", str(tmp_path / "net.pth"), "-o", str(tmp_path / "folded.npz")]) == 0
    model[0], model[1] = nn.Conv2d(3, 5, 3, bias=True), nn.Identity()
    arrays = fastbn.load_tensors(tmp_path / "folded.npz")
    model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    assert model.state_dict().keys() == dict(np.load(tmp_path / "folded.npz")).keys()
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), right, rtol=1e-5, atol=1e-5)
