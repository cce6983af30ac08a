"""What the processor is like."""

import contextlib
from functools import lru_cache
from pathlib import Path

#: Bytes of the last-level cache where the system does not say.
USUAL_CACHE = 32 * 1024 * 1024


def last_level_cache() -> int:
    """Bytes of the largest cache of a processor; the usual size if the system does not say."""
    return known_cache() or USUAL_CACHE


@lru_cache(maxsize=1)
def known_cache() -> int:
    """Bytes of the largest cache of a processor; 0 if the system does not say."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        with contextlib.suppress(OSError, ValueError):
            sizes.append(int(path.read_text().strip().removesuffix("K")) * 1024)
    return max(sizes, default=0)
