"""Whether more threads run than there are processors for them.

A call on several threads ends with the last of them. If that one has to wait for a processor, which
takes milliseconds, the others spin meanwhile and keep processors from whoever has work: four worker
processes on two cores were five to ten times slower with threads than without. So a call takes one
thread while the processors are taken.

The system counts how often it took a processor away from a thread that could have gone on
(*involuntary context switches*): some 6 times a second on a quiet machine, 60 to 130 times where
two threads want one processor.
"""

import threading
import time

try:
    import resource

    #: Not on Windows, and macOS counts for whole processes only.
    _COUNTED = hasattr(resource, "RUSAGE_THREAD")
except ImportError:
    _COUNTED = False

__all__ = ["oversubscribed"]

#: A thread is judged by what happened to it in so many seconds, at the least.
WINDOW = 0.1
#: Switches a second that only happen where processors are taken.
RATE = 50.0
#: Then one thread serves for so many seconds, and twice as long each time it is so again.
SHORTEST, LONGEST = 0.5, 8.0


class _Watch(threading.local):
    """What is known of the calling thread."""

    def __init__(self) -> None:
        self.switches, self.since = _switches(), time.monotonic()
        self.until = 0.0  # one thread serves until then
        self.pause = SHORTEST

    def judge(self, now: float) -> bool:
        switches = _switches()
        seconds, self.since = now - self.since, now
        count, self.switches = switches - self.switches, switches
        if count > RATE * seconds:
            if now >= self.until:  # it was tried again, or for the first time
                recent = now < self.until + 2 * self.pause
                self.pause = min(2 * self.pause, LONGEST) if recent else SHORTEST
            self.until = now + self.pause
        return now < self.until


def _switches() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


def oversubscribed() -> bool:
    """Whether a call of this thread had better take one thread now.

    Costs a fifth of a microsecond, and half a microsecond more ten times a second.
    """
    if not _COUNTED:
        return False
    now = time.monotonic()
    if now - _watch.since < WINDOW:
        return now < _watch.until
    return _watch.judge(now)


if _COUNTED:
    _watch = _Watch()
