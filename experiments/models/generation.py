"""A language model goes on with a text, token by token, with a cache of keys and values."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from experiments.models.decoder import Decoder


@partial(jax.jit, static_argnames=("model", "count", "temperature"))
def go_on(
    model: Decoder,
    params: Any,
    prompts: jax.Array,
    count: int,
    key: jax.Array,
    temperature: float = 1.0,
) -> jax.Array:
    """Go on with each prompt.

    Args:
      model, params: the network.
      prompts: int [batch, length], length > 0; with what follows, no longer than the context.
      count: of tokens to add, > 0.
      key: of what is drawn.
      temperature: of the draws; 0: always the most probable token.

    Returns:
      int32 [batch, length + count].
    """
    length = prompts.shape[1] + count - 1  # the last token is read by nobody
    # keys and values of as many tokens as there will be, and not of the whole context
    model = model.clone(config=dataclasses.replace(model.config, context=length))

    def predict(cache: Any, tokens: jax.Array) -> tuple[jax.Array, Any]:
        found: Any = model.apply(
            {"params": params, **cache}, tokens, mutable="cache", method="hidden"
        )
        hidden, cache = found
        logits: Any = model.apply({"params": params}, hidden[:, -1], method="head")
        return logits, cache

    def choose(key: jax.Array, logits: jax.Array) -> jax.Array:
        if not temperature:
            return jnp.argmax(logits, -1).astype(jnp.int32)
        return jax.random.categorical(key, logits / temperature).astype(jnp.int32)

    def step(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        logits, cache = carry
        token = choose(key, logits)
        return predict(cache, token[:, None]), token

    keys = jax.random.split(key, count)
    (logits, _), tokens = jax.lax.scan(step, predict({}, prompts), keys[:-1])
    last = choose(keys[-1], logits)
    added = jnp.concatenate([tokens, last[None]]).T
    return jnp.concatenate([prompts.astype(jnp.int32), added], axis=1)
