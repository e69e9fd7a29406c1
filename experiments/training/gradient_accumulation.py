"""Gradient accumulation, for batches that do not fit in memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import sqs_jax

# (model state, batch) -> ((loss, aux), gradients)
Gradient = Callable[[Any, Any], tuple[tuple[jax.Array, sqs_jax.ElboAux], Any]]


def accumulated(gradient: Gradient, parts: int) -> Gradient:
    """Build the gradient function that processes micro-batches sequentially.

    Loss, metrics and gradients are means over all labels, as for the whole batch. The exception is
    batch normalization, whose statistics are those of each micro-batch, and are updated after each.

    Args:
      gradient: Function (model state, batch) -> ((loss, aux), gradients). aux.model_aux is (new
        model state, accuracy). The batch has "key" and "labels"; negative labels do not count.
      parts: Number of micro-batches, which divides the number of examples.
    """
    if parts == 1:
        return gradient

    def of_all(model_state: Any, batch: Any) -> Any:
        key = batch.pop("key")
        labeled = jnp.sum(batch["labels"] >= 0)
        # A micro-batch takes every parts-th example, so that no example changes its device.
        cut = jax.tree.map(lambda x: jnp.moveaxis(_rows(x, parts), 1, 0), batch)

        def add(carry: Any, numbered_part: Any) -> Any:
            (model_state, sums), (number, part) = carry, numbered_part
            part["key"] = jax.random.fold_in(key, number)
            (loss, aux), grads = gradient(model_state, part)
            model_state, accuracy = aux.model_aux
            share = jnp.sum(part["labels"] >= 0) / jnp.maximum(labeled, 1)
            result = loss, aux._replace(model_aux=accuracy), grads

            def plus(total: jax.Array, x: jax.Array) -> jax.Array:
                # The mean over no label is NaN.
                return total + jnp.where(share > 0, share.astype(x.dtype) * x, 0)

            return (model_state, jax.tree.map(plus, sums, result)), None

        first = jax.tree.map(lambda x: x[0], cut) | {"key": key}
        (loss, aux), grads = jax.eval_shape(gradient, model_state, first)
        like = loss, aux._replace(model_aux=aux.model_aux[1]), grads
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
        (model_state, (loss, aux, grads)), _ = jax.lax.scan(
            add, (model_state, zeros), (jnp.arange(parts), cut)
        )
        return (loss, aux._replace(model_aux=(model_state, aux.model_aux))), grads

    return of_all


def _rows(x: jax.Array, parts: int) -> jax.Array:
    return x.reshape(len(x) // parts, parts, *x.shape[1:])
