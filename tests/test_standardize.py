"""`standardize` and `destandardize` beside the textbook in long double; bits, layouts, errors."""

import numba
import numpy as np
import pytest

import fastbn
from fastbn._call import standardize as call
from fastbn._call import standardize_plan
from fastbn._system import outputs
from tests import reference
from tests.test_errors import raises

INTEGERS = ["uint8", "int8", "uint16", "int16"]
FLOATS = ["float32", "float64", "float16", "bfloat16"]
#: How far a result may be off, as a part of itself and of the step from 1 to the next number: the
#: difference, the factor, the product (unless it is fused with the sum) and the sum are each
#: rounded by half of that; 16 bits once more, by far more.
STEPS = 2
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def dtype_of(name):
    if name == "bfloat16":
        return np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    return np.dtype(name)


def epsilon(dtype):
    return 2.0**-7 if dtype.name == "bfloat16" else float(np.finfo(dtype).eps)


def drawn(rng, shape, name):
    if name in INTEGERS:
        ends = np.iinfo(name)
        return rng.integers(ends.min, ends.max, shape, name, endpoint=True)
    return (rng.normal(size=shape) * 3 + 2).astype(np.float32).astype(dtype_of(name))


def vectors(rng, channels, unit):
    """Means and deviations of values that are about ``unit``."""
    return rng.uniform(-0.5, 0.5, channels) * unit, rng.uniform(0.1, 0.5, channels) * unit


def check(y, x, mean, std, scale, axis, out_axis=None, inverse=False):
    """Every value beside the formula in long double."""
    of = reference.destandardize if inverse else reference.standardize
    right, size = (
        np.moveaxis(a, axis, axis if out_axis is None else out_axis)
        for a in of(x, mean, std, scale, axis)
    )
    assert y.shape == right.shape
    if y.dtype.kind in "iu":
        ends = np.iinfo(y.dtype)
        right = np.clip(right, ends.min, ends.max)
        assert np.all(abs(y - right) <= 0.5 + 1e-6 * size)
        return
    step = epsilon(y.dtype)
    # where the mean takes nearly all of x away, what is left of it counts, rounded like the rest
    allowed = STEPS * step * np.maximum(abs(right), size * (1 if inverse else step))
    error = abs(y.astype(np.longdouble) - right)
    least = 2.0**-24 if y.dtype == np.float16 else float(np.finfo(np.float32).tiny)
    own = 4 * np.finfo(np.longdouble).eps * size  # what the reference is off by itself
    assert np.all(error <= 1.001 * allowed + own + least), float(error.max())


def both(x, mean, std, **options):
    """The result of the first call and of the same again, which goes the short way."""
    first, again = (fastbn.standardize(x, mean, std, **options) for _ in range(2))
    assert first.dtype == again.dtype
    assert first.strides == again.strides
    assert first.tobytes() == again.tobytes()
    return again


# --- dtypes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", FLOATS)
@pytest.mark.parametrize("read", [*INTEGERS, *FLOATS])
def test_every_dtype(read, written, rng):
    x, dtype = drawn(rng, (3, 4, 71), read), dtype_of(written)
    unit = float(np.iinfo(read).max) if read in INTEGERS else 4.0
    mean, std = vectors(rng, 4, unit * 0.1)
    y = both(x, mean, std, scale=0.1, dtype=dtype)
    assert y.dtype == dtype
    check(y, x, mean, std, 0.1, 1)


@pytest.mark.parametrize("read", [*INTEGERS, *FLOATS])
@pytest.mark.parametrize("way", ["lines", "split", "anyhow"])
def test_every_dtype_is_read_each_way(way, read, rng):
    x = drawn(rng, (2, 5, 9, 3), read)
    mean, std = vectors(rng, 3, 100.0)
    options = {"axis": -1, "out_axis": {"lines": None, "split": 1, "anyhow": 0}[way]}
    if way == "anyhow":
        x = x[:, :, ::-1]
    y = both(x, mean, std, **options)
    check(y, x, mean, std, 1, 3, options["out_axis"])
    assert y.flags.c_contiguous


@pytest.mark.parametrize("written", [*INTEGERS, *FLOATS])
@pytest.mark.parametrize("read", ["float32", "float64", "float16", "bfloat16"])
def test_destandardize(read, written, rng):
    y, dtype = drawn(rng, (2, 3, 40), read), dtype_of(written)
    mean, std = vectors(rng, 3, 40.0)
    x = fastbn.destandardize(y, mean, std, scale=0.5, dtype=dtype)
    assert x.dtype == dtype
    check(x, y, mean, std, 0.5, 1, inverse=True)


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("out_axis", [None, 0])
def test_integers_come_back(name, out_axis, rng):
    ends = np.iinfo(name)
    x = np.resize(np.arange(ends.min, ends.max + 1), (120, 600, 3)).astype(name)
    scale = 1 / ends.max
    y = fastbn.standardize(x, MEAN, STD, scale=scale, axis=-1, out_axis=out_axis)
    axis = -1 if out_axis is None else out_axis
    back = fastbn.destandardize(y, MEAN, STD, scale=scale, axis=axis, out_axis=-1, dtype=name)
    assert back.dtype == name
    np.testing.assert_array_equal(back, x)


@pytest.mark.parametrize("read", ["float32", "float64"])
def test_integers_are_rounded_to_even_and_clipped(read):
    values = [-1e30, -0.5, 0.5, 1.5, 2.5, 254.5, 255.5, 1e30, -np.inf, np.inf]
    y = np.array(values * 4, read).reshape(4, -1)
    x = fastbn.destandardize(y, 0, 1, dtype=np.uint8)
    np.testing.assert_array_equal(x[0], [0, 0, 0, 2, 2, 254, 255, 255, 0, 255])
    assert np.all(x == x[0])
    low = fastbn.destandardize(-y, 0, 1, dtype=np.int8)
    np.testing.assert_array_equal(low[2], [127, 0, 0, -2, -2, -128, -128, -128, 127, -128])


def test_exact_where_the_terms_are(rng):
    """With powers of two nothing is rounded."""
    x = rng.integers(0, 256, (7, 11, 3), np.uint8)
    y = fastbn.standardize(x, 0.5, 0.25, scale=1 / 256, axis=-1, out_axis=0)
    np.testing.assert_array_equal(y, np.moveaxis((x / 256.0 - 0.5) / 0.25, -1, 0))


def test_float64_input_is_computed_in_float64(rng):
    x = 1e9 + rng.normal(size=(2, 300))
    y = fastbn.standardize(x, 1e9, 1.0, axis=0)
    np.testing.assert_array_equal(y, (x - 1e9).astype(np.float32))


# --- shapes and strides ---------------------------------------------------------------------------

LAYOUTS = {"NHWC": (-1, None), "NHWC to NCHW": (-1, 0), "NCHW": (0, None), "NCHW to NHWC": (0, -1)}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 17])
def test_odd_sizes(layout, channels, rng):
    axis, out_axis = LAYOUTS[layout]
    mean, std = vectors(rng, channels, 100.0)
    for pixels in [*range(1, 71), 257]:
        shape = (pixels, channels) if axis == -1 else (channels, pixels)
        x = drawn(rng, shape, "uint8")
        y = both(x, mean, std, scale=0.5, axis=axis, out_axis=out_axis)
        check(y, x, mean, std, 0.5, axis, out_axis)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("read", ["uint8", "float32"])
def test_long_rows(layout, read, rng):
    """With aligned stores, several tasks and lines."""
    axis, out_axis = LAYOUTS[layout]
    mean, std = vectors(rng, 3, 100.0)
    for pixels in (4099, 20001):
        shape = (pixels, 3) if axis == -1 else (3, pixels)
        x = drawn(rng, shape, read)
        y = both(x, mean, std, axis=axis, out_axis=out_axis)
        check(y, x, mean, std, 1, axis, out_axis)


@pytest.mark.parametrize("shape", [(50, 1), (40, 100), (9, 1001), (3, 5000), (7, 64), (2, 130, 66)])
def test_many_channels(shape, rng):
    for axis in range(len(shape)):
        mean, std = vectors(rng, shape[axis], 100.0)
        x = drawn(rng, shape, "uint8")
        for out_axis in (None, 0):
            y = both(x, mean, std, axis=axis, out_axis=out_axis)
            check(y, x, mean, std, 1, axis, out_axis)


#: Views of (2, 30, 40, 3).
VIEWS = {
    "whole": lambda new: new(2, 30, 40, 3),
    "cropped": lambda new: new(2, 40, 60, 3)[:, 5:35, 11:51],
    "flipped": lambda new: new(2, 30, 40, 3)[:, :, ::-1],
    "upside down": lambda new: new(2, 30, 40, 3)[:, ::-1],
    "BGR": lambda new: new(2, 30, 40, 3)[..., ::-1],
    "RGBA": lambda new: new(2, 30, 40, 4)[..., :3],
    "stepped": lambda new: new(2, 60, 80, 3)[:, ::2, ::2],
    "one sample again and again": lambda new: np.broadcast_to(new(1, 30, 40, 3), (2, 30, 40, 3)),
    "one pixel again and again": lambda new: np.broadcast_to(new(3), (2, 30, 40, 3)),
    "Fortran": lambda new: new(3, 40, 30, 2).T,
    "NCHW": lambda new: new(2, 3, 30, 40).transpose(0, 2, 3, 1),
    "cropped NCHW": lambda new: new(2, 5, 40, 50)[:, 1:4, 5:35, 10:].transpose(0, 2, 3, 1),
    "sideways": lambda new: new(2, 40, 30, 3).transpose(0, 2, 1, 3),
}


@pytest.mark.parametrize("order", ["=", "swapped", "unaligned"])
@pytest.mark.parametrize("out_axis", [None, 1, -1])
@pytest.mark.parametrize("view", VIEWS)
def test_views(view, out_axis, order, rng):
    def new(*shape):
        values = drawn(rng, shape, "int16")
        if order == "unaligned":
            memory = np.empty(values.nbytes + 1, np.uint8)[1:].view(np.int16).reshape(shape)
            memory[...] = values
            return memory
        return values.astype(values.dtype.newbyteorder("S")) if order == "swapped" else values

    x = VIEWS[view](new)
    mean, std = vectors(rng, 3, 10000.0)
    y = both(x, mean, std, scale=0.5, axis=-1, out_axis=out_axis)
    check(y, x, mean, std, 0.5, 3, out_axis)
    if out_axis is not None:
        assert y.flags.c_contiguous
    out = np.empty_like(y)[::-1]
    assert fastbn.standardize(x, mean, std, scale=0.5, axis=-1, out_axis=out_axis, out=out) is out
    np.testing.assert_array_equal(out, y)


def test_many_dimensions_go_in_pieces(rng, monkeypatch):
    monkeypatch.setattr("fastbn._call.pieces.PIECE", 100)
    x = drawn(rng, (2, 9, 9, 9, 9, 3), "uint8")[:, 1:8, 1:8, 1:8, 1:8]
    mean, std = vectors(rng, 3, 100.0)
    for out_axis in (None, 1):
        y = both(x, mean, std, axis=-1, out_axis=out_axis)
        check(y, x, mean, std, 1, 5, out_axis)
    swapped = x.astype(">i2")
    check(fastbn.standardize(swapped, mean, std, axis=-1), x, mean, std, 1, 5)


def test_structured_values_lie_between_others(rng):
    records = np.zeros((4, 50), [("flag", "u1"), ("value", "f4")])
    records["value"] = rng.normal(size=(4, 50))
    x = records["value"]
    check(fastbn.standardize(x, 0.5, 2.0), x, np.full(50, 0.5), np.full(50, 2.0), 1, 1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("turned", [False, True])
def test_in_place(dtype, axis, turned, rng):
    x = rng.normal(3, 2, (7, 300, 5)).astype(dtype)
    if turned:
        x = x[::-1, ::-2]
    mean, std = vectors(rng, x.shape[axis], 4.0)
    right = fastbn.standardize(x, mean, std, axis=axis, dtype=dtype)
    assert fastbn.standardize(x, mean, std, axis=axis, dtype=dtype, out=x) is x
    np.testing.assert_array_equal(x, right)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_past_the_caches(layout, rng, monkeypatch):
    """What large outputs do gives the same bits, also into an ``out`` that lies anywhere."""
    axis, out_axis = LAYOUTS[layout]
    shape = (47, 61, 3) if axis == -1 else (3, 47, 61)
    x, (mean, std) = drawn(rng, shape, "uint8"), vectors(rng, 3, 100.0)
    options = {"axis": axis, "out_axis": out_axis}
    right = fastbn.standardize(x, mean, std, **options)
    monkeypatch.setattr(standardize_plan.processor, "last_level_cache", lambda: 0)
    monkeypatch.setattr(standardize_plan, "PARALLEL_BYTES", 0)
    call._plans.clear()
    call._known.clear()
    try:
        for first in (0, 1, 5):
            memory = np.empty(right.size + first, np.float32)[first:].reshape(right.shape)
            fastbn.standardize(x, mean, std, out=memory, **options)
            np.testing.assert_array_equal(memory, right)
        tall = drawn(rng, (64, 48, 3), "uint8")  # its channels' rows are aligned alike
        y = fastbn.standardize(tall, mean, std, axis=-1, out_axis=0)
        check(y, tall, mean, std, 1, -1, 0)
    finally:
        call._plans.clear()
        call._known.clear()


def test_unaligned_out(rng):
    x, (mean, std) = drawn(rng, (3, 500), "uint8"), vectors(rng, 3, 100.0)
    memory = np.empty(4 * x.size + 1, np.uint8)[1:].view(np.float32).reshape(x.shape)
    for _ in range(2):
        memory[...] = 0
        assert fastbn.standardize(x, mean, std, axis=0, out=memory) is memory
        check(memory, x, mean, std, 1, 0)


def test_a_known_call_writes_into_any_out_of_its_kind(rng):
    x, (mean, std) = drawn(rng, (3, 500), "uint8"), vectors(rng, 3, 100.0)
    outs = [np.zeros((3, 500), np.float32) for _ in range(3)]
    for out in outs:
        assert fastbn.standardize(x, mean, std, axis=0, out=out) is out
        check(out, x, mean, std, 1, 0)
    for wrong in (np.zeros((500, 3), np.float32), np.zeros((3, 500))):
        with raises(ValueError, "out has"):
            fastbn.standardize(x, mean, std, axis=0, out=wrong)
    outs[0].flags.writeable = False
    with raises(ValueError, "out is read-only"):
        fastbn.standardize(x, mean, std, axis=0, out=outs[0])


@pytest.mark.compiled
def test_large_outputs_are_those_of_small_ones(rng):
    """More than what is taken from dropped memory."""
    image = drawn(rng, (300, 300, 3), "uint8")
    x = np.broadcast_to(image, (20, 300, 300, 3))
    for out_axis in (None, 1):
        y = fastbn.standardize(x, MEAN, STD, scale=1 / 255, axis=-1, out_axis=out_axis)
        one = fastbn.standardize(
            image, MEAN, STD, scale=1 / 255, axis=-1, out_axis=None if out_axis is None else 0
        )
        assert y.nbytes > call.REUSED
        assert not y.flags.owndata
        assert all(np.array_equal(each, one) for each in y)


@pytest.mark.compiled
def test_frames_take_the_memory_of_dropped_ones(rng):
    """Without an offer to the system as long as few of them wait."""
    if outputs._madvise() is None:
        pytest.skip("memory is reused on Linux alone")
    image = drawn(rng, (1000, 1000, 3), "uint8")
    address = {fastbn.standardize(image, 0, 1, axis=-1).ctypes.data for _ in range(3)}
    assert len(address) == 1
    held = [fastbn.standardize(image, 0, 1, axis=-1) for _ in range(9)]
    assert len({y.ctypes.data for y in held}) == 9
    del held
    waiting = [block.size for block in outputs._blocks.values() if block.warm]
    assert len(waiting) >= 2
    assert sum(waiting) <= outputs.WARM


@pytest.mark.compiled
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bits_do_not_depend_on_the_number_of_threads(layout, rng):
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("one processor has one thread")
    axis, out_axis = LAYOUTS[layout]
    shape = (701, 523, 3) if axis == -1 else (3, 701, 523)
    x, (mean, std) = drawn(rng, shape, "uint8"), vectors(rng, 3, 100.0)
    before, found = fastbn.get_num_threads(), []
    try:
        for threads in (1, 2):
            fastbn.set_num_threads(threads)
            found.append(fastbn.standardize(x, mean, std, axis=axis, out_axis=out_axis).tobytes())
    finally:
        fastbn.set_num_threads(before)
    assert found[0] == found[1]


def test_empty():
    for shape in ((0, 3), (2, 0), (0, 5, 3), (4, 0, 3)):
        x = np.empty(shape, np.uint8)
        y = fastbn.standardize(x, 0, 1, axis=-1, out_axis=0)
        assert y.shape == (shape[-1], *shape[:-1])
        assert y.dtype == np.float32
        assert fastbn.destandardize(y, 0, 1, axis=0, dtype=np.int8).dtype == np.int8


# --- extremes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1 / 255, 1 / 65535, 1.0, -2.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_mean_far_from_zero(scale, dtype, rng):
    mean, std = np.array([1e4, -1e4, 1.0]), np.array([1.0, 1.0, 1e-4])
    x = ((rng.normal(size=(3, 200)) * std[:, None] + mean[:, None]) / scale).astype(dtype)
    y = fastbn.standardize(x, mean, std, scale=scale, axis=0, dtype=dtype)
    check(y, x, mean, std, scale, 0)


def test_a_mean_that_float32_does_not_have(rng):
    """What is left of it when it is rounded goes into the shift."""
    x = np.full((2, 40), 16777216, np.float32)
    y = fastbn.standardize(x, 16777216.5, 1.0)
    np.testing.assert_array_equal(y, np.float32(-0.5))


@pytest.mark.parametrize(
    ("value", "mean", "std", "scale"),
    [(1e-40, 0.0, 1e-40, 1.0), (3e38, -3e38, 1e38, 1.0), (1e30, 0.0, 1e-5, 1e-36),
     (1e38, 1e38, 1e38, 1.0), (2.0, 1e-300, 1e-3, 1e-3), (3e38, 0.0, 1e300, 1e262)],
)  # fmt: skip
def test_what_float32_cannot_hold(value, mean, std, scale):
    x = np.full((2, 40), value, np.float32)
    y = fastbn.standardize(x, mean, std, scale=scale)
    each = np.full(40, mean), np.full(40, std)
    check(y, x, *each, scale, 1)


def test_not_finite_values_propagate():
    x = np.array([[np.nan, np.inf, -np.inf, 1.0]] * 20, np.float32)
    y = fastbn.standardize(x, 1.0, 2.0)
    np.testing.assert_array_equal(y, [[np.nan, np.inf, -np.inf, 0.0]] * 20)


# --- arguments ------------------------------------------------------------------------------------

X = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
VECTORS = {
    "tuple": (1.0, 2.0, 3.0), "list": [1, 2, 3], "float32": np.array([1, 2, 3], "f4"),
    "int64": np.array([1, 2, 3]), "strided": np.arange(1.0, 7.0, 1)[::2] * 0.5 + 0.5,
    "swapped": np.array([1.0, 2.0, 3.0], ">f8"),
}  # fmt: skip


@pytest.mark.parametrize("mean", VECTORS)
def test_what_mean_and_std_may_be(mean):
    given = VECTORS[mean]
    y = both(X, given, given, axis=-1)
    check(y, X, np.array(given, float), np.array(given, float), 1, 2)


@pytest.mark.parametrize("number", [3, 2.5, np.float32(0.5), np.array(2), np.array(1.5, ">f4")])
def test_one_number_for_all_channels(number):
    for axis in (0, 1, 2):
        y = both(X, number, number, axis=axis)
        each = np.full(X.shape[axis], float(number))
        check(y, X, each, each, 1, axis)


def test_numbers_that_cannot_be_hashed():
    mean = [np.array(1.0), np.array(2.0), 3.0]
    check(both(X, mean, 1, axis=-1), X, np.array([1.0, 2.0, 3.0]), np.ones(3), 1, 2)


def test_a_vector_that_changes_is_seen():
    mean = np.zeros(3)
    before = fastbn.standardize(X, mean, 1.0, axis=-1)
    mean[1] = 5
    after = fastbn.standardize(X, mean, 1.0, axis=-1)
    np.testing.assert_array_equal(before - after, np.broadcast_to([0, 5, 0], X.shape))


def test_zero_std():
    std = np.array([1.0, 0.0, 2.0])
    with raises(ValueError, "std is 0 in channel 1", "zero_std=1.0"):
        fastbn.standardize(X, 0, std, axis=-1)
    y = both(X, 1.0, std, axis=-1, zero_std=0.5)
    check(y, X, np.ones(3), np.array([1.0, 0.5, 2.0]), 1, 2)
    for wrong in (0, -1.0, np.nan, np.inf):
        with raises(ValueError, "zero_std"):
            fastbn.standardize(X, 0, std, axis=-1, zero_std=wrong)


F4 = np.zeros((2, 4, 3), np.float32)
ERRORS = [
    ({"x": [[1, 2]]}, TypeError, "x must be a numpy.ndarray"),
    ({"x": np.float32(3)}, TypeError, "x must be a numpy.ndarray"),
    ({"x": np.array(3.0)}, ValueError, "at least 2 dimensions"),
    ({"x": np.zeros(3, np.uint8)}, ValueError, "at least 2 dimensions"),
    ({"x": X.astype(bool)}, TypeError, "x must be uint8, int8, uint16, int16, float32"),
    ({"x": X.astype(bool)}, TypeError, "x.view(np.uint8)"),
    ({"x": X.astype(np.int32)}, TypeError, "x.astype(np.float64)"),
    ({"x": X.astype(complex)}, TypeError, "got dtype complex128"),
    ({"x": X.astype(object)}, TypeError, "got dtype object"),
    ({"x": np.ma.masked_less(X, 3)}, TypeError, "masked array"),
    ({"axis": 3}, ValueError, "axis 3 is out of bounds"),
    ({"axis": 1.0}, TypeError, "axis must be an integer"),
    ({"axis": None}, TypeError, "axis must be an integer"),
    ({"out_axis": -4}, ValueError, "out_axis -4 is out of bounds"),
    ({"out_axis": True}, TypeError, "out_axis must be an integer, got True"),
    ({"out_axis": "last"}, TypeError, "out_axis must be an integer, got 'last'"),
    ({"mean": (1, 2)}, ValueError, "mean has shape (2,), expected a number or shape (3,)"),
    ({"mean": np.zeros((1, 3, 1, 1))}, ValueError, "mean.reshape(-1)"),
    ({"axis": 1}, ValueError, "did you mean axis=-1?"),
    ({"mean": None}, TypeError, "mean must be a number, or 3 of them"),
    ({"mean": "0.5"}, TypeError, "mean must be a number"),
    ({"mean": (1, 2, 3j)}, TypeError, "mean must be a number"),
    ({"mean": [[1, 2], [3]]}, TypeError, "mean must be a number"),
    ({"mean": np.ma.ones(3)}, TypeError, "mean is a masked array"),
    ({"mean": (0, np.nan, 0)}, ValueError, "mean must be finite, got nan in channel 1"),
    ({"std": (1, 1, -2)}, ValueError, "std must be finite and more than 0, got -2.0 in channel 2"),
    ({"std": np.inf}, ValueError, "std must be finite and more than 0, got inf in channel 0, 1, 2"),
    ({"std": (np.nan, 1, 1)}, ValueError, "std must be finite and more than 0, got nan"),
    ({"std": 0}, ValueError, "std is 0 in channel 0, 1, 2"),
    ({"std": 5e-324}, ValueError, "scale / std is beyond the range of float64"),
    ({"std": 1e300, "scale": 1e-300}, ValueError, "scale / std is beyond"),
    ({"mean": 1e300, "scale": 1e-300, "std": 1e-300}, ValueError, "mean / scale is beyond"),
    ({"scale": 0}, ValueError, "scale must not be 0"),
    ({"scale": np.nan}, ValueError, "scale must be finite"),
    ({"scale": (1, 2, 3)}, TypeError, "scale must be a number"),
    ({"scale": None}, TypeError, "scale must be a number"),
    ({"scale": True}, TypeError, "scale must be a number"),
    ({"dtype": np.int32}, TypeError, "dtype must be float32, float64, float16 or bfloat16"),
    ({"dtype": "float99"}, TypeError, "got 'float99'"),
    ({"dtype": None}, TypeError, "dtype must be"),
    ({"out": np.zeros((2, 3, 4), "f4")}, ValueError, "out has shape (2, 3, 4), expected"),
    ({"out": np.zeros((2, 4, 3), "f4"), "out_axis": 1}, ValueError, "with its channels at"),
    ({"out": np.zeros((2, 4, 3))}, ValueError, "out has dtype float64, expected that of the arg"),
    ({"out": [1]}, TypeError, "out must be a numpy.ndarray"),
    ({"out": np.broadcast_to(np.float32(0), (2, 4, 3))}, ValueError, "out is read-only"),
    ({"channels_last": True}, TypeError, "no argument 'channels_last'; axis=-1 says"),
    ({"inplace": True}, TypeError, "no argument 'inplace'; out=x works in place"),
    ({"x": F4[:1], "out": F4[:1].view()[..., ::-1]}, ValueError, "out overlaps x"),
    ({"x": F4, "out": F4.reshape(2, 3, 4), "out_axis": 1}, ValueError, "out overlaps x"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "message"), ERRORS, ids=str)
def test_errors(change, error, message):
    given = {"x": X, "mean": MEAN, "std": STD, "axis": -1, **change}
    for _ in range(2):
        with raises(error, message):
            fastbn.standardize(given["x"], given["mean"], given["std"], **{
                k: v for k, v in given.items() if k not in ("x", "mean", "std")
            })  # fmt: skip


def test_errors_of_destandardize():
    y = np.zeros((2, 4, 3), np.float32)
    with raises(TypeError, "destandardize has no argument 'eps'"):
        fastbn.destandardize(y, 0, 1, eps=1e-5)
    with raises(TypeError, "y must be float32, float64, float16 or bfloat16"):
        fastbn.destandardize(X, 0, 1)
    with raises(TypeError, "dtype must be float32", "uint8"):
        fastbn.destandardize(y, 0, 1, dtype=np.int64)
    with raises(ValueError, "std is 0"):
        fastbn.destandardize(y, 0, 0)
    out = np.full((2, 4, 3), 7, np.uint8)
    fastbn.destandardize(y, 0, 1, dtype=np.uint8)
    y[1, 2, 0] = np.nan
    with raises(ValueError, "y holds 1 NaN", "np.nan_to_num(y)"):
        fastbn.destandardize(y, 0, 1, dtype=np.uint8)
    with raises(ValueError, "y holds 1 NaN"):
        fastbn.destandardize(y, 0, 1, dtype=np.uint8, out=out)
    assert np.all(out == 7)
    assert np.isnan(fastbn.destandardize(y, 0, 1)[1, 2, 0])
    with raises(ValueError, "std / scale is beyond"):
        fastbn.destandardize(y, 0, 1e-300, scale=1e300)


def test_calls_of_different_arguments_are_told_apart(rng):
    """The short way finds a call by its arguments; here one differs at a time."""
    x = drawn(rng, (6, 6), "uint8")
    base = {"mean": 3.0, "std": 2.0, "scale": 0.5, "axis": 0, "dtype": np.float32}
    changes = [{}, {"mean": 4.0}, {"std": 3.0}, {"scale": 0.25}, {"axis": 1},
               {"dtype": np.float64}, {"mean": tuple(range(6))}, {"std": tuple(range(1, 7))},
               {"mean": tuple(range(6)), "axis": 1}, {"out_axis": 1}]  # fmt: skip
    for _ in range(2):
        for change in changes:
            given = base | change
            mean, std = given.pop("mean"), given.pop("std")
            y = fastbn.standardize(x, mean, std, **given)
            each = (np.broadcast_to(np.asarray(v, float), 6) for v in (mean, std))
            assert y.dtype == given["dtype"]
            check(y, x, *each, given["scale"], given["axis"], given.get("out_axis"))


def test_the_caches_have_ends(rng, monkeypatch):
    monkeypatch.setattr(call, "KEPT", 3)
    monkeypatch.setattr(call, "KEPT_CALLS", 3)
    monkeypatch.setattr(standardize_plan, "TABLES", 2)
    for n in range(1, 9):
        x = drawn(rng, (n, 2), "uint8")
        for mean in (1.0, 2.0, 3.0, [[1.0, 2.0]][0]):
            check(both(x, mean, 1.0), x, np.broadcast_to(mean, 2), np.ones(2), 1, 1)
    assert len(call._known) <= 3
    assert len(call._plans) <= 3


def test_warmup_mode():
    fastbn.warmup(["float32"], ["channels_last"], ["standardize"], progress=False)


def test_float16_without_the_instruction(monkeypatch):
    monkeypatch.setattr(standardize_plan, "CONVERTS_FLOAT16", False)
    for x, dtype in ((np.zeros((2, 61), np.float16), "f4"), (np.zeros((2, 61), "f4"), "f2")):
        with raises(NotImplementedError, "float16 needs a processor with F16C"):
            fastbn.standardize(x, 0, 1.25, dtype=dtype)


# --- short way ------------------------------------------------------------------------------------


class Changing:
    """Numbers of another library, which hash by their identity and can change in place."""

    def __init__(self, values):
        self.values = np.array(values, np.float64)

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype)


@pytest.mark.parametrize("name", ["mean", "std", "scale"])
def test_numbers_that_change_in_place_are_read_again(name):
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    values = {"mean": [0.0, 0.0], "std": [1.0, 1.0], "scale": 1.0}
    values[name] = changing = Changing(values[name])
    for number in (2.0, 4.0):
        changing.values[...] = number
        mean, std, scale = (np.asarray(values[key]) for key in ("mean", "std", "scale"))
        np.testing.assert_allclose(fastbn.standardize(x, **values), (x * scale - mean) / std)
