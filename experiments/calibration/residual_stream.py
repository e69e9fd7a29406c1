"""Errors of residual streams, which layers that add to them can compensate."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from experiments.calibration.input_moments import Apply, rows_of, rows_seen


def sum_after(apply: Apply, path: str, params: Any, x: Any) -> str | None:
    """Find the widest module that a layer's outputs reach without another linear layer.

    For the last convolution of a residual block this module is the block, which ends in the sum.

    Args:
      apply: Function (params, inputs) -> outputs of the stage.
      path: Path of the layer within the stage.
      params: Params of the stage.
      x: Batch of inputs of the stage.

    Returns:
      Path of the module within the stage; "" is the stage itself. None if only other linear layers
      read the outputs. None if another linear layer of the module reads the outputs, because that
      layer can compensate the errors later.
    """
    parts = path.split("/")
    for module in ("/".join(parts[:n]) for n in range(len(parts))):
        reaches_output, reaches_others = _reached(apply, path, module, params, x)
        if reaches_output:
            return None if reaches_others else module
    return None


def _reached(apply: Apply, path: str, module: str, params: Any, x: Any) -> tuple[bool, bool]:
    """Tell whether a layer's outputs reach a module's output, and inputs of other layers."""
    outputs = partial(_outputs, apply, path, module, jnp.zeros_like)
    jaxpr = jax.make_jaxpr(outputs)(jnp.zeros(()), params, x).jaxpr
    reached = {jaxpr.invars[0]}
    for equation in jaxpr.eqns:
        if reached.intersection(v for v in equation.invars if not isinstance(v, Literal)):
            reached |= set(equation.outvars)
    output, _, *others = (not isinstance(v, Literal) and v in reached for v in jaxpr.outvars)
    return output, any(others)


def missing_from(
    apply: Apply,
    path: str,
    module: str,
    ours: tuple[Any, Iterable[Any]],
    theirs: tuple[Any, Iterable[Any]],
) -> jax.Array:
    """Compute the correction of a layer's outputs that repairs a residual sum.

    The correction is a Gauss-Newton step: the error of the sum, pulled back to the outputs of the
    layer, over the mean squared derivative of the sum by each output.

    Args:
      apply: Function (params, inputs) -> outputs of the stage.
      path: Path of the layer within the stage.
      module: Path of the module whose output is the sum, from `sum_after`.
      ours: Present params of the stage, and batches of its inputs.
      theirs: Params and batches of the reference network.

    Returns:
      Moments of inputs and corrections, `InputMoments.missing` of the layer.
    """
    lack = effect = jnp.zeros(())
    count = 0
    for x, y in zip(ours[1], theirs[1], strict=True):
        sums = _sums(apply, path, module, ours[0], theirs[0], x, y)
        lack, effect, count = lack + sums[0], effect + sums[1], count + int(sums[2])
    # An output without effect on the sum needs no correction.
    effective = effect > 1e-6 * jnp.max(effect)
    return lack * jnp.where(effective, 1 / jnp.where(effective, effect, 1.0), 0.0)[None]


@partial(jax.jit, static_argnums=(0, 1, 2))
def _sums(
    apply: Apply, path: str, module: str, ours: Any, theirs: Any, x: jax.Array, y: jax.Array
) -> tuple[jax.Array, jax.Array, int]:
    rows = rows_seen(apply, path, ours, x)
    target, _ = _pullback(apply, path, module, theirs, y)
    output, back = _pullback(apply, path, module, ours, x)
    (lack,) = back(target - output)
    outputs = lack.shape[-1]
    effects = _effects(output, back).reshape(-1, outputs)
    return rows.T @ lack.reshape(-1, outputs), effects.sum(0), len(rows)


def _effects(output: jax.Array, back: Callable[[jax.Array], Any]) -> jax.Array:
    """Estimate squared effects of a layer's outputs on a sum, from random signs."""
    (effects,) = back(jax.random.rademacher(jax.random.key(0), output.shape, output.dtype))
    return jnp.square(effects)


def _pullback(apply: Apply, path: str, module: str, params: Any, x: jax.Array) -> Any:
    """Compute a module's output, and its VJP with respect to a layer's outputs, float32."""
    outputs = partial(_outputs, apply, path, module, jax.lax.stop_gradient)
    shape = jax.eval_shape(outputs, jnp.zeros(()), params, x)[1].shape
    return jax.vjp(lambda shift: outputs(shift, params, x)[0], jnp.zeros(shape))


def _outputs(
    apply: Apply,
    path: str,
    module: str,
    end: Callable[[jax.Array], jax.Array],
    shift: jax.Array,
    params: Any,
    x: jax.Array,
) -> tuple[jax.Array, jax.Array, list[jax.Array]]:
    """Compute outputs of a module and a layer, and inputs of the module's other layers.

    Args:
      apply: Function (params, inputs) -> outputs of the stage.
      path: Path of the layer within the stage.
      module: Path of the module within the stage.
      end: Function applied to the outputs of every other linear layer. It ends the dependence on
        the layer, because a linear layer can compensate the errors of its inputs.
      shift: Array added to the outputs of the layer.
      params: Params of the stage.
      x: Batch of inputs of the stage.
    """
    outputs: dict[str, Any] = {}
    other_inputs = []

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        here, output = "/".join(context.module.path), call(*args, **kwargs)
        if context.method_name != "__call__":
            return output
        if here == path:
            output = output + shift.astype(output.dtype)
        elif rows_of(context.module) is not None:
            output = end(output)
            if not module or here.startswith(f"{module}/"):
                other_inputs.append(args[0])
        outputs[here] = output
        return output

    with nn.intercept_methods(intercept):
        whole = apply(params, x)
    # A module that is called by another method than __call__ has no entry.
    output = outputs.get(module) if module else whole
    array = output if isinstance(output, jax.Array) else jnp.zeros(())
    return array, outputs[path], other_inputs
