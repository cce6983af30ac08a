"""Compilation: what is compiled, when, and a disk cache that is broken, stale or shared."""

import os
import shutil

import numpy as np
import pytest

import fastbn
from fastbn.kernels import cpu_channels, cpu_first, cpu_last
from fastbn.kernels.compile import Kernel
from tests import subprocess_tools as tools

pytestmark = pytest.mark.compiled

#: One small evaluation call compiles one serial kernel; prints what the cache did for it.
EVALUATE = """
import numpy as np, fastbn
from fastbn.kernels import cpu_first
from tests import reference

kernel = cpu_first.normalize.serial
for dtype in {dtypes}:
    x = np.random.default_rng(0).normal(3, 2, (2, 3, 40)).astype(dtype)
    mean, var = np.arange(3.0, dtype=dtype), np.arange(1.0, 4.0, dtype=dtype)
    y = fastbn.batch_norm(x, mean, var)
    assert y.tobytes() == fastbn.batch_norm(x, mean, var).tobytes()
    wanted = reference.normalize(x, mean, var, np.ones(3), np.zeros(3), 1e-5, 1)
    np.testing.assert_allclose(y - {shift}, wanted, rtol=1e-5, atol=1e-5)
hits, misses = (sum(getattr(kernel.stats, n).values()) for n in ("cache_hits", "cache_misses"))
print(hits, misses)
"""


def evaluate(*dtypes, shift=0.0):
    return EVALUATE.replace("{dtypes}", repr(dtypes or ("f4",))).replace("{shift}", repr(shift))


LOADED, COMPILED = ["1", "0"], ["0", "1"]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """Folder with a copy of the package, and one with a cache that it has filled."""
    folder = tmp_path_factory.mktemp("package")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(tools.PACKAGE, folder / "fastbn", ignore=ignored)
    cache = tmp_path_factory.mktemp("cache")
    options = {"path": folder, "env": {"NUMBA_CACHE_DIR": cache}}
    assert tools.run(evaluate(), **options).split() == COMPILED
    assert tools.run(evaluate(), **options).split() == LOADED
    return folder, cache


@pytest.mark.parametrize("where", ["under a file", "/proc", "nowhere at all"])
def test_no_place_for_a_cache_costs_a_compilation_and_no_call(where, package, tmp_path):
    path, file = package[0], tmp_path / "file"
    file.write_text("")
    env = {"NUMBA_CACHE_DIR": file / "cache"}
    if where == "/proc":
        env = {"NUMBA_CACHE_DIR": "/proc/nonexistent"}
    elif where == "nowhere at all":  # neither beside the sources nor in the home directory
        path = tmp_path
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(package[0] / "fastbn", path / "fastbn", ignore=ignored)
        for folder in ("fastbn", "fastbn/kernels"):
            (path / folder / "__pycache__").write_text("not a directory")
        places = ("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA")
        env = {"NUMBA_CACHE_DIR": None, **dict.fromkeys(places, file / "home")}
    did = tools.run(evaluate(), path=path, env=env).split()
    # the first two may find a place beside the sources
    assert did == COMPILED or (did == LOADED and where != "nowhere at all")


FULL_DISK = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, ({bytes}, resource.RLIM_INFINITY))
"""


def test_a_full_disk_costs_a_compilation_and_no_call(package, tmp_path):
    """Files that can grow to some size only, down to none: writing fails half way."""
    pytest.importorskip("resource")
    caches = [tmp_path / "none", tmp_path / "half"]
    codes = [FULL_DISK.replace("{bytes}", size) + evaluate() for size in ("0", "4000")]
    full = []
    for code, cache in zip(codes, caches, strict=True):
        options = {"path": package[0], "env": {"NUMBA_CACHE_DIR": cache}}
        full.append((options, tools.start(code, **options)))
    for options, process in full:
        assert tools.finish(process).split() == COMPILED
        assert tools.run(evaluate(), **options).split() == COMPILED  # there is room again
        assert tools.run(evaluate(), **options).split() == LOADED


DAMAGE = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "all but one byte": lambda data: data[:-1],
    "garbage": lambda data: b"\x80\x05garbage" * 20,
}


@pytest.mark.parametrize("kind", [".nbi", ".nbc"])
def test_a_damaged_cache_is_compiled_anew_and_mended(kind, package, tmp_path):
    runs = []
    for number, damage in enumerate(DAMAGE.values()):
        cache = tmp_path / str(number)
        shutil.copytree(package[1], cache)
        files = [file for file in cache.rglob(f"*{kind}") if "normalize_serial" in file.name]
        assert files
        for file in files:
            file.write_bytes(damage(file.read_bytes()))
        runs.append({"path": package[0], "env": {"NUMBA_CACHE_DIR": cache}})
    for k in range(0, len(runs), 2):
        processes = [tools.start(evaluate(), **options) for options in runs[k : k + 2]]
        outputs = [tools.finish(process).split() for process in processes]
        assert outputs == [COMPILED] * 2
    for options in runs:
        assert tools.run(evaluate(), **options).split() == LOADED


def test_a_helper_that_changes_is_compiled_anew(package, tmp_path):
    """Numba looks at the kernel's own file only; the formula stands in another."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(package[0] / "fastbn", tmp_path / "fastbn", ignore=ignored)
    options = {"path": tmp_path, "env": {"NUMBA_CACHE_DIR": tmp_path / "cache"}}
    assert tools.run(evaluate(), **options).split() == COMPILED
    formulas = tmp_path / "fastbn" / "kernels" / "formulas.py"
    before = formulas.read_text()
    after = before.replace("bias - residual * scale\n", "bias - residual * scale + 1.0\n")
    assert after != before
    formulas.write_text(after)
    assert tools.run(evaluate(shift=1.0), **options).split() == COMPILED
    formulas.write_text(before)
    assert tools.run(evaluate(), **options).split() == LOADED


@pytest.mark.parametrize("number", [2, 4])
def test_processes_that_compile_into_one_cache_at_once(number, package, tmp_path):
    options = {"path": package[0], "env": {"NUMBA_CACHE_DIR": tmp_path}}
    orders = [("f4", "f8"), ("f8", "f4")] * (number // 2)
    tools.run_all([evaluate(*order) for order in orders], at_once=number, **options)
    assert tools.run(evaluate("f4", "f8"), **options).split() == ["2", "0"]


LOCK = """
import os, time, numpy as np, fastbn
from fastbn.kernels import cpu_first

fastbn.batch_norm(np.ones((2, 3, 40), "f4"), np.ones(3, "f4"), np.ones(3, "f4"))
cache = cpu_first.normalize.serial._cache
with cache._locked():
    pid = os.fork()
    if pid == 0:
        time.sleep(20)
        os._exit(0)
start = time.monotonic()
with cache._locked():
    waited = time.monotonic() - start
os.kill(pid, 9)
assert waited < 10, f"waited {waited:.0f} s for the child of a fork"
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_child_does_not_keep_the_lock_of_the_cache(package):
    """A lock on a file belongs to all who have inherited it, until one of them unlocks."""
    tools.run(LOCK, path=package[0], env={"NUMBA_CACHE_DIR": package[1]})


INTERRUPTED = """
import random, signal
import numpy as np, fastbn

class Interrupt(KeyboardInterrupt): pass

def interrupt(*_):
    raise Interrupt

chance, faults = random.Random({seed}), 0
signal.signal(signal.SIGINT, interrupt)
signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
for first in (1, -1):
    for dtype in ("f4", "f8"):
        x = np.random.default_rng(1).normal(2, 3, (4, 3, 3)).astype(dtype)
        one = np.ones(3, dtype)
        for _ in range(3):
            try:
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.01, 0.8))
                fastbn.batch_norm(x, 2 * one, one, axis=first)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Interrupt:
                faults += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
        y = fastbn.batch_norm(x, 2 * one, one, axis=first)
        np.testing.assert_allclose(y, (x - 2) / np.sqrt(1 + 1e-5), rtol=1e-5, atol=1e-6)
print(faults)
"""


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_ctrl_c_while_it_compiles_and_then_the_next_call(package, tmp_path):
    options = {"path": package[0], "env": {"NUMBA_CACHE_DIR": tmp_path}}
    codes = [INTERRUPTED.replace("{seed}", str(seed)) for seed in (1, 2)]
    faults = sum(map(int, tools.run_all(codes, **options)))
    assert faults >= 6
    hits, misses = map(int, tools.run(evaluate("f4", "f8"), **options).split())
    assert hits + misses == 2


# --- how much is compiled -------------------------------------------------------------------


def compiled():
    """Number of signatures of every kernel, serial and parallel."""
    modules = cpu_first, cpu_last, cpu_channels
    return {
        (module.__name__, name, target): len(getattr(kernel, target).signatures)
        for module in modules
        for name, kernel in vars(module).items()
        if isinstance(kernel, Kernel)
        for target in ("serial", "parallel")
    }


def variants(x):
    """The numbers of x in arrays of every flag and stride."""
    yield "plain", x
    readonly = x.copy()
    readonly.flags.writeable = False
    yield "read-only", readonly
    raw = np.empty(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    raw[...] = x
    assert not raw.flags.aligned
    yield "unaligned", raw
    yield "big-endian", x.astype(x.dtype.newbyteorder(">"))
    yield "Fortran", np.asfortranarray(x)
    yield "steps", np.repeat(np.repeat(x, 2, 0), 2, -1)[::2, ..., ::2]
    yield "negative strides", np.ascontiguousarray(x[::-1, ..., ::-1])[::-1, ..., ::-1]
    yield "zero strides", np.broadcast_to(x[:1], x.shape)
    yield "subclass", x.view(type("Mine", (np.ndarray,), {}))


def use(x, axis):
    c = x.shape[axis]
    mean, var = np.zeros(c, x.dtype.newbyteorder("=")), np.ones(c, x.dtype.newbyteorder("="))
    fastbn.batch_norm(x, mean, var, axis=axis)
    _, cache = fastbn.batch_norm_forward(x, mean, var, training=True, axis=axis)
    fastbn.batch_norm_backward(x, cache)
    fastbn.channel_stats(x, axis)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("axis", [1, -1])
def test_no_flag_of_an_array_adds_a_specialization(dtype, axis, rng):
    shape = (4, 3, 5, 7) if axis == 1 else (4, 5, 7, 3)
    x = rng.normal(1, 2, shape).astype(dtype)
    # some of the variants lie in memory as the other layout does
    use(np.ascontiguousarray(x), axis)
    use(np.ascontiguousarray(np.moveaxis(x, axis, 1)), 1)
    use(np.ascontiguousarray(np.moveaxis(x, axis, -1)), -1)
    before = compiled()
    for name, variant in variants(x):
        try:
            use(variant, axis)
        except TypeError:
            assert name == "subclass"
        assert compiled() == before, name


WARMED = """
import sys, time
import numpy as np, numba, fastbn
from tests.test_cache import compiled, use, variants

assert not sum(compiled().values())
start = time.perf_counter()
fastbn.warmup({dtypes}, progress={progress})
kernels = {k: n for k, n in compiled().items()}
print(sum(kernels.values()))
if {more}:
    rng = np.random.default_rng(0)
    for threads in (1, 4):
        fastbn.set_num_threads(threads)
        for dtype in ("f4", "f8"):
            for shape, axis in [((5, 3), 1), ((300, 400), 1), ((2, 3, 9), 1), ((3, 2, 60_000), 1),
                                ((4, 70, 8, 9), 1), ((90_000, 3), 1), ((2, 3, 3, 5), -1),
                                ((64, 64, 33), 2), ((2, 1, 200_000), 1), ((2, 3, 1), 1)]:
                x = rng.normal(0, 1, shape).astype(dtype)
                for name, v in variants(x):
                    try:
                        use(v, axis)
                    except TypeError:
                        assert name == "subclass"
                    assert compiled() == kernels, (name, shape, dtype)
                # statistics and parameters of the other dtype, of none, out, layers
                c, other = shape[axis], "f8" if dtype == "f4" else "f4"
                s = np.ones((4, 2 * c), other)[:, ::2]
                fastbn.batch_norm(x, *s, axis=axis, out=np.empty_like(x))
                fastbn.batch_norm(x, *s, axis=axis, training=True, out=x)
                fastbn.batch_norm(x, s[0], s[1].astype(dtype), axis=axis, training=True)
                fastbn.batch_norm(x, axis=axis)
                if x.ndim < 4 and axis == 1:
                    for track in (True, False):
                        bn = fastbn.BatchNorm1d(c, dtype=other, track_running_stats=track)
                        bn.backward(bn(x)), bn.eval()(x)
                assert compiled() == kernels, ("mixed", shape, dtype)
"""


def warmed(dtypes, progress=False, more=False):
    code = WARMED
    for name, value in {"dtypes": dtypes, "progress": progress, "more": more}.items():
        code = code.replace(f"{{{name}}}", repr(value))
    return code


def test_after_warmup_nothing_is_compiled_anymore():
    tools.run(warmed(["float32", "float64"], more=True), timeout=600)


def test_warmup_compiles_as_many_kernels_as_it_says():
    both, single, double = (
        int(tools.run(warmed(dtypes), timeout=600))
        for dtypes in (["float32", "float64"], ["float32"], ["float64"])
    )
    assert f"{single} for float32 and {double} for\n    float64" in fastbn.warmup.__doc__
    assert both <= single + double


def test_warmup_shows_its_progress_on_a_terminal_only_if_asked(monkeypatch, capsys):
    from fastbn import _progress

    for layout in ("channels_first", "channels_last"):
        fastbn.warmup(["float32"], [layout], progress=False)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(_progress, "_is_terminal", lambda stream: True)
    fastbn.warmup(["float32"], ["channels_first"])
    out, err = capsys.readouterr()
    assert out == ""
    assert "compiling" in err
    fastbn.warmup(["float32"], ["channels_first"], progress=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"dtypes": ["float16"]}, ValueError, "dtypes must be among float32, float64"),
        ({"dtypes": ["int32"]}, ValueError, "dtypes must be among"),
        ({"dtypes": ["nonsense"]}, (TypeError, ValueError), "nonsense"),
        ({"dtypes": "float32"}, TypeError, "dtypes must be a list"),
        ({"dtypes": np.float32}, TypeError, "dtypes must be a list"),
        ({"dtypes": np.dtype("f4")}, TypeError, "dtypes must be a list"),
        ({"layouts": "channels_first"}, TypeError, "layouts must be a list"),
        ({"layouts": ["NCHW"]}, ValueError, "layouts must be among channels_first"),
        ({"layouts": [1]}, ValueError, "layouts must be among"),
        ({"dtypes": 3}, TypeError, "not iterable"),
    ],
    ids=str,
)
def test_warmup_refuses_what_it_does_not_know(arguments, error, says):
    with pytest.raises(error, match=says):
        fastbn.warmup(**arguments, progress=False)
