"""What the results say about the machine: its kind, and never which one it is."""

import importlib.metadata
import platform
from pathlib import Path

PACKAGES = ("numba", "numpy", "torch", "onnxruntime", "jax")


def cpu_model():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def versions():
    import fastbn

    own = {"python": platform.python_version(), "fastbn": fastbn.__version__}
    return own | {package: _version(package) for package in PACKAGES}


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def machine():
    import fastbn
    from fastbn._plan import known_cache

    return {
        "cpu": cpu_model(),
        "last_level_cache": known_cache(),
        "threads": fastbn.get_num_threads(),
        "versions": versions(),
    }
