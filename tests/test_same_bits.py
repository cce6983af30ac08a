"""The same bits in place or not, into any ``out``, with any ``dy``: they follow from x alone."""

import numpy as np
import pytest

from fastbn import batch_norm_backward, batch_norm_forward

#: Views of an array of rank 4, by what they are made of: a maker of memory, and a view of it.
#: No kernel walks most of them.
VIEWS = {
    "whole": lambda new: new((6, 5, 9, 7)),
    "whole NHWC": lambda new: new((6, 9, 7, 5)).transpose(0, 3, 1, 2),
    "reversed NHWC": lambda new: new((6, 9, 7, 5))[::-1].transpose(0, 3, 1, 2),
    "NHWC with channels reversed": lambda new: new((6, 9, 7, 5))[..., ::-1].transpose(0, 3, 1, 2),
    "stepped NHWC": lambda new: new((6, 9, 14, 5))[:, :, ::2].transpose(0, 3, 1, 2),
    "NHWC with each second channel": lambda new: new((6, 9, 7, 10))[..., ::2].transpose(0, 3, 1, 2),
    "slice of NHWC channels": lambda new: new((6, 9, 7, 8))[..., 2:7].transpose(0, 3, 1, 2),
    "slice of NHWC rows": lambda new: new((6, 9, 9, 5))[:, :, 1:8].transpose(0, 3, 1, 2),
    "Fortran": lambda new: new((7, 9, 5, 6)).T,
    "slice of Fortran": lambda new: new((7, 9, 8, 6)).T[:, 2:7],
    "slice of samples of Fortran": lambda new: new((7, 9, 5, 9)).T[2:8],
    "reversed": lambda new: new((6, 5, 9, 7))[::-1, :, ::-1],
    "every second value": lambda new: new((6, 5, 9, 14))[..., ::2],
    "every second sample": lambda new: new((12, 5, 9, 7))[::2],
    "slice of channels": lambda new: new((6, 9, 9, 7))[:, 3:8],
    "transposed planes": lambda new: new((6, 5, 7, 9)).transpose(0, 1, 3, 2),
}  # fmt: skip
SHAPE = (6, 5, 9, 7)


def placed(name, values):
    """``values`` in memory of their own that lies as the view does."""
    view = VIEWS[name](lambda shape: np.full(shape, np.nan, values.dtype))
    view[...] = values
    return view


def same(got, wanted, what):
    for a, b in zip(got, wanted, strict=True):
        assert np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes(), what


@pytest.fixture(params=[np.float32, np.float64])
def problem(request, rng):
    c = SHAPE[1]
    x = rng.normal(3, 2, SHAPE) + rng.normal(0, 100, c)[:, None, None]
    dy, vectors = rng.normal(0.2, 1, SHAPE), rng.uniform(0.5, 2, (4, c))
    return tuple(a.astype(request.param) for a in (x, dy, vectors))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("view", VIEWS)
def test_forward(view, training, problem):
    values, _, vectors = problem

    def forward(x, out=None):
        mean, var, weight, bias = vectors.copy()
        y, _ = batch_norm_forward(x, mean, var, weight, bias, training, out=out)
        assert out is None or y is out
        return y, mean, var

    wanted = forward(placed(view, values))
    work = placed(view, values)
    same(forward(work, out=work), wanted, "in place")
    work = placed(view, values)
    same(forward(work, out=work[:]), wanted, "in place, through a view")
    for other in VIEWS:
        x = placed(view, values)
        same(forward(x, out=placed(other, values * 0)), wanted, other)
        np.testing.assert_array_equal(x, values)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("view", VIEWS)
def test_backward(view, training, problem):
    values, gradient, (mean, var, weight, bias) = problem

    def backward(x, dy, out=None):
        _, cache = batch_norm_forward(x, mean.copy(), var.copy(), weight, bias, training)
        grads = batch_norm_backward(dy, cache, out=out)
        assert out is None or grads.x is out
        return grads

    wanted = backward(placed(view, values), placed(view, gradient))
    dy = placed(view, gradient)
    same(backward(placed(view, values), dy, out=dy), wanted, "over dy")
    x = placed(view, values)
    same(backward(x, placed(view, gradient), out=x), wanted, "over x")
    for other in VIEWS:
        same(backward(placed(view, values), placed(other, gradient)), wanted, f"dy {other}")
        dy = placed(other, gradient)
        same(backward(placed(view, values), dy, out=dy), wanted, f"over dy {other}")
        np.testing.assert_array_equal(dy, wanted.x)
        x, dy = placed(view, values), placed(view, gradient)
        same(backward(x, dy, out=placed(other, values * 0)), wanted, f"into {other}")
        x, dy = placed(view, values), placed(other, gradient)
        same(backward(x, dy, out=x), wanted, f"over x, dy {other}")
        x, dy = placed(view, values), np.asfortranarray(gradient)
        same(backward(x, dy, out=placed(other, values * 0)), wanted, f"dy Fortran, into {other}")
        np.testing.assert_array_equal(x, values)
        np.testing.assert_array_equal(dy, gradient)
