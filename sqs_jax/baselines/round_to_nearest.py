"""Round to nearest: every weight to the nearest point of its group's uniform grid.

What every comparison of quantisers begins with; in GPTQ's paper (arXiv:2210.17323) "RTN".
"""

from collections.abc import Iterable
from typing import Any

import jax

from sqs_jax.baselines.grids import Kernel, lay_grids, nearest, per_kernel
from sqs_jax.transform.rules import DEFAULT_RULES, Rule


def compress(
    params: Any,
    *,
    levels: int,
    group: int | None = None,
    rules: Iterable[Rule] = DEFAULT_RULES,
) -> Any:
    """Round kernels to nearest.

    Kept: asymmetric min-max grids per output, or per group of an output's inputs. Different: any
    number of levels, for files are entropy-coded and a power of two is nothing special.

    Args:
      params: tree of arrays; kernels are [*inputs, outputs].
      levels: of each grid, at least 2.
      group: inputs of a group; None: one group per output.
      rules: which kernels.

    Returns:
      The tree with `GridLeaf`s.

    Raises:
      ValueError: see `per_kernel`.
    """

    def rounded(kernel: Kernel) -> tuple[Any, Any, Any]:
        return round_kernel(kernel.weights, levels, group)

    return per_kernel(params, rules, levels, group, rounded)


def round_kernel(weights: jax.Array, levels: int, group: int | None) -> tuple[Any, Any, Any]:
    """Return codes [I, O], scales and zeros [G, O] of a kernel's weights, each at its nearest."""
    scales, zeros = lay_grids(weights, levels, group)
    return nearest(weights, scales, zeros, levels), scales, zeros
