"""A convolution whose gradients are fast on CPUs too."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def conv_general_dilated(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Any, **options: Any
) -> jax.Array:
    """Convolve, as `lax.conv_general_dilated` does for `flax.linen.Conv` in two dimensions.

    On CPUs XLA's gradient of the kernel, one convolution with a window as large as the image, can
    take most of a step of a small network; here it is a product of matrices for each tap.

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

    def by_taps() -> jax.Array:
        padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
        height, width = (1 + (n - 1) * s for n, s in zip(gradient.shape[1:3], strides, strict=True))

        def tap(row: int, column: int) -> jax.Array:
            seen = padded[:, row : row + height, column : column + width]
            seen = seen[:, :: strides[0], :: strides[1]]
            return jnp.tensordot(seen, gradient, ((0, 1, 2),) * 2, precision=precision)

        rows, columns = kernel.shape[:2]
        taps = [tap(i, j) for i in range(rows) for j in range(columns)]
        return jnp.stack(taps).reshape(kernel.shape)

    return of_x, lax.platform_dependent(cpu=by_taps, default=whole)


_convolve.defvjp(_forward, _backward)
