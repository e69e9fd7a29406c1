"""Augmentation on the device, deterministic by its key."""

from typing import Any

import jax
import jax.numpy as jnp

from experiments.data.dataset import Dataset


def augmented(key: jax.Array, examples: Any, dataset: Dataset, data: Any) -> jax.Array:
    """Return what a network is trained on for examples as they are stored: as its weights were.

    Args:
      key: PRNG key.
      examples: images or tokens of the dataset.
      dataset: says what an image is standardised by.
      data: `config.data`, of which `shift`, `flip` and `pad` count.
    """
    fill = None if data.pad == "edge" else dataset.black
    return augment(key, dataset.standardise(examples), shift=data.shift, flip=data.flip, fill=fill)


def augment(
    key: jax.Array, images: jax.Array, *, shift: int, flip: bool, fill: Any = None
) -> jax.Array:
    """Shift every image by up to `shift` pixels each way, and flip half of them.

    Args:
      key: PRNG key.
      images: [batch, height, width, channels]; anything, if neither is asked for.
      shift: most pixels. 0 leaves the images where they are.
      flip: whether half of the images are mirrored left to right.
      fill: what enters at the borders, [channels]; None repeats the edge.

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
