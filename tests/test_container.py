"""A cache that is baked into an image: filled for another processor, read by another user.

What is in the README's section "In a container" is done here without Docker, step by step.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastbn
from tests import internals_cache as internals
from tests import subprocess_tools as tools

pytestmark = pytest.mark.compiled
ROOT = Path(__file__).parent.parent
NOBODY = "65534"

#: The first answer of a process: is it right, and what was compiled and loaded for it?
ANSWER = """
import json, logging
records = []
handler = logging.Handler()
handler.emit = lambda record: records.append(f"{record.levelname} {record.getMessage()}")
logging.getLogger("fastbn").addHandler(handler)
logging.getLogger("fastbn").setLevel("INFO")
from tests.internals import Native
native = Native()
import numpy as np, fastbn
from tests import reference

rng = np.random.default_rng(0)
x = rng.normal(3, 2, (4, 8, 5, 7)).astype("f4")
w, b = rng.normal(1, 0.3, (2, 8)).astype("f4")
mean, var = np.arange(8.0), np.arange(1.0, 9.0)
y = fastbn.batch_norm(x, mean, var, w, b)
wanted = reference.normalize(x, mean, var, w, b, 1e-5, 1)
np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)
found = [len(native.compiled), len(native.loaded)]
if TRAINING:
    y = fastbn.batch_norm(x, None, None, w, b)
    np.testing.assert_allclose(y, reference.forward(x, w, b, 1e-5, 1)[0], rtol=1e-4, atol=1e-5)
    found += [len(native.compiled), len(native.loaded)]
print(json.dumps([found, records]))
"""


def answer(path, prefix=(), training=False, **environment):
    """``[compiled, loaded], records`` of a process with nothing but what an image has."""
    dropped = ("NUMBA", "FASTBN", "PYTHON", "XDG")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    home = path / "fastbn" / "__init__.py" / "home"  # under a file: not even root can make it
    kept |= {"HOME": str(home), "PYTHONPATH": str(path), "PYTHONDONTWRITEBYTECODE": "1"}
    code = ANSWER.replace("TRAINING", str(training))
    done = subprocess.run(
        [*prefix, sys.executable, "-W", "ignore", "-c", code],
        env={**kept, **environment}, cwd="/", capture_output=True, text=True, timeout=tools.TIMEOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def as_another_user():
    """What a command begins with that is run by nobody; the test is skipped where none can be."""
    if not hasattr(os, "getuid") or os.getuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("needs root and setpriv, to become another user")
    prefix = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    code = "import numba, numpy"
    done = subprocess.run([*prefix, sys.executable, "-c", code], cwd="/", capture_output=True)
    if done.returncode:
        pytest.skip("another user may not run this Python: it is in a folder of root's alone")
    return prefix


def copied(to, source=tools.PACKAGE):
    """The package and what of the tests it needs, as an installation has them: no caches."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(source, to / "fastbn", ignore=ignored)
    shutil.copytree(ROOT / "tests", to / "tests", ignore=ignored)
    return to


def lock(folder):
    """Nobody may write there, everybody may read."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)


@pytest.fixture(scope="module")
def open_path(tmp_path_factory):
    """A folder that others may pass through, unlike pytest's."""
    folder = tmp_path_factory.mktemp("image")
    for parent in (folder, *folder.parents):
        if parent != Path(parent.anchor) and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    folder.chmod(0o755)
    yield folder
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode | 0o700)


# --- the README's Dockerfile --------------------------------------------------------------------


def dockerfile():
    """Its instructions, of which each is a word and the rest."""
    if not (ROOT / "README.md").exists():
        pytest.skip("not in a checkout")
    (text,) = re.findall(r"```dockerfile\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = text.replace("\\\n", " ").splitlines()
    return [tuple(line.split(None, 1)) for line in lines if line and line[0] != "#"]


def test_the_image_is_built_in_two_stages_and_has_no_root():
    steps = dockerfile()
    stages = [k for k, (word, _) in enumerate(steps) if word == "FROM"]
    assert len(stages) == 2
    final = dict(steps[stages[1] :])
    assert final["USER"].split(":")[0] not in ("root", "0")
    variables = dict(pair.split("=", 1) for pair in shlex.split(final["ENV"]))
    copies = [rest.split()[1:] for word, rest in steps[stages[1] :] if word == "COPY"]
    assert [variables["FASTBN_CACHE_DIR"]] * 2 in copies


@pytest.fixture(scope="module")
def image(open_path):
    """The package where an image has it, and the cache that the README's command has filled."""
    if not internals.x86() or not internals.has("avx2") or not internals.has("fma"):
        pytest.skip("the README's image is for processors with AVX2")
    (command,) = (rest for word, rest in dockerfile() if word == "RUN" and "warmup" in rest)
    words = shlex.split(command)[shlex.split(command).index("warmup") :]
    cache = open_path / "cache"
    words[words.index("--into") + 1] = str(cache)
    build = copied(open_path / "build")
    options = {"cwd": build, "capture_output": True, "text": True, "timeout": tools.TIMEOUT}
    done = subprocess.run([sys.executable, "-m", "fastbn", *words, "--json"], **options)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["folder"] == str(cache)
    site = copied(open_path / "site", build / "fastbn")
    assert not list(build.rglob("*.fastbn"))  # into that folder, and nowhere else
    shutil.rmtree(build)
    lock(site)
    lock(cache)
    return site, cache


def test_another_user_compiles_nothing(image):
    site, cache = image
    found, records = answer(site, as_another_user(), FASTBN_CACHE_DIR=str(cache))
    assert found[0] == 0
    assert found[1] >= 3
    assert records == []


def test_nothing_is_compiled_on_a_read_only_file_system(image):
    site, cache = image
    user = as_another_user()
    mount = (
        'for d in "$1" "$2"; do mount --bind "$d" "$d" && mount -o remount,ro,bind "$d" || exit 9;'
        ' ! touch "$d/x" 2>/dev/null || exit 8; done; shift 2; exec "$@"'
    )
    prefix = ("unshare", "-m", "sh", "-c", mount, "sh", str(site), str(cache))
    possible = subprocess.run([*prefix, "true"], capture_output=True)
    if possible.returncode:
        pytest.skip("this system lets nobody mount a folder read-only")
    found, records = answer(site, (*prefix, *user), FASTBN_CACHE_DIR=str(cache))
    assert (found[0], records) == (0, [])


def test_this_user_compiles_nothing(image, tmp_path):
    """Wherever the files lie among the folders that are read, and though another is empty."""
    site, cache = image
    moved = copied(tmp_path / "moved", site / "fastbn")
    environments = {"FASTBN_CACHE_DIR": str(cache), "NUMBA_CACHE_DIR": str(tmp_path / "empty")}
    assert answer(moved, **environments)[0][0] == 0
    shutil.copytree(cache, tmp_path / "numba" / "fastbn")
    assert answer(moved, NUMBA_CACHE_DIR=str(tmp_path / "numba"))[0][0] == 0
    (moved / "fastbn" / "kernels").chmod(0o755)
    shutil.copytree(cache, moved / "fastbn" / "kernels" / "__pycache__")
    assert answer(moved, NUMBA_CACHE_DIR=str(tmp_path / "empty"))[0][0] == 0
    shutil.move(moved, tmp_path / "moved again")
    assert answer(tmp_path / "moved again")[0][0] == 0


# --- for another processor ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def generic(tmp_path_factory):
    """The package, and evaluation of float32 for any processor."""
    path = tmp_path_factory.mktemp("generic")
    package, cache = copied(path / "site"), path / "cache"
    (package / "fastbn" / "kernels" / "__pycache__").write_text("not a folder")
    code = f"""
import fastbn
fastbn.warmup(["float32"], ["channels_first"], ["evaluation"], into={str(cache)!r}, cpu="generic")
"""
    tools.run(code, path=package)
    return package, cache


def test_code_for_any_processor_is_found_and_right(generic):
    package, cache = generic
    (target,) = cache.glob("target.*.json")
    assert json.loads(target.read_text())["processor"] == "generic"
    assert answer(package, FASTBN_CACHE_DIR=str(cache)) == [[0, 4], []]


def test_with_it_in_one_process_is_what_is_compiled_here(generic, tmp_path):
    """Both would pass vectors to one another in registers of two sizes, if names were the same."""
    package, cache = generic
    shutil.copytree(cache, tmp_path / "cache")
    given = {"FASTBN_CACHE_DIR": str(tmp_path / "cache"), "training": True}
    given["NUMBA_CACHE_DIR"] = str(tmp_path / "another")
    (*evaluation, compiled, loaded), records = answer(package, **given)
    assert evaluation == [0, 4]
    assert compiled > 0
    assert loaded >= 4
    assert len(records) == 1
    assert records[0].startswith("INFO kernels are compiled")
    assert "kernels for this processor, but " in records[0]
    assert " was neither warmed up nor called before; " in records[0]
    (*_, compiled_then, loaded_then), records = answer(package, **given)
    assert (compiled_then, loaded_then) == (0, compiled + loaded)
    assert records == []
    assert not (tmp_path / "another").exists()  # new files go to the first folder alone


def test_who_tells_numba_the_processor_gets_that_alone(generic, tmp_path):
    package, cache = generic
    shutil.copytree(cache, tmp_path / "cache")
    given = {"FASTBN_CACHE_DIR": str(tmp_path / "cache"), "NUMBA_CPU_NAME": "x86-64"}
    if not internals.x86():
        pytest.skip("a name of x86 processors")
    found, records = answer(package, **given)
    assert found == [4, 0]
    assert "NUMBA_CPU_FEATURES asks for x86-64" in records[0]


def test_a_cache_that_cannot_serve_and_be_mended_is_a_warning(generic, tmp_path):
    package, _ = generic
    (tmp_path / "file").write_text("")
    found, records = answer(package, FASTBN_CACHE_DIR=str(tmp_path / "file" / "cache"))
    assert found == [4, 0]
    assert len(records) == 1
    assert records[0].startswith("WARNING kernels are compiled (")
    assert "is no folder; nothing compiled can be kept" in records[0]


def test_features_that_a_name_stands_for():
    if not internals.x86():
        pytest.skip("names of x86 processors")
    assert internals.features_of("generic") == ""
    two, three, four = (on(f"x86-64-v{k}") for k in (2, 3, 4))
    assert {"sse4.2", "popcnt", "ssse3"} <= two
    assert not any("avx" in each or "fma" in each for each in two)
    assert {"avx2", "fma", "f16c", "bmi2"} <= three
    assert not any("avx512" in each for each in three)
    assert {"avx512f", "avx512bw", "avx512vl"} <= four
    assert two < three < four
    # virtual machines hide it, though a Haswell has it
    assert "-fsgsbase" in internals.features_of("haswell").split(",")


def on(name):
    return {each[1:] for each in internals.features_of(name).split(",") if each[0] == "+"}


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"cpu": "pentium-99"}, ValueError, "cpu must be .* got 'pentium-99'"),
        ({"cpu": 'x" "y'}, ValueError, "cpu must be"),
        ({"cpu": 3}, ValueError, "cpu must be"),
        ({"cpu": "x86-64-v2", "dtypes": ["float16"]}, ValueError, "float16 needs .* F16C"),
        ({"into": "file/folder"}, OSError, "file"),
        ({"into": "file"}, OSError, "file"),
    ],
    ids=str,
)
def test_warmup_refuses(options, error, says, tmp_path, monkeypatch):
    if not internals.x86():
        pytest.skip("names of x86 processors")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(error, match=says):
        fastbn.warmup(**options, progress=False)


def test_processes_that_do_not_compile_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false") or "/no/such/program")
    with pytest.raises(RuntimeError, match="kernels were not compiled, such as"):
        fastbn.warmup(["float32"], into=tmp_path, progress=False)
