"""Alternating pairs and ratios; values with bars."""

import pytest

from benchmarks import timing
from benchmarks.timing import compare, judged


def test_pairs_alternate_and_the_ratio_is_that_of_the_times(monkeypatch):
    now, order = 0.0, []
    monkeypatch.setattr(timing, "clock", lambda: now)

    def takes(name, seconds):
        def run(count):
            nonlocal now
            order.append((name, count))
            now += count * seconds

        return run

    comparison = compare(takes("a", 2.0), takes("b", 3.0), pairs=3, least_seconds=8.0)
    assert (comparison.base_seconds, comparison.seconds, comparison.pairs) == (2.0, 3.0, 3)
    assert comparison.ratio == comparison.lower == comparison.upper == pytest.approx(1.5)
    warm_up, timed = order[:4], order[4:]
    assert {count for _, count in warm_up} == {1}
    assert timed == [("a", 4), ("b", 3), ("b", 3), ("a", 4), ("a", 4), ("b", 3)]


def test_a_value_that_misses_the_bar_is_marked():
    cells = judged(1.2, 1.25), judged(1.3, 1.25), judged(0.7, 0.6, at_least=True), judged(1.0, None)
    assert ["!" in cell for cell in cells] == [False, True, False, False]
    assert len({len(cell) for cell in cells}) == 1
