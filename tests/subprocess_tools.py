"""Scripts run in a process of their own, so that a crash or a hang is a failed test."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import pytest

import fastbn

ROOT = Path(__file__).parent.parent
PACKAGE = Path(fastbn.__file__).parent
LAYERS = ("workqueue", "omp", "tbb")

#: Seconds that a script may take: many more than any needs, because a machine may be busy.
TIMEOUT = 900


def start(code, *, layer=None, path=PACKAGE.parent, env=None, threads=4):
    """Start ``code`` in Python, with warnings as errors and ``path/fastbn`` as the package."""
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (path, ROOT))),
        "NUMBA_NUM_THREADS": str(threads),
        "PYTHONFAULTHANDLER": "1",
    }
    variables.pop("FASTBN_CACHE_DIR", None)
    variables["FASTBN_NUM_THREADS"] = str(threads)  # also while others want the processors
    if layer is not None:
        variables["NUMBA_THREADING_LAYER"] = layer
    if layer == "tbb":  # pip puts the library where the dynamic linker does not look
        places = f"{sys.prefix}/lib", os.environ.get("LD_LIBRARY_PATH", "")
        variables["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, places))
    for name, value in (env or {}).items():
        variables.pop(name, None)
        if value is not None:
            variables[name] = str(value)
    # Python 3.12 and later warn of every fork of a process with threads
    quiet = "ignore:This process:DeprecationWarning"
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-W", quiet, "-c", code],
        env=variables,
        cwd=path,  # which Python looks in first
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process, timeout=TIMEOUT):
    """What the process printed; it must have ended normally and in time."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        pytest.fail(f"no end after {timeout} s\n{out}\n{err}")
    assert process.returncode == 0, f"exit code {process.returncode}\n{out}\n{err}"
    return out


def run(code, *, timeout=TIMEOUT, **options):
    """`start` and `finish`."""
    return finish(start(code, **options), timeout)


def run_all(codes: Iterable[str], at_once=2, timeout=TIMEOUT, **options):
    """`run` several, some at once; their outputs in order."""
    codes, outputs = list(codes), []
    for k in range(0, len(codes), at_once):
        processes = [start(code, **options) for code in codes[k : k + at_once]]
        try:
            outputs += [finish(process, timeout) for process in processes]
        finally:
            for process in processes:
                process.kill()
    return outputs


def copy_package(to, source=PACKAGE, beside=False):
    """A copy of the package; unless ``beside``, no cache can be kept beside its sources."""
    shutil.copytree(source, to / "fastbn", ignore=shutil.ignore_patterns("__pycache__"))
    if not beside:
        (to / "fastbn" / "kernels" / "__pycache__").write_text("not a folder")
    return to


def with_empty_cache(to):
    """Options of `run`: a copy of the package that reads and writes no cache but its own."""
    folders = "HOME", "XDG_CACHE_HOME", "LOCALAPPDATA", "NUMBA_CACHE_DIR"
    return {"path": copy_package(to), "env": dict.fromkeys(folders, to / "cache")}


@lru_cache
def _works(layer):
    code = "import numba; numba.get_num_threads(); print(numba.threading_layer())"
    process = start(code, layer=layer)
    out, err = process.communicate(timeout=TIMEOUT)
    return out.strip() == layer, err.strip().splitlines()[-1:]


def require(layer):
    """``layer``, or skip the test if Numba has no such threading layer on this machine."""
    works, why = _works(layer)
    if not works:
        pytest.skip(f"Numba has no {layer} layer here: {why}")
    return layer
