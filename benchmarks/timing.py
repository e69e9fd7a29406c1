"""Comparison of the time of two runs by alternating pairs, robust on noisy machines."""

import statistics
from collections.abc import Callable
from time import perf_counter as clock
from typing import Any, NamedTuple

import jax

Run = Callable[[int], None]  # (count): repeats the work, and returns after the last repetition


class Comparison(NamedTuple):
    """Statistics of alternating pairs.

    Attributes:
        base_seconds: Median seconds of the base.
        seconds: Median seconds of the other run.
        ratio: Median over pairs of the ratio other / base.
        lower: First quartile of the ratio.
        upper: Third quartile of the ratio.
        pairs: Number of pairs.
    """

    base_seconds: float
    seconds: float
    ratio: float
    lower: float
    upper: float
    pairs: int


def compare(base: Run, other: Run, *, pairs: int, least_seconds: float = 0.0) -> Comparison:
    """Time pairs of both runs, in alternating order.

    Two calls of each run precede: compilation, and an estimate of the seconds.

    Args:
        base: Denominator of the ratio.
        other: Numerator of the ratio.
        pairs: Number of pairs, at least 2.
        least_seconds: Approximate seconds of a run in a pair, by repetition. A single run may be
            too short for the clock, or for the dispatch of an accelerator.

    Returns:
        Statistics of the pairs.
    """
    base(1)
    other(1)
    repeats = [max(1, round(least_seconds / _seconds(run, 1))) for run in (base, other)]
    times: list[tuple[float, float]] = []
    for pair in range(pairs):
        order = [0, 1] if pair % 2 == 0 else [1, 0]  # cancels effects of the order
        seconds = {i: _seconds((base, other)[i], repeats[i]) / repeats[i] for i in order}
        times.append((seconds[0], seconds[1]))
    ratios = [second / first for first, second in times]
    lower, ratio, upper = statistics.quantiles(ratios, n=4, method="inclusive")
    first, second = (statistics.median(column) for column in zip(*times, strict=True))
    return Comparison(first, second, ratio, lower, upper, pairs)


def calls(function: Callable[..., Any], *arguments: Any) -> Run:
    """Return a Run that calls a function of JAX arrays and awaits the result."""

    def run(count: int) -> None:
        for _ in range(count):
            result = function(*arguments)
        jax.block_until_ready(result)

    return run


def least_seconds() -> float:
    """Return the seconds that `compare` needs per run on this backend.

    An accelerator needs several calls per run: awaiting every call would time the host.
    """
    return 0.0 if jax.default_backend() == "cpu" else 0.2


def judged(value: float, bar: float | None, *, at_least: bool = False) -> str:
    """Format a value with a bar, and "!" if the value misses the bar; a table's cell."""
    if bar is None:
        return f"{value:>7.2f} {'':>9}"
    missed = value < bar if at_least else value > bar
    sign = ">=" if at_least else "<="
    return f"{value:>7.2f} {sign} {bar:<4.3g} {'!' if missed else ' '}"


def _seconds(run: Run, count: int) -> float:
    started = clock()
    run(count)
    return clock() - started
