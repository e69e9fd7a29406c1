"""Warm starts: a compression that starts at calibrated codes, or at codes of a peer."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import sqs_jax
from experiments.training.phases import Phase
from experiments.trees import flat_leaves, map_leaves

# Largest distance of a weight from its level, as a fraction of the distance to the border of the
# level's cell. Closer to the border, one optimizer step could move many weights to the next cell.
_REACH = 0.75


def with_codes(phase: Phase, compressed: Any) -> Phase:
    """Build the phase that trains codebooks and dense leaves under fixed codes.

    The size of the file stays that of the codes.

    Args:
      phase: Compression phase.
      compressed: Compressed params, whose file fits the budget.
    """
    leaves = flat_leaves(compressed)

    def init(params: Any) -> Any:
        def start(path: str, leaf: Any) -> Any:
            return leaves[path] if sqs_jax.is_compressed(leaves[path]) else leaf

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
    """Move each weight into the cell of its code's level.

    Args:
      leaf: Codes and codebook; a stacked tensor has one codebook per slice.
      weights: Float array of the shape of the codes.

    Returns:
      Weights, float32, of the same shape: the nearest level of each is that of its code.
    """
    stacked = leaf.codes.shape[: leaf.codebook.ndim - 2]
    codes = np.asarray(leaf.codes).reshape(math.prod(stacked), -1)
    books = np.asarray(leaf.codebook, np.float32).reshape(len(codes), -1)
    flat = np.asarray(weights, np.float32).reshape(codes.shape)
    moved = np.empty_like(flat)
    for t, (code, book) in enumerate(zip(codes, books, strict=True)):
        levels = np.append(np.float32(0), book)
        order = np.argsort(levels, kind="stable")
        half = _REACH / 2 * np.diff(levels[order])
        low, high = np.full((2, levels.size), np.inf, np.float32)
        low[order[1:]], high[order[:-1]] = half, half
        moved[t] = np.clip(flat[t], (levels - low)[code], (levels + high)[code])
    return moved.reshape(leaf.codes.shape)


def at_codes(
    leaf: sqs_jax.SubDistribution, compressed: sqs_jax.CompressedLeaf
) -> sqs_jax.SubDistribution:
    """Move a posterior to the levels, zeros and code counts of a compressed tensor.

    The scale of the components is the RMS error of uniform quantization at the mean distance of the
    levels, distance / sqrt(12). At this scale the price of a nat equals the error that the nat
    saves at high rate.
    """
    means = jnp.asarray(compressed.codebook, leaf.means.dtype)
    size = means.shape[-2] * means.shape[-1]
    levels = jnp.pad(means.reshape(*means.shape[:-2], size), [(0, 0)] * leaf.stacked + [(1, 0)])
    gaps = jnp.diff(jnp.sort(levels, axis=-1), axis=-1)
    apart = jnp.mean(gaps, -1, where=gaps > 0)[..., None, None]  # levels may repeat
    floor = 1e-6 * jnp.abs(means).max((-2, -1), keepdims=True)  # if all levels are equal
    width = jnp.maximum(jnp.nan_to_num(apart), floor) / math.sqrt(12)
    codes = np.asarray(compressed.codes).reshape(-1, math.prod(leaf.loc.shape[leaf.stacked :]))
    counts = np.stack([np.bincount(part, minlength=size + 1)[1:] for part in codes])
    shares = np.log(np.maximum(counts, 0.5)).reshape(means.shape)
    return leaf.replace(
        kept=jnp.asarray(compressed.codes) > 0,
        means=means,
        log_scales=jnp.broadcast_to(jnp.log(width), means.shape),
        mixture_logits=jnp.asarray(shares, means.dtype),
    )
