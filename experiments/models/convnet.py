"""A plain ConvNet for small images."""

from collections.abc import Sequence

import flax.linen as nn
import jax


class ConvNet(nn.Module):
    """Network of 3x3 convolutions with ReLU and max pooling, and two dense layers.

    Attributes:
      features: Output channels of each convolution; a 2x2 max pool follows all but the first.
      hidden: Number of units of the hidden dense layer.
      num_classes: Number of logits.
    """

    features: Sequence[int]
    hidden: int
    num_classes: int

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Compute logits [batch, num_classes] from images [batch, height, width, channels]."""
        x = images
        for i, features in enumerate(self.features):
            x = nn.relu(nn.Conv(features, (3, 3))(x))
            if i:  # the first convolution keeps the resolution, because the images are small
                x = halve(x)
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(self.hidden)(x))
        return nn.Dense(self.num_classes)(x)


def halve(x: jax.Array) -> jax.Array:
    """Compute the maximum of every 2x2 pixels; an odd last row or column is left out.

    Windows that do not overlap are a reshape, whose gradient is much faster on CPUs than that of
    `nn.max_pool`.

    Args:
      x: Images [batch, height, width, channels].

    Returns:
      Images [batch, height // 2, width // 2, channels].
    """
    batch, height, width, channels = x.shape
    height, width = height // 2, width // 2
    x = x[:, : 2 * height, : 2 * width]
    return x.reshape(batch, height, 2, width, 2, channels).max((2, 4))
