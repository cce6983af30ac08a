"""What is said of the batch norms of a checkpoint: `inspect_batch_norms`, ``fastbn inspect``."""

import json

import numpy as np
import pytest

import fastbn
from fastbn.cli import main

FAULTS = {
    "NaN or infinite": ("bias", np.nan),
    "of negative variance": ("running_var", -1.0),
    "dead": ("weight", 1e-6),
    "multiplied by more than 100": ("weight", 500.0),
    "flat": ("running_var", 1e-8),
}


def state(channels=6, batches=3):
    """Of a layer that has seen some batches, and has no fault."""
    rng = np.random.default_rng(0)
    bn = fastbn.BatchNorm2d(channels)
    for _ in range(batches):
        bn(rng.normal(1, 2, (4, channels, 5, 5)).astype(np.float32))
    return bn.state_dict(prefix="block.bn.")


def test_a_layer_without_a_fault():
    (found,) = fastbn.inspect_batch_norms(state())
    assert found.name == "block.bn"
    assert found.channels == 6
    assert found.faults == []
    assert found.scale[0] <= found.scale[1] <= found.scale[2]


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_counted_and_named(fault):
    arrays, (name, value) = state(), FAULTS[fault]
    arrays[f"block.bn.{name}"][[1, 4]] = value
    (found,) = fastbn.inspect_batch_norms(arrays)
    assert any(text.startswith("2 ") and fault in text for text in found.faults)


@pytest.mark.parametrize("how", ["no batch", "as made"])
def test_a_layer_that_was_never_updated(how):
    arrays = state(batches=3 if how == "no batch" else 0)
    if how == "no batch":
        arrays["block.bn.num_batches_tracked"][...] = 0
    else:
        arrays["block.bn.num_batches_tracked"][...] = 7
    (found,) = fastbn.inspect_batch_norms(arrays)
    assert found.untrained
    assert "never updated" in found.faults[-1]


def test_eps_decides_what_is_flat_and_prefix_what_is_listed():
    arrays = state()
    arrays["block.bn.running_var"][0] = 1e-5
    assert fastbn.inspect_batch_norms(arrays, eps=1e-3)[0].flat == 1
    assert fastbn.inspect_batch_norms(arrays, eps=1e-7)[0].flat == 0
    with pytest.raises(ValueError, match="prefix"):
        fastbn.inspect_batch_norms(arrays, prefix="other.")
    with pytest.raises(ValueError, match="batch norm"):
        fastbn.inspect_batch_norms({"conv.weight": np.ones((2, 2))})


def test_arrays_that_do_not_fit_together():
    arrays = state()
    arrays["block.bn.weight"] = np.ones(5, np.float32)
    with pytest.raises(ValueError, match=r"block\.bn.*running_mean 6.*weight 5"):
        fastbn.inspect_batch_norms(arrays)


@pytest.fixture
def file(tmp_path):
    arrays = state()
    arrays["block.bn.weight"][2] = 0
    arrays |= {f"sound.{name}": array for name, array in state().items()}
    np.savez(tmp_path / "net.npz", **arrays)
    return tmp_path / "net.npz"


def test_json(file, capsys):
    assert main(["inspect", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [layer["name"] for layer in found["layers"]] == ["block.bn", "sound.block.bn"]
    assert found["layers"][0]["dead"] == 1
    assert main(["inspect", str(file), "--json", "--faulty"]) == 0
    assert len(json.loads(capsys.readouterr().out)["layers"]) == 1


def test_table(file, capsys):
    assert main(["inspect", str(file)]) == 0
    out = capsys.readouterr().out
    assert "1 dead" in out
    assert "2 batch norms, something to look at in 1." in out


@pytest.mark.parametrize("terminal", [False, True])
def test_names_are_not_read_as_markup(tmp_path, capsys, terminal, monkeypatch):
    if terminal:
        pytest.importorskip("rich")
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    arrays = {name.replace("block", "a[/red][conv]"): a for name, a in state().items()}
    np.savez(tmp_path / "odd[bold].npz", **arrays)
    assert main(["inspect", str(tmp_path / "odd[bold].npz")]) == 0
    out = capsys.readouterr().out
    assert "a[/red][conv].bn" in out
    assert "odd[bold].npz" in out


def test_a_pipe_gets_whole_lines(tmp_path, capsys):
    arrays = {name.replace("block", "a" * 200): array for name, array in state().items()}
    np.savez(tmp_path / "net.npz", **arrays)
    assert main(["inspect", str(tmp_path / "net.npz")]) == 0
    assert "a" * 200 + ".bn" in capsys.readouterr().out


def test_json_has_no_nan(tmp_path, capsys):
    arrays = state()
    arrays["block.bn.running_mean"][:] = np.nan
    np.savez(tmp_path / "net.npz", **arrays)
    assert main(["inspect", str(tmp_path / "net.npz"), "--json"]) == 0
    out = capsys.readouterr().out
    assert "NaN," not in out
    assert json.loads(out)["layers"][0]["mean"] == [None] * 3


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_plot(file, suffix, capsys):
    pytest.importorskip("matplotlib")
    picture = file.with_suffix(suffix)
    assert main(["inspect", str(file), "--json", "--plot", str(picture)]) == 0
    assert picture.stat().st_size > 5000


def test_files_that_are_not_there_or_no_checkpoint(tmp_path, capsys):
    (tmp_path / "text.pth").write_text("hello")
    for name in ("nowhere.pth", "text.pth"):
        assert main(["inspect", str(tmp_path / name), "--json"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("fastbn: error: ")
        assert name in error
