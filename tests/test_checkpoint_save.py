"""What `fastbn.save` writes comes back as it was, and a file is written wholly or not at all."""

import os

import ml_dtypes
import numpy as np
import pytest

import fastbn
from fastbn.checkpoint import saving

SUFFIXES = pytest.mark.parametrize("suffix", [".npz", ".safetensors"])


def trained(kind=fastbn.BatchNorm2d, shape=(4, 3, 5, 5), **options):
    rng = np.random.default_rng(0)
    bn = kind(3, **options)
    bn(rng.normal(2, 3, shape).astype(np.float32))
    if bn.weight is not None:
        bn.weight[...] = rng.normal(size=3)
    return bn


@SUFFIXES
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (fastbn.BatchNorm1d, {"shape": (9, 3), "momentum": None}),
        (fastbn.BatchNorm2d, {"eps": 1e-3, "momentum": 0.01, "activation": "relu"}),
        (fastbn.BatchNorm2d, {"activation": "leaky_relu", "negative_slope": 0.3}),
        (fastbn.BatchNorm2d, {"shape": (4, 5, 5, 3), "axis": -1, "on_nonfinite": "skip"}),
        (fastbn.BatchNorm2d, {"bias": False, "virtual_batch_size": 2}),
        (fastbn.BatchNorm2d, {"dtype": np.float64}),
        (fastbn.BatchNorm3d, {"shape": (2, 3, 2, 2, 2), "affine": False}),
    ],
)
def test_a_layer_comes_back_as_it_was(kind, options, suffix, tmp_path):
    bn = trained(kind, **options)
    fastbn.save({"a.bn": bn, "bn2": trained()}, tmp_path / f"x{suffix}")
    back = fastbn.load_batch_norms(tmp_path / f"x{suffix}")
    assert sorted(back) == ["a.bn", "bn2"]
    assert repr(back["a.bn"]) == repr(bn)
    assert back["a.bn"].negative_slope == bn.negative_slope
    assert not back["a.bn"].training
    assert back["a.bn"].state_dict().keys() == bn.state_dict().keys()
    for name, array in bn.state_dict().items():
        np.testing.assert_array_equal(back["a.bn"].state_dict()[name], array, strict=True)


@SUFFIXES
def test_other_arrays_are_kept(suffix, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "conv.weight": rng.normal(size=(4, 3, 2, 2)).astype(np.float32),
        "turned": rng.normal(size=(3, 4)).T,
        "file": np.arange(3, dtype=np.uint8),  # a name that np.savez cannot take
        "scalar": np.array(7),
        "half": np.ones(2, np.float16),
        "small": np.array([1.0, 1.5]).astype(ml_dtypes.bfloat16),
    }
    fastbn.save({**arrays, "group": fastbn.GroupNorm(1, 2)}, tmp_path / f"x{suffix}")
    back = fastbn.load_tensors(tmp_path / f"x{suffix}")
    assert back.keys() == {*arrays, "group.weight", "group.bias"}
    for name, array in arrays.items():
        wide = array.astype(np.float32) if name == "small" and suffix == ".npz" else array
        np.testing.assert_array_equal(back[name], wide, strict=True)


@SUFFIXES
def test_a_file_has_the_usual_mode(suffix, tmp_path):
    """Another user may read it, as in a container; safetensors alone would not let them."""
    (tmp_path / "usual").touch()
    fastbn.save({"a": np.ones(3)}, tmp_path / f"x{suffix}")
    assert (tmp_path / f"x{suffix}").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_others_read_it(tmp_path):
    bn = trained()
    fastbn.save({"bn": bn}, tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as state:
        assert bn.load_state_dict(state, "bn.") == ([], [])
    fastbn.save({"bn": bn}, tmp_path / "x.safetensors")
    import safetensors.numpy

    state = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    assert bn.load_state_dict(state, "bn.") == ([], [])


@pytest.mark.parametrize(
    ("layers", "name", "error", "message"),
    [
        ([1], "x.npz", TypeError, "layers must be a mapping of names to layers or arrays"),
        ({"a": 3}, "x.npz", TypeError, "'a' must be a layer or a NumPy array, got int"),
        ({3: np.ones(3)}, "x.npz", TypeError, "names must be strings, got 3"),
        ({"a": np.array(["x"])}, "x.npz", ValueError, "'a' has dtype <U1, expected numbers"),
        ({"a": np.ones(3)}, "x.pth", ValueError, r"must end in \.npz or \.safetensors"),
        ({"a": np.ones(3)}, "x", ValueError, r"must end in \.npz or \.safetensors"),
        ({"../a": np.ones(3)}, "x.npz", ValueError, "a path out of its folder"),
        ({"a": fastbn.LayerNorm(3), "a.bias": np.ones(3)}, "x.npz", ValueError, "name 'a.bias'"),
        ({"a": np.ones(3, complex)}, "x.safetensors", ValueError, "safetensors cannot hold"),
    ],
)
def test_what_cannot_be_saved(layers, name, error, message, tmp_path):
    path = tmp_path / name
    path.write_text("as it was")
    with pytest.raises(error, match=message):
        fastbn.save(layers, path)
    assert os.listdir(tmp_path) == [name]
    assert path.read_text() == "as it was"


@SUFFIXES
def test_an_error_while_writing_leaves_the_file_as_it_was(suffix, tmp_path, monkeypatch):
    path = tmp_path / f"x{suffix}"
    fastbn.save({"bn": trained()}, path)
    before = path.read_bytes()

    def full(part, *_):
        part.write_bytes(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(saving, "_write_npz", full)
    monkeypatch.setattr(saving, "_write_safetensors", full)
    with pytest.raises(OSError, match="no space left"):
        fastbn.save({"bn": trained(eps=0.5)}, path)
    assert os.listdir(tmp_path) == [path.name]
    assert path.read_bytes() == before
