"""Arrays that few libraries are tested with: right, or an error that says what to do."""

import resource
import subprocess
import sys

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import fastbn
from fastbn import batch_norm, batch_norm_backward, batch_norm_forward, channel_stats
from tests import reference

C = 5
SHAPE = (7, C, 6)


@pytest.fixture
def values(rng):
    return rng.normal(3, 2, SHAPE).astype(np.float32)


def unaligned(values):
    raw = np.empty(values.nbytes + 1, np.uint8)[1:]
    view = raw.view(values.dtype).reshape(values.shape)
    view[...] = values
    return view


def field(values):
    record = np.recarray(values.shape, dtype=[("flag", "i1"), ("x", values.dtype), ("n", "i2")])
    record.x = values
    return record.x


def memory_map(values, tmp_path):
    mapped = np.memmap(tmp_path / "x.bin", values.dtype, "w+", shape=values.shape)
    mapped[...] = values
    return mapped


class Named(np.ndarray):
    """A subclass that would change arithmetic if it were let into it."""

    def __array_ufunc__(self, *args, **kwargs):
        raise AssertionError("a subclass took part in the arithmetic")


ODD = {
    "big-endian": lambda v, _: v.astype(">f4"),
    "unaligned": lambda v, _: unaligned(v),
    "unaligned big-endian": lambda v, _: unaligned(v.astype(">f4")),
    "negative strides": lambda v, _: np.flip(np.flip(v).copy()),
    "one negative stride": lambda v, _: v[:, ::-1].copy()[:, ::-1],
    "Fortran order": lambda v, _: np.asfortranarray(v),
    "every second": lambda v, _: np.repeat(v, 2, 2)[..., ::2],
    "memmap": memory_map,
    "record field": lambda v, _: field(v),
    "subclass": lambda v, _: v.view(Named),
    "read-only": lambda v, _: np.frombuffer(v.tobytes(), v.dtype).reshape(v.shape),
    "real part": lambda v, _: np.stack([v, v * np.nan], -1).view(np.complex64)[..., 0].real,
}


def check(x, plain, axis=1):
    """Evaluation to the bit, the rest to rounding, against a plain copy and the reference."""
    c = plain.shape[axis]
    mean, var = np.linspace(-1, 1, c, dtype=np.float32), np.linspace(1, 2, c, dtype=np.float32)
    before = x.tobytes()
    y = batch_norm(x, mean, var, axis=axis)
    assert type(y) is np.ndarray
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, batch_norm(plain, mean, var, axis=axis))
    y, cache = batch_norm_forward(x, training=True, axis=axis)
    ones, zeros = np.ones(c), np.zeros(c)
    wanted, mean, var = reference.forward(plain, ones, zeros, 1e-5, axis)
    np.testing.assert_allclose(y, wanted.astype(float), rtol=1e-5, atol=1e-5)
    stats = channel_stats(x, axis)
    np.testing.assert_allclose(stats.mean, mean.astype(float), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(stats.var(), var.astype(float), rtol=1e-5)
    grads = batch_norm_backward(x, cache)
    wanted = reference.backward(plain, plain, mean, var, ones, 1e-5, axis, batch_statistics=True)
    # a difference of terms as large as 1 / std makes them
    terms = float(np.abs(plain).max() / np.sqrt(var.min() + 1e-5))
    np.testing.assert_allclose(grads.x, wanted[0].astype(float), rtol=1e-5, atol=1e-6 * terms)
    assert x.tobytes() == before


@pytest.mark.parametrize("odd", ODD)
def test_odd_memory(odd, values, tmp_path):
    check(ODD[odd](values, tmp_path), values)


@pytest.mark.parametrize("broadcast", [(0,), (2,), (0, 2), (1,), (0, 1, 2)])
def test_zero_strides(broadcast, values):
    index = tuple(slice(0, 1) if k in broadcast else slice(None) for k in range(3))
    x = np.broadcast_to(values[index], SHAPE)
    check(x, x.copy())


def test_windows_that_overlap(rng):
    """Reading them is fine."""
    image = rng.normal(size=(12, 14)).astype(np.float32)
    x = np.lib.stride_tricks.sliding_window_view(image, (6, 5))
    check(x, x.copy(), axis=1)


def test_a_matrix(values):
    plain = np.ascontiguousarray(values[:, :, 0])
    with pytest.warns(PendingDeprecationWarning):
        x = np.matrix(plain)
    y, cache = batch_norm_forward(x, training=True)
    assert type(y) is np.ndarray
    np.testing.assert_array_equal(y, batch_norm(plain, training=True))
    np.testing.assert_array_equal(
        batch_norm_backward(x, cache).x,
        batch_norm_backward(plain, batch_norm_forward(plain, training=True)[1]).x,
    )
    with pytest.raises(ValueError, match=r"weight has shape \(1, 5\)"):
        batch_norm(plain, weight=x[:1], training=True)


@pytest.mark.parametrize("kind", ["memmap", "subclass"])
def test_out_of_a_subclass_is_returned_and_still_differentiable(kind, values, tmp_path):
    """The forward did not write over x, whatever the type of out."""
    out = ODD[kind](np.zeros_like(values), tmp_path)
    y, cache = batch_norm_forward(values, training=True, out=out)
    assert y is out
    grads = batch_norm_backward(values, cache, out=out)
    assert grads.x is out
    _, other = batch_norm_forward(values, training=True)
    np.testing.assert_array_equal(np.asarray(out), batch_norm_backward(values, other).x)


def test_out_beside_x_in_one_buffer_leaves_it_differentiable(values):
    """Memory that interleaves without a common element is not overlap."""
    both = np.concatenate([values, values * 0], axis=1)
    x, out = both[:, :C], both[:, C:]
    _, cache = batch_norm_forward(x, training=True, out=out)
    np.testing.assert_allclose(
        batch_norm_backward(values, cache).x,
        batch_norm_backward(values, batch_norm_forward(values, training=True)[1]).x,
        atol=1e-5,
    )


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (0, 3, 4), (2, 0, 4), (2, 3, 0),
                                   (1, 0), (2, 3, 0, 4), (0, 1, 1), (1, 3, 0)])  # fmt: skip
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fresh_out", [True, False])
def test_empty_arrays(shape, training, fresh_out):
    for axis in range(len(shape)):
        c = shape[axis]
        mean, var = np.full(c, 2.0), np.full(c, 3.0)
        x = np.empty(shape)
        out = np.empty_like(x) if fresh_out else None
        y, cache = batch_norm_forward(
            x, mean, var, np.ones(c), np.ones(c), training, axis=axis, out=out
        )
        assert y.shape == shape
        assert out is None or y is out
        np.testing.assert_array_equal(mean, 2)
        np.testing.assert_array_equal(var, 3)
        grads = batch_norm_backward(x, cache, out=out)
        assert grads.x.shape == shape
        np.testing.assert_array_equal(grads.weight, np.zeros(c))
        np.testing.assert_array_equal(grads.bias, np.zeros(c))
        stats = channel_stats(x, axis)
        np.testing.assert_array_equal((stats.count, stats.mean, stats.m2), np.zeros((3, c)))


@pytest.mark.parametrize("shape", [(2**40, 3, 0), (0, 2**40), (2**40, 0), (3, 2**40, 0)])
def test_huge_dimensions_with_a_zero_one(shape):
    """There is nothing to do, and nothing of the size of a dimension may be made."""
    x = np.broadcast_to(np.empty(tuple(min(n, 1) for n in shape), np.float32), shape)
    axis = int(np.argmin(np.where(np.array(shape) == 0, 9, shape)))
    c = shape[axis]
    if c < 2**20:
        assert batch_norm(x, training=True, axis=axis).shape == shape
        assert channel_stats(x, axis).count.shape == (c,)
    big = int(np.argmax(shape))
    with pytest.raises((MemoryError, ValueError)):
        channel_stats(x, big)


HUGE = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
import numpy as np, fastbn
x = np.broadcast_to(np.float32(3.5), {shape})
stats = None
try:
    stats = fastbn.channel_stats(x, {axis})
except MemoryError:
    print("MemoryError")
if stats is not None:
    assert (stats.mean == 3.5).all() and not stats.m2.any()
    assert (stats.count == x.size // x.shape[{axis}]).all()
    print("right")
for call in (lambda: fastbn.batch_norm(x, axis={axis}),
             lambda: fastbn.batch_norm(x, training=True, axis={axis})):
    try:
        call()
    except MemoryError:
        continue
    raise SystemExit("terabytes were found")
"""


@pytest.mark.compiled
@pytest.mark.parametrize(
    ("shape", "axis", "answer"),
    [
        ((2**40, 3), 1, "right"),
        ((3, 2**40), 0, "right"),
        ((2**20, 3, 2**20), 1, "right"),
        ((3, 2**40), 1, "MemoryError"),
    ],
)
def test_a_number_repeated_a_trillion_times(shape, axis, answer):
    """In a process of its own: to try it element by element would take days."""
    code = HUGE.format(shape=shape, axis=axis)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [answer]


class Claims:
    """Has an array interface, and must not be trusted for it."""

    def __init__(self):
        self.__array_interface__ = np.zeros((4, 3), np.float32).__array_interface__


class Refuses:
    """Offers NumPy its values, and then does not give them."""

    shape, ndim, dtype = (4, 3), 2, np.dtype(np.float32)

    def __array__(self, *args, **kwargs):
        raise RuntimeError("not these")


class Frame:
    """Like a data frame or a tensor: values, shape, dtype and numpy()."""

    shape, ndim, dtype = (4, 3), 2, np.dtype(np.float32)

    def numpy(self):
        raise AssertionError("a foreign object was converted")


FOREIGN = {
    "list": [[1.0, 2.0, 3.0]] * 4, "tuple": ((1.0, 2.0, 3.0),) * 4, "claims": Claims(),
    "refuses": Refuses(), "frame": Frame(), "memoryview": memoryview(np.zeros((4, 3))),
    "bytes": bytes(96), "scalar": np.float32(3), "type": np.ndarray,
}  # fmt: skip


@pytest.mark.parametrize("foreign", FOREIGN)
def test_what_is_not_an_array_is_refused_and_not_converted(foreign):
    value = FOREIGN[foreign]
    x = np.ones((4, 3), np.float32)
    _, cache = batch_norm_forward(x, training=True)
    for name, call in {
        "x": lambda: batch_norm(value, training=True),
        "weight": lambda: batch_norm(x, weight=value, training=True),
        "running_mean": lambda: batch_norm(x, value, np.ones(3)),
        "out": lambda: batch_norm(x, training=True, out=value),
        "dy": lambda: batch_norm_backward(value, cache),
    }.items():
        with pytest.raises(TypeError, match=rf"{name} must be a numpy\.ndarray"):
            call()
    with pytest.raises(TypeError, match=r"x must be a numpy\.ndarray"):
        channel_stats(value)
    with pytest.raises(TypeError, match=r"x must be a numpy\.ndarray"):
        fastbn.BatchNorm1d(3)(value)


@pytest.mark.parametrize("dtype", [np.longdouble, ">g"])
def test_other_widths_are_refused(dtype):
    x = np.ones((4, 3), dtype)
    fine = np.ones((4, 3), np.float32)
    for call in (
        lambda: batch_norm(x, training=True),
        lambda: batch_norm(fine, weight=x[0], training=True),
        lambda: channel_stats(x),
        lambda: fastbn.BatchNorm1d(3)(x),
    ):
        with pytest.raises(TypeError, match=r"must be float32, float64, float16 or bfloat16"):
            call()


# --- what must not be written to --------------------------------------------------------------


@pytest.mark.parametrize("strides", [(4, 4, 4), (8, 8, 4), (20, 4, 4), (-4, 4, 8)])
def test_an_out_whose_elements_overlap_is_refused(strides, values):
    """No stride is zero, and still elements share memory: the result would be silently wrong."""
    x = np.ascontiguousarray(values[:4, :3, :2])
    flat = np.full(200, 7, np.float32)
    out = as_strided(flat[100:], x.shape, strides)
    with pytest.raises(ValueError, match="share memory"):
        batch_norm(x, training=True, out=out)
    assert (flat == 7).all()


@pytest.mark.parametrize("view", [
    lambda b: b[..., :6], lambda b: b[::-1, :, ::2], lambda b: b[1:5, :, 3:9], lambda b: b.T,
    lambda b: b.transpose(1, 2, 0)[:, ::3], lambda b: b[:1], lambda b: b[:, :, :1],
])  # fmt: skip
def test_an_out_that_slicing_has_made_is_taken(view, rng):
    out = view(np.zeros((7, C, 12), np.float32))
    x = rng.normal(size=out.shape).astype(np.float32)
    assert batch_norm(x, training=True, out=out) is out
    np.testing.assert_allclose(out, batch_norm(x, training=True), atol=1e-5)


def test_running_statistics_must_not_share_memory(values):
    """Training writes to them one after the other."""
    one = np.ones(C, np.float32)
    both = np.ones(2 * C, np.float32)
    x = values.copy()
    repeated = as_strided(np.ones(1, np.float32), (C,), (0,))
    for mean, var, weight in (
        (one, one, None),
        (both[:C], both[C - 1 : -1], None),
        (one, one.copy(), one),
        (x[0, :, 0], one, None),
        (repeated, one, None),
    ):
        with pytest.raises(ValueError, match="memory"):
            batch_norm(x, mean, var, weight, training=True)
        np.testing.assert_array_equal(x, values)
        np.testing.assert_array_equal(both, 1)
    # evaluation writes to none of them
    assert batch_norm(values, one, one, one, one).shape == SHAPE


# --- more than 2**31 elements -----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.compiled
@pytest.mark.parametrize("layout", ["one row", "(N, C)"])
def test_more_than_two_to_the_31_elements(layout, capsys):
    """8.6 GB; every index must be 64 bits wide. Evaluation in place, and statistics."""
    n = 2**31 + 5
    if layout == "one row":
        x, axis = np.zeros((1, 1, n), np.float32), 1
    else:
        x, axis = np.zeros((n // 3 + 1, 3), np.float32), 1
    flat = x.reshape(-1)
    marks = np.array([0, 1, 2**31 - 1, 2**31, 2**31 + 1, flat.size - 1])
    flat[marks] = np.arange(1, 7) * 1000
    c, m = x.shape[axis], x.size // x.shape[axis]
    stats = channel_stats(x, axis)
    channel = marks % c
    mean = np.bincount(channel, flat[marks].astype(float), c) / m
    square = np.bincount(channel, flat[marks].astype(float) ** 2, c)
    np.testing.assert_array_equal(stats.count, m)
    np.testing.assert_allclose(stats.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(stats.m2, square - m * mean**2, rtol=1e-5)
    y = batch_norm(
        x, np.full(c, 1, np.float32), np.full(c, 4 - 1e-5, np.float32),
        np.full(c, 2, np.float32), np.full(c, 3, np.float32), axis=axis, out=x,
    )  # fmt: skip
    assert y is x
    np.testing.assert_allclose(flat[marks], np.arange(1, 7) * 1000 + 2, rtol=1e-6)
    flat[marks] = 2
    for start in range(0, flat.size, 2**28):
        part = flat[start : start + 2**28]
        assert part.min() == part.max() == 2
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    with capsys.disabled():
        print(f" [{layout}: {flat.size} elements, peak memory {peak:.1f} GiB]", end="")
