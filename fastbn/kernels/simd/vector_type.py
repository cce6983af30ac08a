"""The Numba type of a SIMD vector."""

from llvmlite import ir
from numba.core import types
from numba.extending import models, register_model


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


def numba_type(kind: ir.Type) -> types.Type:
    """The reverse of `llvm_type`."""
    if isinstance(kind, ir.VectorType):
        return VectorType(numba_type(kind.element), kind.count)
    if kind == ir.IntType(1):
        return types.boolean
    return types.float64 if kind == ir.DoubleType() else types.float32
