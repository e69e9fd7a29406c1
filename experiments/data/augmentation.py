"""Image augmentation on the device, a pure function of its PRNG key."""

from typing import Any

import jax
import jax.numpy as jnp

from experiments.data.dataset import Dataset


def augmented(key: jax.Array, examples: Any, dataset: Dataset, data: Any) -> jax.Array:
    """Standardize and augment stored examples to a network's training inputs.

    Args:
      key: PRNG key.
      examples: Images or tokens as the dataset stores them.
      dataset: Dataset whose mean and deviation standardize the images.
      data: `config.data` with the fields `shift`, `flip` and `pad`.

    Returns:
      Inputs of the examples' shape; tokens are returned as they are.
    """
    fill = None if data.pad == "edge" else dataset.black
    return augment(key, dataset.standardize(examples), shift=data.shift, flip=data.flip, fill=fill)


def augment(
    key: jax.Array, images: jax.Array, *, shift: int, flip: bool, fill: Any = None
) -> jax.Array:
    """Shift images by up to `shift` pixels in both axes, and mirror half of the images.

    Args:
      key: PRNG key.
      images: Images [batch, height, width, channels]; any array if `shift` is 0 and `flip` False.
      shift: Largest shift, pixels; 0 leaves the images in place.
      flip: Whether half of the images are mirrored left to right.
      fill: Values of the pixels that enter at the borders, [channels]; None repeats the edge.

    Returns:
      Images of the same shape.
    """
    shift_key, flip_key = jax.random.split(key)
    if shift:
        batch, height, width, channels = images.shape
        padded = jnp.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="edge")
        if fill is not None:
            border = jnp.broadcast_to(jnp.asarray(fill, images.dtype), padded.shape)
            padded = border.at[:, shift:-shift, shift:-shift].set(images)
        offsets = jax.random.randint(shift_key, (batch, 2), 0, 2 * shift + 1)
        images = jax.vmap(
            lambda image, at: jax.lax.dynamic_slice(
                image, (at[0], at[1], 0), (height, width, channels)
            )
        )(padded, offsets)
    if flip:
        mirrored = jax.random.bernoulli(flip_key, shape=(len(images), 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    return images
