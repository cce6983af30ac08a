"""Why kernels are compiled although there is a cache: said once in a process, through `logging`."""

import logging
import os
from collections.abc import Iterable
from pathlib import Path

from fastbn.kernels import disk_cache, targets
from fastbn.kernels.targets import Target

_told = False


def tell(name: str, digests: Iterable[str] = ()) -> None:
    """Log why a kernel is compiled now, if a folder was named or has files of fastbn.

    It is a warning where it will be the same at the next start: where compiled code cannot be
    kept, or not in the folder that was named. Else it is for information, and the next start is
    warm.
    """
    global _told
    if _told:
        return
    _told = True
    digests, places = list(digests), disk_cache.places()
    reasons, kept, level = [], None, logging.INFO
    for origin, folder in places.items():
        named, writable = origin.isupper(), disk_cache.may_write(folder)
        reason = why(folder, name, digests)
        if named or (reason is not None and any(folder.glob("*.fastbn"))):
            reasons.append(f"{origin} ({folder}) {reason}")
        if kept is None and writable:
            kept = folder
        if named and not writable:
            level = logging.WARNING
    if not reasons:
        return
    after = f"what is compiled is kept in {kept}"
    if kept is None:
        after, level = (
            "nothing compiled can be kept, so every process compiles anew",
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
            readable = os.access(folder / file, os.R_OK)
            return f"has {file}, which " + ("is damaged" if readable else "this user cannot read")
    if not any(file.endswith(".fastbn") for file in files):
        return "has no kernels"
    mine, others = targets.ours(), targets.known(folder)
    if not others:
        return "has kernels of another version of fastbn, or has lost its target.*.json"
    nearest = min(others, key=lambda other: len(differences(mine, other)))
    found = differences(mine, nearest)
    if not found:
        return "has kernels for this processor, but not this one: was it warmed up for it?"
    return "was made " + ", ".join(found)


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
        shown = ", ".join(lacking[:5]) + (", ..." if len(lacking) > 5 else "")
        found.append(f"for the processor {other.processor}: {mine.processor} here lacks {shown}")
    elif not found:  # the processor would do
        found.append(
            f"for the processor {other.processor}, and NUMBA_CPU_NAME or NUMBA_CPU_FEATURES asks "
            f"for {mine.processor}"
        )
    return found
