"""Two ways of doing something, timed in turn in one run: the ratio outlives a noisy machine."""

import statistics
from collections.abc import Callable
from time import perf_counter as clock
from typing import Any, NamedTuple

import jax

Run = Callable[[int], None]  # does it so many times, and returns when the last is done


class Comparison(NamedTuple):
    """What the pairs gave.

    Attributes:
      base_seconds: median of the base.
      seconds: median of the other.
      ratio: median of the pairs' ratios, other / base.
      lower, upper: their quartiles.
      pairs: how many there were.
    """

    base_seconds: float
    seconds: float
    ratio: float
    lower: float
    upper: float
    pairs: int


def compare(base: Run, other: Run, *, pairs: int, least_seconds: float = 0.0) -> Comparison:
    """Time both, one after the other, again and again; every second pair the other way round.

    Both are run twice before: to compile them, and to see how long they take.

    Args:
      base: what the other is compared with.
      other: compared.
      pairs: how often, at least 2.
      least_seconds: each is repeated within a pair until it takes about that long, where a single
        run would be too short for the clock or for the dispatch of an accelerator.
    """
    base(1)
    other(1)
    repeats = [max(1, round(least_seconds / _seconds(run, 1))) for run in (base, other)]
    times: list[tuple[float, float]] = []
    for pair in range(pairs):
        order = [0, 1] if pair % 2 == 0 else [1, 0]  # neither is always the one after
        found = {i: _seconds((base, other)[i], repeats[i]) / repeats[i] for i in order}
        times.append((found[0], found[1]))
    ratios = [second / first for first, second in times]
    lower, ratio, upper = statistics.quantiles(ratios, n=4, method="inclusive")
    first, second = (statistics.median(column) for column in zip(*times, strict=True))
    return Comparison(first, second, ratio, lower, upper, pairs)


def calls(function: Callable[..., Any], *arguments: Any) -> Run:
    """Return a Run that calls a function of JAX arrays and awaits what it returns."""

    def run(count: int) -> None:
        for _ in range(count):
            result = function(*arguments)
        jax.block_until_ready(result)

    return run


def least_seconds() -> float:
    """Return what `compare` needs here: a CPU's clock sees every step, an accelerator's does not.

    There the host would be timed, were every step awaited.
    """
    return 0.0 if jax.default_backend() == "cpu" else 0.2


def judged(value: float, bar: float | None, *, at_least: bool = False) -> str:
    """Write a figure with its bar beside it, and "!" where it misses; a table's cell."""
    if bar is None:
        return f"{value:>7.2f} {'':>9}"
    missed = value < bar if at_least else value > bar
    sign = ">=" if at_least else "<="
    return f"{value:>7.2f} {sign} {bar:<4.3g} {'!' if missed else ' '}"


def _seconds(run: Run, count: int) -> float:
    started = clock()
    run(count)
    return clock() - started
