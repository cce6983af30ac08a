"""Tables whose rows are normalized each by itself: layer and RMS norm, as kernels walk them."""

import tracemalloc

import numpy as np
import pytest

import fastbn
from tests import internals, reference

#: One row, fewer than four, some left of fours; less than a vector, several blocks of a row; more
#: fours than are added up in float32.
TABLES = [(1, 5), (3, 16), (9, 31), (37, 64), (21, 2500), (2, 40000), (6, 1024), (1200, 7)]
TOLERANCE = {"float32": 3e-6, "float64": 1e-13}

tables = pytest.mark.parametrize("shape", TABLES)
centerings = pytest.mark.parametrize("centered", [True, False], ids=["layer", "rms"])


def drawn(rng, shape, dtype="float32"):
    x, dy = rng.normal(2, 3, shape).astype(dtype), rng.normal(size=shape).astype(dtype)
    weight, bias = rng.normal(1, 1, (2, shape[1])).astype(dtype)
    return x, dy, weight, bias


def forward(x, weight, bias, eps=1e-5, centered=True, out=None):
    if centered:
        return fastbn.layer_norm_forward(x, x.shape[-1], weight, bias, eps, out=out)
    return fastbn.rms_norm_forward(x, x.shape[-1], weight, eps, out=out)


def assert_right(x, dy, weight, bias, centered=True, eps=1e-5, **where):
    """Output and gradients against long double; returns them."""
    y, cache = forward(x, weight, bias, eps, centered)
    gradients = fastbn.norm_backward(dy, cache, **where)
    wide = [v.astype(np.longdouble) for v in (x, dy, weight, bias)]
    right = (
        reference.norm(wide[0], -1, wide[2], wide[3] if centered else 0, eps, centered),
        *reference.norm_backward(wide[1], wide[0], wide[2], eps, centered),
    )
    found = y, gradients.x, gradients.weight, gradients.bias
    bound = TOLERANCE[np.dtype(weight.dtype).name]
    for name, one, other in zip(("y", "x", "weight", "bias"), found, right, strict=True):
        if one is None:
            assert not centered
            continue
        assert one.dtype == (x.dtype if name in "xy" else weight.dtype)
        assert np.abs(one - other).max() <= bound * max(1, np.abs(other).max()), name
    return found


@tables
@centerings
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tables_of_all_sizes(rng, shape, centered, dtype):
    assert_right(*drawn(rng, shape, dtype), centered)


@pytest.mark.parametrize("offset", [1e4, -1e6])
def test_rows_far_from_zero_keep_their_digits(rng, offset):
    x, dy, weight, bias = drawn(rng, (9, 3000))
    assert_right((x + offset).astype(np.float32), dy, weight, bias)


def test_rows_that_are_constant_or_hold_one_outlier(rng):
    x, dy, weight, bias = drawn(rng, (24, 200))
    x[3], x[5], x[6, 7] = 2.5, 0.0, 1e6
    y, *_ = assert_right(x, dy, weight, bias)
    assert (y[[3, 5]] == bias).all()


@centerings
@pytest.mark.parametrize("size", [1e-30, 1e-25, 1e25, 3e38])
@pytest.mark.parametrize("in_place", [False, True])
def test_rows_that_float32_cannot_hold_beside_others(rng, size, in_place, centered):
    """Of one in four, of all of four, and of one of those that no four have."""
    x, dy, weight, bias = drawn(rng, (23, 40))
    far = [2, 8, 9, 10, 11, 22]
    x[far] = rng.uniform(-1, 1, (len(far), 40)) * size
    eps = 1e-5 * min(1.0, size) ** 2
    right = reference.norm(x, -1, weight, bias if centered else 0, eps, centered)
    dx, *others = reference.norm_backward(dy, x, weight, eps, centered)
    given = x.copy()
    y, cache = forward(x, weight, bias, eps, centered, out=x.copy() if in_place else None)
    np.testing.assert_allclose(y, right.astype(float), rtol=0, atol=2e-5)
    if in_place:
        in_x = x.copy()
        forward(in_x, weight, bias, eps, centered, out=in_x)
        assert np.array_equal(in_x, y)
    gradients = fastbn.norm_backward(dy, cache, out=dy if in_place else None)
    scale = np.abs(dx.astype(float)).max(1, keepdims=True)
    assert (np.abs(gradients.x - dx) <= 1e-5 * scale + 1e-45).all()
    np.testing.assert_allclose(gradients.weight, others[0].astype(float), rtol=0, atol=2e-5)
    assert np.array_equal(x, given)


@pytest.mark.parametrize("size", [1e25, 1e30])
def test_gradients_whose_squares_leave_float32(rng, size):
    x, dy, weight, bias = drawn(rng, (16, 24))
    dy[5] *= np.float32(size)
    dx, d_weight, d_bias = reference.norm_backward(dy, x, weight, 1e-5)
    gradients = fastbn.norm_backward(dy, forward(x, weight, bias)[1])
    for found, right in zip(gradients, (dx, d_weight, d_bias), strict=False):
        assert np.abs(found / size - right / size).max() < 1e-5
    assert np.abs(gradients.x - dx)[np.arange(16) != 5].max() < 1e-5


def test_nan_and_infinity_stay_in_their_row(rng):
    x, dy, weight, bias = drawn(rng, (8, 33))
    clean = forward(x, weight, bias)[0]
    for value in (np.nan, np.inf, -np.inf):
        x[5, 4] = value
        y, cache = forward(x, weight, bias)
        others = np.arange(8) != 5
        assert np.isnan(y[5]).all()
        assert np.array_equal(y[others], clean[others])
        gradients = fastbn.norm_backward(dy, cache)
        assert np.isnan(gradients.x[5]).all()
        assert np.isfinite(gradients.x[others]).all()
        assert np.isnan(gradients.weight).any()


def test_rows_with_nan_are_not_done_twice(rng, monkeypatch):
    """They are NaN in float64 too; a training that has diverged must not become slow."""
    x, dy, weight, bias = drawn(rng, (12, 40))
    internals.refuse_float64_rows(monkeypatch)
    x[3, 5], x[9, 0] = np.nan, np.inf
    cache = forward(x, weight, bias)[1]
    assert np.isnan(fastbn.norm_backward(dy, cache).x[[3, 9]]).all()
    dy[5, 7] = np.nan
    gradients = fastbn.norm_backward(dy, cache)
    assert np.isnan(gradients.x[5]).all()
    assert np.isfinite(gradients.x[[0, 1, 2, 4]]).all()


def test_an_infinity_in_rms_norm(rng):
    y = fastbn.rms_norm(np.array([[np.inf, 1, -2], [3, 0, 4]], np.float32), 3)
    np.testing.assert_allclose(y[0], [np.nan, 0, -0.0])
    assert np.isfinite(y[1]).all()


@pytest.mark.compiled
def test_gradients_of_one_sign_along_a_long_row(rng):
    """The sum of dy is taken away, and what rounding has left of it is all that there is."""
    x = rng.normal(size=(2, 2_000_000)).astype(np.float32)
    dy = np.full_like(x, 0.1)
    gradients = fastbn.norm_backward(dy, fastbn.layer_norm_forward(x, x.shape[1])[1])
    assert np.abs(gradients.x).max() < 0.1 * 2e-6


def test_rows_for_float64_go_in_pieces(rng, monkeypatch):
    x, dy, weight, bias = drawn(rng, (400, 256))
    x *= np.float32(1e25)
    out, dx = np.empty_like(x), np.empty_like(x)
    right, cache = forward(x, weight, bias, 1.0)
    gradients = fastbn.norm_backward(dy, cache)
    internals.small_blocks(monkeypatch)
    tracemalloc.start()
    _, cache = forward(x, weight, bias, 1.0, out=out)
    found = fastbn.norm_backward(dy, cache, out=dx)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < x.nbytes / 2
    assert np.array_equal(out, right)
    assert np.array_equal(dx, gradients.x)
    np.testing.assert_allclose(found.weight, gradients.weight, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_callers_who_let_numpy_raise(rng, dtype):
    """Whatever `numpy.errstate` says: a result that is too small for its dtype is just that."""
    x, dy, weight, bias = drawn(rng, (4, 64))
    x, dy = (x * np.float32(1e-15)).astype(dtype), (dy * np.float32(1e-30)).astype(dtype)
    with np.errstate(all="raise"):
        _, cache = forward(x, weight, bias, 1.0)
        fastbn.norm_backward(dy, cache)
        forward(x, weight.astype(float) * 1e-46, bias.astype(float) * 1e39)
        _, cache = fastbn.group_norm_forward(x, 8, weight, bias, 1.0)
        fastbn.norm_backward(dy, cache)


@tables
def test_storing_past_the_caches_and_on_threads_changes_no_bit(rng, shape, monkeypatch):
    """Streaming is for rows of whole cache lines, long ones wherever they begin."""
    x, dy, weight, bias = drawn(rng, shape)
    fastbn.set_num_threads(1)
    before = assert_right(x, dy, weight, bias)
    internals.set_limits(monkeypatch, parallel_bytes=1, cache_bytes=1)
    plans = internals.Made(monkeypatch)
    try:
        for threads in (1, 2):
            fastbn.set_num_threads(min(threads, internals.default_threads()))
            found = assert_right(x, dy, weight, bias)
            assert all(np.array_equal(a, b) for a, b in zip(found, before, strict=True))
        assert plans.threads() == (internals.default_threads() > 1)
        assert plans.streaming() or shape not in ((2, 40000), (6, 1024))
    finally:
        fastbn.set_num_threads(None)
        internals.forget_plans()


@pytest.mark.parametrize("columns", [33, 64, 700])
def test_tables_that_are_parts_of_others_are_read_in_place(rng, columns, monkeypatch):
    x, dy, weight, bias = drawn(rng, (12, columns + 5))
    few = slice(None, None, 2), slice(2, 2 + columns)
    expected = assert_right(x[few].copy(), dy[few].copy(), weight[:columns], bias[:columns])
    internals.refuse_copies(monkeypatch)
    found = assert_right(x[few], dy[few], weight[:columns], bias[:columns])
    out = np.full_like(x, 7)
    forward(x[few], weight[:columns], bias[:columns], out=out[few])
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    assert np.array_equal(out[few], expected[0])
    out[few] = 7
    assert (out == 7).all()


@pytest.mark.parametrize("order", ["reversed", "transposed", "three axes", "one column of a table"])
def test_any_other_order_of_memory(rng, order):
    x, dy, weight, bias = drawn(rng, (24, 30))
    view = {
        "reversed": lambda a: a[:, ::-1],
        "transposed": lambda a: a.T,
        "three axes": lambda a: a.reshape(4, 6, 30)[:, 1:4],
        "one column of a table": lambda a: a.reshape(24, 15, 2)[..., 1],
    }[order]
    size = view(x).shape[-1]
    some = np.resize(weight, size), np.resize(bias, size)
    y, cache = forward(view(x), *some)
    gradients = fastbn.norm_backward(view(dy), cache)
    same, same_cache = forward(view(x).copy(), *some)
    same_gradients = fastbn.norm_backward(view(dy).copy(), same_cache)
    assert np.array_equal(y, same)
    for found, right in zip(gradients[:3], same_gradients[:3], strict=True):
        np.testing.assert_allclose(found, right, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_16_bits_are_read_and_written_as_they_are(rng, name, monkeypatch):
    """The results are those of float32, rounded once, and nothing is copied."""
    dtype = np.dtype(getattr(pytest.importorskip("ml_dtypes"), name, name))
    x, dy, weight, bias = drawn(rng, (10, 70))
    x, dy = x.astype(dtype), dy.astype(dtype)
    y, cache = forward(x.astype(np.float32), weight, bias)
    right = fastbn.norm_backward(dy.astype(np.float32), cache)
    internals.refuse_copies(monkeypatch)
    y_16, cache = forward(x, weight, bias)
    found = fastbn.norm_backward(dy, cache)
    assert np.array_equal(y_16, y.astype(dtype))
    assert np.array_equal(found.x, right.x.astype(dtype))
    assert np.array_equal(found.weight, right.weight)
    assert found.weight.dtype == np.float32


def test_two_axes_that_are_normalized_together_in_a_view(rng):
    """A view of two axes is a table of rows only if a row is its last axis alone."""
    x = rng.normal(size=(6, 12)).astype(np.float32)
    view = x[:, 2:9]
    y = fastbn.layer_norm(view, view.shape)
    np.testing.assert_allclose(
        y, reference.norm(view, None, 1, 0, 1e-5).astype(float), rtol=0, atol=3e-6
    )


# --- calls like one before ------------------------------------------------------------------------


@centerings
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(6, 20), (2, 3, 20), (20,)])
def test_a_call_like_one_before_has_the_same_bits(rng, shape, dtype, centered, monkeypatch):
    x, dy = rng.normal(2, 3, (2, *shape)).astype(dtype)
    weight, bias = rng.normal(size=(2, 20)).astype(dtype)
    internals.forget_plans()

    def bits(vectors, out=None, dx=None):
        y, cache = forward(x, *vectors, centered=centered, out=out)
        gradients = fastbn.norm_backward(dy, cache, out=dx)
        return [a.tobytes() for a in (y, *gradients) if a is not None]

    for vectors in ((weight, bias), (None, None), (weight, None)):
        internals.forget_plans()
        first = bits(vectors)
        internals.refuse_checks_of_rows(monkeypatch)
        assert bits(vectors) == first
        assert bits(vectors, np.empty_like(x), np.empty_like(x)) == first
        monkeypatch.undo()
    y, cache = forward(x, weight, bias, centered=centered)
    before = y.copy(), fastbn.norm_backward(dy, cache).x
    assert np.array_equal(fastbn.norm_backward(dy, cache, out=dy).x, before[1])
    assert np.array_equal(forward(x, weight, bias, centered=centered, out=x)[0], before[0])


def test_mistakes_are_found_after_a_right_call(rng):
    x, dy, weight, bias = drawn(rng, (20, 20))
    _, cache = forward(x, weight, bias)
    read_only = np.empty_like(x)
    read_only.flags.writeable = False
    for wrong, error in (
        ({"weight": weight[:19]}, ValueError),
        ({"weight": weight.reshape(20, 1)}, ValueError),
        ({"weight": list(weight)}, TypeError),
        ({"bias": bias.astype(int)}, TypeError),
        ({"eps": 0.0}, ValueError),
        ({"eps": "1"}, TypeError),
        ({"normalized_shape": (21,)}, ValueError),
        ({"normalized_shape": (True,)}, ValueError),
        ({"normalized_shape": 20.0}, TypeError),
        ({"out": read_only}, ValueError),
        ({"out": np.empty((20, 20))}, ValueError),
        ({"out": np.empty((20, 19), np.float32)}, ValueError),
    ):
        arguments = {"normalized_shape": 20, "weight": weight, "bias": bias, **wrong}
        with pytest.raises(error):
            fastbn.layer_norm(x, **arguments)
    memory = np.zeros(500, np.float32)
    for out, other in ((memory[:400], memory[50:450]), (memory[50:450], memory[:400])):
        with pytest.raises(ValueError, match="overlap"):
            fastbn.layer_norm(other.reshape(20, 20), 20, weight, bias, out=out.reshape(20, 20))
    with pytest.raises(ValueError, match="out"):
        fastbn.layer_norm(x, 20, x[3], bias, out=x.copy()[:19])
    with pytest.raises(ValueError, match="shape"):
        fastbn.norm_backward(dy[:19], cache)
    with pytest.raises(TypeError):
        fastbn.norm_backward(dy.astype(int), cache)
    x.shape = (10, 40)
    with pytest.raises(RuntimeError):
        fastbn.norm_backward(dy.reshape(10, 40), cache)


def test_weight_that_the_output_is_written_over(rng):
    x, dy, weight, bias = (v[0] if v.ndim == 2 else v for v in drawn(rng, (1, 20)))
    right = forward(x, weight, bias)
    for _ in range(2):
        over = weight.copy()
        y, cache = forward(x, over, bias, out=over)
        assert y is over
        assert np.array_equal(y, right[0])
        found, expected = (fastbn.norm_backward(dy, c) for c in (cache, right[1]))
        assert all(np.array_equal(a, b) for a, b in zip(found[:3], expected[:3], strict=True))
