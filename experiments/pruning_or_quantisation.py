"""Does pruning or quantisation keep more of a tensor at equal size?

    python -m experiments.pruning_or_quantisation \\
        --config=experiments/configs/pruning_or_quantisation.py --workdir=runs/study

After Kuzmin, Nagel, van Baalen, Behboodi and Blankevoort 2023 (arXiv:2307.02973), who compare by
the signal-to-noise ratio, 10 log10 of E w^2 / E (w - v)^2, on normal and heavy-tailed tensors and
on those of networks. Twice: at the bits that they count, b for a weight on a uniform grid of 2^b
levels, and a share b / 16 of the weights kept in 16 bits, their places for nothing; and at the
bits that an ideal coder takes for either, places included, with `compress_to_budget`, which does
both at once, at the bytes of its file. Writes study.json and study.html.
"""

from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from ml_collections import config_flags

import sqs_jax
from experiments.atomic_files import write_json
from experiments.pages.page import table, write_page
from experiments.pages.panels import COLORS, panel, styled, svg
from experiments.trees import flat_leaves
from sqs_jax.checkpoints import open_checkpoint
from sqs_jax.progress import track

_WIDE = 16  # bits of a weight that is kept as it is
_STEPS = 60  # widths of a grid that are tried
_LEAST = 4096  # weights; of fewer, a file's table and header count too much


def signal_to_noise(weights: np.ndarray, values: np.ndarray) -> float:
    """Return the ratio of a tensor's energy to that of its error, dB."""
    error = np.mean((weights - values) ** 2)
    return float(10 * np.log10(np.mean(weights**2) / max(error, 1e-300)))


def prune(weights: np.ndarray, share: float) -> np.ndarray:
    """Keep a share of the weights, the largest, in 16 bits; [n]."""
    kept = round(share * weights.size)
    values = np.zeros_like(weights)
    largest = np.argsort(-np.abs(weights), kind="stable")[:kept]
    values[largest] = weights[largest].astype(np.float16)
    return values


def quantise(weights: np.ndarray, levels: int) -> np.ndarray:
    """Round to the uniform grid of so many levels, 0 among them, that errs least; [n]."""
    low, high = -(levels // 2), (levels - 1) // 2
    best, least = np.zeros_like(weights), np.inf
    for share in np.geomspace(0.02, 1.0, _STEPS):
        step = 2 * share * np.abs(weights).max() / levels
        values = np.clip(np.rint(weights / step), low, high) * step
        error = float(np.mean((weights - values) ** 2))
        if error < least:
            best, least = values, error
    return best


def entropy(values: np.ndarray) -> float:
    """Return the order-0 entropy of values, bits per value; their table is not counted."""
    counts = np.unique(values, return_counts=True)[1] / values.size
    return float(-np.sum(counts * np.log2(counts)))


def study(weights: np.ndarray, bits: tuple[int, ...]) -> dict[str, list[dict[str, float]]]:
    """Compare on one tensor.

    Args:
      weights: float32 [n].
      bits: per weight, for either.

    Returns:
      {"pruning", "quantisation", "both"}: rows of "bits" as published, "coded" bits per weight as
      an ideal coder or, for both at once, a file has them, and "snr", dB.
    """
    wide = weights.astype(np.float64)
    found: dict[str, list[dict[str, float]]] = {"pruning": [], "quantisation": [], "both": []}

    def add(name: str, values: np.ndarray, published: float, coded: float) -> None:
        snr = signal_to_noise(wide, values)
        found[name].append({"bits": published, "coded": coded, "snr": snr})

    for b in bits:
        pruned, rounded = prune(wide, b / _WIDE), quantise(wide, 2**b)
        add("pruning", pruned, b, entropy(pruned))
        add("quantisation", rounded, b, entropy(rounded))
        tree = {"w": weights.reshape(1, -1)}
        made = sqs_jax.compress_to_budget(tree, target_bytes=b * weights.size // 8, stacked=0)
        values = np.asarray(sqs_jax.materialize(made)["w"], np.float64).ravel()
        size = 8 * sqs_jax.summarize(made).file_bytes / weights.size
        add("both", values, size, size)
    return found


def tensors(config: Any) -> dict[str, np.ndarray]:
    """Draw the tensors of the study, and read the largest of a checkpoint."""
    rng = np.random.default_rng(config.seed)
    found = {
        "normal": rng.standard_normal(config.count),
        "Laplace": rng.laplace(size=config.count),
        "Student, 3 degrees": rng.standard_t(3, config.count),
    }
    if config.weights:
        leaves = flat_leaves(open_checkpoint(Path(config.weights)).tree)
        enough = [name for name, leaf in leaves.items() if leaf.ndim > 1 and leaf.size >= _LEAST]
        large = sorted(enough, key=lambda name: -leaves[name].size)
        found |= {n: np.asarray(leaves[n], np.float64).ravel() for n in large[: config.tensors]}
    return {name: values.astype(np.float32) for name, values in found.items()}


def kurtosis(weights: np.ndarray) -> float:
    """Return the fourth central moment over the squared second; 3 for normal weights."""
    centred = weights.astype(np.float64) - weights.mean(dtype=np.float64)
    return float(np.mean(centred**4) / np.mean(centred**2) ** 2)


def crossing(rows: dict[str, list[dict[str, float]]], by: str) -> str:
    """Say at which sizes pruning keeps more than quantisation, in steps of a tenth of a bit."""
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
    """Draw the ratio against the size."""
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


def main(_: Any) -> None:
    config, workdir = flags.FLAGS.config, Path(flags.FLAGS.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    given = tensors(config)
    results = {
        name: study(weights, tuple(config.bits))
        for name, weights in track(given.items(), "tensors")
    }
    write_json(workdir / "study.json", results)
    head = [
        "tensor",
        "kurtosis",
        "pruning ahead, bits as published",
        "pruning ahead, bits as coded",
    ]
    rows = [
        [name, f"{kurtosis(given[name]):.1f}", crossing(found, "bits"), crossing(found, "coded")]
        for name, found in results.items()
    ]
    for row in [head, *rows]:
        print(f"{row[0]:>40} {row[1]:>9} {row[2]:>33} {row[3]:>29}")
    panels = [
        figure(name, found, by) for name, found in results.items() for by in ("bits", "coded")
    ]
    intro = "Signal-to-noise ratio of pruning, of quantisation, and of both at once, at equal size."
    page = write_page(
        workdir / "study.html", "Pruning or quantisation?", intro,
        f'<div class="panels">{"".join(panels)}</div>', table(head, rows),
    )  # fmt: skip
    print(f"page: {page}")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Study: configs/pruning_or_quantisation.py.")
    flags.DEFINE_string("workdir", None, "Folder of the study; made if missing.", required=True)
    flags.mark_flag_as_required("config")
    app.run(main)
