"""Files that want to do harm, or are broken; made byte by byte, as no library would write them."""

import io
import struct
import zipfile

import numpy as np

from tests.hostile_pickles import (
    CANARY,
    COMMAND,
    FLOATS,
    call,
    group,
    number,
    pickled,
    state,
    storage,
    tensor,
    text,
)  # fmt: skip

# --- files of torch -------------------------------------------------------------------------------

VALUES = np.ones(4, np.float32).tobytes()


def zipped(pickle, entries=None, compress=zipfile.ZIP_STORED, root="archive"):
    """As torch.save writes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compress) as archive:
        archive.writestr(f"{root}/data.pkl", pickle)
        for entry, data in {f"{root}/data/0": VALUES, **(entries or {})}.items():
            archive.writestr(entry, data)
    return file.getvalue()


MAGIC = number(0x1950A86A20F9469CFC6C)
LITTLE = b"}" + text("little_endian") + b"\x88s"


def old(pickle, keys=("0",), magic=MAGIC, version=1001, machine=LITTLE, count=4, values=VALUES):
    """As torch.save wrote before torch 1.6."""
    parts = [pickled(magic), pickled(number(version)), pickled(machine), pickle]
    parts.append(pickled(b"](" + b"".join(map(text, keys)) + b"e"))
    return b"".join(parts) + struct.pack("<q", count) + values


# --- other files ----------------------------------------------------------------------------------


def npz(compress=zipfile.ZIP_STORED, **entries):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compress) as archive:
        for entry, data in entries.items():
            archive.writestr(f"{entry}.npy", data)
    return file.getvalue()


def npy(header, values=b"\0" * 16, version=1):
    size = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + size + header.encode() + values


def header(shape="(4,)", dtype="<f4"):
    return f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n"


def safetensors(text, values=b"\0" * 32, length=None):
    data = text.encode()
    return struct.pack("<Q", len(data) if length is None else length) + data + values


def entry(dtype="F32", shape="[4]", offsets="[0, 16]"):
    return f'{{"dtype": "{dtype}", "shape": {shape}, "data_offsets": {offsets}}}'


def both(mean, var):
    return f'{{"bn.running_mean": {mean}, "bn.running_var": {var}}}'


def patched(data, old, new, last=True):
    """Bytes with a piece replaced; in a zip file, the last one is that of the directory."""
    at = data.rfind(old) if last else data.find(old)
    assert at >= 0
    return data[:at] + new + data[at + len(old) :]


def directory(data, position, value, size=4):
    """A zip file with a field of the last entry of its directory replaced."""
    at = data.rfind(b"PK\x01\x02") + position
    return data[:at] + value.to_bytes(size, "little") + data[at + size :]


GOOD = pickled(state())
OBJECTS = io.BytesIO()
np.save(OBJECTS, np.array([{"a": 1}, None], dtype=object), allow_pickle=True)


def _duplicated():
    data = zipped(GOOD, {"archive/data/1": VALUES})
    return data.replace(b"archive/data/1", b"archive/data/0")


def _overlapping():
    """Two entries of the directory that lie in the same place, as in Fifield's zip bombs."""
    return directory(zipped(GOOD, {"archive/data/1": VALUES}), 42, 0)


#: Suffix, bytes, and what the message must say.
FILES = {
    "empty torch": (".pth", b"", "the file is empty"),
    "empty safetensors": (".safetensors", b"", "the file is empty"),
    "empty npz": (".npz", b"", "damaged or truncated zip"),
    "empty index": (".json", b"", "no JSON"),
    "wrong magic": (".pth", b"GIF89a" + b"\0" * 99, "is no file of torch.save"),
    "tar file": (".pth", b"\0" * 257 + b"ustar\0" + b"\0" * 255, "as before torch 0.1.10"),
    "text": (".txt", b"hello", "is of no known kind"),
    "pickle of protocol 0": (".pth", f"cos\nsystem\n(S'{COMMAND}'\ntR.".encode(), "no file of"),
    "pickle of nothing of torch": (".pth", pickled(text("hello")), "none of torch.save"),
    "pickle that calls at once": (
        ".pth", pickled(call("os", "system", text(COMMAND))), "'os.system', which is refused"
    ),
    "old: wrong version": (".pth", old(GOOD, version=7), "a version other than 1001"),
    "old: big-endian": (".pth", old(GOOD, machine=b"}"), "big-endian"),
    "old: call in the head": (
        ".pth", old(GOOD, machine=call("os", "system", text(COMMAND))), "'os.system'"
    ),
    "old: storage in the head": (".pth", old(GOOD, machine=storage()), "where there can be none"),
    "old: call in the keys": (
        ".pth", b"".join([old(GOOD)[: -24 - len(pickled(b"](X\1\0\0\x000e"))],
                          pickled(call("os", "system", text(COMMAND)))]), "'os.system'",
    ),
    "old: other keys": (".pth", old(GOOD, keys=("1",)), "not that of the tensors"),
    "old: keys twice": (".pth", old(GOOD, keys=("0", "0")), "not that of the tensors"),
    "old: other length": (".pth", old(GOOD, count=3), "is not whole in the file"),
    "old: negative length": (".pth", old(GOOD, count=-4), "is not whole in the file"),
    "old: values missing": (".pth", old(GOOD, values=VALUES[:-1]), "is not whole in the file"),
    "old: storage described twice": (
        ".pth", old(pickled(state(x=tensor(storage(count=5))))), "described in two ways"
    ),
    "old: view beyond its storage": (
        ".pth", old(pickled(state(x=group(
            text("storage"), FLOATS, text("0"), text("cpu"), number(4),
            group(text("v"), number(2), number(3))) + b"Q"))), "reaches beyond it",
    ),
    "old: view with a negative place": (
        ".pth", old(pickled(state(x=group(
            text("storage"), FLOATS, text("0"), text("cpu"), number(4),
            group(text("v"), number(-2), number(3))) + b"Q"))), "has no place in it",
    ),
    "zip: no pickle": (".pth", zipped(GOOD).replace(b"data.pkl", b"data.pkx"), "has 0 entries"),
    "zip: two pickles": (".pth", zipped(GOOD, {"b/data.pkl": GOOD}), "has 2 entries data.pkl"),
    "zip: TorchScript": (".pth", zipped(GOOD, {"archive/constants.pkl": b""}), "torch.jit.save"),
    "zip: big-endian": (".pth", zipped(GOOD, {"archive/byteorder": b"big"}), "big-endian"),
    "zip: storage missing": (
        ".pth", zipped(pickled(state(x=tensor(storage("7"))))), "no entry 'archive/data/7'"
    ),
    "zip: storage outside of its folder": (
        ".pth", zipped(pickled(state(x=tensor(storage("../../etc/passwd"))))), "has no entry"
    ),
    "zip: storage too small": (
        ".pth", zipped(pickled(state(x=tensor(storage(count=5))))), "20 bytes, and has 16"
    ),
    "zip: compressed": (".pth", zipped(GOOD, compress=zipfile.ZIP_DEFLATED), "is compressed or"),
    "zip: bomb": (
        ".pth", zipped(GOOD, {"archive/data/0": bytes(20 << 20)}, zipfile.ZIP_DEFLATED),
        "is compressed or",
    ),
    "zip: path out": (".pth", zipped(GOOD, {"../../evil": b"x"}), "a path out of its folder"),
    "zip: absolute path": (".pth", zipped(GOOD, {"/etc/cron.d/x": b"x"}), "a path out of its"),
    "zip: path of Windows": (".pth", zipped(GOOD, {"a\\..\\evil": b"x"}), "a path out of its"),
    "zip: same name twice": (".pth", _duplicated(), "two entries of the same name"),
    "zip: entries overlap": (".pth", _overlapping(), "entries of the zip file overlap"),
    "zip: size too large": (
        ".pth", directory(directory(zipped(GOOD), 20, 999), 24, 999), "overlaps the next one"
    ),
    "zip: size of 4 GB": (
        ".pth", directory(directory(zipped(GOOD), 20, 2**32 - 2), 24, 2**32 - 2), "overlaps the"
    ),
    "zip: sizes differ": (".pth", directory(zipped(GOOD), 24, 9999), "overlaps the next one"),
    "zip: entry elsewhere": (".pth", directory(zipped(GOOD), 42, 999), "not where the zip file"),
    "zip: encrypted": (".pth", directory(zipped(GOOD), 8, 1, 2), "compressed or encrypted"),
    "zip: entry beyond the file": (".pth", directory(zipped(GOOD), 42, 1 << 30), ""),
    "npz: objects": (".npz", npz(**{"bn.running_mean": OBJECTS.getvalue()}), "Python objects"),
    "npz: objects in statistics": (
        ".npz", npz(**dict.fromkeys(["bn.running_mean", "bn.running_var"], OBJECTS.getvalue())),
        "holds Python objects",
    ),
    "npz: pickle of Python": (
        ".npz", npz(**dict.fromkeys(
            ["bn.running_mean", "bn.running_var"],
            npy(header("(1,)", "|O"), pickled(call("os", "system", text(COMMAND)))))),
        "holds Python objects",
    ),
    "npz: call in a header": (
        ".npz", npz(**dict.fromkeys(
            ["bn.running_mean", "bn.running_var"], npy(f"open({CANARY!r}, 'w')\n"))),
        "cannot be read as an array",
    ),
    "npz: path out": (".npz", npz(**{"../bn.running_mean": npy(header())}), "a path out of its"),
    "npz: no zip": (".npz", b"PK\x03\x04" + b"\0" * 99, "damaged or truncated zip"),
    "npz: same name twice": (
        ".npz", npz(ab=npy(header()), ac=npy(header())).replace(b"ac.npy", b"ab.npy"),
        "two entries of the same name",
    ),
    "npz: note that is a list": (
        ".npz", npz(__fastbn__=npy(header("()", "<U2"), "[]".encode("utf-32-le"))),
        "it is no dictionary",
    ),
    "npz: note of no settings": (
        ".npz", npz(__fastbn__=npy(header("()", "<U8"), '{"a": 1}'.encode("utf-32-le"))),
        "is damaged at 'a'",
    ),
    "npz: bfloat16": (
        ".npz", npz(**dict.fromkeys(
            ["bn.running_mean", "bn.running_var"], npy(header(dtype="|V2"), b"\0" * 8))),
        "np.savez makes of bfloat16",
    ),
    "npz: note that is none": (
        ".npz", npz(__fastbn__=npy(header("(1,)", "<U1"), b"x\0\0\0")), "it is no JSON"
    ),
    "npz: deep note": (
        ".npz", npz(__fastbn__=npy(header("()", "<U90000"), ("[" * 90000).encode("utf-32-le"))),
        "it is no JSON",
    ),
    **{
        f"npz: {why}": (
            ".npz", npz(**dict.fromkeys(["bn.running_mean", "bn.running_var"], data)), message
        )
        for why, data, message in [
            ("no array", b"hello", "cannot be read as an array"),
            ("absurd shape", npy(header("(1099511627776,)")), "there are 16"),
            ("shape that overflows", npy(header("(4294967296, 4294967296, 8)")), "absurdly many"),
            ("negative shape", npy(header("(-4,)")), "cannot be read as an array"),
            ("values missing", npy(header(), b"\0" * 15), "there are 15"),
            ("values left over", npy(header(), b"\0" * 17), "there are 17"),
            ("long header", npy(header() + " " * 60000), "cannot be read as an array"),
            ("header of 4 GB", b"\x93NUMPY\x02\0\xff\xff\xff\xff{", "cannot be read as an array"),
            ("version of 9", npy(header(), version=9)[:99], "cannot be read as an array"),
            ("dates", npy(header(dtype="<M8[s]"), b"\0" * 32), "expected a floating-point one"),
            ("text", npy(header(dtype="<U4"), b"\0" * 64), "expected a floating-point one"),
            ("integers", npy(header(dtype="<i4")), "expected a floating-point one"),
            ("two dimensions", npy(header("(2, 2)")), "has shape (2, 2), expected one value"),
            ("no channels", npy(header("(0,)"), b""), "has shape (0,), expected one value"),
        ]
    },
    **{
        f"safetensors: {why}": (".safetensors", data, message)
        for why, data, message in [
            ("length of an exabyte", safetensors("{}", length=1 << 60), "no whole file"),
            ("length beyond the file", safetensors("{}", length=999), "no whole file"),
            ("no JSON", safetensors("{hello}"), "no whole file"),
            ("a list", safetensors("[1, 2]"), "no whole file"),
            ("deep JSON", safetensors('{"a": ' + "[" * 99999), "no whole file"),
            ("offsets that overlap", safetensors(both(entry(), entry())), "no whole file"),
            ("values beyond", safetensors(both(entry(), entry(offsets="[16, 999]"))), "no whole"),
            ("negative offset", safetensors(both(entry(), entry(offsets="[-16, 0]"))), "no whole"),
            ("negative shape", safetensors(both(entry(), entry(shape="[-4]"))), "no whole file"),
            (
                "shape that overflows",
                safetensors(both(entry(), entry(shape="[4294967296, 4294967296]"))),
                "no whole file",
            ),
            ("dtype that NumPy has not", safetensors(both(entry("F8_E8M0"), entry())), "no whole"),
            ("unknown dtype", safetensors(both(entry(), entry("F31"))), "no whole file"),
            ("values left over", safetensors("{}"), "no whole file"),
            ("note", safetensors('{"__metadata__": {"__fastbn__": "[1]"}}', b""), "no dictionary"),
            (
                "unknown setting",
                safetensors('{"__metadata__": {"__fastbn__": "{\\"a\\": {\\"b\\": 1}}"}}', b""),
                "has a setting 'b'",
            ),
        ]
    },
    **{
        f"index: {why}": (".index.json", data.encode(), message)
        for why, data, message in [
            ("no map", "{}", "has no 'weight_map'"),
            ("a list", "[1]", "has no 'weight_map'"),
            ("deep", "[" * 99999, "no JSON"),
            ("number", '{"weight_map": {"a": 3}}', "no name of a file in the same folder"),
            ("path out", '{"weight_map": {"a": "../x.safetensors"}}', "no name of a file in"),
            ("absolute", '{"weight_map": {"a": "/etc/x.safetensors"}}', "no name of a file in"),
            ("folder", '{"weight_map": {"a": "b/x.safetensors"}}', "no name of a file in"),
            ("Windows", '{"weight_map": {"a": "..\\\\x.safetensors"}}', "no name of a file in"),
            ("parent", '{"weight_map": {"a": ".."}}', "expected one of"),
            ("itself", '{"weight_map": {"a": "hostile.index.json"}}', "expected one of"),
            ("password", '{"weight_map": {"a": "passwd"}}', "expected one of"),
            ("missing", '{"weight_map": {"a": "x.safetensors"}}', "which is not beside it"),
        ]
    },
}  # fmt: skip
