"""A convolution whose gradients are fast on CPUs too."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_CHUNK = 1 << 20  # floats of patches at a time: what a cache holds


def conv_general_dilated(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Any, **options: Any
) -> jax.Array:
    """Convolve, as `lax.conv_general_dilated` does for `flax.linen.Conv` in two dimensions.

    On CPUs XLA's gradient of the kernel, one convolution with a window as large as the image, can
    take most of a step of a small network; here it is a sum of products of matrices, patches by
    gradients, over a few images at a time.

    Args:
      x: [batch, height, width, channels].
      kernel: [height, width, channels, features].
      strides: one number per dimension.
      padding: (before, after) of each dimension.
      **options: the rest of what Flax passes; dilations and groups only where they do nothing.
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


def _forward(x: jax.Array, kernel: jax.Array, *how: Any) -> tuple[jax.Array, Any]:
    return _convolve(x, kernel, *how), (x, kernel)


def _backward(
    strides: Any, padding: Any, precision: Any, residuals: Any, gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    convolve = partial(
        lax.conv_general_dilated, window_strides=strides, padding=padding,
        dimension_numbers=_LAYOUT, precision=precision,
    )  # fmt: skip
    (of_x,) = jax.vjp(lambda x: convolve(x, kernel), x)[1](gradient)

    def whole() -> jax.Array:
        return jax.vjp(lambda kernel: convolve(x, kernel), kernel)[1](gradient)[0]

    def of_patches() -> jax.Array:
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
            seen = jnp.concatenate(patches, -1)
            return total + jnp.tensordot(
                seen, gradient, ((0, 1, 2),) * 2, precision=precision
            ), None

        images = x.shape[0]
        floats = rows * columns * channels * gradient[0, ..., 0].size  # of an image's patches
        size = max(
            n for n in range(1, images + 1) if images % n == 0 and n * floats <= max(_CHUNK, floats)
        )
        chunks = [a.reshape(images // size, size, *a.shape[1:]) for a in (x, gradient)]
        start = jnp.zeros((rows * columns * channels, features), kernel.dtype)
        return lax.scan(add, start, chunks)[0].reshape(kernel.shape)

    return of_x, lax.platform_dependent(cpu=of_patches, default=whole)


_convolve.defvjp(_forward, _backward)
