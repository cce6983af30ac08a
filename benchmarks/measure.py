"""Timing in turn: calls that are to be compared take their samples one after the other.

The speed of a shared machine drifts. What is measured in the same moment drifts together,
so each round gives one ratio, and their median is what counts.
"""

import time
from collections.abc import Callable, Mapping

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
