"""A reader of pickles that runs nothing: containers, numbers, text and descriptions of tensors.

A pickle is a program. This one interprets the instructions that build plain values, and knows a
few functions by name, of which it has versions of its own (`pickled_names`). There is no `getattr`,
no import and no call of anything that a file names; what it does not know it refuses.
"""

import struct
from collections.abc import Callable
from typing import Any

from fastbn.checkpoint.pickled_names import find
from fastbn.checkpoint.pickled_values import Builder, checked_key, named

#: Instructions and copied entries of one pickle; a thousand tensors take 40 thousand.
MAX_STEPS = 5_000_000


class PickleMachine:
    """Interprets one pickle out of a buffer.

    Parameters
    ----------
    data : bytes-like
        The whole file or entry.
    start : int
        Where the pickle begins; ``position`` is behind its end when it was read.
    persistent : function
        Makes a value of a persistent id, which is how torch refers to storages.
    """

    def __init__(
        self, data: Any, start: int = 0, persistent: Callable[[Any], Any] | None = None
    ) -> None:
        self.position = start
        self._data = memoryview(data)
        self._persistent = persistent
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._steps = 0

    def load(self) -> Any:
        """The value that the pickle describes."""
        if bytes(self._data[self.position : self.position + 1]) != b"\x80":
            raise ValueError("is no pickle of protocol 2 or later: it does not begin with one")
        while True:
            at = self.position
            code = self._take(1)[0]
            self.charge(1)
            if code == _STOP:
                return self._pop()
            run = _INSTRUCTIONS.get(code)
            if run is None:
                name = _REFUSED.get(code, "unknown")
                raise ValueError(
                    f"the pickle has the instruction {code:#04x} ({name}) at byte {at}, which no "
                    "state dict needs; it is damaged, or not of torch; nothing of it was run"
                )
            run(self)

    def charge(self, steps: int) -> None:
        """Count work, and refuse a pickle that makes too much of it."""
        self._steps += steps
        if self._steps > MAX_STEPS:
            raise ValueError(
                f"the pickle takes more than {MAX_STEPS:,} steps, which no state dict needs"
            )

    # --- bytes and the stack ----------------------------------------------------------------

    def _take(self, count: int) -> bytes:
        end = self.position + count
        if count < 0 or end > len(self._data):
            raise ValueError(
                f"the pickle ends too early: {count} bytes are needed at byte {self.position}, "
                f"and there are {len(self._data) - self.position}; it is truncated or damaged"
            )
        piece = bytes(self._data[self.position : end])
        self.position = end
        return piece

    def _number(self, kind: str) -> Any:
        return struct.unpack(kind, self._take(struct.calcsize(kind)))[0]

    def _line(self) -> str:
        """Text up to the end of a line, as in names of globals."""
        piece = bytes(self._data[self.position : self.position + 1000])
        end = piece.find(b"\n")
        if end < 0:
            raise ValueError(f"the pickle has a name without an end at byte {self.position}")
        self.position += end + 1
        return piece[:end].decode("utf-8", "replace")

    def _pop(self) -> Any:
        floor = self._marks[-1] if self._marks else 0
        if len(self._stack) <= floor:
            raise ValueError(f"the pickle takes more than it has at byte {self.position}")
        return self._stack.pop()

    def _top(self, kind: Any) -> Any:
        floor = self._marks[-1] if self._marks else 0
        if len(self._stack) <= floor or type(self._stack[-1]) not in kind:
            raise ValueError(
                f"the pickle adds entries to what is no plain container at byte {self.position}"
            )
        return self._stack[-1]

    def _since_mark(self) -> list[Any]:
        if not self._marks:
            raise ValueError(f"the pickle misses a mark at byte {self.position}")
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self._stack.append(value)

    # --- names and calls --------------------------------------------------------------------

    def _global(self) -> None:
        self.push(find(self._line(), self._line()))

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("the pickle has a global whose name is no text")
        self.push(find(module, name))

    def _instance(self) -> None:  # always refused: what has a name here is made by REDUCE
        module, name = self._line(), self._line()
        find(module, name)
        raise ValueError(f"the pickle makes an instance of {module}.{name}, which is refused")

    def _new_object(self) -> None:
        self._pop()
        made = self._pop()
        raise ValueError(f"the pickle makes an object of {named(made)}, which is refused")

    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, Builder):
            raise ValueError(f"the pickle calls {named(function)}, which is refused")
        if type(arguments) is not tuple:
            raise ValueError(f"the pickle calls {function.name} with what are no arguments")
        try:
            self.push(function.build(self, *arguments))
        except TypeError as error:
            raise ValueError(f"the pickle calls {function.name} with wrong arguments") from error

    def _build(self) -> None:
        """Attributes of an OrderedDict, such as versions of modules, are left out."""
        self._pop()
        made = self._pop()
        if type(made) is not dict:
            raise ValueError(f"the pickle sets the state of {named(made)}, which is refused")
        self.push(made)

    def _persistent_id(self) -> None:
        name = self._pop()
        if self._persistent is None:
            raise ValueError("the pickle refers to a storage where there can be none")
        self.push(self._persistent(name))

    # --- containers -------------------------------------------------------------------------

    def _mark(self) -> None:
        self._marks.append(len(self._stack))

    def _tuple(self, count: int) -> None:
        items = [self._pop() for _ in range(count)]
        self.push(tuple(reversed(items)))

    def _append(self) -> None:
        value = self._pop()
        self._top((list,)).append(value)

    def _appends(self) -> None:
        items = self._since_mark()
        self._top((list,)).extend(items)

    def _set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._top((dict,))[checked_key(key)] = value

    def _set_items(self) -> None:
        items = self._since_mark()
        self._top((dict,)).update(self._pairs(items))

    def _add_items(self) -> None:
        items = self._since_mark()
        self._top((set,)).update(map(checked_key, items))

    def _pairs(self, items: list[Any]) -> dict[Any, Any]:
        if len(items) % 2:
            raise ValueError("the pickle has a key without a value")
        return {checked_key(k): v for k, v in zip(items[::2], items[1::2], strict=True)}

    # --- memory of what was made ------------------------------------------------------------

    def _put(self, index: int) -> None:
        value = self._pop()
        self._memo[index] = value
        self.push(value)

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise ValueError(f"the pickle refers to value {index}, which it has not made")
        self.push(self._memo[index])


def _integer(data: bytes) -> int:
    if len(data) > 64:
        raise ValueError(f"the pickle has an integer of {len(data)} bytes")
    return int.from_bytes(data, "little", signed=True)


def _text(data: bytes) -> str:
    """UTF-8; what Python 2 has written may be Latin-1."""
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _value(make: Callable[[PickleMachine], Any]) -> Callable[[PickleMachine], None]:
    """An instruction that puts a value on the stack."""
    return lambda machine: machine.push(make(machine))


def _sized(kind: str, make: Callable[[bytes], Any]) -> Callable[[PickleMachine], None]:
    """A value whose bytes follow after their number."""
    return _value(lambda m: make(m._take(m._number(kind))))


_STOP = ord(".")
# names of Python's pickletools, with what each does
_INSTRUCTIONS: dict[int, Callable[[PickleMachine], Any]] = {
    0x80: lambda m: m._take(1),  # PROTO
    0x95: lambda m: m._take(8),  # FRAME: a hint for reading ahead
    ord("("): PickleMachine._mark,
    ord("0"): lambda m: m._pop() if len(m._stack) > (m._marks or [0])[-1] else m._since_mark(),
    ord("1"): PickleMachine._since_mark,  # POP_MARK
    ord("N"): _value(lambda m: None),
    0x88: _value(lambda m: True),
    0x89: _value(lambda m: False),
    ord("J"): _value(lambda m: m._number("<i")),
    ord("K"): _value(lambda m: m._number("<B")),
    ord("M"): _value(lambda m: m._number("<H")),
    ord("G"): _value(lambda m: m._number(">d")),
    0x8A: _sized("<B", _integer),
    0x8B: _sized("<i", _integer),
    ord("X"): _sized("<I", _text),
    0x8C: _sized("<B", _text),
    0x8D: _sized("<Q", _text),
    ord("T"): _sized("<i", _text),  # strings of Python 2
    ord("U"): _sized("<B", _text),
    ord("B"): _sized("<I", bytes),
    ord("C"): _sized("<B", bytes),
    0x8E: _sized("<Q", bytes),
    0x96: _sized("<Q", bytes),  # BYTEARRAY8
    ord(")"): _value(lambda m: ()),
    0x85: lambda m: m._tuple(1),
    0x86: lambda m: m._tuple(2),
    0x87: lambda m: m._tuple(3),
    ord("t"): lambda m: m.push(tuple(m._since_mark())),
    ord("]"): _value(lambda m: []),
    ord("l"): lambda m: m.push(m._since_mark()),
    ord("}"): _value(lambda m: {}),
    ord("d"): lambda m: m.push(m._pairs(m._since_mark())),
    0x8F: _value(lambda m: set()),
    0x91: lambda m: m.push(frozenset(map(checked_key, m._since_mark()))),
    ord("a"): PickleMachine._append,
    ord("e"): PickleMachine._appends,
    ord("s"): PickleMachine._set_item,
    ord("u"): PickleMachine._set_items,
    0x90: PickleMachine._add_items,
    ord("q"): lambda m: m._put(m._number("<B")),
    ord("r"): lambda m: m._put(m._number("<I")),
    0x94: lambda m: m._put(len(m._memo)),
    ord("h"): lambda m: m._get(m._number("<B")),
    ord("j"): lambda m: m._get(m._number("<I")),
    ord("c"): PickleMachine._global,
    0x93: PickleMachine._stack_global,
    ord("i"): PickleMachine._instance,
    0x81: PickleMachine._new_object,
    ord("R"): PickleMachine._reduce,
    ord("b"): PickleMachine._build,
    ord("Q"): PickleMachine._persistent_id,
}
_REFUSED = {
    ord("o"): "OBJ", 0x92: "NEWOBJ_EX", ord("P"): "PERSID", 0x82: "EXT1", 0x83: "EXT2",
    0x84: "EXT4", ord("2"): "DUP", ord("I"): "INT", ord("L"): "LONG", ord("F"): "FLOAT",
    ord("S"): "STRING", ord("V"): "UNICODE", ord("p"): "PUT", ord("g"): "GET",
    0x97: "NEXT_BUFFER", 0x98: "READONLY_BUFFER",
}  # fmt: skip
