"""Timing in turn: calls that are to be compared take their samples one after the other.

The speed of a shared machine drifts. What is measured in the same moment drifts together,
so each round gives one ratio, and their median is what counts.
"""

import statistics
import time
from collections.abc import Callable, Mapping

from benchmarks.problem import OPERATIONS
from tests.cases import Case

#: A sample takes at least this long; calls that take less are repeated within it.
SAMPLE_SECONDS = 0.0005
#: Samples that decide how often.
TRIALS = 5
#: Rounds of one comparison: until this time is spent, within the bounds.
SECONDS, LEAST_ROUNDS, MOST_ROUNDS = 0.2, 5, 60


def repeats(call: Callable[[], object]) -> int:
    """How many calls make a sample. Warms the call up.

    The best of a few samples counts: a single one that waits for a processor would leave a short
    call alone in its samples, where it pays for what the calls before it did to the caches.
    """
    if sample(call, 1) > 0.1:
        return 1
    n = 1
    while (seconds := min(sample(call, n) for _ in range(TRIALS))) < SAMPLE_SECONDS:
        n = max(2 * n, int(n * SAMPLE_SECONDS / max(seconds, 1e-7)))
    return n


def sample(call: Callable[[], object], n: int) -> float:
    """Seconds that ``n`` calls take."""
    start = time.perf_counter()
    for _ in range(n):
        call()
    return time.perf_counter() - start


def rounds(calls: Mapping[str, Callable[[], object]]) -> int:
    """How many rounds of the calls fit into the time."""
    seconds = sum(max(sample(call, 1), SAMPLE_SECONDS) for call in calls.values())
    return max(LEAST_ROUNDS, min(MOST_ROUNDS, int(SECONDS / seconds)))


def row_name(case: Case, dtype: object, provider: str) -> str:
    """What the table calls a cell of an operation: ``32x64x56x56 last float32 torch``.

    Shapes tell cases apart without their networks, and fastbn alone need not be named.
    """
    shape = case.name.rpartition(": ")[2]
    return f"{shape} {dtype} {provider.removeprefix('fastbn').strip()}".rstrip()


def measure_in_turn(benchmark, calls, operation, provider, p, machine):
    """Benchmark ``calls["call"]`` in turn with the others, and note the ratios to each."""
    counts = {name: repeats(call) for name, call in calls.items()}
    seconds = {name: [] for name in calls}
    benchmark.group, benchmark.name = operation, row_name(p.case, p.dtype, provider)

    def others():
        benchmark.stats.iterations = counts["call"]  # figures of one call: counts differ by run
        for name in calls:
            if name != "call":
                seconds[name].append(sample(calls[name], counts[name]) / counts[name])

    benchmark.pedantic(
        sample, (calls["call"], counts["call"]), setup=others, rounds=rounds(calls), iterations=1
    )
    own = benchmark.stats.stats.data
    case, info = p.case, benchmark.extra_info
    info.update(
        case=case.name, shape=list(case.shape), axis=case.axis, dtype=str(p.dtype),
        operation=operation, provider=provider, bytes=p.x.nbytes,
        moved=OPERATIONS.get(operation, 2) * p.x.nbytes, calls_per_round=counts["call"],
        seconds=statistics.median(own), **machine,
    )  # fmt: skip
    for name, times in seconds.items():
        if times:
            ratios = [a / b for a, b in zip(own, times, strict=True)]
            info[f"ratio_to_{name}"] = statistics.median(ratios)
            info[f"seconds_of_{name}"] = statistics.median(times)
