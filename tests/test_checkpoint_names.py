"""Which arrays of a checkpoint are a batch norm, what it is called, and its dimensions."""

from pathlib import Path

import numpy as np
import pytest

import fastbn

DATA = Path(__file__).parent / "data"
ONES, ZEROS = np.ones(4, np.float32), np.zeros(4, np.float32)


def norm(prefix="bn.", channels=4, **arrays):
    """A state dict of one batch norm."""
    bn = fastbn.BatchNorm2d(channels)
    return {**bn.state_dict(prefix), **{prefix + name: array for name, array in arrays.items()}}


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "names"),
    [
        (norm("bn1."), ["bn1"]),
        (norm(""), [""]),
        (norm("module.bn1."), ["bn1"]),
        (norm("_orig_mod.module.bn1."), ["bn1"]),
        ({**norm("module.bn1."), "n_averaged": np.array(3)}, ["bn1"]),
        ({**norm("module.bn1."), **norm("other.bn1.")}, ["module.bn1", "other.bn1"]),
        (norm("model.bn1."), ["model.bn1"]),  # a submodule of that name, as Lightning has
        ({"model": norm("bn1."), "epoch": 3, "args": {"lr": 0.1}}, ["bn1"]),
        ({"state_dict": norm("module.bn1.")}, ["bn1"]),
        ({"model": {"state_dict": norm("module.bn1.")}}, ["bn1"]),
        ({"model": norm("bn1."), "ema": norm("bn1.")}, ["bn1", "ema.bn1"]),
        ({"model": norm("bn1."), "net": norm("bn1.")}, ["model.bn1", "net.bn1"]),
        ({"generator": {"up": {"bn1": norm("")}}}, ["generator.up.bn1"]),
        ({"bn/gamma:0": ONES, "bn/moving_mean:0": ZEROS, "bn/moving_variance:0": ONES}, ["bn"]),
        (
            {"params": {"B": {"scale": ONES}}, "batch_stats": {"B": {"mean": ZEROS, "var": ONES}}},
            ["B"],
        ),
    ],
)
def test_names(source, names, tmp_path):
    layers = fastbn.load_batch_norms(source)
    assert list(layers) == names
    tensors = fastbn.load_tensors(source)
    np.savez(tmp_path / "flat.npz", **tensors)
    assert fastbn.load_tensors(tmp_path / "flat.npz").keys() == tensors.keys()


def test_a_prefix_is_left_off():
    source = {**norm("backbone.bn1."), **norm("head.bn1.")}
    assert list(fastbn.load_batch_norms(source, prefix="head.")) == ["bn1"]
    with pytest.raises(
        ValueError, match=r"begins with prefix='neck\.'; there are 'backbone\.bn1', 'head\.bn1'"
    ):
        fastbn.load_batch_norms(source, prefix="neck.")


def test_what_has_no_batch_norm_says_so():
    with pytest.raises(ValueError, match=r"were they folded .* the 1 arrays are 'fc\.weight'"):
        fastbn.load_batch_norms({"fc.weight": np.eye(3)})
    with pytest.raises(ValueError, match=r"has no batch norm.*empty"):
        fastbn.load_batch_norms({"epoch": 3})


def test_tensors_by_name():
    tensors = fastbn.load_tensors(DATA / "network.pth", ["conv2.weight", "bn1.bias"])
    assert [(name, array.shape) for name, array in tensors.items()] == [
        ("conv2.weight", (4, 5, 2, 2)),
        ("bn1.bias", (4,)),
    ]
    with pytest.raises(KeyError, match=r"no array 'conv2.weights'; there are 'conv2\.weight'"):
        fastbn.load_tensors(DATA / "network.pth", ["conv2.weights"])
    with pytest.raises(TypeError, match="got one string"):
        fastbn.load_tensors(DATA / "network.pth", "conv2.weight")


# --- dimensions, eps, momentum --------------------------------------------------------------------


def conv(name, *shape):
    return {name: np.zeros(shape, np.float32)}


@pytest.mark.parametrize(
    ("before", "after", "dimensions"),
    [
        ({}, {}, 2),
        (conv("c.weight", 4, 3, 3), {}, 1),
        (conv("c.weight", 4, 3, 3, 3), {}, 2),
        (conv("c.weight", 4, 1, 1, 1, 1), {}, 3),
        (conv("fc.weight", 4, 9), {}, 1),
        (conv("c.weight", 7, 4, 2, 2, 2), {}, 3),  # transposed: output channels come second
        (conv("fc.weight", 9, 4), {}, 2),  # a linear layer has them first
        (conv("c.weight", 8, 3, 3), {}, 2),  # of another size
        ({**conv("a.weight", 4, 3, 3), **conv("c.weight", 4, 3, 3, 3, 3)}, {}, 3),
        ({**conv("a.weight", 4, 3, 3), **norm("x."), **conv("c.weight", 9, 4)}, {}, 1),
        ({**conv("c.weight", 4, 3, 3), "noise": np.zeros((4, 3, 1, 1))}, {}, 1),
        (conv("c.parametrizations.weight.original1", 4, 3, 3), {}, 1),
        (conv("c.weight", 4, 3, 3), conv("d.weight", 4, 4, 3, 3, 3), 1),
    ],
)
def test_dimensions_by_the_weight_before(before, after, dimensions):
    bn = fastbn.load_batch_norms({**before, **norm("bn."), **after})["bn"]
    assert type(bn).__name__ == f"BatchNorm{dimensions}d"


def test_dimensions_in_a_file_that_is_sorted_by_name(tmp_path):
    """There the batch norm stands before its convolution; the path tells."""
    arrays = {}
    for k, shape in ((2, (4, 3, 3)), (10, (4, 3, 3, 3, 3)), (11, (4, 3, 3, 3))):
        arrays |= {**conv(f"{k}.conv.weight", *shape), **norm(f"{k}.bn.")}
    fastbn.save(arrays, tmp_path / "sorted.safetensors")
    layers = fastbn.load_batch_norms(tmp_path / "sorted.safetensors")
    found = {name: type(bn).__name__[-2:] for name, bn in layers.items()}
    assert found == {"2.bn": "1d", "10.bn": "3d", "11.bn": "2d"}
    flat = {
        **conv("0.weight", 4, 3, 3),
        **norm("1."),
        **conv("9.weight", 4, 3, 3, 3),
        **norm("10."),
    }
    fastbn.save(flat, tmp_path / "flat.safetensors")
    layers = fastbn.load_batch_norms(tmp_path / "flat.safetensors")
    assert {k: type(bn).__name__[-2:] for k, bn in layers.items()} == {"1": "1d", "10": "2d"}


def test_dimensions_and_eps_may_be_given():
    source = {**norm("a."), **norm("b.")}
    layers = fastbn.load_batch_norms(source, dimensions=3, eps=1e-3)
    assert {(type(bn).__name__, bn.eps) for bn in layers.values()} == {("BatchNorm3d", 1e-3)}
    layers = fastbn.load_batch_norms(source, dimensions={"b": 1})
    assert [type(bn).__name__ for bn in layers.values()] == ["BatchNorm2d", "BatchNorm1d"]
    with pytest.raises(ValueError, match="dimensions must be 1, 2 or 3"):
        fastbn.load_batch_norms(source, dimensions=4)
    with pytest.raises(KeyError, match="dimensions has 'c', which is no batch norm"):
        fastbn.load_batch_norms(source, dimensions={"c": 2})
    with pytest.raises(ValueError, match="eps must be positive"):
        fastbn.load_batch_norms(source, eps=-1.0)


def test_names_of_keras_mean_its_defaults():
    """Momentum 0.99 of the old value is 0.01 of the new one; channels are last."""
    source = {
        "c/kernel": np.zeros((3, 3, 8, 4)), "bn/beta": ONES * 2, "bn/moving_mean": ZEROS,
        "bn/moving_variance": ONES * 4,
    }  # fmt: skip
    bn = fastbn.load_batch_norms(source)["bn"]
    assert (type(bn).__name__, bn.eps, bn.momentum, bn.axis) == ("BatchNorm2d", 1e-3, 0.01, -1)
    x = np.ones((1, 2, 2, 4), np.float32)
    np.testing.assert_allclose(bn(x), 1 / np.sqrt(4.001) + 2 * x, rtol=1e-6)
    assert fastbn.load_batch_norms(source, eps=1e-5)["bn"].eps == 1e-5


def test_names_of_flax():
    source = {
        "batch_stats": {"BatchNorm_0": {"mean": ONES, "var": 4 * ONES}},
        "params": {
            "BatchNorm_0": {"bias": ONES, "scale": 3 * ONES},
            "Conv_0": {"kernel": np.ones((3, 2, 4))},
        },
    }  # fmt: skip
    bn = fastbn.load_batch_norms(source)["BatchNorm_0"]
    assert (type(bn).__name__, bn.eps, bn.momentum, bn.axis) == ("BatchNorm1d", 1e-5, 0.01, -1)
    x = np.full((2, 5, 4), 3, np.float32)
    np.testing.assert_allclose(bn(x), 3 * 2 / np.sqrt(4 + 1e-5) + np.ones_like(x), rtol=1e-6)


@pytest.mark.parametrize("by", [".", "/"])
def test_names_of_gluon(by):
    """MXNet has Keras's names for what learns, and torch's for what is measured."""
    arrays = {"gamma": 3 * ONES, "beta": ONES, "running_mean": ZEROS, "running_var": 4 * ONES}
    bn = fastbn.load_batch_norms({f"features{by}bn{by}{k}": a for k, a in arrays.items()})
    (name, bn), = bn.items()  # fmt: skip
    assert name == f"features{by}bn"
    assert (bn.eps, bn.momentum, bn.axis) == (1e-5, 0.1, 1)
    x = np.ones((1, 4, 2, 2), np.float32)
    np.testing.assert_allclose(bn(x), 3 / np.sqrt(4 + 1e-5) + np.ones_like(x), rtol=1e-6)


def test_two_names_for_one_array():
    with pytest.raises(ValueError, match=r"both 'bn\.weight' and 'bn\.gamma'"):
        fastbn.load_batch_norms(norm("bn.", gamma=ONES))


def made_of(name, **arrays):
    """A batch norm one of whose arrays is made of others when it is used."""
    state = norm("bn.")
    del state[f"bn.{name}"]
    return {**state, **{f"bn.{key.replace('__', '.')}": array for key, array in arrays.items()}}


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_pruned_norm_is_what_torch_makes_of_it(name):
    mask = np.array([1, 0, 1, 1], np.float32)
    state = made_of(name, **{f"{name}_orig": 3 * ONES, f"{name}_mask": mask})
    bn = fastbn.load_batch_norms(state)["bn"]
    np.testing.assert_array_equal(getattr(bn, name), 3 * mask)
    conv = {"conv.weight": np.ones((4, 2, 1, 1), np.float32)}
    folded = fastbn.fold.fold_checkpoint({**conv, **state})
    assert folded.tensors.keys() == {"conv.weight", "conv.bias"}
    if name == "weight":
        assert folded.tensors["conv.weight"][1].tolist() == [[[0]], [[0]]]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (made_of("weight", weight_orig=ONES), r"'bn\.weight_orig'.*prune\.remove"),
        (made_of("bias", bias_orig=ONES), r"'bn\.bias_orig'.*prune\.remove\(module, 'bias'\)"),
        (
            made_of("weight", weight_orig=ONES, weight_mask=np.ones(3)),
            r"'bn\.weight_mask' has shape \(3,\), and 'bn\.weight_orig' \(4,\)",
        ),
        (made_of("weight", weight_g=ONES, weight_v=ONES), r"'bn\.weight_g'.*remove_weight_norm"),
        (
            made_of("weight", parametrizations__weight__original=ONES),
            r"'bn\.parametrizations\.weight\.original'.*remove_parametrizations",
        ),
        (
            made_of(
                "weight", parametrizations__weight__original0=ONES,
                parametrizations__weight__original1=ONES,
            ),
            r"'bn\.parametrizations\.weight\.original0'.*remove_parametrizations",
        ),
        (made_of("weight"), r"'bn' has a bias and no weight"),
    ],
)  # fmt: skip
def test_a_weight_is_never_made_up(state, message):
    """It was 1 before, without a word."""
    with pytest.raises(ValueError, match=message):
        fastbn.load_batch_norms(state)
    nameless = {key.removeprefix("bn."): array for key, array in state.items()}
    with pytest.raises(ValueError, match=message.replace(r"bn\.", "").replace("'bn'", "''")):
        fastbn.load_batch_norms(nameless)


def test_a_prefix_leaves_off_whole_modules():
    state = norm("layer1.0.bn1.")
    for prefix in ("layer1", "layer1.", "layer1.0"):
        (name,) = fastbn.load_batch_norms(state, prefix=prefix)
        assert not name.startswith(".")
        assert "layer1.0.bn1".endswith(name)


def test_a_prefix_that_gives_two_layers_one_name_is_refused():
    state = norm("layer1.layer10.bn.") | norm("layer10.bn.")
    with pytest.raises(ValueError, match="are both called 'layer10"):
        fastbn.load_batch_norms(state, prefix="layer1")
    assert list(fastbn.load_batch_norms(state, prefix="layer1.")) == ["layer10.bn"]
