"""Random calls of the layers."""

import copy
import pickle
from fractions import Fraction

import numpy as np

import fastbn
from tests.fuzz_answers import Answer, close
from tests.fuzz_arguments import (
    BAD_ARRAYS,
    BAD_AXES,
    BAD_BOOLS,
    BAD_DTYPES,
    BAD_EPS,
    BAD_MOMENTA,
    BAD_NUMBERS,
    BAD_POLICIES,
    GOOD_BOOLS,
    LAYERS,
    NOTHING_OF_USE,
    UNIT,
    Hostile,
    Interface,
    Wrong,
    pick,
)
from tests.fuzz_functions import _fits


def call_constructor(call):
    """Layers made of anything."""
    rng = call.rng
    layer = pick(rng, list(LAYERS))
    rank = LAYERS[layer][-1]
    result, error = call.made(
        layer,
        call.argument("num_features", int(rng.integers(1, 9)), BAD_NUMBERS),
        call.argument("eps", 1e-5, BAD_EPS),
        call.argument("momentum", pick(rng, (None, 0.1, Fraction(1, 3))), BAD_MOMENTA),
        call.argument("affine", pick(rng, GOOD_BOOLS), BAD_BOOLS),
        call.argument("track", pick(rng, GOOD_BOOLS), BAD_BOOLS),
        call.argument("device", pick(rng, (None, "cpu")), (*NOTHING_OF_USE, "cuda", 0, "CPU ")),
        call.argument("dtype", pick(rng, (None, "f4", np.float64)), BAD_DTYPES),
        bias=pick(rng, GOOD_BOOLS),
        axis=call.argument("axis", int(rng.integers(1, rank)), (*BAD_AXES, 0, rank, -rank)),
        on_nonfinite=call.argument("policy", "skip", BAD_POLICIES),
    )
    if error is not None:
        return f"{type(error).__name__} of a constructor"
    if not repr(result).startswith(layer.__name__):
        raise Wrong(f"repr {result!r}")
    return "constructed"


def call_layer(call):
    """A few steps in a layer's life; a step that raises has changed nothing."""
    rng = call.rng
    layer = pick(rng, list(LAYERS))
    c = int(rng.integers(1, 6))
    bn = layer(c, pick(rng, (1e-5, 0.1)), pick(rng, (None, 0.1, 1.0)), call.chance(0.7),
               call.chance(0.7), dtype=pick(rng, (np.float32, np.float64)))  # fmt: skip
    outcome = "layer"
    for _ in range(int(rng.integers(1, 5))):
        step = pick(rng, (layer_forward, layer_forward, layer_forward, layer_load, layer_mode,
                          layer_copy, layer_backward))  # fmt: skip
        call.bad, call.kept, call.placed = [], [], []
        before = {k: v.tobytes() for k, v in bn.state_dict().items()}
        cache = bn._cache
        bn, error = step(call, bn)
        if error is not None:
            outcome = f"{type(error).__name__} of a layer"
            after = {k: v.tobytes() for k, v in bn.state_dict().items()}
            if before != after or bn._cache is not cache:
                raise Wrong(f"{step.__name__} raised {error!r} and changed the layer")
    return outcome


def layer_forward(call, bn):
    rng = call.rng
    c = bn.num_features
    dims = LAYERS[type(bn)]
    rank = pick(rng, dims)
    shape = [int(n) for n in rng.integers(1, 6, rank)]
    axis = 1 if rank == 2 else (rank - (dims[-1] - 1) if type(bn) is not fastbn.BatchNorm1d else 1)
    shape[axis] = c
    if call.chance(0.05):
        shape[(axis + 1) % rank] = 0
    if call.chance(call.rate):
        shape = pick(rng, ([c] * 7, [c], [], [2, c + 1, *[2] * (dims[-1] - 2)]))
        call.bad.append(("shape", shape))
    shape, dtype = tuple(shape), np.dtype(pick(rng, (np.float32, np.float64)))
    if bn.running_mean is not None and not (np.abs(bn.running_mean) < 1e37).all():
        dtype = np.dtype(np.float64)  # a mean that float32 cannot hold is no center for it
    if call.bad:
        x = np.zeros(shape, dtype)
    else:
        x = call.array(shape, axis, dtype)
        if bn.training or bn.running_mean is None:
            count = x.size // c
            if count == 1:
                call.bad.append("one value per channel")
    given = call.argument("x", x, [v for v in BAD_ARRAYS if not _fits(v)] + [None])
    before, number = bn.state_dict(), bn.num_batches_tracked
    number = None if number is None else int(number)
    batch = bn.training or bn.running_mean is None
    x_before = np.array(x, np.longdouble)
    out = call.out(x, dtype) if not call.bad else None
    y, error = call.made(bn, given, out=out)
    if error is not None:
        return bn, error
    call.check_placed(y)
    if y.shape != shape or y.dtype != dtype:
        raise Wrong(f"output is {y.dtype}{y.shape}, expected {dtype}{shape}")
    after = bn.state_dict()
    if not x.size:
        _same_state(before, after)
        return bn, None
    v = {k: before.get(k) for k in ("weight", "bias", "running_mean", "running_var")}
    v["unit"] = UNIT[dtype]
    answer = Answer(x_before, v, batch, 0.0, bn.eps, axis)
    close("y", y, answer.y, answer.y_bound, axis)
    if bn.training and number is not None:
        momentum = 1 / (number + 1) if bn.momentum is None else bn.momentum
        names = "running_mean", "running_var"
        pair = [before[k].astype(np.longdouble) for k in names]
        answer.check_running(pair, [after[k] for k in names], momentum)
        if int(bn.num_batches_tracked) != number + 1:
            raise Wrong("did not count the batch")
    else:
        _same_state(before, after)
    return bn, None


def _same_state(before, after):
    for name, array in before.items():
        if after[name].tobytes() != array.tobytes():
            raise Wrong(f"changed {name}")


def layer_backward(call, bn):
    cache = bn._cache
    if cache is None:
        call.bad.append("no cache")
        dy = np.zeros((2, bn.num_features, 3), np.float32)
    else:
        if cache.overwritten:
            call.bad.append("overwritten")
        dy = np.ones(cache.x.shape, cache.x.dtype.newbyteorder("="))
    dy = call.argument("dy", dy, [*NOTHING_OF_USE, None, np.zeros((1, 1, 1))])
    grads, error = call.made(bn.backward, dy)
    if error is None and (grads.weight is None) != (bn.weight is None):
        raise Wrong("gradients of other parameters")
    return bn, error


def layer_mode(call, bn):
    rng = call.rng
    result, error = call.made(pick(rng, (
        lambda: bn.train(call.argument("mode", pick(rng, (True, False, np.True_)), (
            *NOTHING_OF_USE, None, 0, 1, "yes"))),
        bn.eval, bn.freeze, bn.unfreeze)))  # fmt: skip
    if error is None and result is not bn:
        raise Wrong("did not return the layer")
    return bn, error


def layer_copy(call, bn):
    twin = pick(call.rng, (copy.deepcopy, copy.copy, lambda b: pickle.loads(pickle.dumps(b))))(bn)
    _same_state(bn.state_dict(), twin.state_dict())
    if twin.training != bn.training or repr(twin) != repr(bn):
        raise Wrong("the copy is another layer")
    return bn, None


def layer_load(call, bn):
    rng = call.rng
    prefix = pick(rng, ("", "a.", "layer1.0."))
    state, new = {}, {}
    for name, array in bn.state_dict().items():
        low = 0.01 if name == "running_var" else -3
        value = rng.uniform(low, 3, array.shape).astype(array.dtype)
        value = np.array(int(rng.integers(9))) if name == "num_batches_tracked" else value
        new[name] = value
        bad = [*(b for b in NOTHING_OF_USE if not isinstance(b, (Hostile, Interface))),
               None, "1", np.zeros(array.size + 1), np.zeros((1, *array.shape))]  # fmt: skip
        if name == "running_var":
            bad += [np.full(array.shape, -1.0), np.full(array.shape, np.nan)]
        if name == "num_batches_tracked":
            bad += [-1, 1.5, np.uint64(2**64 - 1), np.array([3]), 2**63, 2**70, float("nan")]
        else:
            bad += [1.0] if array.shape else []
        state[prefix + name] = call.argument(
            name,
            value,
            [
                b
                for b in bad
                if not (
                    isinstance(b, np.ndarray) and b.shape == array.shape and b.dtype.kind in "iu"
                )  # two channels, two integers
                and not (isinstance(b, (list, tuple, range)) and np.shape(b) == array.shape)
            ],
        )
    strict = call.chance(0.7)
    if state and call.chance(call.rate):
        gone = next(iter(state))
        del state[gone]
        call.bad = [b for b in call.bad if prefix + b[0] != gone]
        if strict:
            call.bad.append("missing key")
    if call.chance(call.rate):
        state[pick(rng, (prefix + "more", 5))] = 3
        if strict or 5 in state:
            call.bad.append("unexpected key")
    given = call.argument(
        "state", state, (*(b for b in NOTHING_OF_USE if not isinstance(b, dict)), None, 3)
    )
    wanted = call.argument("prefix", prefix, (None, 3, b"", ["a"]))
    _, error = call.made(bn.load_state_dict, given, wanted, strict)
    if error is None:
        for name, array in bn.state_dict().items():
            if (
                prefix + name in state
                and array.tobytes() != new[name].astype(array.dtype).tobytes()
            ):
                raise Wrong(f"{name} was not loaded")
    return bn, error
