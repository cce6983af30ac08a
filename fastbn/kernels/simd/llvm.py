"""SIMD vectors in LLVM. The package's docstring says what the functions mean.

Written as vectors, a loop has one order of additions, spelled out in the source: one thread or
many give the same bits, and no fastmath flag is needed but ``contract``, which lets a product and
a sum become one fused instruction. On a processor with narrower registers LLVM splits each
operation; the result stays the same.
"""

import operator
from functools import cache

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import lower_builtin

from fastbn.kernels.frame import DTYPE, WORDS
from fastbn.kernels.simd.formula import INSTRUCTIONS, compiled_formula
from fastbn.kernels.simd.half import computed
from fastbn.kernels.simd.instruction import INT64, VectorType, instruction, llvm_type
from fastbn.kernels.targets import converts_float16, processor

__all__ = ["compiled_formula"]

VECTOR_BITS = 512


def _register_bits():
    """Width of the processor's vector registers."""
    known = {"+avx512f": 512, "+avx": 256}
    features = processor().features.split(",")
    return next((bits for name, bits in known.items() if name in features), 128)


#: Eight vectors of sums at a time, and what goes into them, need more narrow registers than there
#: are. So they are summed a share at a time; no bit depends on it.
SHARE = VECTOR_BITS // _register_bits()


CONVERTS_FLOAT16 = converts_float16(processor().features)


def _define_operator(operation):
    @infer_global(operation)
    class VectorOperator(AbstractTemplate):
        def generic(self, args, kws):
            if len(args) == 2 and isinstance(args[0], VectorType) and args[0] == args[1]:
                return signature(args[0], *args)
            return None

    @lower_builtin(operation, VectorType, VectorType)
    def lower(context, builder, sig, args):
        return getattr(builder, INSTRUCTIONS[operation])(*args, flags=("contract",))


for _operation in (operator.add, operator.sub, operator.mul):
    _define_operator(_operation)


def _vector(pointer, share=1, count=1, scalar=None):
    """Type of vectors that values are computed in: ``count`` as one, or a share of one."""
    kind = computed(pointer.dtype)
    return VectorType(scalar or kind, VECTOR_BITS // kind.bitwidth // share * count)


def _piece(kind, count):
    return VectorType(kind.scalar, kind.lanes // count)


# --- addresses and memory -------------------------------------------------------------------------

_FRAME = numba.from_dtype(DTYPE)
_POINTERS = {name: types.CPointer(getattr(types, name)) for name in ("float32", "float64", "int64")}


def _pointer_at(name, kind_of):
    """A function that takes an address for memory of the type ``kind_of(like)``."""
    return instruction(
        name,
        lambda address, like: kind_of(like),
        lambda code, address, like: code.builder.inttoptr(address, code.native(code.result)),
    )


data_at = _pointer_at("data_at", lambda like: like)
values_at = _pointer_at("values_at", lambda like: types.CPointer(computed(like.dtype)))
singles_at = _pointer_at("singles_at", lambda like: _POINTERS["float32"])
doubles_at = _pointer_at("doubles_at", lambda like: _POINTERS["float64"])
words_at = _pointer_at("words_at", lambda like: _POINTERS["int64"])
frame_at = instruction(
    "frame_at",
    lambda address: _FRAME,
    lambda code, address: code.builder.inttoptr(address, code.native(_FRAME)),
)
address_of = instruction(
    "address_of",
    lambda array: types.int64,
    lambda code, array: code.builder.ptrtoint(
        code.context.make_array(code.kinds[0])(code.context, code.builder, array).data, INT64
    ),
)


def _rows(name, count, kind_of):
    def write(code, address, distance, like):
        pointer = code.native(code.result.dtype)
        return [code.builder.inttoptr(at, pointer) for at in code.steps(address, distance, count)]

    return instruction(
        f"{name}_{count}",
        lambda address, distance, like: types.UniTuple(kind_of(like), count),
        write,
    )


@cache
def value_rows(count):
    return _rows("value_rows", count, lambda like: types.CPointer(computed(like.dtype)))


@cache
def double_rows(count):
    return _rows("double_rows", count, lambda like: _POINTERS["float64"])


def _write_copy(code, address):
    kind = ir.ArrayType(INT64, WORDS)
    copy = cgutils.alloca_once(code.builder, kind)
    source = code.builder.inttoptr(address, kind.as_pointer())
    code.builder.store(code.builder.load(source, align=8), copy, align=8)
    return code.builder.ptrtoint(copy, INT64)


copy_of = instruction("copy_of", lambda address: types.int64, _write_copy)


def _memories(name, kind_of):
    @cache
    def memory(count):
        def write(code, like):
            with code.builder.goto_entry_block():
                kind = ir.ArrayType(code.native(code.result.dtype), count)
                space = code.builder.alloca(kind)
                space.align = VECTOR_BITS // 8
            return code.builder.bitcast(space, code.native(code.result))

        return instruction(
            f"{name}_{count}", lambda like: types.CPointer(kind_of(like.dtype)), write
        )

    return memory


def _short(kind):
    return types.int32 if kind.bitwidth == 8 else types.int64


memory = _memories("memory", computed)
held_memory = _memories("held_memory", lambda kind: kind)
short_memory = _memories("short_memory", _short)
as_held = instruction(
    "as_held",
    lambda number, like: like.dtype,
    lambda code, number, like: code.cast(number, types.int64, code.result),
)
as_short = instruction(
    "as_short",
    lambda number, like: _short(like.dtype),
    lambda code, number, like: code.cast(number, types.int64, code.result),
)


def _write_allocate(code, size):
    pointer = code.context.nrt.allocate_unchecked(code.builder, size)
    return code.builder.ptrtoint(pointer, INT64)


def _write_free(code, address):
    pointer = code.builder.inttoptr(address, ir.IntType(8).as_pointer())
    code.context.nrt.free(code.builder, pointer)


allocate = instruction("allocate", lambda size: types.int64, _write_allocate)
free = instruction("free", lambda address: types.void, _write_free)


def _write_call(code, address, *arguments):
    """A call of native code; a part has one more parameter, which only its type needs."""
    kinds = [value.type for value in arguments]
    if len(arguments) == 2:
        kinds.append(ir.IntType(8).as_pointer())
        arguments = (*arguments, ir.Constant(kinds[-1], None))
    kind = ir.FunctionType(ir.VoidType(), kinds).as_pointer()
    code.builder.call(code.builder.inttoptr(address, kind), arguments)


call = instruction("call", lambda part, frame, task: types.void, _write_call)
call_loop = instruction("call_loop", lambda loop, part, frame, tasks: types.void, _write_call)


def _write_fence(code):
    code.builder.fence("seq_cst")


def _write_fetch(code, pointer, index):
    bytes_at, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [bytes_at, number, number, number])
    prefetch = cgutils.get_or_insert_function(code.builder.module, kind, "llvm.prefetch.p0")
    address = code.builder.bitcast(code.builder.gep(pointer, [index]), bytes_at)
    code.builder.call(prefetch, [address, number(0), number(3), number(1)])  # data, to be read


fetch = instruction("fetch", lambda pointer, index: types.void, _write_fetch)
fence = instruction("fence", lambda: types.void, _write_fence)


def _write_to_boundary(code, pointer, index):
    build, size = code.builder, code.kinds[0].dtype.bitwidth // 8
    address = build.ptrtoint(build.gep(pointer, [index]), INT64)
    before = build.and_(build.neg(address), INT64(_vector(code.kinds[0]).lanes * size - 1))
    return build.lshr(before, INT64(size.bit_length() - 1))


to_boundary = instruction("to_boundary", lambda pointer, index: types.int64, _write_to_boundary)


# --- loads and stores -----------------------------------------------------------------------------


@cache
def lanes(share=1):
    return instruction(
        f"lanes_{share}",
        lambda like: types.int64,
        lambda code, like: INT64(_vector(code.kinds[0], share).lanes),
    )


@cache
def broadcasts(count=1, share=1, wide=False):
    def write(code, like, value):
        scalar = code.cast(value, code.kinds[1], code.result.scalar)
        return code.splat(scalar, code.result.lanes)

    return instruction(
        f"broadcast_{count}_{share}_{wide}",
        lambda like, value: _vector(like, share, count, types.float64 if wide else None),
        write,
    )


@cache
def loads(count=1, share=1):
    def write(code, pointer, index, apart):
        kind, held = _piece(code.result, count), code.kinds[0].dtype
        return code.joined(
            code.load(pointer, place, kind, held) for place in code.steps(index, apart, count)
        )

    return instruction(
        f"load_{count}_{share}", lambda pointer, index, apart: _vector(pointer, share, count), write
    )


@cache
def loads_first(count=1):
    def write(code, pointer, index, apart, number, less, rest):
        places = code.steps(index, apart, count)
        numbers = code.steps(number, code.builder.neg(less), count)
        each, held = zip(places, numbers, code.split(rest, count), strict=True), code.kinds[0].dtype
        return code.joined(code.load_first(pointer, *one, held) for one in each)

    return instruction(
        f"load_first_{count}", lambda pointer, index, apart, number, less, rest: rest, write
    )


def _vectors(pointers, count):
    return types.UniTuple(_vector(pointers[0], 1, count), len(pointers))


@cache
def loads_each(count=1):
    def write(code, pointers, starts, aparts, offset):
        kind = _piece(code.result.dtype, count)
        for of, pointer, start, apart in zip(code.kinds[0], pointers, starts, aparts, strict=True):
            places = code.steps(code.builder.add(start, offset), apart, count)
            yield code.joined(code.load(pointer, place, kind, of.dtype) for place in places)

    return instruction(
        f"load_each_{count}",
        lambda pointers, starts, aparts, offset: _vectors(pointers, count),
        lambda *arguments: list(write(*arguments)),
    )


@cache
def loads_each_first(count=1):
    def write(code, pointers, starts, aparts, offset, number):
        zero = code.zero(_piece(code.result.dtype, count))
        for of, pointer, start, apart in zip(code.kinds[0], pointers, starts, aparts, strict=True):
            places = code.steps(code.builder.add(start, offset), apart, count)
            first = (code.load_first(pointer, place, number, zero, of.dtype) for place in places)
            yield code.joined(first)

    return instruction(
        f"load_each_first_{count}",
        lambda pointers, starts, aparts, offset, number: _vectors(pointers, count),
        lambda *arguments: list(write(*arguments)),
    )


def _stores(name, count, streaming):
    def write(code, pointer, index, apart, vector):
        places = code.steps(index, apart, count)
        for place, part in zip(places, code.split(vector, count), strict=True):
            stored = code.store(part, pointer, place, code.kinds[0].dtype)
            if streaming:
                stored.align = part.type.count * code.kinds[0].dtype.bitwidth // 8
                one = code.builder.module.add_metadata([ir.IntType(32)(1)])
                stored.set_metadata("nontemporal", one)

    return instruction(f"{name}_{count}", lambda pointer, index, apart, vector: types.void, write)


@cache
def stores(count=1):
    return _stores("store", count, streaming=False)


@cache
def stores_streaming(count=1):
    return _stores("store_streaming", count, streaming=True)


@cache
def stores_first(count=1):
    def write(code, pointer, index, apart, number, vector):
        places = code.steps(index, apart, count)
        for place, part in zip(places, code.split(vector, count), strict=True):
            code.store_first(pointer, place, number, part, code.kinds[0].dtype)

    return instruction(
        f"store_first_{count}", lambda pointer, index, apart, number, vector: types.void, write
    )


def _write_value(code, pointer, index):
    kind, held = VectorType(computed(code.kinds[0].dtype), 1), code.kinds[0].dtype
    value = code.builder.extract_element(code.load(pointer, index, kind, held), ir.IntType(32)(0))
    return code.cast(value, kind.scalar, types.float64)


value_at = instruction("value_at", lambda pointer, index: types.float64, _write_value)


# --- terms ----------------------------------------------------------------------------------------


@cache
def terms_along(rows, count=1):
    def write(code, table, columns, index, number, like):
        zero = code.zero(_piece(code.result.dtype, count))
        for place in code.steps(index, columns, rows):
            part = code.load_first(table, place, number, zero, code.kinds[0].dtype)
            yield code.joined([part] * count)

    return instruction(
        f"terms_along_{rows}_{count}",
        lambda table, columns, index, number, like: types.UniTuple(
            _vector(like, 1, count, table.dtype), rows
        ),
        lambda *arguments: list(write(*arguments)),
    )


@cache
def terms_of_channel(rows):
    def write(code, table, columns, index, like):
        for place in code.steps(index, columns, rows):
            number = code.builder.load(code.builder.gep(table, [place]))
            yield code.splat(number, code.result.dtype.lanes)

    return instruction(
        f"terms_of_channel_{rows}",
        lambda table, columns, index, like: types.UniTuple(_vector(like, scalar=table.dtype), rows),
        lambda *arguments: list(write(*arguments)),
    )


# --- sums and dtypes ------------------------------------------------------------------------------


def _write_folded(code, vector):
    a, b, c, d = code.split(vector, 4)
    return code.builder.fadd(code.builder.fadd(a, b), code.builder.fadd(c, d))


folded = instruction("folded", lambda vector: _piece(vector, 4), _write_folded)


def _write_folded_products(code, one, other):
    # each product goes to a sum, from zero on, so that LLVM can fuse them in one way only
    fuse, halves = ("contract",), []
    pairs = list(zip(code.split(one, 4), code.split(other, 4), strict=True))
    for two in (pairs[:2], pairs[2:]):
        half = code.zero(code.result)
        for a, b in two:
            half = code.builder.fadd(half, code.builder.fmul(a, b, flags=fuse), flags=fuse)
        halves.append(half)
    return code.builder.fadd(*halves)


folded_products = instruction(
    "folded_products", lambda one, other: _piece(one, 4), _write_folded_products
)


def _write_total(code, vector):
    kind = code.kinds[0]
    half = kind.lanes // 2
    while half:
        turned = ((lane + half) % kind.lanes for lane in range(kind.lanes))
        other = code.shuffled(vector, code.undefined(vector.type), turned)
        vector = code.builder.fadd(vector, other)
        half //= 2
    scalar = code.builder.extract_element(vector, ir.IntType(32)(0))
    return code.cast(scalar, kind.scalar, types.float64)


total = instruction("total", lambda vector: types.float64, _write_total)


def _converted(code, vector, kind):
    """A vector in another dtype, or itself."""
    new = llvm_type(kind)
    if vector.type == new:
        return vector
    wider = kind.scalar == types.float64
    return (code.builder.fpext if wider else code.builder.fptrunc)(vector, new)


widened = instruction(
    "widened",
    lambda vectors: types.UniTuple(VectorType(types.float64, vectors[0].lanes), len(vectors)),
    lambda code, vectors: [_converted(code, vector, code.result.dtype) for vector in vectors],
)
narrowed = instruction(
    "narrowed",
    lambda vector, like: VectorType(like.scalar, vector.lanes),
    lambda code, vector, like: _converted(code, vector, code.result),
)


def _write_chosen(code, marks, yes, no):
    marked = code.builder.fcmp_unordered("!=", marks, code.zero(code.kinds[0]))
    return code.builder.select(marked, yes, no)


chosen = instruction("chosen", lambda marks, yes, no: yes, _write_chosen)
