"""Activations, their gradients, and the exponentials that they are made of.

Each formula on Python floats, on arrays, on compiled float64 scalars and on SIMD vectors; on
scalars of a simulated device where there is one.
"""

from decimal import Decimal, localcontext

import numpy as np
import pytest
from numba import config

import fastbn
from tests import internals_formulas as internals
from tests import reference

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

SLOPE = 0.125
NAMES = list(reference.ACTIVATIONS)
DTYPES = [np.dtype("f4"), np.dtype("f8")]
each_name = pytest.mark.parametrize("name", NAMES)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
SAMPLES = 20_000


def value_of(name):
    return internals.ACTIVATIONS[name].value


def gradient_of(name):
    return internals.ACTIVATIONS[name].gradient


def parameters_of(name):
    """Numbers that an activation takes besides z."""
    return (SLOPE,) * internals.ACTIVATIONS[name].parameters


def right(name, z, derivative=False):
    function = reference.ACTIVATIONS[name][derivative]
    return function(np.asarray(z, np.longdouble), *parameters_of(name))


def on_vectors(formula, *arrays):
    """Arrays or numbers that are the same in every lane."""
    arrays = np.broadcast_arrays(*arrays)
    return internals.on_vectors(formula, *(np.array(a, arrays[0].dtype).ravel() for a in arrays))


def on_scalars(formula, *arrays):
    function = internals.on_scalars(formula)
    return np.array([function(*map(float, v)) for v in np.broadcast(*arrays)])


def on_floats(formula, *arrays):
    return np.array([float(formula(*map(float, v))) for v in np.broadcast(*arrays)])


def on_arrays(formula, *arrays):
    return formula(*arrays)


WAYS = {
    "vectors": on_vectors,
    "compiled scalars": on_scalars,
    "floats": on_floats,
    "arrays": on_arrays,
}
each_way = pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))


def ordinary(dtype, rng, size=SAMPLES):
    """Numbers at which activations bend, many of them near zero, and all kinks."""
    return np.concatenate([
        rng.uniform(-12, 12, size), rng.normal(0, 1e-3, size // 4),
        [-6.0, -3.0, -0.0, 0.0, 3.0, 6.0],
    ]).astype(dtype)  # fmt: skip


def ordinary_for(way, dtype, rng):
    """Fewer where each is worked out by itself, in float64 then."""
    if way in (on_vectors, on_arrays):
        return ordinary(dtype, rng)
    return ordinary(dtype, rng, 200).astype("f8")


def any_bits(dtype, rng, size=SAMPLES):
    """Numbers of every exponent, subnormal ones among them."""
    values = rng.integers(0, 256, size * dtype.itemsize, np.uint8).view(dtype)
    return values[np.isfinite(values)]


def eps_of(array):
    return np.finfo(array.dtype).eps


def assert_close(found, wanted, relative, absolute=0.0):
    """Both NaN, infinite or as near as said; one unit off where numbers are subnormal."""
    found = np.asarray(found)
    info = np.finfo(found.dtype)
    rounded = np.asarray(wanted).astype(found.dtype)
    finite = np.isfinite(rounded)
    np.testing.assert_array_equal(found[~finite], rounded[~finite])
    wanted = wanted[finite]
    error = abs(found[finite].astype(np.longdouble) - wanted)
    allowed = np.maximum(relative * abs(wanted) + absolute, info.smallest_subnormal)
    worst = (error / allowed).argmax()
    assert error[worst] <= allowed[worst], (found[finite][worst], wanted[worst], worst)


# --- activations ----------------------------------------------------------------------------------


@each_dtype
@each_way
@each_name
def test_an_activation_is_the_textbook_one(name, way, dtype, rng):
    z = ordinary_for(way, dtype, rng)
    found = way(value_of(name), z, *parameters_of(name))
    assert_close(found, right(name, z), 3 * eps_of(found), 0.7 * eps_of(found))


@each_dtype
@each_way
@each_name
def test_a_gradient_is_that_of_the_textbook(name, way, dtype, rng):
    z = ordinary_for(way, dtype, rng)
    dy = rng.normal(0, 2, z.size).astype(z.dtype)
    found = way(gradient_of(name), dy, z, *parameters_of(name))
    wanted = dy * right(name, z, derivative=True)
    assert_close(found, wanted, 4 * eps_of(found), 1.5 * eps_of(found) * abs(dy).max())


@each_name
def test_a_gradient_is_that_of_finite_differences(name, rng):
    z = rng.uniform(-5, 5, 300)
    z = z[(abs(z) > 1e-3) & (abs(abs(z) - 3) > 1e-3)]
    dy = rng.normal(0, 1, z.size)

    def loss(values):
        return (dy * value_of(name)(values, *parameters_of(name))).sum()

    found = gradient_of(name)(dy, z, *parameters_of(name))
    wanted = reference.numerical_gradient(loss, z)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-7)


@each_dtype
@pytest.mark.parametrize("name", ["sigmoid", "tanh", "silu"])
def test_no_digit_is_lost_where_a_result_is_almost_zero(name, dtype, rng):
    """Relative errors, of results down to the smallest numbers that are not subnormal."""
    z = any_bits(dtype, rng)
    least = -87 if dtype == "f4" else -708
    z = np.concatenate([z, rng.uniform(least, -least, SAMPLES).astype(dtype)])
    z = z[z > least] if name == "silu" else z
    assert_close(on_vectors(value_of(name), z), right(name, z), 3 * eps_of(z))
    if name != "silu":  # whose derivative changes its sign
        found, wanted = on_vectors(gradient_of(name), np.ones_like(z), z), right(name, z, True)
        normal = (wanted == 0) | (abs(wanted) > np.finfo(dtype).tiny)
        assert_close(found[normal], wanted[normal], 4 * eps_of(z))


# --- special values -------------------------------------------------------------------------------

INF, NAN, HUGE = np.inf, np.nan, 3e38
#: Of torch 2.13, but for what the comments say: at -inf, -HUGE, -0.0, 0.0, HUGE, inf, NaN.
AT = [-INF, -HUGE, -0.0, 0.0, HUGE, INF, NAN]
VALUES = {
    "relu": [0, 0, -0.0, 0, HUGE, INF, NAN],
    "relu6": [0, 0, -0.0, 0, 6, 6, NAN],
    "leaky_relu": [-INF, -HUGE * SLOPE, -0.0, 0, HUGE, INF, NAN],
    "hardswish": [NAN, -0.0, -0.0, 0, HUGE, INF, NAN],  # torch: HUGE to infinity in float32
    "silu": [NAN, -0.0, -0.0, 0, HUGE, INF, NAN],
    "sigmoid": [0, 0, 0.5, 0.5, 1, 1, NAN],
    "tanh": [-1, -1, -0.0, 0, 1, 1, NAN],
    "gelu_tanh": [NAN, -0.0, -0.0, 0, HUGE, INF, NAN],
}
GRADIENTS = {
    "relu": [0, 0, 0, 0, 1, 1, 1],
    "relu6": [0, 0, 0, 0, 0, 0, 1],  # torch: NaN to 0 or 1, as it is read
    "leaky_relu": [SLOPE, SLOPE, SLOPE, SLOPE, 1, 1, SLOPE],
    "hardswish": [0, 0, 0.5, 0.5, 1, 1, NAN],  # torch: NaN to 1 or NaN, as it is read
    "silu": [NAN, 0, 0.5, 0.5, 1, NAN, NAN],
    "sigmoid": [0, 0, 0.25, 0.25, 0, 0, NAN],
    "tanh": [0, 0, 1, 1, 0, 0, NAN],
    "gelu_tanh": [NAN, 0, 0.5, 0.5, 1, NAN, NAN],  # torch: NaN at both HUGE too in float32
}


@each_dtype
@each_way
@each_name
def test_infinity_nan_and_signs_of_zero(name, way, dtype):
    z = np.array(AT, dtype)
    found = way(value_of(name), z, *parameters_of(name))
    wanted = np.array(VALUES[name], dtype)
    np.testing.assert_array_equal(found.astype(dtype), wanted)
    zeros = wanted == 0
    np.testing.assert_array_equal(np.signbit(found[zeros]), np.signbit(wanted[zeros]))

    found = way(gradient_of(name), np.ones_like(z), z, *parameters_of(name))
    np.testing.assert_array_equal(found.astype(dtype), np.array(GRADIENTS[name], dtype))


@each_dtype
@each_name
def test_every_lane_is_worked_out_alone(name, dtype):
    lanes = 64 // dtype.itemsize
    z = np.ones((3 * lanes, 3 * lanes), dtype)
    np.fill_diagonal(z, NAN)
    found = on_vectors(value_of(name), z, *parameters_of(name)).reshape(z.shape)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(z))
    assert len(np.unique(found[~np.isnan(z)])) == 1


@pytest.mark.parametrize("name", ["relu", "relu6", "hardswish"])
def test_a_gradient_that_is_not_finite_does_not_pass_where_the_slope_is_zero(name):
    found = on_vectors(gradient_of(name), np.array([INF, NAN, -INF]), np.full(3, -4.0))
    np.testing.assert_array_equal(found, 0.0)


# --- exponentials ---------------------------------------------------------------------------------


def exp(z):
    return np.exp(z)


def expm1(z):
    return np.expm1(z)


def tanh_of(z):
    return np.tanh(z)


FUNCTIONS = {"exp": (exp, np.exp), "expm1": (expm1, np.expm1), "tanh": (tanh_of, np.tanh)}
each_function = pytest.mark.parametrize(
    ("formula", "function"), FUNCTIONS.values(), ids=list(FUNCTIONS)
)


@each_dtype
@each_function
def test_exponentials_are_right_everywhere(formula, function, dtype, rng):
    edge = 110 if dtype == "f4" else 760
    parts = [rng.uniform(-edge, edge, SAMPLES), rng.uniform(-2, 2, SAMPLES)]
    z = np.concatenate([any_bits(dtype, rng), *parts]).astype(dtype)
    bound = 2e-7 if dtype == "f4" else 5e-16
    assert_close(on_vectors(formula, z), function(z.astype(np.longdouble)), bound)


@each_function
def test_exponentials_of_compiled_scalars(formula, function, rng):
    z = np.concatenate([rng.uniform(-760, 760, 300), any_bits(np.dtype("f8"), rng, 300)])
    assert_close(on_scalars(formula, z), function(z.astype(np.longdouble)), 5e-16)


@each_dtype
@each_way
@each_function
def test_exponentials_at_the_ends(formula, function, way, dtype):
    info = np.finfo(dtype)
    last = np.nextafter(np.log(info.max).astype(dtype), dtype.type(0))
    beyond = 1.001 * last
    z = np.array([
        -INF, -info.max, -beyond, -0.0, 0.0, -info.smallest_subnormal, info.smallest_subnormal,
        info.tiny, last, beyond, info.max, INF, NAN,
    ], dtype)  # fmt: skip
    if dtype == "f4" and way in (on_scalars, on_floats):
        z = z.astype("f8")
    found, wanted = way(formula, z), function(z.astype(np.longdouble))
    zero = z == 0
    np.testing.assert_array_equal(np.signbit(found[zero]), np.signbit(wanted[zero]))
    assert_close(found, wanted, 100 * eps_of(found))
    assert found[-2] == (1 if function is np.tanh else INF)


@each_dtype
def test_constants_of_exponentials_are_what_they_are_said_to_be(dtype):
    found = internals.EXPONENTIAL[dtype]
    with localcontext() as context:
        context.prec = 50
        ln2 = Decimal(2).ln()
        assert float(1 / (2 * ln2)) == internals.LOG4_E
        assert found.ln4_low == float(2 * ln2 - Decimal(found.ln4_high))
        most = round(abs(found.least) * internals.LOG4_E)  # of n
        products = np.arange(most + 1) * dtype.type(found.ln4_high)
        np.testing.assert_array_equal(products, np.arange(most + 1) * np.longdouble(found.ln4_high))
    coefficients = reference.exponential_coefficients(len(found.coefficients) - 1, ln2)
    np.testing.assert_array_equal(coefficients, found.coefficients)


# --- fused with normalizing -----------------------------------------------------------------------

TERMS = (0.5, 1.25, -0.75)  # center, scale, shift


@each_dtype
@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@each_name
def test_fused_formulas(name, residual, dtype, rng):
    x, other, dy = rng.normal(0, 3, (3, 1000)).astype(dtype)
    z = (x.astype(np.longdouble) - TERMS[0]) * TERMS[1] + TERMS[2] + (other if residual else 0)
    off = abs(z) > 1e-5  # kinks are where rounding can be seen
    off &= (abs(abs(z) - 3) > 1e-5) & (abs(z - 6) > 1e-5)
    arguments = [x, *([other] if residual else []), *TERMS, *parameters_of(name)]
    tolerance = 10 * eps_of(x)

    found = on_vectors(internals.fused(name, residual), *arguments)
    assert_close(found, right(name, z), tolerance, 10 * tolerance)
    found = on_vectors(internals.activation_gradient(name, residual), dy, *arguments)
    wanted = dy * right(name, z, derivative=True)
    assert_close(found[off], wanted[off], tolerance, 10 * tolerance)


def test_the_names_that_a_call_takes_are_those_there_are():
    assert internals.activation_names() == tuple(internals.ACTIVATIONS)


def test_every_variant_has_a_name_of_its_own():
    makers = internals.fused, internals.activation_gradient
    every = [make(name, residual) for make in makers for name in NAMES for residual in (0, 1)]
    assert len({formula.__name__ for formula in every}) == len(every)
    assert internals.fused("relu") is internals.fused("relu", False)
    assert internals.fused("relu") is internals.fused(residual=False, activation="relu")


@each_dtype
@pytest.mark.parametrize("axis", [1, -1], ids=["channels first", "channels last"])
@each_name
def test_parts_take_a_slope_and_channels_that_float32_cannot_hold(name, axis, dtype, rng):
    """The last channel is one that float32 cannot hold."""
    shape = [4, 7, 7]
    shape[axis] = 5
    var = np.array([1, 2, 3, 4, 1e-36])
    mean = np.array([0, 1, -1, 2, 0.0])
    std, middle = (np.expand_dims(v, (0, 2) if axis == 1 else (0, 1)) for v in (var**0.5, mean))
    x = (rng.normal(0, 1, shape) * std + middle).astype(dtype)
    z = (x.astype(np.longdouble) - middle) / std
    for slope in (SLOPE, 0.5) if parameters_of(name) else (SLOPE,):
        how = {"activation": name, "negative_slope": slope}
        y = fastbn.batch_norm(x, mean, var, eps=1e-60, axis=axis, **how)
        wanted = reference.ACTIVATIONS[name][0](z, *(slope for _ in parameters_of(name)))
        assert_close(y, wanted, 10 * eps_of(x), 10 * eps_of(x))


# --- on a device ----------------------------------------------------------------------------------


@pytest.mark.skipif(not config.ENABLE_CUDASIM, reason="needs NUMBA_ENABLE_CUDASIM=1")
@pytest.mark.filterwarnings("ignore")
@each_dtype
@each_name
def test_activations_on_the_device(name, dtype, rng):
    z = np.concatenate([rng.uniform(-8, 8, 20), AT]).astype(dtype)
    arguments = z, *parameters_of(name)
    eps = eps_of(z)
    for formula, values, wanted in [
        (value_of(name), arguments, value_of(name)(*arguments)),
        (gradient_of(name), (z, *arguments), gradient_of(name)(z, *arguments)),
        (internals.fused(name), (z, *TERMS, *arguments[1:]), None),
        (internals.activation_gradient(name, True), (z, z, z, *TERMS, *arguments[1:]), None),
    ]:
        found = internals.on_the_device(formula, *values)
        assert found.dtype == dtype
        wanted = formula(*values) if wanted is None else wanted
        np.testing.assert_allclose(found, wanted, rtol=8 * eps, atol=8 * eps)
