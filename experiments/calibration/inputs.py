"""What the linear layers of a stage get to see: second moments of their inputs."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import sqs_jax

Apply = Callable[[Any, jax.Array], jax.Array]
_LAYERS = (nn.Dense,)


def layers_by_input(apply: Apply, params: Any, x: Any) -> list[list[str]]:
    """Return the paths of the linear layers of a stage, in order; those of one input together."""
    groups: list[tuple[Any, list[str]]] = []

    def trace(params: Any, x: jax.Array) -> None:
        for path, inputs in _record(apply, params, x):
            if groups and groups[-1][0] is inputs:
                groups[-1][1].append(path)
            else:
                groups.append((inputs, [path]))

    jax.eval_shape(trace, params, x)
    return [paths for _, paths in groups]


def input_moments(
    apply: Apply,
    path: str,
    ours: tuple[Any, Iterable[Any]],
    theirs: tuple[Any, Iterable[Any]],
) -> sqs_jax.InputMoments:
    """Measure the inputs of a layer, in the compressed network and in the one it imitates.

    Args:
      apply: of the stage.
      path: of the layer within the stage.
      ours: params of the stage as they are by now, and batches of its inputs.
      theirs: the same of the network that is imitated.
    """
    second = cross = jnp.zeros(())
    count = 0
    for x, y in zip(ours[1], theirs[1], strict=True):
        sums = _sums(apply, path, ours[0], theirs[0], x, y)
        second, cross, count = second + sums[0], cross + sums[1], count + int(sums[2])
    return sqs_jax.InputMoments(second / count, cross / count)


@partial(jax.jit, static_argnums=(0, 1))
def _sums(
    apply: Apply, path: str, ours: Any, theirs: Any, x: jax.Array, y: jax.Array
) -> tuple[jax.Array, jax.Array, int]:
    def rows(params: Any, x: jax.Array) -> jax.Array:
        inputs = dict(_record(apply, params, x))[path]
        return inputs.reshape(-1, inputs.shape[-1]).astype(jnp.float32)

    mine, wanted = rows(ours, x), rows(theirs, y)
    return mine.T @ mine, mine.T @ wanted, len(mine)


def _record(apply: Apply, params: Any, x: jax.Array) -> list[tuple[str, jax.Array]]:
    """Return path and input of each linear layer, in the order of the calls."""
    calls = []

    def look(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, _LAYERS) and context.method_name == "__call__":
            calls.append(("/".join(context.module.path), args[0]))
        return call(*args, **kwargs)

    with nn.intercept_methods(look):
        apply(params, x)
    return calls
