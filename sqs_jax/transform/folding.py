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
      ValueError: if an argument does not have one value per output channel, or a variance is
        negative.
    """
    if not -kernel.ndim <= axis < kernel.ndim:
        raise ValueError(f"axis is {axis}, the kernel has {kernel.ndim} axes.")
    channels = (kernel.shape[axis],)
    given = {"mean": mean, "variance": variance, "scale": scale, "bias": bias}
    for name, value in {**given, "layer_bias": layer_bias}.items():
        single = name not in ("mean", "variance") and jnp.shape(value) == ()
        if jnp.shape(value) != channels and not single:
            raise ValueError(
                f"{name} has shape {jnp.shape(value)}, the kernel {kernel.shape} has "
                f"{channels[0]} output channels on axis {axis}; choose the kernel's output axis."
            )
    if not isinstance(variance, jax.core.Tracer) and bool(jnp.any(variance < 0)):
        raise ValueError("variance has values below 0; give variances, not deviations or logs.")
    factor = scale / jnp.sqrt(variance + epsilon)
    shape = [1] * kernel.ndim
    shape[axis] = channels[0]
    folded = kernel * factor.reshape(shape).astype(kernel.dtype)
    return folded, ((layer_bias - mean) * factor + bias).astype(kernel.dtype)
