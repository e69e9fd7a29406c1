"""Budgets on pretrained networks: rate-distortion against uniform K and sparsity."""

import time
from pathlib import Path
from typing import Any

import numpy as np

import sqs_jax
from benchmarks.networks import NAMES, Network, load_network

_RATIOS = (4, 8, 12)
_COMPONENTS = (2, 4, 8, 16, 32, 64, 128, 255)


def run(_: Path, data: Path) -> list[dict[str, Any]]:
    """Print the used share of the budget and the output error, by network and ratio."""
    rows: list[dict[str, Any]] = []
    print(f"{'':>28} {'budget':<28}  {'uniform':<42}")
    print(f"{'network':>17} {'ratio':>5} {'s':>5} {'file/budget':>11} {'error':>7} {'quality':>7}  "
          f"{'K':>3} {'sparsity':>8} {'file/budget':>11} {'error':>7} {'quality':>7}")  # fmt: skip
    for name in NAMES:
        network = load_network(name, data)
        quality = network.quality(network.weights)
        print(f"{name:>17} dense {quality:>32.4f} {network.quality_name}")
        original = sum(array.nbytes for array in network.weights.values())
        for ratio in _RATIOS:
            budget = original // ratio
            started = time.perf_counter()
            compressed = sqs_jax.compress_to_budget(network.weights, target_bytes=budget)
            seconds = time.perf_counter() - started
            row = _measure(network, compressed, budget)
            trials = [_uniform(network, components, budget) for components in _COMPONENTS]
            best = min(trials, key=lambda trial: trial["error"])
            rows.append({"network": name, "ratio": ratio, "budget": budget, "dense": quality,
                         "seconds": seconds, **row, "uniform": best})  # fmt: skip
            print(f"{name:>17} {ratio:>5} {seconds:>5.1f} {_figures(row)}  "
                  f"{best['components']:>3} {best['sparsity']:>8.3f} {_figures(best)}",
                  flush=True)  # fmt: skip
    return rows


def _measure(network: Network, compressed: Any, budget: int) -> dict[str, float]:
    """Return the used share of the budget, the relative output error and the quality."""
    weights = sqs_jax.materialize(compressed)
    outputs, original = network.outputs(weights), network.outputs(network.weights)
    error = np.linalg.norm(outputs - original) / np.linalg.norm(original)
    return {
        "of_budget": sqs_jax.summarize(compressed).file_bytes / budget,
        "error": float(error),
        "quality": network.quality(weights),
    }


def _figures(row: dict[str, Any]) -> str:
    return f"{row['of_budget']:>11.4f} {row['error']:>7.4f} {row['quality']:>7.4f}"


def _uniform(network: Network, components: int, budget: int) -> dict[str, Any]:
    """Compress at the smallest common sparsity whose file fits in the budget."""
    low, high = 0.0, 1.0
    sparsity, fitting = 0.0, None
    for _ in range(14):
        compressed = {
            name: _prune_and_cluster(array, components, sparsity) if array.ndim > 1 else array
            for name, array in network.weights.items()
        }
        share = sqs_jax.summarize(compressed).file_bytes / budget
        if share <= 1:
            high, fitting = sparsity, (sparsity, compressed)
            if share >= 0.99 or sparsity == 0:
                break
        else:
            low = sparsity
        sparsity = (low + high) / 2
    if fitting is None:
        return {"components": components, "error": np.inf}
    sparsity, compressed = fitting
    figures = _measure(network, compressed, budget)
    return {"components": components, "sparsity": sparsity, **figures}


def _prune_and_cluster(
    weights: np.ndarray, components: int, sparsity: float
) -> sqs_jax.CompressedLeaf:
    """Prune the smallest weights of a tensor, and cluster the kept weights by k-means.

    The clustering is that of `spike_slab_gmm`, in one dimension. Levels are rounded to float16.
    """
    size = np.abs(weights).ravel()
    flat = np.ones(weights.size, bool)
    flat[np.argsort(size, kind="stable")[: round(sparsity * weights.size)]] = False
    kept = flat.reshape(weights.shape)
    values = np.sort(weights[kept].astype(np.float64))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    density = np.cbrt(np.diff(values)) ** 2  # proportional to the optimal density of levels
    reach = np.concatenate([[0.0], np.cumsum(density)])
    share = (np.arange(components) + 0.5) / components
    levels = np.interp(share * reach[-1], reach, values)
    for _ in range(100):
        cuts = np.searchsorted(values, (levels[1:] + levels[:-1]) / 2)
        ends = np.append(np.append(0, cuts), values.size)
        count = np.diff(ends)
        moved = np.where(count > 0, np.diff(sums[ends]) / np.maximum(count, 1), levels)
        if np.array_equal(moved, levels):
            break
        levels = moved
    edges = (levels[1:] + levels[:-1]) / 2
    codes = np.where(kept, 1 + np.searchsorted(edges, weights), 0).astype(np.uint8)
    codebook = levels.astype(np.float16).astype(weights.dtype)[None]
    return sqs_jax.CompressedLeaf(codes, codebook)
