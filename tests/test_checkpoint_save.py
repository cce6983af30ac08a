"""What `fastbn.save` writes comes back as it was, and a file is written wholly or not at all."""

import json
import math
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
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module."])
def test_settings_come_back_where_names_are_shortened(prefix, suffix, tmp_path):
    """What wrappers put before names is left off when they are read; the note has whole names."""
    layers = {f"{prefix}bn{k}": trained(eps=10.0**-k, momentum=None) for k in (1, 2)}
    fastbn.save(layers, tmp_path / f"x{suffix}")
    back = fastbn.load_batch_norms(tmp_path / f"x{suffix}")
    assert {name: bn.eps for name, bn in back.items()} == {"bn1": 0.1, "bn2": 0.01}
    assert {bn.momentum for bn in back.values()} == {None}
    alone = {prefix.removesuffix("."): trained(eps=0.5)}
    fastbn.save(alone, tmp_path / f"y{suffix}")
    assert [bn.eps for bn in fastbn.load_batch_norms(tmp_path / f"y{suffix}").values()] == [0.5]


def test_settings_come_back_from_the_files_of_an_index(tmp_path):
    for k in (1, 2):
        fastbn.save({f"module.bn{k}": trained(eps=10.0**-k)}, tmp_path / f"{k}.safetensors")
    names = trained().state_dict("module.bn1.").keys(), trained().state_dict("module.bn2.").keys()
    places = {name: f"{k}.safetensors" for k, of in enumerate(names, 1) for name in of}
    (tmp_path / "x.index.json").write_text(json.dumps({"weight_map": places}))
    back = fastbn.load_batch_norms(tmp_path / "x.index.json")
    assert {name: bn.eps for name, bn in back.items()} == {"bn1": 0.1, "bn2": 0.01}


class OnesOwn(fastbn.BatchNorm2d):
    """As somebody writes it to add a method."""


@SUFFIXES
@pytest.mark.parametrize(
    ("kind", "options", "back_as"),
    [
        (OnesOwn, {"eps": 1e-3, "momentum": 0.3, "activation": "relu"}, fastbn.BatchNorm2d),
        (fastbn.BatchRenorm2d, {"eps": 1e-3, "momentum": 0.3}, fastbn.BatchRenorm2d),
        (
            fastbn.BatchRenorm1d,
            {"shape": (9, 3), "r_max": math.inf, "d_max": fastbn.Ramp(0, 5, 1, 2)},
            fastbn.BatchRenorm1d,
        ),
        (
            fastbn.InstanceNorm2d,
            {"eps": 1e-3, "momentum": 0.3, "track_running_stats": True},
            fastbn.BatchNorm2d,
        ),
        (
            fastbn.InstanceNorm1d,
            {"shape": (4, 5, 3), "axis": -1, "affine": True, "track_running_stats": True},
            fastbn.BatchNorm1d,
        ),
    ],
)
def test_subclasses_keep_their_settings(kind, options, back_as, suffix, tmp_path):
    """Those that a layer of fastbn has; as which they evaluate the same."""
    layer = trained(kind, **options)
    fastbn.save({"a": layer}, tmp_path / f"x{suffix}")
    back = fastbn.load_batch_norms(tmp_path / f"x{suffix}")["a"]
    assert type(back) is back_as
    for name in ("eps", "momentum", "axis", "activation", "on_nonfinite", "r_max", "d_max"):
        if hasattr(layer, name):
            assert getattr(back, name) == getattr(layer, name), name
    x = np.random.default_rng(1).normal(2, 3, (4, 3, 5, 5)).astype(np.float32)
    x = x if layer._rank == 4 else np.moveaxis(x[..., 0], 1, layer.axis)
    np.testing.assert_array_equal(back(x), layer.eval()(x))


@SUFFIXES
def test_ghost_batches_and_an_activation_together(suffix, tmp_path):
    """A layer that evaluates may have both; it cannot be made with both."""
    bn = trained(virtual_batch_size=2).eval()
    bn.activation = "relu"
    fastbn.save({"a": bn}, tmp_path / f"x{suffix}")
    assert repr(fastbn.load_batch_norms(tmp_path / f"x{suffix}")["a"]) == repr(bn)


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


class Foreign:
    """As a module of torch."""

    def state_dict(self, prefix=""):
        return {f"{prefix}weight": np.ones(3)}


@SUFFIXES
def test_a_name_is_only_refused_where_the_file_cannot_have_it(suffix, tmp_path):
    """A zip file may not have paths that lead out of it; safetensors has no paths."""
    named = {"a\\b": np.ones(3)}
    if suffix == ".safetensors":
        fastbn.save(named, tmp_path / f"x{suffix}")
        assert fastbn.load_tensors(tmp_path / f"x{suffix}").keys() == named.keys()
    else:
        with pytest.raises(ValueError, match=r"'a\\\\b' is a path out of its folder"):
            fastbn.save(named, tmp_path / f"x{suffix}")


@pytest.mark.parametrize(
    ("layers", "name", "error", "message"),
    [
        ([1], "x.npz", TypeError, "layers must be a mapping of names to layers or arrays"),
        ({"a": 3}, "x.npz", TypeError, "'a' must be a layer of fastbn or a NumPy array, got int"),
        ({3: np.ones(3)}, "x.npz", TypeError, "names must be strings, got 3"),
        ({"a": np.array(["x"])}, "x.npz", ValueError, "'a' has dtype <U1, expected numbers"),
        ({"a": np.ones(3)}, "x.pth", ValueError, r"must end in \.npz or \.safetensors"),
        ({"a": np.ones(3)}, "x", ValueError, r"must end in \.npz or \.safetensors"),
        ({"../a": np.ones(3)}, "x.npz", ValueError, "a path out of its folder"),
        ({"a": fastbn.LayerNorm(3), "a.bias": np.ones(3)}, "x.npz", ValueError, "name 'a.bias'"),
        ({"a": np.ones(3, complex)}, "x.safetensors", ValueError, "safetensors cannot hold"),
        ({"a\0b": fastbn.LayerNorm(3)}, "x.npz", ValueError, r"'a\\x00b\.weight' has a NUL"),
        ({"a\0b": np.ones(3)}, "x.safetensors", ValueError, r"'a\\x00b' has a NUL"),
        ({"a\ud800": np.ones(3)}, "x.npz", ValueError, "no name of a file can hold"),
        ({"a\ud800": np.ones(3)}, "x.safetensors", ValueError, "no name of a file can hold"),
        ({"__metadata__": np.ones(3)}, "x.safetensors", ValueError, "name of its own"),
        (
            {"a": fastbn.BatchRenorm1d(3, r_max=lambda step: 2.0)},
            "x.npz",
            ValueError,
            "'a' has r_max=.*, a function, which cannot be written",
        ),
        ({"a": Foreign()}, "x.npz", TypeError, "'a' must be a layer of fastbn or a NumPy array"),
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


@pytest.mark.parametrize(
    ("note", "message"),
    [
        ({"kind": "Odd"}, "'bn' is of kind 'Odd'"),
        ({"dimensions": 4}, "'bn' is of kind .* has dimensions 4"),
        ({"r_max": 2.0}, "'bn' cannot be made: .*no attribute 'r_max'"),
        ({"kind": "BatchRenorm", "r_max": [1, 2]}, "'bn' cannot be made: .*missing 2"),
        ({"kind": "BatchRenorm", "r_max": [1, 2, 4, 3]}, "last must not be before first"),
        ({"kind": "BatchRenorm", "d_max": -1}, "d_max must be 0 or more"),
        ({"kind": "BatchRenorm", "activation": "odd"}, "activation must be"),
    ],
)
def test_a_note_that_fits_no_layer(note, message, tmp_path):
    arrays = fastbn.BatchNorm2d(3).state_dict("bn.")
    np.savez(tmp_path / "x.npz", __fastbn__=json.dumps({"bn": note}), **arrays)
    with pytest.raises(ValueError, match=rf"x\.npz: .*{message}"):
        fastbn.load_batch_norms(tmp_path / "x.npz")


# --- the file that is replaced --------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_a_file_that_is_replaced_keeps_its_mode(mode, suffix, tmp_path):
    pytest.importorskip("safetensors")
    path = tmp_path / f"x{suffix}"
    fastbn.save({"bn": fastbn.BatchNorm2d(2)}, path)
    path.chmod(mode)
    fastbn.save({"bn": fastbn.BatchNorm2d(3)}, path)
    assert path.stat().st_mode & 0o777 == mode
    assert fastbn.load_batch_norms(path)["bn"].num_features == 3


def test_a_link_leads_to_the_new_file(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    link, path = tmp_path / "latest.npz", tmp_path / "elsewhere" / "x.npz"
    link.symlink_to(path)
    for channels in (2, 3):  # a file that is made, and one that is replaced
        fastbn.save({"bn": fastbn.BatchNorm2d(channels)}, link)
        assert link.is_symlink()
        assert fastbn.load_batch_norms(path)["bn"].num_features == channels
    assert [file.name for file in path.parent.iterdir()] == ["x.npz"]
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(OSError, match=r"cannot write .*latest\.npz'"):
        fastbn.save({"bn": fastbn.BatchNorm2d(2)}, link)
    assert link.is_symlink()


def test_a_name_may_be_as_long_as_the_system_allows(tmp_path):
    path = tmp_path / ("x" * (255 - len(".npz")) + ".npz")
    fastbn.save({"bn": fastbn.BatchNorm2d(2)}, path)
    assert fastbn.load_batch_norms(path).keys() == {"bn"}
    with pytest.raises(OSError, match="cannot write"):
        fastbn.save({"bn": fastbn.BatchNorm2d(2)}, tmp_path / ("x" * 252 + ".npz"))
