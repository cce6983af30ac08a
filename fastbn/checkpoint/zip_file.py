"""Where the entries of a zip file lie, for reading them in place."""

import zipfile
from typing import Any

#: Of a local header, and how it begins.
_HEADER, _SIGNATURE = 30, b"PK\x03\x04"


class Entries:
    """The entries of an archive that is mapped as ``data``; ValueError for what is suspicious."""

    def __init__(self, archive: zipfile.ZipFile, data: Any) -> None:
        infos = archive.infolist()
        self.names = {info.filename: info for info in infos}
        if len(self.names) < len(infos):
            raise ValueError("the zip file has two entries of the same name")
        for name in self.names:
            check_name(name)
        self._data = data
        starts = sorted(info.header_offset for info in infos)
        self._next = dict(zip(starts, [*starts[1:], archive.start_dir], strict=True))
        if len(self._next) < len(starts):
            raise ValueError("entries of the zip file overlap")

    def place(self, name: str) -> tuple[int, int]:
        """First byte and size of an entry that is stored as it is."""
        info = self.names.get(name)
        if info is None:
            raise ValueError(f"the zip file has no entry {name!r}; it is truncated or damaged")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise ValueError(
                f"entry {name!r} is compressed or encrypted, which torch.save does not do; unpack "
                "the file and pack it again with zip -0"
            )
        start = info.header_offset
        head = self._data[start : start + _HEADER] if start >= 0 else b""
        if len(head) < _HEADER or head[:4] != _SIGNATURE:
            raise ValueError(f"entry {name!r} is not where the zip file says")
        lengths = int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
        at = start + _HEADER + lengths
        if info.compress_size != info.file_size or at + info.file_size > self._next[start]:
            raise ValueError(f"entry {name!r} overlaps the next one, or reaches beyond the file")
        return at, info.file_size


def check_name(name: str) -> None:
    """Refuse a name that leads out of a folder; nothing is unpacked, but who knows of others."""
    why = leads_out(name)
    if why:
        raise ValueError(f"the zip file has an entry {name[:200]!r}, which {why}")


def leads_out(name: str) -> str:
    """Why a name leads out of a folder that it is unpacked into; empty where it does not."""
    out = name.startswith("/") or "\\" in name or ".." in name.split("/")
    return "is a path out of its folder" if out else ""
