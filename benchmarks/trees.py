"""Commits side by side: each in a folder of its own, with caches of its own."""

import io
import os
import shutil
import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.results import ROOT, Unusable


@dataclass(frozen=True)
class Tree:
    """A folder with the package ``fastbn`` of one commit."""

    name: str
    folder: Path

    def environment(self, cache: str = "cache") -> dict[str, str]:
        """For a Python that runs there: compiled code is kept in its folder ``cache`` alone."""
        folder = str(self.folder / cache)
        # fastbn reads the user's cache as well, wherever that is on this system.
        caches = dict.fromkeys(("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA"), folder)
        dropped = "PYTHONSAFEPATH", "PYTHONPATH", "FASTBN_CACHE_DIR"
        kept = {name: value for name, value in os.environ.items() if name not in dropped}
        return {**kept, **caches, "PYTHONDONTWRITEBYTECODE": "1"}


def commit(ref: str, folder: Path) -> Tree:
    """The package as it is in a commit."""
    name = _git("rev-parse", "--short", "--verify", "--end-of-options", f"{ref}^{{commit}}")
    archive = _git("archive", "--format=zip", name.decode().strip(), "fastbn")
    zipfile.ZipFile(io.BytesIO(archive)).extractall(folder)
    name = name.decode().strip()
    return Tree(name if ref.startswith(name) else f"{ref} ({name})", folder)


def working_tree(folder: Path) -> Tree:
    """A copy of the package as it is now, which may be edited meanwhile.

    Without what was compiled: fastbn keeps that beside the sources, too.
    """
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "fastbn", folder / "fastbn", ignore=ignored)
    return Tree("working tree", folder)


def _git(*arguments: str) -> bytes:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True)
    except FileNotFoundError as error:
        raise Unusable("git is needed to get at the other commit") from error
    if done.returncode:
        message = done.stderr.decode(errors="replace").strip()
        raise Unusable(f"git {' '.join(arguments)}: {message}")
    return done.stdout
