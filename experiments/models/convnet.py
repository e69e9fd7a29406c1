"""A plain ConvNet for small images."""

from collections.abc import Sequence

import flax.linen as nn
import jax


class ConvNet(nn.Module):
    """3x3 convolutions with ReLU, all but the first with stride 2, then two dense layers.

    Attributes:
      features: output channels of each convolution.
      hidden: units of the hidden dense layer.
      num_classes: number of logits.
    """

    features: Sequence[int]
    hidden: int
    num_classes: int

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Compute logits [batch, num_classes] from images [batch, height, width, channels]."""
        x = images
        for i, features in enumerate(self.features):
            x = nn.relu(nn.Conv(features, (3, 3), strides=2 if i else 1)(x))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(self.hidden)(x))
        return nn.Dense(self.num_classes)(x)
