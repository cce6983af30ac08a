"""Whatever goes wrong while statistics are taken anew, every layer is as it was."""

import copy
import math

import numpy as np
import pytest

import fastbn
from fastbn import recalibrate
from tests import subprocess_tools as tools
from tests.test_recalibrate import QUIET, Chain, Network, assert_statistics, state_of


def mistake(name, net, x):
    """The arguments of a call that fails, and what it says."""
    bn, nan = net.norms[0], np.full_like(x @ net.w1, np.nan)
    good = x @ net.w1
    return {
        "no batches": ((bn, []), {}, ValueError, "gave nothing"),
        "empty batches": ((bn, [good[:0]]), {}, ValueError, "no batch that counts"),
        "one value": ((bn, [good[:1]]), {}, ValueError, "one value per channel"),
        "NaN in the second": ((bn, [good, nan]), {}, ValueError, "after 1 others.*'skip'"),
        "infinity": ((bn, [good, nan + np.inf]), {}, ValueError, "NaN or infinity"),
        "one array": ((bn, good), {}, TypeError, r"pass \[x\]"),
        "an array from a function": ((bn, lambda: good), {}, TypeError, r"pass \[x\]"),
        "a number": ((bn, 3), {}, TypeError, "iterable of batches, got int"),
        "other channels": ((bn, [good, x]), {}, ValueError, "num_features=6"),
        "integers": ((bn, [good.astype(int)]), {}, TypeError, "int64"),
        "layers without forward": ((net.norms, [x]), {}, TypeError, "3 layers need forward"),
        "no layers": (([], [x]), {"forward": net}, ValueError, "without layers"),
        "a dict of layers": (({"bn": bn}, [x]), {}, TypeError, r"list\(layers.values"),
        "another norm": ((fastbn.InstanceNorm1d(3), [x]), {}, TypeError, "each sample"),
        "a layer twice": (([bn, bn], [x]), {"forward": net}, ValueError, "twice"),
        "forward is no function": ((bn, [x]), {"forward": 3}, TypeError, "forward must be"),
        "never called": ((bn, [x]), {"forward": len}, ValueError, "has not called the layer"),
        "one never called": (
            ([*net.norms, fastbn.BatchNorm1d(3)], [x]), {"forward": net}, ValueError,
            r"has not called layer\[3\]",
        ),
        "no statistics": (
            (fastbn.BatchNorm1d(3, track_running_stats=False), [x]), {}, ValueError,
            "track_running_stats=True",
        ),
        "progress": ((bn, [good]), {"progress": 1}, TypeError, "progress must be"),
    }[name]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "no batches", "empty batches", "one value", "NaN in the second", "infinity", "one array",
        "an array from a function", "a number", "other channels", "integers",
        "layers without forward", "no layers", "a dict of layers", "another norm", "a layer twice",
        "forward is no function", "never called", "one never called", "no statistics", "progress",
    ],
)  # fmt: skip
def test_mistakes_change_nothing(name, rng):
    net = Network(rng)
    x = rng.normal(size=(20, 4))
    arguments, how, error, message = mistake(name, net, x)
    before = state_of(*net.norms)
    with pytest.raises(error, match=message):
        recalibrate(*arguments, **{**QUIET, **how})
    assert state_of(*net.norms) == before
    net(x)  # and nobody is watched any more
    assert state_of(*net.norms) != before


@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError, ZeroDivisionError])
def test_an_interruption_at_any_batch_changes_nothing(kind, rng):
    net, batches = Network(rng), [rng.normal(size=(20, 4)) for _ in range(3)]
    net.norms[1].eval()
    before = state_of(*net.norms)
    for last in range(1, 10):

        def forward(x, last=last):
            y = net(x)
            if net.calls == last:
                raise kind
            return y

        net.calls = 0
        with pytest.raises(kind):
            recalibrate(net.norms, batches, forward=forward, **QUIET)
        assert state_of(*net.norms) == before
        with pytest.raises(kind):
            recalibrate(net.norms[0], failing([x @ net.w1 for x in batches], kind), **QUIET)
        assert state_of(*net.norms) == before


@pytest.mark.parametrize("source", ["shrinks", "shrinks and has a length", "grows"])
def test_passes_over_other_batches(source, rng):
    """What each layer is measured on must be the same data."""
    net = Network(rng)
    batches = [rng.normal(size=(20, 4)) for _ in range(9)]

    class Loader:
        def __init__(self):
            self.left = 9 if source != "grows" else 3

        def __iter__(self):
            self.left += 3 if source == "grows" else -3
            return iter(batches[: self.left])

    class Sized(Loader):
        def __len__(self):
            return self.left

    before = state_of(*net.norms)
    loader = Sized() if "length" in source else Loader()
    with pytest.raises(ValueError, match=r"gave 6 batches.* and [39] in a later one.*pass a list"):
        recalibrate(net.norms, loader, forward=net, **QUIET)
    assert state_of(*net.norms) == before


def test_layers_in_another_order_in_each_batch(rng):
    net = Chain(rng, 2)
    x = rng.normal(size=(30, 4))
    before = state_of(*net.norms)
    for ways in ([(0, 1), (1, 0)], [(1,), (0, 1), (1, 0)]):
        with pytest.raises(ValueError, match=r"comes to layer\[[01]\].* before .*and after it"):
            recalibrate(net.norms, [(way, x) for way in ways], forward=net, **QUIET)
        assert state_of(*net.norms) == before


EVERY_STEP = """
import linecache, sys
import numpy as np, fastbn
from tests.test_recalibrate import QUIET, Network, state_of

rng = np.random.default_rng(0)
batches = [rng.normal(size=(20, 4)) for _ in range(2)]
net = Network(rng)
start = [bn.state_dict() for bn in net.norms]


def reset():
    for bn, state in zip(net.norms, start):
        bn.load_state_dict(state)


def raise_at(step):
    '''Ctrl-C at the step-th bytecode that the module runs from now on.'''
    left = step

    def local(frame, event, arg):
        nonlocal left
        if event == "opcode":
            line = linecache.getline(frame.f_code.co_filename, frame.f_lineno or 0)
            left -= 1
            if left <= 0 and "deque(unwatch" not in line:  # which is one step in truth
                sys.settrace(None)
                raise KeyboardInterrupt
        return local

    def trace(frame, event, arg):
        if frame.f_code.co_filename.endswith("recalibrate.py"):
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            return local

    sys.settrace(trace)


fastbn.recalibrate(net.norms, batches, forward=net, **QUIET)
after = state_of(*net.norms)
reset()
before = state_of(*net.norms)
assert before != after
faults = whole = 0
step = 1
while True:
    try:
        raise_at(step)
        fastbn.recalibrate(net.norms, batches, forward=net, **QUIET)
    except KeyboardInterrupt:
        sys.settrace(None)
        faults += 1
        found = state_of(*net.norms)
        assert found in (before, after), step
        assert all(bn._watch is None for bn in net.norms), step
        whole += found == after
        reset()
    else:
        sys.settrace(None)
        break
    step += 3
print(faults, whole)
"""


@pytest.mark.compiled
def test_ctrl_c_at_any_bytecode_leaves_all_layers_before_or_after():
    faults, whole = map(int, tools.run(EVERY_STEP).split())
    assert faults > 100
    assert whole < faults / 4


def failing(batches, kind):
    yield from batches
    raise kind


def test_arrays_that_cannot_be_written_leave_the_others(rng):
    net, batches = Network(rng), [rng.normal(size=(20, 4))]
    net.norms[2].running_var.flags.writeable = False
    before = [copy.deepcopy(bn.state_dict()) for bn in net.norms]
    with pytest.raises(ValueError, match="cannot write"):
        recalibrate(net.norms, batches, forward=net, **QUIET)
    for state, bn in zip(before, net.norms, strict=True):
        for name, array in bn.state_dict().items():
            np.testing.assert_array_equal(array, state[name])


def test_a_variance_beyond_float32():
    bn = fastbn.BatchNorm1d(1)
    with pytest.raises(ValueError, match=r"do not fit float32.*dtype='float64'"):
        recalibrate(bn, [np.array([[-1e30], [1e30]])], **QUIET)
    wide = fastbn.BatchNorm1d(1, dtype=np.float64)
    recalibrate(wide, [np.array([[-1e30], [1e30]])], **QUIET)
    assert wide.running_var[0] == pytest.approx(2e60)


def test_batches_with_nan_can_be_passed_over(rng):
    good = [rng.normal(size=(4, 3)) for _ in range(2)]
    bn = fastbn.BatchNorm1d(3, dtype=np.float64, on_nonfinite="skip")
    recalibrate(bn, [good[0], np.full((4, 3), math.nan), good[1]], **QUIET)
    assert_statistics(bn, good)
    assert bn.num_batches_tracked == 2


def test_one_recalibration_at_a_time(rng):
    bn, x = fastbn.BatchNorm1d(3), rng.normal(size=(4, 3))
    seen = []

    def forward(x):
        bn(x)
        with pytest.raises(RuntimeError, match="being recalibrated already"):
            recalibrate(bn, [x], **QUIET)
        seen.append(copy.deepcopy(bn))  # a copy is a layer like any other

    recalibrate(bn, [x], forward=forward, **QUIET)
    seen[0].train()(x)
    assert seen[0].num_batches_tracked == 1
