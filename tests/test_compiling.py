"""What is compiled, and when: little at a time, a bounded number of pieces, and all by warmup."""

import os

import numpy as np
import pytest

import fastbn
from tests import internals
from tests import subprocess_tools as tools

compiled_only = pytest.mark.compiled


def filled(code, **values):
    for name, value in values.items():
        assert f"{{{name}}}" in code
        code = code.replace(f"{{{name}}}", repr(value))
    return code


# --- parts for channels that float32 cannot hold ----------------------------------------------

WIDE = """
import numpy as np, pytest
from tests import internals, reference
from tests.internals import Native
native = Native()
import fastbn

AXIS, SHAPE, TILES = {axis}, {shape}, {tiles}
rng = np.random.default_rng(3)
C, EPS = SHAPE[AXIS], 1e-30
dy = rng.normal(0.1, 1, SHAPE).astype(np.float32)
weight, bias = rng.normal(1, 0.3, (2, C)).astype(np.float32)
patch = pytest.MonkeyPatch()
if TILES:  # the channels of each go through all steps alone
    internals.set_limits(patch, tile_share=1, tile_bytes=TILES, cache_bytes=TILES)
made = internals.Made(patch)


def results(x, in_place):
    '''Outputs, statistics and gradients of training and of evaluation with the same statistics.'''
    def forward(*args):
        work = x.copy()
        y, cache = fastbn.batch_norm_forward(
            work, *args, eps=EPS, axis=AXIS, out=work if in_place else None
        )
        assert (y is work) == in_place
        if in_place:
            _, cache = fastbn.batch_norm_forward(x, *args, eps=EPS, axis=AXIS)
        return y, cache

    mean, var = np.zeros(C), np.ones(C)
    stats = fastbn.channel_stats(x, AXIS)
    y, cache = forward(mean, var, weight, bias, True, 1.0)
    z, frozen = forward(stats.mean, stats.var(), weight, bias)
    gradients = []
    for each in (cache, frozen):
        work = dy.copy()
        grads = fastbn.batch_norm_backward(work, each, out=work if in_place else None)
        assert (grads.x is work) == in_place
        gradients += grads
    return [y, z, mean, var, stats.mean, stats.m2, *gradients]


def check(x, got):
    '''Each channel at its own scale.'''
    y, mean, var = reference.forward(x, weight, bias, EPS, AXIS)
    m = x.size // C
    first = reference.backward(dy, x, mean, var, weight, EPS, AXIS, True)
    frozen = reference.backward(dy, x, mean, var, weight, EPS, AXIS, False)
    wanted = [y, y, mean, var * m / (m - 1), mean, var * m, *first, *frozen]
    for k, (a, b) in enumerate(zip(got, wanted)):
        a, b = (np.moveaxis(v, AXIS if v.ndim > 1 else 0, 0).reshape(C, -1) for v in (a, b))
        with np.errstate(over="ignore"):
            b = b.astype(a.dtype).astype(float)
        scale = np.abs(b).max(1, keepdims=True)
        if k == 4 or k == 2:  # a mean is as right as its channel is wide
            scale = np.maximum(scale, np.asarray(np.sqrt(var), float)[:, None])
        allowed = 1e-4 * np.abs(b) + np.maximum(1e-5 * scale, 1e-37)
        assert (np.abs(a - b) <= allowed).all(), (k, np.abs((a - b) / allowed).max(1))


def everything(x):
    '''The same bits in place or not, on one thread or several.'''
    found = []
    for threads in (1, 4):
        fastbn.set_num_threads(threads)
        internals.forget_plans()
        found += [results(x, in_place) for in_place in (False, True, False)]
    check(x, found[0])
    for other in found[1:]:
        for a, b in zip(found[0], other):
            np.testing.assert_array_equal(a, b)


normal = rng.normal(3, 2, SHAPE).astype(np.float32)
results(normal, False)
if not TILES:  # in tiles nothing can be made again that has been written over
    everything(normal)
assert native.all and not native.wide, native.wide

of_channel = np.moveaxis(normal, AXIS, 0)
for k, change in enumerate([
    lambda v: v * 1e30, lambda v: v * 1e-30, lambda v: v * 1e19, lambda v: v * 1e-36,
    lambda v: v * 0 + 3e8, lambda v: v * 0, lambda v: v * 1e-3 + 1e4,
]):
    x = normal.copy()
    channel = np.moveaxis(x, AXIS, 0)[k % C]
    with np.errstate(over="ignore"):
        channel[...] = change(channel.astype(float))
    everything(x)
    if k == 0:
        kinds = {name.split("_", 1)[1] for name in native.wide}
        assert any("moments" in kind for kind in kinds), kinds
        assert any("normaliz" in kind for kind in kinds), kinds
        assert any("gradient" in kind for kind in kinds), kinds
assert made.tiles() == bool(TILES)
assert made.threads()

# NaN and infinity stay in their channel, whose neighbour is summed again
x = normal.copy()
np.moveaxis(x, AXIS, 0)[0].flat[5] = np.inf
np.moveaxis(x, AXIS, 0)[1] *= np.float32(1e30)
for in_place in (False, True):
    y, *_ = results(x, in_place)
    y = np.moveaxis(y, AXIS, 0)
    assert np.isnan(y[0]).all() and np.isfinite(y[1:]).all()
"""


@compiled_only
@pytest.mark.parametrize(
    ("shape", "axis", "tiles"),
    [((8, 5, 2000), 1, 0), ((5, 12, 4000), 1, 500_000), ((2000, 40), 1, 0)],
    ids=["channels first", "tiles", "channels last"],
)
def test_parts_in_float64_are_loaded_when_a_channel_needs_them(shape, axis, tiles):
    """Not before: neither normal data nor statistics in float64 ask for them."""
    tools.run(filled(WIDE, shape=shape, axis=axis, tiles=tiles))


# --- how much is compiled ---------------------------------------------------------------------


def variants(x):
    """The numbers of x in arrays of every flag and stride."""
    yield "plain", x
    readonly = x.copy()
    readonly.flags.writeable = False
    yield "read-only", readonly
    raw = np.empty(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    raw[...] = x
    assert not raw.flags.aligned
    yield "unaligned", raw
    yield "big-endian", x.astype(x.dtype.newbyteorder(">"))
    yield "Fortran", np.asfortranarray(x)
    yield "steps", np.repeat(np.repeat(x, 2, 0), 2, -1)[::2, ..., ::2]
    yield "negative strides", np.ascontiguousarray(x[::-1, ..., ::-1])[::-1, ..., ::-1]
    yield "zero strides", np.broadcast_to(x[:1], x.shape)
    yield "subclass", x.view(type("Mine", (np.ndarray,), {}))


def use(x, axis):
    c = x.shape[axis]
    mean, var = np.zeros(c, x.dtype.newbyteorder("=")), np.ones(c, x.dtype.newbyteorder("="))
    fastbn.batch_norm(x, mean, var, axis=axis)
    _, cache = fastbn.batch_norm_forward(x, mean, var, training=True, axis=axis)
    fastbn.batch_norm_backward(x, cache)
    fastbn.channel_stats(x, axis)


def use_mixed(x, axis):
    """Statistics and parameters of the other dtype, of none, out, layers."""
    c, other = x.shape[axis], np.dtype("f8" if x.dtype == np.float32 else "f4")
    s = np.ones((4, 2 * c), other)[:, ::2]
    fastbn.batch_norm(x, *s, axis=axis, out=np.empty_like(x))
    fastbn.batch_norm(x, *s, axis=axis, training=True, out=x)
    fastbn.batch_norm(x, s[0], s[1].astype(x.dtype), axis=axis, training=True)
    fastbn.batch_norm(x, axis=axis)
    if x.ndim < 4 and axis == 1:
        for track in (True, False):
            bn = fastbn.BatchNorm1d(c, dtype=other, track_running_stats=track)
            bn.backward(bn(x))
            bn.eval()(x)


WARMED = """
import numpy as np, pytest
from tests.internals import Made, Native, set_limits
native = Native()
import fastbn
from tests.test_compiling import use, use_mixed, variants

assert not native.all
fastbn.warmup(progress=False)
known = native.all
assert 20 < len(known) < 120, len(known)
new = lambda: native.all - known
made, rng = Made(patch := pytest.MonkeyPatch()), np.random.default_rng(0)
for cache in (1 << 25, 1 << 18):  # and past the caches
    set_limits(patch, cache_bytes=cache)
    for threads in (1, 4):
        fastbn.set_num_threads(threads)
        for dtype in ("f4", "f8"):
            for shape, axis in [((5, 3), 1), ((300, 400), 1), ((2, 3, 9), 1), ((3, 2, 60_000), 1),
                                ((4, 70, 8, 9), 1), ((90_000, 3), 1), ((2, 3, 3, 5), -1),
                                ((64, 64, 33), 2), ((2, 1, 200_000), 1), ((2, 3, 1), 1)]:
                x = rng.normal(0, 1, shape).astype(dtype)
                for name, v in variants(x):
                    try:
                        use(v, axis)
                    except TypeError:
                        assert name == "subclass"
                    assert native.all == known, (name, shape, dtype, new())
                use_mixed(x, axis)
                use(x * np.asarray(1e25, dtype), axis)
                assert native.all == known, ("mixed", shape, dtype, new())
assert made.tiles() and made.threads() and made.streaming()
print(len(native.compiled))
"""


@compiled_only
def test_warmup_compiles_all_there_is_and_a_new_process_loads_it(tmp_path):
    """No shape, stride, flag or number of an array then adds anything: their number is bounded."""
    alone = tools.with_empty_cache(tmp_path)
    tools.run("import fastbn; fastbn.warmup()", **alone)
    assert int(tools.run(WARMED, **alone)) == 0


WARMED_FOR = """
import numpy as np
from tests.internals import Native
native = Native()
import fastbn

fastbn.warmup(["float32"], modes=[{mode}], progress=False)
native.__init__()
x = np.random.default_rng(0).normal(size=(8, 64, 56, 56)).astype("f4")
for layout in (x, np.ascontiguousarray(x.transpose(0, 2, 3, 1)), x.reshape(-1, 64)):
    axis = 1 if layout is x or layout.ndim == 2 else 3
    for small in (layout, layout[:2]):
        fastbn.batch_norm(small, np.zeros(64, "f4"), np.ones(64, "f4"), axis=axis)
evaluation = len(native.compiled)
fastbn.channel_stats(x)
statistics = len(native.compiled) - evaluation
bn = fastbn.BatchNorm2d(64)
bn.backward(bn(x))
print(evaluation, statistics, len(native.compiled) - evaluation - statistics)
"""


@compiled_only
@pytest.mark.parametrize(
    ("mode", "nothing"), [("evaluation", (0,)), ("statistics", (1,)), ("training", (0, 1, 2))]
)
def test_warmup_compiles_what_a_mode_needs_and_no_more(mode, nothing, tmp_path):
    code = filled(WARMED_FOR, mode=mode)
    compiled = list(map(int, tools.run(code, **tools.with_empty_cache(tmp_path)).split()))
    assert [k for k in range(3) if compiled[k] == 0] == list(nothing)


WARMED_AROUND = """
import ml_dtypes
import numpy as np
from tests.internals import Native
native = Native()
import fastbn

fastbn.warmup(["float16", "bfloat16"], ["channels_first"], ["evaluation"], progress=False)
fastbn.warmup(["float32"], ["channels_first"], ["norms"], progress=False)
native.__init__()
x = np.random.default_rng(0).normal(size=(8, 64, 14, 14)).astype("f4")
mean, var = np.zeros(64, "f4"), np.ones(64, "f4")
for kind in (np.float16, ml_dtypes.bfloat16):
    fastbn.batch_norm(x.astype(kind), mean, var)
for layer in (fastbn.GroupNorm(8, 64), fastbn.LayerNorm(14), fastbn.RMSNorm((14, 14)),
              fastbn.InstanceNorm2d(64, affine=True), fastbn.GroupNorm(4, 64, affine=False)):
    layer(x)
print(len(native.compiled), end=" ")
fastbn.batch_norm(x, mean, var, activation="silu")
print(len(native.compiled))
"""


@compiled_only
def test_warmup_for_16_bits_and_norms_and_what_an_activation_compiles(tmp_path):
    """Of a fused evaluation the pass and its entry are new: nothing else is compiled again."""
    pytest.importorskip("ml_dtypes")
    after, fused = map(int, tools.run(WARMED_AROUND, **tools.with_empty_cache(tmp_path)).split())
    assert after == 0
    assert 0 < fused < 12


BROKEN_WORKERS = """
import sys, numpy as np
from tests.internals import Native
native = Native()
import fastbn

sys.executable = {program}
fastbn.warmup(["float64"], ["channels_last"], progress=False)
x = np.random.default_rng(0).normal(size=(50, 3))
y = fastbn.batch_norm(x, training=True)
np.testing.assert_allclose(y, (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5))
"""


@compiled_only
@pytest.mark.slow
@pytest.mark.parametrize("program", ["/bin/false", "/bin/cat", "/no/such/program", ""])
def test_warmup_without_help_of_other_processes(program, tmp_path):
    """They end at once, claim to have done what they have not, or cannot be started."""
    tools.run(filled(BROKEN_WORKERS, program=program), **tools.with_empty_cache(tmp_path))


@compiled_only
def test_warmup_shows_its_progress_on_a_terminal_only_if_asked(monkeypatch, capsys):
    for layout in ("channels_first", "channels_last"):
        fastbn.warmup(["float32"], [layout], progress=False)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(internals.progress_bars, "_is_terminal", lambda stream: True)
    fastbn.warmup(["float32"], ["channels_first"])
    out, err = capsys.readouterr()
    assert out == ""
    assert "compiling" in err
    fastbn.warmup(["float32"], ["channels_first"], progress=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"dtypes": ["float128"]}, ValueError, "dtypes must be among float32, float64"),
        ({"dtypes": ["int32"]}, ValueError, "dtypes must be among"),
        ({"dtypes": ["nonsense"]}, (TypeError, ValueError), "nonsense"),
        ({"dtypes": "float32"}, TypeError, "dtypes must be a list"),
        ({"dtypes": np.float32}, TypeError, "dtypes must be a list"),
        ({"dtypes": np.dtype("f4")}, TypeError, "dtypes must be a list"),
        ({"layouts": "channels_first"}, TypeError, "layouts must be a list"),
        ({"layouts": ["NCHW"]}, ValueError, "layouts must be among channels_first"),
        ({"layouts": [1]}, ValueError, "layouts must be among"),
        ({"modes": "training"}, TypeError, "modes must be a list"),
        ({"modes": ["eval"]}, ValueError, "modes must be among evaluation, training, statistics"),
        ({"dtypes": 3}, TypeError, "not iterable"),
    ],
    ids=str,
)
def test_warmup_refuses_what_it_does_not_know(arguments, error, says):
    with pytest.raises(error, match=says):
        fastbn.warmup(**arguments, progress=False)


# --- interrupts -------------------------------------------------------------------------------

INTERRUPTED = """
import random, signal
import numpy as np, fastbn

class Interrupt(KeyboardInterrupt): pass

def interrupt(*_):
    raise Interrupt

chance, faults = random.Random({seed}), 0
signal.signal(signal.SIGINT, interrupt)
signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
for first in (1, -1):
    for dtype in ("f4", "f8"):
        x = np.random.default_rng(1).normal(2, 3, (4, 3, 3)).astype(dtype)
        one = np.ones(3, dtype)
        for _ in range(3):
            try:
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.01, 0.4))
                fastbn.batch_norm(x, 2 * one, one, axis=first)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Interrupt:
                faults += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
        y = fastbn.batch_norm(x, 2 * one, one, axis=first)
        np.testing.assert_allclose(y, (x - 2) / np.sqrt(1 + 1e-5), rtol=1e-5, atol=1e-6)
print(faults)
"""


@compiled_only
@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_ctrl_c_while_it_compiles_and_then_the_next_call(tmp_path):
    """The copy of the package has no code but what these processes compile."""
    tools.copy_package(tmp_path)
    options = {"path": tmp_path, "env": {"NUMBA_CACHE_DIR": tmp_path / "cache"}}
    codes = [filled(INTERRUPTED, seed=seed) for seed in (1, 2)]
    faults = sum(map(int, tools.run_all(codes, **options)))
    assert faults >= 6
