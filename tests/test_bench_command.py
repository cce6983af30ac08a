"""``fastbn bench``: figures of this machine."""

import json

import pytest

from fastbn.cli import main


@pytest.mark.compiled
def test_figures_as_json_and_a_picture(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    from fastbn.cli import measure

    monkeypatch.setattr(measure, "QUICK", ((1, 8, 4, 4), (2, 8, 8, 8)))
    picture = tmp_path / "roofline.svg"
    assert main(["bench", "--quick", "--json", "--plot", str(picture)]) == 0
    figures = json.loads(capsys.readouterr().out)["figures"]
    assert [f["operation"] for f in figures] == ["evaluation", "training", "backward"] * 2
    assert all(f["seconds"] > 0 and f["bandwidth"] > 0 for f in figures)
    assert "a copy" in picture.read_text() or picture.stat().st_size > 5000


@pytest.mark.compiled
def test_table(capsys, monkeypatch):
    from fastbn.cli import measure

    monkeypatch.setattr(measure, "QUICK", ((1, 8, 4, 4),))
    assert main(["bench", "--quick"]) == 0
    out = capsys.readouterr().out
    assert "evaluation" in out
    assert "GB/s" in out
