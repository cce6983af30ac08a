"""SIMD vectors in LLVM. The package's docstring says what the functions mean.

Written as vectors, a loop has one order of additions, spelled out in the source: one thread or
many give the same bits, and no fastmath flag is needed but ``contract``, which lets a product and
a sum become one fused instruction. On a processor with narrower registers LLVM splits each
operation; the result stays the same.
"""

import operator
from functools import lru_cache

import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin

from fastbn.kernels.frame import DTYPE, WORDS
from fastbn.kernels.simd.formula import INSTRUCTIONS, compiled_formula
from fastbn.kernels.simd.vector_type import VectorType, llvm_type

VECTOR_BITS = 512


def _register_bits():
    """Width of the processor's vector registers, as far as Numba makes use of them."""
    features = numba.config.CPU_FEATURES
    if features is None:
        features = llvm.get_host_cpu_features().flatten()
    known = {"+avx512f": 512, "+avx": 256}
    return next((bits for name, bits in known.items() if name in features.split(",")), 128)


#: Eight vectors of sums at a time, and what goes into them, need more narrow registers than there
#: are. So they are summed a share at a time; no bit depends on it.
SHARE = VECTOR_BITS // _register_bits()

_INT32, _INT64 = ir.IntType(32), ir.IntType(64)
_FRAME = numba.from_dtype(DTYPE)


def _made(*facts):
    """`intrinsic` for what a maker makes: its name says of what, and no two have one name."""

    def named(body):
        body.__name__ = body.__qualname__ = "_".join([body.__name__, *map(str, map(int, facts))])
        return intrinsic(body)

    return named


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


# --- LLVM, a step at a time -----------------------------------------------------------------------


def _vector(pointer, share=1):
    """Type of a vector of what ``pointer`` points to, or of one of ``share`` parts of it."""
    return VectorType(pointer.dtype, VECTOR_BITS // pointer.dtype.bitwidth // share)


def _integers(context, builder, sig, args, *which):
    return [context.cast(builder, args[k], sig.args[k], types.int64) for k in which]


def _shuffled(builder, one, other, order):
    indices = ir.Constant(ir.VectorType(_INT32, len(order)), order)
    return builder.shuffle_vector(one, other, indices)


def _undefined(kind):
    return ir.Constant(kind, ir.Undefined)


def _splat(builder, scalar, lanes):
    undefined = _undefined(ir.VectorType(scalar.type, lanes))
    first = builder.insert_element(undefined, scalar, _INT32(0))
    return _shuffled(builder, first, undefined, [0] * lanes)


def _joined(builder, parts):
    """Several vectors as one."""
    while len(parts) > 1:
        order = list(range(2 * parts[0].type.count))
        pairs = zip(parts[::2], parts[1::2], strict=True)
        parts = [_shuffled(builder, a, b, order) for a, b in pairs]
    return parts[0]


def _split(builder, vector, count):
    if count == 1:
        return [vector]
    size, undefined = vector.type.count // count, _undefined(vector.type)
    orders = [list(range(k * size, (k + 1) * size)) for k in range(count)]
    return [_shuffled(builder, vector, undefined, order) for order in orders]


def _at(builder, pointer, index, vector):
    return builder.bitcast(builder.gep(pointer, [index]), vector.as_pointer())


def _bytes(vector):
    return 8 if vector.element == ir.DoubleType() else 4


def _load(builder, pointer, index, vector):
    return builder.load(_at(builder, pointer, index, vector), align=_bytes(vector))


def _masked(builder, operation, vector, result, *arguments):
    """LLVM's masked load or store; the last argument but ``rest`` is how many lanes count."""
    name = f"llvm.masked.{operation}.v{vector.count}f{8 * _bytes(vector)}.p0"
    kind = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _first(builder, number, lanes):
    """Mask of the first ``number`` lanes."""
    order = ir.Constant(ir.VectorType(_INT64, lanes), list(range(lanes)))
    return builder.icmp_signed("<", order, _splat(builder, number, lanes))


def _load_first(builder, pointer, index, number, rest):
    vector = rest.type
    address, mask = _at(builder, pointer, index, vector), _first(builder, number, vector.count)
    return _masked(builder, "load", vector, vector, address, _INT32(_bytes(vector)), mask, rest)


def _store(builder, pointer, index, vector, streaming):
    kind = vector.type
    align = VECTOR_BITS // 8 if streaming else _bytes(kind)
    stored = builder.store(vector, _at(builder, pointer, index, kind), align=align)
    if streaming:
        stored.set_metadata("nontemporal", builder.module.add_metadata([_INT32(1)]))


def _store_first(builder, pointer, index, number, vector):
    kind = vector.type
    address, mask = _at(builder, pointer, index, kind), _first(builder, number, kind.count)
    _masked(builder, "store", kind, ir.VoidType(), vector, address, _INT32(_bytes(kind)), mask)


def _steps(builder, start, step, count):
    """``start``, ``start + step`` and so on."""
    return [builder.add(start, builder.mul(_INT64(k), step)) for k in range(count)]


# --- addresses and memory -------------------------------------------------------------------------


@intrinsic
def address_of(typing_context, array):
    def codegen(context, builder, sig, args):
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        return builder.ptrtoint(data, _INT64)

    return types.int64(array), codegen


def _at_address(result):
    """Make the intrinsic that takes an address for memory of the type ``result(like)``."""

    @intrinsic
    def at(typing_context, address, like):
        kind = result(like)

        def codegen(context, builder, sig, args):
            (address,) = _integers(context, builder, sig, args, 0)
            return builder.inttoptr(address, context.get_value_type(kind))

        return kind(address, like), codegen

    return at


values_at = _at_address(lambda like: like)
doubles_at = _at_address(lambda like: types.CPointer(types.float64))
singles_at = _at_address(lambda like: types.CPointer(types.float32))
words_at = _at_address(lambda like: types.CPointer(types.int64))


def _rows_at(result):
    """Make ``rows(count)(address, distance, like)``: pointers to rows ``distance`` bytes apart."""

    @lru_cache(maxsize=None)
    def rows(count):
        @intrinsic
        def at(typing_context, address, distance, like):
            kind = types.UniTuple(result(like), count)

            def codegen(context, builder, sig, args):
                places = _steps(builder, *_integers(context, builder, sig, args, 0, 1), count)
                pointer = context.get_value_type(kind.dtype)
                pointers = [builder.inttoptr(place, pointer) for place in places]
                return context.make_tuple(builder, kind, pointers)

            return kind(address, distance, like), codegen

        return at

    return rows


value_rows = _rows_at(lambda like: like)
double_rows = _rows_at(lambda like: types.CPointer(types.float64))


@intrinsic
def frame_at(typing_context, address):
    def codegen(context, builder, sig, args):
        return builder.inttoptr(args[0], context.get_value_type(_FRAME))

    return _FRAME(types.int64), codegen


@intrinsic
def copy_of(typing_context, address):
    def codegen(context, builder, sig, args):
        kind = ir.ArrayType(_INT64, WORDS)
        copy = cgutils.alloca_once(builder, kind)
        source = builder.inttoptr(args[0], kind.as_pointer())
        builder.store(builder.load(source, align=8), copy, align=8)
        return builder.ptrtoint(copy, _INT64)

    return types.int64(types.int64), codegen


@lru_cache(maxsize=None)
def memory(count):
    @_made(count)
    def allocate(typing_context, like):
        def codegen(context, builder, sig, args):
            with builder.goto_entry_block():
                space = builder.alloca(ir.ArrayType(llvm_type(like.dtype), count))
                space.align = VECTOR_BITS // 8
            return builder.bitcast(space, context.get_value_type(like))

        return like(like), codegen

    return allocate


@intrinsic
def allocate(typing_context, size):
    """Memory of ``size`` bytes from the C library, or 0; `free` gives it back."""

    def codegen(context, builder, sig, args):
        kind = ir.FunctionType(_INT64, [_INT64])
        malloc = cgutils.get_or_insert_function(builder.module, kind, "malloc")
        return builder.call(malloc, _integers(context, builder, sig, args, 0))

    return types.int64(size), codegen


@intrinsic
def free(typing_context, address):
    def codegen(context, builder, sig, args):
        kind = ir.FunctionType(ir.VoidType(), [_INT64])
        function = cgutils.get_or_insert_function(builder.module, kind, "free")
        builder.call(function, args)
        return context.get_dummy_value()

    return types.void(address), codegen


def _calling(*kinds):
    """Make the intrinsic that calls native code at an address."""

    def codegen(context, builder, sig, args):
        kind = ir.FunctionType(ir.VoidType(), kinds)
        values = _integers(context, builder, sig, args, *range(1, len(args)))
        values += [ir.Constant(kind, None) for kind in kinds[len(values) :]]
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), values)
        return context.get_dummy_value()

    return codegen


@intrinsic
def call(typing_context, part, frame, task):
    like = ir.IntType(8).as_pointer()  # which a part is only told for its type
    return types.void(part, frame, task), _calling(_INT64, _INT64, like)


@intrinsic
def call_loop(typing_context, loop, part, frame, tasks):
    return types.void(loop, part, frame, tasks), _calling(_INT64, _INT64, _INT64)


@intrinsic
def fence(typing_context):
    def codegen(context, builder, sig, args):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def to_boundary(typing_context, pointer, index):
    size = pointer.dtype.bitwidth // 8

    def codegen(context, builder, sig, args):
        (index,) = _integers(context, builder, sig, args, 1)
        address = builder.ptrtoint(builder.gep(args[0], [index]), _INT64)
        before = builder.and_(builder.neg(address), _INT64(VECTOR_BITS // 8 - 1))
        return builder.lshr(before, _INT64(size.bit_length() - 1))

    return types.int64(pointer, index), codegen


# --- vectors --------------------------------------------------------------------------------------


@lru_cache(maxsize=None)
def lanes(share=1):
    @_made(share)
    def lanes_of(typing_context, like):
        def codegen(context, builder, sig, args):
            return context.get_constant(types.int64, _vector(like, share).lanes)

        return types.int64(like), codegen

    return lanes_of


@lru_cache(maxsize=None)
def broadcasts(count=1, share=1, wide=False):
    @_made(count, share, wide)
    def broadcast(typing_context, like, value):
        lanes = count * _vector(like, share).lanes
        kind = VectorType(types.float64 if wide else like.dtype, lanes)

        def codegen(context, builder, sig, args):
            number = context.cast(builder, args[1], sig.args[1], kind.scalar)
            return _splat(builder, number, lanes)

        return kind(like, value), codegen

    return broadcast


@lru_cache(maxsize=None)
def loads(count=1, share=1):
    @_made(count, share)
    def load(typing_context, pointer, index, apart):
        kind = _vector(pointer, share)

        def codegen(context, builder, sig, args):
            start, step = _integers(context, builder, sig, args, 1, 2)
            places = _steps(builder, start, step, count)
            parts = [_load(builder, args[0], place, llvm_type(kind)) for place in places]
            return _joined(builder, parts)

        return VectorType(kind.scalar, count * kind.lanes)(pointer, index, apart), codegen

    return load


@lru_cache(maxsize=None)
def loads_first(count=1):
    @_made(count)
    def load_first(typing_context, pointer, index, apart, number, less, rest):
        def codegen(context, builder, sig, args):
            start, step, number, less = _integers(context, builder, sig, args, 1, 2, 3, 4)
            places = _steps(builder, start, step, count)
            numbers = _steps(builder, number, builder.neg(less), count)
            rests = _split(builder, args[5], count)
            each = zip(places, numbers, rests, strict=True)
            return _joined(builder, [_load_first(builder, args[0], *one) for one in each])

        return rest(pointer, index, apart, number, less, rest), codegen

    return load_first


@lru_cache(maxsize=None)
def loads_each(count=1):
    @_made(count)
    def load_each(typing_context, pointers, starts, aparts, offset):
        kind = _vector(pointers[0])

        def codegen(context, builder, sig, args):
            (offset,) = _integers(context, builder, sig, args, 3)
            each = zip(*(cgutils.unpack_tuple(builder, a) for a in args[:3]), strict=True)
            vectors = []
            for pointer, start, apart in each:
                places = _steps(builder, builder.add(start, offset), apart, count)
                parts = [_load(builder, pointer, place, llvm_type(kind)) for place in places]
                vectors.append(_joined(builder, parts))
            return context.make_tuple(builder, sig.return_type, vectors)

        result = types.UniTuple(VectorType(kind.scalar, count * kind.lanes), len(pointers))
        return result(pointers, starts, aparts, offset), codegen

    return load_each


@lru_cache(maxsize=None)
def loads_each_first(count=1):
    @_made(count)
    def load_each_first(typing_context, pointers, starts, aparts, offset, number):
        kind = _vector(pointers[0])

        def codegen(context, builder, sig, args):
            offset, number = _integers(context, builder, sig, args, 3, 4)
            each = zip(*(cgutils.unpack_tuple(builder, a) for a in args[:3]), strict=True)
            zero = ir.Constant(llvm_type(kind), [0.0] * kind.lanes)
            vectors = []
            for pointer, start, apart in each:
                places = _steps(builder, builder.add(start, offset), apart, count)
                parts = [_load_first(builder, pointer, place, number, zero) for place in places]
                vectors.append(_joined(builder, parts))
            return context.make_tuple(builder, sig.return_type, vectors)

        result = types.UniTuple(VectorType(kind.scalar, count * kind.lanes), len(pointers))
        return result(pointers, starts, aparts, offset, number), codegen

    return load_each_first


@lru_cache(maxsize=None)
def terms_along(rows, count=1):
    @_made(rows, count)
    def load_along(typing_context, table, columns, index, number, like):
        kind = VectorType(table.dtype, _vector(like).lanes)

        def codegen(context, builder, sig, args):
            columns, index, number = _integers(context, builder, sig, args, 1, 2, 3)
            zero = ir.Constant(llvm_type(kind), [0.0] * kind.lanes)
            places = _steps(builder, index, columns, rows)
            loaded = [_load_first(builder, args[0], place, number, zero) for place in places]
            vectors = [_joined(builder, [vector] * count) for vector in loaded]
            return context.make_tuple(builder, sig.return_type, vectors)

        result = types.UniTuple(VectorType(kind.scalar, count * kind.lanes), rows)
        return result(table, columns, index, number, like), codegen

    return load_along


@lru_cache(maxsize=None)
def terms_of_channel(rows):
    @_made(rows)
    def load_of_channel(typing_context, table, columns, index, like):
        kind = VectorType(table.dtype, _vector(like).lanes)

        def codegen(context, builder, sig, args):
            columns, index = _integers(context, builder, sig, args, 1, 2)
            places = _steps(builder, index, columns, rows)
            numbers = [builder.load(builder.gep(args[0], [place])) for place in places]
            vectors = [_splat(builder, number, kind.lanes) for number in numbers]
            return context.make_tuple(builder, sig.return_type, vectors)

        return types.UniTuple(kind, rows)(table, columns, index, like), codegen

    return load_of_channel


def _stored(streaming):
    @lru_cache(maxsize=None)
    def stores(count=1):
        @_made(count, streaming)
        def store(typing_context, pointer, index, apart, vector):
            def codegen(context, builder, sig, args):
                start, step = _integers(context, builder, sig, args, 1, 2)
                places = _steps(builder, start, step, count)
                for place, part in zip(places, _split(builder, args[3], count), strict=True):
                    _store(builder, args[0], place, part, streaming)
                return context.get_dummy_value()

            return types.void(pointer, index, apart, vector), codegen

        return store

    return stores


stores, stores_streaming = _stored(False), _stored(True)


@lru_cache(maxsize=None)
def stores_first(count=1):
    @_made(count)
    def store_first(typing_context, pointer, index, apart, number, vector):
        def codegen(context, builder, sig, args):
            start, step, number = _integers(context, builder, sig, args, 1, 2, 3)
            places = _steps(builder, start, step, count)
            for place, part in zip(places, _split(builder, args[4], count), strict=True):
                _store_first(builder, args[0], place, number, part)
            return context.get_dummy_value()

        return types.void(pointer, index, apart, number, vector), codegen

    return store_first


@intrinsic
def folded(typing_context, vector):
    def codegen(context, builder, sig, args):
        a, b, c, d = _split(builder, args[0], 4)
        return builder.fadd(builder.fadd(a, b), builder.fadd(c, d))

    return VectorType(vector.scalar, vector.lanes // 4)(vector), codegen


@intrinsic
def folded_products(typing_context, one, other):
    def codegen(context, builder, sig, args):
        fuse, halves = ("contract",), []
        pairs = list(zip(*(_split(builder, v, 4) for v in args), strict=True))
        for two in (pairs[:2], pairs[2:]):
            half = ir.Constant(two[0][0].type, [0.0] * two[0][0].type.count)
            for a, b in two:
                half = builder.fadd(half, builder.fmul(a, b, flags=fuse), flags=fuse)
            halves.append(half)
        return builder.fadd(*halves)

    return VectorType(one.scalar, one.lanes // 4)(one, other), codegen


@intrinsic
def total(typing_context, vector):
    def codegen(context, builder, sig, args):
        value, half = args[0], vector.lanes // 2
        while half:
            turned = [(lane + half) % vector.lanes for lane in range(vector.lanes)]
            value = builder.fadd(value, _shuffled(builder, value, _undefined(value.type), turned))
            half //= 2
        scalar = builder.extract_element(value, _INT32(0))
        return context.cast(builder, scalar, vector.scalar, types.float64)

    return types.float64(vector), codegen


@intrinsic
def widened(typing_context, vectors):
    kinds = [VectorType(types.float64, kind.lanes) for kind in vectors]

    def codegen(context, builder, sig, args):
        wide = [
            value if kind == had else builder.fpext(value, llvm_type(kind))
            for value, kind, had in zip(
                cgutils.unpack_tuple(builder, args[0]), kinds, vectors, strict=True
            )
        ]
        return context.make_tuple(builder, sig.return_type, wide)

    return types.UniTuple(kinds[0], len(kinds))(vectors), codegen


@intrinsic
def narrowed(typing_context, vector, like):
    kind = VectorType(like.scalar, vector.lanes)

    def codegen(context, builder, sig, args):
        return args[0] if vector == kind else builder.fptrunc(args[0], llvm_type(kind))

    return kind(vector, like), codegen


@intrinsic
def chosen(typing_context, marks, yes, no):
    def codegen(context, builder, sig, args):
        zero = ir.Constant(args[0].type, [0.0] * marks.lanes)
        return builder.select(builder.fcmp_unordered("!=", args[0], zero), args[1], args[2])

    return yes(marks, yes, no), codegen
