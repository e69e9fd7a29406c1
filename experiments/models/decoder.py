"""Decoders of the Llama family: Llama 2 and 3, Qwen 2, 2.5 and 3, with one set of modules.

RMS norms before attention and MLP, rotary positions, grouped-query attention, SwiGLU. They differ
in what `DecoderConfig` says. Kernels are [inputs, outputs]; names are Hugging Face's, but for
`layers_0`, `kernel`, `scale` and `embedding`.
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
    """How Llama 3.1 stretches rotary positions over a longer context.

    Attributes:
      factor: by which low frequencies are divided.
      low_freq_factor, high_freq_factor: wavelengths over original_context / low are stretched
        whole, those under original_context / high not at all.
      original_context: tokens that it was first trained on.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """What distinguishes one decoder from another.

    Attributes:
      vocabulary: number of tokens.
      width: of the residual stream.
      hidden: units of an MLP.
      layers: number of blocks.
      heads, key_value_heads: of attention; the former is a multiple of the latter.
      head_width: of each.
      context: most tokens of a sequence.
      theta: base of the rotary frequencies.
      rope_scaling: of Llama 3.1 and later.
      epsilon: of the norms.
      tied: the head is the embedding.
      query_bias: queries, keys and values have biases (Qwen 2).
      query_norm: queries and keys are normalised per head (Qwen 3).
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
    """A language model.

    `__call__` is `head(block(... block(embed(tokens))))`, which can be called one by one too.

    Attributes:
      config: its shape.
      rule: None for flax.linen's layers; a `sqs_jax.Rule` for compressible ones with the same
        parameter paths.
      dtype: of the arithmetic; norms, softmax and logits are float32.
      remat: keep each block's input alone for the backward pass, and compute the rest again.
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
        """Compute logits [batch, length, vocabulary], float32, from tokens int [batch, length]."""
        return self.head(self.hidden(tokens))

    def hidden(self, tokens: jax.Array) -> jax.Array:
        """Compute what the head reads, [batch, length, width], from tokens int [batch, length]."""
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
    """Attention and MLP, each behind a norm and beside a shortcut; [batch, length, width]."""

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
        """Whether keys and values are kept: `apply(..., mutable="cache")` says so."""
        return self.is_mutable_collection("cache") and not self.is_initializing()

    def count(self, length: int) -> jax.Array:
        """Count more tokens in the cache; returns how many there were."""
        count = self.variable("cache", "count", jnp.zeros, (), jnp.int32)
        before = count.value
        count.value = before + length
        return before

    def attend(
        self, queries: jax.Array, keys: jax.Array, values: jax.Array, positions: jax.Array
    ) -> jax.Array:
        """Attend to these tokens and all in the cache: [batch, length, heads, head_width]."""
        if not self.cached:
            return jax.nn.dot_product_attention(queries, keys, values, is_causal=True)

        def together(name: str, new: jax.Array) -> jax.Array:
            shape = new.shape[0], self.config.context, *new.shape[2:]
            seen = self.variable("cache", name, jnp.zeros, shape, new.dtype)
            seen.value = jax.lax.dynamic_update_slice_in_dim(seen.value, new, positions[0], 1)
            return seen.value

        keys, values = together("keys", keys), together("values", values)
        mask = jnp.arange(self.config.context)[None] <= positions[:, None]
        return jax.nn.dot_product_attention(queries, keys, values, mask=mask[None, None])


class GatedMlp(nn.Module):
    """silu(gate) * up, projected down; [batch, length, width]."""

    config: DecoderConfig
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dense, config = self.layers.dense, self.config
        gate = dense(config.hidden, "gate_proj", bias=False)(x)
        up = dense(config.hidden, "up_proj", bias=False)(x)
        return dense(config.width, "down_proj", bias=False)(nn.silu(gate) * up)


def rotary_frequencies(config: DecoderConfig) -> np.ndarray:
    """Return radians per position of each pair of dimensions, float32 [head_width / 2]."""
    exponents = np.arange(0, config.head_width, 2) / config.head_width
    frequencies = config.theta**-exponents
    scaling = config.rope_scaling
    if scaling is not None:
        turns = scaling.original_context * frequencies / (2 * np.pi)  # in the original context
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        kept = np.clip((turns - low) / (high - low), 0, 1)
        frequencies = frequencies * (kept + (1 - kept) / scaling.factor)
    return frequencies.astype(np.float32)


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Turn the pairs (i, i + head_width / 2) of x [batch, length, heads, head_width].

    Args:
      x: queries or keys.
      angles: radians, [length, head_width / 2].
    """
    cos, sin = (f(angles)[None, :, None] for f in (jnp.cos, jnp.sin))
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
