"""What the results say about the machine: its kind, and never which one it is."""

import importlib.metadata
import platform
import re
from pathlib import Path

PACKAGES = ("numba", "numpy", "torch", "onnxruntime", "jax")
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def cpu_model():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def last_level_cache():
    """Bytes of the last-level cache, 0 if unknown."""
    caches = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")
    try:
        _, size = max((int((c / "level").read_text()), (c / "size").read_text()) for c in caches)
        number, unit = re.fullmatch(r"(\d+)([KMG]?)", size.strip()).groups()
    except (OSError, ValueError, AttributeError):
        return 0
    return int(number) * UNITS[unit]


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

    return {
        "cpu": cpu_model(),
        "last_level_cache": last_level_cache(),
        "threads": fastbn.get_num_threads(),
        "versions": versions(),
    }
