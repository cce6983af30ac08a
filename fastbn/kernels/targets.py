"""What compiled code is made for, its target: versions of all that made it, and a processor.

A cache folder holds a small file about each target, ``target.DIGEST.json``, beside the code. With
it a process finds code that was made for another processor, and takes it if its own processor has
every feature that the code may use. If it has not, `cache_reasons` says which are missing.
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

#: Of a target's digest.
_LETTERS = 12


class Target(NamedTuple):
    """What compiled code depends on, apart from which function it is and of which arguments."""

    sources: str
    python: str
    numba: str
    llvmlite: str
    system: str  # LLVM's triple
    processor: str
    features: str  # as LLVM takes them: "+avx,-avx512f"

    @property
    def digest(self) -> str:
        """A short hash of all fields; the digests of its code begin with it."""
        return _digest(self)

    def unsaid(self) -> set[str]:
        """Features that code for it may use although ``features`` does not mention them.

        LLVM takes from a processor's name whatever the list of features leaves open, which happens
        where somebody has set `NUMBA_CPU_NAME` or `NUMBA_CPU_FEATURES`. On other systems than x86
        LLVM never lists all: there the name itself counts as a feature.
        """
        if self.processor == "generic":
            return set()
        if "x86" not in self.system:
            return {f"all of {self.processor}"}
        return _names_of_features() - {each[1:] for each in self.features.split(",")}

    def lacks(self, other: "Target") -> list[str]:
        """Features that code for another target may use and this processor has not."""
        mine = _having(self.features) | self.unsaid()
        return sorted((_having(other.features) | other.unsaid()) - mine)

    def runs(self, other: "Target") -> bool:
        """Whether code for the other target may run in this process."""
        same = other._replace(processor=self.processor, features=self.features) == self
        return same and not told() and not self.lacks(other)


class Processor(NamedTuple):
    """LLVM's name of a processor, and the features of it that code may use."""

    name: str
    features: str


@lru_cache(maxsize=1)
def processor() -> Processor:
    """The processor that Numba compiles for."""
    name, features = numba.config.CPU_NAME, numba.config.CPU_FEATURES
    return Processor(
        llvm.get_host_cpu_name() if name is None else name,
        get_host_cpu_features() if features is None else features,
    )


def told() -> bool:
    """Whether Numba's variables choose the processor: then code for no other target is taken."""
    return numba.config.CPU_NAME is not None or numba.config.CPU_FEATURES is not None


def converts_float16(features: str) -> bool:
    """Whether a processor has instructions for float16; LLVM would call a library without them."""
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


#: Whether code for other targets is passed over, by a process that fills a folder for its own.
_exact = False


def take_ours_alone() -> None:
    """Neither load nor count, from now on, what was compiled for another target."""
    global _exact
    _exact = True


def digests(signature: Any) -> Iterator[str]:
    """Digests of code for a signature (or its arguments): for our target first, then for others.

    Of the others it is those whose code runs here.
    """
    arguments = getattr(signature, "args", signature)
    taken = hashlib.sha256(repr([str(each) for each in arguments]).encode()).hexdigest()[:12]
    mine = ours()
    yield mine.digest + taken
    if not _exact:
        for other in _others(mine, tuple(disk_cache.folders())):
            yield other.digest + taken


@lru_cache(maxsize=4)
def _others(mine: Target, folders: tuple[str, ...]) -> list[Target]:
    """Targets in the folders whose code runs here; those that use the most features first."""
    found = {target for folder in folders for target in known(Path(folder))} - {mine}
    return sorted(filter(mine.runs, found), key=lambda each: (-len(_having(each.features)), each))


def known(folder: Path) -> list[Target]:
    """The targets that a folder has files about; none if it cannot be read."""
    found = []
    with contextlib.suppress(OSError):
        for path in sorted(folder.glob("target.*.json")):
            # a file that holds anything else costs a compilation, and no call fails
            with contextlib.suppress(Exception):
                target = Target(**json.loads(disk_cache.read(path)))
                whole = target.digest == path.name.split(".")[1]  # else it is damaged
                if whole and all(isinstance(each, str) for each in target):
                    found.append(target)
    return found


def record(folder: Path) -> None:
    """Leave a file about our target in a folder that has code for it, if the folder takes one."""
    mine = ours()
    path = folder / f"target.{mine.digest}.json"
    if not os.path.exists(path):
        with contextlib.suppress(OSError):
            disk_cache.write(path, json.dumps(mine._asdict(), indent=1).encode())
            disk_cache.forget_oldest(folder, "target.*.json", 32)


def of_unit(file: str) -> str:
    """Digest of the target that a file of the cache was compiled for, from the file's name."""
    return disk_cache.digest_in(file)[:_LETTERS]


@lru_cache(maxsize=1)
def _names_of_features() -> frozenset[str]:
    """All features of this kind of processor that LLVM knows how to look for."""
    try:
        return frozenset(llvm.get_host_cpu_features())
    except RuntimeError:  # a system where LLVM cannot look
        return frozenset()


@lru_cache(maxsize=64)
def _digest(target: Target) -> str:
    return hashlib.sha256(json.dumps(list(target)).encode()).hexdigest()[:_LETTERS]


def _having(features: str) -> set[str]:
    return {each[1:] for each in features.split(",") if each.startswith("+")}
