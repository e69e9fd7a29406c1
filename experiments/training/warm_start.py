"""Where a training starts that is to go on from calibrated codes, or from a peer's."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import sqs_jax
from experiments.training.phases import Phase
from experiments.trees import flat_leaves, map_leaves

# Of the way from a level to its cell's border that a weight may lie. Far from the level a weight
# keeps its own value, but no step of the optimizer should move many to the next cell.
_REACH = 0.75


def with_codes(phase: Phase, compressed: Any) -> Phase:
    """Return the training of codebooks and dense leaves under codes that stay: so do its bytes.

    Args:
      phase: the compression.
      compressed: the params, in a file that fits.
    """
    books = flat_leaves(compressed)

    def init(params: Any) -> Any:
        def start(path: str, leaf: Any) -> Any:
            return books[path] if sqs_jax.is_compressed(books[path]) else leaf

        return jax.tree.map(jnp.array, map_leaves(start, params))

    def weights(posterior: Any, *, temperature: Any = 1.0) -> Any:
        return sqs_jax.materialize(posterior)

    transform = sqs_jax.Transform(
        init=init,
        mean=weights,
        sample=None,
        mode=sqs_jax.materialize,
        kl=lambda posterior, *, temperature=1.0: jnp.zeros(()),
        compress=lambda posterior: posterior,
    )
    return phase._replace(transform=transform, mask=None, estimator="mode", rate_weight=0.0)


def start_near(leaf: sqs_jax.CompressedLeaf, weights: Any) -> np.ndarray:
    """Move each weight so near to the level of its code that no other level is nearer.

    Args:
      leaf: the codes; a stacked tensor has a codebook for each slice.
      weights: shaped as the codes.

    Returns:
      float32 weights.
    """
    stacked = leaf.codes.shape[: leaf.codebook.ndim - 2]
    codes = np.asarray(leaf.codes).reshape(math.prod(stacked), -1)
    books = np.asarray(leaf.codebook, np.float32).reshape(len(codes), -1)
    wanted = np.asarray(weights, np.float32).reshape(codes.shape)
    moved = np.empty_like(wanted)
    for t, (code, book) in enumerate(zip(codes, books, strict=True)):
        levels = np.append(np.float32(0), book)
        order = np.argsort(levels, kind="stable")
        half = _REACH / 2 * np.diff(levels[order])
        low, high = np.full((2, levels.size), np.inf, np.float32)
        low[order[1:]], high[order[:-1]] = half, half
        moved[t] = np.clip(wanted[t], (levels - low)[code], (levels + high)[code])
    return moved.reshape(leaf.codes.shape)


def at_codes(
    leaf: sqs_jax.SubDistribution, compressed: sqs_jax.CompressedLeaf
) -> sqs_jax.SubDistribution:
    """Return a posterior with the levels, the zeros and the shares of a compressed tensor's codes.

    Its components are as wide as the error is of levels that are so far apart: at that width a nat
    of code costs what it saves at high rate.
    """
    means = jnp.asarray(compressed.codebook, leaf.means.dtype)
    size = means.shape[-2] * means.shape[-1]
    levels = jnp.pad(means.reshape(*means.shape[:-2], size), [(0, 0)] * leaf.stacked + [(1, 0)])
    gaps = jnp.diff(jnp.sort(levels, axis=-1), axis=-1)
    apart = jnp.mean(gaps, -1, where=gaps > 0)[..., None, None]  # levels may be there twice
    floor = 1e-6 * jnp.abs(means).max((-2, -1), keepdims=True)  # of levels that all are one
    width = jnp.maximum(jnp.nan_to_num(apart), floor) / math.sqrt(12)
    codes = np.asarray(compressed.codes).reshape(-1, math.prod(leaf.loc.shape[leaf.stacked :]))
    counts = np.stack([np.bincount(each, minlength=size + 1)[1:] for each in codes])
    shares = np.log(np.maximum(counts, 0.5)).reshape(means.shape)
    return leaf.replace(
        kept=jnp.asarray(compressed.codes) > 0,
        means=means,
        log_scales=jnp.broadcast_to(jnp.log(width), means.shape),
        mixture_logits=jnp.asarray(shares, means.dtype),
    )
