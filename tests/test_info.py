"""``fastbn info``, `fastbn.environment.describe` and ``fastbn warmup``."""

import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import llvmlite
import numba
import numpy as np
import pytest

import fastbn
from fastbn import cli
from fastbn.environment import describe
from tests import internals_cache as internals
from tests import subprocess_tools as tools
from tests.internals import progress_bars

NETWORK = Path(__file__).parent / "data" / "network.pth"


def shown(capsys, *arguments):
    assert cli.main(arguments) == 0
    return capsys.readouterr().out


def test_it_is_json_and_text(capsys):
    found = json.loads(shown(capsys, "info", "--json"))
    assert found["versions"] == {
        "fastbn": fastbn.__version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "numpy": np.__version__,
        "numba": numba.__version__,
        "llvmlite": llvmlite.__version__,
    }
    assert found["threads"]["number"] == fastbn.get_num_threads()
    assert found["threads"]["layer"] == numba.threading_layer()
    ours = internals.ours()
    assert (found["cpu"]["name"], found["cpu"]["all features"]) == (
        ours["processor"],
        ours["features"],
    )
    text = shown(capsys, "info")
    assert all(len(line) < 100 or os.sep in line for line in text.splitlines())
    for wanted in [*found["versions"].values(), ours["processor"], found["threads"]["layer"]]:
        assert wanted in text
    for cache in found["caches"]:
        assert cache["path"] in text


def test_cache_folders(capsys, monkeypatch, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    monkeypatch.setenv("FASTBN_CACHE_DIR", str(one))
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(two))
    internals.add_target(two / "fastbn")
    internals.add_target(two / "fastbn", processor="generic", features="")
    internals.add_target(two / "fastbn", processor="old", numba="0.1")
    first, second, *others = describe()["caches"]
    assert [each["from"] for each in others[:1]] == ["package"]
    assert first == {
        "from": "FASTBN_CACHE_DIR", "path": str(one), "exists": False, "read": False,
        "writable": True, "written": True, "kernels": 0, "others": 0, "made for": [],
    }  # fmt: skip
    assert second == {
        "from": "NUMBA_CACHE_DIR", "path": str(two / "fastbn"), "exists": True, "read": True,
        "writable": True, "written": False, "kernels": 2, "others": 1,
        "made for": sorted({"generic", "old", internals.ours()["processor"]}),
    }  # fmt: skip
    text = " ".join(shown(capsys, "info").split())
    assert f"{one} does not exist, would be made, new kernels go here" in text
    assert "read, can be written, 2 kernels for this processor, 1 for others or outdated" in text
    one.write_text("a file")
    first, second, *_ = describe()["caches"]
    assert (first["writable"], first["written"], second["written"]) == (False, False, True)


def test_a_folder_that_may_not_be_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FASTBN_CACHE_DIR", str(tmp_path))
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path and allowed(path, mode))
    assert "read, read-only" in " ".join(shown(capsys, "info").split())
    assert not describe()["caches"][0]["written"]


THREADS = """
import fastbn
from fastbn.environment import describe
first = describe()["threads"]
fastbn.set_num_threads(1)
print(first["number"], first["from"], "|", describe()["threads"]["from"])
"""


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"FASTBN_NUM_THREADS": "1"}, "1 FASTBN_NUM_THREADS"),
        ({"FASTBN_NUM_THREADS": None, "NUMBA_NUM_THREADS": "1"}, "1 NUMBA_NUM_THREADS"),
        ({"FASTBN_NUM_THREADS": None, "NUMBA_NUM_THREADS": None}, r"\d+ .*(processors|quota).*"),
    ],
    ids=str,
)
def test_where_the_number_of_threads_comes_from(env, says):
    assert re.fullmatch(says + r" \| set_num_threads", tools.run(THREADS, env=env).strip())


class TestGpu:
    """There may be none, or one that is not well."""

    def test_without(self, monkeypatch, capsys):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        assert describe()["gpu"] == {"numba-cuda": None}
        assert "pip install 'fastbn[cuda]'" in shown(capsys, "info")

    def test_broken_installations(self, monkeypatch, capsys):
        def broken(name):
            raise ImportError("no\ngood")

        monkeypatch.setattr("importlib.util.find_spec", broken)
        assert describe()["gpu"] == {"numba-cuda": None, "error": "no\ngood"}
        monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
        monkeypatch.setattr("importlib.metadata.version", lambda name: "9.9")
        monkeypatch.setitem(sys.modules, "numba.cuda", None)
        monkeypatch.delattr(numba, "cuda", raising=False)
        assert describe()["gpu"].keys() == {"numba-cuda", "error"}
        assert re.search(r"gpu +numba-cuda 9.9: none to be used", shown(capsys, "info"))

    def test_devices(self, monkeypatch, capsys):
        class Device:
            name, compute_capability = b"Nimbus 2000", (9, 0)

            def __enter__(self):
                return self

            def __exit__(self, *exception):
                return None

        class Cuda:
            gpus = (Device(),)

            @staticmethod
            def current_context():
                return Cuda

            @staticmethod
            def get_memory_info():
                return 2**30, 2**31

        monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
        monkeypatch.setattr("importlib.metadata.version", lambda name: "9.9")
        monkeypatch.setitem(sys.modules, "numba.cuda", Cuda)
        monkeypatch.setattr(numba, "cuda", Cuda, raising=False)
        (device,) = describe()["gpu"]["devices"]
        assert device == {
            "name": "Nimbus 2000", "compute capability": "9.0", "memory": 2**31, "free": 2**30,
        }  # fmt: skip
        assert "Nimbus 2000, compute capability 9.0, 1.0 of 2.0 GiB free" in " ".join(
            shown(capsys, "info").split()
        )


# --- the commands -----------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["info", "warmup"])
def test_help_has_an_example(command, capsys):
    assert f"example: fastbn {command} --" in shown(capsys, command, "--help")


@pytest.mark.compiled
def test_warmup_fills_a_folder(capsys, monkeypatch, tmp_path):
    options = ["--mode", "evaluation", "--dtype", "float32", "--cpu", "native"]
    options += ["--layout", "channels_first"]
    folder = tmp_path / "new" / "cache"
    done = json.loads(shown(capsys, "warmup", "--into", str(folder), *options, "--json"))
    assert (done["folder"], done["cpu"]) == (str(folder), "native")
    monkeypatch.setenv("FASTBN_CACHE_DIR", str(folder))
    cache, *_ = describe()["caches"]
    assert cache["kernels"] == len(list(folder.glob("*.fastbn"))) >= 6
    assert cache["others"] == 0
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    monkeypatch.setattr(progress_bars, "_is_terminal", lambda stream: True)
    assert cli.main(["warmup", "--into", str(folder), *options]) == 0
    out, err = capsys.readouterr()
    assert re.fullmatch(rf"compiled in [\d.]+ s; kernels are in {re.escape(str(folder))}\n", out)
    assert "compiling  [" in err
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--cpu nonsense", 'fastbn warmup: error: cpu must be "native", "generic"'),
        ("--dtype int8", "--dtype: invalid choice: 'int8'"),
        ("--mode eval", "--mode: invalid choice: 'eval'"),
        ("--layout NCHW", "--layout: invalid choice: 'NCHW'"),
        (
            "--into {file}/folder",
            "fastbn: error: cannot write '{file}/folder': not a directory; a file is where",
        ),
        ("--into {file}", "fastbn: error: cannot write '{file}': file exists; a file is where"),
        ("more", "unrecognized arguments: more"),
    ],
)
def test_warmup_with_wrong_arguments(arguments, says, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    arguments, says = (text.replace("{file}", str(tmp_path / "file")) for text in (arguments, says))
    assert cli.main(["warmup", *arguments.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no folder that takes no files")
def test_a_folder_that_takes_no_files_is_named(capsys):
    assert cli.main(["warmup", "--into", "/proc/self"]) == 2
    assert re.match(r"fastbn: error: cannot write '/proc/self': ", capsys.readouterr().err)
    assert cli.main(["fold", str(NETWORK), "-o", "/proc/net.npz"]) == 2
    assert re.match(r"fastbn: error: cannot write '/proc/net\.npz': ", capsys.readouterr().err)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="capabilities as Linux has them")
@pytest.mark.parametrize(
    "command", ["warmup --into {}", "warmup --into {}/new", f"fold {NETWORK} -o {{}}/net.npz"]
)
def test_what_may_not_be_written_is_named_with_a_way_out(command, tmp_path):
    tmp_path.chmod(0o555)
    words = command.format(tmp_path).split()
    code = f"""
import ctypes, os
if os.getuid() == 0:  # become an ordinary user
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(header, nothing) == 0
import contextlib, io
from fastbn import cli
with contextlib.redirect_stderr(io.StringIO()) as said:
    assert cli.main({words!r}) == 2
print(said.getvalue().strip())
"""
    said = tools.run(code, threads=1)
    tmp_path.chmod(0o755)
    assert said == (
        f"fastbn: error: cannot write {words[-1]!r}: permission denied; name a place where you "
        "may write\n"
    )


@pytest.mark.parametrize(
    "command", ["inspect x.npz --plot", "bench --plot", "demo --small-batches"]
)
def test_a_picture_that_may_not_be_written_is_refused_at_once(
    command, tmp_path, capsys, monkeypatch
):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    assert cli.main([*command.split(), str(tmp_path / "a.png")]) == 2
    assert f"cannot write '{tmp_path / 'a.png'}': permission denied" in capsys.readouterr().err


def test_a_warning_is_a_sentence(capsys, monkeypatch):
    said = "compiled code cannot be kept"
    monkeypatch.setattr(fastbn, "warmup", lambda **_: warnings.warn(said, stacklevel=2))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert cli.main(["warmup"]) == 0
    assert capsys.readouterr().err == f"fastbn: warning: {said}\n"


def test_commands_are_light():
    """`--help` waits for no other command."""
    code = "import sys, fastbn.cli; print('fastbn.environment' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert result.stdout.split() == [b"False"]
