"""What is told of a checkpoint that is folded; and what a pair that fails does to the others."""

import json

import numpy as np
import pytest

import fastbn
from fastbn.cli import main
from tests.test_fold_checkpoint import network

fold_checkpoint = fastbn.fold.fold_checkpoint


def folded_into(found):
    return {pair.norm: pair.layer for pair in found.pairs}


def norm(rng, name, channels):
    """A state dict of a batch norm that has something to fold."""
    bn = fastbn.BatchNorm2d(channels)
    bn.weight, bn.bias = rng.normal(1, 0.3, (2, channels)).astype(np.float32)
    bn(rng.normal(1, 2, (4, channels, 3, 3)).astype(np.float32))
    return bn.state_dict(f"{name}.")


def kernel(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


# --- pairs ----------------------------------------------------------------------------------------


def test_a_pair_that_names_do_not_tell(rng):
    state = {"stem.weight": kernel(rng, 6, 3, 1, 1), **norm(rng, "after", 6)}
    assert fold_checkpoint(state).pairs == []
    right = fastbn.fold.fold_conv_bn(
        state["stem.weight"], None, fastbn.load_batch_norms(state)["after"]
    )
    for given in ("stem.weight", "stem"):
        found = fold_checkpoint(state, pairs={"after": given})
        assert folded_into(found) == {"after": "stem"}
        assert found.tensors.keys() == {"stem.weight", "stem.bias"}
        np.testing.assert_array_equal(found.tensors["stem.weight"], right.weight)
        np.testing.assert_array_equal(found.tensors["stem.bias"], right.bias)


def test_a_pair_comes_before_what_names_say(rng):
    """Here conv1 belongs to another norm than its number says."""
    state = {
        "conv1.weight": kernel(rng, 6, 3, 1, 1), "conv2.weight": kernel(rng, 6, 6, 1, 1),
        **norm(rng, "bn1", 6), **norm(rng, "last", 6),
    }  # fmt: skip
    assert folded_into(fold_checkpoint(state)) == {}  # conv2 may stand between
    found = fold_checkpoint(state, pairs={"last": "conv1", "bn1": "conv2.weight"})
    assert folded_into(found) == {"last": "conv1", "bn1": "conv2"}
    state.pop("conv2.weight")
    assert folded_into(fold_checkpoint(state)) == {"bn1": "conv1"}
    found = fold_checkpoint(state, pairs={"last": "conv1"})
    assert folded_into(found) == {"last": "conv1"}
    assert found.left == [("bn1", "pairs gives conv1 to last")]


def test_a_pair_of_a_weight_that_is_made_of_others_is_refused(rng):
    state = {"stem.weight": kernel(rng, 6, 3, 1, 1), "stem.bias_orig": np.ones(6, np.float32)}
    with pytest.raises(ValueError, match=r"pairs gives 'a' to 'stem', and .* made of others"):
        fold_checkpoint({**state, **norm(rng, "a", 6)}, pairs={"a": "stem"})


def test_an_activation_is_not_lost_to_a_pair(rng, tmp_path):
    layer = fastbn.BatchNorm2d(6, activation="relu")
    fastbn.save({"stem.weight": kernel(rng, 6, 3, 1, 1), "b": layer}, tmp_path / "x.npz")
    with pytest.raises(ValueError, match=r"x\.npz: pairs names 'b', and its activation, relu"):
        fold_checkpoint(tmp_path / "x.npz", pairs={"b": "stem"})


def test_channels_last_norms_can_be_paired(rng, tmp_path):
    """Their neighbours are not guessed, because kernels of Keras may look like torch's."""
    layer = fastbn.BatchNorm2d(6, axis=-1)
    fastbn.save({"conv1.weight": kernel(rng, 6, 3, 1, 1), "bn1": layer}, tmp_path / "x.npz")
    assert "channels last" in fold_checkpoint(tmp_path / "x.npz").left[0].why
    found = fold_checkpoint(tmp_path / "x.npz", pairs={"bn1": "conv1"})
    assert folded_into(found) == {"bn1": "conv1"}


# --- skip and transposed --------------------------------------------------------------------------


def test_norms_that_are_skipped_stay(rng):
    state = network(rng)
    found = fold_checkpoint(state, skip=["block.bn2"])
    assert folded_into(found).keys() == {"block.bn1", "block.downsample.1"}
    assert found.left == [("block.bn2", "skip names it")]
    assert found.layers.keys() == {"block.bn2"}
    assert np.array_equal(found.tensors["block.conv2.weight"], state["block.conv2.weight"])


@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_convolution_that_shapes_do_not_tell(groups, rng):
    state = {"conv1.weight": kernel(rng, 6, 6 // groups, 2, 2), **norm(rng, "bn1", 6)}
    bn = fastbn.load_batch_norms(state)["bn1"]
    for told, transposed in (
        (None, False),
        ([], False),
        (["conv1"], True),
        ({"conv1.weight"}, True),
    ):
        found = fold_checkpoint(state, transposed=told)
        right = fastbn.fold.fold_conv_bn(
            state["conv1.weight"], None, bn, transposed=transposed,
            groups=groups if transposed else 1,
        )  # fmt: skip
        (pair,) = found.pairs
        assert pair.transposed == transposed
        assert ("not transposed" in pair.assumed) == (told is None and groups == 1)
        np.testing.assert_array_equal(found.tensors["conv1.weight"], right.weight)


def test_who_says_which_are_transposed_has_said_which_are_not(rng):
    state = {
        "a.deconv1.weight": kernel(rng, 4, 6, 2, 2), **norm(rng, "a.bn1", 6),
        "b.conv1.weight": kernel(rng, 6, 6, 2, 2), **norm(rng, "b.bn1", 6),
        "b.up_conv2.weight": kernel(rng, 6, 6, 2, 2), **norm(rng, "b.bn2", 6),
    }  # fmt: skip
    assert folded_into(fold_checkpoint(state)) == {"a.bn1": "a.deconv1"}
    found = fold_checkpoint(state, transposed=["b.up_conv2"])
    assert {pair.layer: pair.transposed for pair in found.pairs} == {
        "a.deconv1": True, "b.conv1": False, "b.up_conv2": True,
    }  # fmt: skip
    found = fold_checkpoint(state, transposed=["b.conv1"])
    assert {pair.layer: pair.transposed for pair in found.pairs} == {
        "a.deconv1": True, "b.conv1": True, "b.up_conv2": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("hints", "error", "message"),
    [
        ({"pairs": {"block.bn9": "block.conv1"}}, ValueError, r"pairs .*'block\.bn9'.*block\.bn1"),
        ({"pairs": {"block.bn1": "block.conv9"}}, ValueError, r"'block\.conv9'.*block\.conv1"),
        ({"pairs": {"block.bn1": "block.conv1.bias"}}, ValueError, r"'block\.conv1\.bias'"),
        ({"skip": ["block.conv1"]}, ValueError, r"skip .*'block\.conv1'.*no batch norm"),
        (
            {"transposed": ["block.bn"]},
            ValueError,
            r"transposed .*'block\.bn'.*no weight of",
        ),
        (
            {"pairs": {"block.bn1": "block.conv1", "block.bn2": "block.conv1.weight"}},
            ValueError,
            r"pairs gives block\.conv1 to both 'block\.bn1' and 'block\.bn2'",
        ),
        (
            {"pairs": {"block.bn1": "block.conv1"}, "skip": ["block.bn1"]},
            ValueError,
            r"both pairs and skip name 'block\.bn1'",
        ),
        ({"pairs": [("block.bn1", "block.conv1")]}, TypeError, "pairs must be a mapping"),
        ({"pairs": {"block.bn1": 3}}, TypeError, "pairs must be a mapping of .*got 3"),
        ({"skip": "block.bn1"}, TypeError, r"skip=\['block\.bn1'\]"),
        ({"transposed": [3]}, TypeError, "transposed must be names, got 3"),
        ({"skip": 3}, TypeError, "skip must be names, got int"),
    ],
)
def test_mistakes(hints, error, message, rng):
    with pytest.raises(error, match=message):
        fold_checkpoint(network(rng), **hints)


# --- what one pair does not do to the others ------------------------------------------------------


def test_a_pair_that_fails_is_left_and_the_others_are_folded(rng):
    state = network(rng)
    right = fold_checkpoint(state).tensors
    state["block.conv1.weight"] = np.ones((4, 3, 1, 1), np.int8)
    state["block.bn2.weight"][:] = 1e5
    state["block.conv2.weight"] = state["block.conv2.weight"].astype(np.float16)
    found = fold_checkpoint(state)
    assert folded_into(found) == {"block.downsample.1": "block.downsample.0"}
    why = dict(found.left)
    assert "int8" in why["block.bn1"]
    assert "does not fit float16" in why["block.bn2"]
    assert list(why) == ["block.bn1", "block.bn2"]
    for name in ("block.conv1.weight", "block.conv2.weight"):
        assert np.array_equal(found.tensors[name], state[name])
    assert not {"block.conv1.bias", "block.conv2.bias"} & found.tensors.keys()
    name = "block.downsample.0.weight"
    np.testing.assert_array_equal(found.tensors[name], right[name])
    assert found.layers.keys() == {"block.bn1", "block.bn2"}


@pytest.mark.parametrize(
    ("weight", "hints", "message"),
    [
        (
            (4, 6, 1, 1),
            {},
            r"6 channels of input, not of output.*fold_bn_conv.*transposed=\['c'\]",
        ),
        ((4, 6, 1, 1), {"transposed": []}, r"6 channels of input.*transposed=\['c'\] .*says so"),
        ((6, 4, 1, 1), {"transposed": ["c"]}, "leave it out of transposed"),
        ((5, 5, 1, 1), {}, "num_features=6"),
        ((5, 6), {}, "c cannot take it: .*num_features=6"),
        ((6, 6, 1, 1), {"dtype": np.int8}, "c cannot take it: .*int8"),
    ],
)
def test_a_pair_that_is_named_and_cannot_be_folded_is_refused(weight, hints, message, rng):
    state = {"c.weight": kernel(rng, *weight), **norm(rng, "n", 6), **network(rng)}
    hints = dict(hints)
    state["c.weight"] = state["c.weight"].astype(hints.pop("dtype", np.float32))
    with pytest.raises(ValueError, match=f"'n'.*{message}") as caught:
        fold_checkpoint(state, pairs={"n": "c"}, **hints)
    assert "transposed=True" not in str(caught.value)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_pair_does_not_say_whether_its_convolution_is_transposed(groups, rng):
    """Without pairs, its name refuses it; whoever says the pair has not said that it is usual."""
    state = {"deconv1.weight": kernel(rng, 6, 6 // groups, 2, 2), **norm(rng, "bn1", 6)}
    assert fold_checkpoint(state).pairs == []
    with pytest.raises(ValueError, match=r"transposed=\['deconv1'\] .*says that it is"):
        fold_checkpoint(state, pairs={"bn1": "deconv1"})
    for told in ([], ["deconv1"]):
        (pair,) = fold_checkpoint(state, pairs={"bn1": "deconv1"}, transposed=told).pairs
        assert pair.transposed == bool(told)
    state["deconv1.weight"] = kernel(rng, 4, 6, 2, 2)
    (pair,) = fold_checkpoint(state, pairs={"bn1": "deconv1"}).pairs
    assert pair.transposed
    state["deconv1.weight"] = kernel(rng, 6, 4, 2, 2)  # 6 outputs of groups of 4 there cannot be
    (pair,) = fold_checkpoint(state, pairs={"bn1": "deconv1"}).pairs
    assert not pair.transposed


def test_names_may_have_what_wrappers_put_before_them(rng):
    state = {f"module.{name}": array for name, array in network(rng).items()}
    found = fold_checkpoint(
        state, pairs={"module.block.bn1": "module.block.conv1.weight"},
        skip=["module.block.bn2"], transposed=["module.block.conv2"],
    )  # fmt: skip
    assert folded_into(found) == {
        "block.bn1": "block.conv1", "block.downsample.1": "block.downsample.0"
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"pairs names 'block\.bn1' twice"):
        fold_checkpoint(
            state, pairs={"block.bn1": "block.conv1", "module.block.bn1": "block.conv2"}
        )


def test_an_eps_that_is_in_no_file(rng, tmp_path):
    state = network(rng)
    assert fold_checkpoint(state).assumed_eps == (1e-5,)
    assert fold_checkpoint(state, eps=1e-3).assumed_eps == ()
    arrays = {name: array for name, array in state.items() if array.ndim == 4}
    fastbn.save({**arrays, **fastbn.load_batch_norms(state)}, tmp_path / "x.npz")
    assert len(fold_checkpoint(tmp_path / "x.npz", pairs={"block.bn1": "block.conv1"}).pairs) > 0
    assert fold_checkpoint(tmp_path / "x.npz").assumed_eps == ()
    left = {name: array for name, array in state.items() if "bn" in name}
    assert fold_checkpoint(left).assumed_eps == ()  # nothing was folded


@pytest.mark.parametrize("name", ["embed", "emb", "wte", "token_table", "tok_embeddings", "vocab"])
def test_an_embedding_is_no_linear_layer(name, rng):
    state = {f"{name}.0.weight": kernel(rng, 4, 4), **norm(rng, f"{name}.1", 4)}
    found = fold_checkpoint(state)
    assert found.pairs == []
    assert f"{name}.0 may be an embedding" in found.left[0].why
    assert len(fold_checkpoint(state, pairs={f"{name}.1": f"{name}.0"}).pairs) == 1
    with_bias = {f"{name}.0.bias": np.ones(4, np.float32), **state}
    assert len(fold_checkpoint(with_bias).pairs) == 1
    patches = {**state, f"{name}.0.weight": kernel(rng, 4, 3, 2, 2)}
    assert len(fold_checkpoint(patches).pairs) == 1


def test_a_word_that_only_holds_the_letters(rng):
    state = {"ensemble.0.weight": kernel(rng, 4, 4), **norm(rng, "ensemble.1", 4)}
    assert len(fold_checkpoint(state).pairs) == 1


# --- the command ----------------------------------------------------------------------------------


def test_the_options_of_the_command(rng, tmp_path, capsys):
    state = {
        "stem.weight": kernel(rng, 6, 3, 1, 1), **norm(rng, "after", 6),
        "conv1.weight": kernel(rng, 6, 6, 1, 1), **norm(rng, "bn1", 6),
        "conv2.weight": kernel(rng, 6, 6, 1, 1), **norm(rng, "bn2", 6),
    }  # fmt: skip
    np.savez(tmp_path / "net.npz", **state)
    files = str(tmp_path / "net.npz"), "-o", str(tmp_path / "out.npz")
    options = ("--pair", "after=stem", "--skip", "bn2", "--transposed", "conv1")
    assert main(["fold", *files, *options, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [(p["norm"], p["layer"], p["transposed"]) for p in said["folded"]] == [
        ("after", "stem", False), ("bn1", "conv1", True),
    ]  # fmt: skip
    assert said["left"] == [{"norm": "bn2", "why": "skip names it"}]
    right = fold_checkpoint(state, pairs={"after": "stem"}, skip=["bn2"], transposed=["conv1"])
    written = fastbn.load_tensors(tmp_path / "out.npz")
    assert all(np.array_equal(written[name], array) for name, array in right.tensors.items())
    assert "none is" not in said_of(files, capsys)
    for wrong, message in (
        (("--pair", "after"), "expected NORM=CONV, got 'after'"),
        (("--pair", "after=stem", "--pair", "after=conv1"), "--pair names 'after' twice"),
        (("--pair", "after=nothing"), "'nothing', which is no weight"),
        (("--pair", "aftr=stem"), "no batch norm here; nearest: 'after' (3 in all)"),
        (("--pair", "xyz=stem"), "no batch norm here; there are 'after', 'bn1', 'bn2' (3 in all)"),
    ):
        assert main(["fold", *files, *wrong]) == 2
        assert message in capsys.readouterr().err


def said_of(arguments, capsys):
    assert main(["fold", *arguments]) == 0
    return capsys.readouterr().out


def test_what_the_command_says_of_transposed_convolutions(rng, tmp_path, capsys):
    """Only where there may be some: most networks have none."""
    files = str(tmp_path / "net.npz"), "-o", str(tmp_path / "out.npz")
    usual = {"conv1.weight": kernel(rng, 6, 6, 3, 3), **norm(rng, "bn1", 6)}
    even = {"a.conv1.weight": kernel(rng, 6, 6, 2, 2), **norm(rng, "a.bn1", 6)}
    named = {"up.deconv2.weight": kernel(rng, 5, 5, 2, 2), **norm(rng, "up.bn2", 5)}
    for state, said in ((usual, ""), (usual | even, "a.conv1 (1"), (usual | named, "conv1 (1")):
        np.savez(tmp_path / "net.npz", **state)
        out = said_of(files, capsys)
        assert ("Taken as not transposed" in out) == bool(said)
        assert said in out
    assert "1 batch norm folded, 1 left" in out
    out = said_of([*files, "--not-transposed"], capsys)
    assert "Taken as not transposed" not in out
    assert "2 batch norms folded, 0 left" in out
    assert main(["fold", *files, "--pair", "up.bn2=up.deconv2"]) == 2
    assert main(["fold", *files, "--pair", "up.bn2=up.deconv2", "--not-transposed"]) == 0


def test_a_pair_that_fails_writes_nothing(rng, tmp_path, capsys):
    np.savez(tmp_path / "net.npz", **network(rng))
    files = str(tmp_path / "net.npz"), "-o", str(tmp_path / "out.npz")
    assert main(["fold", *files, "--pair", "block.bn1=block.conv2"]) == 2
    assert "4 channels of input, not of output" in capsys.readouterr().err
    assert not (tmp_path / "out.npz").exists()


def test_what_the_command_says_where_nothing_is_folded_and_of_eps(rng, tmp_path, capsys):
    files = str(tmp_path / "net.npz"), "-o", str(tmp_path / "out.npz")
    np.savez(tmp_path / "net.npz", **{"stem.weight": kernel(rng, 6, 3, 1, 1)}, **norm(rng, "n", 6))
    out = said_of(files, capsys)
    assert "0 batch norms folded, 1 left" in out
    assert "--pair NORM=CONV says" in out
    assert "eps" not in out
    assert "--pair" not in said_of([*files, "--skip", "n"], capsys)
    out = said_of([*files, "--pair", "n=stem"], capsys)
    assert "--pair" not in out
    assert "eps is not in the file: 1e-05 was taken; --eps says otherwise" in out
    assert "eps" not in said_of([*files, "--pair", "n=stem", "--eps", "1e-3"], capsys)


@pytest.mark.parametrize("suffix", [".pth", ".onnx", ""])
def test_what_cannot_be_written_is_refused_with_the_next_step(suffix, rng, tmp_path, capsys):
    np.savez(tmp_path / "net.npz", **network(rng))
    assert main(["fold", str(tmp_path / "net.npz"), "-o", f"f{suffix}"]) == 2
    said = capsys.readouterr().err
    assert "must end in .npz or .safetensors" in said
    step = "torch.save({name: torch.from_numpy(array) for name, array in "
    assert (f"{step}fastbn.load_tensors('f.npz').items()}}, 'f.pth')" in said) == (suffix == ".pth")


# --- what is written ------------------------------------------------------------------------------


def test_nothing_is_left_of_a_norm_under_other_names(rng, tmp_path):
    """Gluon's names go with a norm that is folded, Keras's with one that is in `layers` now."""
    ones = np.ones(4, np.float32)
    gluon = {"gamma": 2 * ones, "beta": ones, "running_mean": ones, "running_var": 3 * ones}
    keras = {"gamma": ones, "beta": ones, "moving_mean": ones, "moving_variance": ones}
    state = {
        "0.weight": kernel(rng, 4, 3, 1, 1),
        **{f"1.{name}": array for name, array in gluon.items()},
        **{f"k/{name}:0": array for name, array in keras.items()},
    }
    found = fold_checkpoint(state)
    assert folded_into(found) == {"1": "0"}
    assert found.tensors.keys() == {"0.weight", "0.bias"}
    np.testing.assert_allclose(found.tensors["0.bias"], 1 - 2 / np.sqrt(3 + 1e-5) * ones, rtol=1e-6)
    assert found.layers.keys() == {"k"}
    fastbn.save({**found.tensors, **found.layers}, tmp_path / "x.npz")
    (again,) = fastbn.load_batch_norms(tmp_path / "x.npz").values()
    assert (again.eps, again.axis) == (1e-3, -1)


def test_every_entry_of_a_folded_file_is_an_array_of_numbers(rng, tmp_path):
    """So that a dictionary of tensors can be made of it without looking."""
    found = fold_checkpoint(network(rng))
    fastbn.save({**found.tensors, **found.layers}, tmp_path / "x.npz")
    arrays = np.load(tmp_path / "x.npz")
    assert set(arrays.files) == found.tensors.keys()
    kept = fold_checkpoint(network(rng), skip=["block.bn1"])
    fastbn.save({**kept.tensors, **kept.layers}, tmp_path / "x.npz")
    assert "__fastbn__" in np.load(tmp_path / "x.npz").files
