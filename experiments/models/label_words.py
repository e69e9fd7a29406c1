"""A decoder that classifies texts by the word that it would go on with."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.models.decoder import Decoder


class LabelWords(nn.Module):
    """A decoder's logits of some tokens after the last token of a text; params are the decoder's.

    Attributes:
      decoder: the language model.
      words: the token of each class.
      padding: the token that stands behind a text.
    """

    decoder: Decoder
    words: Sequence[int]
    padding: int

    def setup(self) -> None:
        nn.share_scope(self, self.decoder)

    def __call__(self, tokens: jax.Array, *, train: bool = False) -> jax.Array:
        """Compute logits [batch, classes], float32, from tokens int [batch, length]."""
        x = self.decoder.hidden(tokens)
        places = jnp.arange(tokens.shape[1])[None]
        last = jnp.max(jnp.where(tokens == self.padding, 0, places), axis=1)
        x = jnp.take_along_axis(x, last[:, None, None], axis=1)
        return self.decoder.head(x)[:, 0, jnp.asarray(self.words)]
