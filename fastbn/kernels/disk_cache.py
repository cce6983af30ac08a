"""Compiled code on disk, one file a unit. Whatever goes wrong here costs a compilation.

A file's name holds a digest of all that the code depends on: what is found under a name fits. It
is written beside its place and moved there whole, so that no lock is needed. The folder is
``NUMBA_CACHE_DIR``. Without it, or if it cannot be written to, files are looked for there, beside
the sources and in the user's cache folder, and written to the first of these that takes them: a
cache in an image serves users who cannot write to it.
"""

import contextlib
import hashlib
import os
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

_SUFFIX = ".fastbn"
#: Files kept of one unit: versions and processors that share a folder.
_KEPT = 8
_CHECKSUM = hashlib.sha256().digest_size


def holds(name: str, digest: str) -> bool:
    """Whether there is a file of this name and digest, whole or not."""
    return any(os.path.exists(folder / f"{name}.{digest}{_SUFFIX}") for folder in _folders())


def load(name: str, digest: str) -> bytes | None:
    """What was saved under this name and digest; None if nothing whole is found."""
    for folder in _folders():
        with contextlib.suppress(OSError):
            data = (folder / f"{name}.{digest}{_SUFFIX}").read_bytes()
            content = data[_CHECKSUM:]
            if _checksum(name, digest, content) == data[:_CHECKSUM]:
                return content
    return None


def save(name: str, digest: str, content: bytes) -> None:
    """Keep ``content`` in the first folder that takes it, or nowhere."""
    data = _checksum(name, digest, content) + content
    for folder in _folders():
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / f"{name}.{digest}{_SUFFIX}", data)
            with contextlib.suppress(OSError):  # another process does it too
                _forget_oldest(folder, name)
            return


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


def _write(path: Path, data: bytes) -> None:
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


def _forget_oldest(folder: Path, name: str) -> None:
    files = sorted(folder.glob(f"{name}.*{_SUFFIX}"), key=lambda path: path.stat().st_mtime)
    for path in files[:-_KEPT]:
        path.unlink()


def folders() -> list[str]:
    """Where files are looked for, to be shown."""
    return list(map(str, _folders()))


def _folders() -> list[Path]:
    """Where files are looked for and written to, in order."""
    folders = []
    given = os.environ.get("NUMBA_CACHE_DIR")
    if given:
        folders.append(Path(given) / "fastbn")
        if _may_write(folders[0]):
            return folders
    folders.append(Path(__file__).parent / "__pycache__")
    with contextlib.suppress(RuntimeError):  # a user without a home
        folders.append(_user_folder() / "fastbn")
    return folders


def _may_write(folder: Path) -> bool:
    """Whether this user may write to a folder, or make it."""
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    return os.access(folder, os.W_OK)


def _user_folder() -> Path:
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return Path(local) if local else Path.home() / "AppData" / "Local"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
