"""Whom compiled code is for: its versions and its processor; and whose code runs here as well.

Beside the code a folder holds a small file about each target, ``target.DIGEST.json``. So code that
was made for another processor is found where this one has all that it needs, and where it has not,
one can say what is missing (`cache_reasons`).
"""

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import llvmlite
import llvmlite.binding as llvm
import numba
from numba.core.codegen import get_host_cpu_features

from fastbn.kernels import disk_cache


class Target(NamedTuple):
    """What compiled code depends on, but for its name and its arguments."""

    sources: str
    python: str
    numba: str
    llvmlite: str
    system: str  # LLVM's triple
    processor: str
    features: str  # as LLVM takes them: "+avx,-avx512f"

    @property
    def digest(self) -> str:
        """It in a few letters: with them a file's name begins."""
        return _digest(self)

    def lacks(self, other: "Target") -> list[str]:
        """Features that another target makes use of and this one has not."""
        return sorted(_having(other.features) - _having(self.features))

    def runs(self, other: "Target") -> bool:
        """Whether code for the other runs here and may be taken."""
        same = other._replace(processor=self.processor, features=self.features) == self
        return same and not told() and not self.lacks(other)


class Processor(NamedTuple):
    """LLVM's name of a processor, and what of it is made use of."""

    name: str
    features: str


@lru_cache(maxsize=1)
def processor() -> Processor:
    """The one that Numba compiles for, as it finds it."""
    name, features = numba.config.CPU_NAME, numba.config.CPU_FEATURES
    return Processor(
        llvm.get_host_cpu_name() if name is None else name,
        get_host_cpu_features() if features is None else features,
    )


def told() -> bool:
    """Whether somebody has told Numba the processor: then no other will do."""
    return numba.config.CPU_NAME is not None or numba.config.CPU_FEATURES is not None


def converts_float16(features: str) -> bool:
    """Whether a processor converts float16: LLVM would else call functions that nobody has."""
    return "x86" not in llvm.get_process_triple() or "f16c" in _having(features)


def ours() -> Target:
    """What this process compiles for."""
    return Target(
        disk_cache.sources_digest() or "",
        sys.implementation.cache_tag or "",
        numba.__version__,
        llvmlite.__version__,
        llvm.get_process_triple(),
        *processor(),
    )


#: Whether code for other targets is passed over: for who fills a folder for one of them.
_exact = False


def take_ours_alone() -> None:
    """From now on neither load nor count what was compiled for another target."""
    global _exact
    _exact = True


def digests(signature: Any) -> Iterator[str]:
    """Of code for a signature or its arguments: of ours, then of others' that runs here."""
    arguments = getattr(signature, "args", signature)
    taken = hashlib.sha256(repr([str(each) for each in arguments]).encode()).hexdigest()[:12]
    mine = ours()
    yield mine.digest + taken
    if not _exact:
        for other in _others(mine, tuple(disk_cache.folders())):
            yield other.digest + taken


@lru_cache(maxsize=4)
def _others(mine: Target, folders: tuple[str, ...]) -> list[Target]:
    """Targets in the folders whose code runs here; first those that make use of more."""
    found = {target for folder in folders for target in known(Path(folder))} - {mine}
    return sorted(filter(mine.runs, found), key=lambda each: (-len(_having(each.features)), each))


def known(folder: Path) -> list[Target]:
    """The targets that a folder has files about; none if it cannot be read."""
    found = []
    with contextlib.suppress(OSError):
        for path in sorted(folder.glob("target.*.json")):
            # whatever a file holds costs a compilation, and never a call
            with contextlib.suppress(Exception):
                target = Target(**json.loads(path.read_text(encoding="utf-8")))
                if target.digest == path.name.split(".")[1]:  # else it is damaged
                    found.append(target)
    return found


def record(folder: Path) -> None:
    """Leave a file about ours in a folder that has code for it, if it can be written to."""
    mine = ours()
    path = folder / f"target.{mine.digest}.json"
    if not os.path.exists(path):
        with contextlib.suppress(OSError):
            disk_cache.write(path, json.dumps(mine._asdict(), indent=1).encode())
            disk_cache.forget_oldest(folder, "target.*.json", 32)


@lru_cache(maxsize=64)
def _digest(target: Target) -> str:
    return hashlib.sha256(json.dumps(list(target)).encode()).hexdigest()[:12]


def _having(features: str) -> set[str]:
    return {each[1:] for each in features.split(",") if each.startswith("+")}
