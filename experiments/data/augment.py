"""Augmentation on the device, deterministic by its key."""

import jax
import jax.numpy as jnp


def augment(key: jax.Array, images: jax.Array, *, shift: int, flip: bool) -> jax.Array:
    """Shift every image by up to `shift` pixels each way, and flip half of them.

    Args:
      key: PRNG key.
      images: [batch, height, width, channels]; anything, if neither is asked for.
      shift: most pixels; what enters repeats the edge. 0 leaves the images where they are.
      flip: whether half of the images are mirrored left to right.

    Returns:
      Images of the same shape.
    """
    shift_key, flip_key = jax.random.split(key)
    if shift:
        batch, height, width, channels = images.shape
        padded = jnp.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="edge")
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
