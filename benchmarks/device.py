"""The CUDA path on an NVIDIA GPU in one command: right, clean, and how fast.

On a machine that reaches a package index, `benchmarks/device.sh` installs what is needed into a
fresh environment and runs this there. What is missing (torch, CuPy, compute-sanitizer) is named
and left out.
"""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import ROOT, Unusable

RESULTS = ROOT / "benchmarks" / "device.json"
PARTS = ("check", "time", "sanitize")
PACKAGES = ("numba", "numba-cuda", "llvmlite", "numpy", "torch", "cupy-cuda13x", "cupy-cuda12x",
            "nvidia-cuda-nvrtc", "nvidia-nvjitlink", "nvidia-cudnn-cu13")  # fmt: skip
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
#: compute-sanitizer's exit status where it found errors, and seconds that a tool may take.
FOUND, TOOL_SECONDS = 9, 120
SIMULATED = "simulated: figures mean nothing"


def measure(parts: tuple[str, ...], quick: bool, alone: bool, to: Path) -> int:
    """Do what is asked for, keep it after every step, and return the exit status."""
    _prepare()
    from fastbn._call import places

    simulated = places.simulated()
    result: dict[str, Any] = {"simulated": simulated, "quick": quick, "device": _device(simulated)}
    torch, cupy, missing = _peers(alone or simulated)
    result["missing"] = missing
    print(SIMULATED + "\n" if simulated else "", _lines(result["device"]), sep="")
    for name, why in missing.items():
        print(f"missing: {name} ({why})")
    steps: dict[str, Callable[[], None]] = {
        "check": lambda: _check(result, quick, torch, cupy),
        "time": lambda: _time(result, quick, torch, cupy, lambda: _write(to, result)),
        "sanitize": lambda: _sanitize(result, lambda: _write(to, result)),
    }
    for part in parts:
        steps[part]()
        _write(to, result)
    print(f"\nWritten: {to}" + (f" ({SIMULATED})" if simulated else ""))
    return 1 if result.get("failed") or "errors" in result.get("sanitizer", {}).values() else 0


def _prepare() -> None:
    """Make Numba's CUDA target usable, or say what is missing."""
    if not hasattr(np, "row_stack"):
        np.row_stack = np.vstack  # noqa: NPY201  # numba-cuda asks for it, NumPy 2.5 lacks it
    warnings.filterwarnings("ignore", message=".*under-utilization")
    try:
        from fastbn._call import backend

        backend.device()
    except (ImportError, RuntimeError) as error:
        raise Unusable(f"{error}; --help says how to run this, also without a GPU") from error


def _write(to: Path, result: dict[str, Any]) -> None:
    to.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


# --- the machine ----------------------------------------------------------------------------


def _device(simulated: bool) -> dict[str, Any]:
    """What is known of the device and of the software that drives it."""
    from numba import cuda

    device = cuda.current_context().device
    name = getattr(device, "name", "simulated")

    def attribute(name: str) -> int | None:
        try:
            return int(getattr(device, name))
        except Exception:  # a driver's, of an attribute that it does not know
            return None

    clock, bus = attribute("MEMORY_CLOCK_RATE"), attribute("GLOBAL_MEMORY_BUS_WIDTH")
    free, total = (None, None) if simulated else cuda.current_context().get_memory_info()
    return {
        "name": name.decode() if isinstance(name, bytes) else name,
        "compute capability": ".".join(map(str, device.compute_capability)),
        "multiprocessors": attribute("MULTIPROCESSOR_COUNT"),
        "L2 cache": attribute("L2_CACHE_SIZE"),
        "memory": total,
        "memory free": free,
        "memory clock, kHz": clock,
        "memory bus, bits": bus,
        # two transfers a clock
        "GB/s by the clock": clock and bus and round(2 * clock * 1e3 * bus / 8 / 1e9),
        "driver": None if simulated else _driver(),
        "date": time.strftime("%Y-%m-%d"),
        "versions": _versions(),
    }


def _driver() -> str | None:
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            text=True, capture_output=True, timeout=60,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _versions() -> dict[str, str]:
    import fastbn

    found = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    return {"python": platform.python_version(), "fastbn": fastbn.__version__} | {
        package: found[package] for package in PACKAGES if package in found
    }


def _peers(none: bool) -> tuple[Any, Any, dict[str, str]]:
    if none:
        return None, None, {"torch": "not asked for", "cupy": "not asked for"}
    from benchmarks.device_peers import load

    (torch, no_torch), (cupy, no_cupy) = load("torch"), load("cupy")
    reasons = {"torch": no_torch, "cupy": no_cupy}
    return torch, cupy, {name: why for name, why in reasons.items() if why}


def _lines(values: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in values["versions"].items())
    found = {**values, "versions": versions}
    return "\n".join(f"{name}: {value}" for name, value in found.items() if value is not None)


# --- the three parts --------------------------------------------------------------------------


def _check(result: dict[str, Any], quick: bool, torch: Any, cupy: Any) -> None:
    from benchmarks import device_checks, device_report
    from benchmarks.device_peers import libraries

    cases = device_checks.TINY if result["simulated"] else device_checks.CASES
    dtypes = ("float32", "bfloat16") if quick else tuple(device_checks.BARS)
    found = list(device_checks.checks(libraries(torch, cupy), cases, dtypes))
    result["checks"] = [asdict(check) | {"met": check.met} for check in found]
    result["failed"] = sum(not check.met for check in found)
    print(device_report.checks(device_checks.worst(found)))
    print(f"{result['failed']} of {len(found)} checks failed")


def _time(
    result: dict[str, Any], quick: bool, torch: Any, cupy: Any, keep: Callable[[], None]
) -> None:
    from benchmarks import device_report, device_times

    simulated, device = result["simulated"], result["device"]
    clock = device_times.SimulatedClock() if simulated else device_times.DeviceClock()
    launch = device_times.launch(clock)
    cases = device_times.QUICK if quick else device_times.CASES
    dtypes = ("float32", "bfloat16") if quick else device_times.DTYPES
    samples = device_times.QUICK_SAMPLES if quick else device_times.SAMPLES
    if simulated:
        cases, dtypes = device_times.TINY, ("float32",)
    cache = 0 if simulated else device["L2 cache"] or 64 * 2**20
    result["launch"], result["cells"] = asdict(launch), []
    cells = []
    for cell in device_times.cells(clock, cases, dtypes, torch, cupy, cache, samples):
        cells.append(cell)
        result["cells"].append(asdict(cell))
        if not simulated:
            print(device_report.line(cell), file=sys.stderr)  # a long run shows that it lives
            keep()
    broken = sum("fastbn" in cell.errors for cell in cells)
    result["failed"] = result.get("failed", 0) + broken
    outcomes = device_report.outcomes(cells, device["multiprocessors"] or 1, launch.host)
    result["bars"] = [asdict(outcome) for outcome in outcomes]
    print("\n" + device_report.times(cells))
    if broken:
        print(f"FAILED: fastbn raised an error in {broken} of {len(cells)} cells")
    print(device_report.launches(launch, cells))
    print("\n" + device_report.bars(outcomes) + (f"\n{SIMULATED}" if simulated else ""))


def _sanitize(result: dict[str, Any], keep: Callable[[], None]) -> None:
    """Run the checks again, under each of compute-sanitizer's tools."""
    toolkit = os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin")
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), toolkit])
    found = shutil.which("compute-sanitizer", path=path)
    if found is None or result["simulated"]:
        why = "simulated" if result["simulated"] else "not found on PATH"
        result["sanitizer"] = dict.fromkeys(TOOLS, f"not run: {why}")
        print(f"compute-sanitizer: not run, {why}")
        return
    result["sanitizer"], result["sanitizer output"] = {}, {}
    for tool in TOOLS:
        verdict, output = _run_tool(found, tool)
        result["sanitizer"][tool], result["sanitizer output"][tool] = verdict, output[-4000:]
        print(f"compute-sanitizer --tool {tool}: {verdict}")
        keep()


def _run_tool(sanitizer: str, tool: str) -> tuple[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sanitizer, "--tool", tool, "--error-exitcode", str(FOUND), sys.executable, "-m",
            "benchmarks", "device", "--only", "check", "--quick", "--alone",
            "--to", os.path.join(folder, "device.json"),
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, cwd=ROOT, text=True, capture_output=True, timeout=TOOL_SECONDS
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"not run: {error}", ""
    output = done.stdout + done.stderr
    if "ERROR SUMMARY" not in output and "RACECHECK SUMMARY" not in output:
        return f"not run: exit status {done.returncode}", output
    return {0: "clean", FOUND: "errors"}.get(
        done.returncode, f"not run to its end: exit status {done.returncode}"
    ), output
