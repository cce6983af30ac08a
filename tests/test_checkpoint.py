"""Checkpoints: every format gives the same layers, which compute what torch computes."""

import json
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import fastbn
from fastbn.checkpoint import find_batch_norms
from tests import hostile_files, subprocess_tools
from tests.hostile_pickles import FLOATS, group, number, pickled, state, tensor, text

DATA = Path(__file__).parent / "data"
FORMATS = [
    "network.pth",
    "network.old.pth",
    "network.safetensors",
    "sharded.safetensors.index.json",
]
ONES, ZEROS = np.ones(4, np.float32), np.zeros(4, np.float32)


def norm(prefix="bn.", channels=4, **arrays):
    """A state dict of one batch norm."""
    bn = fastbn.BatchNorm2d(channels)
    return {**bn.state_dict(prefix), **{prefix + name: array for name, array in arrays.items()}}


# --- files that torch and safetensors have written ------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_a_network_computes_what_torch_computes(name):
    layers = fastbn.load_batch_norms(DATA / name)
    assert sorted(layers) == ["bn1", "bn2", "bn3"]
    assert [type(layers[k]).__name__[-2:] for k in sorted(layers)] == ["2d", "2d", "1d"]
    assert layers["bn1"].num_batches_tracked == 3
    assert layers["bn2"].weight is None
    outputs = np.load(DATA / "network.outputs.npz")
    for k, bn in layers.items():
        assert not bn.training
        expected = outputs[f"{k}.y"]
        np.testing.assert_allclose(bn(outputs[f"{k}.x"]), expected, rtol=2e-6, atol=2e-6)


def test_bfloat16_becomes_float32():
    layers = fastbn.load_batch_norms(DATA / "network.bfloat16.safetensors")
    exact = fastbn.load_batch_norms(DATA / "network.safetensors")
    for name, bn in layers.items():
        for key, array in bn.state_dict().items():
            rounded = exact[name].state_dict()[key]
            if array.shape:
                assert array.dtype == np.float32
                rounded = rounded.astype(ml_dtypes.bfloat16).astype(np.float32)
            np.testing.assert_array_equal(array, rounded)


@pytest.mark.parametrize("name", ["tensors.pth", "tensors.old.pth"])
@pytest.mark.parametrize("with_ml_dtypes", [True, False])
def test_every_kind_of_tensor(name, with_ml_dtypes, monkeypatch):
    """Views, ties and dtypes; bit by bit."""
    if not with_ml_dtypes:
        monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    tensors = fastbn.load_tensors(DATA / name)
    with np.load(DATA / "tensors.npz") as expected:
        missing = {"uint16"} if "old" in name else set()
        for key in expected.keys() - missing:
            got = tensors.pop(key)
            if key == "bfloat16":
                assert (got.dtype.name == "bfloat16") == with_ml_dtypes
                got = got.astype(np.float32)
            np.testing.assert_array_equal(got, expected[key], strict=True)
            assert got.flags.c_contiguous
            assert got.flags.writeable
    assert sorted(tensors) == ["history.0", "history.1.0", "optimizer.state.0.exp_avg"]


def test_a_part_of_a_storage_as_torch_before_0_4_has_written(tmp_path):
    part = group(text("view"), number(1), number(2))
    storage = group(text("storage"), FLOATS, text("0"), text("cpu"), number(4), part) + b"Q"
    pickle = pickled(state(x=tensor(storage, shape=(2,))))
    values = np.arange(4, dtype=np.float32).tobytes()
    (tmp_path / "old.pth").write_bytes(hostile_files.old(pickle, values=values))
    tensors = fastbn.load_tensors(tmp_path / "old.pth", ["x", "bn.running_mean"])
    assert [array.tolist() for array in tensors.values()] == [[1, 2], [0, 1, 2, 3]]


def test_float8_needs_ml_dtypes(tmp_path, monkeypatch):
    entry = hostile_files.entry("F8_E4M3", "[4]", "[0, 4]")
    data = hostile_files.safetensors(f'{{"a": {entry}}}', bytes([0, 0x38, 0x40, 0xB8]))
    (tmp_path / "small.safetensors").write_bytes(data)
    array = fastbn.load_tensors(tmp_path / "small.safetensors")["a"]
    assert array.astype(np.float32).tolist() == [0, 1, 2, -1]
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(ImportError, match="pip install ml_dtypes"):
        fastbn.load_tensors(tmp_path / "small.safetensors")


def test_a_file_may_have_any_suffix(tmp_path):
    for name, other in (
        ("network.pth", "a.npz.bak"),
        ("network.old.pth", "a"),
        ("network.safetensors", "b"),
    ):
        (tmp_path / other).write_bytes((DATA / name).read_bytes())
        assert len(fastbn.load_batch_norms(str(tmp_path / other))) == 3


@pytest.mark.parametrize("length", [0x0280, 0x4B50])
def test_a_length_that_looks_like_another_format(length, tmp_path):
    """Of a safetensors header: as bytes they begin a pickle and a zip file."""
    text = hostile_files.both(hostile_files.entry(), hostile_files.entry(offsets="[16, 32]"))
    path = tmp_path / "model.safetensors"
    path.write_bytes(hostile_files.safetensors(text.ljust(length)))
    assert path.read_bytes()[:2] in (b"\x80\x02", b"PK")
    assert list(fastbn.load_batch_norms(path)) == ["bn"]


def test_torch_is_not_imported():
    code = f"""
import sys
sys.modules["torch"] = None
import fastbn
assert len(fastbn.load_batch_norms({str(DATA / "network.pth")!r})) == 3
assert len(fastbn.load_batch_norms({str(DATA / "network.safetensors")!r})) == 3
"""
    subprocess_tools.run(code, threads=1)


def test_safetensors_is_an_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for call in (
        lambda: fastbn.load_tensors(DATA / "network.safetensors"),
        lambda: fastbn.save({"a": ONES}, tmp_path / "a.safetensors"),
    ):
        with pytest.raises(ImportError, match=r"pip install 'fastbn\[safetensors\]'"):
            call()
    assert list(tmp_path.iterdir()) == []


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


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"running_mean": ZEROS * np.nan}, r"bn\.running_mean holds NaN or infinity"),
        ({"weight": ONES * np.inf}, r"bn\.weight holds NaN or infinity"),
        ({"running_var": -ONES}, r"bn\.running_var holds negative values.*-1\.0"),
        ({"running_var": ONES * np.nan}, r"bn\.running_var holds NaN"),
        ({"running_var": np.ones(3)}, r"bn\.running_var has shape \(3,\), expected .* \(4,\)"),
        ({"running_mean": np.ones((4, 1))}, r"bn\.running_mean has shape \(4, 1\)"),
        ({"weight": np.ones((1, 4))}, r"bn\.weight has shape \(1, 4\)"),
        ({"bias": np.ones(4, int)}, r"bn\.bias has dtype int64, expected a floating-point one"),
        ({"bias": np.ones(4, complex)}, r"bn\.bias has dtype complex128"),
        ({"num_batches_tracked": np.array(-1)}, r"bn\.num_batches_tracked is no number of batches"),
        (
            {"num_batches_tracked": np.array(1.5)},
            r"bn\.num_batches_tracked is no number of batches",
        ),
        ({"num_batches_tracked": np.array(np.nan)}, r"bn\.num_batches_tracked is no number of"),
        ({"num_batches_tracked": np.zeros(2, int)}, r"bn\.num_batches_tracked is no number of"),
    ],
)
def test_wrong_values_are_refused(arrays, message, tmp_path):
    source = {**norm("first."), **norm("bn.", **arrays)}
    with pytest.raises(ValueError, match=message):
        fastbn.load_batch_norms(source)
    np.savez(tmp_path / "wrong.npz", **source)
    with pytest.raises(ValueError, match=r"wrong\.npz: " + message):
        fastbn.load_batch_norms(tmp_path / "wrong.npz")
    # they can be looked at all the same
    found = find_batch_norms(tmp_path / "wrong.npz")
    assert [n.name for n in found] == ["first", "bn"]
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[1].arrays[name], array)


def test_dtypes():
    kinds = {"f2": np.float16, "f8": np.float64, "b": ml_dtypes.bfloat16}
    source = {}
    for name, kind in kinds.items():
        arrays = fastbn.BatchNorm2d(4).state_dict(f"{name}.")
        source |= {key: array.astype(kind) for key, array in arrays.items()}
    layers = fastbn.load_batch_norms(source)
    assert {k: bn.weight.dtype.name for k, bn in layers.items()} == {
        "f2": "float32", "f8": "float64", "b": "float32",
    }  # fmt: skip
    assert all(bn.num_batches_tracked.dtype == np.int64 for bn in layers.values())


def test_large_counters_are_exact():
    source = norm("bn.", num_batches_tracked=np.array([2**62 + 1]))
    assert fastbn.load_batch_norms(source)["bn"].num_batches_tracked == 2**62 + 1


def test_a_layer_owns_its_arrays():
    source = norm("bn.")
    fastbn.load_batch_norms(source)["bn"].weight[...] = 7
    fastbn.load_tensors(source)["bn.bias"][...] = 7
    assert source["bn.weight"].tolist() == [1] * 4
    assert source["bn.bias"].tolist() == [0] * 4


def test_a_mapping_may_hold_numbers():
    source = {
        "bn.running_mean": [0.0, 1.0],
        "bn.running_var": [1.0, 2.0],
        "bn.num_batches_tracked": 5,
    }
    assert fastbn.load_batch_norms(source)["bn"].num_batches_tracked == 5
    source["bn.running_var"] = [[1], [2, 3]]
    with pytest.raises(ValueError, match="no other half"):
        fastbn.load_batch_norms(source)


class Tensor:
    """Behaves as one of torch's: NumPy cannot have it while it learns, nor in bfloat16."""

    def __init__(self, values, learns=False, bfloat16=False):
        self.values = np.asarray(values, np.float32)
        self.learns, self.bfloat16 = learns, bfloat16
        self.shape, self.dtype = self.values.shape, "torch.float32"

    def detach(self):
        return Tensor(self.values, False, self.bfloat16)

    def cpu(self):
        return self

    def float(self):
        return Tensor(self.values)

    def __array__(self, dtype=None, copy=None):
        if self.learns:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
        if self.bfloat16:
            raise TypeError("Got unsupported ScalarType BFloat16")
        return self.values


Tensor.__module__ = "torch"


def test_tensors_of_torch_in_a_mapping():
    source = norm("bn.", weight=Tensor(ONES * 3, learns=True), bias=Tensor(ONES, bfloat16=True))
    bn = fastbn.load_batch_norms({"model": source})["bn"]
    assert (bn.weight.tolist(), bn.bias.tolist()) == ([3] * 4, [1] * 4)


def test_a_mapping_that_contains_itself():
    source = {"a": {}}
    source["a"]["a"] = source
    with pytest.raises(ValueError, match="does one contain itself"):
        fastbn.load_batch_norms(source)


def test_an_index_names_its_files(tmp_path):
    """Of a second batch norm, whose file lacks what the index says."""
    index = json.loads((DATA / "sharded.safetensors.index.json").read_text())
    for name in ("sharded-1.safetensors", "sharded-2.safetensors"):
        (tmp_path / name).write_bytes((DATA / name).read_bytes())
    index["weight_map"]["bn9.weight"] = "sharded-1.safetensors"
    (tmp_path / "x.index.json").write_text(json.dumps(index))
    with pytest.raises(
        ValueError, match=r"x\.index\.json: the index has 'bn9\.weight' in 'sharded-1"
    ):
        fastbn.load_batch_norms(tmp_path / "x.index.json")
    (tmp_path / "sharded-2.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"x\.index\.json: .*sharded-2\.safetensors: is no whole"):
        fastbn.load_batch_norms(tmp_path / "x.index.json")


@pytest.mark.parametrize(("shard", "before"), [("network.pth", ""), ("network.old.pth", "module.")])
def test_an_index_of_files_of_torch(shard, before, tmp_path):
    names = [f"{before}bn1.{name}" for name in fastbn.BatchNorm2d(4).state_dict()]
    (tmp_path / shard).write_bytes((DATA / shard).read_bytes())
    index = {"weight_map": dict.fromkeys([f"{before}conv1.weight", *names], shard)}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    layers = fastbn.load_batch_norms(tmp_path / "pytorch_model.bin.index.json")
    expected = fastbn.load_batch_norms(DATA / shard)
    assert list(layers) == ["bn1"]
    np.testing.assert_array_equal(layers["bn1"].weight, expected["bn1"].weight)
    assert len(fastbn.load_tensors(tmp_path / "pytorch_model.bin.index.json")) == 6
