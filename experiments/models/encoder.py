"""BERT, with a head that classifies texts or one that finds answers in them.

Devlin et al. 2019, arXiv:1810.04805. Kernels are [inputs, outputs]; names are Hugging Face's, but
for `layer_0`, `kernel`, `scale` and `embedding`.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import sqs_jax
from experiments.models.layers import Layers

_FAR = -1e9  # a logit that is never chosen


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """What distinguishes one encoder from another.

    Attributes:
      vocabulary: number of tokens.
      width: of the residual stream.
      hidden: units of an MLP.
      layers: number of blocks.
      heads: of attention.
      context: most tokens of a sequence.
      segments: number of token types.
      epsilon: of the norms.
      dropout: of embeddings, attention and blocks, while training.
      padding: the token that is no token.
      separator: the token that ends a segment.
    """

    vocabulary: int
    width: int
    hidden: int
    layers: int
    heads: int
    context: int
    segments: int = 2
    epsilon: float = 1e-12
    dropout: float = 0.1
    padding: int = 0
    separator: int = 102


class Encoder(nn.Module):
    """Tokens to logits.

    Attributes:
      config: its shape.
      classes: of texts; None finds answers: a start and an end among the tokens.
      rule: None for flax.linen's layers; a `sqs_jax.Rule` for compressible ones with the same
        parameter paths.
      dtype: of the arithmetic; norms, softmax and logits are float32.
      remat: keep each block's input alone for the backward pass, and compute the rest again.
    """

    config: EncoderConfig
    classes: int | None
    rule: sqs_jax.Rule | None = None
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, tokens: jax.Array, *, train: bool = False) -> jax.Array:
        """Compute logits, float32.

        Args:
          tokens: int [batch, length], padded at the end. What stands after the first separator is
            the second segment.
          train: drop activations; needs the key "dropout".

        Returns:
          [batch, classes]; or [batch, 2, length], never where padding is.
        """
        config, layers = self.config, Layers(self.rule, self.dtype)
        drop = nn.Dropout(config.dropout, deterministic=not train)
        real = tokens != config.padding
        x = drop(Embeddings(config, layers, name="embeddings")(tokens))
        x = Blocks(config, layers, train, self.remat, name="encoder")(x, real)
        if self.classes is None:
            logits = layers.dense(2, "qa_outputs")(x).astype(jnp.float32)
            return jnp.where(real[:, None], jnp.swapaxes(logits, 1, 2), _FAR)
        pooled = drop(Pooler(config, layers, name="pooler")(x))
        return layers.dense(self.classes, "classifier")(pooled).astype(jnp.float32)


class Embeddings(nn.Module):
    """Words, positions and segments, normalised: [batch, length, width]."""

    config: EncoderConfig
    layers: Layers

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        config, embed = self.config, self.layers.embed
        ends = (tokens == config.separator).astype(jnp.int32)
        ended = jnp.cumsum(ends, axis=1) - ends  # a separator ends its own segment
        segments = jnp.where(tokens == config.padding, 0, jnp.minimum(ended, config.segments - 1))
        x = embed(config.vocabulary, config.width, "word_embeddings")(tokens)
        positions = jnp.arange(tokens.shape[1])[None]
        x = x + embed(config.context, config.width, "position_embeddings")(positions)
        x = x + embed(config.segments, config.width, "token_type_embeddings")(segments)
        return self.layers.layer_norm(config.epsilon, "LayerNorm")(x)


class Blocks(nn.Module):
    """All blocks, one after the other: [batch, length, width]."""

    config: EncoderConfig
    layers: Layers
    train: bool
    remat: bool

    @nn.compact
    def __call__(self, x: jax.Array, real: jax.Array) -> jax.Array:
        block = nn.remat(EncoderBlock) if self.remat else EncoderBlock
        for i in range(self.config.layers):
            x = block(self.config, self.layers, self.train, name=f"layer_{i}")(x, real)
        return x


class EncoderBlock(nn.Module):
    """Attention and MLP, each beside a shortcut and before a norm: [batch, length, width]."""

    config: EncoderConfig
    layers: Layers
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array, real: jax.Array) -> jax.Array:
        config, layers = self.config, self.layers
        y = SelfAttention(config, layers, self.train, name="attention")(x, real)
        hidden = Projection(config.hidden, layers, name="intermediate")(y)
        return Residual(config, layers, self.train, name="output")(
            nn.gelu(hidden, approximate=False), y
        )


class SelfAttention(nn.Module):
    """Attention to all tokens but padding: [batch, length, width]."""

    config: EncoderConfig
    layers: Layers
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array, real: jax.Array) -> jax.Array:
        y = Heads(self.config, self.layers, self.train, name="self")(x, real)
        return Residual(self.config, self.layers, self.train, name="output")(y, x)


class Heads(nn.Module):
    """The heads of attention, side by side: [batch, length, width]."""

    config: EncoderConfig
    layers: Layers
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array, real: jax.Array) -> jax.Array:
        config = self.config
        split = (*x.shape[:2], config.heads, config.width // config.heads)
        queries, keys, values = (
            self.layers.dense(config.width, name)(x).reshape(split)
            for name in ("query", "key", "value")
        )
        logits = jnp.einsum("bqhd,bkhd->bhqk", queries, keys).astype(jnp.float32)
        logits = jnp.where(real[:, None, None], logits / split[-1] ** 0.5, _FAR)
        attention = jax.nn.softmax(logits).astype(values.dtype)
        attention = nn.Dropout(config.dropout, deterministic=not self.train)(attention)
        return jnp.einsum("bhqk,bkhd->bqhd", attention, values).reshape(x.shape)


class Residual(nn.Module):
    """A projection, dropped out, and a shortcut, normalised: [batch, length, width]."""

    config: EncoderConfig
    layers: Layers
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array, shortcut: jax.Array) -> jax.Array:
        y = self.layers.dense(self.config.width, "dense")(x)
        y = nn.Dropout(self.config.dropout, deterministic=not self.train)(y)
        return self.layers.layer_norm(self.config.epsilon, "LayerNorm")(y + shortcut)


class Projection(nn.Module):
    """A linear layer under a name of its own: [..., width]."""

    width: int
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.layers.dense(self.width, "dense")(x)


class Pooler(nn.Module):
    """What a classifier reads of the first token: [batch, width]."""

    config: EncoderConfig
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.tanh(self.layers.dense(self.config.width, "dense")(x[:, 0]))
