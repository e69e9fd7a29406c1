"""Show the progress of long work on standard error; for commands, the library stays silent."""

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
_BRIEF = 5.0  # seconds; shorter work leaves no line
_PERIOD = 3600.0  # seconds that a speed is taken of: of rich's 30, slow steps have none
_REFRESHES = 4  # of a bar per second: it shows whole seconds

Item = TypeVar("Item")

# Work within other work joins its display: two bars on one terminal would overwrite each other.
_DISPLAY: ContextVar[Progress | None] = ContextVar("display", default=None)


class Advance(Protocol):
    """Reports what has been done since the last call, and a remark to show beside it."""

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
    """Show how far some work is: a bar on a terminal, elsewhere a line every 15 seconds.

    Lines come while a single step lasts, too, and one at the end unless the work was brief. The
    result also decorates functions.

    Example:
        >>> with progress("calibration", 28) as advance:
        ...     for block in range(28):
        ...         advance()

    Args:
        name: Name of the work.
        total: Amount of all the work; None if it is unknown.
        completed: Amount that is done already.
        percent: Whether to show the share that is done, of a total that is an estimate.
        keep: Whether a terminal keeps the bar at the end.
        console: Console to write to; by default standard error.
        interval: Seconds between two lines.
        clock: Returns the time, seconds.

    Yields:
        advance(amount, remark), which threads may call.
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
    """Iterate over items and show how many are done; options are those of `progress`.

    Example:
        >>> list(track("ab", "letters"))
        ['a', 'b']
    """
    with progress(name, total or operator.length_hint(items) or None, **options) as advance:
        for item in items:
            yield item
            advance()


def tracked(tree: Any, advance: Advance) -> Any:
    """Wrap the arrays of a tree to report, whenever one is read, its size in bytes.

    Args:
        tree: Arrays, or lazy ones.
        advance: Function to report to.

    Returns:
        The tree, of lazy arrays.
    """

    def report(tensor: Any) -> LazyArray:
        def read() -> Any:
            array = tensor.__array__()
            advance(tensor.nbytes)
            return array

        return LazyArray(tensor.shape, tensor.dtype, read)

    return jax.tree.map(report, tree)


def _display(console: Console, keep: bool, clock: Callable[[], float]) -> Progress:
    """Return bars, disabled where the console is no terminal."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(20),
        _State(table_column=Column(no_wrap=True)),
        console=console,
        refresh_per_second=_REFRESHES,
        speed_estimate_period=_PERIOD,
        transient=not keep,
        # what is printed appears above the bars, unless it goes to a file
        redirect_stdout=getattr(sys.stdout, "isatty", bool)(),
        get_time=clock,
        # FORCE_COLOR lets rich take a log for a terminal
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
    """Print the state at intervals, and at the end of work that was not brief.

    A thread prints, as a single step may take long.
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
        thread.join()  # its last line comes before anything that follows the block
    if (display.tasks[0].elapsed or 0) >= _BRIEF:
        _print(display)


def _print(display: Progress) -> None:
    line = "; ".join(map(_line, display.tasks))
    # not by rich: where a reader has gone, it lets standard output go, too; ValueError: closed
    with contextlib.suppress(OSError, ValueError):
        display.console.file.write(f"{line}\n")
        display.console.file.flush()


def _line(task: Task) -> str:
    """Return e.g. "calibration 7/28, 3:10 elapsed, about 9:30 left"."""
    return f"{task.description}{',' if task.total is None else ''} {_state(task)}"


class _State(ProgressColumn):
    """Write beside a bar what a line says after the name."""

    def render(self, task: Task) -> Text:
        """Return the text."""
        return Text(_state(task))


def _state(task: Task) -> str:
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
    """Return minutes and seconds, with hours if there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
