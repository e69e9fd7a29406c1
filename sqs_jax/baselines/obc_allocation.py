"""Budget allocation by the dynamic program of Optimal Brain Compression.

Frantar, Singh and Alistarh 2022, arXiv:2208.11580, section 5.
"""

import math
from collections.abc import Sequence

import numpy as np

from sqs_jax.budget import BudgetError

_BUCKETS = 10_000  # equal parts of the budget in which the program counts


def allocate(
    errors: Sequence[Sequence[float]], sizes: Sequence[Sequence[float]], budget: float
) -> list[int]:
    """Choose an option for each layer, with the least total error within a budget.

    Kept: the program over layers and a budget in ten thousand parts. Sizes are rounded up to a
    part, so that the choice fits the budget.

    Args:
        errors: Errors of each layer's options, >= 0; one sequence per layer.
        sizes: Sizes of each layer's options, >= 0, in the unit of the budget.
        budget: Total size of all layers, > 0.

    Returns:
        Index of the chosen option of each layer.

    Raises:
        BudgetError: If the smallest options together exceed the budget; names their total size.
        ValueError: If the sequences differ in length, or a number is negative or not finite.

    Example:
        >>> from sqs_jax.baselines.obc_allocation import allocate
        >>> errors = [[0.0, 1.0], [0.0, 9.0]]  # the second layer is the more sensitive
        >>> allocate(errors, sizes=[[800, 400], [800, 400]], budget=1300)
        [1, 0]
    """
    losses = [np.asarray(layer, np.float64) for layer in errors]
    costs = [np.asarray(layer, np.float64) for layer in sizes]
    same_shape = [layer.shape for layer in losses] == [layer.shape for layer in costs]
    usable = all(
        layer.size and np.isfinite(layer).all() and layer.min() >= 0 for layer in losses + costs
    )
    if not (same_shape and usable):
        raise ValueError(
            "errors and sizes must be as many numbers for each layer, finite and not negative; "
            f"layers have {[layer.size for layer in losses]} and {[layer.size for layer in costs]}."
        )
    part = budget / _BUCKETS
    least = sum(int(np.ceil(layer.min() / part)) for layer in costs) if budget > 0 else math.inf
    if least > _BUCKETS:
        raise BudgetError(
            f"budget is {budget}; the smallest options of all layers take "
            f"{sum(layer.min() for layer in costs)}, rounded up to parts of a ten-thousandth of "
            "the budget for each layer; give more."
        )
    # best[b] is the least error of the layers so far that use at most b parts of the budget.
    best = np.zeros(_BUCKETS + 1)
    choice = np.zeros((len(losses), _BUCKETS + 1), np.int64)
    for layer, (error, cost) in enumerate(zip(losses, costs, strict=True)):
        totals = np.full((len(error), _BUCKETS + 1), np.inf)
        for option, used in enumerate(np.ceil(cost / part).astype(np.int64)):
            if used <= _BUCKETS:
                totals[option, used:] = best[: _BUCKETS + 1 - used] + error[option]
        choice[layer] = np.argmin(totals, axis=0)
        best = np.min(totals, axis=0)
    remaining, choices = _BUCKETS, []
    for layer in range(len(losses) - 1, -1, -1):
        option = int(choice[layer, remaining])
        choices.append(option)
        remaining -= int(np.ceil(costs[layer][option] / part))
    return choices[::-1]
