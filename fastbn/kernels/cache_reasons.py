"""Why kernels are compiled although there is a cache: said once in a process, through `logging`."""

import logging
import os
from collections.abc import Iterable
from pathlib import Path

from fastbn.kernels import disk_cache, targets
from fastbn.kernels.targets import Target

_told = False


def tell(name: str, digests: Iterable[str] = ()) -> None:
    """Log why a kernel is compiled now.

    It is a warning where the next start will compile again: where compiled code cannot be kept, or
    not in the folder that was named. Otherwise it is for information, and only if a folder was
    named or has files of fastbn: the next start is warm.
    """
    global _told
    if _told:
        return
    _told = True
    digests, places = list(digests), disk_cache.places()
    kept = next((folder for folder in places.values() if disk_cache.may_write(folder)), None)
    reasons, level = [], logging.INFO
    for origin, folder in places.items():
        named = origin.isupper()
        if named or kept is None or disk_cache.units_in(folder):
            reasons.append(f"{origin} ({folder}) {why(folder, name, digests)}")
        if named and not disk_cache.may_write(folder):
            level = logging.WARNING
    if not reasons and kept is not None:
        return
    after = f"what is compiled is kept in {kept}"
    if kept is None:
        after, level = (
            "nothing compiled can be kept (FASTBN_CACHE_DIR can name a folder that takes files), "
            "so every process compiles anew",
            logging.WARNING,
        )
    logging.getLogger("fastbn").log(
        level, "kernels are compiled (%s first): %s; %s", name, "; ".join(reasons), after
    )


def why(folder: Path, name: str, digests: Iterable[str]) -> str:
    """Why a kernel is not loaded from a folder, in words that go on from the folder's name."""
    try:
        files = set(os.listdir(folder))
    except FileNotFoundError:
        return "does not exist"
    except NotADirectoryError:
        return "is no folder"
    except PermissionError:
        return "cannot be read by this user"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    for digest in digests:
        file = disk_cache.file_name(name, digest)
        if file in files:
            return f"has {file}, which {_what_is_wrong(folder / file)}"
    if not disk_cache.units_in(folder):
        return "has no kernels"
    mine, others = targets.ours(), targets.known(folder)
    if not others:
        return "has kernels of another version of fastbn, or has lost its target.*.json"
    nearest = min(others, key=lambda other: len(differences(mine, other)))
    found = differences(mine, nearest)
    if not found:
        return f"has kernels for this processor, but {name} was neither warmed up nor called before"
    return "was made " + ", ".join(found)


def _what_is_wrong(file: Path) -> str:
    if not file.is_file():
        return "is no file" if file.exists() else "leads nowhere"
    return "is damaged" if os.access(file, os.R_OK) else "this user cannot read"


def differences(mine: Target, other: Target) -> list[str]:
    """Why code for another target is not taken; nothing if it is."""
    if other == mine or mine.runs(other):
        return []
    found = []
    if other.sources != mine.sources:
        found.append("from other sources of fastbn")
    for what in ("numba", "llvmlite", "python"):
        if getattr(other, what) != getattr(mine, what):
            there, here = getattr(other, what), getattr(mine, what)
            found.append(f"with {what} {there} (here {here})")
    if other.system != mine.system:
        found.append(f"for {other.system} (here {mine.system})")
    elif lacking := mine.lacks(other):
        certain = [each for each in lacking if each not in other.unsaid()]
        shown = (certain or lacking)[:5]
        more = ", ..." if len(certain or lacking) > 5 else ""
        unsaid = "" if certain else ", which that name may stand for"
        found.append(
            f"for the processor {other.processor}: {mine.processor} here lacks "
            f"{', '.join(shown)}{more}{unsaid}"
        )
    elif not found:  # the processor would do
        found.append(
            f"for the processor {other.processor}, and NUMBA_CPU_NAME or NUMBA_CPU_FEATURES asks "
            f"for {mine.processor}"
        )
    return found
