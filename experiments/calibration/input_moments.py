"""Second moments of the inputs of linear layers and convolutions."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

import sqs_jax

Apply = Callable[[Any, jax.Array], jax.Array]


class Call(NamedTuple):
    """A call of a layer.

    Attributes:
      path: Path of the layer within the stage.
      inputs: Inputs of the layer.
      rows: Function from inputs to the rows that the kernel multiplies, [n, kernel rows].
    """

    path: str
    inputs: Any
    rows: Callable[[jax.Array], jax.Array]


def layers_by_input(apply: Apply, params: Any, x: Any) -> list[list[str]]:
    """List the paths of the layers of a stage, in order, grouped by equal inputs."""
    groups: list[tuple[Any, list[str]]] = []

    def trace(params: Any, x: jax.Array) -> None:
        for path, inputs, rows in _record(apply, params, x):
            key = id(inputs), rows
            if groups and groups[-1][0] == key:
                groups[-1][1].append(path)
            else:
                groups.append((key, [path]))

    jax.eval_shape(trace, params, x)
    return [paths for _, paths in groups]


def input_moments(
    apply: Apply,
    path: str,
    ours: tuple[Any, Iterable[Any]],
    theirs: tuple[Any, Iterable[Any]] | None = None,
) -> sqs_jax.InputMoments:
    """Compute second moments of the inputs of a layer.

    Args:
      apply: Function (params, inputs) -> outputs of the stage.
      path: Path of the layer within the stage.
      ours: Present params of the stage, and batches of its inputs.
      theirs: Params and batches of the reference network, for cross moments; None without these.

    Returns:
      Moments, means over all rows.
    """
    sums: Any = None
    for x, y in zip(ours[1], ours[1] if theirs is None else theirs[1], strict=True):
        added = _sums(apply, path, ours[0], x, theirs and (theirs[0], y))
        sums = added if sums is None else jax.tree.map(jnp.add, sums, added)
    second, cross, count = sums
    return sqs_jax.InputMoments(second / count, None if cross is None else cross / count)


@partial(jax.jit, static_argnums=(0, 1))
def _sums(
    apply: Apply, path: str, ours: Any, x: jax.Array, theirs: Any
) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    rows = rows_seen(apply, path, ours, x)
    cross = None if theirs is None else rows.T @ rows_seen(apply, path, *theirs)
    return rows.T @ rows, cross, jnp.float32(len(rows))


def rows_seen(apply: Apply, path: str, params: Any, x: jax.Array) -> jax.Array:
    """Compute the rows that the kernel of a layer multiplies, float32 [n, kernel rows]."""
    call = next(call for call in _record(apply, params, x) if call.path == path)
    return call.rows(call.inputs).astype(jnp.float32)


def _record(apply: Apply, params: Any, x: jax.Array) -> list[Call]:
    """List the calls of linear layers and convolutions, in order."""
    calls = []

    def look(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        rows = rows_of(context.module)
        if rows is not None and context.method_name == "__call__":
            calls.append(Call("/".join(context.module.path), args[0], rows))
        return call(*args, **kwargs)

    with nn.intercept_methods(look):
        apply(params, x)
    return calls


@dataclasses.dataclass(frozen=True)
class Patches:
    """Function from the inputs of a convolution to patches, as rows.

    Two instances of the same window are equal, so that layers can be grouped by equal rows.

    Attributes:
      size: Height and width of the window, pixels.
      strides: Vertical and horizontal stride, pixels.
      padding: Padding, as in `jax.lax.conv_general_dilated_patches`.
    """

    size: tuple[int, ...]
    strides: tuple[int, ...]
    padding: Any

    def __call__(self, x: jax.Array) -> jax.Array:
        """Extract patches as rows, in a kernel's order [height, width, inputs]."""
        patches = jax.lax.conv_general_dilated_patches(
            x, self.size, self.strides, self.padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        channels = patches.reshape(-1, x.shape[-1], math.prod(self.size))  # channels come first
        return channels.swapaxes(1, 2).reshape(len(channels), -1)


def rows_of(layer: nn.Module) -> Callable[[jax.Array], jax.Array] | None:
    """Return the function from the inputs of a layer to rows.

    Returns:
      The function; None for a layer that is neither linear nor a plain 2-D convolution.
    """
    if isinstance(layer, nn.Dense):
        return _features
    plain = isinstance(layer, nn.Conv) and layer.feature_group_count == 1
    if not plain or len(layer.kernel_size) != 2:
        return None
    if {*_pair(layer.kernel_dilation), *_pair(layer.input_dilation)} != {1}:
        return None
    padding = layer.padding
    if not isinstance(padding, str):
        padding = tuple(_pair(side) for side in _pair(padding))
    return Patches(tuple(layer.kernel_size), _pair(layer.strides), padding)


def _pair(value: Any) -> tuple[Any, ...]:
    return (1, 1) if value is None else (value, value) if isinstance(value, int) else tuple(value)


def _features(x: jax.Array) -> jax.Array:
    return x.reshape(-1, x.shape[-1])
