"""Autoregressive generation with a cache of keys and values."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from experiments.models.decoder import Decoder


@partial(jax.jit, static_argnames=("model", "count", "temperature"))
def generate_tokens(
    model: Decoder,
    params: Any,
    prompts: jax.Array,
    count: int,
    key: jax.Array,
    temperature: float = 1.0,
) -> jax.Array:
    """Generate tokens that continue each prompt.

    Args:
      model: Language model.
      params: Parameters of the model.
      prompts: Token ids, int [batch, length], length > 0; length + count must not exceed the
        context.
      count: Number of tokens to generate, > 0.
      key: PRNG key of the draws.
      temperature: Temperature of the draws, >= 0; 0 chooses the most probable token.

    Returns:
      Prompts with the generated tokens, int32 [batch, length + count].
    """
    length = prompts.shape[1] + count - 1  # the network never reads the last token
    # The cache then has space for this text only, not for the whole context.
    model = model.clone(config=dataclasses.replace(model.config, context=length))

    def predict(cache: Any, tokens: jax.Array) -> tuple[jax.Array, Any]:
        outputs: Any = model.apply(
            {"params": params, **cache}, tokens, mutable="cache", method="hidden"
        )
        hidden, cache = outputs
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
    generated = jnp.concatenate([tokens, last[None]]).T
    return jnp.concatenate([prompts.astype(jnp.int32), generated], axis=1)
