"""Relaxed draws of the weights, differentiable in everything.

The noise is made again in the backward pass, which keeps nothing but the inputs: there is no
[N, K] noise in memory. `jax.checkpoint` would do the first, but take the loop over the components
to pieces, and keep noise for all of them.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sqs_jax.distribution import components
from sqs_jax.distribution.blocks import over_blocks, whole
from sqs_jax.distribution.components import Logits
from sqs_jax.distribution.mixture import Mixture


class _Shared(NamedTuple):
    """What all weights of a tensor share."""

    mixture: Mixture
    values: jax.Array  # [2, W, K], means and scales
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
    """Draw g_i (m_i + e_i s_i): a binary Concrete gate, a Gumbel-softmax component, a normal.

    m_i and s_i are the means and scales of the components, mixed by the Gumbel-softmax.

    Args:
      key: PRNG key.
      loc: weights, any shape.
      gates: inclusion logits, shaped as `loc`.
      kept: bool, shaped as `loc`; other weights are 0.
      mixture: the tensor's mixture.
      temperature: of the responsibilities, > 0.
      relaxation: temperature of the Gumbel-softmax and of the gate, > 0; towards 0 the draw of a
        component is one-hot, and gates are 0 or 1.

    Returns:
      Shaped and typed as `loc`.
    """
    dtype = mixture.means.dtype
    temperature, relaxation = (jnp.asarray(x, dtype) for x in (temperature, relaxation))
    values = jnp.stack([mixture.means, jnp.exp(mixture.log_scales)])
    return _draw(key, loc, gates, kept, _Shared(mixture, values, temperature, relaxation))


class _Noisy(NamedTuple):
    """The noise of a block."""

    logits: Logits
    normal: jax.Array
    gate: jax.Array  # argument of the sigmoid


def _noisy(
    key: jax.Array, block: jax.Array, loc: jax.Array, gates: jax.Array, shared: _Shared
) -> _Noisy:
    component_key, normal_key, gate_key = jax.random.split(jax.random.fold_in(key, block), 3)
    x = loc.astype(shared.values.dtype)
    logits = Logits.at(
        x, shared.mixture, shared.temperature, relaxation=shared.relaxation, key=component_key
    )
    gate = gates.astype(x.dtype) + jax.random.logistic(gate_key, x.shape, x.dtype)
    normal = jax.random.normal(normal_key, x.shape, x.dtype)
    return _Noisy(logits, normal, gate / shared.relaxation)


@jax.custom_vjp
def _draw(
    key: jax.Array, loc: jax.Array, gates: jax.Array, kept: jax.Array, shared: _Shared
) -> jax.Array:
    return _forward(key, loc, gates, kept, shared)[0]


def _forward(
    key: jax.Array, loc: jax.Array, gates: jax.Array, kept: jax.Array, shared: _Shared
) -> tuple[jax.Array, Any]:
    def of_block(block: jax.Array, loc: jax.Array, gates: jax.Array, kept: jax.Array) -> Any:
        noisy = _noisy(key, block, loc, gates, shared)
        mean, scale = components.average(noisy.logits, shared.values).values
        weight = jax.nn.sigmoid(noisy.gate) * (mean + noisy.normal * scale)
        return jnp.where(kept, weight, 0).astype(loc.dtype), None

    return _over(of_block, loc, gates, kept)[0], (key, loc, gates, kept, shared)


def _backward(inputs: Any, cotangent: jax.Array) -> tuple[Any, ...]:
    key, loc, gates, kept, shared = inputs

    def of_block(
        block: jax.Array, loc: jax.Array, gates: jax.Array, kept: jax.Array, cotangent: jax.Array
    ) -> Any:
        noisy = _noisy(key, block, loc, gates, shared)
        found = components.average(noisy.logits, shared.values, slopes=True)
        mean, scale = found.values
        g = jnp.where(kept, cotangent.astype(mean.dtype), 0)
        by_mean = g * jax.nn.sigmoid(noisy.gate)
        by_scale = by_mean * noisy.normal
        by_gate = by_mean * jax.nn.sigmoid(-noisy.gate) * (mean + noisy.normal * scale)
        pulled = components.pull(noisy.logits, shared.values, found, (by_mean, by_scale))
        d_loc = by_mean * found.slopes[0] + by_scale * found.slopes[1]
        d_gates = by_gate / shared.relaxation
        d_relaxation = pulled.relaxation - jnp.sum(d_gates * noisy.gate)
        d_shared = _Shared(pulled.mixture, pulled.values, pulled.temperature, d_relaxation)
        return (d_loc.astype(loc.dtype), d_gates.astype(gates.dtype)), d_shared

    (d_loc, d_gates), d_shared = _over(of_block, loc, gates, kept, cotangent)
    return None, d_loc, d_gates, None, d_shared


_draw.defvjp(_forward, _backward)


def _over(function: Any, *arrays: jax.Array) -> tuple[Any, Any]:
    return jax.lax.platform_dependent(
        cpu=lambda: over_blocks(function, *arrays), default=lambda: whole(function, *arrays)
    )
