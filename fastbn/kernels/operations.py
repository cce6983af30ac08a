"""Elementwise operations: what they read, the terms of a channel, what they compute.

A new one is a formula and a line here. `loops` has the loops that it goes into, and the
``elementwise`` module of each layout makes parts of both.
"""

from collections.abc import Callable
from functools import cache, lru_cache
from typing import NamedTuple

from fastbn.kernels import formulas
from fastbn.kernels.compile import inlined
from fastbn.kernels.simd import (
    chosen,
    compiled_formula,
    doubles_at,
    narrowed,
    terms_along,
    terms_of_channel,
    values_at,
    widened,
)

# --- operands: the arrays that an elementwise pass reads ------------------------------------------


@inlined
def pointers_of_one(f, like):
    return (values_at(f.first, like),)


@inlined
def starts_of_one(f, row, channel, value):
    """Where ``value`` values after a row's first one lie, in each array."""
    return (row * f.first_row + channel * f.first_channel + value,)


@inlined
def pointers_of_two(f, like):
    return values_at(f.first, like), values_at(f.second, like)


@inlined
def starts_of_two(f, row, channel, value):
    return (
        row * f.first_row + channel * f.first_channel + value,
        row * f.second_row + channel * f.second_channel + value,
    )


class Elementwise(NamedTuple):
    """An elementwise pass: what it reads, how many terms a channel has, what it computes."""

    pointers: Callable
    starts: Callable
    compute: Callable
    constant_terms: Callable  # of one channel: (f, like, channel)
    terms_along: Callable  # of columns; made by number of lines: (f, like, column, number)


@cache
def table_terms(rows: int) -> tuple[Callable, Callable]:
    """What reads ``rows`` terms from the table: those of a channel, those along a line."""
    of_channel = terms_of_channel(rows)

    @inlined
    def constant(f, like, channel):
        return of_channel(values_at(f.table, like), f.terms, channel, like)

    def along(count):
        load = terms_along(rows, count)

        @inlined
        def terms(f, like, column, number):
            return load(values_at(f.table, like), f.terms, column, number, like)

        return terms

    return constant, lru_cache(along)


@cache
def wide_table_terms(rows: int) -> tuple[Callable, Callable]:
    """`table_terms`, the same in float64 from ``wide_table``, and the table's row of marks."""
    of_channel, mark_of_channel = terms_of_channel(rows), terms_of_channel(1)

    @inlined
    def wide_constant(f, like, channel):
        table, wide = values_at(f.table, like), doubles_at(f.wide_table, like)
        return (
            of_channel(table, f.terms, channel, like),
            of_channel(wide, f.terms, channel, like),
            mark_of_channel(table, f.terms, channel + rows * f.terms, like),
        )

    def along(count):
        load, load_mark = terms_along(rows, count), terms_along(1, count)

        @inlined
        def wide_terms(f, like, column, number):
            table, wide = values_at(f.table, like), doubles_at(f.wide_table, like)
            return (
                load(table, f.terms, column, number, like),
                load(wide, f.terms, column, number, like),
                load_mark(table, f.terms, column + rows * f.terms, number, like),
            )

        return wide_terms

    return wide_constant, lru_cache(along)


def elementwise(operands: int, formula: Callable, rows: int) -> Elementwise:
    """The operation ``formula(*values, *terms)``, with ``rows`` terms a channel."""
    compute = compiled_formula(formula, "values", "terms")
    return Elementwise(*_OPERANDS[operands], compute, *table_terms(rows))


def wide_elementwise(operands: int, formula: Callable, rows: int) -> Elementwise:
    """`elementwise`, in float64 where a channel is marked."""
    formula = compiled_formula(formula, "values", "terms")

    @inlined
    def wide_compute(values, terms):
        narrow, wide, marks = terms
        exact = narrowed(formula(widened(values), wide), values[0])
        return chosen(marks[0], exact, formula(values, narrow))

    return Elementwise(*_OPERANDS[operands], wide_compute, *wide_table_terms(rows))


_OPERANDS = {1: (pointers_of_one, starts_of_one), 2: (pointers_of_two, starts_of_two)}

NORMALIZE = elementwise(1, formulas.normalize, 3)
WIDE_NORMALIZE = wide_elementwise(1, formulas.normalize, 3)
GRADIENT = elementwise(2, formulas.input_gradient, 4)
WIDE_GRADIENT = wide_elementwise(2, formulas.input_gradient, 4)
