"""What the sums lack that layers are added to: a residual stream carries errors past a layer."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from experiments.calibration.input_moments import Apply, rows_of, rows_seen


def sum_after(apply: Apply, path: str, params: Any, x: Any) -> str | None:
    """Return the widest module that a layer's outputs reach past no other linear layer.

    Of the last convolution of a residual block it is the block, which ends in the sum. There is
    none of a layer whose outputs others multiply at once, and none if the module has other linear
    layers that its outputs reach: those can make its errors good later.

    Args:
      apply: of the stage.
      path: of the layer within the stage.
      params: of the stage.
      x: a batch of its inputs.

    Returns:
      The module's path within the stage; "" is the stage itself.
    """
    parts = path.split("/")
    for at in ("/".join(parts[:n]) for n in range(len(parts))):
        module, others = _reached(apply, path, at, params, x)
        if module:
            return None if others else at
    return None


def _reached(apply: Apply, path: str, at: str, params: Any, x: Any) -> tuple[bool, bool]:
    """Return whether a module's output is computed from a layer's, and inputs of other layers."""
    outputs = partial(_outputs, apply, path, at, jnp.zeros_like)
    found = jax.make_jaxpr(outputs)(jnp.zeros(()), params, x).jaxpr
    reached = {found.invars[0]}
    for equation in found.eqns:
        if reached.intersection(v for v in equation.invars if not isinstance(v, Literal)):
            reached |= set(equation.outvars)
    module, _, *others = (not isinstance(v, Literal) and v in reached for v in found.outvars)
    return module, any(others)


def missing_from(
    apply: Apply,
    path: str,
    at: str,
    ours: tuple[Any, Iterable[Any]],
    theirs: tuple[Any, Iterable[Any]],
) -> jax.Array:
    """Measure what a layer's outputs should have more of, for a sum to be what it is in theirs.

    It is a step of Gauss and Newton: the sum's error, brought back to the layer's outputs, over the
    mean square of what a unit of each output does to the sum.

    Args:
      apply: of the stage.
      path: of the layer within the stage.
      at: of the module whose outputs count.
      ours: params of the stage as they are by now, and batches of its inputs.
      theirs: the same of the network that is imitated.

    Returns:
      `InputMoments.missing` of the layer.
    """
    lack = effect = jnp.zeros(())
    count = 0
    for x, y in zip(ours[1], theirs[1], strict=True):
        sums = _sums(apply, path, at, ours[0], theirs[0], x, y)
        lack, effect, count = lack + sums[0], effect + sums[1], count + int(sums[2])
    # an output that does nothing lacks nothing
    felt = effect > 1e-6 * jnp.max(effect)
    return lack * jnp.where(felt, 1 / jnp.where(felt, effect, 1.0), 0.0)[None]


@partial(jax.jit, static_argnums=(0, 1, 2))
def _sums(
    apply: Apply, path: str, at: str, ours: Any, theirs: Any, x: jax.Array, y: jax.Array
) -> tuple[jax.Array, jax.Array, int]:
    rows = rows_seen(apply, path, ours, x)
    wanted, _ = _pullback(apply, path, at, theirs, y)
    found, back = _pullback(apply, path, at, ours, x)
    (lack,) = back(wanted - found)
    outputs = lack.shape[-1]
    effects = _effects(found, back).reshape(-1, outputs)
    return rows.T @ lack.reshape(-1, outputs), effects.sum(0), len(rows)


def _effects(found: jax.Array, back: Callable[[jax.Array], Any]) -> jax.Array:
    """Return the squared effect of each of a layer's outputs: of random signs, its expectation."""
    (effects,) = back(jax.random.rademacher(jax.random.key(0), found.shape, found.dtype))
    return jnp.square(effects)


def _pullback(apply: Apply, path: str, at: str, params: Any, x: jax.Array) -> Any:
    """Return a module's output, and what pulls back through it to a layer's outputs, float32."""
    outputs = partial(_outputs, apply, path, at, jax.lax.stop_gradient)
    shape = jax.eval_shape(outputs, jnp.zeros(()), params, x)[1].shape
    return jax.vjp(lambda shift: outputs(shift, params, x)[0], jnp.zeros(shape))


def _outputs(
    apply: Apply,
    path: str,
    at: str,
    end: Callable[[jax.Array], jax.Array],
    shift: jax.Array,
    params: Any,
    x: jax.Array,
) -> tuple[jax.Array, jax.Array, list[jax.Array]]:
    """Return outputs of a module and of a layer, shifted, and what the module's others are given.

    Paths end in other linear layers, by what `end` makes of their outputs: what they multiply is
    theirs to make good.
    """
    seen: dict[str, Any] = {}
    given = []

    def look(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        here, found = "/".join(context.module.path), call(*args, **kwargs)
        if context.method_name != "__call__":
            return found
        if here == path:
            found = seen["layer"] = found + shift.astype(found.dtype)
        elif rows_of(context.module) is not None:
            found = end(found)
            if not at or here.startswith(f"{at}/"):
                given.append(args[0])
        seen[here] = found
        return found

    with nn.intercept_methods(look):
        whole = apply(params, x)
    module = seen.get(at) if at else whole  # none of a module that is called by another method
    return module if isinstance(module, jax.Array) else jnp.zeros(()), seen["layer"], given
