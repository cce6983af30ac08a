"""Compiled code on disk, one file a unit. Whatever goes wrong here costs a compilation.

A file's name holds a digest of all that the code depends on, and of no path: what is found under a
name fits, and a package that has been moved finds its files. Each is written beside its place and
moved there whole, so that whoever reads needs no lock. Whoever compiles holds one, where there are
such: of several processes that start at once, one compiles and the others load (`compiling`).

Files are looked for in each of the folders of `places`, whether this user may write there or not,
and written to the first of them that takes them: a cache in an image serves users who cannot
write to it. In a folder that somebody has named for these files nothing is deleted; in the others
the oldest files of each unit are.
"""

import contextlib
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

_SUFFIX = ".fastbn"
#: Files kept of one unit where old ones are deleted: versions and processors that share a folder.
_KEPT = 8
#: Folders in which nothing is deleted: they may have been filled for any number of processors.
_KEPT_WHOLE = ("into", "FASTBN_CACHE_DIR")
_CHECKSUM = hashlib.sha256().digest_size
#: Seconds that one process waits for another to compile a unit, and between two looks.
_PATIENCE, _LOOK = 60.0, 0.02


def holds(name: str, digest: str) -> bool:
    """Whether there is a file of this name and digest, whole or not."""
    return any(os.path.isfile(folder / file_name(name, digest)) for folder in _folders())


def load(name: str, digest: str) -> bytes | None:
    """What was saved under this name and digest; None if nothing whole is found."""
    for folder in _folders():
        with contextlib.suppress(OSError):
            data = read(folder / file_name(name, digest))
            content = data[_CHECKSUM:]
            if _checksum(name, digest, content) == data[:_CHECKSUM]:
                return content
    return None


def save(name: str, digest: str, content: bytes) -> Path | None:
    """Keep ``content`` in the first folder that takes it, which is returned, or nowhere."""
    data = _checksum(name, digest, content) + content
    for folder in _folders():
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            write(folder / file_name(name, digest), data)
            with contextlib.suppress(OSError):  # another process does it too
                forget_oldest(folder, f"{name}.*{_SUFFIX}", _KEPT)
            return folder
    return None


@contextlib.contextmanager
def compiling(name: str, digest: str) -> Iterator[None]:
    """Context in which this process compiles a unit, and no other does.

    Whoever has waited for it looks into the cache once more. The system frees a lock whose holder
    has ended, and nobody waits for ever: a second compilation does no harm.
    """
    lock = _lock_file(f".{name}.{digest}.lock")
    if lock is None:
        yield
        return
    handle, path = lock
    held = False
    try:
        end = time.monotonic() + _PATIENCE
        while not (held := _locked(handle)) and time.monotonic() < end:
            time.sleep(_LOOK)
        yield
    finally:
        if held:
            with contextlib.suppress(OSError):  # who waits for this file has it open
                path.unlink()
        os.close(handle)


def _lock_file(name: str) -> tuple[int, Path] | None:
    """An open file to be locked, where units are saved; None where nothing is saved."""
    for folder in _folders():
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            return os.open(folder / name, os.O_CREAT | os.O_RDWR, 0o666), folder / name
    return None


def _locked(handle: int) -> bool:
    """Lock a file; False if another process has it. Where there are no locks, all go on."""
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        pass
    return True


def file_name(name: str, digest: str) -> str:
    """Of the file that holds a unit."""
    return f"{name}.{digest}{_SUFFIX}"


def digest_in(file: str) -> str:
    """The digest in the name of a file that holds a unit."""
    return file.split(".")[1]


def units_in(folder: Path) -> list[str] | None:
    """Names of the files that hold units; None for a folder that cannot be read."""
    try:
        files = os.listdir(folder)
    except OSError:
        return None
    # those that are being written begin with a dot
    return [file for file in files if file.endswith(_SUFFIX) and file[0] != "."]


def can_save() -> bool:
    """Whether there is something to know files by, and a folder that takes them."""
    if sources_digest() is None:
        return False
    for folder in _folders():
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return True
    return False


@lru_cache(maxsize=1)
def sources_digest() -> str | None:
    """Digest of the sources of all kernels; None where they cannot be read, and nothing is kept."""
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    paths = sorted(folder.rglob("*.py"))
    try:
        for path in paths:
            digest.update(path.relative_to(folder).as_posix().encode())
            digest.update(path.read_bytes())
    except OSError:
        return None
    return digest.hexdigest() if paths else None


def _checksum(name: str, digest: str, content: bytes) -> bytes:
    """Of the name too: a file that has been renamed is not what it says."""
    return hashlib.sha256(f"{name}.{digest}.".encode() + content).digest()


def read(path: Path) -> bytes:
    """What a file holds; OSError for what is none, such as a pipe, which would never end."""
    if not path.is_file():
        raise FileNotFoundError(path)
    return path.read_bytes()


def write(path: Path, data: bytes) -> None:
    """Put a file in its place, whole or not at all, for every user to read."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=_SUFFIX)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)  # for other users of an image
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def forget_oldest(folder: Path, pattern: str, kept: int) -> None:
    """Delete all files of a name but the newest, unless the folder was named for such files."""
    if folder in map(places().get, _KEPT_WHOLE):
        return
    files = sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime)
    for path in files[:-kept]:
        path.unlink()


def folders() -> list[str]:
    """Where files are looked for, to be shown."""
    return list(map(str, _folders()))


def places() -> dict[str, Path]:
    """Where files are looked for and written to, in order; by what has named each folder."""
    if _alone is not None:
        return {"into": _alone}
    found = {}
    if given := os.environ.get("FASTBN_CACHE_DIR"):
        found["FASTBN_CACHE_DIR"] = Path(given)
    if given := os.environ.get("NUMBA_CACHE_DIR"):
        found["NUMBA_CACHE_DIR"] = Path(given) / "fastbn"
    found["package"] = Path(__file__).parent / "__pycache__"
    with contextlib.suppress(RuntimeError):  # a user without a home
        found["user"] = _user_folder() / "fastbn"
    return found


#: The only folder that is read and written, for who fills it.
_alone: Path | None = None


def use_alone(folder: Path) -> None:
    """From now on neither read nor write any other folder."""
    global _alone
    _alone = folder


def _folders() -> list[Path]:
    return list(places().values())


def may_write(folder: Path) -> bool:
    """Whether this user may write to a folder, or make it."""
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    return os.path.isdir(folder) and os.access(folder, os.W_OK)


def _user_folder() -> Path:
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return Path(local) if local else Path.home() / "AppData" / "Local"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
