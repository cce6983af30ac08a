"""How long calls take on a device, beside a copy of the same bytes and beside torch and CuPy."""

import itertools
import math
import statistics
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
from numba import cuda

import fastbn
from benchmarks.device_more_times import more_calls, torch_more
from benchmarks.device_peers import Call, Memory, cupy_calls, pool_of, torch_calls
from tests.cases import Case

OPERATIONS = ("evaluation", "training", "backward")
#: Of the cases named here: fused calls and norms, which have no bars.
MORE = ("training, relu + residual", "backward, relu + residual", "training, silu", "layer norm",
        "layer norm backward", "group norm", "group norm backward")  # fmt: skip
WITH_MORE = ("65536x256", "32x256x56x56", "32x256x56x56 last", "256x256x56x56", "3x2x8")
DTYPES = ("float32", "float16", "bfloat16", "float64")
WHO_DOES_MORE = ("copy", "fastbn", "torch native")
PEERS = ("torch cuDNN", "torch native", "CuPy")

CASES = (
    Case("16x64", (16, 64)),
    Case("8x64x7x7", (8, 64, 7, 7)),
    Case("32x512x7x7", (32, 512, 7, 7)),
    Case("8x2048x7x7", (8, 2048, 7, 7)),
    Case("65536x256", (65536, 256)),
    Case("32x256x56x56", (32, 256, 56, 56)),
    Case("32x256x56x56 last", (32, 56, 56, 256), -1),
    Case("256x64x56x56", (256, 64, 56, 56)),
    # 256 MB and more, of float16 too
    Case("1024x64x56x56", (1024, 64, 56, 56)),
    Case("256x256x56x56", (256, 256, 56, 56)),
    Case("256x256x56x56 last", (256, 56, 56, 256), -1),
    Case("1048576x256", (1048576, 256)),
)
QUICK = tuple(case for case in CASES if case.name in ("16x64", "65536x256", "256x256x56x56"))
TINY = (Case("3x2x8", (3, 2, 8)), Case("5x3", (5, 3)))

#: Samples of each call; a sample takes at least this long; the most calls in one.
SAMPLES, QUICK_SAMPLES, SAMPLE_SECONDS, MOST_CALLS = 21, 7, 2e-4, 64
#: Calls take turns with so many times the L2 cache of memory, in at most so many sets of arrays.
CACHES, MOST_SETS = 4, 64


@dataclass(frozen=True)
class Sample:
    """Seconds of a call on the device and on the host.

    Where calls wait for the device, they cannot be launched ahead of it (``ahead``), and the time
    on the device has that on the host in it.
    """

    device: float
    host: float
    ahead: bool = True


class DeviceClock:
    """CUDA events around calls that are all launched before the device comes to the first.

    Else a device that is faster than Python would be seen waiting for Python. Copies keep it busy
    meanwhile.
    """

    def __init__(self) -> None:
        size = min(2**29, cuda.current_context().get_memory_info().free // 16)
        self._from, self._to = (cuda.device_array(size, np.uint8) for _ in range(2))
        self._begin, self._end = cuda.event(), cuda.event()
        self._copy_seconds = 0.0
        self.sample(lambda: None, 1, 0.0)
        self._copy_seconds = self.sample(self._copy, 20, 0.0).device

    def _copy(self) -> None:
        self._to.copy_to_device(self._from)

    def sample(self, call: Call, calls: int, host: float) -> Sample:
        """The mean of some calls that take about ``host`` seconds each to launch."""
        copies = 4
        if self._copy_seconds:
            copies += math.ceil(1.5 * calls * host / self._copy_seconds)
        for _ in range(min(copies, 500)):  # a device takes about 1000 launches ahead
            self._copy()
        self._begin.record()
        before = time.perf_counter()
        for _ in range(calls):
            call()
        seconds = time.perf_counter() - before
        ahead = not self._begin.query()
        self._end.record()
        self._end.synchronize()
        elapsed = self._begin.elapsed_time(self._end) / 1e3
        return Sample(elapsed / calls, seconds / calls, ahead)

    def compare(self, calls: dict[str, list[Call]], samples: int) -> dict[str, Sample]:
        """The medians of each, which take turns; each goes through its own list."""
        with cuda.defer_cleanup():  # freeing memory waits for the device
            turns, numbers, hosts = {}, {}, {}
            for name, found in calls.items():
                for call in found:
                    call()
                cuda.synchronize()
                turns[name] = _in_turn(found)
                hosts[name] = self.sample(turns[name], 1, 0.0).host
                first = self.sample(turns[name], 2, hosts[name])
                needed = math.ceil(SAMPLE_SECONDS / max(first.device, 1e-7))
                numbers[name] = min(max(needed, 1), MOST_CALLS)
            taken: dict[str, list[Sample]] = {name: [] for name in calls}
            for _, name in itertools.product(range(samples), calls):
                taken[name].append(self.sample(turns[name], numbers[name], hosts[name]))
        return {name: _median(found) for name, found in taken.items()}


class SimulatedClock:
    """Calls once each, in Python's time: for a simulated device, of which nothing can be timed."""

    def compare(self, calls: dict[str, list[Call]], samples: int) -> dict[str, Sample]:
        found = {}
        for name, (call, *_) in calls.items():
            before = time.perf_counter()
            call()
            seconds = time.perf_counter() - before
            found[name] = Sample(seconds, seconds)
        return found


def _in_turn(calls: list[Call]) -> Call:
    turn = itertools.cycle(calls)
    return lambda: next(turn)()


def _median(samples: list[Sample]) -> Sample:
    return Sample(
        statistics.median(sample.device for sample in samples),
        statistics.median(sample.host for sample in samples),
        all(sample.ahead for sample in samples),
    )


@dataclass
class Cell:
    """What was measured of one case, dtype and operation."""

    case: str
    dtype: str
    operation: str
    bytes: int
    channel_bytes: int
    sets: int
    #: By who did it: a copy, fastbn, or a peer.
    samples: dict[str, Sample] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def seconds(self, name: str) -> float | None:
        return self.samples[name].device if name in self.samples else None

    def ratio(self, over: str, under: str = "fastbn") -> float | None:
        """Seconds of the one over those of the other, if both were measured."""
        top, bottom = self.seconds(over), self.seconds(under)
        return top / bottom if top and bottom else None


def launch(clock: Any) -> Sample:
    """A kernel that does nothing: what a launch costs."""

    @cuda.jit
    def nothing():
        pass

    return clock.compare({"nothing": [lambda: nothing[1, 1]()]}, SAMPLES)["nothing"]


def cells(
    clock: Any, cases: tuple, dtypes: tuple, torch: ModuleType | None, cupy: ModuleType | None,
    cache: int, samples: int,
) -> Iterator[Cell]:  # fmt: skip
    """Every case, dtype and operation, one after the other."""
    for case, dtype in itertools.product(cases, dtypes):
        if dtype == "bfloat16" and not torch:
            continue  # nobody else has such arrays
        pool = pool_of(dtype)
        size = case.size * pool.itemsize
        sets = min(max(1, math.ceil(CACHES * cache / (2 * size))), MOST_SETS)
        channel = _channel_bytes(case, pool.itemsize)
        # four tensors a set, and once more what peers return and keep
        if 8 * sets * size > cuda.current_context().get_memory_info().free:
            errors = {"nobody": "not enough memory on the device"}
            yield Cell(case.name, dtype, "all", size, channel, sets, errors=errors)
            continue
        memories = [Memory(case, dtype, pool, torch) for _ in range(sets)]
        providers = _providers(memories, torch, cupy)
        for operation in OPERATIONS + (MORE if case.name in WITH_MORE else ()):
            cell = Cell(case.name, dtype, operation, size, channel, sets)
            _measure(clock, cell, providers, operation, samples)
            yield cell


def _channel_bytes(case: Case, item: int) -> int:
    """Bytes of a channel, or of all those that lie in the 32 bytes that are read at least."""
    rows = case.axis == 1 and len(case.shape) > 2
    return case.count * item * (1 if rows else min(max(1, 32 // item), case.channels))


def _providers(memories: list[Memory], torch: Any, cupy: Any) -> dict[str, list[Any]]:
    """Of each the makers of its calls, one for every set of arrays."""
    found: dict[str, list[Any]] = {
        "copy": [lambda m=m: dict.fromkeys(OPERATIONS + MORE, _copier(m)) for m in memories],
        "fastbn": [lambda m=m: {**_fastbn_calls(m), **more_calls(m)} for m in memories],
    }
    if torch:
        for name, cudnn in (("torch cuDNN", True), ("torch native", False)):
            found[name] = [
                lambda m=m, c=cudnn: {**torch_calls(torch, m, c), **torch_more(torch, m)}
                for m in memories
            ]
    if cupy and memories[0].dtype in ("float32", "float64"):  # whose expressions need no casts
        found["CuPy"] = [lambda m=m: cupy_calls(cupy, m) for m in memories]
    return found


def _copier(memory: Memory) -> Call:
    return lambda: memory.y.copy_to_device(memory.x)


def _fastbn_calls(memory: Memory) -> dict[str, Call]:
    arrays, vectors, axis = memory.given, memory.vectors, memory.case.axis
    x, y, dy, dx = arrays["x"], arrays["y"], arrays["dy"], arrays["dx"]
    known: list[Any] = []

    def training() -> Any:
        return fastbn.batch_norm_forward(x, *vectors, True, axis=axis, out=y)

    def backward() -> Any:
        if not known:
            known.append(training()[1])
        return fastbn.batch_norm_backward(dy, known[0], out=dx)

    return {
        "evaluation": lambda: fastbn.batch_norm(x, *vectors, axis=axis, out=y),
        "training": training,
        "backward": backward,
    }


def _measure(clock: Any, cell: Cell, providers: dict, operation: str, samples: int) -> None:
    """All that can be measured of a cell: whoever fails is left out, and said so."""
    calls = {
        name: _made(makers, operation) for name, makers in providers.items()
        if operation in OPERATIONS or name in WHO_DOES_MORE
    }  # fmt: skip
    cell.errors = {name: found for name, found in calls.items() if isinstance(found, str)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        working = {name: found for name, found in calls.items() if name not in cell.errors}
        cell.samples = clock.compare(working, samples)


def _made(makers: list[Any], operation: str) -> list[Call] | str:
    """The calls, once they have been seen to work; else why they do not."""
    try:
        found = [make()[operation] for make in makers]
        found[0]()
        cuda.synchronize()
        return found
    except Exception as error:  # of memory, or of a library with its own ideas
        return f"{type(error).__name__}: {error}"
