"""Pickles that want to do harm, or are broken, instruction by instruction."""

import struct

#: What a file must not do: make this file.
CANARY = "canary-was-here"
COMMAND = f"touch {CANARY}"

# --- pickles, instruction by instruction ----------------------------------------------------------


def pickled(*parts):
    return b"\x80\x02" + b"".join(parts) + b"."


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def text(value):
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value):
    data = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def group(*parts):
    return b"(" + b"".join(parts) + b"t"


def call(module, attribute, *arguments):
    return name(module, attribute) + group(*arguments) + b"R"


FLOATS = name("torch", "FloatStorage")


def storage(key="0", count=4, kind=FLOATS, tag="storage"):
    key = text(key) if isinstance(key, str) else key
    return group(text(tag), kind, key, text("cpu"), number(count)) + b"Q"


def tensor(values=None, offset=0, shape=(4,), steps=(1,)):
    sizes, strides = (group(*map(number, numbers)) for numbers in (shape, steps))
    ordered = name("collections", "OrderedDict") + b")R"
    return call(
        "torch._utils", "_rebuild_tensor_v2",
        values or storage(), number(offset), sizes, strides, b"\x89", ordered,
    )  # fmt: skip


def state(**values):
    """A state dict of a batch norm, with some values replaced or added."""
    values = {"bn.running_mean": tensor(), "bn.running_var": tensor(), **values}
    return b"}(" + b"".join(text(key) + value for key, value in values.items()) + b"u"


#: Pickles that call, or are no state dict, and what the message must say.
PICKLES = {
    "os.system": (state(x=call("os", "system", text(COMMAND))), "'os.system', which is refused"),
    "posix.system": (state(x=call("posix", "system", text(COMMAND))), "'posix.system'"),
    "eval": (
        state(x=call("builtins", "eval", text(f"open({CANARY!r}, 'w')"))), "'builtins.eval'"
    ),
    "exec of Python 2": (
        state(x=call("__builtin__", "exec", text(f"open({CANARY!r}, 'w')"))), "'builtins.exec'"
    ),
    "open": (state(x=call("io", "open", text(CANARY), text("w"))), "'io.open'"),
    "getattr": (
        state(x=call("builtins", "getattr", name("collections", "OrderedDict"), text("mro"))),
        "'builtins.getattr'",
    ),
    "attribute of an admitted name": (
        state(x=text("collections") + text("OrderedDict.fromkeys") + b"\x93"),
        "'collections.OrderedDict.fromkeys'",
    ),
    "class of an admitted name": (
        state(x=name("torch", "FloatStorage.__class__")), "'torch.FloatStorage.__class__'"
    ),
    "Popen": (state(x=call("subprocess", "Popen", text(COMMAND))), "'subprocess.Popen'"),
    "partial": (state(x=call("functools", "partial", number(1))), "'functools.partial'"),
    "import": (state(x=call("importlib", "import_module", text("os"))), "importlib.import_module"),
    "reconstructor": (
        state(x=call("copyreg", "_reconstructor", number(1))), "'copyreg._reconstructor'"
    ),
    "NumPy's pickles": (
        state(x=call("numpy.core.multiarray", "_reconstruct", number(1))), "_reconstruct'"
    ),
    "torch.load": (state(x=call("torch", "load", text("other.pth"))), "'torch.load'"),
    "torch.hub": (state(x=call("torch.hub", "load", text("a/b"))), "'torch.hub.load'"),
    "a module": (name("torchvision.models.resnet", "ResNet") + b")\x81}b", "models.resnet.ResNet"),
    "INST": (state(x=b"(" + text(COMMAND) + b"ios\nsystem\n"), "'os.system'"),
    "INST of an admitted name": (state(x=b"(icollections\nOrderedDict\n"), "makes an instance of"),
    "OBJ": (state(x=b"(" + name("collections", "OrderedDict") + b"o"), "(OBJ)"),
    "NEWOBJ": (state(x=name("torch", "Size") + b")\x81"), "makes an object of torch.Size"),
    "NEWOBJ_EX": (state(x=name("torch", "Size") + b")}\x92"), "(NEWOBJ_EX)"),
    "EXT1": (state(x=b"\x82\x01"), "(EXT1)"),
    "EXT4": (state(x=b"\x84\x01\x00\x00\x00"), "(EXT4)"),
    "unknown instruction": (state(x=b"\xff"), "instruction 0xff (unknown)"),
    "a storage that is called": (
        state(x=call("torch", "FloatStorage", number(4))), "calls torch.FloatStorage"
    ),
    "a number that is called": (state(x=number(4) + b")R"), "calls a value of type int"),
    "state of a function": (
        state(x=name("torch", "Size") + b"}" + text("__code__") + b"Nsb"),
        "sets the state of torch.Size",
    ),
    "state of a tensor": (
        state(x=tensor() + b"}" + text("__setstate__") + name("torch", "Size") + b"sb"),
        "sets the state of a value of type Tensor",
    ),
    "state of a storage": (state(x=storage() + b"}b"), "sets the state of a value of type Storage"),
    "a tensor of nothing": (state(x=tensor(values=b"N")), "has no storage, but a NoneType"),
    "a tensor of too little": (
        state(x=call("torch._utils", "_rebuild_tensor_v2", storage())), "wrong arguments"
    ),
    "a tensor made by another": (
        state(x=call("torch._tensor", "_rebuild_from_type_v2", name("torch", "Size"),
                     name("torch", "Tensor"), b")", b"N")),
        "no tensor's function",
    ),
    "negative offset": (state(x=tensor(offset=-1)), "has a offset that is no number from 0 on"),
    "negative size": (state(x=tensor(shape=(-4,))), "has a size that is no number from 0 on"),
    "negative stride": (state(x=tensor(offset=3, steps=(-1,))), "stride that is no number"),
    "offset beyond": (state(x=tensor(offset=1)), "reaches beyond its storage '0' of 16 bytes"),
    "stride beyond": (state(x=tensor(steps=(2,))), "reaches beyond its storage"),
    "size beyond": (state(x=tensor(shape=(5,))), "reaches beyond its storage"),
    "sizes whose product overflows": (
        state(x=tensor(shape=(1 << 32, 1 << 32), steps=(0, 0))), "reaches beyond its storage"
    ),
    "offset that overflows": (state(x=tensor(offset=1 << 64)), "reaches beyond its storage"),
    "stride that overflows": (state(x=tensor(shape=(1,), steps=(1 << 100,))), "beyond its storage"),
    "expanded to terabytes": (
        state(x=tensor(shape=(1 << 20, 1 << 20), steps=(0, 0))), "shows the 16 bytes"
    ),
    "too many dimensions": (state(x=tensor(shape=(1,) * 40, steps=(1,) * 40)), "has 40 sizes"),
    "sizes without strides": (state(x=tensor(steps=())), "1 sizes and 0 strides"),
    "a size that is text": (
        state(x=call("torch._utils", "_rebuild_tensor_v2", storage(), number(0), group(text("4")),
                     group(number(1)), b"\x89", b"N")),
        "has a size that is no number",
    ),
    "a reference to a module": (state(x=storage(tag="module")), "no storage of values"),
    "a reference that is text": (state(x=text("0") + b"Q"), "no storage of values"),
    "a storage of another kind": (
        state(x=storage(kind=name("collections", "OrderedDict"))), "no storage of values"
    ),
    "a storage of a dtype": (state(x=storage(kind=name("torch", "float32"))), "no storage of"),
    "a quantized storage": (state(x=storage(kind=name("torch", "QInt8Storage"))), "QInt8Storage"),
    "a storage without key": (state(x=storage(key=number(0))), "has no key"),
    "a storage of -1 values": (state(x=storage(count=-1)), "no number of values from 0 on"),
    "a storage of 2**62 values": (state(x=storage(count=1 << 62)), "no number of values from 0"),
    "a list in itself": (state(x=b"]q\x00h\x00a"), "does one contain itself?"),
    "a dictionary in itself": (state(x=b"}q\x00" + text("a") + b"h\x00s"), "contain itself?"),
    "a billion lists": (
        group(tensor(), b"]q\x00" + b"".join(
            b"](h" + bytes([k]) + b"h" + bytes([k]) + b"eq" + bytes([k + 1]) for k in range(40)
        )),
        "more than 1,000,000 entries",
    ),
    "a copy of a copy": (
        b"]q\x00(" + b"".join(group(number(k), b"N") for k in range(2000)) + b"e0}(" + b"".join(
            text(str(k)) + name("collections", "OrderedDict") + b"h\x00\x85R" for k in range(3000)
        ) + b"u",
        "more than 5,000,000 steps",
    ),
    "a key that is a list": (state(x=b"}]Ns"), "neither text nor a number"),
    "a key that is a deep tuple": (state(x=b"})" + b"\x85" * 9999 + b"Ns"), "neither text nor a"),
    "a member that is a list": (state(x=b"\x8f(]\x90"), "neither text nor a number"),
    "a key without a value": (state(x=b"}(" + text("a") + b"u"), "a key without a value"),
    "an entry of no container": (state(x=b"N" + number(1) + b"a"), "no plain container"),
    "nothing on the stack": (b"0" * 9, "misses a mark"),
    "an absurd mark": (b"t", "misses a mark"),
    "a value that was not made": (state(x=b"h\x07"), "value 7, which it has not made"),
    "text without an end": (state(x=b"X\xff\xff\xff\xff"), "ends too early"),
    "text of an exabyte": (state(x=b"\x8d" + b"\xff" * 8), "ends too early"),
    "bytes of an exabyte": (state(x=b"\x96" + b"\x7f" * 8), "ends too early"),
    "an integer of a gigabyte": (state(x=b"\x8b\xff\xff\xff\x3f"), "ends too early"),
    "an integer of -1 bytes": (state(x=b"\x8b\xff\xff\xff\xff"), "ends too early"),
    "an integer of 200 bytes": (state(x=b"\x8a\xc8" + b"\x7f" * 200), "an integer of 200 bytes"),
    "a name without an end": (state(x=b"c" + b"a" * 3000), "a name without an end"),
    "a global that is a number": (state(x=number(1) + text("system") + b"\x93"), "is no text"),
    "no state dict at all": (group(tensor(), text("hello")), "has no batch norm"),
    "a mean without a variance": (
        b"}(" + text("bn.running_mean") + tensor() + b"u", "no other half of the running"
    ),
}  # fmt: skip
