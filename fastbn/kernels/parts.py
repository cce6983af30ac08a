"""Which parts an operation is made of, in which layout.

A new operation is a row of `OPERATIONS`; a new elementwise pass is a line in `pointwise`. Nothing
is compiled before `addresses` asks for it.
"""

from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import NamedTuple

import numpy as np

from fastbn.kernels import activations, entries, exact, merge, passes, terms
from fastbn.kernels.channels_first import elementwise as first_elementwise
from fastbn.kernels.channels_first import exact as first_exact
from fastbn.kernels.channels_first import sums as first_sums
from fastbn.kernels.channels_last import elementwise as last_elementwise
from fastbn.kernels.channels_last import exact as last_exact
from fastbn.kernels.channels_last import sums as last_sums
from fastbn.kernels.compile import Part, Unit, loop_address, loop_unit
from fastbn.kernels.held import computed
from fastbn.kernels.rows import backward, forward

_SUMS: dict[str, ModuleType] = {"first": first_sums, "last": last_sums}
_EXACT: dict[str, ModuleType] = {"first": first_exact, "last": last_exact}
_ELEMENTWISE: dict[str, ModuleType] = {"first": first_elementwise, "last": last_elementwise}
_WIDE_TERMS = {
    terms.normalizing_terms: terms.wide_normalizing_terms,
    terms.group_normalizing_terms: terms.wide_group_normalizing_terms,
    terms.gradient_terms: terms.wide_gradient_terms,
    terms.group_gradient_terms: terms.wide_group_gradient_terms,
    terms.given_gradient_terms: terms.wide_given_gradient_terms,
}
#: The dtype of parts that know float64 alone, whatever x is.
_ANY = np.dtype(np.float64)


class Operation(NamedTuple):
    """An operation: its entries, the arrays it walks, and its parts by name."""

    entries: tuple[str, ...]  # the first does it, others follow
    arrays: tuple[str, ...]
    summed: slice  # which of the arrays go into the sums
    reduce: str | None
    merge: Part | None
    finish: Part | None
    apply: str | None
    frozen: bool = False  # the statistics are constants to a backward
    of_rows: Callable[[bool], Part] | None = None  # instead of ``reduce``; streaming or not
    #: Additions in x's precision that one sum may go through: along a row, which has 64 sums side
    #: by side, and down a column, which has one and none to average with. Equal squares round in
    #: one direction: 64 of them cost up to 1.3e-6 of a variance, 32 half of that.
    row_chain: int = 64
    column_chain: int = 64
    exact: bool = False  # on integers, or on numbers as their bits


OPERATIONS = {
    "normalize": Operation(
        ("normalize",), ("first", "out"), slice(0), None, None, terms.normalizing_terms, "normalize"
    ),
    "forward": Operation(
        ("forward", "update_running"), ("first", "out"), slice(1),
        "moments", merge.merge_moments, terms.normalizing_terms, "normalize",
        row_chain=32, column_chain=16,
    ),
    "backward": Operation(
        ("backward",), ("first", "second", "out"), slice(2),
        "products", merge.merge_products, terms.gradient_terms, "gradient",
    ),
    "frozen_backward": Operation(
        ("backward",), ("first", "second", "out"), slice(2),
        "products", merge.merge_products, terms.gradient_terms, "normalize", frozen=True,
    ),
    "moments": Operation(
        ("moments",), ("first",), slice(1), "moments", merge.merge_moments, None, None,
        row_chain=32, column_chain=16,
    ),
    "products": Operation(
        ("products",), ("first", "second"), slice(2),
        "products", merge.merge_products, terms.product_sums, None,
    ),
    "given_gradient": Operation(
        ("given_gradient",), ("first", "second", "out"), slice(0),
        None, None, terms.given_gradient_terms, "gradient",
    ),
    "row_forward": Operation(
        ("row_forward",), ("first", "out"), slice(0),
        None, forward.forward_left, None, None, of_rows=forward.forward_part_of,
    ),
    "row_gradient": Operation(
        ("row_gradient",), ("first", "second", "out"), slice(0),
        None, backward.gradient_sums, None, None, of_rows=backward.gradient_part_of,
    ),
}  # fmt: skip
OPERATIONS["group_backward"] = OPERATIONS["backward"]._replace(finish=terms.group_gradient_terms)
OPERATIONS["group_forward"] = OPERATIONS["forward"]._replace(finish=terms.group_normalizing_terms)
for (_activation, _residual), _names in activations.FUSED.items():
    for _operation, _name in ("normalize", _names.normalize), ("forward", _names.forward):
        OPERATIONS[_name] = OPERATIONS[_operation]._replace(
            entries=(f"{_operation}_fused", *OPERATIONS[_operation].entries[1:]),
            arrays=("first", *("second",) * _residual, "out"), apply=_names.normalize,
        )  # fmt: skip
    if _activation:
        OPERATIONS[_names.gradient] = Operation(
            ("gradient_fused",), ("first", "second", *("third",) * _residual, "out"),
            slice(0), None, None, terms.normalizing_terms, _names.gradient,
        )  # fmt: skip
#: What needs no rounding, on arrays of integers: what `exact` says. Nothing warms it up: it
#: compiles in a second.
EXACT_OPERATIONS = {
    "integer_sums": Operation(
        ("exact_sums",), ("first",), slice(1), "integer_sums", exact.merge_sums, None, None,
        row_chain=exact.SHORT // 64, exact=True,
    ),
    "extremes": Operation(
        ("exact_extremes",), ("first",), slice(1), "extremes", exact.merge_extremes, None, None,
        row_chain=exact.SHORT // 64, exact=True,
    ),
    "filled": Operation(
        ("exact_filled",), ("first", "out"), slice(2), "filled", exact.merge_sums, None, None,
        row_chain=exact.SHORT // 64, exact=True,
    ),
}  # fmt: skip


def operation_of(name: str) -> Operation:
    """An operation by its name."""
    return OPERATIONS.get(name) or EXACT_OPERATIONS[name]


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
    for field, (part, of) in _parts(operation, layout, dtype, streaming).items():
        found[field] = part.address(of)
    if with_wide:
        found |= wide_addresses(operation, layout, dtype)
    return found


def _parts(
    operation: Operation, layout: str, dtype: np.dtype, streaming: bool
) -> dict[str, tuple[Part, np.dtype]]:
    """By field of the frame, the parts of an operation and of which dtype they are."""
    found = {}
    if operation.reduce is not None:
        modules = _EXACT if operation.exact else _SUMS
        found["reduce"] = getattr(modules[layout], operation.reduce), dtype
    if operation.of_rows is not None:
        found["reduce"] = operation.of_rows(streaming), dtype
    if operation.merge is not None:
        found["merge"] = operation.merge, _ANY
    if operation.finish is not None:
        found["finish"] = operation.finish, dtype
    if operation.apply is not None:
        module = _ELEMENTWISE[layout]
        found["apply"] = module.part_of(operation.apply, streaming), dtype
    return found


def wide_addresses(operation: Operation, layout: str, dtype: np.dtype) -> dict[str, int]:
    """Fields of the frame that name parts for channels that float32 cannot hold."""
    parts = _wide_parts(operation, layout, dtype)
    return {field: part.address(dtype) for field, part in parts.items()}


def _wide_parts(operation: Operation, layout: str, dtype: np.dtype) -> dict[str, Part]:
    found = {}
    narrow = computed(dtype).itemsize == 4
    if operation.reduce == "moments" or (operation.reduce and narrow):
        found["wide_reduce"] = getattr(_SUMS[layout], f"wide_{operation.reduce}")
    if operation.apply and narrow and not operation.frozen:
        found["wide_apply"] = _ELEMENTWISE[layout].wide_part_of(operation.apply)
        found["wide_finish"] = _WIDE_TERMS[operation.finish]
    return found


def units(
    dtype: np.dtype, layout: str, operations: Iterable[str] = tuple(OPERATIONS)
) -> Iterator[Unit]:
    """All native code that operations on arrays of a dtype and layout may need."""
    yield loop_unit()
    for part in (passes.all_channels, passes.each_tile, passes.tile_by_tile):
        yield part.unit(_ANY)
    for operation in map(OPERATIONS.__getitem__, operations):
        for streaming in (False, True):
            for part, of in _parts(operation, layout, dtype, streaming).values():
                yield part.unit(of)
        for part in _wide_parts(operation, layout, dtype).values():
            yield part.unit(dtype)
        for name in operation.entries:
            for running in (_ANY, computed(dtype)):  # those of another dtype come as float64
                yield getattr(entries, name).unit(dtype, running)
