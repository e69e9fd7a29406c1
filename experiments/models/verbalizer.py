"""Text classification by a decoder's probability of a word for each class.

Schick & Schütze 2021, arXiv:2001.07676, call the map from classes to words a verbalizer.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.models.decoder import Decoder


class VerbalizerClassifier(nn.Module):
    """Classifier whose logit of a class is that of the class's word after the text.

    The parameters are the decoder's.

    Attributes:
      decoder: Language model.
      words: Id of the token of each class.
      padding: Id of the padding token, which follows a text.
    """

    decoder: Decoder
    words: Sequence[int]
    padding: int

    def setup(self) -> None:
        nn.share_scope(self, self.decoder)

    def __call__(self, tokens: jax.Array, *, train: bool = False) -> jax.Array:
        """Compute float32 logits [batch, classes] of tokens int [batch, length]."""
        x = self.decoder.hidden(tokens)
        positions = jnp.arange(tokens.shape[1])[None]
        last = jnp.max(jnp.where(tokens == self.padding, 0, positions), axis=1)
        x = jnp.take_along_axis(x, last[:, None, None], axis=1)
        return self.decoder.head(x)[:, 0, jnp.asarray(self.words)]
