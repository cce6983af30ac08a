"""Whatever happens to a layer in its life, in any order, it stays what the model says it is.

The model is plain NumPy in long double. After every step the layer's state must be the model's:
to the bit where nothing was computed, within rounding where a batch went in; and a call that
raised has changed nothing at all.
"""

import copy
import pickle

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    invariant,
    precondition,
    rule,
)

from tests import reference
from tests.life import DTYPES, NAMES, SEEDS, C, Model


class Life(Model):
    """Steps of a layer's life, each taken by the layer and by the model."""

    # --- calls --------------------------------------------------------------------------------

    @rule(which=st.integers(0, 1), seed=SEEDS, dtype=DTYPES,
          out=st.sampled_from(["none", "fresh", "x", "stepped"]))  # fmt: skip
    def forward(self, which, seed, dtype, out):
        x, axis = self.input(self.shapes[which], seed, dtype)
        given = x.copy()
        target = {
            "none": lambda: None, "fresh": lambda: np.full_like(given, np.nan),
            "x": lambda: given, "stepped": lambda: np.repeat(np.zeros_like(given), 2, 0)[::2],
        }[out]()  # fmt: skip
        self.all_double = dtype == np.float64
        y = self.bn(given, out=target)
        assert target is None or y is target
        if out != "x":
            np.testing.assert_array_equal(given, x)
        remembered = self.step(x, axis, y, overwritten=out == "x")
        if self.training and not self.frozen:
            self.cache = remembered

    @rule(which=st.integers(0, 1), seed=SEEDS, dtype=DTYPES)
    def forward_with_cache(self, which, seed, dtype):
        x, axis = self.input(self.shapes[which], seed, dtype)
        self.all_double = dtype == np.float64
        own = self.bn._cache
        y, cache = self.bn.forward_with_cache(x)
        remembered = self.step(x, axis, y)
        if self.training and not self.frozen:
            self.cache = remembered
        else:
            assert self.bn._cache is own
        self.kept = [*self.kept[-2:], (cache, remembered)]

    @rule(which=st.integers(0, 1), seed=SEEDS, value=st.sampled_from([np.nan, np.inf, -np.inf]))
    def forward_not_finite(self, which, seed, value):
        x, axis = self.input(self.shapes[which], seed, self.dtype, bad_value=value)
        updates = self.training and not self.frozen and self.tracked
        if updates and self.policy == "raise":
            self.refused(ValueError, self.bn, x)
            return
        if updates and self.policy == "propagate":
            return  # running statistics would be NaN for the rest of this life
        y = self.bn(x)
        remembered = self.step(x, axis, y)
        if self.training and not self.frozen:
            self.cache = remembered

    @rule(which=st.integers(0, 1))
    def empty_batch(self, which):
        shape = list(self.shapes[which])
        if len(shape) == len(self.shapes[0]) - 1 and shape[0] == C:
            return  # a single sample
        shape[0] = 0
        x, axis = self.input(shape, 0, self.dtype)
        y = self.bn(x)
        assert y.shape == x.shape
        if self.training and not self.frozen:
            self.cache = (x, axis, np.zeros(C), np.zeros(C), self.vector("weight", 1).copy(),
                          True, False, x.dtype, None, None)  # fmt: skip

    @precondition(lambda self: self.batch_mode)
    @rule(seed=SEEDS)
    def one_value_per_channel(self, seed):
        shape = (1, C) + (1,) * (len(self.shapes[0]) - 2)
        x, _ = self.input(shape, seed, self.dtype)
        self.refused(ValueError, self.bn, x)

    @rule(kind=st.integers(0, 7))
    def forward_bad(self, kind):
        x, _ = self.input(self.shapes[0], 1, self.dtype)
        frozen = x.copy()
        frozen.flags.writeable = False
        wrong = [
            lambda: self.bn(x.astype(int)), lambda: self.bn(x.tolist()), lambda: self.bn(None),
            lambda: self.bn(x[None, None, None]), lambda: self.bn(np.zeros((2, C + 1, 2, 2, 2))),
            lambda: self.bn(x, out=frozen), lambda: self.bn(x, out=x[::-1]),
            lambda: self.bn(x, out=np.empty(5, x.dtype)),
        ]  # fmt: skip
        self.refused((TypeError, ValueError), wrong[kind])

    # --- gradients ----------------------------------------------------------------------------

    def check_gradients(self, grads, dy, remembered):
        x, axis, mean, var, weight, batch, _, dtype, terms, groups = remembered
        assert grads.x.shape == x.shape
        assert (grads.weight is None) == ("weight" not in self.state)
        assert (grads.bias is None) == ("bias" not in self.state)
        if not x.size:
            assert grads.weight is None or not grads.weight.any()
            assert grads.bias is None or not grads.bias.any()
            return
        if not np.isfinite(x).all():
            return
        if terms is not None:
            wanted = reference.renorm_backward(dy, x, *terms, weight, 1e-3, axis)
        elif groups is not None:
            wanted = reference.ghost_backward(dy, x, groups, weight, 1e-3, axis)
        else:
            wanted = reference.backward(dy, x, mean, var, weight, 1e-3, axis, batch)
        unit = self.unit(dtype)
        size = 100 * max(1, *(np.abs(v).max() for v in wanted))
        for actual, value in zip(grads, wanted, strict=True):
            if actual is not None:
                assert (np.abs(actual - value) <= unit * size * 10).all()

    @rule(seed=SEEDS)
    def backward(self, seed):
        if self.cache is None:
            self.refused(RuntimeError, self.bn.backward, np.zeros((4, C), self.dtype))
            return
        x, overwritten, dtype = self.cache[0], self.cache[6], self.cache[7]
        dy = np.random.default_rng(seed).normal(size=x.shape).astype(dtype)
        if overwritten:
            self.refused(RuntimeError, self.bn.backward, dy)
        else:
            self.check_gradients(self.bn.backward(dy), dy, self.cache)

    @rule(which=st.integers(0, 1), seed=SEEDS, dtype=DTYPES)
    def learn(self, which, seed, dtype):
        """A step of training: by chance alone most of a life is spent in other modes."""
        self.train(mode=True)
        self.freeze(frozen=False)
        self.forward(which=which, seed=seed, dtype=dtype, out="none")
        self.backward(seed=seed)

    @precondition(lambda self: self.kept)
    @rule(seed=SEEDS)
    def backward_of_an_earlier_forward(self, seed):
        cache, remembered = self.kept[seed % len(self.kept)]
        dy = np.random.default_rng(seed).normal(size=remembered[0].shape).astype(remembered[7])
        self.check_gradients(self.bn.backward(dy, cache), dy, remembered)

    @precondition(lambda self: self.cache is not None)
    @rule(kind=st.integers(0, 3))
    def backward_bad(self, kind):
        x = self.cache[0]
        wrong = [None, x.tolist(), np.zeros((9, 9), x.dtype), x.astype(np.complex64)][kind]
        self.refused((TypeError, ValueError), self.bn.backward, wrong)

    # --- modes --------------------------------------------------------------------------------

    @rule(mode=st.booleans())
    def train(self, mode):
        assert self.bn.train(mode) is self.bn
        self.training = mode
        self.leave_training()

    @rule()
    def eval(self):
        assert self.bn.eval() is self.bn
        self.training = False
        self.leave_training()

    @rule(frozen=st.booleans())
    def freeze(self, frozen):
        assert (self.bn.freeze() if frozen else self.bn.unfreeze()) is self.bn
        self.frozen = frozen
        self.leave_training()

    def leave_training(self):
        """A layer that is not in training remembers no forward."""
        if not self.training or self.frozen:
            self.cache = None

    @rule(mode=st.sampled_from(["yes", None, 1, 0.0]))
    def train_bad(self, mode):
        self.refused(TypeError, self.bn.train, mode)

    # --- state --------------------------------------------------------------------------------

    @rule(seed=SEEDS, prefix=st.sampled_from(["", "net.bn."]), narrow=st.booleans())
    def load(self, seed, prefix, narrow):
        state = self.new_state(seed, prefix)
        counter = prefix + "num_batches_tracked"
        if narrow:
            state = {k: v.astype(np.float32) if v.ndim else v for k, v in state.items()}
        if seed % 3 == 0:
            state.pop(counter, None)
        arrays = {name: getattr(self.bn, name) for name in NAMES}
        assert self.bn.load_state_dict(state, prefix) == ([], [])
        for name, array in arrays.items():
            assert getattr(self.bn, name) is array
        for name in self.state:
            self.state[name] = state[prefix + name].astype(self.dtype).astype(np.longdouble)
        if self.tracked:
            self.count = int(state[counter]) if counter in state else 0
        self.cache = None

    @rule(seed=SEEDS, kind=st.integers(0, 6))
    def load_bad(self, seed, kind):
        state = self.new_state(seed)
        if not state:
            self.refused(KeyError, self.bn.load_state_dict, {"weight": np.ones(C)})
            return
        name = sorted(state)[seed % len(state)]
        changes = [
            (
                KeyError,
                lambda: state.pop("running_mean" if name == "num_batches_tracked" else name),
            ),
            (KeyError, lambda: state.update(more=np.ones(C))),
            (ValueError, lambda: state.update({name: np.ones((C, 1))})),
            (ValueError, lambda: state.update({name: "text"})),
            (ValueError, lambda: state.update({name: np.ones(state[name].shape, complex)})),
            (TypeError, lambda: state.update({5: np.ones(C)})),
        ]
        if kind < len(changes):
            error, change = changes[kind]
        elif self.tracked:
            error, change = ValueError, lambda: state.update(running_var=[1, np.nan, 1])
        else:
            return
        change()
        self.refused(error, self.bn.load_state_dict, state)

    @rule(seed=SEEDS)
    def load_what_matches(self, seed):
        state = self.new_state(seed)
        loaded = {k: v for k, v in list(state.items())[::2] if k != "num_batches_tracked"}
        missing, unexpected = self.bn.load_state_dict({**loaded, "more": 3}, strict=False)
        assert unexpected == ["more"]
        assert set(missing) == set(state) - set(loaded)
        for name, value in loaded.items():
            self.state[name] = value.astype(self.dtype).astype(np.longdouble)
        self.cache = None

    @rule(how=st.sampled_from(["pickle", "deepcopy", "state_dict"]))
    def become_a_copy(self, how):
        if how == "state_dict":
            twin = type(self.bn)(
                C, self.bn.eps, self.bn.momentum, self.bn.affine, self.bn.track_running_stats,
                dtype=self.dtype, bias=self.bn.bias is not None, axis=self.bn.axis,
                on_nonfinite=self.policy, **self.more,
            )  # fmt: skip
            twin.load_state_dict(self.bn.state_dict("p."), "p.")
            twin.train(self.training)
            if self.frozen:
                twin.freeze()
        elif how == "pickle":
            twin = pickle.loads(pickle.dumps(self.bn))
        else:
            twin = copy.deepcopy(self.bn)
        for name in NAMES:
            a, b = getattr(self.bn, name), getattr(twin, name)
            assert (a is None) == (b is None)
            assert a is None or not np.shares_memory(a, b)
        assert repr(twin) == repr(self.bn)
        if self.tracked:
            self.bn.running_mean += 1  # the old one goes its own way
        self.bn, self.cache = twin, None

    @rule()
    def reset_running_stats(self):
        self.bn.reset_running_stats()
        self.forget()

    @rule()
    def reset_parameters(self):
        self.bn.reset_parameters()
        self.forget()
        for name, value in (("weight", 1), ("bias", 0)):
            if name in self.state:
                self.state[name] = np.full(C, value, np.longdouble)

    @precondition(lambda self: "weight" in self.state)
    @rule(seed=SEEDS)
    def an_optimizer_steps(self, seed):
        values = np.random.default_rng(seed).normal(1, 1, C).astype(self.dtype)
        self.bn.weight[:] = values
        self.state["weight"] = values.astype(np.longdouble)

    # --- always -------------------------------------------------------------------------------

    @invariant()
    def the_state_is_the_model_s(self):
        if not hasattr(self, "bn"):
            return
        state = self.bn.state_dict()
        assert set(state) == set(self.state) | ({"num_batches_tracked"} if self.tracked else set())
        for name, value in self.state.items():
            assert state[name].dtype == self.dtype
            np.testing.assert_array_equal(state[name], value.astype(self.dtype), err_msg=name)
        if self.tracked:
            assert state["num_batches_tracked"] == self.count
        assert self.bn.training == (self.training and not self.frozen)
        if self.tracked:
            scale, shift = self.bn.affine_terms()
            rstd = 1 / np.sqrt(self.state["running_var"] + 1e-3)
            wanted = self.vector("weight", 1) * rstd
            np.testing.assert_allclose(scale, wanted.astype(float), rtol=1e-6)
            wanted = self.vector("bias", 0) - self.state["running_mean"] * wanted
            np.testing.assert_allclose(shift, wanted.astype(float), rtol=1e-5, atol=1e-5)


Life.TestCase.settings = settings(
    deadline=None,
    derandomize=True,
    max_examples=300,
    stateful_step_count=30,
    suppress_health_check=[HealthCheck.too_slow],
)
TestLife = Life.TestCase
