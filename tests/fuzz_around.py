"""Random calls of what is around the layer: masks, residuals, activations, norms of samples."""

import numpy as np

import fastbn
from tests import reference
from tests.fuzz_arguments import NOTHING_OF_USE, Wrong, pick

#: What values are like: those at the ends of a dtype are `fuzz_functions`' matter.
KINDS = "normal", "integers", "far", "constant"
#: Of the largest value, and of the deviations in units of the spread (see `error_of`).
TOLERANCE = {"float16": 2e-3, "float32": 2e-6, "float64": 1e-13}
SLOPE = 0.3


def call_fused(call):
    """batch_norm with a mask, a residual and an activation, and its gradients."""
    rng = call.rng
    shape = call.shape((2, 3, 4))
    axis = int(rng.integers(1, len(shape)))
    dtype = np.dtype(pick(rng, (np.float32, np.float64, np.float16)))
    wide = np.dtype(np.float32) if dtype.itemsize == 2 else dtype
    x = call.array(shape, axis, wide, pick(rng, KINDS[:2] if dtype.itemsize == 2 else KINDS))
    x = x.astype(dtype) if dtype.itemsize == 2 else x
    weight, bias = rng.normal(size=(2, shape[axis])).astype(wide)
    name = call.argument(
        "activation", pick(rng, (None, *reference.ACTIVATIONS)),
        ("gelu", "Relu", 3, b"relu", ["relu"], np.tanh),
    )  # fmt: skip
    how = {"activation": name, "negative_slope": SLOPE, "axis": axis}
    if call.chance(0.5):
        residual = call.array(shape, axis, wide, "normal").astype(dtype)
        how["residual"] = call.argument("residual", residual, (
            *NOTHING_OF_USE, residual[..., None], np.zeros(shape, int), [1.0]))  # fmt: skip
    mask = None
    if call.chance(0.5):
        of_mask = tuple(1 if call.chance(0.4) else n for n in shape)
        mask = rng.random(of_mask) < pick(rng, (0.3, 0.8, 1.0))
        mask = how["mask"] = call.argument("mask", mask, (
            *(v for v in NOTHING_OF_USE if v is not None), mask.astype(int), [True],
            np.ones((*shape, 2), bool)))  # fmt: skip
    if not call.bad:
        kept = np.ones(shape, bool) if mask is None else np.broadcast_to(mask, shape)
        counts = kept.sum(axis=reference.other_axes(len(shape), axis))
        if x.size and (counts < 2).any():
            call.bad.append("few values")
    out = None if call.bad or call.chance(0.7) else np.empty(shape, dtype)
    before = x.copy()
    found, error = call.made(
        fastbn.batch_norm_forward, x, None, None, weight, bias, True, out=out, **how
    )
    if error is not None:
        return f"{type(error).__name__} of a fused call"
    y, cache = found
    if x.tobytes() != before.tobytes():
        raise Wrong("changed x")
    if not x.size:
        return "empty"
    mean, var = masked_statistics(x, kept, axis)
    z = reference.normalize(x, mean, var, weight, bias, 1e-5, axis)
    gain = np.abs(weight / np.sqrt(var + 1e-5).astype(float))
    error = error_of(x, mean, gain, axis, dtype) + TOLERANCE[dtype.name] * np.abs(bias).max()
    residual = how.get("residual")
    z = z if residual is None else z + residual.astype(np.longdouble)
    parameters = (SLOPE,) if name == "leaky_relu" else ()
    right = z if name is None else reference.ACTIVATIONS[name][0](z, *parameters)
    check("y", y, right, 2 * error + TOLERANCE[dtype.name] * np.abs(right).max())
    gradients = fastbn.batch_norm_backward(np.ones(shape, dtype), cache)
    if gradients.x.shape != shape or (gradients.residual is None) != (residual is None):
        raise Wrong("gradients of other arrays")
    before = [a.tobytes() for a in (y, *gradients)]
    y, cache = fastbn.batch_norm_forward(x, None, None, weight, bias, True, out=out, **how)
    gradients = fastbn.batch_norm_backward(np.ones(shape, dtype), cache)
    if [a.tobytes() for a in (y, *gradients)] != before:
        raise Wrong("a call like the one before gave other bits")
    return "fused"


def masked_statistics(x, kept, axis):
    """Mean and biased variance of what is kept of each channel."""
    values, kept = (np.moveaxis(a, axis, 0) for a in (x.astype(np.longdouble), kept))
    found = [(v[k].mean(), v[k].var()) for v, k in zip(values, kept, strict=True)]
    return [np.array(column) for column in zip(*found, strict=True)]


def error_of(x, mean, gain, axis, dtype):
    """What rounding may do to normalized values: to deviations, and what it is of the mean."""
    wide = x.astype(np.longdouble)
    reach = np.abs(wide - reference.per_channel(mean, x.ndim, axis)).max(
        reference.other_axes(x.ndim, axis)
    )
    return float((gain * (TOLERANCE[dtype.name] * reach + 1e-15 * np.abs(mean))).max())


def check(what, found, right, bound):
    """Every value within a bound, and finite where the right one is."""
    off = np.abs(found.astype(np.longdouble) - right)
    if not (off <= bound).all():
        where = tuple(int(k) for k in np.argwhere(~(off <= bound))[0])
        raise Wrong(f"{what}{list(where)} is {found[where]!r}, expected {right[where]!r}")


def call_norm(call):
    """Group, layer, instance and RMS norm, and their gradients."""
    rng = call.rng
    shape = call.shape((2, 3, 4))
    dtype = np.dtype(pick(rng, (np.float32, np.float64)))
    x = call.array(shape, 1, dtype, pick(rng, KINDS[:2]))
    kind = pick(rng, ("group", "instance", "layer", "RMS"))
    rows = kind in ("layer", "RMS")
    last = shape[-int(rng.integers(1, len(shape))) :]
    of = last if rows else shape[1]
    weight, bias = (rng.normal(size=of).astype(dtype) if call.chance(0.7) else None for _ in "wb")
    eps = call.argument("eps", 1e-3, (0, -1.0, "1e-5", float("nan"), True))
    bad = (*NOTHING_OF_USE, x.astype(int), x.tolist())
    given = call.argument("x", x, bad)
    out = None if call.bad or call.chance(0.6) else call.layout(len(shape), True).place(
        np.zeros(shape, dtype)).array  # fmt: skip
    how = {"eps": eps, "out": out}
    if rows:
        function = fastbn.layer_norm_forward if kind == "layer" else fastbn.rms_norm_forward
        arguments = (last, weight, bias) if kind == "layer" else (last, weight)
        bias = bias if kind == "layer" else None
        if 0 in last:
            call.bad.append("no values")
    else:
        divides = [n for n in range(1, shape[1] + 1) if shape[1] % n == 0] or [1]
        groups = shape[1] if kind == "instance" else pick(rng, divides)
        function, arguments = fastbn.group_norm_forward, (groups, weight, bias)
        if kind == "instance":
            function = fastbn.instance_norm_forward
            arguments = (None, None, weight, bias)
        if x.size and x.size // shape[0] == groups:
            call.bad.append("one value in each group")
    found, error = call.made(function, given, *arguments, **how)
    if error is not None:
        return f"{type(error).__name__} of a norm"
    y, cache = found
    call.check_placed(y)
    if not x.size:
        return "empty"
    one, none = (1 if weight is None else weight), (0 if bias is None else bias)
    if rows:
        right = reference.norm(x, tuple(range(-len(last), 0)), one, none, eps, kind == "layer")
    else:
        vectors = np.ones(shape[1]) * one, np.zeros(shape[1]) + none
        right = reference.group_norm(x, groups, *vectors, eps)
    size = max(1.0, float(np.abs(right).max()), float(np.abs(x).max()))
    check("y", y, right, 30 * TOLERANCE[dtype.name] * size)
    gradients = fastbn.norm_backward(np.ones(shape, dtype), cache)
    if not np.isfinite(gradients.x).all():
        raise Wrong("a gradient that is not finite")
    if (gradients.weight is None) != (weight is None) or (gradients.bias is None) != (bias is None):
        raise Wrong("gradients of other parameters")
    return "normed"
