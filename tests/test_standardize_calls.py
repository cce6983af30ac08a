"""What calls of `standardize` have been asked before, overlap, and hold must not change numbers."""

import fractions
import functools
import tracemalloc

import numpy as np
import pytest

import fastbn
from fastbn._call import standardize as call
from tests import reference
from tests.test_errors import raises


def as_is(x, *given, **options):
    """The outcome of a call that nothing is known of: the bits, or the error."""
    try:
        return fastbn.standardize(x, *given, **options).tobytes()
    except (TypeError, ValueError) as error:
        return str(error)


# --- overlap --------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [fastbn.standardize, fastbn.destandardize])
@pytest.mark.parametrize(("shape", "axis", "out_axis"), [((5, 5), 0, 1), ((4, 4, 4), 1, -1)])
def test_channels_do_not_move_in_place(function, shape, axis, out_axis, rng):
    x = rng.normal(size=shape).astype(np.float32)
    mean, std, before = np.arange(shape[axis]), np.arange(shape[axis]) + 1.0, x.copy()
    with raises(ValueError, "out overlaps"):
        function(x, mean, std, axis=axis, out_axis=out_axis, out=x)
    np.testing.assert_array_equal(x, before)
    right = function(x, mean, std, axis=axis, out_axis=out_axis)
    moved = np.moveaxis(x, axis, out_axis)  # each value to where it lies
    assert function(x, mean, std, axis=axis, out_axis=out_axis, out=moved) is moved
    np.testing.assert_array_equal(moved, right)
    x[...] = before
    assert function(x, mean, std, axis=axis, out_axis=axis, out=x) is x


# --- calls that are known -------------------------------------------------------------------------

ODD = [True, False, 3 + 0j, 1 + 0j, fractions.Fraction(3), np.True_, 2**70, 2.0**70, "1",
       np.float32(1), 1, 1.0, np.longdouble(1), memoryview(bytearray(b"\x01\x02")),
       memoryview(np.arange(1.0, 3.0)), (True, 1), [1, 3 + 0j], (1, 1.0), b"1", None]  # fmt: skip


@pytest.mark.parametrize("name", ["mean", "std", "scale", "zero_std"])
def test_numbers_of_any_type_go_one_way_whatever_was_called_before(name):
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    outcomes = []
    for values in (ODD, ODD[::-1], ODD):
        call._known.clear()
        given = {"mean": 0.0, "std": 1.0, "scale": 1.0, "zero_std": None}
        found = {}
        for k, value in enumerate(values):
            found[repr(value), k if values is ODD else len(ODD) - 1 - k] = as_is(
                x, **{**given, name: value}
            )
        outcomes.append(found)
    assert outcomes[0] == outcomes[1] == outcomes[2]


def test_a_dtype_of_another_type_is_looked_at():
    x = np.ones((3, 2), np.float32)
    right = [as_is(x, 0, 1, dtype=one) for one in (np.float32(1), np.float64(1))]
    call._known.clear()
    assert [as_is(x, 0, 1, dtype=one) for one in (np.float32(1), np.float64(1))] == right


@pytest.mark.parametrize("size", [60_000, ()])
@pytest.mark.compiled
def test_many_channels_hold_no_memory(size, rng):
    channels = 60_000
    x = rng.normal(size=(2, channels)).astype(np.float32)
    std = np.ones(channels) if size else 1.0

    def held(calls):
        for _ in range(calls):
            mean = rng.normal(size=size)
            y = fastbn.standardize(x, mean, std)
        np.testing.assert_allclose(y, x - mean, rtol=1e-5, atol=1e-5)
        return tracemalloc.get_traced_memory()[0]  # of NumPy's arrays too

    tracemalloc.start()
    try:
        before = held(2)
        grown = held(18) - before
    finally:
        tracemalloc.stop()
    assert abs(grown) < 1_000_000, f"{grown} bytes of 18 calls"


# --- range ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "mean", "std"), [(3.4e38, -9e36, 10.0), (-3.4e38, 2e31, 2.0), (3.4e38, -1e33, 1e4)]
)
def test_values_at_the_end_of_float32_less_a_mean(value, mean, std):
    x = np.full((2, 3), value, np.float32)
    right = (np.float64(x[0, 0]) - mean) / std
    np.testing.assert_allclose(fastbn.standardize(x, mean, std), right, rtol=3e-7)


def test_products_at_the_end_of_float32_and_a_mean():
    y = np.full((2, 3), 3.4e38, np.float32)
    right = np.float64(y[0, 0]) * 1.01 - 1e37
    np.testing.assert_allclose(fastbn.destandardize(y, -1e37, 1.01), right, rtol=3e-7)


@pytest.mark.parametrize("std", [1.0, 1e-30, 1e30])
@pytest.mark.parametrize("mean", [1e-42, 1e-300, 1e30])
def test_errors_of_numpy_that_are_raised_do_not_count(mean, std):
    x = np.ones((4, 3), np.float32)
    right = fastbn.standardize(x, mean, std), fastbn.destandardize(x, mean, std)
    call._known.clear()
    call._plans.clear()
    with np.errstate(all="raise"):
        np.testing.assert_array_equal(fastbn.standardize(x, mean, std), right[0])
        np.testing.assert_array_equal(fastbn.destandardize(x, mean, std), right[1])


# --- other libraries ------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [fastbn.standardize, fastbn.destandardize])
@pytest.mark.parametrize("channels", [3, 1])
def test_blocks_of_dask(function, channels, rng):
    array = pytest.importorskip("dask.array", reason="another library's arrays")
    x = rng.normal(size=(8, channels, 6)).astype(np.float32)
    mean, std = np.linspace(1, 2, channels), np.linspace(2, 3, channels)
    blocks = array.from_array(x, chunks=(4, channels, 3))
    y = blocks.map_blocks(function, mean, std)
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y.compute(), function(x, mean, std))
    with raises(ValueError, "mean has shape (5,)"):  # that of a block is still seen
        blocks.map_blocks(function, np.ones(5), std).compute()


@pytest.mark.parametrize("shape", [(0, 0, 4), (5, 0)])
def test_no_channels_take_any_number_of_them(shape):
    y = fastbn.standardize(np.empty(shape, np.uint8), np.ones(3), np.ones(3), dtype=np.float64)
    assert (y.shape, y.dtype) == (shape, np.float64)
    with raises(TypeError, "mean must be a number"):
        fastbn.standardize(np.empty(shape, np.uint8), "0", 1)


@pytest.mark.parametrize("name", ["mean", "std"])
def test_vectors_of_other_libraries(name, rng):
    array = pytest.importorskip("dask.array", reason="another library's arrays")
    torch = pytest.importorskip("torch", reason="another library's arrays")
    x = rng.normal(size=(4, 3)).astype(np.float32)
    given = {"mean": np.ones(3), "std": np.full(3, 2.0)}
    right = fastbn.standardize(x, **given)
    tensor = torch.from_numpy(given[name].copy())
    np.testing.assert_array_equal(fastbn.standardize(x, **{**given, name: tensor}), right)
    half = tensor.to(torch.bfloat16)
    np.testing.assert_array_equal(fastbn.standardize(x, **{**given, name: half}), right)
    with raises(TypeError, f"{name} must be a numpy.ndarray", f"{name}.compute()"):
        fastbn.standardize(x, **{**given, name: array.from_array(given[name])})
    with raises(TypeError, f"{name} requires grad", f"{name}.detach()"):
        fastbn.standardize(x, **{**given, name: tensor.requires_grad_()})


def test_the_formula_far_from_zero(rng):
    """Beside long double, where float32 must not be computed in."""
    x = (rng.normal(size=(4, 50)) * 1e33 + 1e34).astype(np.float32)
    mean, std = np.full(4, 1e34), np.full(4, 1e33)
    right, _ = reference.standardize(x, mean, std, 1.0, 0)
    np.testing.assert_allclose(
        fastbn.standardize(x, mean, std, axis=0), right.astype(np.float64), rtol=3e-7, atol=1e-7
    )


def test_dask_keeps_dtype_for_itself(rng):
    array = pytest.importorskip("dask.array", reason="another library's arrays")
    x = rng.normal(size=(8, 3)).astype(np.float32)
    half = functools.partial(fastbn.standardize, dtype="float16")
    y = array.from_array(x, chunks=(4, 3)).map_blocks(half, np.ones(3), np.ones(3))
    assert y.dtype == y.compute().dtype == np.float16
