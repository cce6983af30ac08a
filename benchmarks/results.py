"""Results that are kept: one line per cell, numbers rounded, so that a diff shows what changed.

A cell is one case, dtype, operation and provider. A run is what one machine measured with one
number of threads. pytest-benchmark's own files are read as well.
"""

import importlib.metadata
import json
import platform
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results.json"

DIGITS = 4
#: What is kept of the machine. Nothing that says which one it is, such as its name.
MACHINE = ("cpu", "last_level_cache", "threads", "versions", "date")
PACKAGES = ("numba", "numpy", "torch", "onnxruntime", "jax")
#: "beyond the last-level cache" begins here where the machine does not tell its size.
USUAL_CACHE = 32 * 2**20


class Unusable(Exception):
    """Results that cannot be read or compared; the message says why and what to do."""


@dataclass(frozen=True)
class Cell:
    """What was measured of one case, dtype, operation and provider."""

    case: str
    dtype: str
    operation: str
    provider: str
    shape: tuple[int, ...]
    axis: int
    bytes: int
    moved: int
    seconds: float
    ratio_to_copy: float | None
    ratio_to_streaming_copy: float | None
    ratio_to_fastbn: float | None
    seconds_of_copy: float | None
    seconds_of_streaming_copy: float | None

    @property
    def key(self) -> tuple[str, ...]:
        """What tells it from the other cells of a run."""
        return self.case, self.dtype, self.operation, self.provider

    @property
    def layout(self) -> str:
        """One of `LAYOUTS`."""
        if len(self.shape) < 3:
            return "tables (N, C)"
        return "channels first" if self.axis == 1 else "channels last"

    def __str__(self) -> str:
        return " ".join(part for part in (self.case, self.dtype) if part)


LAYOUTS = ("channels first", "channels last", "tables (N, C)")
COLUMNS = tuple(field.name for field in fields(Cell))
#: What a cell that has no array, such as the start of a process, need not say.
OPTIONAL = {"case": "", "dtype": "", "shape": (), "axis": 1, "bytes": 0, "moved": 0}


@dataclass(frozen=True)
class Run:
    """The cells that one machine measured with one number of threads."""

    machine: dict
    cells: tuple[Cell, ...]

    def by_key(self) -> dict[tuple[str, ...], Cell]:
        """The cells by their keys."""
        return {cell.key: cell for cell in self.cells}

    @property
    def cache(self) -> int:
        """Bytes of the last-level cache, the usual size if unknown."""
        return self.machine["last_level_cache"] or USUAL_CACHE


def rounded(value: object) -> object:
    """``value`` with as many digits as are kept."""
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def read(path: Path) -> list[Run]:
    """The runs of a file, be it ours or pytest-benchmark's."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if "benchmarks" in content:
            return [_from_pytest(content)]
        return [_from_json(run, content["columns"]) for run in content["runs"]]
    except OSError as error:
        raise Unusable(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise Unusable(
            f"{path} holds no results of these benchmarks ({type(error).__name__}: {error})"
        ) from error


def _from_pytest(content: dict) -> Run:
    """A run from pytest-benchmark's JSON, whose ``extra_info`` has the figures."""
    found = [b for b in content["benchmarks"] if "provider" in b["extra_info"]]
    if not found:
        raise ValueError("no cell was measured")
    machine = {name: found[0]["extra_info"].get(name) for name in MACHINE}
    machine["date"] = content["datetime"][:10]
    return Run(machine, tuple(_cell(b["extra_info"]) for b in found))


def _from_json(run: dict, columns: list[str]) -> Run:
    cells = tuple(_cell(dict(zip(columns, row, strict=True))) for row in run["cells"])
    return Run({name: run["machine"][name] for name in MACHINE}, cells)


def _cell(values: dict) -> Cell:
    known = {name: values.get(name, OPTIONAL.get(name)) for name in COLUMNS}
    for name in ("operation", "provider", "seconds"):
        if known[name] is None:
            raise LookupError(f"a cell without {name}")
    known["shape"] = tuple(known["shape"])
    return Cell(**known)


def write(path: Path, runs: Iterable[Run]) -> None:
    """Keep ``runs`` in a file that `read` understands."""
    text = ",\n".join(_run_text(run) for run in runs)
    path.write_text(
        f'{{"columns": {json.dumps(COLUMNS)},\n"runs": [\n{text}\n]}}\n', encoding="utf-8"
    )


def _run_text(run: Run) -> str:
    machine = json.dumps({name: run.machine[name] for name in MACHINE}, indent=1)
    rows = ",\n".join(
        json.dumps([rounded(getattr(cell, name)) for name in COLUMNS]) for cell in run.cells
    )
    return f'{{"machine": {machine},\n"cells": [\n{rows}\n]}}'


def merged(runs: Iterable[Run]) -> list[Run]:
    """Runs of the same machine, threads and versions as one; of a cell the last one stays."""
    found: dict[str, Run] = {}
    for run in runs:
        same = json.dumps([run.machine[name] for name in MACHINE if name != "date"])
        before = found.get(same, Run({"date": ""}, ()))
        cells = {**before.by_key(), **run.by_key()}
        date = max(before.machine["date"], run.machine["date"])
        found[same] = replace(run, machine={**run.machine, "date": date}, cells=(*cells.values(),))
    return list(found.values())


# --- the machine ------------------------------------------------------------------------------


def machine() -> dict:
    """What is kept of this machine, but for the date."""
    import fastbn
    from fastbn._system.processor import known_cache

    own = {"python": platform.python_version(), "fastbn": fastbn.__version__}
    return {
        "cpu": cpu_model(),
        "last_level_cache": known_cache(),
        "threads": fastbn.get_num_threads(),
        "versions": own | {package: _version(package) for package in PACKAGES},
    }


def cpu_model() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
