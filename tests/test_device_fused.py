"""Activations and residuals on a simulated device: see `test_device`."""

import ml_dtypes
import numpy as np
import pytest
from numba import config

import fastbn
from tests import internals_device as devices
from tests import reference
from tests.test_device import cut, got, put  # noqa: F401  # a fixture

pytestmark = [
    pytest.mark.skipif(not config.ENABLE_CUDASIM, reason="needs NUMBA_ENABLE_CUDASIM=1"),
    pytest.mark.filterwarnings("ignore"),
]

#: Of values of a size of about 10.
TOLERANCE = {"float32": 1e-5, "float64": 1e-13, "float16": 2e-2, "bfloat16": 2e-1}
SLOPE = 0.1
#: Rows that are read 16 bytes at once, a table, channels last of which a thread reads several.
ROWS, TABLE, LAST = ((3, 2, 8), 1), ((7, 3), 1), ((2, 2, 2, 12), -1)
#: Every activation, with a residual and without, and every dtype, in some layout.
CASES = [
    ("relu", True, ROWS, "float32"), ("relu", False, LAST, "float32"),
    ("relu6", False, TABLE, "float32"), ("leaky_relu", False, ROWS, "float32"),
    ("leaky_relu", True, LAST, "float16"), ("hardswish", True, TABLE, "float32"),
    ("silu", False, ROWS, "bfloat16"), ("silu", True, ROWS, "float16"),
    ("sigmoid", False, TABLE, "float64"), ("tanh", True, TABLE, "float32"),
    ("gelu_tanh", True, ROWS, "float64"), ("gelu_tanh", False, LAST, "bfloat16"),
    (None, True, ROWS, "float32"), (None, True, LAST, "float16"),
]  # fmt: skip
#: The number of a case, the mode, and how many blocks share a tile; None: one, which reads once.
RUNS = [(number, True, None) for number in range(len(CASES))]
RUNS += [(number, False, None) for number in range(0, len(CASES), 2)]
RUNS += [(number, number % 3 > 0, 3) for number in range(len(CASES))]


class Problem:
    """Arrays of a call, and what is right in long double."""

    def __init__(self, activation, residual, layout, dtype, rng):
        self.dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
        parameters = "float64" if dtype == "float64" else "float32"
        shape, axis = layout
        self.activation, self.axis, channels = activation, axis, shape[axis]
        self.x, self.dy, other = ((rng.normal(size=shape) * 2).astype(self.dtype) for _ in range(3))
        self.residual = other if residual else None
        self.weight, self.bias, self.mean = (
            rng.normal(size=channels).astype(parameters) for _ in range(3)
        )
        self.var = rng.uniform(0.5, 2, channels).astype(parameters)

    def forward(self, training, **how):
        vectors = [put(v) for v in (self.mean, self.var, self.weight, self.bias)]
        return fastbn.batch_norm_forward(
            put(self.x), *vectors, training, axis=self.axis, residual=put(self.residual),
            activation=self.activation, negative_slope=SLOPE, **how,
        )  # fmt: skip

    def right(self, training):
        """y, and gradients in x, weight, bias and residual."""
        wide = [a.astype(np.longdouble) for a in (self.x, self.dy)]
        x, dy = wide
        mean, var = reference.mean_and_var(x, self.axis) if training else (self.mean, self.var)
        z = reference.normalize(x, mean, var, self.weight, self.bias, 1e-5, self.axis)
        if self.residual is not None:
            z = z + self.residual.astype(np.longdouble)
        y, slope = z, np.ones_like(z)
        if self.activation is not None:
            more = (SLOPE,) if self.activation == "leaky_relu" else ()
            value, derivative = reference.ACTIVATIONS[self.activation]
            y, slope = value(z, *more), derivative(z, *more)
        found = reference.backward(
            dy * slope, x, mean, var, self.weight, 1e-5, self.axis % x.ndim, training
        )
        return y, *found, dy * slope

    def assert_close(self, found, right):
        size = max(1.0, float(np.abs(right).max()) / 10)
        error = np.abs(got(found).astype(np.longdouble) - right).max()
        assert error <= TOLERANCE[self.dtype.name] * size


@pytest.mark.parametrize(("number", "training", "parts"), RUNS, ids=str)
def test_activations_and_residuals(number, training, parts, monkeypatch, rng):
    devices.cut_on_device(monkeypatch, parts)
    problem = Problem(*CASES[number], rng)
    y, cache = problem.forward(training)
    gradients = fastbn.batch_norm_backward(put(problem.dy), cache)
    right_y, *right = problem.right(training)
    problem.assert_close(y, right_y)
    assert got(y).dtype == got(gradients.x).dtype == problem.dtype
    for found, expected in zip(gradients, right, strict=False):
        problem.assert_close(found, expected)
    if problem.residual is None:
        assert gradients.residual is None
    else:
        problem.assert_close(gradients.residual, right[-1])
        assert got(gradients.residual).dtype == problem.dtype


@pytest.mark.parametrize("residual", [True, False])
def test_in_place(residual, cut, rng):  # noqa: F811
    problem = Problem("silu", residual, ROWS, "float32", rng)
    _, cache = problem.forward(True)
    expected = fastbn.batch_norm_backward(put(problem.dy), cache)
    dy = put(problem.dy)
    found = fastbn.batch_norm_backward(dy, cache, out=dy)
    assert found.x is dy
    np.testing.assert_array_equal(got(dy), got(expected.x))
    into_x = fastbn.batch_norm_backward(put(problem.dy), cache, out=cache.x)
    np.testing.assert_array_equal(got(into_x.x), got(expected.x))
    if residual:
        np.testing.assert_array_equal(got(found.residual), got(expected.residual))


def test_a_residual_that_is_written_over(rng):
    x, residual = (put(rng.normal(size=(6, 3)).astype(np.float32)) for _ in range(2))
    expected = got(fastbn.batch_norm(x, training=True, residual=residual, activation="relu"))
    y, cache = fastbn.batch_norm_forward(
        x, training=True, residual=residual, activation="relu", out=residual
    )
    np.testing.assert_array_equal(got(y), expected)
    with pytest.raises(RuntimeError, match="over the residual"):
        fastbn.batch_norm_backward(put(np.ones((6, 3), np.float32)), cache)
    plain = put(rng.normal(size=(6, 3)).astype(np.float32))
    _, cache = fastbn.batch_norm_forward(x, training=True, residual=plain, out=plain)
    dy = put(rng.normal(size=(6, 3)).astype(np.float32))
    found = fastbn.batch_norm_backward(dy, cache, out=dy)  # which is copied before it is lost
    assert not np.array_equal(got(found.residual), got(found.x))


def test_a_layer_with_an_activation(rng):
    layer = fastbn.BatchNorm1d(3, activation="relu", device="cuda")
    x, dy, shortcut = (put(a) for a in rng.normal(size=(3, 6, 3)).astype(np.float32))
    expected, cache = fastbn.batch_norm_forward(
        x, training=True, residual=shortcut, activation="relu"
    )
    np.testing.assert_array_equal(got(layer(x, residual=shortcut)), got(expected))
    found, right = layer.backward(dy), fastbn.batch_norm_backward(dy, cache)
    np.testing.assert_array_equal(got(found.x), got(right.x))
    np.testing.assert_array_equal(got(found.residual), got(right.residual))
    assert (got(layer.eval()(x)) >= 0).all()


def test_an_empty_batch_with_a_residual():
    x = put(np.empty((0, 3, 4), np.float32))
    y, cache = fastbn.batch_norm_forward(x, training=True, residual=x, activation="relu")
    assert y.shape == (0, 3, 4)
    gradients = fastbn.batch_norm_backward(x, cache)
    assert gradients.x.shape == gradients.residual.shape == (0, 3, 4)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"residual": np.ones((6, 4), np.float32)}, ValueError, r"residual has shape \(6, 4\)"),
        ({"residual": np.ones((6, 3))}, ValueError, "residual has .*dtype float64.*empty_like"),
        ({"activation": "gelu"}, ValueError, "'gelu_tanh' is gelu in its tanh form"),
        ({"negative_slope": "a"}, TypeError, "negative_slope"),
        ({"mask": np.ones(6, bool)}, NotImplementedError, "no mask on a device yet; leave out"),
    ],
)
def test_what_does_not_fit(change, error, says):
    running = put(np.zeros(3, np.float32)), put(np.ones(3, np.float32))
    arguments = {"activation": "relu", **change}
    arguments = {k: put(v) if isinstance(v, np.ndarray) else v for k, v in arguments.items()}
    with pytest.raises(error, match=says):
        fastbn.batch_norm(put(np.eye(6, 3, dtype=np.float32)), *running, training=True, **arguments)
    assert got(running[1]).tolist() == [1, 1, 1]


def test_memory_that_a_residual_shares(rng):
    flat = put(rng.normal(size=60).astype(np.float32))
    x, residual = put(np.eye(6, 8, dtype=np.float32)), flat[:48].reshape(6, 8)
    with pytest.raises(ValueError, match="out overlaps residual without being the same"):
        fastbn.batch_norm(x, training=True, residual=residual, out=flat[4:52].reshape(6, 8))
    with pytest.raises(ValueError, match="running_var and residual share memory"):
        fastbn.batch_norm(
            x, put(np.zeros(8, np.float32)), flat[8:16], training=True, residual=residual
        )
    with pytest.raises(TypeError, match="residual is in host memory"):
        fastbn.batch_norm(x, training=True, residual=got(residual))


def test_nothing_is_compiled_that_is_not_called(rng):
    """Kernels of an activation are made when it is used, once."""
    makers = devices.kernel_makers()
    x = put(rng.normal(size=(6, 3)).astype(np.float32))
    fastbn.batch_norm(x, training=True)
    before = [maker.cache_info().currsize for maker in makers]
    fastbn.batch_norm(x, training=True)
    assert [maker.cache_info().currsize for maker in makers] == before
