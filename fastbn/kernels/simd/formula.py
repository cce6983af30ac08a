"""Formulas for LLVM: a formula is run once, on symbols that write down each operation.

That takes a thousandth of the time that Numba takes to compile the same function, and a kernel
has dozens of formulas in it. A formula is plain Python on numbers: +, -, *, / and a few of
NumPy's functions, comparisons and `numpy.where`, no branches.
"""

import inspect
import operator
from collections.abc import Callable
from functools import cache

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types

from fastbn.kernels.simd import exponential
from fastbn.kernels.simd.instruction import VectorType, instruction, llvm_type, numba_type

#: LLVM's instruction for each operator.
INSTRUCTIONS = {
    operator.add: "fadd",
    operator.sub: "fsub",
    operator.mul: "fmul",
    operator.truediv: "fdiv",
}


class Symbol:
    """A number or a vector whose value is known when the code runs."""

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.builder, self.value = builder, value

    @property
    def flags(self) -> tuple[str, ...]:
        """What LLVM may do with it: fuse * and + of vectors, nothing with scalars."""
        return ("contract",) if isinstance(self.value.type, ir.VectorType) else ()

    @property
    def bits(self) -> int:
        """Size of the number, or of each of a vector's."""
        kind = getattr(self.value.type, "element", self.value.type)
        return 64 if kind == ir.DoubleType() else 32

    def _other(self, other: object) -> ir.Value:
        if isinstance(other, Symbol):
            return other.value
        kind = self.value.type
        lanes = kind.count if isinstance(kind, ir.VectorType) else None
        return ir.Constant(kind, float(other) if lanes is None else [float(other)] * lanes)

    def __neg__(self):
        return Symbol(self.builder, self.builder.fneg(self.value))

    def __abs__(self):
        return Symbol(self.builder, self._library("fabs", self.value))

    def __and__(self, other):
        return Symbol(self.builder, self.builder.and_(self.value, other.value))

    def __or__(self, other):
        return Symbol(self.builder, self.builder.or_(self.value, other.value))

    def __array_function__(self, function, kinds, arguments, keywords):
        """`numpy.where`, the only choice that a formula has."""
        if function is not np.where:
            return NotImplemented
        condition, yes, no = arguments
        number = yes if isinstance(yes, Symbol) else no
        chosen = self.builder.select(condition.value, number._other(yes), number._other(no))
        return Symbol(self.builder, chosen)

    def __array_ufunc__(self, function, method, *inputs):
        """NumPy's functions on symbols, as NumPy has them: a NaN is the result of any of them."""
        if method != "__call__":
            return NotImplemented
        if function in exponential.FUNCTIONS:
            constants = exponential.DOUBLE if self.bits == 64 else exponential.SINGLE
            return exponential.FUNCTIONS[function](self, constants)
        if function not in _FUNCTIONS:
            return NotImplemented
        return Symbol(self.builder, _FUNCTIONS[function](self, *map(self._other, inputs)))

    def moved_up(self, places: int) -> "Symbol":
        """The number whose bits are this one's, so many places further up."""
        build, kind = self.builder, self.value.type
        whole, count = ir.IntType(self.bits), places
        if isinstance(kind, ir.VectorType):
            whole, count = ir.VectorType(whole, kind.count), [places] * kind.count
        moved = build.shl(build.bitcast(self.value, whole), ir.Constant(whole, count))
        return Symbol(build, build.bitcast(moved, kind))

    def _larger(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self._or_nan(">", a, b)

    def _smaller(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self._or_nan("<", a, b)

    def _or_nan(self, comparison: str, a: ir.Value, b: ir.Value) -> ir.Value:
        """``a`` where the comparison holds or ``a`` is NaN, else ``b``."""
        build = self.builder
        first = build.or_(build.fcmp_ordered(comparison, a, b), build.fcmp_unordered("uno", a, a))
        return build.select(first, a, b)

    def _root(self, a: ir.Value) -> ir.Value:
        return self._library("sqrt", a)

    def _library(self, function: str, a: ir.Value) -> ir.Value:
        """LLVM's own function of that name."""
        kind = a.type
        lanes = f"v{kind.count}" if isinstance(kind, ir.VectorType) else ""
        signature = ir.FunctionType(kind, [kind])
        name = f"llvm.{function}.{lanes}f{self.bits}"
        known = cgutils.get_or_insert_function(self.builder.module, signature, name)
        return self.builder.call(known, [a])


_FUNCTIONS = {np.maximum: Symbol._larger, np.minimum: Symbol._smaller, np.sqrt: Symbol._root}


def _arithmetic(instruction: str, turned: bool) -> Callable[[Symbol, object], Symbol]:
    def apply(self, other):
        a, b = self.value, self._other(other)
        emit = getattr(self.builder, instruction)
        return Symbol(self.builder, emit(*((b, a) if turned else (a, b)), flags=self.flags))

    return apply


def _comparison(sign: str) -> Callable[[Symbol, object], Symbol]:
    def compare(self, other):
        return Symbol(self.builder, self.builder.fcmp_ordered(sign, self.value, self._other(other)))

    return compare


for _operator, _instruction in INSTRUCTIONS.items():
    _name = _operator.__name__
    setattr(Symbol, f"__{_name}__", _arithmetic(_instruction, turned=False))
    setattr(Symbol, f"__r{_name}__", _arithmetic(_instruction, turned=True))
for _name, _sign in {"lt": "<", "le": "<=", "gt": ">", "ge": ">="}.items():
    setattr(Symbol, f"__{_name}__", _comparison(_sign))


_formulas: dict[str, Callable] = {}


@cache
def compiled_formula(formula: Callable, *parameters: str) -> Callable:
    """``formula`` for compiled code: vectors stay vectors, any other number is a float64.

    With ``parameters`` it takes these instead: numbers, or tuples that hold its arguments in order.
    """
    names = parameters or tuple(inspect.signature(formula).parameters)
    if _formulas.setdefault(formula.__name__, formula) is not formula:
        raise RuntimeError(f"two formulas have the name {formula.__name__}")

    def result(*arguments):
        made = _run(formula, *_nowhere([kind for a in arguments for kind in _flat(a)]))
        kinds = [numba_type(value.type) for value in made]
        return kinds[0] if len(kinds) == 1 else types.Tuple(kinds)

    def write(code, *arguments):
        flat = []
        for kind, value in zip(code.kinds, arguments, strict=True):
            values = value if isinstance(kind, types.BaseTuple) else [value]
            flat += [code.cast(v, k, _kind(k)) for v, k in zip(values, _flat(kind), strict=True)]
        made = _run(formula, code.builder, flat)
        return made[0] if len(made) == 1 else made

    return instruction("_".join([formula.__name__, *parameters]), result, write, names)


def _flat(kind: types.Type) -> tuple[types.Type, ...]:
    return tuple(kind) if isinstance(kind, types.BaseTuple) else (kind,)


def _kind(kind: types.Type) -> types.Type:
    return kind if isinstance(kind, VectorType) else types.float64


def _run(formula: Callable, builder: ir.IRBuilder, values: list[ir.Value]) -> list[ir.Value]:
    made = formula(*(Symbol(builder, value) for value in values))
    return [symbol.value for symbol in (made if isinstance(made, tuple) else (made,))]


def _nowhere(kinds: list[types.Type]) -> tuple[ir.IRBuilder, list[ir.Value]]:
    """A builder whose code nobody runs, to see of which types the results are."""
    signature = ir.FunctionType(ir.VoidType(), [llvm_type(_kind(kind)) for kind in kinds])
    function = ir.Function(ir.Module(), signature, "nowhere")
    return ir.IRBuilder(function.append_basic_block()), list(function.args)
