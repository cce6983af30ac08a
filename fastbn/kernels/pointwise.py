"""What elementwise passes compute: what they read, the terms of a channel, the formula.

A new one is a formula and a line in `EVERY`. `loops` has the loops that it goes into, and the
``elementwise`` module of each layout makes parts of both.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

from fastbn.kernels import activations, formulas
from fastbn.kernels.compile import inlined
from fastbn.kernels.simd import (
    broadcasts,
    chosen,
    compiled_formula,
    data_at,
    doubles_at,
    narrowed,
    terms_along,
    terms_of_channel,
    values_at,
    widened,
)

# --- operands: the arrays that an elementwise pass reads ------------------------------------------
# The frame is read once, before the loops: LLVM cannot know that stores do not change it.


@inlined
def pointers_of_one(f, like):
    return (data_at(f.first, like),)


@inlined
def steps_of_one(f):
    """Distances of rows and of channels."""
    return f.first_row, f.first_channel


@inlined
def starts_of_one(steps, row, channel, value):
    """Where ``value`` values after a row's first one lie, in each array."""
    return (row * steps[0] + channel * steps[1] + value,)


@inlined
def pointers_of_two(f, like):
    return data_at(f.first, like), data_at(f.second, like)


@inlined
def steps_of_two(f):
    return f.first_row, f.first_channel, f.second_row, f.second_channel


@inlined
def starts_of_two(steps, row, channel, value):
    return (
        row * steps[0] + channel * steps[1] + value,
        row * steps[2] + channel * steps[3] + value,
    )


@inlined
def pointers_of_three(f, like):
    return data_at(f.first, like), data_at(f.second, like), data_at(f.third, like)


@inlined
def steps_of_three(f):
    return (
        f.first_row, f.first_channel, f.second_row, f.second_channel, f.third_row, f.third_channel
    )  # fmt: skip


@inlined
def starts_of_three(steps, row, channel, value):
    return (
        row * steps[0] + channel * steps[1] + value,
        row * steps[2] + channel * steps[3] + value,
        row * steps[4] + channel * steps[5] + value,
    )


class Elementwise(NamedTuple):
    """An elementwise pass: what it reads, what it computes, from which terms."""

    pointers: Callable
    steps: Callable
    starts: Callable
    compute: Callable
    table: Callable  # where the terms lie: (f, like)
    constant_terms: Callable  # of one channel: (table, channel, like)
    terms_along: Callable  # of columns; made by number of lines: (table, column, number, like)


# --- terms ----------------------------------------------------------------------------------------


@inlined
def table_of(f, like):
    return values_at(f.table, like), f.terms


@inlined
def wide_table_of(f, like):
    return values_at(f.table, like), doubles_at(f.wide_table, like), f.terms


@cache
def table_terms(rows: int) -> tuple[Callable, Callable, Callable]:
    """What reads ``rows`` terms from the table: those of a channel, those along a line."""
    of_channel = terms_of_channel(rows)

    @inlined
    def constant(table, channel, like):
        return of_channel(table[0], table[1], channel, like)

    def along(count):
        load = terms_along(rows, count)

        @inlined
        def terms(table, column, number, like):
            return load(table[0], table[1], column, number, like)

        return terms

    return table_of, constant, cache(along)


@cache
def wide_table_terms(rows: int) -> tuple[Callable, Callable, Callable]:
    """`table_terms`, the same in float64 from ``wide_table``, and the table's row of marks."""
    of_channel, mark_of_channel = terms_of_channel(rows), terms_of_channel(1)

    @inlined
    def wide_constant(table, channel, like):
        narrow, wide, columns = table
        return (
            of_channel(narrow, columns, channel, like),
            of_channel(wide, columns, channel, like),
            mark_of_channel(narrow, columns, channel + rows * columns, like),
        )

    def along(count):
        load, load_mark = terms_along(rows, count), terms_along(1, count)

        @inlined
        def wide_terms(table, column, number, like):
            narrow, wide, columns = table
            return (
                load(narrow, columns, column, number, like),
                load(wide, columns, column, number, like),
                load_mark(narrow, columns, column + rows * columns, number, like),
            )

        return wide_terms

    return wide_table_of, wide_constant, cache(along)


@inlined
def sloped_table_of(f, like):
    return values_at(f.table, like), f.terms, f.slope


@inlined
def wide_sloped_table_of(f, like):
    return values_at(f.table, like), doubles_at(f.wide_table, like), f.terms, f.slope


@cache
def sloped_terms(rows: int) -> tuple[Callable, Callable, Callable]:
    """`table_terms`, and a last term that all channels share: the frame's slope."""
    _, constant, along = table_terms(rows)
    broadcast = broadcasts()

    @inlined
    def sloped_constant(table, channel, like):
        return (*constant(table[:2], channel, like), broadcast(like, table[2]))

    def sloped_along(count):
        terms, broadcast = along(count), broadcasts(count)

        @inlined
        def sloped(table, column, number, like):
            return (*terms(table[:2], column, number, like), broadcast(like, table[2]))

        return sloped

    return sloped_table_of, sloped_constant, cache(sloped_along)


@cache
def wide_sloped_terms(rows: int) -> tuple[Callable, Callable, Callable]:
    """`sloped_terms` for `wide_elementwise`."""
    _, constant, along = wide_table_terms(rows)
    broadcast, broadcast_wide = broadcasts(), broadcasts(wide=True)

    @inlined
    def wide_sloped_constant(table, channel, like):
        narrow, wide, mark = constant(table[:3], channel, like)
        slope, wide_slope = broadcast(like, table[3]), broadcast_wide(like, table[3])
        return (*narrow, slope), (*wide, wide_slope), mark

    def sloped_along(count):
        terms = along(count)
        broadcast, broadcast_wide = broadcasts(count), broadcasts(count, wide=True)

        @inlined
        def wide_sloped(table, column, number, like):
            narrow, wide, mark = terms(table[:3], column, number, like)
            slope, wide_slope = broadcast(like, table[3]), broadcast_wide(like, table[3])
            return (*narrow, slope), (*wide, wide_slope), mark

        return wide_sloped

    return wide_sloped_table_of, wide_sloped_constant, cache(sloped_along)


def elementwise(operands: int, formula: Callable, rows: int, slope: bool = False) -> Elementwise:
    """The operation ``formula(*values, *terms)``, with ``rows`` terms a channel.

    With a ``slope`` the last argument is the frame's.
    """
    compute = compiled_formula(formula, "values", "terms")
    terms = (sloped_terms if slope else table_terms)(rows)
    return Elementwise(*_OPERANDS[operands], compute, *terms)


def wide_elementwise(
    operands: int, formula: Callable, rows: int, slope: bool = False
) -> Elementwise:
    """`elementwise`, in float64 where a channel is marked."""
    formula = compiled_formula(formula, "values", "terms")

    @inlined
    def wide_compute(values, terms):
        narrow, wide, marks = terms
        exact = narrowed(formula(widened(values), wide), values[0])
        return chosen(marks[0], exact, formula(values, narrow))

    terms = (wide_sloped_terms if slope else wide_table_terms)(rows)
    return Elementwise(*_OPERANDS[operands], wide_compute, *terms)


_OPERANDS = {
    1: (pointers_of_one, steps_of_one, starts_of_one),
    2: (pointers_of_two, steps_of_two, starts_of_two),
    3: (pointers_of_three, steps_of_three, starts_of_three),
}


class Made(NamedTuple):
    """What an elementwise pass is made from."""

    operands: int
    formula: Callable  # makes it
    rows: int
    slope: bool = False


#: All there are, by name. What is fused with an activation and a residual is made when it is used.
EVERY = {
    "normalize": Made(1, lambda: formulas.normalize, 3),
    "gradient": Made(2, lambda: formulas.input_gradient, 4),
}
for (_activation, _residual), _names in activations.FUSED.items():
    _how = _activation, _residual
    _slope = _activation is not None and activations.ACTIVATIONS[_activation].parameters > 0
    EVERY[_names.normalize] = Made(1 + _residual, partial(activations.fused, *_how), 3, _slope)
    if _activation:
        EVERY[_names.gradient] = Made(
            2 + _residual, partial(activations.activation_gradient, *_how), 3, _slope
        )


def plain(name: str) -> Elementwise:
    """An elementwise pass by its name."""
    made = EVERY[name]
    return elementwise(made.operands, made.formula(), made.rows, made.slope)


def wide(name: str) -> Elementwise:
    """The same for arrays with marked channels."""
    made = EVERY[name]
    return wide_elementwise(made.operands, made.formula(), made.rows, made.slope)
