"""Diagnosis of non-finite values: the first NaN or infinity of a training step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def first_not_finite(**trees: Any) -> str | None:
    """Name the first array with a NaN or an infinity, in the order of the trees.

    Args:
      trees: Trees of arrays by name.

    Returns:
      "params/Dense_0/kernel (3 of 96 values are not finite)"; None if all are finite.
    """
    for path, leaf in jax.tree_util.tree_flatten_with_path(trees)[0]:
        bad = int(jnp.sum(~jnp.isfinite(leaf)))
        if bad:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            return f"{name} ({bad} of {leaf.size} values are not finite)"
    return None


def explain(
    gradient: Callable[..., Any], state: Any, batch: Any, teacher: Any, step: Any, seed: Any
) -> str:
    """Name the first non-finite array of a training step.

    The order is params, other collections, teacher, batch, gradient, loss; within a tree it is that
    of the leaves.

    Args:
      gradient: Gradient function of `make_gradient`.
      state: State before the step; this and the other arguments are those of `gradient`.
    """
    inputs = {
        "params": state.posterior,
        "model_state": state.model_state,
        "teacher": teacher,
        "batch": batch,
    }
    for name, tree in inputs.items():
        if description := first_not_finite(**{name: tree}):
            return description
    (loss, _), grads = jax.jit(gradient)(state, batch, teacher, step, seed)
    return first_not_finite(gradient=grads) or f"the loss, {float(loss)}"
