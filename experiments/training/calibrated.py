"""Where a training starts that is to go on from calibrated codes."""

import math
from typing import Any

import numpy as np

import sqs_jax

# Of the way from a level to its cell's border that a weight may lie. Far from the level a weight
# keeps its own value; but as short codes widen their cells, it must not lie too near the border.
_REACHES = (0.75, 0.6, 0.45, 0.3)


def start_near(leaf: sqs_jax.CompressedLeaf, weights: Any) -> np.ndarray:
    """Move each weight so near to the level of its code that a posterior gives it that code.

    Args:
      leaf: the codes; a stacked tensor has a codebook for each slice.
      weights: shaped as the codes.

    Returns:
      float32 weights. Codes are the nearest levels, and as many as possible have the most probable
      component once scales and mixture weights are refitted.
    """
    stacked = leaf.codes.shape[: leaf.codebook.ndim - 2]
    codes = np.asarray(leaf.codes).reshape(math.prod(stacked), -1)
    books = np.asarray(leaf.codebook, np.float32).reshape(len(codes), -1)
    wanted = np.asarray(weights, np.float32).reshape(codes.shape)
    moved = np.empty_like(wanted)
    for t, (code, book) in enumerate(zip(codes, books, strict=True)):
        levels = np.append(np.float32(0), book)
        tried = [_within(wanted[t], code, levels, reach) for reach in _REACHES]
        moved[t] = max(tried, key=lambda each: _agreement(each, code, levels))
    return moved.reshape(leaf.codes.shape)


def _within(weights: np.ndarray, codes: np.ndarray, levels: np.ndarray, reach: float) -> np.ndarray:
    order = np.argsort(levels, kind="stable")
    half = reach / 2 * np.diff(levels[order])
    low, high = np.full((2, levels.size), np.inf, np.float32)
    low[order[1:]], high[order[:-1]] = half, half
    return np.clip(weights, (levels - low)[codes], (levels + high)[codes])


def _agreement(weights: np.ndarray, codes: np.ndarray, levels: np.ndarray) -> float:
    """Count the kept weights whose most probable component is their code's, after a refit."""
    kept = codes > 0
    weights, component = weights[kept].astype(np.float64), codes[kept].astype(np.int64) - 1
    means = levels[1:].astype(np.float64)
    count = np.bincount(component, minlength=means.size)
    square = np.bincount(component, (weights - means[component]) ** 2, minlength=means.size)
    variance = np.maximum(square / np.maximum(count, 1), 1e-12 * np.mean(weights**2) + 1e-30)
    best = np.full(weights.shape, -np.inf)
    found = np.zeros(weights.shape, np.int64)
    for k in np.flatnonzero(count):
        joint = (
            np.log(count[k] / np.sqrt(variance[k])) - (weights - means[k]) ** 2 / variance[k] / 2
        )
        found = np.where(joint > best, k, found)
        best = np.maximum(best, joint)
    return float(np.sum(found == component))
