"""What the layers of a stage get to see: second moments of their inputs, patches of images too."""

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
    """A layer at work.

    Attributes:
      path: of the layer within the stage.
      inputs: as it was given them.
      rows: inputs -> [n, kernel rows], what each of its outputs is made of.
    """

    path: str
    inputs: Any
    rows: Callable[[jax.Array], jax.Array]


def layers_by_input(apply: Apply, params: Any, x: Any) -> list[list[str]]:
    """Return the paths of the layers of a stage, in order; those that see the same together."""
    groups: list[tuple[Any, list[str]]] = []

    def trace(params: Any, x: jax.Array) -> None:
        for path, inputs, rows in _record(apply, params, x):
            seen = id(inputs), rows
            if groups and groups[-1][0] == seen:
                groups[-1][1].append(path)
            else:
                groups.append((seen, [path]))

    jax.eval_shape(trace, params, x)
    return [paths for _, paths in groups]


def input_moments(
    apply: Apply,
    path: str,
    ours: tuple[Any, Iterable[Any]],
    theirs: tuple[Any, Iterable[Any]] | None = None,
) -> sqs_jax.InputMoments:
    """Measure the inputs of a layer.

    Args:
      apply: of the stage.
      path: of the layer within the stage.
      ours: params of the stage as they are by now, and batches of its inputs.
      theirs: the same of the network that is imitated, for cross moments.
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
    mine = rows_seen(apply, path, ours, x)
    cross = None if theirs is None else mine.T @ rows_seen(apply, path, *theirs)
    return mine.T @ mine, cross, jnp.float32(len(mine))


def rows_seen(apply: Apply, path: str, params: Any, x: jax.Array) -> jax.Array:
    """Return the inputs of a layer as rows, float32: what each of its outputs is made of."""
    call = next(call for call in _record(apply, params, x) if call.path == path)
    return call.rows(call.inputs).astype(jnp.float32)


def _record(apply: Apply, params: Any, x: jax.Array) -> list[Call]:
    """Return the calls of linear layers and convolutions, in their order."""
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
    """Makes rows of a convolution's inputs; equal for those of one window, which see the same."""

    size: tuple[int, ...]
    strides: tuple[int, ...]
    padding: Any

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return patches of images as rows, in the order of a kernel's [height, width, inputs]."""
        found = jax.lax.conv_general_dilated_patches(
            x, self.size, self.strides, self.padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        channels = found.reshape(-1, x.shape[-1], math.prod(self.size))  # of lax's order
        return channels.swapaxes(1, 2).reshape(len(channels), -1)


def rows_of(layer: nn.Module) -> Callable[[jax.Array], jax.Array] | None:
    """Return what makes rows of a layer's inputs; None of layers that multiply no matrix."""
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
