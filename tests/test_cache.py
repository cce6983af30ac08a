"""The disk cache of native code: broken, stale, shared or not to be had.

The worst that may come of it is a compilation: never a wrong number, an error or a crash. Each
test runs scripts in processes of their own, with a copy of the package and caches of their own.
"""

import os
import pickle
import shutil
import signal
import sys

import pytest

from tests import internals
from tests import subprocess_tools as tools
from tests.cache_tools import Place, run_each, run_jobs

pytestmark = [
    pytest.mark.compiled,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system"),
]


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A place whose cache has all that one evaluation needs."""
    path = tools.copy_package(tmp_path_factory.mktemp("package"))
    place = Place(path, tmp_path_factory.mktemp("cache"))
    compiled, loaded = place.run()
    assert compiled == len(place.files()) >= 3
    assert loaded == 0
    assert place.run() == (0, compiled)
    return place


@pytest.fixture
def all_of_it(full):
    """How many pieces of native code an evaluation needs."""
    return len(full.files())


@pytest.fixture
def copied(full, tmp_path):
    """The same with a cache of one's own."""
    shutil.copytree(full.cache, tmp_path / "cache")
    return full.with_cache(tmp_path / "cache")


# --- places -----------------------------------------------------------------------------------


def test_no_place_for_a_cache_costs_a_compilation_and_no_call(full, all_of_it, tmp_path):
    (tmp_path / "file").write_text("")
    places = full.with_cache(tmp_path / "file" / "cache"), full.with_cache(None)
    assert run_each(places) == [(all_of_it, 0)] * 2


def test_places_are_used_in_order(full, all_of_it, tmp_path):
    """A folder that is named, that of the sources, that of the user."""
    home, cache = tmp_path / "home", tmp_path / "cache"
    path = tools.copy_package(tmp_path, beside=True)
    beside = path / "fastbn" / "kernels" / "__pycache__"
    places = {
        cache / "fastbn": Place(path, cache, tmp_path / "other home"),
        home / "fastbn": Place(full.path, None, home),
    }
    assert [place.run() for place in places.values()] == [(all_of_it, 0)] * 2
    places[beside] = Place(path, None, home)
    assert places[beside].run() == (0, all_of_it)  # it looks into each
    for file in home.rglob("*.fastbn"):
        file.unlink()
    assert places[beside].run() == (all_of_it, 0)
    for folder in (cache / "fastbn", beside):
        assert len(list(folder.glob("*.fastbn"))) == all_of_it
    assert not list(home.rglob("*.fastbn"))


#: From here on what a folder's owner and mode say holds for root as well.
ORDINARY_USER = """
import ctypes, os
if os.getuid() == 0:
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(header, nothing) == 0
try:
    open(os.environ["NUMBA_CACHE_DIR"] + "/fastbn/mine", "w")
except OSError:
    pass
else:
    raise SystemExit("the folder is not read-only")
"""


@pytest.fixture
def protect():
    """Let nobody but their owner write to some folders; returned to the test's user afterwards."""
    if not sys.platform.startswith("linux"):
        pytest.skip("capabilities and owners as Linux has them")
    changed = []

    def protect(cache, mode, owner=None):
        changed.append(cache)
        for path in (*cache.rglob("*"), cache):
            path.chmod(mode if path.is_dir() else mode & 0o444)
            if owner is not None:
                os.chown(path, owner, owner)

    yield protect
    for cache in changed:
        for path in (cache, *cache.rglob("*")):
            path.chmod(0o755)


def test_a_read_only_cache_is_read(copied, all_of_it, protect):
    protect(copied.cache, 0o555)
    assert copied.run(ORDINARY_USER) == (0, all_of_it)
    compiled, loaded = copied.run(ORDINARY_USER, dtypes=("f4", "f8"))
    assert compiled > 0
    assert loaded == all_of_it
    assert len(copied.files()) == all_of_it


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="needs a second user")
def test_a_folder_of_another_user(copied, all_of_it, protect, tmp_path):
    """One that may be read serves; one that may not is passed over."""
    protect(copied.cache, 0o755, owner=12345)
    assert copied.run(ORDINARY_USER) == (0, all_of_it)
    protect(copied.cache, 0o700, owner=12345)
    with_home = Place(copied.path, copied.cache, tmp_path / "home")
    places = copied, with_home
    assert run_each(places, ORDINARY_USER) == [(all_of_it, 0)] * 2
    assert with_home.run(ORDINARY_USER) == (0, all_of_it)


FULL_DISK = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, ({bytes}, resource.RLIM_INFINITY))
"""


def test_a_full_disk_costs_a_compilation_and_no_call(full, all_of_it, tmp_path):
    """Files that can grow to some size only, down to none: writing fails half way."""
    pytest.importorskip("resource")
    places = {size: full.with_cache(tmp_path / str(size)) for size in (0, 4000)}
    jobs = [place.job(FULL_DISK.replace("{bytes}", str(k))) for k, place in places.items()]
    assert run_jobs(full.path, jobs) == [(all_of_it, 0)] * 2
    assert not any(place.files() for place in places.values())  # nor a half of one
    assert places[4000].run() == (all_of_it, 0)  # there is room again
    assert places[4000].run() == (0, all_of_it)


# --- files ------------------------------------------------------------------------------------


def flip(data, place):
    place %= len(data)
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


#: What may become of a file.
DAMAGE = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "all but one byte": lambda data: data[:-1],
    "the checksum alone": lambda data: data[:32],
    "a part of the checksum": lambda data: data[:7],
    "twice": lambda data: data + data,
    "garbage": lambda data: b"\x80\x05garbage" * 2000,
    "zeros": lambda data: bytes(len(data)),
    "a flipped bit at the end": lambda data: flip(data, -1),
    "a flipped bit in the middle": lambda data: flip(data, len(data) // 2),
    "a flipped bit in the checksum": lambda data: flip(data, 3),
}
#: What may stand behind a checksum that is right.
CONTENTS = {
    "nothing": b"",
    "no pickle": b"garbage",
    "a pickle that does not load": pickle.dumps(internals.Broken()),
    "a pickle of nobody's class": b"cno_such_module\nno_such_name\n.",
    "another pickle": pickle.dumps(None),
    "too few values": pickle.dumps((1, 2, 3)),
    "too many values": pickle.dumps(tuple(range(99))),
}


def test_damaged_files_are_compiled_anew_and_mended(full, all_of_it, tmp_path):
    """Every file in a way of its own, in turn, until each has been damaged in every way."""
    ways = [*DAMAGE, *CONTENTS]
    places, wanted = [], []
    for first in range(0, len(ways), all_of_it):
        place, some = full.with_cache(tmp_path / str(first)), ways[first : first + all_of_it]
        shutil.copytree(full.cache, place.cache)
        for path, way in zip(place.files(), some, strict=False):
            if way in DAMAGE:
                path.write_bytes(DAMAGE[way](path.read_bytes()))
            else:
                internals.overwrite_cached(path, CONTENTS[way])
        places.append(place)
        wanted.append((len(some), all_of_it - len(some)))
    assert run_each(places) == wanted
    assert run_each(places) == [(0, all_of_it)] * len(places)


@pytest.mark.slow
def test_what_is_no_file_is_compiled(copied, all_of_it):
    """A folder, a link to nowhere, and one to itself."""
    for k, path in enumerate(copied.files()):
        path.unlink()
        if k % 3 == 0:
            path.mkdir()
        else:
            path.symlink_to(path if k % 3 == 1 else path.with_suffix(".gone"))
    assert copied.run() == (all_of_it, 0)


def test_a_half_deleted_cache_is_completed(full, all_of_it, tmp_path):
    places, wanted = [full.with_cache(tmp_path / str(half)) for half in range(2)], []
    for half, place in enumerate(places):
        shutil.copytree(full.cache, place.cache)
        deleted = place.files()[half::2]
        for path in deleted:
            path.unlink()
        wanted.append((len(deleted), all_of_it - len(deleted)))
    assert run_each(places) == wanted
    assert run_each(places) == [(0, all_of_it)] * 2


def test_files_under_each_others_names_are_not_taken(copied, all_of_it):
    """All code has one signature: taken for another's, it would run and do something else."""
    files = copied.files()
    contents = [path.read_bytes() for path in files]
    for path, content in zip(files, contents[1:] + contents[:1], strict=True):
        path.write_bytes(content)
    assert copied.run() == (all_of_it, 0)
    assert copied.run() == (0, all_of_it)


@pytest.fixture(scope="module")
def changed(full, tmp_path_factory):
    """A version of the package whose results are larger by one, and its cache."""
    path = tools.copy_package(tmp_path_factory.mktemp("changed"), full.path / "fastbn")
    place = Place(path, tmp_path_factory.mktemp("changed cache"))
    formulas = path / "fastbn" / "kernels" / "formulas.py"
    before = formulas.read_text()
    after = before.replace("bias - residual * scale\n", "bias - residual * scale + 1.0\n")
    assert after != before
    formulas.write_text(after)
    return place


def test_a_formula_that_changes_is_compiled_anew(copied, changed, all_of_it):
    """Though it stands in another file than the code that uses it."""
    one, other = copied, changed.with_cache(copied.cache)
    assert other.run(shift=1.0) == (all_of_it, 0)
    assert other.run(shift=1.0) == (0, all_of_it)
    assert one.run() == (0, all_of_it)


def test_files_of_another_version_under_the_right_names_are_not_taken(copied, changed, all_of_it):
    assert changed.run(shift=1.0) == (all_of_it, 0)
    theirs = {path.name.split(".")[0]: path for path in changed.files()}
    for path in copied.files():
        shutil.copy(theirs[path.name.split(".")[0]], path)
    assert copied.run() == (all_of_it, 0)
    assert copied.run() == (0, all_of_it)


def test_old_versions_do_not_pile_up(full, all_of_it, tmp_path):
    place = full.with_cache(tmp_path)
    (tmp_path / "fastbn").mkdir()
    names = [path.name.split(".")[0] for path in full.files()]
    for age in range(20):
        for name in names:
            old = tmp_path / "fastbn" / f"{name}.{age:020}.fastbn"
            old.write_bytes(b"old")
            os.utime(old, (1e9 - age, 1e9 - age))
    assert place.run() == (all_of_it, 0)
    assert place.run() == (0, all_of_it)
    assert len(place.files()) <= 9 * all_of_it


# --- processes --------------------------------------------------------------------------------


def test_processes_that_compile_into_one_cache_at_once(full, all_of_it, tmp_path):
    """One of them compiles a unit, the others wait for it and load it."""
    place = full.with_cache(tmp_path)
    orders = ("f4",), ("f4", "f8"), ("f4",), ("f8", "f4")
    jobs = [place.job(dtypes=order) for order in orders]
    found = run_jobs(full.path, jobs, at_once=4)
    assert all(sum(each) >= all_of_it for each in found), found
    assert sum(compiled for compiled, _ in found) == len(place.files()), found
    compiled, loaded = place.run(dtypes=("f4", "f8"))
    assert compiled == 0
    assert loaded == len(place.files()) > all_of_it


#: The process is killed, or forked, when a file is half or wholly written, or already renamed.
DISTURBED = """
import io, os, signal

def disturb():
    global disturbed
    if not disturbed and {fork}:
        disturbed = os.fork() or -1
    elif not disturbed:
        os.kill(os.getpid(), signal.SIGKILL)

class Halting(io.FileIO):
    def write(self, data):
        super().write(data[: len(data) // 2])
        self.flush()
        disturb()
        super().write(data[len(data) // 2 :])

def replace(one, other):
    if {when} == 1:
        disturb()
    rename(one, other)
    if {when} == 2:
        disturb()

disturbed, rename, fdopen = 0, os.replace, os.fdopen
os.replace = replace
if {when} == 0:
    os.fdopen = Halting
"""
AFTERWARDS = """
assert disturbed > 0  # the child has but the thread that compiles, and ends with it
assert os.waitpid(disturbed, 0)[1] == 0
"""


def disturbed(when, fork):
    return DISTURBED.replace("{when}", str(when)).replace("{fork}", str(fork))


def test_a_process_that_is_killed_while_it_writes(full, all_of_it, tmp_path):
    places = [full.with_cache(tmp_path / str(when)) for when in range(3)]
    jobs = [place.job(disturbed(when, fork=False)) for when, place in enumerate(places)]
    assert run_jobs(full.path, jobs, at_once=3) == [f"exit code {-signal.SIGKILL}"] * 3
    assert run_each([places[0], places[2]]) == [(all_of_it, 0), (all_of_it - 1, 1)]
    assert run_each([places[0], places[2]]) == [(0, all_of_it)] * 2


def test_a_process_that_is_forked_while_it_writes(full, all_of_it, tmp_path):
    """Both go on to write to what was one file, and to rename it."""
    places = [full.with_cache(tmp_path / str(when)) for when in range(3)]
    jobs = [place.job(disturbed(k, fork=True), AFTERWARDS) for k, place in enumerate(places)]
    assert run_jobs(full.path, jobs) == [(all_of_it, 0)] * 3
    assert all(sum(found) == all_of_it for found in run_each(places))
    assert run_each(places) == [(0, all_of_it)] * 3
