"""Share the work on a stream's chunks among processes."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from loky import get_reusable_executor

__all__ = ["mapping"]

_IDLE = 120
"""Seconds that a process waits for the next call before it ends."""


def mapping(workers: int) -> Callable[..., Any]:
    """Return what maps a function over chunks, in order: this process and `workers` - 1 others.

    Processes and not threads: the coder holds Python's global lock. They are loky's, which start
    on first use, need no guard in the caller's script, serve later calls too, and end when idle.

    Raises:
        ValueError: If `workers` is not an integer of at least 1.
    """
    if type(workers) is not int or workers < 1:
        raise ValueError(f"workers is {workers!r}; it must be an int >= 1")
    if workers == 1:
        return map

    def spread(function: Callable[..., Any], *iterables: Any) -> Iterator[Any]:
        jobs = list(zip(*iterables, strict=True))
        # One message for each process: they would wait for this one to send the next. Their share
        # is a little smaller, as they have to send back what they have done.
        size = round(len(jobs) / (workers + 0.1)) or 1
        first = max(1, len(jobs) - size * (workers - 1))  # one chunk is not worth a message
        own, rest = jobs[:first], jobs[first:]
        others = [rest[start : start + size] for start in range(0, len(rest), size)]
        futures = [_executor(workers).submit(_run, function, share) for share in others]
        return itertools.chain(_run(function, own), *(_results(future) for future in futures))

    return spread


def _executor(workers: int) -> Any:
    return get_reusable_executor(max_workers=workers - 1, timeout=_IDLE)


def _run(function: Callable[..., Any], jobs: list[tuple[Any, ...]]) -> list[Any]:
    return [function(*job) for job in jobs]


def _results(future: Any) -> Iterator[Any]:
    yield from future.result()
