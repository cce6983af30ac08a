"""Whose code is taken from a cache folder, and what is said of why none is."""

import os
import sys
import threading

import pytest

from tests import internals_cache as internals

FEATURES = internals.ours()["features"]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """No folder but those that a test names has files of fastbn."""
    for name in ("FASTBN_CACHE_DIR", "NUMBA_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    internals.package_is_in(monkeypatch, tmp_path / "package")
    for name in ("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path / "home"))


# --- whose code is taken ----------------------------------------------------------------------


def all_but(count):
    """Our features, all of them mentioned, with some of those that are on switched off."""
    every = FEATURES.split(",")
    off = {each for each in every if each[0] == "+"} - {"+64bit"}
    off = sorted(off)[:count]
    return ",".join(f"-{each[1:]}" if each in off else each for each in every)


only_x86 = pytest.mark.skipif(not internals.x86(), reason="features as LLVM lists them on x86")


@only_x86
def test_code_is_taken_whose_features_are_here(folder, monkeypatch):
    internals.add_target(folder, processor="generic", features="")
    internals.add_target(folder, processor="with some", features=all_but(2))
    internals.add_target(folder, processor="with more", features=all_but(1) + ",-no-such-feature")
    internals.add_target(folder, processor="of the future", features=FEATURES + ",+no-such-feature")
    internals.add_target(folder)  # ours come first
    expected = ["with more", "with some", "generic"]
    assert internals.taken_from(monkeypatch, folder) == expected


@only_x86
@pytest.mark.parametrize("features", ["", "+avx2", FEATURES.rpartition(",")[0]])
@pytest.mark.parametrize("name", ["znver4", "no-such-name", internals.ours()["processor"]])
def test_code_is_not_taken_whose_features_a_name_alone_tells(name, features, folder, monkeypatch):
    """With `NUMBA_CPU_NAME` and `NUMBA_CPU_FEATURES` LLVM uses all that the name stands for."""
    internals.add_target(folder, processor=name, features=features)
    mine = {"features": all_but(1), "processor": "mine"}
    lacks = internals.lacks(mine, {"processor": name, "features": features})
    assert lacks
    assert not internals.runs(mine, {"processor": name, "features": features})
    unsaid = {each[1:] for each in FEATURES.split(",")} - {each[1:] for each in features.split(",")}
    here = {each[1:] for each in FEATURES.split(",") if each[0] == "+"}
    if not unsaid <= here:
        assert internals.taken_from(monkeypatch, folder) == []
        assert "which that name may stand for" in internals.why(folder)


def test_code_for_other_systems_is_taken_by_the_same_name():
    """There LLVM lists only some features, so the name counts as one."""
    one, other = (
        {"system": "aarch64-unknown-linux-gnu", "processor": name, "features": "+neon"}
        for name in ("neoverse-n1", "neoverse-v1")
    )
    assert internals.runs(one, one)
    assert not internals.runs(one, other)
    assert internals.lacks(one, other) == ["all of neoverse-v1"]
    assert internals.runs(one, {**one, "processor": "generic", "features": ""})


@only_x86
def test_a_warm_up_for_a_name_mentions_every_feature():
    for name in ("x86-64-v3", "znver4"):
        other = {"processor": name, "features": internals.features_of(name)}
        assert other["features"]
        everything = {"features": FEATURES.replace("-", "+")}
        assert internals.lacks(everything, other) == []


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


def test_a_file_about_a_target_whose_fields_are_no_strings_is_passed_over(folder, monkeypatch):
    internals.add_target(folder, processor="generic", features=3)
    assert internals.taken_from(monkeypatch, folder) == []


# --- files that are none, and many files --------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in this file system")
def test_a_pipe_in_place_of_a_file_does_not_hang(alone, folder, monkeypatch):
    monkeypatch.setenv("FASTBN_CACHE_DIR", str(folder))
    digest = "0" * 24
    folder.mkdir()
    os.mkfifo(folder / f"part_f.{digest}.fastbn")
    os.mkfifo(folder / "target.000000000000.json")
    found = []

    def work():
        found.append(internals.load_kernel(digest))
        found.append(internals.taken_from(monkeypatch, folder))
        found.append(internals.why(folder))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(60)
    assert found == [(None, False), [], f"has part_f.{digest}.fastbn, which is no file"]
    internals.save_kernel(monkeypatch, digest)
    assert internals.load_kernel(digest) == (b"kernel", True)


@pytest.mark.parametrize("how", ["into", "FASTBN_CACHE_DIR", "NUMBA_CACHE_DIR"])
def test_nothing_is_deleted_in_a_folder_that_is_filled_for_many(how, alone, folder, monkeypatch):
    if how == "into":
        internals.fill_alone(monkeypatch, folder)
    else:
        monkeypatch.setenv(how, str(folder))
    for k in range(40):
        internals.save_kernel(monkeypatch, f"{k:024}")
    if how == "NUMBA_CACHE_DIR":  # of versions that nobody uses any more, for one
        folder = folder / "fastbn"
    kept = len(list(folder.glob("part_f.*.fastbn"))), len(list(folder.glob("target.*.json")))
    assert kept == ((8, 32) if how == "NUMBA_CACHE_DIR" else (40, 40))


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
        "has kernels for this processor, but part_f was neither warmed up nor called before"
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


def test_a_first_call_without_a_cache_says_nothing(alone, monkeypatch, caplog):
    assert internals.told(monkeypatch, caplog) == []


def test_a_first_call_where_nothing_can_be_kept_is_a_warning(alone, monkeypatch, caplog, tmp_path):
    """Though nobody has named a folder: every start will take as long."""
    (tmp_path / "package").write_text("a file")
    (tmp_path / "home").write_text("a file")
    ((level, said),) = internals.told(monkeypatch, caplog)
    assert level == "WARNING"
    assert f"package ({tmp_path / 'package' / '__pycache__'}) is no folder; user (" in said
    assert "FASTBN_CACHE_DIR can name a folder that takes files" in said
    assert said.endswith("so every process compiles anew")


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
