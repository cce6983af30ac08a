"""float16 and bfloat16: read and written by kernels, computed in float32."""

import numpy as np
import pytest

import fastbn
from tests import internals, reference

KINDS = ["float16", "bfloat16"]
SHAPES = [((4, 3, 5, 5), 1), ((7, 5), 1), ((64, 33), 1), ((4, 6, 6, 40), -1), ((2, 3, 1000), 1),
          ((300, 8), 1), ((3, 70, 2), 1), ((6, 2, 4097), 1)]  # fmt: skip
kinds = pytest.mark.parametrize("kind", KINDS)
shapes = pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)


def dtype_of(kind):
    if kind == "bfloat16":
        return np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    return np.dtype(kind)


def drawn(rng, shape, kind):
    return (rng.normal(size=shape) * 3 + 2).astype(np.float32).astype(dtype_of(kind))


def bits(array):
    return array.view(np.uint16)


@kinds
@shapes
def test_results_are_those_of_float32_rounded_once(kind, shape, axis, rng):
    x, dy = drawn(rng, shape, kind), drawn(rng, shape, kind)
    channels = shape[axis]
    weight, bias, mean = rng.normal(size=(3, channels)).astype(np.float32)
    var = rng.uniform(0.5, 2, channels).astype(np.float32)
    before, kept = x.copy(), (mean.copy(), var.copy())
    running = mean.copy(), var.copy()
    y, cache = fastbn.batch_norm_forward(x, *running, weight, bias, training=True, axis=axis)
    wide = mean.copy(), var.copy()
    expected, wide_cache = fastbn.batch_norm_forward(
        x.astype(np.float32), *wide, weight, bias, training=True, axis=axis
    )
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(bits(y), bits(expected.astype(x.dtype)))
    np.testing.assert_array_equal(bits(x), bits(before))
    for one, other in zip(running, wide, strict=True):
        np.testing.assert_array_equal(one, other)
    gradients = fastbn.batch_norm_backward(dy, cache)
    right = fastbn.batch_norm_backward(dy.astype(np.float32), wide_cache)
    np.testing.assert_array_equal(bits(gradients.x), bits(right.x.astype(x.dtype)))
    for one, other in zip(gradients[1:], right[1:], strict=True):
        assert one.dtype == np.float32
        np.testing.assert_array_equal(one, other)
    served, cache = fastbn.batch_norm_forward(x, *kept, weight, bias, axis=axis)
    expected, wide_cache = fastbn.batch_norm_forward(
        x.astype(np.float32), *kept, weight, bias, axis=axis
    )
    np.testing.assert_array_equal(bits(served), bits(expected.astype(x.dtype)))
    np.testing.assert_array_equal(
        bits(fastbn.batch_norm_backward(dy, cache).x),
        bits(fastbn.batch_norm_backward(dy.astype(np.float32), wide_cache).x.astype(x.dtype)),
    )
    stats, right = fastbn.channel_stats(x, axis), fastbn.channel_stats(x.astype("f4"), axis)
    np.testing.assert_array_equal(stats.mean, right.mean)
    np.testing.assert_array_equal(stats.var(), right.var())


@kinds
def test_against_the_reference(kind, rng):
    x = drawn(rng, (5, 4, 9), kind)
    weight, bias = rng.normal(size=(2, 4)).astype(np.float32)
    y = fastbn.batch_norm(x, weight=weight, bias=bias, training=True)
    right, _, _ = reference.forward(x.astype(np.float64), weight, bias, 1e-5, 1)
    half_a_digit = {"float16": 2.0**-11, "bfloat16": 2.0**-8}[kind]
    error = np.abs(y.astype(np.float64) - right.astype(float))
    assert (error <= 1.01 * half_a_digit * np.maximum(1e-4, np.abs(right.astype(float)))).all()


@kinds
def test_every_number_is_read_and_written(kind):
    """All 65,536 of them, through an evaluation that changes none."""
    dtype = dtype_of(kind)
    every = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    plain = np.zeros(1, np.float32), np.ones(1, np.float32)
    for x in (every[:, None], every[None, None, :]):
        y = fastbn.batch_norm(x, *plain, eps=1e-30)
        same = bits(y.ravel()) == bits(every)
        wide = every.astype(np.float32)
        nan, zero = np.isnan(wide), wide == 0  # a NaN may be another one; -0 + 0 is 0
        assert same[~nan & ~zero].all()
        assert np.isnan(y.ravel()[nan].astype(np.float32)).all()


@kinds
def test_numbers_are_rounded_to_nearest_and_ties_to_even(kind, rng):
    """Products that fall between two numbers, on ties, beyond the largest and below the least."""
    dtype = dtype_of(kind)
    x = np.concatenate([rng.normal(size=4000), [1, 1, 3, -1, 6e4, 1e-7, 0]])
    x = x.astype(np.float32).astype(dtype)[:, None]
    plain = np.zeros(1, np.float32), np.ones(1, np.float32)
    for scale in (1 + 2.0**-9, 1 + 2.0**-12, 3.0, 1e-3, 1e4, 1e38, 1e-38):
        weight = np.array([scale], np.float32)
        y = fastbn.batch_norm(x, *plain, weight, eps=1e-30)
        with np.errstate(over="ignore"):
            right = (x.astype(np.float32) * weight).astype(dtype)
        np.testing.assert_array_equal(bits(y + dtype.type(0)), bits(right + dtype.type(0)))


@kinds
@pytest.mark.parametrize("make", ["reversed", "sliced", "turned", "unaligned", "in place"])
def test_arrays_of_any_kind(kind, make, rng):
    x = drawn(rng, (6, 4, 10), kind)
    odd = {
        "reversed": lambda: x[::-1, ::-1], "sliced": lambda: np.repeat(x, 2, axis=2)[..., ::2],
        "turned": lambda: np.asfortranarray(x), "in place": lambda: x.copy(),
        "unaligned": lambda: np.frombuffer(b"x" + x.tobytes(), x.dtype, offset=1).reshape(x.shape),
    }[make]()  # fmt: skip
    expected = fastbn.batch_norm(odd.astype(np.float32), training=True).astype(x.dtype)
    out = odd if make == "in place" else np.empty_like(x)
    assert fastbn.batch_norm(odd, training=True, out=out) is out
    np.testing.assert_array_equal(bits(out), bits(expected))


@kinds
def test_values_that_float32_holds_and_sums_do_not(kind, rng):
    """bfloat16 goes as far as float32: the parts for such channels serve it as well."""
    size = 3e38 if kind == "bfloat16" else 6e4
    x = (rng.uniform(-1, 1, (64, 3)) * size).astype(np.float32).astype(dtype_of(kind))
    right = fastbn.batch_norm(x.astype(np.float64), training=True)
    y, cache = fastbn.batch_norm_forward(x, training=True)
    np.testing.assert_allclose(y.astype(float), right, rtol=2**-7)
    assert np.isfinite(fastbn.batch_norm_backward(x, cache).x.astype(float)).all()


@kinds
def test_layers_take_them(kind, rng):
    x = drawn(rng, (6, 4, 10), kind)
    for layer in (fastbn.BatchNorm1d(4), fastbn.GroupNorm(2, 4), fastbn.LayerNorm(10),
                  fastbn.RMSNorm(10), fastbn.InstanceNorm1d(4, affine=True)):  # fmt: skip
        other = type(layer)(*((2, 4) if "Group" in repr(layer) else (10,) if "((" in repr(layer)
                              else (4,)))  # fmt: skip
        y, expected = layer(x), other(x.astype(np.float32))
        assert y.dtype == x.dtype
        np.testing.assert_array_equal(bits(y), bits(expected.astype(x.dtype)))
        gradients = layer.backward(y)
        assert gradients.x.dtype == x.dtype
        for gradient in gradients.parameters().values():
            assert gradient.dtype == np.float32
        assert layer.eval()(x).dtype == x.dtype


@kinds
def test_parameters_of_16_bits_are_widened(kind, rng):
    x = drawn(rng, (6, 4), kind)
    weight = drawn(rng, (4,), kind)
    y = fastbn.batch_norm(x, weight=weight, training=True)
    right = fastbn.batch_norm(x, weight=weight.astype(np.float32), training=True)
    np.testing.assert_array_equal(bits(y), bits(right))


@kinds
def test_many_values_on_threads_past_the_caches(kind, rng, monkeypatch):
    internals.set_limits(monkeypatch, cache_bytes=1 << 16)
    x = drawn(rng, (8, 16, 40, 40), kind)
    for axis, array in ((1, x), (-1, np.ascontiguousarray(x.transpose(0, 2, 3, 1)))):
        expected = fastbn.batch_norm(array.astype(np.float32), training=True, axis=axis)
        y = fastbn.batch_norm(array, training=True, axis=axis)
        np.testing.assert_array_equal(bits(y), bits(expected.astype(x.dtype)))


def test_a_processor_that_cannot_convert(monkeypatch):
    internals.without_float16(monkeypatch)
    with pytest.raises(NotImplementedError, match=r"needs a processor with F16C.*astype"):
        fastbn.batch_norm(np.ones((5, 77), np.float16), training=True)


@kinds
def test_a_state_dict_of_16_bits_loads(kind, rng):
    layer, state = fastbn.BatchNorm1d(4), {}
    for name, array in layer.state_dict().items():
        drawn_one = rng.uniform(0.5, 2, array.shape).astype(np.float32).astype(dtype_of(kind))
        state[name] = np.array(3) if name == "num_batches_tracked" else drawn_one
    layer.load_state_dict(state)
    for name, array in layer.state_dict().items():
        np.testing.assert_array_equal(array, state[name].astype(array.dtype))
