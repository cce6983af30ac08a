"""16-bit floating-point numbers in memory: vectors of them as float32, and back.

float16 is held as int16 and bfloat16 as uint16, for LLVM on x86 and NumPy have no arithmetic of
them. Both become float32 exactly, and come from it rounded to nearest, ties to even.
"""

from llvmlite import ir
from numba.core import types

_I16, _I32 = ir.IntType(16), ir.IntType(32)

#: What values are computed in, by how they are held.
COMPUTED = {types.int16: types.float32, types.uint16: types.float32}


def computed(kind: types.Type) -> types.Type:
    """What values of a kind are computed in."""
    return COMPUTED.get(kind, kind)


def _like(vector: ir.Value, element: ir.Type) -> ir.Type:
    return ir.VectorType(element, vector.type.count)


def _constant(vector: ir.Value, number: int) -> ir.Value:
    return ir.Constant(_like(vector, _I32), [number] * vector.type.count)


def widened_half(builder: ir.IRBuilder, bits: ir.Value, held: types.Type) -> ir.Value:
    """16-bit numbers as float32."""
    if held == types.int16:
        halves = builder.bitcast(bits, _like(bits, ir.HalfType()))
        return builder.fpext(halves, _like(bits, ir.FloatType()))
    words = builder.shl(builder.zext(bits, _like(bits, _I32)), _constant(bits, 16))
    return builder.bitcast(words, _like(bits, ir.FloatType()))


def narrowed_half(builder: ir.IRBuilder, vector: ir.Value, held: types.Type) -> ir.Value:
    """float32 as 16-bit numbers; NaN stays NaN."""
    if held == types.int16:
        halves = builder.fptrunc(vector, _like(vector, ir.HalfType()))
        return builder.bitcast(halves, _like(vector, _I16))
    words = builder.bitcast(vector, _like(vector, _I32))
    odd = builder.and_(builder.lshr(words, _constant(vector, 16)), _constant(vector, 1))
    rounded = builder.add(words, builder.add(odd, _constant(vector, 0x7FFF)))
    nan = builder.fcmp_unordered("uno", vector, vector)
    kept = builder.select(nan, builder.or_(words, _constant(vector, 0x400000)), rounded)
    return builder.trunc(builder.lshr(kept, _constant(vector, 16)), _like(vector, _I16))
