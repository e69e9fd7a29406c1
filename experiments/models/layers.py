"""Constructors of a transformer's layers, from flax.linen or compressible."""

import dataclasses
from functools import partial
from typing import Any

import flax.linen as nn

import sqs_jax.linen

_INIT = nn.initializers.normal(0.02)


@dataclasses.dataclass(frozen=True)
class Layers:
    """Constructors of layers with float32 weights and the same parameter paths.

    Attributes:
      rule: None for flax.linen's layers; a `sqs_jax.Rule` for compressible layers.
      dtype: Data type of the arithmetic.
    """

    rule: sqs_jax.Rule | None
    dtype: Any

    def dense(self, width: int, name: str | None = None, bias: bool = True) -> Any:
        """Return a linear layer with `width` outputs."""
        make = nn.Dense if self.rule is None else partial(sqs_jax.linen.Dense, rule=self.rule)
        return make(width, use_bias=bias, kernel_init=_INIT, dtype=self.dtype, name=name)

    def embed(self, count: int, width: int, name: str | None = None) -> Any:
        """Return an embedding of `count` tokens."""
        make = nn.Embed if self.rule is None else partial(sqs_jax.linen.Embed, rule=self.rule)
        return make(count, width, embedding_init=_INIT, dtype=self.dtype, name=name)

    def rms_norm(self, epsilon: float, name: str | None = None) -> nn.Module:
        """Return an RMS norm, computed in float32."""
        return nn.RMSNorm(epsilon=epsilon, dtype=self.dtype, name=name)

    def layer_norm(self, epsilon: float, name: str | None = None) -> nn.Module:
        """Return a layer norm, computed in float32."""
        return nn.LayerNorm(epsilon=epsilon, dtype=self.dtype, name=name)
