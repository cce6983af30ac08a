"""The life of a layer with activations, residuals and masks among its steps."""

import copy

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule

import fastbn
from tests import reference
from tests.test_layer_life import DTYPES, SEEDS, C, Life

NAMES = st.sampled_from([None, *reference.ACTIVATIONS])


class LifeAround(Life):
    """`Life`, and calls that do more than normalize."""

    @rule(which=st.integers(0, 1), seed=SEEDS, dtype=DTYPES, name=NAMES, added=st.booleans())
    def fused(self, which, seed, dtype, name, added):
        x, axis = self.input(self.shapes[which], seed, dtype)
        residual = np.random.default_rng(seed + 1).normal(size=x.shape).astype(dtype)
        if name and self.bn.virtual_batch_size is not None and self.bn.training:
            self.refused(NotImplementedError, setattr, self.bn, "activation", name)
            return
        self.bn.activation, self.bn.negative_slope = name, 0.25
        self.all_double = dtype == np.float64
        how = {"residual": residual} if added or name is None else {}
        if self.has_plain_calls_alone(x):
            self.refused(NotImplementedError, self.bn, x, **how)
            self.bn.activation = None
            return
        y, cache = self.bn.forward_with_cache(x, **how)
        self.bn.activation = None
        *_, mean, var, weight, batch, _, _ = self.taken(x, axis)
        z = reference.normalize(x, mean, var, weight, self.vector("bias", 0), 1e-3, axis)
        z = z + residual if how else z
        parameters = (0.25,) if name == "leaky_relu" else ()
        value, derivative = reference.ACTIVATIONS[name] if name else (lambda z: z, np.ones_like)
        np.testing.assert_allclose(
            y, value(z, *parameters).astype(float), atol=float(40 * self.unit(dtype) * self.size(z))
        )
        gradients = self.bn.backward(np.ones_like(x), cache)
        assert (gradients.residual is None) == (not how)
        dz = derivative(z, *parameters)
        smooth = name in (None, "silu", "sigmoid", "tanh", "gelu_tanh")  # no kinks to be beside of
        if smooth:
            remembered = (x, axis, mean, var, weight, batch, False, dtype, None, None)
            self.check_gradients(gradients, dz, remembered)
        self.forget_the_forward()

    @rule(which=st.integers(0, 1), seed=SEEDS, dtype=DTYPES)
    def masked(self, which, seed, dtype):
        x, axis = self.input(self.shapes[which], seed, dtype)
        mask = np.random.default_rng(seed).random(x.shape) < 0.7
        moved = np.moveaxis(mask, axis, 0)
        if not self.batch_mode:
            y = self.bn(x, mask=mask)
            np.testing.assert_array_equal(y, self.bn(x))
            return
        if self.has_plain_calls_alone(x):
            self.refused(NotImplementedError, self.bn, x, mask=mask)
            return
        if (moved.reshape(C, -1).sum(axis=1) < 2).any():
            self.refused(ValueError, self.bn, x, mask=mask)
            return
        if mask.all():
            return
        self.all_double = dtype == np.float64
        y = self.bn(x, mask=mask)
        each = [v[k] for v, k in zip(np.moveaxis(x.astype(np.longdouble), axis, 0), moved,
                                     strict=True)]  # fmt: skip
        mean, var = (np.array([f(v) for v in each]) for f in (np.mean, np.var))
        weight, bias = self.vector("weight", 1), self.vector("bias", 0)
        right = reference.normalize(x, mean, var, weight, bias, 1e-3, axis)
        np.testing.assert_allclose(
            y, right.astype(float), atol=float(40 * self.unit(dtype) * self.size(right))
        )
        if self.training and not self.frozen and self.tracked:
            self.track(mean, var, x, axis, moved.reshape(C, -1).sum(axis=1))
        self.forget_the_forward()

    def has_plain_calls_alone(self, x):
        """Training of batch renorm and of ghost batches knows nothing of these."""
        first = fastbn.BatchNorm1d, fastbn.BatchRenorm1d
        batch = isinstance(self.bn, first) or x.ndim == len(self.shapes[0])
        renorm = hasattr(self.bn, "r_max")
        ghost = self.bn.virtual_batch_size is not None and batch
        return self.bn.training and (renorm or ghost)

    def taken(self, x, axis):
        """The model takes a batch; what a cache of it holds."""
        if self.batch_mode:
            mean, var = reference.mean_and_var(x, axis)
        else:
            mean, var = (self.state[f"running_{n}"].copy() for n in ("mean", "var"))
        if self.training and not self.frozen and self.tracked:
            self.track(mean, var, x, axis)
        return x, axis, mean, var, self.vector("weight", 1).copy(), self.batch_mode, False, x.dtype

    def size(self, values):
        return max(1, np.abs(values).max())

    def forget_the_forward(self):
        """The model's own backward knows batch norm alone."""
        twin = copy.copy(self.bn)
        self.bn, self.cache = twin, None


LifeAround.TestCase.settings = settings(
    deadline=None,
    derandomize=True,
    max_examples=40,
    stateful_step_count=30,
    suppress_health_check=[HealthCheck.too_slow],
)
TestLifeAround = LifeAround.TestCase
