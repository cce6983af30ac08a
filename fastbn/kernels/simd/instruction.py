"""Vectors as a Numba type, and functions for compiled code that write LLVM's instructions."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model

from fastbn.kernels.simd.half import COMPUTED, narrowed_half, widened_half

INT32, INT64 = ir.IntType(32), ir.IntType(64)
#: Letter and bytes of LLVM's names for vectors of them.
_LETTERS = {ir.FloatType(): ("f", 4), ir.DoubleType(): ("f", 8), ir.IntType(16): ("i", 2)}


class VectorType(types.Type):
    """Numba type of a vector of ``lanes`` floating-point ``scalar`` values."""

    def __init__(self, scalar: types.Float, lanes: int) -> None:
        self.scalar, self.lanes = scalar, lanes
        super().__init__(name=f"Vector({scalar} x {lanes})")


@register_model(VectorType)
class VectorModel(models.PrimitiveModel):
    """A vector is an LLVM vector, in registers and in memory."""

    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, llvm_type(fe_type))


def llvm_type(kind: types.Type) -> ir.Type:
    """LLVM's type of a float or a vector of them."""
    if isinstance(kind, VectorType):
        return ir.VectorType(llvm_type(kind.scalar), kind.lanes)
    return ir.DoubleType() if kind.bitwidth == 64 else ir.FloatType()


def held_type(held: types.Type, lanes: int) -> ir.Type:
    """LLVM's type of a vector as memory holds it."""
    return ir.VectorType(ir.IntType(16) if held in COMPUTED else llvm_type(held), lanes)


def numba_type(kind: ir.Type) -> types.Type:
    """The reverse of `llvm_type`; a single bit is a bool."""
    if isinstance(kind, ir.VectorType):
        return VectorType(numba_type(kind.element), kind.count)
    if kind == ir.IntType(1):
        return types.boolean
    return types.float64 if kind == ir.DoubleType() else types.float32


#: By name, which holds all that a maker was told: the code that writes it, the instruction.
_made: dict[str, tuple[Any, Callable]] = {}


def instruction(
    name: str, result: Callable, write: Callable, parameters: Iterable[str] = ()
) -> Callable:
    """A function for compiled code.

    ``result(*types)`` is the type of what it returns, ``write(code, *values)`` writes it to a
    `Code`; its integers come as int64, its tuples as lists. No two may have one name.
    """
    made = _made.get(name)
    if made is not None:
        if made[0] is not write.__code__:
            raise RuntimeError(f"two instructions have the name {name}")
        return made[1]
    names = ["typing_context", *(parameters or inspect.signature(result).parameters)]

    def typed(typing_context, *arguments):
        kind = result(*arguments)

        def codegen(context, builder, signature, values):
            code = Code(context, builder, kind, arguments)
            value = write(code, *map(code.argument, signature.args, values))
            if isinstance(kind, types.BaseTuple):
                return context.make_tuple(builder, kind, value)
            return context.get_dummy_value() if value is None else value

        return kind(*arguments), codegen

    either = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature([inspect.Parameter(each, either) for each in names])
    typed.__signature__ = signature  # type: ignore[attr-defined]
    typed.__name__ = typed.__qualname__ = name
    _made[name] = write.__code__, intrinsic(typed)
    return _made[name][1]


class Code:
    """LLVM's instructions, a step at a time.

    Attributes
    ----------
    builder : what writes them
    result, kinds : Numba's types of what is returned and of the arguments
    """

    def __init__(self, context: Any, builder: ir.IRBuilder, result: Any, kinds: Any) -> None:
        self.context, self.builder, self.result, self.kinds = context, builder, result, kinds

    def argument(self, kind: types.Type, value: ir.Value) -> Any:
        """A value as ``write`` gets it."""
        if isinstance(kind, types.BaseTuple):
            return list(map(self.argument, kind, cgutils.unpack_tuple(self.builder, value)))
        return self.cast(value, kind, types.int64) if isinstance(kind, types.Integer) else value

    def cast(self, value: ir.Value, old: types.Type, new: types.Type) -> ir.Value:
        """A number in another type; integers of any size have come as int64."""
        old = types.int64 if isinstance(old, types.Integer) else old
        return self.context.cast(self.builder, value, old, new)

    def native(self, kind: types.Type) -> ir.Type:
        """LLVM's type of any Numba type."""
        return self.context.get_value_type(kind)

    def shuffled(self, one: ir.Value, other: ir.Value, order: Iterable[int]) -> ir.Value:
        """Lanes of two vectors, by their places in both."""
        order = list(order)
        indices = ir.Constant(ir.VectorType(INT32, len(order)), order)
        return self.builder.shuffle_vector(one, other, indices)

    def undefined(self, kind: ir.Type) -> ir.Value:
        """Any value of a type."""
        return ir.Constant(kind, ir.Undefined)

    def zero(self, kind: types.Type) -> ir.Value:
        """A vector of zeros."""
        return ir.Constant(llvm_type(kind), [0.0] * kind.lanes)

    def splat(self, scalar: ir.Value, lanes: int) -> ir.Value:
        """A vector with ``scalar`` in every lane."""
        undefined = self.undefined(ir.VectorType(scalar.type, lanes))
        first = self.builder.insert_element(undefined, scalar, INT32(0))
        return self.shuffled(first, undefined, [0] * lanes)

    def joined(self, parts: Iterable[ir.Value]) -> ir.Value:
        """Several vectors as one."""
        parts = list(parts)
        while len(parts) > 1:
            order = range(2 * parts[0].type.count)
            pairs = zip(parts[::2], parts[1::2], strict=True)
            parts = [self.shuffled(a, b, order) for a, b in pairs]
        return parts[0]

    def split(self, vector: ir.Value, count: int) -> list[ir.Value]:
        """One vector as several."""
        if count == 1:
            return [vector]
        size, undefined = vector.type.count // count, self.undefined(vector.type)
        starts = range(0, vector.type.count, size)
        return [self.shuffled(vector, undefined, range(k, k + size)) for k in starts]

    def steps(self, start: ir.Value, step: ir.Value, count: int) -> list[ir.Value]:
        """``start``, ``start + step`` and so on."""
        build = self.builder
        return [build.add(start, build.mul(INT64(k), step)) for k in range(count)]

    def place(self, pointer: ir.Value, index: ir.Value, vector: ir.Type) -> ir.Value:
        """The address of a vector."""
        address = self.builder.gep(pointer, [index])
        return self.builder.bitcast(address, vector.as_pointer())

    def load(self, pointer: ir.Value, index: ir.Value, kind: types.Type, held: types.Type):
        """A vector from memory that holds values as ``held``."""
        vector = held_type(held, kind.lanes)
        address = self.place(pointer, index, vector)
        loaded = self.builder.load(address, align=held.bitwidth // 8)
        return widened_half(self.builder, loaded, held) if held in COMPUTED else loaded

    def store(self, vector: ir.Value, pointer: ir.Value, index: ir.Value, held: types.Type):
        """The reverse; returns the instruction."""
        if held in COMPUTED:
            vector = narrowed_half(self.builder, vector, held)
        address = self.place(pointer, index, vector.type)
        return self.builder.store(vector, address, align=held.bitwidth // 8)

    def load_first(self, pointer, index, number, rest, held) -> ir.Value:
        """``number`` lanes from memory, the others of ``rest``."""
        if held not in COMPUTED:
            return self._masked("load", rest.type, pointer, index, number, rest)
        kind = held_type(held, rest.type.count)
        zeros = ir.Constant(kind, [0] * kind.count)
        loaded = self._masked("load", kind, pointer, index, number, zeros)
        there = self._first(number, kind.count)
        return self.builder.select(there, widened_half(self.builder, loaded, held), rest)

    def store_first(self, pointer, index, number, vector, held) -> None:
        """``number`` lanes to memory."""
        if held in COMPUTED:
            vector = narrowed_half(self.builder, vector, held)
        self._masked("store", ir.VoidType(), pointer, index, number, vector)

    def _first(self, number: ir.Value, count: int) -> ir.Value:
        """A mask of the first ``number`` of ``count`` lanes."""
        order = ir.Constant(ir.VectorType(INT64, count), list(range(count)))
        return self.builder.icmp_signed("<", order, self.splat(number, count))

    def _masked(self, operation, result, pointer, index, number, vector):
        kind = vector.type
        letter, size = _LETTERS[kind.element]
        mask = self._first(number, kind.count)
        arguments = [self.place(pointer, index, kind), INT32(size), mask]
        arguments = [vector, *arguments] if operation == "store" else [*arguments, vector]
        name = f"llvm.masked.{operation}.v{kind.count}{letter}{8 * size}.p0"
        return self.call(name, result, *arguments)

    def call(self, name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
        """A function that LLVM or the C library has."""
        signature = ir.FunctionType(result, [value.type for value in arguments])
        function = cgutils.get_or_insert_function(self.builder.module, signature, name)
        return self.builder.call(function, arguments)
