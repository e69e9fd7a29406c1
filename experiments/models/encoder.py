"""BERT with a head for text classification or extractive question answering.

Devlin et al. 2019, arXiv:1810.04805. Kernels are [inputs, outputs]. Names of parameters are
Hugging Face's, except for `layer_0`, `kernel`, `scale` and `embedding`.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import sqs_jax
from experiments.models.layers import Layers

_MASKED = -1e9  # logit of a masked token, whose probability is 0


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Architecture of an encoder.

    Attributes:
      vocabulary: Number of tokens.
      width: Width of the residual stream.
      hidden: Number of hidden units of an MLP.
      layers: Number of blocks.
      heads: Number of attention heads.
      context: Largest length of a sequence, tokens.
      segments: Number of token types.
      epsilon: Constant added to the variance in the norms.
      dropout: Dropout rate of embeddings, attention and blocks during training, in [0, 1).
      padding: Id of the padding token.
      separator: Id of the token that ends a segment.
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
    """BERT from tokens to logits.

    Attributes:
      config: Architecture.
      classes: Number of classes of texts; None for question answering, whose logits are those of
        an answer's first and last token.
      rule: None for flax.linen's layers; a `sqs_jax.Rule` for compressible layers with the same
        parameter paths.
      dtype: Data type of the arithmetic; norms, softmax and logits are float32.
      remat: Whether blocks are recomputed in the backward pass, so that only their inputs are
        stored.
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
          tokens: Token ids, int [batch, length], padded at the end. Tokens after the first
            separator are the second segment.
          train: Whether to apply dropout, which needs the PRNG key "dropout".

        Returns:
          Logits [batch, classes], or [batch, 2, length], where those of padding are -1e9.
        """
        config, layers = self.config, Layers(self.rule, self.dtype)
        drop = nn.Dropout(config.dropout, deterministic=not train)
        real = tokens != config.padding
        x = drop(Embeddings(config, layers, name="embeddings")(tokens))
        x = Blocks(config, layers, train, self.remat, name="encoder")(x, real)
        if self.classes is None:
            logits = layers.dense(2, "qa_outputs")(x).astype(jnp.float32)
            return jnp.where(real[:, None], jnp.swapaxes(logits, 1, 2), _MASKED)
        pooled = drop(Pooler(config, layers, name="pooler")(x))
        return layers.dense(self.classes, "classifier")(pooled).astype(jnp.float32)


class Embeddings(nn.Module):
    """Normalized sum of word, position and segment embeddings: [batch, length, width]."""

    config: EncoderConfig
    layers: Layers

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        config, embed = self.config, self.layers.embed
        ends = (tokens == config.separator).astype(jnp.int32)
        segments = jnp.cumsum(ends, axis=1) - ends  # a separator belongs to the segment it ends
        segments = jnp.minimum(segments, config.segments - 1)
        segments = jnp.where(tokens == config.padding, 0, segments)
        x = embed(config.vocabulary, config.width, "word_embeddings")(tokens)
        positions = jnp.arange(tokens.shape[1])[None]
        x = x + embed(config.context, config.width, "position_embeddings")(positions)
        x = x + embed(config.segments, config.width, "token_type_embeddings")(segments)
        return self.layers.layer_norm(config.epsilon, "LayerNorm")(x)


class Blocks(nn.Module):
    """Stack of all blocks: [batch, length, width]."""

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
    """Attention and MLP with residual connections and post-norms: [batch, length, width]."""

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
    """Bidirectional attention, masked at padding: [batch, length, width]."""

    config: EncoderConfig
    layers: Layers
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array, real: jax.Array) -> jax.Array:
        y = Heads(self.config, self.layers, self.train, name="self")(x, real)
        return Residual(self.config, self.layers, self.train, name="output")(y, x)


class Heads(nn.Module):
    """Outputs of the attention heads, concatenated: [batch, length, width]."""

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
        logits = jnp.where(real[:, None, None], logits / split[-1] ** 0.5, _MASKED)
        attention = jax.nn.softmax(logits).astype(values.dtype)
        attention = nn.Dropout(config.dropout, deterministic=not self.train)(attention)
        return jnp.einsum("bhqk,bkhd->bqhd", attention, values).reshape(x.shape)


class Residual(nn.Module):
    """Normalized sum of a projection after dropout and a shortcut: [batch, length, width]."""

    config: EncoderConfig
    layers: Layers
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array, shortcut: jax.Array) -> jax.Array:
        y = self.layers.dense(self.config.width, "dense")(x)
        y = nn.Dropout(self.config.dropout, deterministic=not self.train)(y)
        return self.layers.layer_norm(self.config.epsilon, "LayerNorm")(y + shortcut)


class Projection(nn.Module):
    """Linear layer in a scope of its own, as Hugging Face's names need: [..., width]."""

    width: int
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.layers.dense(self.width, "dense")(x)


class Pooler(nn.Module):
    """Projection of the first token for the classifier: [batch, width]."""

    config: EncoderConfig
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.tanh(self.layers.dense(self.config.width, "dense")(x[:, 0]))
