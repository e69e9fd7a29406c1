"""A gradient from a few examples at a time, where a whole batch does not fit in memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import sqs_jax

# (loss, aux) and gradients, of model state and a batch
Gradient = Callable[[Any, Any], tuple[tuple[jax.Array, sqs_jax.ElboAux], Any]]


def accumulated(gradient: Gradient, parts: int) -> Gradient:
    """Return the gradient of a batch from so many parts of it, one after the other.

    Loss, metrics and gradients are means over all that is asked for: those of the whole batch, but
    for what sees a batch as a whole. Batch statistics are of a part each, and move with every one.

    Args:
      gradient: (model state, batch) -> ((loss, aux), gradients); aux.model_aux is (new model state,
        accuracy), and the batch has "labels", negative where nothing is asked for, and "key".
      parts: their number, which divides the examples.
    """
    if parts == 1:
        return gradient

    def of_all(model_state: Any, batch: Any) -> Any:
        key = batch.pop("key")
        asked = jnp.sum(batch["labels"] >= 0)
        # every parts-th example: those that lie on a device stay there
        cut = jax.tree.map(lambda x: jnp.moveaxis(_rows(x, parts), 1, 0), batch)

        def add(carry: Any, given: Any) -> Any:
            (model_state, sums), (number, part) = carry, given
            part["key"] = jax.random.fold_in(key, number)
            (loss, aux), grads = gradient(model_state, part)
            model_state, accuracy = aux.model_aux
            share = jnp.sum(part["labels"] >= 0) / jnp.maximum(asked, 1)
            found = loss, aux._replace(model_aux=accuracy), grads

            def plus(total: jax.Array, x: jax.Array) -> jax.Array:
                # the mean of no label is no number, and counts for nothing
                return total + jnp.where(share > 0, share.astype(x.dtype) * x, 0)

            return (model_state, jax.tree.map(plus, sums, found)), None

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
