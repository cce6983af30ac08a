"""Fused calls like one before go a shorter way, to the same bits, or back to the long one."""

import copy
import pickle

import numpy as np
import pytest

import fastbn
from tests import internals, reference

PAIRS = [(name, added) for name in (None, *reference.ACTIVATIONS) for added in (False, True)][1:]
SLOPE = 0.2

each_pair = pytest.mark.parametrize(("name", "added"), PAIRS, ids=str)
each_dtype = pytest.mark.parametrize("dtype", ["f4", "f8"])
each_mode = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])


class Call:
    """Arrays of a call, with numbers in them that are none, and what goes with them."""

    def __init__(self, name="relu", added=True, dtype="f4", training=True, shape=(4, 6, 10)):
        rng = np.random.default_rng(7)
        self.x, self.residual, self.dy = 3 * rng.normal(size=(3, *shape)).astype(dtype)
        self.x[0, 2, 0], self.residual[1, 3, :1] = np.nan, np.inf
        self.mean, self.weight, self.bias = rng.normal(size=(3, shape[1])).astype(dtype)
        self.var = rng.uniform(1, 4, shape[1]).astype(dtype)
        self.out = np.zeros_like(self.x)
        self.how = {"training": training, "activation": name, "negative_slope": SLOPE}
        self.added = added

    def arguments(self, **changed):
        how = {**self.how, "residual": self.residual} if self.added else self.how
        vectors = (changed.pop(k, getattr(self, k)) for k in ("mean", "var", "weight", "bias"))
        return (changed.pop("x", self.x), *vectors), {**how, **changed}

    def made(self, **changed):
        positional, named = self.arguments(**changed)
        return fastbn.batch_norm(*positional, **named)

    def with_cache(self, **changed):
        positional, named = self.arguments(**changed)
        return fastbn.batch_norm_forward(*positional, **named)

    def bits(self):
        """Of all arrays."""
        return {k: v.tobytes() for k, v in vars(self).items() if isinstance(v, np.ndarray)}


def both_ways(make, run):
    """What ``run`` gives on a new call of ``make``: the long way, and then only the short one."""
    internals.forget_plans()
    long, call = run(make()), make()
    with pytest.MonkeyPatch.context() as patch:
        internals.refuse_long_ways(patch)
        return long, run(call)


def bits_of(*arrays):
    return [None if a is None else a.tobytes() for a in arrays]


# --- the same bits --------------------------------------------------------------------------------


@each_dtype
@each_mode
@each_pair
@pytest.mark.parametrize("where", [None, "out", "x", "residual"])
def test_outputs_and_running_statistics(where, name, added, training, dtype):
    def run(call):
        if where is None:
            return bits_of(call.made()), call.bits()
        into = getattr(call, where)
        assert call.made(out=into) is into
        return call.bits()

    if where == "residual" and not added:
        return
    long, short = both_ways(lambda: Call(name, added, dtype, training), run)
    assert long == short


@each_dtype
@each_mode
@each_pair
@pytest.mark.parametrize("where", [None, "out", "dy", "x", "residual"])
def test_gradients(where, name, added, training, dtype):
    def run(call):
        into = where and getattr(call, where)
        found = fastbn.batch_norm_backward(call.dy, call.cache, out=into)
        assert where is None or found.x is into
        assert (found.residual is not None) == added
        return bits_of(*found, found.residual), call.bits()

    def make():
        call = Call(name, added, dtype, training)
        _, call.cache = call.with_cache()
        return call

    long, short = both_ways(make, run)
    assert long == short


@each_pair
def test_caches(name, added):
    """Of the same gradients, or of none where the call has written over what they take."""
    for into in (None, "x", "residual")[: 2 + added]:

        def run(call, into=into):
            _, cache = call.with_cache(out=into and getattr(call, into))
            for array in (call.weight, call.bias):
                array *= 2  # the cache has copies
            return cache

        caches, dy = both_ways(lambda: Call(name, added), run), Call().dy
        if into == "x" or (into and name):
            for cache in caches:
                with pytest.raises(RuntimeError, match="out="):
                    fastbn.batch_norm_backward(dy, cache)
            continue
        long, short = (fastbn.batch_norm_backward(dy, cache) for cache in caches)
        assert bits_of(*long, long.residual) == bits_of(*short, short.residual)


def test_large_arrays():
    def run(call):
        y, cache = call.with_cache()
        found = fastbn.batch_norm_backward(call.dy, cache, out=call.dy)
        return bits_of(y, *found, found.residual)

    long, short = both_ways(lambda: Call("silu", True, shape=(8, 16, 2048)), run)
    assert long == short


@pytest.mark.parametrize("absent", [("weight",), ("bias",), ("weight", "bias"), ("mean", "var")])
def test_absent_vectors(absent):
    def run(call):
        y, cache = call.with_cache(**dict.fromkeys(absent))
        found = fastbn.batch_norm_backward(call.dy, cache)
        for name in ("weight", "bias"):
            assert (getattr(found, name) is None) == (name in absent)
        return bits_of(y, *found, found.residual), call.bits()

    long, short = both_ways(Call, run)
    assert long == short


# --- what is unlike goes the long way -------------------------------------------------------------


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def overlapping(call):
    """A residual, and an output that begins at its second value."""
    memory = np.zeros(call.x.size + 1, call.x.dtype)
    residual, out = (memory[k : k + call.x.size].reshape(call.x.shape) for k in (0, 1))
    return {"residual": residual, "out": out}


MISTAKES = {
    "residual of another shape": lambda c: {"residual": c.residual[:, :, :4]},
    "residual of another dtype": lambda c: {"residual": c.residual.astype("f8")},
    "residual that is a list": lambda c: {"residual": c.residual.tolist()},
    "output that is read-only": lambda c: {"out": read_only(c.out)},
    "output of another shape": lambda c: {"out": c.out[:3]},
    "output over some of x": lambda c: {
        "x": overlapping(c)["residual"], "out": overlapping(c)["out"][:2]
    },
    "output over some of the residual": overlapping,
    "output over the bias": lambda c: {"bias": c.out[0, 0, :6], "out": c.out},
    "running statistics that are one": lambda c: {"mean": c.var},
    "running mean that is read-only": lambda c: {"mean": read_only(c.mean)},
    "activation that is none": lambda _: {"activation": "relu_residual"},
    "activation in a list": lambda _: {"activation": ["relu"]},
    "slope that is infinite": lambda _: {"negative_slope": np.inf},
    "slope that is a string": lambda _: {"negative_slope": "0.1"},
    "eps": lambda _: {"eps": -1.0},
    "momentum": lambda _: {"momentum": 2.0},
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=list(MISTAKES))
def test_mistakes_raise_the_same_and_change_nothing(mistake):
    errors = []
    for known in (False, True):
        internals.forget_plans()
        if known:
            Call().made()
        call = Call()
        changed, before = mistake(call), call.bits()
        with pytest.raises((TypeError, ValueError)) as raised:
            call.with_cache(**changed)
        errors.append((raised.type, str(raised.value)))
        assert call.bits() == before
    assert errors[0] == errors[1]


def unaligned(array):
    view = np.empty(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    view[:] = array
    return view


UNUSUAL = {
    "read-only residual": lambda c: {"residual": read_only(c.residual)},
    "read-only x": lambda c: {"x": read_only(c.x)},
    "unaligned residual": lambda c: {"residual": unaligned(c.residual)},
    "unaligned x": lambda c: {"x": unaligned(c.x)},
    "residual in another order of bytes": lambda c: {"residual": c.residual.astype(">f4")},
    "residual with strides": lambda c: {"residual": np.repeat(c.residual, 2, axis=1)[:, ::2]},
    "residual in another order": lambda c: {"residual": np.asfortranarray(c.residual)},
    "residual that is x": lambda c: {"residual": c.x},
    "residual that is x, in place": lambda c: {"residual": c.x, "out": c.x},
    "residual that is a view of x, in place": lambda c: {"residual": c.x[:], "out": c.x},
    "output that is a view of the residual": lambda c: {"out": c.residual[:]},
    "residual that overlaps x": lambda c: dict(
        zip(("x", "residual"), overlapping(c).values(), strict=True)
    ),
    "slope that is an integer": lambda _: {"negative_slope": 1},
    "subclass of str": lambda _: {"activation": np.str_("leaky_relu")},
    "masked array": lambda c: {"x": np.ma.array(c.x)},
    "mask": lambda c: {"mask": c.dy > 0},
    "skip": lambda _: {"on_nonfinite": "skip"},
    "running statistics in float64": lambda c: {
        "mean": c.mean.astype("f8"), "var": c.var.astype("f8")
    },
}  # fmt: skip


@pytest.mark.parametrize("unusual", UNUSUAL.values(), ids=list(UNUSUAL))
def test_what_is_unusual_gives_the_same_bits(unusual):
    found = []
    for known in (False, True):
        internals.forget_plans()
        if known:
            Call().made()
        call = Call()
        changed = unusual(call)
        y, _ = call.with_cache(**changed)
        given = [v.tobytes() for v in changed.values() if isinstance(v, np.ndarray)]
        found.append((y.tobytes(), given, call.bits()))
    assert found[0] == found[1]


def test_unpickled_arrays_whose_dtype_is_an_object_of_their_own():
    def run(call):
        call = pickle.loads(pickle.dumps(call))
        for name in ("mean", "var", "weight", "bias"):  # as an unpickled layer has them
            setattr(call, name, np.array(getattr(call, name).tolist(), "f4"))
        assert call.x.dtype is not np.dtype("f4")
        y, cache = call.with_cache()
        found = fastbn.batch_norm_backward(call.dy, cache)
        return bits_of(y, *found, found.residual), call.bits()

    long, short = both_ways(Call, run)
    assert long == short


@pytest.mark.parametrize("into", ["read-only", "over some of dy", "over some of x"])
def test_mistakes_of_a_backward_leave_everything_as_it_was(into):
    call = Call()
    memory = np.zeros(call.x.size + 1, "f4")
    shifted = [memory[k : k + call.x.size].reshape(call.x.shape) for k in (0, 1)]
    dy, out = call.dy, shifted[1]
    if into == "read-only":
        out = read_only(call.out)
    elif into == "over some of dy":
        dy = shifted[0]
    else:
        shifted[0][:] = call.x
        call.x = shifted[0]
    _, cache = call.with_cache()
    errors = []
    for known in (False, True):
        internals.forget_plans()
        if known:
            fastbn.batch_norm_backward(call.dy, cache)
        before = call.bits(), memory.tobytes(), out.tobytes()
        with pytest.raises(ValueError, match="out") as raised:
            fastbn.batch_norm_backward(dy, cache, out=out)
        errors.append(str(raised.value))
        assert before == (call.bits(), memory.tobytes(), out.tobytes())
    assert errors[0] == errors[1]


# --- layers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.1, None])
@each_pair
def test_layers(name, added, momentum):
    layer = fastbn.BatchNorm1d(6, activation=name, negative_slope=SLOPE, momentum=momentum)

    def run(call):
        of_call = copy.deepcopy(layer)
        residual = call.residual if added else None
        found = []
        for _ in range(2):
            y = of_call(call.x, residual=residual)
            gradients = of_call.backward(call.dy)
            found += bits_of(y, *gradients, gradients.residual)
        state = of_call.eval().state_dict()
        return found + bits_of(*state.values(), of_call(call.x, residual=residual))

    long, short = both_ways(lambda: Call(name, added), run)
    assert long == short
