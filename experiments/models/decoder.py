"""Decoders of the Llama family: Llama 2 and 3, Qwen 2, 2.5 and 3.

All have RMS norms before attention and MLP, rotary positions, grouped-query attention and SwiGLU;
`DecoderConfig` holds their differences. Kernels are [inputs, outputs]. Names of parameters are
Hugging Face's, except for `layers_0`, `kernel`, `scale` and `embedding`.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import sqs_jax
from experiments.models.layers import Layers


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Scaling of rotary frequencies to a longer context in Llama 3.1.

    Attributes:
      factor: Divisor of the low frequencies.
      low_freq_factor: Wavelengths over original_context / low_freq_factor are scaled by `factor`.
      high_freq_factor: Wavelengths under original_context / high_freq_factor are not scaled.
      original_context: Context length of the first training phase, tokens.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Architecture of a decoder.

    Attributes:
      vocabulary: Number of tokens.
      width: Width of the residual stream.
      hidden: Number of hidden units of an MLP.
      layers: Number of blocks.
      heads: Number of attention heads, a multiple of `key_value_heads`.
      key_value_heads: Number of heads of keys and values.
      head_width: Width of a head.
      context: Largest length of a sequence, tokens.
      theta: Base of the rotary frequencies.
      rope_scaling: Scaling of the rotary frequencies (Llama 3.1 and later); None for no scaling.
      epsilon: Constant added to the mean square in the norms.
      tied: Whether the head is the embedding.
      query_bias: Whether queries, keys and values have biases (Qwen 2).
      query_norm: Whether queries and keys are normalized per head (Qwen 3).
    """

    vocabulary: int
    width: int
    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    head_width: int
    context: int
    theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    epsilon: float = 1e-5
    tied: bool = False
    query_bias: bool = False
    query_norm: bool = False


class Decoder(nn.Module):
    """Language model.

    `__call__` is `head(block(... block(embed(tokens))))`; the parts can be called separately.

    Attributes:
      config: Architecture.
      rule: None for flax.linen's layers; a `sqs_jax.Rule` for compressible layers with the same
        parameter paths.
      dtype: Data type of the arithmetic; norms, softmax and logits are float32.
      remat: Whether blocks are recomputed in the backward pass, so that only their inputs are
        stored.
    """

    config: DecoderConfig
    rule: sqs_jax.Rule | None = None
    dtype: Any = jnp.float32
    remat: bool = False

    def setup(self) -> None:
        config, layers = self.config, Layers(self.rule, self.dtype)
        self.embed_tokens = layers.embed(config.vocabulary, config.width)
        block = nn.remat(DecoderBlock) if self.remat else DecoderBlock
        self.layers = [block(config, layers) for _ in range(config.layers)]
        self.norm = layers.rms_norm(config.epsilon)
        if not config.tied:
            self.lm_head = layers.dense(config.vocabulary, bias=False)

    def __call__(self, tokens: jax.Array, *, train: bool = False) -> jax.Array:
        """Compute float32 logits [batch, length, vocabulary] of tokens [batch, length]."""
        return self.head(self.hidden(tokens))

    def hidden(self, tokens: jax.Array) -> jax.Array:
        """Compute the last block's output [batch, length, width] of tokens [batch, length]."""
        x = self.embed(tokens)
        for block in self.layers:
            x = block(x)
        return x

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Compute the first block's input [batch, length, width]."""
        return self.embed_tokens(tokens)

    def head(self, x: jax.Array) -> jax.Array:
        """Compute logits from the last block's output."""
        x = self.norm(x)
        logits = self.embed_tokens.attend(x) if self.config.tied else self.lm_head(x)
        return logits.astype(jnp.float32)


class DecoderBlock(nn.Module):
    """Pre-norm attention and MLP with residual connections; [batch, length, width]."""

    config: DecoderConfig
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = self.layers.rms_norm
        y = norm(self.config.epsilon, "input_layernorm")(x)
        x = x + Attention(self.config, self.layers, name="self_attn")(y)
        y = norm(self.config.epsilon, "post_attention_layernorm")(x)
        return x + GatedMlp(self.config, self.layers, name="mlp")(y)


class Attention(nn.Module):
    """Causal attention with rotary positions; [batch, length, width]."""

    config: DecoderConfig
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config, layers = self.config, self.layers
        batch, length, _ = x.shape

        def project(heads: int, name: str) -> jax.Array:
            dense = layers.dense(heads * config.head_width, f"{name}_proj", bias=config.query_bias)
            return dense(x).reshape(batch, length, heads, config.head_width)

        queries = project(config.heads, "q")
        keys = project(config.key_value_heads, "k")
        values = project(config.key_value_heads, "v")
        if config.query_norm:
            queries = layers.rms_norm(config.epsilon, "q_norm")(queries)
            keys = layers.rms_norm(config.epsilon, "k_norm")(keys)
        positions = jnp.arange(length) + (self.count(length) if self.cached else 0)
        angles = positions[:, None].astype(jnp.float32) * rotary_frequencies(config)[None]
        queries, keys = rotate(queries, angles), rotate(keys, angles)
        y = self.attend(queries, keys, values, positions)
        return layers.dense(config.width, "o_proj", bias=False)(y.reshape(batch, length, -1))

    @property
    def cached(self) -> bool:
        """Whether keys and values are cached, as under `apply(..., mutable="cache")`."""
        return self.is_mutable_collection("cache") and not self.is_initializing()

    def count(self, length: int) -> jax.Array:
        """Add `length` to the number of cached tokens, and return the number before."""
        count = self.variable("cache", "count", jnp.zeros, (), jnp.int32)
        before = count.value
        count.value = before + length
        return before

    def attend(
        self, queries: jax.Array, keys: jax.Array, values: jax.Array, positions: jax.Array
    ) -> jax.Array:
        """Compute causal attention over new and cached tokens.

        Args:
          queries: Queries [batch, length, heads, head_width].
          keys: Keys of the new tokens [batch, length, key_value_heads, head_width].
          values: Values of the new tokens, shaped like `keys`.
          positions: Positions of the new tokens, int [length].

        Returns:
          Array shaped like `queries`.
        """
        if not self.cached:
            return jax.nn.dot_product_attention(queries, keys, values, is_causal=True)

        def with_cached(name: str, new: jax.Array) -> jax.Array:
            shape = new.shape[0], self.config.context, *new.shape[2:]
            cache = self.variable("cache", name, jnp.zeros, shape, new.dtype)
            cache.value = jax.lax.dynamic_update_slice_in_dim(cache.value, new, positions[0], 1)
            return cache.value

        keys, values = with_cached("keys", keys), with_cached("values", values)
        mask = jnp.arange(self.config.context)[None] <= positions[:, None]
        return jax.nn.dot_product_attention(queries, keys, values, mask=mask[None, None])


class GatedMlp(nn.Module):
    """SwiGLU: silu(gate) * up, projected down; [batch, length, width]."""

    config: DecoderConfig
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dense, config = self.layers.dense, self.config
        gate = dense(config.hidden, "gate_proj", bias=False)(x)
        up = dense(config.hidden, "up_proj", bias=False)(x)
        return dense(config.width, "down_proj", bias=False)(nn.silu(gate) * up)


def rotary_frequencies(config: DecoderConfig) -> np.ndarray:
    """Return the rotation per position, radians, float32 [head_width / 2]."""
    exponents = np.arange(0, config.head_width, 2) / config.head_width
    frequencies = config.theta**-exponents
    scaling = config.rope_scaling
    if scaling is not None:
        turns = scaling.original_context * frequencies / (2 * np.pi)  # in the original context
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        unscaled = np.clip((turns - low) / (high - low), 0, 1)
        frequencies = frequencies * (unscaled + (1 - unscaled) / scaling.factor)
    return frequencies.astype(np.float32)


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Rotate the pairs of dimensions (i, i + head_width / 2) of queries or keys.

    Args:
      x: Queries or keys [batch, length, heads, head_width].
      angles: Angles, radians, [length, head_width / 2].

    Returns:
      Array of the shape and dtype of `x`.
    """
    cos, sin = (f(angles)[None, :, None] for f in (jnp.cos, jnp.sin))
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
