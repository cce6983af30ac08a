"""Progress bars, on terminals and on what is none."""

import io
import sys

import pytest

from tests.internals import progress_bars

Progress, track = progress_bars.Progress, progress_bars.track


class Terminal(io.StringIO):
    """A stream that says that it is a terminal, of so many columns."""

    def __init__(self, columns=80):
        super().__init__()
        self.columns = columns

    def isatty(self):
        return True

    def screen(self):
        """The lines that can be seen, after all the carriage returns."""
        lines, column = [""], 0
        for character in self.getvalue():
            if character == "\n":
                lines.append("")
                column = 0
            elif character == "\r":
                column = 0
            else:
                line = lines[-1].ljust(column)
                lines[-1] = line[:column] + character + line[column + 1 :]
                column += 1
                assert column < self.columns, "the line would wrap"
        return [line.rstrip() for line in lines]


@pytest.fixture
def clock(monkeypatch):
    """Time that passes when a test says so: ``clock[0] += seconds``."""
    seconds = [1000.0]
    monkeypatch.setattr(progress_bars.time, "monotonic", lambda: seconds[0])
    monkeypatch.setattr(progress_bars, "_columns", lambda stream: getattr(stream, "columns", 80))
    monkeypatch.setenv("TERM", "xterm")
    return seconds


class TestProgress:
    def test_bar(self, clock):
        terminal = Terminal()
        with Progress(200, "reading", terminal) as progress:
            assert terminal.screen() == [f"reading  [{'.' * 40}]    0%"]
            clock[0] += 30
            progress.advance(50)
            assert terminal.screen() == [f"reading  [{'#' * 10}{'.' * 30}]   25%     1:30 left"]
            progress.advance(50)  # too soon to draw again
            assert "25%" in terminal.screen()[0]
        assert terminal.screen() == [""]

    def test_nothing_is_left_after_an_exception(self, clock):
        terminal = Terminal()
        with pytest.raises(KeyboardInterrupt), Progress(9, "reading", terminal):
            raise KeyboardInterrupt
        assert terminal.screen() == [""]

    def test_printing_in_between(self, clock):
        terminal = Terminal()
        with Progress(2, "reading", terminal) as progress:
            progress.clear()
            print("a line", file=terminal)
            assert terminal.screen() == ["a line", ""]
            progress.advance()
            assert terminal.screen()[1].endswith("50%")
        assert terminal.screen() == ["a line", ""]

    @pytest.mark.parametrize("columns", [1, 2, 5, 8, 9, 12, 24, 25, 38, 39, 200])
    def test_narrow_terminals(self, columns, clock):
        terminal = Terminal(columns)
        with Progress(100, "reading", terminal) as progress:
            clock[0] += 60
            progress.advance(50)
            line = terminal.screen()[0]  # which sees to it that nothing wraps
            assert ("50%" in line) == (columns >= 9)
            assert ("#" in line) == (columns >= 25)
            assert ("left" in line) == (columns >= 39)
            assert len(line) < 80
        assert terminal.screen() == [""]

    @pytest.mark.parametrize(
        ("unit", "rate"), [("bytes", "20 MB/s"), ("images", "20000000 images/s")]
    )
    def test_rate(self, clock, unit, rate):
        terminal, file = Terminal(100), io.StringIO()
        for stream in (terminal, file):
            with Progress(10**9, "reading", stream, unit=unit) as progress:
                clock[0] += 20
                progress.advance(4 * 10**8)
                line = terminal.screen()[0] if stream is terminal else file.getvalue()
                assert "40%" in line
                assert rate in line
        assert file.getvalue() == f"reading: 40%, {rate}\n"

    def test_no_rate_where_there_is_no_room(self, clock):
        terminal = Terminal(55)
        with Progress(100, "reading", terminal, unit="images") as progress:
            clock[0] += 60
            progress.advance(50)
            line = terminal.screen()[0]
            assert "left" in line
            assert "images/s" not in line

    def test_what_was_done_before_says_nothing_about_time(self, clock):
        terminal = Terminal(100)
        with Progress(100, "reading", terminal, unit="images") as progress:
            progress.advance(80, worked=False)
            clock[0] += 10
            progress.advance(10)
            line = terminal.screen()[0]
            assert "90%  1 images/s     0:10 left" in line

    def test_a_file_gets_a_line_now_and_then(self, clock):
        stream = io.StringIO()
        with Progress(100, "reading", stream) as progress:
            for _ in range(100):
                clock[0] += 0.25
                progress.advance()
        assert stream.getvalue() == "reading: 40%\nreading: 80%\n"

    def test_a_dumb_terminal_is_a_file(self, clock, monkeypatch):
        monkeypatch.setenv("TERM", "dumb")
        terminal = Terminal()
        assert list(track("abc", "reading", stream=terminal)) == ["a", "b", "c"]
        assert terminal.getvalue() == ""

    def test_without_stderr(self, clock, monkeypatch):
        monkeypatch.setattr(sys, "stderr", None)
        with Progress(2, "reading") as progress:
            clock[0] += 60
            progress.advance()
        assert progress.done == 1

    def test_track(self, clock):
        terminal, seen = Terminal(), []
        for item in track(iter("abcd"), "reading", total=4, stream=terminal):
            seen.append((item, terminal.screen()[0][-4:]))
            clock[0] += 0.2
        assert seen == [("a", "  0%"), ("b", " 25%"), ("c", " 50%"), ("d", " 75%")]
        assert terminal.screen() == [""]

    def test_track_asks_for_a_length(self):
        with pytest.raises(TypeError, match="generator has no length"):
            list(track((n for n in range(3)), "reading"))

    def test_width_where_there_is_no_terminal(self):
        assert progress_bars._columns(io.StringIO()) == 80


class Broken:
    """A stream whose reader has gone, or that is no whole file."""

    def __init__(self, error):
        self.error = error

    def write(self, text):
        raise self.error

    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [Broken(BrokenPipeError()), Broken(ValueError()), object()])
def test_work_goes_on_when_nobody_can_watch(stream):
    with Progress(3, "reading", stream) as progress:
        for _ in range(3):
            progress.advance()
    assert progress.done == 3
