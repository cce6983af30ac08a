"""How long a run of ``pytest benchmarks`` takes, roughly, which it says before it starts."""

from collections.abc import Iterable

#: What a cell takes: most of it to measure in rounds, the rest to fill and to read its arrays.
SECONDS, SECONDS_PER_BYTE = 0.25, 1e-8
#: What a measurement of processes takes, which start or compile again and again.
PROCESS_SECONDS = 10.0


def expected_seconds(sizes: Iterable[int], processes: int = 0) -> float:
    """Seconds that cells on arrays of so many bytes take, and measurements of processes."""
    cells = sum(SECONDS + SECONDS_PER_BYTE * size for size in sizes)
    return cells + PROCESS_SECONDS * processes


def in_words(measurements: int, seconds: float) -> str:
    """No more digits than the estimate is good for."""
    count = "1 measurement" if measurements == 1 else f"{measurements} measurements"
    tens = max(1, round(seconds / 10))
    duration = f"{10 * tens} seconds" if tens < 10 else f"{round(seconds / 60)} minutes"
    return f"{count}, about {duration} on a quiet machine"
