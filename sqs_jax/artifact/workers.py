"""Parallel coding: worker processes that share the chunks of a stream."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from loky import get_reusable_executor

__all__ = ["parallel_map"]

_IDLE_SECONDS = 120
"""Time that a worker process waits for the next call before it ends."""


def parallel_map(workers: int) -> Callable[..., Any]:
    """Return a function like `map` that runs on several processes.

    The function uses this process and `workers` - 1 worker processes. Threads would not help: the
    coder holds the global interpreter lock. loky's worker processes start on first use, need no
    `if __name__ == "__main__"` in the caller's script, serve later calls too, and end when idle.

    Args:
        workers: Number of processes, at least 1.

    Returns:
        A function of a function and sized iterables of equal length; results keep their order.

    Raises:
        ValueError: If `workers` is not an integer of at least 1.
    """
    if type(workers) is not int or workers < 1:
        raise ValueError(f"workers is {workers!r}; it must be an int >= 1")
    if workers == 1:
        return map

    def spread(function: Callable[..., Any], *iterables: Any) -> Iterator[Any]:
        jobs = list(zip(*iterables, strict=True))
        # One message per worker: with several, workers would wait for this process to send the
        # next. Their shares are a little smaller than this process's: they also send results back.
        share_size = round(len(jobs) / (workers + 0.1)) or 1
        # A single chunk is not worth a message.
        num_own = max(1, len(jobs) - share_size * (workers - 1))
        own, rest = jobs[:num_own], jobs[num_own:]
        shares = [rest[start : start + share_size] for start in range(0, len(rest), share_size)]
        futures = [_executor(workers).submit(_run, function, share) for share in shares]
        return itertools.chain(_run(function, own), *(_results(future) for future in futures))

    return spread


def _executor(workers: int) -> Any:
    return get_reusable_executor(max_workers=workers - 1, timeout=_IDLE_SECONDS)


def _run(function: Callable[..., Any], jobs: list[tuple[Any, ...]]) -> list[Any]:
    return [function(*job) for job in jobs]


def _results(future: Any) -> Iterator[Any]:
    yield from future.result()
