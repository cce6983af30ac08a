"""A progress bar on stderr that leaves nothing behind.

On a terminal it is redrawn in one line, which is wiped at the end. Elsewhere (a file,
a pipe, a CI log) it is a plain line now and then, and nothing at all for short work.
"""

import os
import sys
import time
from collections.abc import Generator, Iterable, Sized
from typing import Any, TextIO, TypeVar

__all__ = ["Progress", "track"]

_T = TypeVar("_T")

#: Seconds between two drawings: on a terminal, and elsewhere.
_REDRAW, _LOG = 0.1, 10.0


class Progress:
    """Shows how much of a known number of steps is done.

    Parameters
    ----------
    total : int
        Number of steps.
    label : str
        What is being done, in a word or two.
    stream : text file, optional
        Where to draw; stderr by default.
    unit : str, optional
        What the steps are, such as "images": then the rate is shown as well, that of "bytes" in
        MB/s.

    Examples
    --------
    >>> with Progress(3, "reading") as progress:
    ...     for _ in range(3):
    ...         progress.advance()
    """

    def __init__(
        self, total: int, label: str, stream: TextIO | None = None, *, unit: str | None = None
    ) -> None:
        self.total, self.label, self.done, self.unit = total, label, 0, unit
        self._found = 0  # steps that were done before, which say nothing about time
        self._stream = sys.stderr if stream is None else stream
        self._terminal = _is_terminal(self._stream)
        self._drawn = False

    def __enter__(self) -> "Progress":
        self._start = self._last = time.monotonic()
        if self._terminal:
            self._draw()
        return self

    def __exit__(self, *exception: object) -> None:
        self.clear()

    def advance(self, steps: int = 1, *, worked: bool = True) -> None:
        """Count steps as done, and show it if the last drawing is old enough.

        ``worked`` is False for what need not be done, because it was done before.
        """
        self.done += steps
        self._found += 0 if worked else steps
        now = time.monotonic()
        if now - self._last < (_REDRAW if self._terminal else _LOG):
            return
        self._last = now
        if self._terminal:
            self._draw()
        else:
            rate = self._rate()
            self._send(f"{self.label}: {self._percent()}%{rate and f', {rate}'}\n")

    def clear(self) -> None:
        """Wipe the line, before something else is printed; the next `advance` redraws it."""
        if self._drawn:
            self._write("")
            self._drawn, self._last = False, 0.0

    def _draw(self) -> None:
        self._write(self._line(max(_columns(self._stream) - 3, 0)))  # with room for a ^C
        self._drawn = True

    def _write(self, line: str) -> None:
        # One column stays free, because many terminals go to the next line after the last.
        # Blanks over all the others wipe what was there, the ^C of an interrupt included.
        width = _columns(self._stream) - 1
        self._send(f"\r{line:{width}}\r{line}")

    def _send(self, text: str) -> None:
        """Write, or be silent for ever: work must not end because nobody can watch it."""
        if self._stream is None:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError, AttributeError):  # closed, or no whole file
            self._stream = None

    def _percent(self) -> int:
        return 100 * min(self.done, self.total) // max(self.total, 1)

    def _line(self, width: int) -> str:
        """The bar in at most ``width`` columns: in need without time, without bar, or cut."""
        percent = f"{self._percent():3d}%"
        rate = self._rate()
        for shown, for_time in ((rate and f"  {rate}", 14), ("", 14), ("", 0)):
            room = min(width - len(self.label) - len(shown) - for_time - 10, 40)
            if room >= (20 if shown else 5):
                filled = room * self._percent() // 100
                time_left = f"{self._time_left():>{for_time}}" if for_time else ""
                bar = "#" * filled + "." * (room - filled)
                return f"{self.label}  [{bar}]  {percent}{shown}{time_left}".rstrip()
        return f"{self.label[: max(width - 6, 0)]}  {percent}"[:width]

    def _rate(self) -> str:
        elapsed = time.monotonic() - self._start
        if self.unit is None or self.done == self._found or elapsed < 1:
            return ""
        rate = (self.done - self._found) / elapsed
        return f"{rate / 1e6:.0f} MB/s" if self.unit == "bytes" else f"{rate:.0f} {self.unit}/s"

    def _time_left(self) -> str:
        elapsed = time.monotonic() - self._start
        if self.done == self._found or elapsed < 1:
            return ""
        worked = self.done - self._found
        seconds = round(elapsed * max(self.total - self.done, 0) / worked)
        return f"{seconds // 60}:{seconds % 60:02d} left"


def track(
    items: Iterable[_T], label: str, total: int | None = None, stream: TextIO | None = None
) -> Generator[_T, None, None]:
    """Yield the items and show how many are done.

    Parameters
    ----------
    items : iterable
        What to go through.
    label : str
        What is being done.
    total : int, optional
        Number of items; needed where ``len(items)`` does not tell.
    stream : text file, optional
        Where to draw; stderr by default.

    Examples
    --------
    >>> [2 * n for n in track([1, 2, 3], "doubling")]
    [2, 4, 6]
    """
    if total is None:
        if not isinstance(items, Sized):
            raise TypeError(f"{type(items).__name__} has no length: track(..., total=...)")
        total = len(items)
    with Progress(total, label, stream) as progress:
        for item in items:
            yield item
            progress.advance()


def _is_terminal(stream: Any) -> bool:
    """Whether a line can be redrawn there; a "dumb" terminal cannot go back."""
    try:
        return stream.isatty() and os.environ.get("TERM") != "dumb"
    except (ValueError, AttributeError):  # closed, none, or no whole file
        return False


def _columns(stream: Any) -> int:
    """Width of the terminal, asked anew each time: windows are resized."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError, AttributeError):
        return 80
