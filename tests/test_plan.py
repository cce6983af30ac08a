"""How arrays are walked: which views are read in place, and that no call copies x."""

import tracemalloc

import numpy as np
import pytest

import fastbn
from fastbn import _plan, _run

X = np.zeros((6, 8, 10, 12), np.float32)
LAST = np.zeros((6, 10, 12, 8), np.float32)


def layout(x, axis):
    found = _run.walk(axis, x)
    return found and found[0].layout


@pytest.mark.parametrize(
    ("x", "axis", "expected"),
    [
        (X, 1, "first"),
        (X[2:5], 1, "first"),
        (X[::2], 1, "first"),
        (X[:, 3:7], 1, "first"),
        (X[:, ::2], 1, "first"),
        (X.transpose(0, 1, 3, 2), 1, "first"),
        (X.transpose(1, 0, 2, 3), 0, "first"),
        (X[:, :, 2], 1, "first"),
        (LAST, 3, "last"),
        (LAST.transpose(0, 3, 1, 2), 1, "last"),
        (LAST.transpose(0, 3, 1, 2)[1:3], 1, "last"),
        (LAST.transpose(0, 3, 1, 2)[:, 2:6], 1, "last"),
        (LAST[::2], 3, None),  # two outer strides
        (X[..., ::2], 1, None),
        (X[::-1], 1, None),
        (X[:, ::-1], 1, None),
        (np.broadcast_to(X[:1], X.shape), 1, None),
        (np.zeros((50, 8), np.float32), 1, "last"),
        (np.zeros((50, 8), np.float32)[:, 1:5], 1, "last"),
        (np.zeros((50, 8), np.float32)[::3], 1, "last"),
        (np.zeros((8, 50), np.float32).T, 1, "first"),
        (np.zeros((50, 8), np.float32)[:, ::2], 1, None),
        (np.zeros((1, 64, 1, 1), np.float32), 1, "last"),
        (np.zeros((50, 1), np.float32), 1, "first"),
        (X.astype(">f4"), 1, None),
    ],
)
def test_which_views_are_read_in_place(x, axis, expected):
    assert layout(x, axis) == expected


def test_strides_that_are_no_whole_elements():
    assert _plan.make_plan((4, 3), 8, 1, ((36, 12),)) is None


def test_flat_views_share_memory_and_have_one_type():
    read_only = X.copy()
    read_only.flags.writeable = False
    for x in (X, X[2:5], X[:, 3:7], LAST.transpose(0, 3, 1, 2), read_only):
        _, (view,) = _run.walk(1, x)
        assert view.ndim == 1
        assert view.flags.carray
        assert np.shares_memory(view, x)
    assert not read_only.flags.writeable


def peak_bytes(call):
    """Largest memory that a call holds beyond what was there before, its result included."""
    call()
    tracemalloc.start()
    try:
        kept = call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        del kept


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("view", ["whole", "slice", "inner step", "reversed", "read-only"])
def test_no_temporary_of_the_size_of_x(view, axis):
    shape = (16, 8, 64, 64) if axis == 1 else (16, 64, 64, 8)
    base = np.ones(shape, np.float32)
    x = {
        "whole": lambda: base,
        "slice": lambda: base[3:],
        "inner step": lambda: np.ones((*shape[:2], 128, shape[3]), np.float32)[:, :, ::2],
        "reversed": lambda: base[::-1],
        "read-only": lambda: np.broadcast_to(base, base.shape),
    }[view]()
    weight = np.ones(8, np.float32)
    allowance = 64 * 1024
    assert peak_bytes(lambda: fastbn.batch_norm(x, None, None, weight, axis=axis)) < (
        x.nbytes + allowance
    )
    assert peak_bytes(lambda: fastbn.batch_norm(x, weight, weight, weight, axis=axis)) < (
        x.nbytes + allowance
    )
    out = np.empty_like(x)
    assert peak_bytes(lambda: fastbn.batch_norm(x, axis=axis, out=out)) < allowance
    if view in ("whole", "slice", "read-only"):
        _, cache = fastbn.batch_norm_forward(x, axis=axis)
        assert peak_bytes(lambda: fastbn.batch_norm_backward(x, cache)) < x.nbytes + allowance
        assert peak_bytes(lambda: fastbn.channel_stats(x, axis)) < allowance
