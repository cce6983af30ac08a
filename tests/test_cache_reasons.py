"""Whose code is taken from a cache folder, and what is said of why none is."""

import os
import sys

import pytest

from tests import internals_cache as internals

FEATURES = internals.ours()["features"]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


# --- whose code is taken ----------------------------------------------------------------------


def test_code_is_taken_whose_features_are_here(folder, monkeypatch):
    some = ",".join(each for each in FEATURES.split(",") if each[0] == "+")
    internals.add_target(folder, processor="generic", features="")
    internals.add_target(folder, processor="with some", features=some + ",-no-such-feature")
    internals.add_target(folder, processor="of the future", features=some + ",+no-such-feature")
    internals.add_target(folder)  # ours come first
    expected = ["with some", "generic"] if some else ["generic", "with some"]
    assert internals.taken_from(monkeypatch, folder) == expected


@pytest.mark.parametrize("what", ["sources", "python", "numba", "llvmlite", "system"])
def test_code_of_another_version_is_not(what, folder, monkeypatch):
    internals.add_target(folder, processor="generic", features="", **{what: "other"})
    assert internals.taken_from(monkeypatch, folder) == []


def test_nor_where_somebody_has_chosen_the_processor(folder, monkeypatch):
    internals.add_target(folder, processor="generic", features="")
    monkeypatch.setattr("numba.config.CPU_NAME", "mine")
    assert internals.taken_from(monkeypatch, folder) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[:-9],
        lambda text: "[]",
        lambda text: "{}",
        lambda text: "3",
        lambda text: text.replace('"features": ""', '"features": 3'),
        lambda text: text.replace('"generic"', '"other"'),
        lambda text: text.replace("}", ', "more": 1}'),
        lambda text: "\0" * 100,
    ],
    ids=range(9),
)
def test_a_damaged_file_about_a_target_is_passed_over(damage, folder, monkeypatch):
    path = internals.add_target(folder, processor="generic", features="")
    text = path.read_text()
    assert damage(text) != text
    path.write_text(damage(text))
    assert internals.taken_from(monkeypatch, folder) == []
    assert "has kernels of another version" in internals.why(folder)


# --- what is said -----------------------------------------------------------------------------


def test_why_for_each_kind_of_folder(folder):
    assert internals.why(folder) == "does not exist"
    folder.mkdir()
    assert internals.why(folder) == "has no kernels"
    assert internals.why(folder / "file") == "does not exist"
    (folder / "file").write_text("")
    assert internals.why(folder / "file") == "is no folder"
    (folder / "part_f.0.fastbn").write_text("")
    assert internals.why(folder) == (
        "has kernels of another version of fastbn, or has lost its target.*.json"
    )
    internals.add_target(folder)
    assert internals.why(folder) == (
        "has kernels for this processor, but not this one: was it warmed up for it?"
    )
    (folder / f"part_f.{'0' * 24}.fastbn").write_text("")
    assert internals.why(folder) == f"has part_f.{'0' * 24}.fastbn, which is damaged"


@pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() == 0, reason="root may read every folder"
)
def test_why_for_a_folder_of_somebody_else(folder):
    internals.add_target(folder)
    folder.chmod(0)
    assert internals.why(folder) == "cannot be read by this user"
    folder.chmod(0o755)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"sources": "0"}, "from other sources of fastbn"),
        ({"python": "cpython-27"}, f"with python cpython-27 (here {sys.implementation.cache_tag})"),
        ({"numba": "0.1"}, f"with numba 0.1 (here {internals.ours()['numba']})"),
        ({"llvmlite": "0.1"}, f"with llvmlite 0.1 (here {internals.ours()['llvmlite']})"),
        ({"system": "pdp11"}, f"for pdp11 (here {internals.ours()['system']})"),
        (
            {"processor": "znver99", "features": "+avx9,+fma9,-avx10"},
            f"for the processor znver99: {internals.ours()['processor']} here lacks avx9, fma9",
        ),
        (
            {"features": ",".join(f"+a{k}" for k in range(9))},
            "here lacks a0, a1, a2, a3, a4, ...",
        ),
        ({"sources": "0", "numba": "0.1"}, "from other sources of fastbn, with numba 0.1"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_why_for_code_of_another_target(changed, says, folder):
    internals.add_target(folder, **changed)
    assert internals.why(folder).startswith("was made ")
    assert says in internals.why(folder)
    # the nearest is what is told of
    internals.add_target(folder, sources="0", python="1", numba="2", llvmlite="3", system="4")
    assert says in internals.why(folder)


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """No folder but those that a test names has files of fastbn."""
    for name in ("FASTBN_CACHE_DIR", "NUMBA_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    internals.package_is_in(monkeypatch, tmp_path / "package")
    for name in ("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path / "home"))


def test_a_first_call_without_a_cache_says_nothing(alone, monkeypatch, caplog):
    assert internals.told(monkeypatch, caplog) == []


def test_it_is_said_once_and_of_each_folder(alone, folder, monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("FASTBN_CACHE_DIR", str(folder))
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "numba"))
    internals.add_target(tmp_path / "package" / "__pycache__", numba="0.1")
    internals.add_target(tmp_path / "numba" / "fastbn", llvmlite="0.1")
    ((level, said),) = internals.told(monkeypatch, caplog, times=3)
    assert level == "INFO"  # it is made now, and the next start is warm
    assert said.startswith(f"kernels are compiled (part_f first): FASTBN_CACHE_DIR ({folder}) does")
    assert f"; NUMBA_CACHE_DIR ({tmp_path / 'numba' / 'fastbn'}) was made with llvmlite 0.1" in said
    assert "; package (" in said
    assert "was made with numba 0.1" in said
    assert said.endswith(f"what is compiled is kept in {folder}")


def test_it_is_a_warning_where_the_next_start_compiles_again(
    alone, folder, monkeypatch, caplog, tmp_path
):
    folder.write_text("a file")
    monkeypatch.setenv("FASTBN_CACHE_DIR", str(folder))
    ((level, said),) = internals.told(monkeypatch, caplog)
    assert level == "WARNING"
    assert said.endswith(f"what is compiled is kept in {tmp_path / 'package' / '__pycache__'}")
    (tmp_path / "package").write_text("a file")
    (tmp_path / "home").write_text("a file")
    ((level, said),) = internals.told(monkeypatch, caplog)
    assert level == "WARNING"
    assert said.endswith("so every process compiles anew")
