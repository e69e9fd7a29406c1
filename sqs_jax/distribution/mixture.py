"""The Gaussian mixture of one tensor: log joint, responsibilities, and expectations under them.

All that a weight needs of its mixture is a function of one number, its latent value. Everything
here is therefore evaluated block by block: a block of [B, K] lives in cache, and no buffer of
[N, K] ever exists, in neither pass. `responsibilities` is the [N, K] reference.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sqs_jax.distribution.windows import window_index

# Elements of a [B, K] block, 256 kB of float32: several are alive at a time, in a core's cache. XLA
# may keep the blocks of many leaves at once, so that this also bounds what small leaves cost.
_BLOCK_ELEMENTS = 1 << 16


class Mixture(NamedTuple):
    """K Gaussians for each of W windows of one tensor.

    Attributes:
      means: [W, K], in units of the weights.
      log_scales: [W, K], natural log of the standard deviations.
      mixture_logits: [W, K], unnormalised log mixture weights.
      boundaries: [W - 1], window edges in weight value.
    """

    means: jax.Array
    log_scales: jax.Array
    mixture_logits: jax.Array
    boundaries: jax.Array


def _rows(loc: jax.Array, boundaries: jax.Array, *tables: jax.Array) -> list[jax.Array]:
    """Give each weight of `loc` [B] its window's row of every table [W, K]: [B, K] or [1, K]."""
    if boundaries.shape[0] == 0:
        return list(tables)
    # A product with one-hot rows selects exactly, and its derivative is a product too, where that
    # of a gather would be a slow scatter.
    one_hot = jax.nn.one_hot(
        window_index(loc, boundaries), boundaries.shape[0] + 1, dtype=tables[0].dtype
    )
    return [jnp.matmul(one_hot, t, precision=jax.lax.Precision.HIGHEST) for t in tables]


def log_joint(loc: jax.Array, mixture: Mixture) -> jax.Array:
    """Compute log pi_k + log N(loc; mu_k, sigma_k^2) for the components of each weight's window.

    Args:
      loc: weights, [B], of the mixture's dtype.
      mixture: the tensor's mixture.

    Returns:
      [B, K], nats, less the constant log(2 pi) / 2, which no responsibility depends on.
    """
    log_weights = jax.nn.log_softmax(mixture.mixture_logits, axis=-1)
    means, log_scales, log_weights = _rows(
        loc, mixture.boundaries, mixture.means, mixture.log_scales, log_weights
    )
    z = (loc[:, None] - means) * jnp.exp(-log_scales)
    return log_weights - log_scales - 0.5 * z * z


def log_responsibilities(
    loc: jax.Array, mixture: Mixture, temperature: jax.typing.ArrayLike
) -> jax.Array:
    """Compute log phi_k = log softmax_k(log joint / temperature); [B] -> [B, K], nats."""
    temperature = jnp.asarray(temperature, loc.dtype)
    return jax.nn.log_softmax(log_joint(loc, mixture) / temperature, axis=-1)


def responsibilities(
    loc: jax.Array, mixture: Mixture, temperature: jax.typing.ArrayLike
) -> jax.Array:
    """Compute phi, the probability of each component of a weight's window given its value.

    This is the [N, K] reference; nothing in a training step calls it on a whole tensor.

    Args:
      loc: weights, [B].
      mixture: the tensor's mixture.
      temperature: > 0; 1 is the exact posterior, towards 0 the most probable component.

    Returns:
      [B, K] probabilities, rows summing to 1.
    """
    return jnp.exp(log_responsibilities(loc, mixture, temperature))


def blockwise(
    function: Callable[[jax.Array, jax.Array], jax.Array], loc: jax.Array, components: int
) -> jax.Array:
    """Apply `function` to a tensor in blocks small enough that [B, K] stays in cache.

    Under differentiation a block is computed again, so that memory stays O(N).

    Args:
      function: (block [B], index of the block) -> [*lead, B].
      loc: weights, any shape.
      components: K, how much `function` needs per weight.

    Returns:
      [*lead, *loc.shape].
    """
    flat = loc.reshape(-1)
    size = flat.shape[0]
    block = max(1, _BLOCK_ELEMENTS // components)
    # A tensor of one block is checkpointed too: a model may have a thousand of them.
    function = jax.checkpoint(function)
    if size <= block:
        out = function(flat, jnp.int32(0))
    else:
        count = -(-size // block)
        blocks = jnp.pad(flat, (0, count * block - size)).reshape(count, block)
        indices = jnp.arange(count, dtype=jnp.int32)
        out = jax.lax.map(lambda pair: function(*pair), (blocks, indices))
        out = jnp.moveaxis(out, 0, -2)
        out = out.reshape(*out.shape[:-2], -1)[..., :size]
    return out.reshape(*out.shape[:-1], *loc.shape)


def expectation(
    loc: jax.Array, mixture: Mixture, values: jax.Array, temperature: jax.typing.ArrayLike
) -> jax.Array:
    """Average one value per component under the responsibilities: sum_k phi_ik v_k.

    With the means as values this is the soft weight; with each component's KL, the Jensen bound.

    Args:
      loc: weights, any shape, of the mixture's dtype.
      mixture: the tensor's mixture.
      values: [W, K].
      temperature: of the responsibilities, > 0.

    Returns:
      Array shaped as `loc`.
    """

    def of_block(block: jax.Array, _: jax.Array) -> jax.Array:
        phi = responsibilities(block, mixture, temperature)
        (rows,) = _rows(block, mixture.boundaries, values)
        return jnp.sum(phi * rows, axis=-1)

    return blockwise(of_block, loc, mixture.means.shape[-1])


def most_probable(loc: jax.Array, mixture: Mixture) -> jax.Array:
    """Find the most probable component of each weight; it does not depend on the temperature.

    Args:
      loc: weights, any shape, of the mixture's dtype.
      mixture: the tensor's mixture.

    Returns:
      int32 shaped as `loc`: window * K + component. Ties go to the lower component.
    """
    components = mixture.means.shape[-1]

    def of_block(block: jax.Array, _: jax.Array) -> jax.Array:
        best = jnp.argmax(log_joint(block, mixture), axis=-1).astype(jnp.int32)
        return window_index(block, mixture.boundaries) * components + best

    return blockwise(of_block, jax.lax.stop_gradient(loc), components)


def draw_component(
    key: jax.Array, loc: jax.Array, mixture: Mixture, temperature: jax.typing.ArrayLike
) -> jax.Array:
    """Draw a component of each weight with the probabilities phi.

    Args:
      key: PRNG key.
      loc: weights, any shape, of the mixture's dtype.
      mixture: the tensor's mixture.
      temperature: of the responsibilities, > 0.

    Returns:
      int32 shaped as `loc`: window * K + component.
    """
    components = mixture.means.shape[-1]

    def of_block(block: jax.Array, index: jax.Array) -> jax.Array:
        drawn = jax.random.categorical(
            jax.random.fold_in(key, index), log_responsibilities(block, mixture, temperature)
        ).astype(jnp.int32)
        return window_index(block, mixture.boundaries) * components + drawn

    return blockwise(of_block, jax.lax.stop_gradient(loc), components)


def relaxed_component(
    key: jax.Array,
    loc: jax.Array,
    mixture: Mixture,
    temperature: jax.typing.ArrayLike,
    relaxation: jax.typing.ArrayLike,
) -> tuple[jax.Array, jax.Array]:
    """Draw a Gumbel-softmax mix of components and return its mean and its scale.

    A block's noise comes from a key of its own, and is made again in the backward pass: there is
    no [N, K] noise in memory.

    Args:
      key: PRNG key.
      loc: weights, any shape, of the mixture's dtype.
      mixture: the tensor's mixture.
      temperature: of the responsibilities, > 0.
      relaxation: temperature of the Gumbel-softmax, > 0; towards 0 the draw is one-hot.

    Returns:
      (sum_k g_ik mu_k, sum_k g_ik sigma_k), each shaped as `loc`.
    """
    relaxation = jnp.asarray(relaxation, loc.dtype)

    def of_block(block: jax.Array, index: jax.Array) -> jax.Array:
        logits = log_responsibilities(block, mixture, temperature)
        noise = jax.random.gumbel(jax.random.fold_in(key, index), logits.shape, logits.dtype)
        choice = jax.nn.softmax((logits + noise) / relaxation, axis=-1)
        means, scales = _rows(block, mixture.boundaries, mixture.means, jnp.exp(mixture.log_scales))
        return jnp.stack([jnp.sum(choice * means, axis=-1), jnp.sum(choice * scales, axis=-1)])

    mean, scale = blockwise(of_block, loc, mixture.means.shape[-1])
    return mean, scale
