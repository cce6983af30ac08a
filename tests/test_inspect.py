"""What is said of the batch norms of a checkpoint: `inspect_batch_norms`, ``fastbn inspect``."""

import json
import re

import numpy as np
import pytest

import fastbn
from fastbn import checkpoint
from fastbn.checkpoint import channel_terms
from fastbn.cli import main
from tests import internals

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


def test_a_layer_that_was_never_updated():
    (found,) = fastbn.inspect_batch_norms(state(batches=0))
    assert found.untrained
    assert found.faults == ["never updated: mean 0 and variance 1, as made"]


def test_a_counter_of_0_beside_other_statistics_is_no_fault(tmp_path):
    """torch puts one there where a file of before version 0.4.1 has none, and so do others."""
    arrays = state()
    arrays["block.bn.num_batches_tracked"][...] = 0
    (found,) = fastbn.inspect_batch_norms(arrays)
    assert not found.untrained
    assert found.faults == []
    del arrays["block.bn.num_batches_tracked"]
    fastbn.save(fastbn.load_batch_norms(arrays), tmp_path / "x.npz")
    (found,) = fastbn.inspect_batch_norms(tmp_path / "x.npz")
    assert found.faults == []


def test_eps_decides_what_is_flat_and_prefix_what_is_listed():
    arrays = state()
    arrays["block.bn.running_var"][0] = 1e-5
    assert fastbn.inspect_batch_norms(arrays, eps=1e-3)[0].flat == 1
    assert fastbn.inspect_batch_norms(arrays, eps=1e-7)[0].flat == 0
    with pytest.raises(ValueError, match="prefix"):
        fastbn.inspect_batch_norms(arrays, prefix="other.")
    with pytest.raises(ValueError, match="batch norm"):
        fastbn.inspect_batch_norms({"conv.weight": np.ones((2, 2))})


@pytest.mark.parametrize("eps", [-1, 0, np.nan, np.inf])
def test_eps_must_be_positive(eps):
    for look in (fastbn.inspect_batch_norms, channel_terms):
        with pytest.raises(ValueError, match="eps must be positive and finite"):
            look(state(), eps=eps)


def test_eps_and_prefix_have_types():
    with pytest.raises(TypeError, match="eps must be a positive number"):
        fastbn.inspect_batch_norms(state(), eps="1e-5")
    with pytest.raises(TypeError, match="prefix must be a string"):
        fastbn.inspect_batch_norms(state(), prefix=None)


@pytest.mark.parametrize(
    ("prefix", "names"),
    [
        ("", ["net.1.0.bn", "net.10.bn", "net.1.bn"]),
        ("net.", ["1.0.bn", "10.bn", "1.bn"]),
        ("net", ["1.0.bn", "10.bn", "1.bn"]),
        ("net.1.", ["0.bn", "bn"]),
        ("net.1", ["0.bn", "10.bn", "bn"]),  # a prefix of a word leaves the word
        ("net.10.bn", ["bn"]),
        ("n", ["net.1.0.bn", "net.10.bn", "net.1.bn"]),
    ],
)
def test_prefixes_are_left_off_with_their_dot(prefix, names):
    arrays = {}
    for layer in ("net.1.0", "net.10", "net.1"):
        arrays |= {name.replace("block", layer): array for name, array in state().items()}
    for look in (fastbn.inspect_batch_norms, channel_terms):
        assert [layer.name for layer in look(arrays, prefix=prefix)] == names


def broken(how):
    """A layer of which no batch norm can be made, and what is said of it."""
    arrays = state()
    if how == "length":
        arrays["block.bn.weight"] = np.full(5, np.nan, np.float32)
        return arrays, "invalid: arrays that are not all of one shape .*running_mean.*weight"
    if how == "shape":
        arrays |= {k: a[:, None] for k, a in arrays.items() if a.ndim}
        return arrays, r"invalid: arrays that are not all of one shape .*running_mean \(6, 1\)"
    if how == "channels":
        arrays |= {k: a[:0] for k, a in arrays.items() if a.ndim}
        return arrays, r"invalid: arrays that are not all of one shape .*running_mean \(0,\)"
    arrays["block.bn.running_var"] = np.full(6, "much" if how == "text" else 2j)
    return arrays, "invalid: running_var of dtype"


@pytest.mark.parametrize("how", ["length", "shape", "channels", "text", "complex"])
def test_an_invalid_layer_is_a_fault_and_the_others_are_listed(how):
    arrays, fault = broken(how)
    arrays |= {name.replace("block", "sound"): array for name, array in state().items()}
    invalid, sound = fastbn.inspect_batch_norms(arrays)
    assert re.match(fault, invalid.faults[0])
    assert np.isnan(invalid.scale).all()
    assert (sound.faults, sound.name) == ([], "sound.bn")
    assert invalid.not_finite == (5 if how == "length" else 0)
    assert [terms.name for terms in channel_terms(arrays)] == ["block.bn", "sound.bn"]


@pytest.mark.parametrize(
    ("eps", "gone", "fault"),
    [(-1.0, "weight", "eps -1.0"), (None, "running_var", "no running_var")],
)
def test_what_a_file_that_describes_its_layers_may_lack(eps, gone, fault, monkeypatch):
    """ONNX and Keras give a layer's arrays and settings by themselves, whatever they are."""
    arrays = {k.removeprefix("block.bn."): a for k, a in state().items()}
    arrays.pop(gone)
    internals.describe_norms(monkeypatch, [checkpoint.Norm("bn", arrays, eps=eps)])
    (found,) = fastbn.inspect_batch_norms({})
    assert found.faults == [f"invalid: {fault}"]
    assert found.channels == 6


def test_terms_of_channels():
    arrays = state()
    arrays["block.bn.running_var"][1] = -1
    (terms,) = channel_terms(arrays, eps=1e-2)
    mean, var, weight, bias = (
        arrays[f"block.bn.{name}"].astype(float)
        for name in ("running_mean", "running_var", "weight", "bias")
    )
    with np.errstate(invalid="ignore"):
        scale = weight / (var + 1e-2) ** 0.5
    np.testing.assert_allclose(terms.scale, scale, rtol=1e-14)
    np.testing.assert_allclose(terms.shift, bias - mean * scale, rtol=1e-14)
    assert (terms.eps, terms.invalid) == (1e-2, "")
    assert np.isnan(terms.scale[1])


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
    assert "2 batch norms, faults in 1." in out
    assert "eps is not in the file: 1e-05 was taken; --eps says otherwise" in out
    assert [line.split()[:2] for line in out.splitlines()[:3]] == [
        ["#", "layer"], ["1", "block.bn"], ["2", "sound.block.bn"],
    ]  # fmt: skip


def test_where_nothing_is_faulty(tmp_path, capsys):
    fastbn.save(fastbn.load_batch_norms(state()), tmp_path / "net.npz")
    assert main(["inspect", str(tmp_path / "net.npz"), "--faulty"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "nothing found", "", "net.npz: 1 batch norm, faults in none."
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["torch", "keras", "note", "given"])
def test_whether_eps_was_in_the_file(kind, tmp_path):
    arrays = state()
    if kind == "keras":
        names = {"running_mean": "moving_mean", "running_var": "moving_variance"}
        arrays = {f"bn/{new}": arrays[f"block.bn.{old}"] for old, new in names.items()}
    elif kind == "note":
        fastbn.save(fastbn.load_batch_norms(arrays, eps=1e-2), tmp_path / "net.npz")
        arrays = tmp_path / "net.npz"
    (found,) = fastbn.inspect_batch_norms(arrays, eps=1e-2 if kind == "given" else None)
    assert found.eps == {"torch": 1e-5, "keras": 1e-3}.get(kind, 1e-2)
    assert found.eps_assumed == (kind in ("torch", "keras"))


def test_numbers_are_those_of_the_file_and_prefixes_are_left_off(file, capsys):
    arrays = dict(np.load(file))
    arrays["sound.block.bn.weight"] = np.ones(5, np.float32)
    arrays |= {name.replace("sound", "sound2"): a for name, a in arrays.items()}
    np.savez(file, **arrays)
    assert main(["inspect", str(file), "--faulty", "--prefix", "sound"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:3]] == [
        ["1", "block.bn"], ["2", "sound2.block.bn"],
    ]  # fmt: skip
    assert main(["inspect", str(file), "--faulty", "--json"]) == 0
    layers = json.loads(capsys.readouterr().out)["layers"]
    assert [(layer["number"], layer["channels"]) for layer in layers] == [(1, 6), (2, 6), (3, 6)]
    assert main(["inspect", str(file), "--eps", "nan"]) == 2
    assert "--eps: expected a positive number, got 'nan'" in capsys.readouterr().err


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


def test_the_table_of_a_damaged_layer(tmp_path, capsys):
    arrays = state() | {name.replace("block", "sound"): a for name, a in state().items()}
    del arrays["block.bn.running_var"]
    np.savez(tmp_path / "net.npz", **arrays)
    assert main(["inspect", str(tmp_path / "net.npz")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "nan" not in lines[1]
    assert "no other half" in lines[1]
    assert lines[2].endswith("none")


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
    arrays = dict(np.load(file))
    arrays["sound.block.bn.weight"] = np.ones(5, np.float32)
    np.savez(file, **arrays)
    picture = file.with_suffix(suffix)
    assert main(["inspect", str(file), "--json", "--plot", str(picture)]) == 0
    assert picture.stat().st_size > 5000


def test_a_picture_of_many_layers_has_the_numbers_of_the_table(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    import matplotlib.figure

    arrays = {}
    for k in range(41):
        arrays |= {name.replace("block", f"b{k}"): array for name, array in state().items()}
    arrays["b3.bn.weight"][0] = 0
    np.savez(tmp_path / "net.npz", **arrays)
    seen = []
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda figure, *_, **__: seen.append(
        [(tick.get_position()[0], tick.get_text()) for tick in figure.axes[-1].get_xticklabels()]
        + [patch.get_x() for patch in figure.axes[-1].patches]
    ))  # fmt: skip
    assert main(["inspect", str(tmp_path / "net.npz"), "--plot", str(tmp_path / "a.png")]) == 0
    assert seen == [[*((k, str(k)) for k in range(1, 42)), 3.5]]


def test_channels_of_scale_0_are_in_the_picture(tmp_path, monkeypatch):
    """A logarithm has no place for them, and they are what one looks for."""
    pytest.importorskip("matplotlib")
    import matplotlib.figure

    arrays = {name.replace("block", "sound"): array for name, array in state().items()}
    arrays |= state()
    arrays["block.bn.weight"][[1, 4]] = 0
    np.savez(tmp_path / "net.npz", **arrays)
    seen = []

    def look(figure, *_, **__):
        for panel in figure.axes:
            lines = {line.get_label(): line for line in panel.get_lines()}
            zeros = lines.get("0, below the scale")
            seen.append(None if zeros is None else list(zeros.get_xdata()))
        seen.append([text.get_text() for text in figure.axes[0].get_legend().get_texts()])

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", look)
    assert main(["inspect", str(tmp_path / "net.npz"), "--plot", str(tmp_path / "a.png")]) == 0
    assert seen[:4] == [[2], None, None, None]
    assert "0, below the scale" in seen[4]


def test_files_that_are_not_there_or_no_checkpoint(tmp_path, capsys):
    (tmp_path / "text.pth").write_text("hello")
    for name in ("nowhere.pth", "text.pth"):
        assert main(["inspect", str(tmp_path / name), "--json"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("fastbn: error: ")
        assert name in error


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"bn.weight": None}, "a bias and no weight"),
        ({"bn.num_batches_tracked": np.array([1, 2])}, "num_batches_tracked"),
        ({"bn.num_batches_tracked": np.array(-3)}, "num_batches_tracked"),
        ({"bn.num_batches_tracked": np.array(np.nan)}, "num_batches_tracked"),
        ({"bn.num_batches_tracked": np.array("three")}, "num_batches_tracked"),
        ({"bn.running_var": None}, "no other half of the running statistics"),
        ({"bn.running_mean": None}, "no other half of the running statistics"),
        ({"bn.gamma": np.ones(4, np.float32)}, "both 'bn.weight' and 'bn.gamma'"),
        ({"bn.weight": None, "bn.weight_orig": np.ones(4)}, "'bn.weight_orig', of which"),
        (
            {"bn.weight": None, "bn.weight_orig": np.ones(4), "bn.weight_mask": np.ones(5)},
            "no mask of it",
        ),
    ],
)
def test_what_loading_refuses_is_a_fault(change, why):
    state = {**fastbn.BatchNorm2d(4).state_dict("bn."), **change}
    state = {name: array for name, array in state.items() if array is not None}
    sound = fastbn.BatchNorm2d(4).state_dict("sound.")
    with pytest.raises(ValueError, match="bn"):
        fastbn.load_batch_norms(state | sound)
    (health, sound) = fastbn.inspect_batch_norms(state | sound)
    assert why in health.invalid
    assert (health.name, sound.name, sound.invalid) == ("bn", "sound", "")


def test_two_layers_of_one_name_are_refused():
    norm = fastbn.BatchNorm2d(4)
    state = norm.state_dict("x.l.lq.") | norm.state_dict("x.lq.")
    with pytest.raises(ValueError, match="both called 'lq'"):
        fastbn.inspect_batch_norms(state, prefix="x.l")
