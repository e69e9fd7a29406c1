"""Round to nearest: move each weight to the nearest point of its group's uniform grid.

The reference method of every comparison of quantizers; "RTN" in the GPTQ paper, arXiv:2210.17323.
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
    """Round the weights of kernels to nearest.

    Kept: asymmetric min-max grids per output, or per group of an output's inputs. Different: any
    number of levels, because files are entropy-coded and powers of two save nothing.

    Args:
        params: Tree of arrays; a kernel has shape [*inputs, outputs].
        levels: Number of levels of each grid; 2 to 65,536.
        group: Group size: consecutive inputs that share a grid; None for one group per output.
        rules: Rules that choose the kernels; the first match decides.

    Returns:
        Copy of the tree in which each kernel is a `GridLeaf`.

    Raises:
        ValueError: As `sqs_jax.baselines.grids.per_kernel`.

    Example:
        >>> import numpy as np
        >>> import sqs_jax
        >>> from sqs_jax.baselines import round_to_nearest
        >>> params = {"kernel": np.array([[-1.0, 0.4], [0.6, 3.0]], np.float32)}
        >>> compressed = round_to_nearest.compress(params, levels=3)
        >>> compressed["kernel"].codes.tolist()
        [[0, 0], [2, 2]]
    """

    def rounded(kernel: Kernel) -> tuple[Any, Any, Any]:
        return round_kernel(kernel.weights, levels, group)

    return per_kernel(params, rules, levels, group, rounded)


def round_kernel(weights: jax.Array, levels: int, group: int | None) -> tuple[Any, Any, Any]:
    """Round weights [I, O] to nearest; return codes [I, O], scales and zeros [G, O]."""
    scales, zeros = lay_grids(weights, levels, group)
    return nearest(weights, scales, zeros, levels), scales, zeros
