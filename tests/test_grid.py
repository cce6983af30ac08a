"""Every shape and layout x dtype x mode against the float64 reference."""

import numba
import numpy as np
import pytest

import fastbn
from tests import internals, reference
from tests.cases import CASES
from tests.internals import forget_plans, set_limits

EPS = 1e-5
TOLERANCE = {np.float32: 1e-5, np.float64: 1e-12}


class Sample:
    """Random input, parameters and gradient of a case, with offset means and scales."""

    def __init__(self, case, dtype, rng):
        c = case.channels
        scale = rng.uniform(0.5, 4, c)
        offset = rng.normal(0, 5, c)
        values = rng.normal(size=case.shape)
        values = values * reference.per_channel(scale, values.ndim, case.axis)
        values = values + reference.per_channel(offset, values.ndim, case.axis)
        self.axis = case.axis
        self.x = case.array(values.astype(dtype))
        self.dy = case.array(rng.normal(0.3, 1, case.shape).astype(dtype))
        self.weight = rng.normal(1, 0.5, c).astype(dtype)
        self.bias = rng.normal(size=c).astype(dtype)
        self.running_mean = rng.normal(size=c).astype(dtype)
        self.running_var = rng.uniform(0.1, 3, c).astype(dtype)


def assert_close(actual, expected, tolerance):
    """Relative to the largest value, so that a sum that cancels is not asked for digits it lost."""
    scale = np.abs(expected).max() if np.size(expected) else 0.0
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * scale)


def gradient_scale(dx, dy):
    return max(np.abs(dx).max(), np.abs(dy).max())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
class TestGrid:
    def test_training(self, case, dtype, rng):
        s = Sample(case, dtype, rng)
        x_before, tolerance = np.array(s.x), TOLERANCE[dtype]
        running = s.running_mean.copy(), s.running_var.copy()
        y, cache = fastbn.batch_norm_forward(
            s.x, s.running_mean, s.running_var, s.weight, s.bias, True, 0.3, EPS, axis=s.axis
        )
        expected, mean, var = reference.forward(s.x, s.weight, s.bias, EPS, s.axis)
        assert y.dtype == dtype
        assert y.shape == s.x.shape
        assert_close(y, expected, tolerance)
        expected = reference.running_step(*running, s.x, 0.3, s.axis)
        assert_close(s.running_mean, expected[0], tolerance)
        assert_close(s.running_var, expected[1], tolerance)

        grads = fastbn.batch_norm_backward(s.dy, cache)
        dx, dweight, dbias = reference.backward(
            s.dy, s.x, mean, var, s.weight, EPS, s.axis, batch_statistics=True
        )
        # dx is a small difference of large terms where the batch is tiny
        scale = gradient_scale(dx, s.weight.max() * s.dy / np.sqrt(var.min() + EPS))
        np.testing.assert_allclose(grads.x, dx, rtol=tolerance, atol=tolerance * scale)
        assert_close(grads.weight, dweight, tolerance)
        assert_close(grads.bias, dbias, tolerance)
        assert grads.x.dtype == grads.weight.dtype == grads.bias.dtype == dtype
        np.testing.assert_array_equal(s.x, x_before)

    def test_evaluation(self, case, dtype, rng):
        s = Sample(case, dtype, rng)
        x_before, tolerance = np.array(s.x), TOLERANCE[dtype]
        running = s.running_mean.copy(), s.running_var.copy()
        y, cache = fastbn.batch_norm_forward(
            s.x, s.running_mean, s.running_var, s.weight, s.bias, eps=EPS, axis=s.axis
        )
        expected = reference.normalize(s.x, *running, s.weight, s.bias, EPS, s.axis)
        assert_close(y, expected, tolerance)
        grads = fastbn.batch_norm_backward(s.dy, cache)
        expected = reference.backward(
            s.dy, s.x, *running, s.weight, EPS, s.axis, batch_statistics=False
        )
        for actual, wanted in zip(grads, expected, strict=True):
            assert_close(actual, wanted, tolerance)
        np.testing.assert_array_equal(s.x, x_before)
        np.testing.assert_array_equal(s.running_mean, running[0])
        np.testing.assert_array_equal(s.running_var, running[1])

    def test_statistics(self, case, dtype, rng):
        s = Sample(case, dtype, rng)
        stats = fastbn.channel_stats(s.x, s.axis)
        mean, var = reference.mean_and_var(s.x, s.axis)
        assert_close(stats.mean, mean, TOLERANCE[dtype])
        np.testing.assert_allclose(stats.var(), var, rtol=TOLERANCE[dtype])
        np.testing.assert_array_equal(stats.count, case.count)

    def test_memory_order_is_kept(self, case, dtype, rng):
        s = Sample(case, dtype, rng)
        y, cache = fastbn.batch_norm_forward(s.x, training=True, axis=s.axis)
        dx = fastbn.batch_norm_backward(s.dy, cache).x
        assert y.strides == dx.strides == np.empty_like(s.x).strides
        assert y.dtype.isnative

    def test_in_place(self, case, dtype, rng):
        s = Sample(case, dtype, rng)
        if not s.x.flags.writeable or not s.x.dtype.isnative:
            s.x = s.x.astype(dtype)
        expected = fastbn.batch_norm(s.x, None, None, s.weight, s.bias, True, axis=s.axis)
        work = case.array(s.x) if case.memory not in ("read-only", "big-endian") else s.x.copy()
        result = fastbn.batch_norm(work, None, None, s.weight, s.bias, True, axis=s.axis, out=work)
        assert result is work
        np.testing.assert_array_equal(work, expected)


@pytest.fixture
def fresh_plans(monkeypatch):
    """Let a test change what plans are made from; put plans and threads back afterwards."""
    threads = fastbn.get_num_threads()
    forget_plans()
    yield monkeypatch
    fastbn.set_num_threads(threads)
    monkeypatch.undo()
    forget_plans()


def bits(arrays):
    return [np.ascontiguousarray(a).tobytes() for a in arrays if a is not None]


@pytest.mark.compiled
@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="needs two threads to compare")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize(
    "shape",
    [
        (6, 40, 7, 7), (300, 3, 17, 19), (9001, 67), (2, 2, 400, 300), (700, 1500),
        (3, 65, 64, 64), (2, 3, 65_536 + 37),
    ],
)  # fmt: skip
def test_bitwise_equal_for_any_number_of_threads(shape, axis, dtype, rng, fresh_plans):
    """Also with tiles or without, and past the caches or not, which decides only who and when."""
    set_limits(fresh_plans, parallel_bytes=0, tile_share=1)
    made = internals.Made(fresh_plans)
    x = rng.normal(100, 3, shape).astype(dtype)
    dy = rng.normal(0.1, 1, shape).astype(dtype)
    c = shape[axis]
    weight, bias = rng.normal(size=(2, c)).astype(dtype)

    def run():
        forget_plans()
        mean, var = np.zeros(c, dtype), np.ones(c, dtype)
        y, cache = fastbn.batch_norm_forward(x, mean, var, weight, bias, True, axis=axis)
        z, frozen = fastbn.batch_norm_forward(x, mean, var, weight, bias, axis=axis)
        stats = fastbn.channel_stats(x, axis)
        return bits(
            [
                *(y, z, mean, var, stats.mean, stats.m2),
                *fastbn.batch_norm_backward(dy, cache),
                *fastbn.batch_norm_backward(dy, frozen),
            ]
        )

    results = []
    for threads in (1, 2):
        fastbn.set_num_threads(threads)
        for tile_bytes in (1 << 22, 0):
            for cache in (1 << 40, 1 << 18, 1 << 16, 8):
                set_limits(fresh_plans, tile_bytes=tile_bytes, cache_bytes=cache)
                results.append(run())
    assert all(result == results[0] for result in results)
    assert made.threads()


@pytest.mark.parametrize(
    ("outer", "channels", "length", "least"),
    [
        (32, 24, 3136, 16), (32, 512, 49, 16), (1, 16, 196, 16), (1, 3, 1 << 20, 16),
        (10**6, 2, 4, 16), (64, 3, 784, 12),
    ],
)  # fmt: skip
def test_threads_can_share_the_sums(outer, channels, length, least):
    """Of few channels as well as of many."""
    assert internals.tasks_of_sums(outer, channels, length) >= least


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("columns", "axis"), [(1, 1), (3, 1), (70, 1), (300, 1), (3, -1), (70, -1)]
)
def test_every_line_is_summed_once(columns, axis, dtype, rng):
    """However many lines there are: of one value, or of several, or of all channels."""
    for lines in (*range(1, 18), 63, 260, 516, 1041):
        shape = (lines, 2, columns) if axis == 1 else (lines, columns)
        x = rng.uniform(0, 1000, shape).astype(dtype)  # one line more or less is far off
        stats = fastbn.channel_stats(x, axis)
        mean, var = (v.astype(float) for v in reference.mean_and_var(x, axis))
        off = 1e-7 if dtype == np.float32 else 1e-15
        np.testing.assert_allclose(stats.mean, mean, rtol=0, atol=1000 * off)
        np.testing.assert_allclose(stats.var(), var, rtol=10 * off, atol=1e6 * off * off)


@pytest.mark.parametrize("tile_bytes", [0, 1 << 20])
@pytest.mark.parametrize(("axis", "length"), [(1, 530), (-1, 528)])
def test_past_the_caches(axis, length, tile_bytes, rng, fresh_plans):
    """Streaming stores write the same, at the ends of rows as well."""
    x, dy = rng.normal(size=(2, 2, 3, length)).astype(np.float32)
    ones = np.ones(x.shape[axis], np.float32)
    set_limits(fresh_plans, tile_bytes=tile_bytes, tile_share=1)
    made, results = internals.Made(fresh_plans), []
    for cache in (1 << 40, 16384):
        assert not made.streaming()
        set_limits(fresh_plans, cache_bytes=cache)
        y, saved = fastbn.batch_norm_forward(x, training=True, axis=axis)
        z = fastbn.batch_norm(x, ones, ones, axis=axis)
        results.append((y, z, fastbn.batch_norm_backward(dy, saved).x))
    assert made.streaming()
    assert bits(results[0]) == bits(results[1])
    wanted, mean, var = reference.forward(x, ones, 0 * ones, 1e-5, axis)
    np.testing.assert_allclose(results[1][0], wanted.astype(float), atol=1e-5)
    wanted = reference.normalize(x, ones, ones, ones, 0 * ones, 1e-5, axis)
    np.testing.assert_allclose(results[1][1], wanted.astype(float), atol=1e-5)
    wanted = reference.backward(dy, x, mean, var, ones, 1e-5, axis, True)[0]
    np.testing.assert_allclose(results[1][2], wanted.astype(float), atol=1e-4)


def test_a_channel_does_not_depend_on_its_neighbours(rng, fresh_plans):
    """Nor on which channels it is computed with: a far first value makes one be summed again."""
    set_limits(fresh_plans, parallel_bytes=0)
    x = rng.normal(0, 1, (64, 6, 300)).astype(np.float32)
    x += np.arange(6, dtype=np.float32)[:, None]
    far = x.copy()
    far[0, 0] = 1e4
    results = []
    for threads in (1, 2):
        fastbn.set_num_threads(threads)
        results += [fastbn.batch_norm(v, training=True)[:, 1:].tobytes() for v in (x, far)]
        results += [fastbn.batch_norm(far[:, 1:], training=True).tobytes()]
    assert len(set(results)) == 1


def test_a_long_row_that_begins_far_away(rng):
    """The first shift is the mean of the first 256 values; here it has to be moved."""
    x = rng.normal(size=(1, 2, 9001)).astype(np.float32)
    x[..., :300] += 1e4
    stats = fastbn.channel_stats(x)
    wanted = x.astype(np.float64)
    np.testing.assert_allclose(stats.mean, wanted.mean(axis=(0, 2)), rtol=1e-6)
    np.testing.assert_allclose(stats.var(), wanted.var(axis=(0, 2)), rtol=1e-6)
