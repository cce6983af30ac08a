"""Outputs that go through the pool, and what it holds."""

import numpy as np
import pytest

from tests.internals import pool

MIB = 1 << 20
F4 = np.dtype(np.float32)

reuses = pytest.mark.skipif(pool._madvise() is None, reason="memory is reused on Linux alone")


def output(nbytes=2 * MIB, fill=None):
    y = pool.new_output(np.broadcast_to(F4.type(0), (nbytes // 4,)), F4)
    if fill is not None:
        y.fill(fill)
    return y


def address(array):
    return array.__array_interface__["data"][0]


def dropped(nbytes=2 * MIB):
    """Address of an output that is gone."""
    return address(output(nbytes, fill=1))


def waiting():
    """Bytes that wait for reuse."""
    return sum(block.size for block in pool._blocks.values() if block.dropped)
