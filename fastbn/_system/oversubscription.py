"""Whether more threads run than there are processors for them.

A call on several threads ends with the last of them. If that one has to wait for a processor, which
takes milliseconds, the others spin meanwhile and keep processors from whoever has work: four worker
processes on two cores made a thirtieth of the calls that they make with one thread each. So a call
takes one thread while the processors are taken.

Linux counts how long each thread was ready to run and waited for a processor. The thread that calls
stands for all threads of its calls. On two cores, beside a process that needs a part of one:

====================  ================  ===================================
that process needs    the call waits    calls on two threads : on one thread
====================  ================  ===================================
nothing               0.4 % of the time   1.5 : 1
a twentieth           6 %                 1.3 : 1
a fifth               16 %                1.2 : 1
half                  17 %                1.0 : 1
two thirds            24 %                0.8 : 1
all of it             37 %                0.4 : 1
====================  ================  ===================================

Waking up two thousand times a second, and doing nothing then, costs 5 %.
"""

import threading
from time import monotonic

__all__ = ["oversubscribed"]

#: The part of its time that a thread waits where one thread is faster than several.
SHARE = 0.2
#: A thread is judged by what happened to it in so many seconds; no longer ago than that.
WINDOW, LONG_AGO = 0.1, 1.0
#: Then one thread serves for so many seconds, and twice as long each time it is so again.
SHORTEST, LONGEST = 0.5, 8.0


class _Clock(threading.local):
    """Of each thread, when it was last looked at, and how long it had waited then."""

    since = waited = 0.0

    def share(self, now: float) -> float:
        """The part of its time that the thread waited since; 0 if that is long ago."""
        before, seconds = self.waited, now - self.since
        self.since, self.waited = now, _waited()
        return (self.waited - before) / seconds if seconds < LONG_AGO else 0.0


def _waited() -> float:
    """Seconds that the calling thread has waited for a processor; 0 where nobody counts them."""
    try:
        with open("/proc/thread-self/schedstat", "rb") as file:
            return int(file.read().split()[1]) * 1e-9
    except (OSError, ValueError, IndexError):
        return 0.0


class Verdict:
    """What is known of the processors, for all threads of the process."""

    def __init__(self) -> None:
        self._clock = _Clock()
        self._until, self._pause = 0.0, SHORTEST

    def oversubscribed(self) -> bool:
        """Whether a call had better take one thread now.

        Costs a fifth of a microsecond, and ten times a second some ten.
        """
        now = monotonic()
        if now - self._clock.since > WINDOW and self._clock.share(now) > SHARE:
            if now >= self._until:  # threads were tried, again or for the first time
                again = now < self._until + 2 * self._pause
                self._pause = min(2 * self._pause, LONGEST) if again else SHORTEST
            self._until = now + self._pause
        return now < self._until


oversubscribed = Verdict().oversubscribed
