"""Where a call is done. Here there may be no device: what is then said, and what is left alone."""

import gc
import sys

import numpy as np
import pytest
from numba import config

import fastbn
from tests import internals_device as devices
from tests import subprocess_tools as tools

no_device = pytest.mark.skipif(config.ENABLE_CUDASIM, reason="Numba simulates a device")

UNTOUCHED = """
import sys
import numpy as np
import fastbn

x = np.ones((4, 3), "f4") * np.arange(4, dtype="f4")[:, None]
bn = fastbn.BatchNorm1d(3)
bn.backward(bn(x))
bn.eval()(x)
bn.load_state_dict(bn.state_dict())
fastbn.channel_stats(x)
for wrong in (x.tolist(), None, x[0]):
    try:
        bn(wrong)
    except (TypeError, ValueError):
        continue
    raise AssertionError(wrong)
print([name for name in sys.modules if name.startswith(("numba.cuda", "cuda", "cupy", "torch"))])
"""


def test_nothing_of_cuda_is_imported_for_numpy_arrays():
    assert tools.run(UNTOUCHED).strip() == "[]"


@no_device
def test_a_device_that_is_not_there_is_an_error_that_names_the_way_out():
    with pytest.raises(RuntimeError, match=r"no NVIDIA GPU .*pip install 'fastbn\[cuda\]'"):
        fastbn.BatchNorm2d(3, device="cuda")
    with pytest.raises(RuntimeError, match="no NVIDIA GPU"):  # which would have no arrays there
        fastbn.BatchNorm2d(3, affine=False, track_running_stats=False, device="cuda")
    with pytest.raises(RuntimeError, match="no NVIDIA GPU"):
        fastbn.LayerNorm(3, device="cuda")
    with pytest.raises(RuntimeError, match="no NVIDIA GPU"):
        fastbn.InstanceNorm1d(3).to("cuda")
    bn = fastbn.BatchNorm1d(3)
    bn(np.eye(3, dtype=np.float32))
    before = bn.state_dict()
    with pytest.raises(RuntimeError, match="no NVIDIA GPU"):
        bn.to("cuda")
    for name, array in bn.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    assert bn.backward(np.eye(3, dtype=np.float32)).x.shape == (3, 3)  # nothing was forgotten
    assert bn.to("cpu") is bn


class OnDevice:
    """What says that it lies on a device, as CuPy's arrays do."""

    shape, dtype = (4, 3), np.dtype(np.float32)
    __cuda_array_interface__ = {"shape": (4, 3), "typestr": "<f4", "data": (0, False), "version": 3}  # noqa: RUF012


@no_device
def test_an_array_on_a_device_without_a_driver():
    def layer_norm(x):
        return fastbn.layer_norm(x, 3)

    for call in (fastbn.batch_norm, fastbn.channel_stats, fastbn.BatchNorm1d(3), layer_norm):
        with pytest.raises(RuntimeError, match="copy the array to NumPy"):
            call(OnDevice())


class OnCpu:
    """Its class has the interface, and it refuses to give it."""

    @property
    def __cuda_array_interface__(self):
        raise AttributeError("lies on the CPU")


class OfAnotherDtype(OnCpu):
    """Its interface has no letter for bfloat16, as JAX's; by DLPack it can be lent."""

    def __init__(self, kind):
        self.kind = kind

    def __dlpack_device__(self):
        return self.kind, 0


@pytest.mark.parametrize(("kind", "there"), [(2, True), (1, False)])
def test_an_interface_that_is_refused_where_dlpack_knows_the_device(kind, there):
    assert devices.on_device(OfAnotherDtype(kind)) is there


@pytest.mark.parametrize("value", [0, 1])
def test_whether_a_device_is_simulated_is_numbas_decision(monkeypatch, value):
    """It reads its settings from a file too."""
    monkeypatch.setattr(config, "ENABLE_CUDASIM", value)
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", str(1 - value))
    assert devices.is_simulated() is bool(value)


class ByDlpack:
    """An array that lends its memory by DLPack alone, and says that a GPU has it."""

    def __init__(self, array, device):
        self.array, self.device = array, device

    def __dlpack_device__(self):
        if self.device is None:
            raise BufferError("is lent to nobody")
        return self.device

    def __dlpack__(self, **how):
        return self.array.__dlpack__(**how)


@pytest.mark.parametrize("device", [(2, 0), (13, 1)], ids=["its own memory", "managed memory"])
def test_what_lies_on_a_device_by_dlpack(device):
    assert devices.on_device(ByDlpack(np.ones(3), device))


@pytest.mark.parametrize("device", [(1, 0), (10, 0), None], ids=["CPU", "ROCm", "refused"])
def test_what_does_not_lie_on_a_device_by_dlpack(device):
    array = ByDlpack(np.ones((3, 2)), device)
    assert not devices.on_device(array)
    if device == (1, 0):
        np.testing.assert_array_equal(fastbn.batch_norm(array, training=True), 0)
        return
    with pytest.raises(TypeError, match="must be a numpy"):
        fastbn.batch_norm(array)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "uint16", "int64", "bool"])
def test_memory_that_is_lent_by_dlpack(dtype):
    base = np.arange(48).reshape(2, 4, 6).astype(dtype)
    for array in (base, base.transpose(2, 0, 1), base[:, 1:], base[:0], base[0, 0, 0, ...]):
        borrowed = devices.borrowed(ByDlpack(array, (2, 3)))
        interface = borrowed.__cuda_array_interface__
        assert borrowed.shape == array.shape == interface["shape"]
        assert str(borrowed.dtype) == dtype
        assert borrowed.__dlpack_device__() == (1, 0)  # what the memory itself says
        if array.size:
            assert interface["data"][0] == array.ctypes.data
            steps = interface["strides"]
            assert all(
                one == other
                for one, other, n in zip(steps, array.strides, array.shape, strict=True)
                if n > 1
            )


def test_kinds_of_values_that_numpy_lacks():
    bits = np.arange(6, dtype=np.uint16)
    borrowed = devices.borrowed(devices.as_dtype(bits, code=4))
    assert borrowed.dtype == "bfloat16"
    assert borrowed.__cuda_array_interface__["typestr"] == "<u2"
    with pytest.raises(TypeError, match="DLPack says dtype 3 of 16 bits"):
        devices.borrowed(devices.as_dtype(bits, code=3))


def test_memory_is_lent_for_as_long_as_somebody_has_it():
    array = np.ones(1000)
    borrowed = devices.borrowed(array)
    before = sys.getrefcount(array)
    del borrowed
    gc.collect()
    assert sys.getrefcount(array) < before


def test_what_lies_on_a_device():
    assert not devices.on_device(OnCpu())
    subclass = type("Own", (type("Tensor", (), {"__module__": "torch"}),), {"is_cuda": True})()
    assert devices.on_device(subclass)
    assert devices.on_device(OnDevice())
    for array in (np.ones(3), None, [1.0], type("Tensor", (), {"__module__": "torch"})()):
        assert not devices.on_device(array)
    tensor = type("Tensor", (), {"__module__": "torch", "is_cuda": True})()
    assert devices.on_device(tensor)
