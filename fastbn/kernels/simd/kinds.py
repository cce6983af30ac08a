"""Vectors from memory of any kind, and back: `standardize` reads bytes and writes float32.

A kind is the name of a dtype. Vectors are ``working`` in "float32" or "float64". The functions
are those of the package's second table; memory need not be aligned.
"""

from functools import cache

from llvmlite import ir
from numba.core import types

from fastbn.kernels.simd.half import narrowed_half, widened_half
from fastbn.kernels.simd.instruction import INT32, INT64, VectorType, instruction

VECTOR_BITS = 512

_HELD = {name: getattr(types, name) for name in ("uint8", "int8", "uint16", "int16")}
_HELD |= {"float16": types.int16, "bfloat16": types.uint16}
_HELD |= {"float32": types.float32, "float64": types.float64}
_HALVES = "float16", "bfloat16"
_RANGES = {"uint8": (0, 255), "int8": (-128, 127), "uint16": (0, 65535), "int16": (-32768, 32767)}
_ELEMENTS = {"float32": ir.FloatType(), "float64": ir.DoubleType()}
#: Added and taken away again, they round to an integer, ties to even.
_ROUNDING = {32: 1.5 * 2**23, 64: 1.5 * 2**52}


def _lanes(working):
    return 16 if working == "float32" else 8


def _kind(working, count=1):
    """Three vectors are held as four: LLVM takes what no power of two fits apart, lane by lane."""
    return VectorType(getattr(types, working), _lanes(working) * (1 << (count - 1).bit_length()))


def _element(kind):
    return _ELEMENTS.get(kind) or ir.IntType(_HELD[kind].bitwidth)


@cache
def pointers_of(kind):
    return instruction(
        f"pointer_of_{kind}",
        lambda address: types.CPointer(_HELD[kind]),
        lambda code, address: code.builder.inttoptr(address, code.native(code.result)),
    )


# --- between memory and registers -----------------------------------------------------------------


def _widened(builder, raw, kind, working):
    """A vector, or a number, as it is worked with."""
    lanes = raw.type.count
    new = ir.VectorType(_ELEMENTS[working], lanes)
    if kind in _HALVES:
        raw = widened_half(builder, raw, _HELD[kind])
    elif kind in _RANGES:
        words = ir.VectorType(INT32, lanes)
        raw = (builder.sext if kind.startswith("int") else builder.zext)(raw, words)
        return builder.sitofp(raw, new)
    if raw.type == new:
        return raw
    return (builder.fpext if working == "float64" else builder.fptrunc)(raw, new)


def _narrowed(builder, vector, kind):
    """The reverse. Integers are rounded, ties to even, and clipped; NaN is the least of them."""
    if kind in _RANGES:
        return _rounded(builder, vector, kind)
    of = "float32" if kind in _HALVES else kind
    new = ir.VectorType(_ELEMENTS[of], vector.type.count)
    if vector.type != new:
        vector = (builder.fpext if of == "float64" else builder.fptrunc)(vector, new)
    return narrowed_half(builder, vector, _HELD[kind]) if kind in _HALVES else vector


def _rounded(builder, vector, kind):
    def constant(number):
        return ir.Constant(vector.type, [float(number)] * vector.type.count)

    least, most = map(constant, _RANGES[kind])
    magic = constant(_ROUNDING[64 if vector.type.element == ir.DoubleType() else 32])
    vector = builder.select(builder.fcmp_ordered(">", vector, least), vector, least)
    vector = builder.select(builder.fcmp_ordered("<", vector, most), vector, most)
    whole = builder.fsub(builder.fadd(vector, magic), magic)
    words = builder.fptosi(whole, ir.VectorType(INT32, vector.type.count))
    return builder.trunc(words, ir.VectorType(_element(kind), vector.type.count))


def _load(code, pointer, index, kind, lanes):
    vector = ir.VectorType(_element(kind), lanes)
    return code.builder.load(code.place(pointer, index, vector), align=1)


def _store(code, raw, pointer, index, streaming=False):
    stored = code.builder.store(raw, code.place(pointer, index, raw.type), align=1)
    if streaming:
        bits = {ir.FloatType(): 32, ir.DoubleType(): 64}[raw.type.element]
        stored.align = raw.type.count * bits // 8
        one = code.builder.module.add_metadata([INT32(1)])
        stored.set_metadata("nontemporal", one)


def _joined(code, parts):
    """Vectors as one; what is beyond them may be anything."""
    parts = list(parts)
    while len(parts) & (len(parts) - 1):
        parts.append(code.undefined(parts[0].type))
    return code.joined(parts)


def _split(code, vector, working, count):
    """The reverse."""
    size, undefined = _lanes(working), code.undefined(vector.type)
    return [
        vector if count == 1 else code.shuffled(vector, undefined, range(k * size, k * size + size))
        for k in range(count)
    ]


# --- reads ----------------------------------------------------------------------------------------


@cache
def reads(kind, working, count=1):
    def write(code, pointer, index, apart):
        raws = [
            _load(code, pointer, place, kind, _lanes(working))
            for place in code.steps(index, apart, count)
        ]
        return _joined(code, [_widened(code.builder, raw, kind, working) for raw in raws])

    return instruction(
        f"read_{kind}_{working}_{count}",
        lambda pointer, index, apart: _kind(working, count),
        write,
    )


@cache
def reads_turned(kind, working, count):
    lanes = _lanes(working)

    def write(code, pointer, index):
        places = code.steps(index, INT64(lanes), count)
        raw = _joined(code, [_load(code, pointer, place, kind, lanes) for place in places])
        undefined = code.undefined(raw.type)
        each = [code.shuffled(raw, undefined, range(c, lanes * count, count)) for c in range(count)]
        return _joined(code, [_widened(code.builder, one, kind, working) for one in each])

    return instruction(
        f"read_turned_{kind}_{working}_{count}", lambda pointer, index: _kind(working, count), write
    )


@cache
def reads_apart(kind, working):
    lanes = _lanes(working)

    def write(code, pointer, index, apart):
        raw = code.undefined(ir.VectorType(_element(kind), lanes))
        for lane, place in enumerate(code.steps(index, apart, lanes)):
            one = code.builder.load(code.builder.gep(pointer, [place]), align=1)
            raw = code.builder.insert_element(raw, one, INT32(lane))
        return _widened(code.builder, raw, kind, working)

    return instruction(
        f"read_apart_{kind}_{working}", lambda pointer, index, apart: _kind(working), write
    )


@cache
def reads_one(kind, working):
    def write(code, pointer, index):
        one = _widened(code.builder, _load(code, pointer, index, kind, 1), kind, working)
        scalar = code.builder.extract_element(one, INT32(0))
        return code.splat(scalar, _lanes(working))

    return instruction(f"read_one_{kind}_{working}", lambda pointer, index: _kind(working), write)


@cache
def reads_terms(rows, working, count=1, same=False):
    lanes = _lanes(working)

    def write(code, table, columns, index):
        for row in code.steps(index, columns, rows):
            places = code.steps(row, INT64(lanes), 1 if same else count)
            each = [_load(code, table, place, working, lanes) for place in places]
            yield _joined(code, each * count if same else each)

    return instruction(
        f"read_terms_{rows}_{working}_{count}_{same}",
        lambda table, columns, index: types.UniTuple(_kind(working, count), rows),
        lambda *arguments: list(write(*arguments)),
    )


# --- writes ---------------------------------------------------------------------------------------


@cache
def writes(kind, working, count=1, streaming=False):
    def write(code, pointer, index, apart, vector):
        places = code.steps(index, apart, count)
        for place, part in zip(places, _split(code, vector, working, count), strict=True):
            _store(code, _narrowed(code.builder, part, kind), pointer, place, streaming)

    return instruction(
        f"write_{kind}_{working}_{count}_{streaming}",
        lambda pointer, index, apart, vector: types.void,
        write,
    )


@cache
def writes_turned(kind, working, count):
    lanes = _lanes(working)

    def write(code, pointer, index, vector):
        raws = [
            _narrowed(code.builder, part, kind) for part in _split(code, vector, working, count)
        ]
        raw = _joined(code, raws)
        undefined = code.undefined(raw.type)
        order = [c * lanes + k for k in range(lanes) for c in range(count)]
        for k, place in enumerate(code.steps(index, INT64(lanes), count)):
            part = code.shuffled(raw, undefined, order[k * lanes : (k + 1) * lanes])
            _store(code, part, pointer, place)

    return instruction(
        f"write_turned_{kind}_{working}_{count}", lambda pointer, index, vector: types.void, write
    )


@cache
def writes_apart(kind, working):
    def write(code, pointer, index, apart, vector):
        raw = _narrowed(code.builder, vector, kind)
        for lane, place in enumerate(code.steps(index, apart, _lanes(working))):
            one = code.builder.extract_element(raw, INT32(lane))
            code.builder.store(one, code.builder.gep(pointer, [place]), align=1)

    return instruction(
        f"write_apart_{kind}_{working}", lambda pointer, index, apart, vector: types.void, write
    )


@cache
def writes_one(kind, working):
    def write(code, pointer, index, vector):
        first = code.shuffled(vector, code.undefined(vector.type), [0])
        _store(code, _narrowed(code.builder, first, kind), pointer, index)

    return instruction(
        f"write_one_{kind}_{working}", lambda pointer, index, vector: types.void, write
    )
