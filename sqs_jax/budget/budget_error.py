"""Error for a byte budget that no file satisfies."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from sqs_jax.transform.rules import Rule

__all__ = ["BudgetError", "infeasible_budget"]

_NARROW_BYTES = 2  # dense values of at most this width need no `dense_dtype`


class BudgetError(ValueError):
    """Error for a budget below the size of the smallest possible file.

    The message states that size, its causes, and remedies.

    Attributes:
        budget: Requested size, bytes.
        least: Size of the smallest possible file, bytes; None if unknown.
        dense: Tuple of (path, name of the dtype, bytes), one per uncompressed leaf.

    Example:
        >>> import numpy as np
        >>> import sqs_jax
        >>> try:
        ...     sqs_jax.compress_to_budget({"steps": np.arange(1000)}, target_bytes=100)
        ... except sqs_jax.BudgetError as error:
        ...     error.budget, error.dense
        (100, (('steps', 'int64', 8000),))
    """

    def __init__(
        self,
        message: str,
        *,
        budget: int = 0,
        least: int | None = None,
        dense: Sequence[tuple[str, str, int]] = (),
    ) -> None:
        """Store the message and the figures."""
        super().__init__(message)
        self.budget, self.least, self.dense = budget, least, tuple(dense)


def infeasible_budget(
    budget: int,
    least: int,
    leaves: Sequence[tuple[str, Any, Rule | None]],
    count: int,
    rounding: np.dtype | None,
) -> BudgetError:
    """Return the error for a budget below the smallest possible file.

    Args:
        budget: Budget, bytes.
        least: Size of the smallest possible file, bytes.
        leaves: Path, array and rule of each leaf that stays dense.
        count: Number of leaves of the tree.
        rounding: Dtype that `save` rounds dense leaves to, or None.

    Returns:
        Error that states the smallest size, its causes, and remedies.
    """
    dense, exact, wide, small = [], 0, 0, 0
    for path, array, rule in leaves:
        dtype = np.dtype(array.dtype)
        width = dtype.itemsize
        if jnp.issubdtype(dtype, jnp.floating):
            width = min(width, rounding.itemsize) if rounding else width
            wide += width > _NARROW_BYTES and array.size > 0
            small += array.size > 0 and array.ndim > 0 and _kept_by_min_ndim(rule, array)
        else:
            exact += array.size > 0
        dense.append((path, dtype.name, array.size * width))
    size = sum(entry[2] for entry in dense)
    message = f"The budget of {budget:,} bytes is below the least possible file: {least:,} bytes"
    remedies = ["a larger budget"]
    if len(dense) == count and not size:
        message += "; all tensors of the tree are empty."
    else:
        message += ", with every weight pruned that may be." if len(dense) < count else "."
        if dense:
            message += f" {len(dense)} leaves that stay dense take {size:,} bytes of it,"
            message += " uncompressed."
        if exact:
            message += f" {exact} of them hold integers, bools or complex numbers, never rounded."
        if wide:
            remedies.append("a dense_dtype such as 'bfloat16' (here and to save)")
        if small:
            remedies.append("rules that compress more leaves, such as Rule(min_ndim=1)")
    listed = ", ".join(remedies[:-1]) + (", or " if remedies[1:] else "") + remedies[-1]
    return BudgetError(f"{message} Give {listed}.", budget=budget, least=least, dense=dense)


def _kept_by_min_ndim(rule: Rule | None, array: Any) -> bool:
    """Return whether a leaf stays dense because of its number of axes."""
    return rule is not None and rule.components is not None and not rule.compresses(array)
