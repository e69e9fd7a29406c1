"""Signal-to-noise ratio of pruned and quantized tensors at equal size."""

from pathlib import Path
from typing import Any

import numpy as np

import sqs_jax
from experiments.pages.panels import COLORS, panel, styled, svg
from experiments.trees import flat_leaves
from sqs_jax.checkpoints import open_checkpoint

_FLOAT_BITS = 16  # bits of a weight that pruning keeps
_GRID_WIDTHS = 60  # widths of the grid in the search
_MIN_WEIGHTS = 4096  # in smaller tensors a file's table and header count too much


def signal_to_noise(weights: np.ndarray, values: np.ndarray) -> float:
    """Return the signal-to-noise ratio of approximated weights, dB."""
    error = np.mean((weights - values) ** 2)
    return float(10 * np.log10(np.mean(weights**2) / max(error, 1e-300)))


def prune(weights: np.ndarray, share: float) -> np.ndarray:
    """Keep the largest weights in 16 bits and set the rest to zero.

    Args:
      weights: Weights [n].
      share: Share of the weights to keep, 0 to 1.
    """
    kept = round(share * weights.size)
    values = np.zeros_like(weights)
    largest = np.argsort(-np.abs(weights), kind="stable")[:kept]
    values[largest] = weights[largest].astype(np.float16)
    return values


def quantize(weights: np.ndarray, levels: int) -> np.ndarray:
    """Round to the uniform grid of least squared error that contains 0.

    Args:
      weights: Weights [n].
      levels: Number of levels of the grid, at least 2.
    """
    low, high = -(levels // 2), (levels - 1) // 2
    best, least = np.zeros_like(weights), np.inf
    for share in np.geomspace(0.02, 1.0, _GRID_WIDTHS):
        step = 2 * share * np.abs(weights).max() / levels
        values = np.clip(np.rint(weights / step), low, high) * step
        error = float(np.mean((weights - values) ** 2))
        if error < least:
            best, least = values, error
    return best


def entropy(values: np.ndarray) -> float:
    """Return the order-0 entropy of values, bits per value, without the table."""
    counts = np.unique(values, return_counts=True)[1] / values.size
    return float(-np.sum(counts * np.log2(counts)))


def study(weights: np.ndarray, bits: tuple[int, ...]) -> dict[str, list[dict[str, float]]]:
    """Measure pruning, quantization, and both at once on a tensor.

    Args:
      weights: Weights, float32 [n].
      bits: Bits per weight, as published, at which to measure.

    Returns:
      Rows by "pruning", "quantisation" and "both". "bits" is the published count per weight;
      "coded" is the count of an ideal coder, or of the file for both at once; "snr" is in dB.
    """
    wide = weights.astype(np.float64)
    rows: dict[str, list[dict[str, float]]] = {"pruning": [], "quantisation": [], "both": []}

    def add(name: str, values: np.ndarray, published: float, coded: float) -> None:
        snr = signal_to_noise(wide, values)
        rows[name].append({"bits": published, "coded": coded, "snr": snr})

    for b in bits:
        pruned, rounded = prune(wide, b / _FLOAT_BITS), quantize(wide, 2**b)
        add("pruning", pruned, b, entropy(pruned))
        add("quantisation", rounded, b, entropy(rounded))
        tree = {"w": weights.reshape(1, -1)}
        compressed = sqs_jax.compress_to_budget(tree, target_bytes=b * weights.size // 8, stacked=0)
        values = np.asarray(sqs_jax.materialize(compressed)["w"], np.float64).ravel()
        size = 8 * sqs_jax.summarize(compressed).file_bytes / weights.size
        add("both", values, size, size)
    return rows


def tensors(config: Any) -> dict[str, np.ndarray]:
    """Draw random tensors, and read the largest tensors of a checkpoint.

    Args:
      config: Config of the study.

    Returns:
      Weights float32 [n] by name.
    """
    rng = np.random.default_rng(config.seed)
    samples = {
        "normal": rng.standard_normal(config.count),
        "Laplace": rng.laplace(size=config.count),
        "Student, 3 degrees": rng.standard_t(3, config.count),
    }
    if config.weights:
        leaves = flat_leaves(open_checkpoint(Path(config.weights)).tree)
        candidates = [
            name for name, leaf in leaves.items() if leaf.ndim > 1 and leaf.size >= _MIN_WEIGHTS
        ]
        large = sorted(candidates, key=lambda name: -leaves[name].size)
        samples |= {n: np.asarray(leaves[n], np.float64).ravel() for n in large[: config.tensors]}
    return {name: values.astype(np.float32) for name, values in samples.items()}


def kurtosis(weights: np.ndarray) -> float:
    """Return the fourth central moment over the squared second; 3 for normal weights."""
    centered = weights.astype(np.float64) - weights.mean(dtype=np.float64)
    return float(np.mean(centered**4) / np.mean(centered**2) ** 2)


def crossing(rows: dict[str, list[dict[str, float]]], by: str) -> str:
    """Return the sizes at which pruning has the higher ratio, in steps of 0.1 bit.

    Args:
      rows: Rows of `study`.
      by: Size to compare at, "bits" or "coded".
    """
    curves = []
    for name in ("pruning", "quantisation"):
        points = sorted((row[by], row["snr"]) for row in rows[name])
        curves.append((np.array([x for x, _ in points]), np.array([y for _, y in points])))
    low, high = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    sizes = np.arange(low, high + 0.05, 0.1)
    pruned, rounded = (np.interp(sizes, x, y) for x, y in curves)
    ahead = sizes[pruned > rounded]
    return f"{ahead.min():.1f} to {ahead.max():.1f}" if ahead.size else "nowhere"


@styled
def figure(name: str, rows: dict[str, list[dict[str, float]]], by: str) -> str:
    """Draw the signal-to-noise ratio against the size.

    Args:
      name: Name of the tensor.
      rows: Rows of `study`.
      by: Size on the horizontal axis, "bits" or "coded".
    """
    title = f"{name}: dB at bits " + ("as published" if by == "bits" else "as coded")
    picture, axes = panel(370, 260, title, left=40, bottom=40)
    colors = {"pruning": COLORS["averaged"], "quantisation": COLORS["mean"], "both": COLORS["mode"]}
    for kind, color in colors.items():
        points = sorted((row[by], row["snr"]) for row in rows[kind])
        axes.plot(*zip(*points, strict=True), marker="o", ms=4, color=color, label=kind)
    axes.set_ylim(0, 60)
    axes.set_xlim(0, 9)
    axes.set_xlabel("bits per weight")
    axes.legend(frameon=False, fontsize=9)
    return svg(picture, f"{name}-{by}".replace(" ", "-").replace(",", ""), title)
