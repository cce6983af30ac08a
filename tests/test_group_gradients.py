"""Gradients of group norm: sums of each channel, terms of each group."""

import numpy as np
import pytest

import fastbn
from tests import internals, reference

#: Shape, groups, axis of channels: single values, rows shorter and longer than a vector, blocks.
CASES = [
    ((3, 8), 2, 1), ((5, 12, 7), 12, 1), ((4, 6, 5), 1, 1), ((2, 12, 300), 4, 1),
    ((7, 10, 9, 9), 5, 1), ((3, 5, 5, 6), 3, -1), ((2, 4, 9000), 2, 1),
]  # fmt: skip
TOLERANCE = {"float32": 4e-6, "float64": 1e-12}


def drawn(rng, shape, axis, dtype="float32"):
    x, dy = rng.normal(2, 3, shape).astype(dtype), rng.normal(size=shape).astype(dtype)
    return x, dy, rng.normal(1, 1, shape[axis]).astype(dtype)


def gradients_of(x, dy, groups, weight, axis, eps=1e-5, out=None):
    _, cache = fastbn.group_norm_forward(x, groups, weight, weight, eps, axis=axis)
    return fastbn.norm_backward(dy, cache, out=out)


def assert_right(found, right, tolerance):
    for name, one, other in zip(("x", "weight", "bias"), found, right, strict=False):
        assert np.abs(one - other).max() <= tolerance * max(1, np.abs(other).max()), name


@pytest.mark.parametrize(("shape", "groups", "axis"), CASES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_against_long_double(rng, shape, groups, axis, dtype):
    x, dy, weight = drawn(rng, shape, axis, dtype)
    right = reference.group_norm_backward(dy, x, groups, weight, 1e-5, axis)
    assert_right(gradients_of(x, dy, groups, weight, axis), right, TOLERANCE[dtype])


@pytest.mark.parametrize("offset", [1e4, -1e5])
def test_groups_far_from_zero_keep_their_digits(rng, offset):
    x, dy, weight = drawn(rng, (3, 8, 100), 1)
    x = (x + offset).astype(np.float32)
    right = reference.group_norm_backward(dy, x, 4, weight, 1e-5)
    assert_right(gradients_of(x, dy, 4, weight, 1), right, 1e-5)


@pytest.mark.parametrize("cache_bytes", [1 << 14, 1 << 16])
def test_tiles_are_of_whole_groups(rng, cache_bytes, monkeypatch):
    """However few channels would fit, the terms of a group come from all of its channels."""
    x, dy, weight = drawn(rng, (4, 30, 150), 1)
    before = gradients_of(x, dy, 6, weight, 1)
    internals.set_limits(monkeypatch, parallel_bytes=1, cache_bytes=cache_bytes)
    made = internals.Made(monkeypatch)
    for threads in (1, 2):
        fastbn.set_num_threads(min(threads, internals.default_threads()))
        found = gradients_of(x, dy, 6, weight, 1)
        assert all(np.array_equal(a, b) for a, b in zip(found[:3], before[:3], strict=True))
    fastbn.set_num_threads(None)
    internals.forget_plans()
    assert made.tiles()


@pytest.mark.parametrize("size", [1e-30, 1e25, 3e38])
@pytest.mark.parametrize("in_place", [False, True])
def test_a_group_that_float32_cannot_hold(rng, size, in_place):
    """Its gradients are right, and so are those of the groups beside it."""
    x, dy, weight = drawn(rng, (3, 8, 40), 1)
    x[1, 2:4] = rng.uniform(-1, 1, (2, 40)) * size
    eps = 1e-5 * min(1.0, size) ** 2
    dx, *others = reference.group_norm_backward(dy, x, 4, weight, eps)
    found = gradients_of(x, dy, 4, weight, 1, eps, out=dy if in_place else None)
    scale = np.abs(dx.astype(float)).reshape(3, 4, -1).max(2).repeat(2, 1)[..., None]
    assert (np.abs(found.x - dx) <= 1e-5 * scale + 1e-45).all()
    assert_right(found[1:], others, 1e-5)


def test_gradients_whose_sums_leave_float32(rng):
    x, dy, weight = drawn(rng, (2, 6, 50), 1)
    dy[1, 3] *= np.float32(3e37)
    dx, *_ = reference.group_norm_backward(dy, x, 3, weight, 1e-5)
    found = gradients_of(x, dy, 3, weight, 1)
    scale = np.abs(dx.astype(float)).reshape(2, 3, -1).max(2).repeat(2, 1)[..., None]
    assert np.isfinite(found.x).all()
    assert (np.abs(found.x - dx) <= 1e-5 * scale).all()
