"""A 512-bit SIMD vector as a Numba type, and its loads, stores and sums, for LLVM.

Written as vectors, a loop has one order of additions, spelled out in the
source: serial and parallel kernels, one thread or many, give the same bits, and
no fastmath flag is needed (the only one is ``contract``, which lets a product
and a sum become one fused instruction). On a processor with narrower registers
LLVM splits each operation; the result stays the same.

`vector` says what the functions mean; this module is how LLVM does it.
"""

import operator

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.errors import TypingError
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

VECTOR_BITS = 512


class VectorType(types.Type):
    """Numba type of a vector of ``lanes`` floating-point ``scalar`` values."""

    def __init__(self, scalar: types.Float) -> None:
        self.scalar = scalar
        self.lanes = VECTOR_BITS // scalar.bitwidth
        super().__init__(name=f"Vector({scalar} x {self.lanes})")


@register_model(VectorType)
class VectorModel(models.PrimitiveModel):
    """A vector is an LLVM vector, in registers and in memory."""

    def __init__(self, dmm, fe_type):
        scalar = dmm.lookup(fe_type.scalar).get_value_type()
        super().__init__(dmm, fe_type, ir.VectorType(scalar, fe_type.lanes))


def _define_operator(operation, instruction):
    @infer_global(operation)
    class VectorOperator(AbstractTemplate):
        def generic(self, args, kws):
            if len(args) == 2 and isinstance(args[0], VectorType) and args[0] == args[1]:
                return signature(args[0], *args)
            return None

    @lower_builtin(operation, VectorType, VectorType)
    def lower(context, builder, sig, args):
        return getattr(builder, instruction)(*args, flags=("contract",))


_define_operator(operator.add, "fadd")
_define_operator(operator.sub, "fsub")
_define_operator(operator.mul, "fmul")

_INT32 = ir.IntType(32)
_INT64 = ir.IntType(64)


def _splat(builder, vector, scalar):
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(_INT32, 0))
    zeros = ir.Constant(ir.VectorType(_INT32, vector.count), [0] * vector.count)
    return builder.shuffle_vector(first, undefined, zeros)


def _data(context, builder, array_type, array):
    if isinstance(array_type, types.CPointer):
        return array
    return context.make_array(array_type)(context, builder, array).data


def _address(context, builder, array_type, array, index_type, index, vector):
    index = context.cast(builder, index, index_type, types.intp)
    data = _data(context, builder, array_type, array)
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


def _first_lanes(context, builder, count_type, count, lanes):
    count = context.cast(builder, count, count_type, types.int64)
    vector = ir.VectorType(_INT64, lanes)
    return builder.icmp_signed(
        "<", ir.Constant(vector, list(range(lanes))), _splat(builder, vector, count)
    )


def _masked(builder, operation, vector, result, arguments):
    bits = 64 if vector.element == ir.DoubleType() else 32
    name = f"llvm.masked.{operation}.v{vector.count}f{bits}.p0"
    kind = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _alignment(array_type):
    return array_type.dtype.bitwidth // 8


@intrinsic
def pointer(typing_context, array):
    """Address of ``array``'s memory, which is not kept alive by it."""
    if array.layout != "C":
        raise TypingError(f"pointer takes contiguous arrays, got {array}")

    def codegen(context, builder, sig, args):
        return _data(context, builder, sig.args[0], args[0])

    return types.CPointer(array.dtype)(array), codegen


@intrinsic
def lanes(typing_context, array):
    """Number of values of ``array`` that a vector holds, a compile-time constant."""
    count = VectorType(array.dtype).lanes

    def codegen(context, builder, sig, args):
        return context.get_constant(types.intp, count)

    return types.intp(array), codegen


@intrinsic
def broadcast(typing_context, array, value):
    """A vector of ``array``'s dtype with ``value`` in every lane."""
    kind = VectorType(array.dtype)

    def codegen(context, builder, sig, args):
        scalar = context.cast(builder, args[1], sig.args[1], kind.scalar)
        return _splat(builder, context.get_value_type(kind), scalar)

    return kind(array, value), codegen


@intrinsic
def rounded(typing_context, array, value):
    """``value`` rounded to ``array``'s dtype, as float64."""
    scalar = array.dtype

    def codegen(context, builder, sig, args):
        narrow = context.cast(builder, args[1], sig.args[1], scalar)
        return context.cast(builder, narrow, scalar, types.float64)

    return types.float64(array, value), codegen


@intrinsic
def load(typing_context, array, index):
    """``array[index : index + lanes]``."""
    kind = VectorType(array.dtype)

    def codegen(context, builder, sig, args):
        vector = context.get_value_type(kind)
        address = _address(context, builder, array, args[0], sig.args[1], args[1], vector)
        return builder.load(address, align=_alignment(array))

    return kind(array, index), codegen


@intrinsic
def load_first(typing_context, array, index, count, rest):
    """``array[index : index + count]`` in the first lanes, those of ``rest`` in the others.

    ``count`` may exceed the number of lanes; then the vector is full.
    """
    kind = VectorType(array.dtype)

    def codegen(context, builder, sig, args):
        vector = context.get_value_type(kind)
        address = _address(context, builder, array, args[0], sig.args[1], args[1], vector)
        mask = _first_lanes(context, builder, sig.args[2], args[2], kind.lanes)
        arguments = [address, _INT32(_alignment(array)), mask, args[3]]
        return _masked(builder, "load", vector, vector, arguments)

    return kind(array, index, count, rest), codegen


@intrinsic
def store(typing_context, array, index, value):
    """``array[index : index + lanes] = value``."""

    def codegen(context, builder, sig, args):
        vector = context.get_value_type(value)
        address = _address(context, builder, array, args[0], sig.args[1], args[1], vector)
        builder.store(args[2], address, align=_alignment(array))
        return context.get_dummy_value()

    return types.void(array, index, value), codegen


@intrinsic
def store_streaming(typing_context, array, index, value):
    """`store` past the caches, to an address that is a multiple of the vector's size."""

    def codegen(context, builder, sig, args):
        vector = context.get_value_type(value)
        address = _address(context, builder, array, args[0], sig.args[1], args[1], vector)
        instruction = builder.store(args[2], address, align=VECTOR_BITS // 8)
        instruction.set_metadata("nontemporal", builder.module.add_metadata([_INT32(1)]))
        return context.get_dummy_value()

    return types.void(array, index, value), codegen


@intrinsic
def fence(typing_context):
    """Let all stores so far, streaming ones included, come before whatever follows."""

    def codegen(context, builder, sig, args):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def to_boundary(typing_context, array, index):
    """How many values from ``index`` on come before the next address for `store_streaming`."""
    size = array.dtype.bitwidth // 8

    def codegen(context, builder, sig, args):
        index = context.cast(builder, args[1], sig.args[1], types.intp)
        data = _data(context, builder, array, args[0])
        address = builder.ptrtoint(builder.gep(data, [index]), _INT64)
        before = builder.and_(builder.neg(address), _INT64(VECTOR_BITS // 8 - 1))
        return builder.lshr(before, _INT64(size.bit_length() - 1))

    return types.intp(array, index), codegen


@intrinsic
def store_first(typing_context, array, index, count, value):
    """``array[index : index + count]`` = the first lanes of ``value``."""

    def codegen(context, builder, sig, args):
        vector = args[3]
        address = _address(context, builder, array, args[0], sig.args[1], args[1], vector.type)
        mask = _first_lanes(context, builder, sig.args[2], args[2], value.lanes)
        arguments = [vector, address, _INT32(_alignment(array)), mask]
        _masked(builder, "store", vector.type, ir.VoidType(), arguments)
        return context.get_dummy_value()

    return types.void(array, index, count, value), codegen


@intrinsic
def total(typing_context, value):
    """Sum of the lanes as float64, halves first: always the same tree."""

    def codegen(context, builder, sig, args):
        vector, half = args[0], value.lanes // 2
        undefined = ir.Constant(vector.type, ir.Undefined)
        kind = ir.VectorType(_INT32, value.lanes)
        while half:
            turned = [(lane + half) % value.lanes for lane in range(value.lanes)]
            other = builder.shuffle_vector(vector, undefined, ir.Constant(kind, turned))
            vector = builder.fadd(vector, other)
            half //= 2
        scalar = builder.extract_element(vector, ir.Constant(_INT32, 0))
        return context.cast(builder, scalar, value.scalar, types.float64)

    return types.float64(value), codegen
