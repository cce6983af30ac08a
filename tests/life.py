"""What `test_layer_life` takes a layer's steps with: the layer, and a model of it.

The model is plain NumPy in long double.
"""

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
)

import fastbn
from tests import reference

C = 3
LAYERS = {
    fastbn.BatchNorm1d: ((4, C), (4, C, 5)),
    fastbn.BatchNorm2d: ((3, C, 2, 2), (C, 3, 2)),
    fastbn.BatchNorm3d: ((2, C, 2, 1, 3), (C, 2, 2, 2)),
    fastbn.BatchRenorm1d: ((4, C), (4, C, 5)),
    fastbn.BatchRenorm2d: ((3, C, 2, 2), (C, 3, 2)),
    fastbn.BatchRenorm3d: ((2, C, 2, 1, 3), (C, 2, 2, 2)),
}
R_MAX, D_MAX = 1.5, 0.5
NAMES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
SEEDS = st.integers(0, 2**32 - 1)
DTYPES = st.sampled_from([np.float32, np.float64])


class Model(RuleBasedStateMachine):
    """A layer and its model, which `born` makes; what they do is for subclasses to say."""

    @initialize(
        layer=st.sampled_from(list(LAYERS)),
        momentum=st.sampled_from([None, 0.0, 0.1, 0.7, 1.0]),
        affine=st.booleans(),
        bias=st.booleans(),
        tracked=st.booleans(),
        dtype=DTYPES,
        last=st.booleans(),
        policy=st.sampled_from(["propagate", "skip", "raise"]),
        ghost=st.sampled_from([None, None, 2]),
    )
    def born(self, layer, momentum, affine, bias, tracked, dtype, last, policy, ghost):
        self.renorm = "Renorm" in layer.__name__
        tracked = tracked or self.renorm
        self.ghost = None if self.renorm else ghost
        self.more = (
            {"r_max": R_MAX, "d_max": D_MAX} if self.renorm else {"virtual_batch_size": ghost}
        )
        self.bn = layer(
            C, 1e-3, momentum, affine, tracked, dtype=dtype, bias=bias, axis=-1 if last else 1,
            on_nonfinite=policy, **self.more,
        )  # fmt: skip
        self.dtype, self.momentum, self.policy, self.tracked = dtype, momentum, policy, tracked
        self.shapes, self.last = LAYERS[layer], last
        self.state = {}
        if affine:
            self.state["weight"] = np.ones(C, np.longdouble)
            if bias:
                self.state["bias"] = np.zeros(C, np.longdouble)
        if tracked:
            self.state["running_mean"] = np.zeros(C, np.longdouble)
            self.state["running_var"] = np.ones(C, np.longdouble)
        self.count = 0
        self.training, self.frozen = True, False
        self.cache = None  # what the layer's own backward must differentiate
        self.kept = []  # explicit caches: (cache, model's cache)

    # --- the model ----------------------------------------------------------------------------

    def vector(self, name, default):
        return self.state.get(name, np.full(C, default, np.longdouble))

    @property
    def batch_mode(self):
        return (self.training and not self.frozen) or not self.tracked

    def axis_of(self, shape):
        if len(shape) == 2:
            return 1
        if self.last:
            return len(shape) - 1
        return shape.index(C) if len(shape) == len(self.shapes[0]) - 1 and shape[0] == C else 1

    def unit(self, dtype):
        """Of whatever a call in ``dtype`` computes; parameters are float32 at times."""
        return 1e-5 if np.float32 in (dtype, self.dtype) else 1e-12

    def input(self, shape, seed, dtype, bad_value=None):
        shape = tuple(shape)
        axis = self.axis_of(shape)
        if self.last and len(shape) > 2:
            channel = 0 if len(shape) == len(self.shapes[0]) - 1 or (
                shape[0] == C and len(shape) < len(self.shapes[0])) else 1  # fmt: skip
            moved = list(shape)
            del moved[channel if shape[channel] == C else shape.index(C)]
            shape = (*moved, C)
            axis = len(shape) - 1
        rng = np.random.default_rng(seed)
        x = (rng.standard_normal(shape) * 3 + rng.normal(0, 4)).astype(dtype)
        if bad_value is not None:
            np.moveaxis(x, axis, 0)[seed % C].flat[0] = bad_value
        return x, axis

    def step(self, x, axis, y, overwritten=False):
        """The model takes a batch that the layer has taken; returns the model's cache."""
        dtype, unit = x.dtype, self.unit(x.dtype)
        weight, bias = self.vector("weight", 1), self.vector("bias", 0)
        with np.errstate(all="ignore"):
            if self.batch_mode:
                mean, var = reference.mean_and_var(x, axis)
            else:
                mean, var = self.state["running_mean"], self.state["running_var"]
            learns, terms, groups = self.training and not self.frozen, None, None
            expected = reference.normalize(x, mean, var, weight, bias, 1e-3, axis)
            if learns and self.renorm:
                terms = reference.renorm_terms(x, *self.running, R_MAX, D_MAX, 1e-3, axis)
                expected = reference.renorm(x, *terms, weight, bias, 1e-3, axis)
            elif learns and self.ghost:
                groups = self.groups_of(x)
                expected = reference.ghost(x, groups, weight, bias, 1e-3, axis)
            # a mean that is not finite is of other groups than those that are compared
            far = np.where(np.isfinite(mean), np.abs(mean), 0)
            size = np.abs(expected) + reference.per_channel(
                np.abs(bias) + np.abs(weight) * (1 + far), x.ndim, axis)  # fmt: skip
        np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
        good = np.isfinite(expected)
        assert (np.abs(y[good] - expected[good]) <= 4 * unit * size[good]).all()
        if self.training and not self.frozen and self.tracked:
            self.track(mean, var, x, axis)
        # parameters as they are now: a backward later must not see later ones
        return (
            x.copy(), axis, mean, var, weight.copy(), self.batch_mode, overwritten, dtype, terms,
            groups,
        )  # fmt: skip

    @property
    def running(self):
        return self.state["running_mean"], self.state["running_var"]

    def groups_of(self, x):
        """Pairs of samples; of a single sample, all of it."""
        if x.ndim == len(self.shapes[0]) - 1 and x.ndim > 2:
            return [slice(None)]
        return [slice(k, k + self.ghost) for k in range(0, len(x), self.ghost)]

    def track(self, mean, var, x, axis, count=None):
        """The model's running statistics; ``count`` is what a mask keeps of each channel."""
        finite = np.isfinite(mean).all() and np.isfinite(var).all()
        if not finite and self.policy == "skip":
            return
        self.count += 1
        momentum = 1 / np.longdouble(self.count) if self.momentum is None else self.momentum
        if self.renorm:
            new = reference.renorm_running_step(*self.running, x, momentum, 1e-3, axis)
        elif count is not None:
            pair = zip(self.running, (mean, var * count / (count - 1)), strict=True)
            new = [(1 - momentum) * old + momentum * value for old, value in pair]
        else:
            new = reference.running_step(*self.running, x, momentum, axis)
        for name, value in zip(("running_mean", "running_var"), new, strict=True):
            self.agree(name, getattr(self.bn, name), value)
            # from here on as the layer has rounded it, so that errors do not add up
            self.state[name] = getattr(self.bn, name).astype(np.longdouble)

    def agree(self, name, actual, expected):
        np.testing.assert_allclose(
            actual.astype(float), expected.astype(float), rtol=2e-5, atol=2e-4, err_msg=name
        )
        if self.dtype == np.float64 and self.all_double:
            np.testing.assert_allclose(
                actual, expected.astype(float), rtol=1e-12, atol=1e-11, err_msg=name
            )

    all_double = False

    def refused(self, error, call, *args, **kwargs):
        """The call raises, and the layer is what it was to the last bit."""
        before = {k: v.tobytes() for k, v in self.bn.state_dict().items()}
        cache, modes = self.bn._cache, (self.bn.training, self.bn._training, self.bn._frozen)
        with pytest.raises(error):
            call(*args, **kwargs)
        assert {k: v.tobytes() for k, v in self.bn.state_dict().items()} == before
        assert self.bn._cache is cache
        assert (self.bn.training, self.bn._training, self.bn._frozen) == modes

    def new_state(self, seed, prefix=""):
        rng = np.random.default_rng(seed)
        state = {k: rng.normal(1, 1, C) for k in self.state}
        if self.tracked:
            state["running_var"] = rng.uniform(0.1, 5, C)
            state["num_batches_tracked"] = np.array(rng.integers(20))
        return {prefix + k: v for k, v in state.items()}

    def forget(self):
        if self.tracked:
            self.state["running_mean"] = np.zeros(C, np.longdouble)
            self.state["running_var"] = np.ones(C, np.longdouble)
        self.count = 0
        self.cache = None
