"""Properties of any input that are symmetries: what another input gives follows from this one."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import fastbn
from fastbn import ChannelStats, batch_norm, batch_norm_backward, batch_norm_forward, channel_stats
from tests.strategies import VALUES, layouts, problems
from tests.test_properties import (
    FINITE,
    SETTINGS,
    Expected,
    channel_max,
    close,
    same,
)

pytestmark = pytest.mark.compiled

SMALL = problems(min_size=1, plain=True, kinds=FINITE, outs=("none",))


@given(p=SMALL)
@SETTINGS
def test_permuting_samples(p):
    """Any axis but the channels': evaluation bit for bit, statistics to rounding."""
    axis = (p.axis % len(p.shape) + 1) % len(p.shape)
    order = p.rng(2).permutation(p.shape[axis])
    permuted = np.take(p.x, order, axis)
    options = {"eps": p.eps, "axis": p.axis}
    same(
        batch_norm(permuted, **p.vectors(), **options),
        np.take(batch_norm(p.x, **p.vectors(), **options), order, axis),
    )
    expected = Expected(p, True)
    a, b = channel_stats(p.x, p.axis), channel_stats(permuted, p.axis)
    close(a.mean, b.mean, 2 * expected.mean_bound)
    close(a.m2, b.m2, 2 * expected.var_bound * p.count)


@given(p=SMALL, training=st.booleans())
@SETTINGS
def test_permuting_channels(p, training):
    """A channel's place among the others changes no bit of anything."""
    assume(p.count > 1)
    order = p.rng(2).permutation(p.channels)

    def run(x, dy, pick):
        vectors = {k: None if v is None else v[pick] for k, v in p.vectors().items()}
        y, cache = batch_norm_forward(x, **vectors, training=training, eps=p.eps, axis=p.axis)
        grads = batch_norm_backward(dy, cache)
        stats = channel_stats(x, p.axis)
        vector = [grads.weight, grads.bias, vectors["running_mean"], vectors["running_var"]]
        return [y, grads.x], [*vector, stats.mean, stats.m2]

    dy = p.rng(1).normal(size=p.shape).astype(p.dtype)
    everything = np.arange(p.channels)
    arrays, vectors = run(p.x, dy, everything)
    take = [np.ascontiguousarray(np.take(v, order, p.axis)) for v in (p.x, dy)]
    permuted_arrays, permuted_vectors = run(*take, order)
    for array, permuted in zip(arrays, permuted_arrays, strict=True):
        same(permuted, np.take(array, order, p.axis))
    for vector, permuted in zip(vectors, permuted_vectors, strict=True):
        if vector is not None:
            same(permuted, vector[order])


@given(p=problems(kinds=FINITE), cuts=st.lists(st.integers(0, 70), max_size=4))
@SETTINGS
def test_merging_the_statistics_of_pieces(p, cuts):
    assume(p.x.size > 0)
    axis = (p.axis % len(p.shape) + 1) % len(p.shape)
    pieces = np.split(p.x, sorted(min(cut, p.shape[axis]) for cut in cuts), axis)
    merged = ChannelStats.empty(p.channels)
    for piece in pieces:
        merged = merged.merge(channel_stats(piece, p.axis))
    expected = Expected(p, True)
    np.testing.assert_array_equal(merged.count, p.count)
    close(merged.mean, expected.mean, 4 * expected.mean_bound)
    close(merged.m2, expected.var * p.count, 4 * expected.var_bound * p.count)


@given(
    p=problems(min_size=1, plain=True, kinds=("normal", "integers"), outs=("none",)),
    power=st.integers(-12, 12),
    shift=st.sampled_from([0.0, 1.0, -30.0, 500.0]),
)
@SETTINGS
def test_scaling_and_shifting_the_input(p, power, shift):
    """Powers of two scale exactly, and with them eps: not a bit of the output changes.

    A shift costs rounding of the input, which the reference sees too.
    """
    assume(p.count > 1)
    scale = 2.0**power
    options = {"weight": p.weight, "bias": p.bias, "training": True, "axis": p.axis}
    y = batch_norm(p.x, **options, eps=p.eps)
    same(batch_norm(p.x * p.dtype.type(scale), **options, eps=p.eps * scale**2), y)
    moved = p.x + p.dtype.type(shift)
    expected = Expected(p, True)
    rounding = np.finfo(p.dtype).eps * channel_max(moved, p.axis)
    gain = 0.0 if p.weight is None else np.abs(p.weight)
    gain = (1.0 if p.weight is None else gain) * expected.rstd
    # a rounded input moves the mean, the variance and the value itself
    bound = expected.y_bound + gain * rounding * (2 + 2 * expected.reach**2 * expected.rstd**2)
    close(batch_norm(moved, **options, eps=p.eps), expected.y, 2 * bound, p.axis)
    # the opposite sign gives the opposite output, exactly
    options["bias"] = None
    same(batch_norm(-p.x, **options, eps=p.eps) + 0.0, 0.0 - batch_norm(p.x, **options, eps=p.eps))


@given(p=SMALL, training=st.booleans())
@SETTINGS
def test_channels_first_and_channels_last_agree(p, training):
    assume(p.count > 1)
    last = np.ascontiguousarray(np.moveaxis(p.x, p.axis, -1))
    options = {"training": training, "eps": p.eps}
    y = batch_norm(p.x, **p.vectors(), **options, axis=p.axis)
    z = np.moveaxis(batch_norm(last, **p.vectors(), **options, axis=-1), -1, p.axis)
    if not training:
        same(np.array(z, order="C"), y)
    close(np.array(z), np.asarray(y, np.longdouble), 2 * Expected(p, training).y_bound, p.axis)


@given(p=problems(min_size=1, kinds=VALUES, outs=("none",)))
@SETTINGS
def test_evaluation_knows_nothing_of_the_other_samples(p):
    axis = (p.axis % len(p.shape) + 1) % len(p.shape)
    y = batch_norm(p.x, **p.vectors(), eps=p.eps, axis=p.axis)
    some = p.rng(2).integers(p.shape[axis], size=5)
    for k in some:
        index = (slice(None),) * axis + (slice(k, k + 1),)
        one = batch_norm(p.x[index], **p.vectors(), eps=p.eps, axis=p.axis)
        same(np.array(one, order="C"), np.array(y[index], order="C"))


@given(p=problems(min_size=1, kinds=("normal", "constant", "integers", "subnormal")))
@SETTINGS
def test_float32_and_float64_agree(p):
    assume(p.count > 1)
    assume(p.native == np.float32)
    wide = np.array(p.x, np.float64)
    for training in (True, False):
        options = {"training": training, "eps": p.eps, "axis": p.axis}
        vectors = {k: None if v is None else v.astype(float) for k, v in p.vectors().items()}
        y = batch_norm(p.x, **p.vectors(), **options)
        z = batch_norm(wide, **vectors, **options)
        close(y, np.asarray(z, np.longdouble), 2 * Expected(p, training).y_bound, p.axis)


@given(p=problems(min_size=1, kinds=VALUES), data=st.data())
@SETTINGS
def test_a_call_twice_and_its_copy_give_the_same_bits(p, data):
    """No state, no uninitialized memory, no thread that comes first."""
    assume(p.count > 1)
    again = data.draw(st.sampled_from(["same array", "copy of its layout"]))
    first = batch_norm_forward(p.x, **p.vectors(), training=True, eps=p.eps, axis=p.axis)
    x = p.x
    if again != "same array":
        x = p.placed.layout.place(np.array(p.x, p.native), guard=123.0).array
    second = batch_norm_forward(x, **p.vectors(), training=True, eps=p.eps, axis=p.axis)
    same(np.array(first[0]), np.array(second[0]))
    dy = data.draw(layouts(len(p.shape))).place(p.rng(1).normal(size=p.shape).astype(p.native))
    a, b = (batch_norm_backward(dy.array, cache) for _, cache in (first, second))
    for one, other in zip(a, b, strict=True):
        if one is not None:
            same(np.array(one), np.array(other))


@given(p=problems(min_size=1, kinds=FINITE, outs=("none",)))
@SETTINGS
def test_a_layer_is_its_function(p):
    """Layers add state and nothing to the arithmetic."""
    layers = {2: fastbn.BatchNorm1d, 3: fastbn.BatchNorm1d, 4: fastbn.BatchNorm2d}
    layers[5] = fastbn.BatchNorm3d
    ndim = len(p.shape)
    axis = p.axis % ndim
    assume(ndim in layers and axis != 0 and p.count > 1 and (ndim != 2 or axis == 1))
    bn = layers[ndim](p.channels, p.eps, p.momentum, dtype=p.native, axis=axis)
    vectors = p.vectors()
    for name, value in vectors.items():
        if value is not None:
            getattr(bn, name)[:] = value
        else:
            vectors[name] = getattr(bn, name).copy()
    for training in (True, False):
        bn.train(training)
        wanted = batch_norm(
            p.x, **vectors, training=training, momentum=p.momentum, eps=p.eps, axis=axis
        )
        same(np.array(bn(p.x)), np.array(wanted))
        for name, value in vectors.items():
            same(getattr(bn, name), value)
