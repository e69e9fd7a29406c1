"""Relaxed draws of the weights, differentiable in everything.

The noise is made again in the backward pass, which keeps nothing but the inputs: there is no
[N, K] noise in memory. `jax.checkpoint` would do the first, but keep the noise of all components of
a weight in the loop over them.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sqs_jax.distribution.blocks import over_blocks, whole
from sqs_jax.distribution.mixture import Mixture
from sqs_jax.distribution.soft_average import Draw, average


class _Shared(NamedTuple):
    """What all weights of a tensor share."""

    mixture: Mixture
    temperature: jax.Array
    relaxation: jax.Array


@jax.jit
def relaxed_weights(
    key: jax.Array,
    loc: jax.Array,
    gates: jax.Array,
    kept: jax.Array,
    mixture: Mixture,
    temperature: jax.typing.ArrayLike,
    relaxation: jax.typing.ArrayLike,
) -> jax.Array:
    """Draw relaxed weights g_i (m_i + e_i s_i).

    g_i is a binary Concrete gate and e_i a standard normal; m_i and s_i are the means and scales of
    the components, mixed by the Gumbel-softmax.

    Args:
      key: PRNG key.
      loc: Weights, any shape.
      gates: Inclusion logits, shaped as `loc`.
      kept: Pruning decision, bool, shaped as `loc`; other weights are 0.
      mixture: Mixture of the tensor, [W, K].
      temperature: Softmax temperature of the responsibilities, positive scalar.
      relaxation: Temperature of the Gumbel-softmax and of the gate, > 0; towards 0 the draw of a
        component is one-hot, and gates are 0 or 1.

    Returns:
      Shaped and typed as `loc`.
    """
    dtype = mixture.means.dtype
    temperature, relaxation = (jnp.asarray(x, dtype) for x in (temperature, relaxation))
    return _draw(key, loc, gates, kept, _Shared(mixture, temperature, relaxation))


def _draw_block(
    key: jax.Array,
    block: jax.Array,
    shared: _Shared,
    loc: jax.Array,
    gates: jax.Array,
    kept: jax.Array,
) -> jax.Array:
    """Draw the weights of a block, with noise of the block's own."""
    component_key, normal_key, gate_key = jax.random.split(jax.random.fold_in(key, block), 3)
    mixture, x = shared.mixture, loc.astype(shared.mixture.means.dtype)
    values = jnp.stack([mixture.means, jnp.exp(mixture.log_scales)])
    noise = Draw(component_key, shared.relaxation)
    mean, scale = average(x, mixture, values, shared.temperature, draw=noise)
    gate = gates.astype(x.dtype) + jax.random.logistic(gate_key, x.shape, x.dtype)
    normal = jax.random.normal(normal_key, x.shape, x.dtype)
    weight = jax.nn.sigmoid(gate / shared.relaxation) * (mean + normal * scale)
    return jnp.where(kept, weight, 0).astype(loc.dtype)


@jax.custom_vjp
def _draw(
    key: jax.Array, loc: jax.Array, gates: jax.Array, kept: jax.Array, shared: _Shared
) -> jax.Array:
    def of_block(block: jax.Array, *arrays: jax.Array) -> Any:
        return _draw_block(key, block, shared, *arrays), None

    return _over(of_block, loc, gates, kept)[0]


def _forward(key: jax.Array, *inputs: Any) -> tuple[jax.Array, Any]:
    return _draw(key, *inputs), (key, *inputs)


def _backward(residuals: Any, cotangent: jax.Array) -> tuple[Any, ...]:
    key, loc, gates, kept, shared = residuals

    def of_block(block: jax.Array, loc: Any, gates: Any, kept: Any, cotangent: Any) -> Any:
        def draw(loc: jax.Array, gates: jax.Array, shared: _Shared) -> jax.Array:
            return _draw_block(key, block, shared, loc, gates, kept)

        d_loc, d_gates, d_shared = jax.vjp(draw, loc, gates, shared)[1](cotangent)
        return (d_loc, d_gates), d_shared

    (d_loc, d_gates), d_shared = _over(of_block, loc, gates, kept, cotangent)
    return None, d_loc, d_gates, None, d_shared


_draw.defvjp(_forward, _backward)


def _over(function: Any, *arrays: jax.Array) -> tuple[Any, Any]:
    return jax.lax.platform_dependent(
        cpu=lambda: over_blocks(function, *arrays), default=lambda: whole(function, *arrays)
    )
