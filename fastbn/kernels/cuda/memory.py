"""Reads and writes of several values at once: up to 16 bytes a thread, converted on the way.

Arrays are flat views: float32, float64, float16, or uint16 that holds bfloat16. A thread computes
in float32, or float64 where the array is. Under Numba's simulator the same names are plain Python.
"""

from functools import lru_cache

import numpy as np
from llvmlite import ir
from numba import config

from fastbn.kernels.cuda.compile import device, intrinsic, void

_I16, _I32, _I64, _F32 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()


def _bfloat16_to_float32(bits):
    return (np.asarray(bits, np.uint32) << 16).view(np.float32)


def _float32_to_bfloat16(value):
    bits = np.asarray(value, np.float32).view(np.uint32)
    if np.isnan(value):
        return np.uint16((bits >> 16) | 0x40)
    return np.uint16((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)


@lru_cache
def load_of(lanes):
    """A function that reads so many values, from an index on, into a local array."""
    if config.ENABLE_CUDASIM:

        @device
        def plain_load(buffer, array, index):
            for k in range(lanes):
                value = array[index + k]
                buffer[k] = _bfloat16_to_float32(value) if array.dtype == np.uint16 else value

        return plain_load

    @intrinsic
    def load(typingctx, buffer, array, index):
        def codegen(context, builder, signature, args):
            buffer_type, array_type, _ = signature.args
            pointer, kind = _vector_pointer(context, builder, array_type, args[1], args[2], lanes)
            loaded = builder.load(pointer)
            loaded.align = lanes * array_type.dtype.bitwidth // 8
            values = [
                loaded if lanes == 1 else builder.extract_element(loaded, _I32(k))
                for k in range(1 if lanes == 1 else loaded.type.count)
            ]
            if loaded.type != kind:
                values = _unpaired(builder, values)
            local = context.make_array(buffer_type)(context, builder, args[0]).data
            for k, value in enumerate(values):
                builder.store(_widened(builder, value, array_type), builder.gep(local, [_I64(k)]))
            return context.get_dummy_value()

        return void(buffer, array, index), codegen

    return load


@lru_cache
def store_of(lanes):
    """A function that writes a local array of so many values, from an index on."""
    if config.ENABLE_CUDASIM:

        @device
        def plain_store(array, index, buffer):
            for k in range(lanes):
                bfloat16 = array.dtype == np.uint16
                array[index + k] = _float32_to_bfloat16(buffer[k]) if bfloat16 else buffer[k]

        return plain_store

    @intrinsic
    def store(typingctx, array, index, buffer):
        def codegen(context, builder, signature, args):
            array_type, _, buffer_type = signature.args
            pointer, kind = _vector_pointer(context, builder, array_type, args[0], args[1], lanes)
            local = context.make_array(buffer_type)(context, builder, args[2]).data
            values = [
                _narrowed(builder, builder.load(builder.gep(local, [_I64(k)])), array_type)
                for k in range(lanes)
            ]
            if pointer.type.pointee != kind:
                values = _paired(builder, values)
            whole = ir.Constant(pointer.type.pointee, ir.Undefined)
            for k, value in enumerate(values):
                whole = value if lanes == 1 else builder.insert_element(whole, value, _I32(k))
            stored = builder.store(whole, pointer)
            stored.align = lanes * array_type.dtype.bitwidth // 8
            return context.get_dummy_value()

        return void(array, index, buffer), codegen

    return store


if config.ENABLE_CUDASIM:

    @device
    def fresh(array, index):
        """A number that another block may just have written."""
        return array[index]

else:

    @intrinsic
    def fresh(typingctx, array, index):
        """A number that another block may just have written: not from this one's own cache."""
        integral = str(array.dtype) == "int32"

        def codegen(context, builder, signature, args):
            struct = context.make_array(signature.args[0])(context, builder, args[0])
            kind = _I32 if integral else ir.DoubleType()
            call = ir.FunctionType(kind, [struct.data.type])
            words = ("u32", "=r") if integral else ("f64", "=d")
            text = f"ld.volatile.{words[0]} $0, [$1];"
            pointer = builder.gep(struct.data, [args[1]])
            return builder.asm(call, text, f"{words[1]},l", [pointer], True)

        return array.dtype(array, index), codegen


# --- LLVM -----------------------------------------------------------------------------------------


def _vector_pointer(context, builder, array_type, array, index, lanes):
    """Where the values are, and what they are there: 16-bit floats are integers.

    Several of those are moved as words of 32 bits, which is one instruction and not two.
    """
    held = {"float32": _F32, "float64": ir.DoubleType()}.get(str(array_type.dtype), _I16)
    kind = held if lanes == 1 else ir.VectorType(held, lanes)
    struct = context.make_array(array_type)(context, builder, array)
    moved = ir.VectorType(_I32, lanes // 2) if held is _I16 and lanes > 1 else kind
    return builder.bitcast(builder.gep(struct.data, [index]), moved.as_pointer()), kind


def _widened(builder, value, array_type):
    if str(array_type.dtype) == "uint16":  # bfloat16 is the upper half of a float32
        return builder.bitcast(builder.shl(builder.zext(value, _I32), _I32(16)), _F32)
    if str(array_type.dtype) == "float16":
        return builder.fpext(builder.bitcast(value, ir.HalfType()), _F32)
    return value


def _unpaired(builder, words):
    """The two 16-bit values of each word; a bitcast would let the compiler read in pieces."""
    halves = [(word, builder.lshr(word, _I32(16))) for word in words]
    return [builder.trunc(half, _I16) for pair in halves for half in pair]


def _paired(builder, values):
    """Words of two 16-bit values each; with a bitcast the store would be two."""
    words = [builder.zext(value, _I32) for value in values]
    return [
        builder.or_(low, builder.shl(high, _I32(16)))
        for low, high in zip(words[::2], words[1::2], strict=True)
    ]


def _narrowed(builder, value, array_type):
    if str(array_type.dtype) == "float16":
        return builder.bitcast(builder.fptrunc(value, ir.HalfType()), _I16)
    if str(array_type.dtype) != "uint16":
        return value
    bits = builder.bitcast(value, _I32)
    odd = builder.and_(builder.lshr(bits, _I32(16)), _I32(1))  # to nearest, ties to even
    rounded = builder.add(bits, builder.add(odd, _I32(0x7FFF)))
    nan = builder.fcmp_unordered("uno", value, value)
    kept = builder.select(nan, builder.or_(bits, _I32(0x400000)), rounded)
    return builder.trunc(builder.lshr(kept, _I32(16)), _I16)
