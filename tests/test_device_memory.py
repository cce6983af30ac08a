"""Memory that calls on a device are given, streams that they work on, and which GPU it is."""

import gc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from numba import config

import fastbn
from tests import internals_device as devices
from tests.test_device import got, put

pytestmark = [
    pytest.mark.skipif(not config.ENABLE_CUDASIM, reason="needs NUMBA_ENABLE_CUDASIM=1"),
    pytest.mark.filterwarnings("ignore"),
]


# --- memory ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var"])
@pytest.mark.parametrize("training", [True, False])
def test_an_out_that_overlaps_a_vector(name, training):
    flat = put(np.arange(15, dtype=np.float32))
    x, vector = put(np.ones((4, 3), np.float32)), flat[:3]
    arguments = {"running_mean": put(np.ones(3, np.float32)),
                 "running_var": put(np.ones(3, np.float32)), name: vector}  # fmt: skip
    for out in (flat[:12], flat[2:14]):
        with pytest.raises(ValueError, match=f"out overlaps {name}|{name} and out share memory"):
            fastbn.batch_norm(x, **arguments, training=training, out=out.reshape(4, 3))
    assert got(flat).tolist() == list(range(15))
    fastbn.batch_norm(x, **arguments, training=training, out=flat[3:].reshape(4, 3))


def test_an_out_that_is_a_vector():
    """One sample has as many values as a vector, so both may be the same memory."""
    weight, ones = put(np.ones(3, np.float32)), put(np.ones(3, np.float32))
    with pytest.raises(ValueError, match="out overlaps weight"):
        fastbn.batch_norm(
            put(np.ones((1, 3), np.float32)), ones, ones, weight, out=weight.reshape(1, 3)
        )


def test_memory_that_is_lent_to_be_read(rng):
    def ones():
        return put(np.ones(3, np.float32))

    x, frozen = put(rng.normal(size=(6, 3)).astype(np.float32)), devices.read_only(ones())
    out = devices.read_only(put(np.zeros((6, 3), np.float32)))
    with pytest.raises(ValueError, match="out is read-only"):
        fastbn.batch_norm(x, training=True, out=out)
    _, cache = fastbn.batch_norm_forward(x, training=True)
    with pytest.raises(ValueError, match="out is read-only"):
        fastbn.batch_norm_backward(x, cache, out=out)
    for running in ((frozen, ones()), (ones(), frozen)):
        with pytest.raises(ValueError, match=r"running_\w+ is read-only, but training updates it"):
            fastbn.batch_norm(x, *running, training=True)
    fastbn.batch_norm(x, frozen, ones(), frozen, training=False)  # is only read
    layer = fastbn.BatchNorm1d(3, device="cuda")
    with pytest.raises(ValueError, match="running_var is read-only; load_state_dict copies it"):
        layer.running_var = frozen


def test_who_says_that_memory_is_lent_to_be_read(monkeypatch):
    arrays = devices.on_a_device(monkeypatch)

    def of(flag, module="cupy"):
        interface = {"data": (0, flag), "typestr": "<f4", "shape": (3,)}
        return type("A", (), {"__module__": module, "__cuda_array_interface__": interface})()

    assert arrays.is_readonly(of(True))
    assert not arrays.is_readonly(of(False))
    assert arrays.is_readonly(of(False, "jaxlib._jax"))  # its DLPack does not say so
    owner = of(True)
    assert arrays.owner_of(SimpleNamespace(gpu_data=SimpleNamespace(owner=owner))) is owner
    assert not arrays.is_readonly(SimpleNamespace(gpu_data=SimpleNamespace(owner=None)))


def test_one_value_with_a_step_of_zero_is_no_vector(monkeypatch):
    layer = fastbn.BatchNorm1d(64, device="cuda")
    with pytest.raises(ValueError, match=r"weight of shape .* has gaps in memory"):
        layer.weight = devices.repeated(1, 64)
    arrays = devices.on_a_device(monkeypatch)
    numba = SimpleNamespace(
        gpu_data=None, strides=(0,), dtype=np.dtype("f4"),
        __cuda_array_interface__={"shape": (64,), "strides": None, "typestr": "<f4"},
    )  # fmt: skip
    assert arrays.strides_of(numba, (64,)) == (0,)


def test_no_output_of_bfloat16_for_arrays_of_others():
    """Numba has no such dtype."""
    arrays, *_ = devices.device_modules()
    array = devices.as_bfloat16(devices.lent(put(np.zeros((4, 3), np.uint16))))
    with pytest.raises(TypeError, match=r"no output of bfloat16 can be made .* lender; pass out="):
        arrays.empty_like(array)


def test_bfloat16_comes_to_the_host_as_float32(monkeypatch):
    arrays, *_ = devices.device_modules()
    bits = put(np.array([0x3F80, 0xC040], np.uint16))
    known = devices.as_bfloat16(bits)
    monkeypatch.setattr(arrays, "described", lambda name, array: known)
    assert arrays.to_host("weight", bits).tolist() == [1.0, -3.0]


def test_a_batch_of_another_size_allocates_nothing_and_waits_for_nobody(monkeypatch, rng):
    assert all(a is b for a, b in zip(devices.scratch_of(5), devices.scratch_of(8), strict=True))
    assert devices.scratch_of(9)[0] is not devices.scratch_of(8)[0]
    cuda = devices.simulated_device()
    monkeypatch.setattr(cuda, "synchronize", lambda: pytest.fail("waits for the device"))
    x = put(rng.normal(size=(6, 11)).astype(np.float32))  # no other test has 11 channels so
    fastbn.batch_norm(x, training=True)


# --- streams --------------------------------------------------------------------------------


def on(stream, array):
    return put(array).bind(stream)


def test_a_call_comes_after_what_other_streams_were_asked_for_and_before_what_follows(monkeypatch):
    asked, _ = devices.record_streams(monkeypatch)
    ones = np.ones(3, np.float32)
    x, out = on(7, np.eye(4, 3, dtype=np.float32)), on(6, np.empty((4, 3), np.float32))
    arguments = on(9, ones), on(9, ones), on(8, ones), on(7, ones)
    fastbn.batch_norm(x, *arguments, training=True, out=out)
    launched = asked.index(("forward", 7))
    before, after = asked[:launched], asked[launched + 1 :]
    assert {(7, "waits for", stream) for stream in (6, 8, 9)} == {a for a in before if len(a) == 3}
    assert {a for a in after if len(a) == 3} == {(6, "waits for", 7), (9, "waits for", 7)}
    assert after.count(("record", 7)) == 2
    del asked[:]
    fastbn.batch_norm(x, on(7, ones), on(7, ones), out=on(7, got(out)))
    assert [a[0] for a in asked] == ["normalize"]  # one stream needs no events


def test_statistics_come_to_the_host_when_they_are_there(monkeypatch):
    asked, _ = devices.record_streams(monkeypatch)
    fastbn.channel_stats(on(7, np.eye(4, 3, dtype=np.float32)))
    assert asked == [("moments", 7), ("record", 7), ("finish", 7)]


def test_a_backward_on_another_stream_comes_after_the_statistics_of_its_forward(monkeypatch):
    x = on(7, np.eye(4, 3, dtype=np.float32))
    y, cache = fastbn.batch_norm_forward(x, weight=on(7, np.ones(3, np.float32)), training=True)
    asked, _ = devices.record_streams(monkeypatch)
    x.stream = 8  # as torch's current one changes
    fastbn.batch_norm_backward(y.bind(8), cache, out=on(8, got(y)))
    assert asked == [
        ("record", 7), (8, "waits for", 7), ("backward", 8), ("record", 8), (7, "waits for", 8),
    ]  # fmt: skip


def test_an_empty_batch_keeps_to_its_stream(monkeypatch):
    streams, x = [], on(7, np.empty((0, 3), np.float32))
    cuda = devices.simulated_device()
    original = cuda.to_device
    monkeypatch.setattr(
        cuda, "to_device", lambda a, stream=0: (streams.append(stream), original(a, stream))[1]
    )
    fastbn.batch_norm(x, training=True)
    assert streams == [7]


def test_memory_of_others_is_kept_until_the_kernels_are_done(monkeypatch):
    asked, event = devices.record_streams(monkeypatch)

    def call(array):
        fastbn.batch_norm(array, training=True)
        return weakref.ref(array)

    first = call(devices.lent(on(7, np.eye(4, 3, dtype=np.float32))))
    gc.collect()
    assert first() is not None
    assert asked[-1] == ("record", 7)
    second = call(devices.lent(on(7, np.eye(5, 3, dtype=np.float32))))
    event.ready = True
    del asked[:]
    third = call(put(np.eye(5, 3, dtype=np.float32)))  # Numba's own needs nobody to keep it
    gc.collect()
    assert (first(), second(), third()) == (None, None, None)


def test_no_more_than_two_kernels_whose_blocks_wait_for_each_other(monkeypatch):
    """One stream runs its own one by one; from the second on, each waits for the one before."""
    asked, _ = devices.record_streams(monkeypatch, launch=False)
    devices.share_once(monkeypatch, parts=2)
    x, kernel = np.eye(4, 3, dtype=np.float32), "forward"
    for stream in (7, 7, 8, 7, 9):
        fastbn.batch_norm(on(stream, x), training=True, out=on(stream, x))
    assert asked == [
        (kernel, 7), (kernel, 7),
        (kernel, 8), ("record", 8),
        (7, "waits for", 8), (kernel, 7), ("record", 7),
        (9, "waits for", 7), (kernel, 9), ("record", 9),
    ]  # fmt: skip


class Lender:
    """An array with an interface and DLPack; it notes for which stream it is asked."""

    def __init__(self, stream):
        self.array, self.asked = np.ones((4, 3), np.float32), []
        self.__cuda_array_interface__ = {"data": (0, False), "version": 2, **stream}

    def __dlpack__(self, stream=None):
        self.asked.append(stream)
        return self.array.__dlpack__()


def test_an_interface_without_a_stream_is_not_taken_where_dlpack_orders_the_call(monkeypatch):
    arrays = devices.on_a_device(monkeypatch)
    named = Lender({"stream": 5})
    assert arrays.with_interface(named) is named
    for unnamed in (Lender({}), Lender({"stream": None})):
        borrowed = arrays.with_interface(unnamed)
        assert unnamed.asked == [1]
        assert borrowed.__cuda_array_interface__["stream"] == 1
        assert borrowed.__cuda_array_interface__["version"] == 3
    alone = SimpleNamespace(__cuda_array_interface__={"data": (0, False)})
    assert arrays.with_interface(alone) is alone


# --- which GPU ------------------------------------------------------------------------------


@pytest.mark.parametrize("binding", [True, False])
def test_the_driver_says_where_memory_lies(monkeypatch, binding):
    assert devices.driver_of_a_device(monkeypatch, binding, gpu=1)(4096) == 1


def test_where_an_array_lies_whose_owner_says_it_or_not(monkeypatch):
    arrays = devices.on_a_device(monkeypatch)
    monkeypatch.setattr(arrays, "gpu_by_driver", {4096: 3}.get)
    interface = {"data": (4096, False)}
    silent = type("Silent", (), {"__cuda_array_interface__": interface})()
    says = type("Says", (), {"__cuda_array_interface__": interface,
                             "__dlpack_device__": lambda self: (2, 1)})()  # fmt: skip
    context = SimpleNamespace(device=SimpleNamespace(id=0))
    for owner, gpu in ((silent, 3), (says, 1), (None, 0)):
        view = SimpleNamespace(gpu_data=SimpleNamespace(owner=owner, context=context))
        assert arrays.gpu_of(view) == gpu  # of the owner, whichever was current
        assert owner is None or arrays.gpu_of(owner) == gpu
