"""Whether more threads run than there are processors for them.

A call on several threads ends with the last of them. If that one has to wait for a processor, which
takes milliseconds, the others spin meanwhile and keep processors from whoever has work: four worker
processes on two cores made a thirtieth of the calls that they make with one thread each. So a call
takes one thread while the processors are taken.

The system counts how often it took the processor away from a thread that could have gone on
(*involuntary context switches*). The thread that calls stands for all threads of its calls: some 6
switches a second on a quiet machine, 60 to 130 where two threads want one processor.
"""

import threading
from time import monotonic

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
        self.switches, self.since = _switches(), monotonic()
        self.until = 0.0  # one thread serves until then
        self.pause = SHORTEST

    def judge(self, now: float) -> bool:
        if self._rate(now) > RATE:
            self._pause(now)
        return now < self.until

    def _rate(self, now: float) -> float:
        """Switches a second since this was asked last."""
        count, seconds = _switches() - self.switches, now - self.since
        self.switches, self.since = self.switches + count, now
        return count / seconds

    def _pause(self, now: float) -> None:
        if now >= self.until:  # threads were tried, again or for the first time
            again = now < self.until + 2 * self.pause
            self.pause = min(2 * self.pause, LONGEST) if again else SHORTEST
        self.until = now + self.pause


def _switches() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


def oversubscribed() -> bool:
    """Whether a call of this thread had better take one thread now.

    Costs a fifth of a microsecond, and half a microsecond more ten times a second.
    """
    if not _COUNTED:
        return False
    now = monotonic()
    if now - _watch.since < WINDOW:
        return now < _watch.until
    return _watch.judge(now)


if _COUNTED:
    _watch = _Watch()
