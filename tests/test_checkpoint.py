"""Checkpoints: every format gives the same layers, which compute what torch computes."""

import json
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import fastbn
from fastbn.checkpoint import Norm, find_batch_norms
from fastbn.checkpoint.layers import layer_of
from tests import hostile_files, subprocess_tools
from tests.hostile_pickles import FLOATS, group, number, pickled, state, tensor, text
from tests.test_checkpoint_names import ONES, ZEROS, norm

DATA = Path(__file__).parent / "data"
FORMATS = [
    "network.pth",
    "network.old.pth",
    "network.safetensors",
    "sharded.safetensors.index.json",
]


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


def test_two_arrays_of_one_name():
    with pytest.raises(ValueError, match=r"two arrays have the name 'a\.b'"):
        fastbn.load_tensors({"a": {"b": ONES, "c": ONES}, "a.b": ONES})


@pytest.mark.parametrize(
    ("described", "message"),
    [
        (Norm("bn", {"running_mean": ZEROS}), "'bn' has no running_var, which a batch norm needs"),
        (Norm("bn", {"running_mean": ZEROS, "running_var": ONES}, dimensions=4), "dimensions 4"),
        (Norm("bn", {"running_mean": ZEROS, "running_var": ONES}, eps=0.0), "'bn' cannot be made"),
        (Norm("bn", {"running_mean": ZEROS, "running_var": ONES}, momentum=7), "'bn' cannot be"),
    ],
)
def test_what_a_file_describes_itself_is_checked(described, message):
    with pytest.raises(ValueError, match=message):
        layer_of(described, None, None, {})


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
