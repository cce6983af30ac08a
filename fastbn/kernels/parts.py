"""Which parts an operation is made of, in which layout.

A new operation is a row of `OPERATIONS`; a new elementwise pass is a line in `pointwise`. Nothing
is compiled before `addresses` asks for it.
"""

from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import NamedTuple

import numpy as np

from fastbn.kernels import entries, merge, passes, terms
from fastbn.kernels.channels_first import elementwise as first_elementwise
from fastbn.kernels.channels_first import sums as first_sums
from fastbn.kernels.channels_last import elementwise as last_elementwise
from fastbn.kernels.channels_last import sums as last_sums
from fastbn.kernels.compile import Part, Unit, loop_address, loop_unit

_SUMS: dict[str, ModuleType] = {"first": first_sums, "last": last_sums}
_ELEMENTWISE: dict[str, ModuleType] = {"first": first_elementwise, "last": last_elementwise}
_WIDE_TERMS = {
    "normalize": terms.wide_normalizing_terms,
    "gradient": terms.wide_gradient_terms,
}
#: The dtype of parts that know float64 alone, whatever x is.
_ANY = np.dtype(np.float64)


class Operation(NamedTuple):
    """An operation: its entry, the arrays it walks, and its parts by name."""

    entry: str
    arrays: tuple[str, ...]
    summed: slice  # which of the arrays go into the sums
    reduce: str | None
    merge: Part | None
    finish: Part | None
    apply: str | None
    frozen: bool = False  # the statistics are constants to a backward
    #: Additions in x's precision that one sum may go through: along a row, which has 64 sums side
    #: by side, and down a column, which has one and none to average with. Equal squares round in
    #: one direction: 64 of them cost up to 1.3e-6 of a variance, 32 half of that.
    row_chain: int = 64
    column_chain: int = 64


OPERATIONS = {
    "normalize": Operation(
        "normalize", ("first", "out"), slice(0), None, None, terms.normalizing_terms, "normalize"
    ),
    "forward": Operation(
        "forward", ("first", "out"), slice(1),
        "moments", merge.merge_moments, terms.normalizing_terms, "normalize",
        row_chain=32, column_chain=16,
    ),
    "backward": Operation(
        "backward", ("first", "second", "out"), slice(2),
        "products", merge.merge_products, terms.gradient_terms, "gradient",
    ),
    "frozen_backward": Operation(
        "backward", ("first", "second", "out"), slice(2),
        "products", merge.merge_products, terms.gradient_terms, "normalize", frozen=True,
    ),
    "moments": Operation(
        "moments", ("first",), slice(1), "moments", merge.merge_moments, None, None,
        row_chain=32, column_chain=16,
    ),
}  # fmt: skip


def addresses(
    operation: Operation, layout: str, dtype: np.dtype, threads: bool, tiles: bool,
    streaming: bool, with_wide: bool,
) -> dict[str, int]:  # fmt: skip
    """Fields of the frame that name parts."""
    found = {"run": (passes.tile_by_tile if tiles else passes.all_channels).address(_ANY)}
    if tiles:
        found["each_tile"] = passes.each_tile.address(_ANY)
    if threads:
        found["loop"] = loop_address()
    if operation.reduce is not None and operation.merge is not None:
        found["reduce"] = getattr(_SUMS[layout], operation.reduce).address(dtype)
        found["merge"] = operation.merge.address(_ANY)
    if operation.apply is not None and operation.finish is not None:
        module = _ELEMENTWISE[layout]
        apply = (module.STREAMING if streaming else module.PARTS)[operation.apply]
        found["finish"] = operation.finish.address(dtype)
        found["apply"] = apply.address(dtype)
    if with_wide:
        found |= wide_addresses(operation, layout, dtype)
    return found


def wide_addresses(operation: Operation, layout: str, dtype: np.dtype) -> dict[str, int]:
    """Fields of the frame that name parts for channels that float32 cannot hold."""
    parts = _wide_parts(operation, layout, dtype)
    return {field: part.address(dtype) for field, part in parts.items()}


def _wide_parts(operation: Operation, layout: str, dtype: np.dtype) -> dict[str, Part]:
    found = {}
    narrow = dtype.itemsize == 4
    if operation.reduce == "moments" or (operation.reduce and narrow):
        found["wide_reduce"] = getattr(_SUMS[layout], f"wide_{operation.reduce}")
    if operation.apply and narrow and not operation.frozen:
        found["wide_apply"] = _ELEMENTWISE[layout].WIDE[operation.apply]
        found["wide_finish"] = _WIDE_TERMS[operation.apply]
    return found


def units(
    dtype: np.dtype, layout: str, operations: Iterable[str] = tuple(OPERATIONS)
) -> Iterator[Unit]:
    """All native code that operations on arrays of a dtype and layout may need."""
    yield loop_unit()
    for part in (passes.all_channels, passes.each_tile, passes.tile_by_tile):
        yield part.unit(_ANY)
    for name in operations:
        operation = OPERATIONS[name]
        for part, of in _parts(operation, layout, dtype):
            yield part.unit(of)
        for entry in _ENTRIES[name]:
            for running in (_ANY, dtype):  # running statistics of another dtype come as float64
                yield entry.unit(dtype, running)


_ENTRIES = {
    name: [getattr(entries, operation.entry)]
    + ([entries.update_running] if name == "forward" else [])
    for name, operation in OPERATIONS.items()
}


def _parts(operation: Operation, layout: str, dtype: np.dtype) -> Iterator[tuple[Part, np.dtype]]:
    """Parts of an operation, whatever the sizes and values of its arrays, and of which dtype."""
    if operation.reduce is not None and operation.merge is not None:
        yield getattr(_SUMS[layout], operation.reduce), dtype
        yield operation.merge, _ANY
    if operation.apply is not None and operation.finish is not None:
        module = _ELEMENTWISE[layout]
        yield operation.finish, dtype
        yield module.PARTS[operation.apply], dtype
        yield module.STREAMING[operation.apply], dtype
    for part in _wide_parts(operation, layout, dtype).values():
        yield part, dtype
