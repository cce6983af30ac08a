"""Everything private of calls on a device that tests touch: the rest of `internals`."""

import ctypes
import functools
from unittest import mock

import numpy as np

from fastbn._call import backend, dlpack, places


def simulated_device():
    """Numba's module for a device that it simulates."""
    return backend.device().cuda


def _tensors():
    """The module that knows how tensors of a device are cut."""
    backend.device()
    from fastbn._call import device_tensor

    return device_tensor


def _launch_with(monkeypatch, launcher):
    """Let ``launcher(original, kernel, blocks, stream)`` launch kernels."""
    device = backend.device()
    from fastbn._call import device_backward, device_norms

    original = device.launcher
    for module in (device, device_backward, device_norms):
        monkeypatch.setattr(module, "launcher", functools.partial(launcher, original))


def cut_on_device(monkeypatch, parts=None):
    """Let so many blocks share each tile, in two launches; or one block read each value once."""
    tensors = _tensors()
    from fastbn._call import device_norms

    original = tensors.cut_of

    def cut_of(*arguments):
        cut = original(*arguments)
        if parts is None:
            waits = arguments[-1] > 0  # else nothing is read once
            assert cut.once or not waits, "too large for a block that waits for none"
            return cut
        return cut._replace(once=False, parts=parts)

    for module in (tensors, device_norms):
        monkeypatch.setattr(module, "cut_of", cut_of)


on_device = places.on_device
is_simulated = places.simulated
borrowed = dlpack.Borrowed


def as_dtype(array, code):
    """What lends an array's memory by DLPack, and says that its values are of another kind."""

    class Lender:
        def __dlpack__(self, **how):
            capsule = array.__dlpack__()
            dlpack.tensor_of(capsule).dtype.code = code
            return capsule

    return Lender()


def device_array(array):
    """What is known of an array on a device."""
    arrays, *_ = device_modules()
    return arrays.described("x", array)


def device_modules():
    """The modules of arrays, launches and streams of a device."""
    backend.device()
    from fastbn._call import device_arrays, device_launch, device_streams

    return device_arrays, device_launch, device_streams


def read_only(array):
    """A simulated array whose owner lends it to be read."""
    array._ary.flags.writeable = False
    return array


def repeated(value, count):
    """A simulated array of one value in memory, with a step of 0."""
    array = backend.device().cuda.to_device(np.zeros(1, np.float32))
    return type(array)(np.broadcast_to(np.float32(value), count))


def lent(array):
    """A simulated array of a library that is none of Numba, torch and CuPy."""

    class Lent(type(array)):
        __module__ = "lender"
        __cuda_array_interface__ = {"data": (0, False)}  # noqa: RUF012

    return Lent(array._ary, array.stream)


def as_bfloat16(array):
    """What is known of an array, as if its values were bfloat16."""
    return device_array(array)._replace(dtype="bfloat16")


def on_a_device(monkeypatch):
    """The functions that look at arrays, for stand-ins: as where nothing is simulated."""
    device_arrays, *_ = device_modules()
    monkeypatch.setattr(places, "simulated", lambda: False)
    return device_arrays


def record_streams(monkeypatch, launch=True):
    """What streams are asked for, in order: kernels, events, and who waits for whom.

    Kernels run if they are to ``launch``. ``ready`` says whether events have happened.
    """
    _, _, streams = device_modules()
    asked = []

    class Event:
        ready = False

        def record(self, stream):
            self.stream = stream
            asked.append(("record", stream))

        def wait(self, stream):
            asked.append((stream, "waits for", self.stream))

        def synchronize(self):
            asked.append(("finish", self.stream))

        def query(self):
            return Event.ready

    def launcher(original, kernel, blocks, stream):
        asked.append((kernel.fn.__name__, stream))
        return original(kernel, blocks, stream) if launch else lambda *_: None

    _launch_with(monkeypatch, launcher)
    monkeypatch.setattr(streams, "cuda", mock.Mock(event=Event))
    streams.turns_of.cache_clear()
    streams._lent.clear()
    return asked, Event


def share_once(monkeypatch, parts):
    """Let so many blocks share each tile and read it once, which the simulator cannot run."""
    tensors = _tensors()
    original = tensors.cut_of
    cut = lambda *arguments: original(*arguments)._replace(once=True, parts=parts)  # noqa: E731
    monkeypatch.setattr(tensors, "cut_of", cut)


def record_cuts(monkeypatch):
    """How many arrays are read, and how many blocks may wait for each other, by call."""
    tensors, found = _tensors(), []
    original = tensors.cut_of
    monkeypatch.setattr(
        tensors, "cut_of", lambda *args: (found.append(args[-2:]), original(*args))[1]
    )
    return found


def blocks_together(monkeypatch, multiprocessors):
    """Blocks of a tile that are on such a device together."""
    _, launch, _ = device_modules()
    monkeypatch.setattr(places, "simulated", lambda: False)
    gpu = mock.Mock(MULTIPROCESSOR_COUNT=multiprocessors)
    monkeypatch.setattr(launch, "cuda", mock.Mock(gpus=[gpu]))
    return launch.together.__wrapped__(0)


def scratch_of(parts, stream=0):
    """The memory that blocks share, where so many share a tile."""
    _, launch, _ = device_modules()
    cut = _tensors().cut_of(8, 3, 4, 4, True, 1, 1)
    return launch.scratch(cut._replace(parts=parts), stream)


def driver_of_a_device(monkeypatch, binding, gpu):
    """A driver, with NVIDIA's module or without it, that says on which GPU all memory lies."""
    from numba.cuda.cudadrv import driver

    def by_ctypes(result, attribute, pointer):
        assert (attribute, pointer) == (9, 4096)
        ctypes.cast(result, ctypes.POINTER(ctypes.c_int))[0] = gpu

    def by_module(attribute, pointer):
        assert (attribute, pointer) == (("attribute", 9), ("pointer", 4096))
        return gpu

    asked = mock.Mock(cuPointerGetAttribute=by_module if binding else by_ctypes)
    monkeypatch.setattr(driver, "driver", asked)
    if binding:
        module = mock.Mock(
            CUpointer_attribute=lambda n: ("attribute", n), CUdeviceptr=lambda n: ("pointer", n)
        )
        monkeypatch.setattr(driver, "binding", module, raising=False)
    arrays = on_a_device(monkeypatch)
    monkeypatch.setattr(arrays.cuda.gpus, "lst", (0, 1))
    return arrays.gpu_by_driver


def two_gpus(monkeypatch, where):
    """As if the simulator had two; ``where`` an array lies. The numbers that are worked on."""
    device, tensors = backend.device(), _tensors()
    from fastbn._call import device_arrays, device_backward

    current, worked_on = [0], []

    class Gpu:
        def __init__(self, number):
            self.number = number

        def __enter__(self):
            worked_on.append(self.number)
            current.append(self.number)

        def __exit__(self, *_):
            current.pop()

    monkeypatch.setattr(device_arrays.cuda.gpus, "lst", (Gpu(0), Gpu(1)))
    for module in (device, device_arrays, tensors):
        monkeypatch.setattr(module, "current", lambda: current[-1])
    for module in (device, device_arrays, device_backward):
        monkeypatch.setattr(module, "gpu_of", where if callable(where) else lambda array: where)
    return worked_on


def interrupt_normalize(monkeypatch):
    """A Ctrl-C while the kernel that normalizes is compiled: at its first launch."""
    device = backend.device()

    def launcher(original, kernel, blocks, stream):
        if kernel.fn.__name__ == "normalize":  # as the simulator calls a kernel's function
            raise KeyboardInterrupt
        return original(kernel, blocks, stream)

    _launch_with(monkeypatch, launcher)
    monkeypatch.setattr(device, "_begun", set())


def device_cut():
    """The cut of a tensor, how many groups a thread keeps, and threads of a block."""
    cut_of = _tensors().cut_of
    from fastbn.kernels.cuda.once import held_groups
    from fastbn.kernels.cuda.sums import THREADS

    return cut_of, held_groups, THREADS


def forward_by_two_blocks(x):
    """``x``, (values, channels), normalized by two blocks that each find the other's sums there.

    Returns it, the counters of arrivals, and the statistics. One tile: a single channel as if it
    came first, or channels that lie last.
    """
    device = backend.device()
    from fastbn.kernels.cuda.sums import THREADS

    cuda = device.cuda
    values, channels = x.shape
    half = values // 2
    shape = (1, 1, values) if channels == 1 else (values, channels, 1)
    cut = _tensors().cut_of(*shape, 4, True, 1, 2)
    assert (cut.lanes, cut.tiles, half % 4) == (4, 1, 0)
    d = x.astype(np.float64) - x[0].astype(np.float64)
    sums = [f(part) for part in (d[:half], d[half:]) for f in (sum_of_values, sum_of_squares)]
    out, statistics = cuda.to_device(np.zeros(x.size, x.dtype)), np.zeros(3 * channels)
    statistics = cuda.to_device(statistics)
    arrivals = cuda.to_device(np.array([1, 0, 0], np.int32))  # as if one were there already
    absent = cuda.to_device(np.zeros(0, np.float32))
    _tensors().once_kernels_of(False, cut.lanes, cut.width).forward[2, THREADS](
        cuda.to_device(x.ravel()), out, absent, absent, statistics, absent, absent,
        cuda.to_device(np.concatenate(sums)), arrivals, 1e-5, 0.1, *shape, 1, 2, (),
    )  # fmt: skip
    y = out.copy_to_host().reshape(x.shape)
    return y, arrivals.copy_to_host(), statistics.copy_to_host()


def sum_of_values(values):
    return values.sum(axis=0)


def sum_of_squares(values):
    return (values * values).sum(axis=0)


def kernel_makers():
    """What makes kernels, each set once."""
    tensors = _tensors()
    return tensors.kernels_of, tensors.once_kernels_of
