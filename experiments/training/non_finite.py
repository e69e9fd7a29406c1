"""Where a training first stopped being finite."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def first_not_finite(**trees: Any) -> str | None:
    """Name the first array that holds a NaN or an infinity, in the order of the trees.

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
    """Name what is not finite first in a step, given the state before it; arguments as there.

    Looks at the params, the network's state, the teacher and the batch, then at the gradient, each
    in tree order; the loss is what is left.
    """
    inputs = {
        "params": state.posterior,
        "model_state": state.model_state,
        "teacher": teacher,
        "batch": batch,
    }
    for name, tree in inputs.items():
        if found := first_not_finite(**{name: tree}):
            return found
    (loss, _), grads = jax.jit(gradient)(state, batch, teacher, step, seed)
    return first_not_finite(gradient=grads) or f"the loss, {float(loss)}"
