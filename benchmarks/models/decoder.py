"""Decoder-only language model in the shapes of Llama 3, with a tied head."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


class Decoder(nn.Module):
    """Pre-norm blocks of grouped-query attention and SwiGLU; RMSNorm; rotary positions.

    Attributes:
        vocabulary: Number of tokens.
        width: Width D of the residual stream.
        layers: Number of blocks.
        heads: Number of heads of the queries.
        kv_heads: Number of heads of keys and values; divides `heads`.
        hidden: Units of SwiGLU.
        dtype: Dtype of the arithmetic; weights are float32.
        scan: Whether a scan over stacked weights replaces the list of blocks, with recomputation
            in the backward pass. Large models need the scan for time of compilation and memory.
        attention: Implementation of `jax.nn.dot_product_attention`; None lets JAX choose.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    hidden: int
    dtype: Any = jnp.float32
    scan: bool = False
    attention: Any = None

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Compute logits [B, T, vocabulary] from tokens [B, T]."""
        embed = nn.Embed(self.vocabulary, self.width, dtype=self.dtype, name="embed")
        x = embed(tokens)
        block = (self.heads, self.kv_heads, self.hidden, self.dtype, self.attention)
        if self.scan:
            stack = nn.scan(
                nn.remat(_Block, prevent_cse=False),  # a scan's body needs no barrier
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=self.layers,
            )
            x, _ = stack(*block, name="layers")(x, None)
        else:
            for i in range(self.layers):
                x, _ = _Block(*block, name=f"layer_{i}")(x, None)
        return embed.attend(nn.RMSNorm(dtype=self.dtype, name="norm")(x))


class _Block(nn.Module):
    """Block with the signature (x, None) -> (x, None), for `nn.scan`."""

    heads: int
    kv_heads: int
    hidden: int
    dtype: Any
    attention: Any

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        size = x.shape[-1] // self.heads

        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(features, use_bias=False, dtype=self.dtype, name=name)

        def split(y: jax.Array) -> jax.Array:  # [B, T, heads, size]
            return y.reshape(*y.shape[:2], -1, size)

        y = nn.RMSNorm(dtype=self.dtype, name="attention_norm")(x)
        query = split(dense(self.heads * size, "query")(y))
        key = split(dense(self.kv_heads * size, "key")(y))
        value = split(dense(self.kv_heads * size, "value")(y))
        mixed = jax.nn.dot_product_attention(
            rotate(query), rotate(key), value, is_causal=True, implementation=self.attention
        )
        x = x + dense(x.shape[-1], "out")(mixed.reshape(x.shape))
        y = nn.RMSNorm(dtype=self.dtype, name="mlp_norm")(x)
        y = nn.silu(dense(self.hidden, "gate")(y)) * dense(self.hidden, "up")(y)
        return x + dense(x.shape[-1], "down")(y), None


def rotate(x: jax.Array) -> jax.Array:
    """Apply rotary positions to [B, T, heads, size], halves paired; base 10,000."""
    length, size = x.shape[1], x.shape[-1]
    angles = np.outer(np.arange(length), 10_000.0 ** -(np.arange(0, size, 2) / size))
    cos, sin = (jnp.asarray(f(angles)[None, :, None], x.dtype) for f in (np.cos, np.sin))
    left, right = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
