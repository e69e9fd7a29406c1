"""Progress on standard error: lines in logs, bars on terminals, nested work."""

import io
import queue
import threading

import numpy as np
import pytest
from rich.console import Console

from sqs_jax.progress import progress, track, tracked

NEVER = 1e6  # seconds


class Clock:
    """Clock whose time a test sets."""

    now = 0.0

    def __call__(self):
        return self.now


class Stream(io.StringIO):
    """Stream that stores written text, and lets a test wait for a line."""

    def __init__(self, terminal=False):
        super().__init__()
        self.terminal, self.written = terminal, queue.Queue()

    def isatty(self):
        return self.terminal

    def write(self, text):
        self.written.put(text)
        return super().write(text)

    def line(self):
        """Wait for the next line and return the text."""
        return self.written.get(timeout=60)


@pytest.fixture(autouse=True)
def _plain(monkeypatch):
    """Hide the terminal of the test run from rich."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "progress"]


def shown(stream, **options):
    return {"console": Console(file=stream), "interval": NEVER, **options}


def test_lines_appear_during_a_long_step():
    stream, clock = Stream(), Clock()
    with progress("reading", 28, **shown(stream, interval=1e-3, clock=clock)) as advance:
        assert stream.line() == "reading 0/28, 0:00 elapsed\n"
        for clock.now in range(10, 80, 10):
            advance()
        stream.written.queue.clear()
        stream.line()  # this line may precede the last step
        assert stream.line() == "reading 7/28, 1:10 elapsed, about 3:30 left\n"
        clock.now = 7270.0
        stream.written.queue.clear()
        stream.line()
        assert stream.line().startswith("reading 7/28, 2:01:10 elapsed")
    assert stream.getvalue().isascii()


def test_the_end_prints_a_line():
    stream, clock = Stream(), Clock()
    with progress("reading", 1200, **shown(stream, clock=clock)) as advance:
        clock.now = 61.0
        advance(1200, "loss 0.5")
    assert stream.getvalue() == "reading 1,200/1,200, done in 1:01, loss 0.5\n"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({}, "work, done in 0:20"),
        ({"total": 4e9, "percent": True}, "work 100 %, done in 0:20"),
        ({"total": 2e9}, "work 2,000,000,000/2,000,000,000, done in 0:20"),  # an estimated total
        ({"total": 6e9, "completed": 3e9}, "work 6,000,000,000/6,000,000,000, done in 0:20"),
    ],
)
def test_amounts(options, line):
    stream, clock = Stream(), Clock()
    with progress("work", **options, **shown(stream, clock=clock)) as advance:
        clock.now = 20.0
        advance(3e9)
    assert stream.getvalue() == f"{line}\n"


def test_brief_work_prints_nothing():
    stream, clock = Stream(), Clock()
    assert list(track("abc", "letters", **shown(stream, clock=clock))) == ["a", "b", "c"]
    clock.now = 2.0
    assert not stream.getvalue()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_ends_progress_without_a_line(error):
    stream, clock = Stream(), Clock()
    with pytest.raises(error), progress("work", **shown(stream, clock=clock)):
        assert threads()
        clock.now = 100.0
        raise error
    assert not threads() and not stream.getvalue()
    with pytest.raises(error):
        for _ in track("abc", "letters", **shown(stream)):
            raise error
    for _ in track("abc", "letters", **shown(stream)):
        break
    assert not threads()


def test_nothing_follows_the_end():
    stream = Stream()
    with progress("work", **shown(stream, interval=1e-4)):
        stream.line()
    assert not threads()  # no thread is left to print


def test_nested_work_shares_a_line():
    stream, clock = Stream(), Clock()
    with progress("outer", 2, **shown(stream, interval=1e-3, clock=clock)) as advance:
        for _ in range(2):
            with pytest.raises(KeyError), progress("inner", 5) as step:
                step()
                stream.written.queue.clear()
                stream.line()
                assert stream.line().endswith(" elapsed; inner 1/5, 0:00 elapsed\n")
                assert len(threads()) == 1
                raise KeyError
            advance()
    with progress("next", **shown(stream, interval=1e-3)):
        stream.written.queue.clear()
        stream.line()
        assert stream.line() == "next, 0:00 elapsed\n"


def test_a_function_is_decorated():
    stream, clock = Stream(), Clock()

    @progress("work", **shown(stream, clock=clock))
    def double(x):
        clock.now += 10
        return 2 * x

    assert [double(3), double(4)] == [6, 8]
    assert stream.getvalue() == "work, done in 0:10\n" * 2


@pytest.mark.parametrize("name", ["FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"])
def test_a_log_gets_no_bars(name, monkeypatch):
    monkeypatch.setenv(name, "1")
    stream, clock = Stream(), Clock()
    with progress("work", 3, **shown(stream, clock=clock)) as advance:
        clock.now = 10.0
        advance(3)
    assert stream.getvalue() == "work 3/3, done in 0:10\n"


def test_a_terminal_gets_a_bar():
    stream, clock = Stream(terminal=True), Clock()
    with progress("work [a]", 3, keep=True, **shown(stream, clock=clock)) as advance:
        assert not threads()
        clock.now = 10.0
        advance(3, "loss 0.5")
    assert "━" in stream.getvalue() and "work [a]" in stream.getvalue()
    assert "3/3, done in 0:10, loss 0.5" in stream.getvalue()


def test_a_stream_that_cannot_be_written_to_is_no_error():
    class Full(Stream):
        def write(self, text):
            self.written.put(text)
            raise BrokenPipeError

    stream, clock = Full(), Clock()
    with progress("work", **shown(stream, interval=1e-3, clock=clock)):
        stream.line(), stream.line()
        clock.now = 10.0
    stream = Stream()
    with progress("work", **shown(stream, clock=clock)):
        clock.now = 20.0
        stream.close()


def test_standard_error_is_the_default(capfd):
    clock = Clock()
    with progress("work", clock=clock):
        clock.now = 10.0
    assert capfd.readouterr() == ("", "work, done in 0:10\n")


def test_reads_of_a_tree_are_reported():
    tree = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": [np.ones(4, np.int8)]}
    amounts = []
    lazy = tracked(tree, amounts.append)
    assert not amounts and lazy["a"].shape == (2, 3) and lazy["b"][0].dtype == np.int8
    np.testing.assert_array_equal(np.asarray(lazy["a"]), tree["a"])
    np.testing.assert_array_equal(np.asarray(lazy["b"][0]), tree["b"][0])
    assert amounts == [24, 4]
