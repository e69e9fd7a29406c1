"""Progress of long work on standard error, for commands.

The library itself does not use this module, and is silent.
"""

import contextlib
import operator
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from sqs_jax.checkpoints import LazyArray

__all__ = ["Advance", "progress", "track", "tracked"]

_INTERVAL = 15.0  # seconds between two lines
_BRIEF = 5.0  # seconds; shorter work prints no line
_PERIOD = 3600.0  # seconds over which a speed is averaged: slow steps exceed rich's default, 30
_REFRESHES = 4  # per second; a bar shows whole seconds

Item = TypeVar("Item")

# Nested work shares a display, because two displays on a terminal would overwrite each other.
_DISPLAY: ContextVar[Progress | None] = ContextVar("display", default=None)


class Advance(Protocol):
    """Protocol of a function that reports completed work.

    Args:
        amount: Amount completed since the last call, in units of the total.
        remark: Text beside the bar or at the end of the line.
    """

    def __call__(self, amount: float = 1, remark: str = "") -> None: ...


@contextlib.contextmanager
def progress(
    name: str,
    total: float | None = None,
    *,
    completed: int = 0,
    percent: bool = False,
    keep: bool = False,
    console: Console | None = None,
    interval: float = _INTERVAL,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Advance]:
    """Show the progress of work: a bar on a terminal, elsewhere a line per interval.

    Lines appear during a long step too. A last line appears at the end, unless the work was brief.
    The context manager also decorates functions.

    Args:
        name: Name of the work.
        total: Amount of all work, > 0; None if unknown.
        completed: Amount of completed work, >= 0.
        percent: Whether to show a percentage, for an estimated total.
        keep: Whether a terminal keeps the bar at the end.
        console: Console for the output; by default standard error.
        interval: Seconds between two lines.
        clock: Function that returns the time, seconds.

    Yields:
        Function advance(amount, remark), safe to call from threads.

    Example:
        >>> with progress("calibration", 28) as advance:
        ...     for block in range(28):
        ...         advance()
    """
    outer = _DISPLAY.get()
    display = outer or _display(console or Console(stderr=True), keep, clock)
    task = display.add_task(name, total=total, completed=completed, percent=percent, remark="")

    def advance(amount: float = 1, remark: str = "") -> None:
        display.update(task, advance=amount, remark=remark)

    try:
        with contextlib.nullcontext() if outer else _shown(display, interval):
            yield advance
            if percent:  # of an estimate
                display.update(task, completed=total)
            display.stop_task(task)
    finally:
        if outer:
            display.remove_task(task)


def track(
    items: Iterable[Item], name: str, total: int | None = None, **options: Any
) -> Iterator[Item]:
    """Iterate over items and show the progress.

    Args:
        items: Items of the work.
        name: Name of the work.
        total: Number of items; by default the length of `items`, if known.
        **options: Further arguments of `progress`.

    Yields:
        The items.

    Example:
        >>> list(track("ab", "letters"))
        ['a', 'b']
    """
    with progress(name, total or operator.length_hint(items) or None, **options) as advance:
        for item in items:
            yield item
            advance()


def tracked(tree: Any, advance: Advance) -> Any:
    """Wrap the arrays of a tree so that every read reports the bytes of the array.

    Args:
        tree: Tree of arrays or lazy arrays.
        advance: Function that receives the bytes.

    Returns:
        Tree of lazy arrays with the same structure.

    Example:
        >>> import numpy as np
        >>> sizes = []
        >>> tree = tracked({"bias": np.zeros(4, np.float32)}, sizes.append)
        >>> np.asarray(tree["bias"]), sizes
        (array([0., 0., 0., 0.], dtype=float32), [16])
    """

    def report(tensor: Any) -> LazyArray:
        def read() -> Any:
            array = tensor.__array__()
            advance(tensor.nbytes)
            return array

        return LazyArray(tensor.shape, tensor.dtype, read)

    return jax.tree.map(report, tree)


def _display(console: Console, keep: bool, clock: Callable[[], float]) -> Progress:
    """Return a display of bars, disabled unless the console is a terminal."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(20),
        _State(table_column=Column(no_wrap=True)),
        console=console,
        refresh_per_second=_REFRESHES,
        speed_estimate_period=_PERIOD,
        transient=not keep,
        # Printed text appears above the bars, unless standard output is a file.
        redirect_stdout=getattr(sys.stdout, "isatty", bool)(),
        get_time=clock,
        # With FORCE_COLOR, rich treats a log as a terminal.
        disable=not (console.is_interactive and console.file.isatty()),
    )


@contextlib.contextmanager
def _shown(display: Progress, interval: float) -> Iterator[None]:
    """Show bars, or print lines, until the block ends."""
    _DISPLAY.set(display)
    try:
        with _lines(display, interval) if display.disable else display:
            yield
    finally:
        _DISPLAY.set(None)


@contextlib.contextmanager
def _lines(display: Progress, interval: float) -> Iterator[None]:
    """Print the state at intervals, and at the end unless the work was brief.

    A thread prints, because a single step may exceed the interval.
    """
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(interval):
            _print(display)

    thread = threading.Thread(target=run, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()  # the thread's last line precedes any output after the block
    if (display.tasks[0].elapsed or 0) >= _BRIEF:
        _print(display)


def _print(display: Progress) -> None:
    """Print the state of all tasks of a display."""
    line = "; ".join(map(_line, display.tasks))
    # Not by rich, which closes standard output too if the reader has closed the pipe. ValueError:
    # the file is closed.
    with contextlib.suppress(OSError, ValueError):
        display.console.file.write(f"{line}\n")
        display.console.file.flush()


def _line(task: Task) -> str:
    """Return e.g. "calibration 7/28, 3:10 elapsed, about 9:30 left"."""
    return f"{task.description}{',' if task.total is None else ''} {_state(task)}"


class _State(ProgressColumn):
    """Column with the state of a task, as in a line."""

    def render(self, task: Task) -> Text:
        """Return the state of a task as text."""
        return Text(_state(task))


def _state(task: Task) -> str:
    """Return the state of a task, e.g. "7/28, 3:10 elapsed"."""
    parts = [f"{_duration(task.elapsed or 0)} elapsed"]
    if task.fields["percent"]:
        parts.insert(0, f"{task.percentage:.0f} %")
    elif task.total is not None:
        parts.insert(0, f"{min(task.completed, task.total):,.0f}/{task.total:,.0f}")
    if task.stop_time is not None:
        parts[-1] = f"done in {_duration(task.elapsed or 0)}"
    elif task.time_remaining:
        parts.append(f"about {_duration(task.time_remaining)} left")
    return ", ".join(filter(None, [*parts, task.fields["remark"]]))


def _duration(seconds: float) -> str:
    """Return a duration as minutes and seconds, from an hour as hours, minutes, seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
