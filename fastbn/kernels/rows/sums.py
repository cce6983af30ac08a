"""Sums along rows, for statistics and for gradients; and what becomes of rows that are left."""

from fastbn.kernels.compile import inlined
from fastbn.kernels.frame import LEFT
from fastbn.kernels.simd import broadcasts, doubles_at, lanes, loads, stores

AHEAD = 16  # rows that are fetched before they are needed
#: Bytes of a task's three numbers of each of four rows: two cache lines of its own.
ROW_SUMS_BYTES = 128
LANES = 16  # of the narrowest dtype

lanes_of = lanes()


@inlined
def count_left(f, like):
    """Say so if tasks have left rows."""
    left = doubles_at(f.rows_left, like)
    for task in range(f.reduce_tasks):
        if left[task] > 0.0:
            f.outcome = LEFT


def sums_of_rows(count, chain, whole, edge):
    """Make ``add(operands, begin, end, center, sums)``: three sums of each of ``count`` rows.

    ``whole(operands, j, number, center, zero)`` reads ``a``, ``b`` and ``c`` of a vector of
    columns, ``edge`` those of the last ones. The sums of ``a``, of ``a * b`` and of ``c * c`` go to
    ``sums``, a vector for each row. ``chain``: additions to one sum, at most.
    """
    at_rows, to_rows, zeros = loads(count), stores(count), broadcasts(count)

    @inlined
    def add(operands, begin, end, center, sums):
        step, zero = lanes_of(sums), zeros(sums, 0.0)
        around = at_rows(center, 0, step)
        all_a = all_ab = all_cc = zero
        for start in range(begin, end, chain * step):
            of_a = of_ab = of_cc = zero
            for j in range(start, min(start + chain * step, end), step):
                if j + step <= end:
                    a, b, c = whole(operands, j, step, around, zero)
                else:
                    a, b, c = edge(operands, j, end - j, around, zero)
                of_a, of_ab, of_cc = of_a + a, of_ab + a * b, of_cc + c * c
            all_a, all_ab, all_cc = all_a + of_a, all_ab + of_ab, all_cc + of_cc
        to_rows(sums, 0, step, all_a)
        to_rows(sums, count * step, step, all_ab)
        to_rows(sums, 2 * count * step, step, all_cc)

    return add
