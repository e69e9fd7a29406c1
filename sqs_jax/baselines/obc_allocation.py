"""How much each layer is compressed: the dynamic program of Optimal Brain Compression.

Frantar, Singh and Alistarh 2022, arXiv:2208.11580, section 5.
"""

import math
from collections.abc import Sequence

import numpy as np

from sqs_jax.transform.budget import BudgetError

_BUCKETS = 10_000  # of the budget


def allocate(
    errors: Sequence[Sequence[float]], sizes: Sequence[Sequence[float]], budget: float
) -> list[int]:
    """Choose one of each layer's ways to be compressed, of least error in all within a budget.

    Kept: the program over layers and a budget in ten thousand parts. Sizes are rounded up to a
    part, so that what is chosen fits.

    Args:
      errors: of each layer, what its ways lose, >= 0.
      sizes: of each layer, what its ways take, >= 0, in the budget's unit.
      budget: of all layers together.

    Returns:
      The number of each layer's way.

    Raises:
      BudgetError: if nothing fits: naming the least that does.
      ValueError: if lists differ in length or hold what is negative or not finite.
    """
    ways = [np.asarray(each, np.float64) for each in errors]
    costs = [np.asarray(each, np.float64) for each in sizes]
    alike = [each.shape for each in ways] == [each.shape for each in costs]
    usable = all(each.size and np.isfinite(each).all() and each.min() >= 0 for each in ways + costs)
    if not (alike and usable):
        raise ValueError(
            "errors and sizes must be as many numbers for each layer, finite and not negative; "
            f"layers have {[each.size for each in ways]} and {[each.size for each in costs]}."
        )
    part = budget / _BUCKETS
    least = sum(int(np.ceil(each.min() / part)) for each in costs) if budget > 0 else math.inf
    if least > _BUCKETS:
        raise BudgetError(
            f"budget is {budget}; the smallest ways of all layers take "
            f"{sum(each.min() for each in costs)}, rounded up to parts of a ten-thousandth of the "
            "budget for each layer; give more."
        )
    best = np.zeros(_BUCKETS + 1)  # least error of the layers so far, by parts that may be used
    taken = np.zeros((len(ways), _BUCKETS + 1), np.int64)
    for layer, (error, cost) in enumerate(zip(ways, costs, strict=True)):
        options = np.full((len(error), _BUCKETS + 1), np.inf)
        for way, used in enumerate(np.ceil(cost / part).astype(np.int64)):
            if used <= _BUCKETS:
                options[way, used:] = best[: _BUCKETS + 1 - used] + error[way]
        taken[layer] = np.argmin(options, axis=0)
        best = np.min(options, axis=0)
    left, choices = _BUCKETS, []
    for layer in range(len(ways) - 1, -1, -1):
        way = int(taken[layer, left])
        choices.append(way)
        left -= int(np.ceil(costs[layer][way] / part))
    return choices[::-1]
