"""Convolution whose kernel gradient is fast on CPUs too."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_PATCH_FLOATS = 1 << 20  # size of the patches that are multiplied at a time; they fit in a cache


def conv_general_dilated(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Any, **options: Any
) -> jax.Array:
    """Convolve images like `lax.conv_general_dilated`, for `flax.linen.Conv`.

    XLA computes the gradient of the kernel as one convolution with a window as large as the image.
    On CPUs this convolution can take most of a small network's step. Here the gradient is a sum of
    matrix products, patches by output gradients, over a few images at a time.

    Args:
      x: Images [batch, height, width, channels].
      kernel: Kernel [height, width, channels, features].
      strides: Stride of each spatial dimension, pixels.
      padding: (before, after) of each spatial dimension, pixels.
      **options: Further arguments that Flax passes. Dilated and grouped convolutions use XLA's
        gradient.

    Returns:
      Images [batch, output height, output width, features].
    """
    dilations = (*(options.get("lhs_dilation") or ()), *(options.get("rhs_dilation") or ()))
    if set(dilations) - {1} or options.get("feature_group_count", 1) != 1:
        return lax.conv_general_dilated(x, kernel, strides, padding, **options)
    return _convolve(x, kernel, tuple(strides), tuple(padding), options.get("precision"))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _convolve(x: jax.Array, kernel: jax.Array, strides: Any, padding: Any, precision: Any) -> Any:
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=_LAYOUT, precision=precision
    )


def _forward(x: jax.Array, kernel: jax.Array, *static: Any) -> tuple[jax.Array, Any]:
    return _convolve(x, kernel, *static), (x, kernel)


def _backward(
    strides: Any, padding: Any, precision: Any, residuals: Any, gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    convolve = partial(
        lax.conv_general_dilated, window_strides=strides, padding=padding,
        dimension_numbers=_LAYOUT, precision=precision,
    )  # fmt: skip
    (x_gradient,) = jax.vjp(lambda x: convolve(x, kernel), x)[1](gradient)

    def kernel_gradient() -> jax.Array:
        return jax.vjp(lambda kernel: convolve(x, kernel), kernel)[1](gradient)[0]

    def patchwise_kernel_gradient() -> jax.Array:
        rows, columns, channels, features = kernel.shape
        height, width = (1 + (n - 1) * s for n, s in zip(gradient.shape[1:3], strides, strict=True))

        def add(total: jax.Array, chunk: Any) -> tuple[jax.Array, None]:
            x, gradient = chunk
            padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
            patches = [
                padded[:, i : i + height : strides[0], j : j + width : strides[1]]
                for i in range(rows)
                for j in range(columns)
            ]
            product = jnp.tensordot(
                jnp.concatenate(patches, -1), gradient, ((0, 1, 2),) * 2, precision=precision
            )
            return total + product, None

        images = x.shape[0]
        floats = rows * columns * channels * gradient[0, ..., 0].size  # patches of one image
        size = max(
            n
            for n in range(1, images + 1)
            if images % n == 0 and n * floats <= max(_PATCH_FLOATS, floats)
        )
        chunks = [a.reshape(images // size, size, *a.shape[1:]) for a in (x, gradient)]
        start = jnp.zeros((rows * columns * channels, features), kernel.dtype)
        return lax.scan(add, start, chunks)[0].reshape(kernel.shape)

    return x_gradient, lax.platform_dependent(
        cpu=patchwise_kernel_gradient, default=kernel_gradient
    )


_convolve.defvjp(_forward, _backward)
