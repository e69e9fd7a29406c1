"""Fold what inference does not need apart: batch normalisation into the layer before it."""

import jax
import jax.numpy as jnp


def fold_batch_norm(
    kernel: jax.Array,
    *,
    scale: jax.Array | float,
    bias: jax.Array | float,
    mean: jax.Array,
    variance: jax.Array,
    epsilon: float = 1e-5,
    layer_bias: jax.Array | float = 0.0,
    axis: int = -1,
) -> tuple[jax.Array, jax.Array]:
    """Return the kernel and bias of one layer that does what a layer and its normalisation do.

    With stored statistics,
    scale * (x @ kernel + layer_bias - mean) / sqrt(variance + epsilon) + bias is linear in x. A
    file then holds one vector per layer instead of four: fold before compressing, and deploy the
    network without its normalisations.

    Args:
      kernel: of a Dense or Conv layer without activation between it and the normalisation.
      scale: gamma, [channels], 1.0 if there is none.
      bias: beta, [channels], 0.0 if there is none.
      mean: running mean, [channels].
      variance: running variance, [channels], not below 0.
      epsilon: the normalisation's (Flax's and PyTorch's default is 1e-5).
      layer_bias: the layer's own bias, [channels].
      axis: the kernel's output axis: -1 in Flax, 0 in PyTorch.

    Returns:
      (kernel, bias): of the kernel's shape, and [channels]; in the kernel's dtype.

    Raises:
      ValueError: if the statistics are not of one value per output channel.
    """
    channels = (kernel.shape[axis],)
    for name, value in (("mean", mean), ("variance", variance)):
        if jnp.shape(value) != channels:
            raise ValueError(
                f"{name} has shape {jnp.shape(value)}, the kernel {kernel.shape} has "
                f"{channels[0]} output channels on axis {axis}; choose the kernel's output axis."
            )
    factor = scale / jnp.sqrt(variance + epsilon)
    shape = [1] * kernel.ndim
    shape[axis] = channels[0]
    folded = kernel * factor.reshape(shape).astype(kernel.dtype)
    return folded, ((layer_bias - mean) * factor + bias).astype(kernel.dtype)
