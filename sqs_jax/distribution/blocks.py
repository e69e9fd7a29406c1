"""What each weight needs of its mixture, exactly, as it is written: on a CPU, block by block.

A block of [B, K] lives in a core's cache, compiles quickly, and autodiff gives its gradient. No
buffer of [N, K] ever exists, in neither pass.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sqs_jax.distribution.mixture import Mixture, log_responsibilities, rows_of

# Elements of a [B, K] block, 256 kB of float32: several are alive at a time, in a core's cache.
_BLOCK_ELEMENTS = 1 << 16


@jax.jit
def mix(
    loc: jax.Array,
    mixture: Mixture,
    values: jax.Array,
    temperature: jax.typing.ArrayLike,
    relaxation: jax.typing.ArrayLike = 1.0,
    key: jax.Array | None = None,
) -> tuple[jax.Array, ...]:
    """As `components.mix`; the noise of a block comes from a key of its own."""
    relaxation = jnp.asarray(relaxation, loc.dtype)

    def of_block(block: jax.Array, index: jax.Array) -> jax.Array:
        logits = log_responsibilities(block, mixture, temperature)
        if key is not None:
            noise = jax.random.gumbel(jax.random.fold_in(key, index), logits.shape, logits.dtype)
            logits = (logits + noise) / relaxation
        phi = jax.nn.softmax(logits, axis=-1)
        rows = rows_of(block, mixture.boundaries, *values)
        return jnp.stack([jnp.sum(phi * row, axis=-1) for row in rows])

    return tuple(blockwise(of_block, loc, mixture.means.shape[-1]))


def blockwise(
    function: Callable[[jax.Array, jax.Array], jax.Array],
    loc: jax.Array,
    components: int,
    *,
    elements: int | None = None,
) -> jax.Array:
    """Apply a function to an array block by block.

    Under differentiation a block is computed again, so that memory stays O(N).

    Args:
      function: (block [B], index of the block) -> [*lead, B].
      loc: any shape.
      components: K, how much `function` needs per number.
      elements: of a [B, components] block; by default so many that it stays in a core's cache.

    Returns:
      [*lead, *loc.shape].
    """
    flat = loc.reshape(-1)
    size = flat.shape[0]
    block = max(1, (elements or _BLOCK_ELEMENTS) // components)
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
