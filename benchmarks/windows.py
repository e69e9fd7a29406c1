"""Windows for long tails at equal bytes: single, equal and outlier windows.

The network is stories260K without training and pruning; k-means determines the levels of each
window. Bytes are those of the file; the loss is KL(dense || compressed) of the next token on the
second half of tinystories_cased_a. The figure windows.png has the tensor with the longest tails,
original and compressed, with both tails enlarged.
"""

from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure

import sqs_jax
from benchmarks.calibration import divergence, file_bytes, load
from experiments.trees import flat_leaves

_PRIOR = sqs_jax.SpikeSlabPrior(inclusion=0.5, scale=1.0)
# Total numbers of levels, which windows share equally.
_LEVELS = (6, 9, 12, 15, 18, 24, 30, 36, 48, 60)
_KINDS = {
    "one": sqs_jax.Windows(),
    "3, equal": sqs_jax.Windows(kind="equal", count=3),
    "3, outlier": sqs_jax.Windows(kind="outlier", count=3),
    "3, outlier, 3 IQR": sqs_jax.Windows(kind="outlier", count=3, iqr_factor=3.0),
}
_DRAWN = 18  # total levels of the figure
_BITS = (3.0, 3.5, 4.0, 4.5, 5.0)  # bits per weight of the file, for the comparison


def run(workdir: Path, data: Path) -> list[dict[str, Any]]:
    """Print and return the loss of each kind of windows at equal sizes, interpolated."""
    network = load(data)
    weights = sum(leaf.size for leaf in jax.tree.leaves(network.params))
    tails = np.concatenate([
        np.abs(w - w.mean()).ravel() / w.std()
        for w in jax.tree.leaves(network.params) if w.ndim > 1
    ])  # fmt: skip
    print(f"{100 * np.mean(tails > 4):.2f} % of the weights lie beyond 4 standard deviations")
    rows = []
    print("windows              " + "".join(f"{bits:>10.1f} bits" for bits in _BITS))
    for name, windows in _KINDS.items():
        sizes, losses = [], []
        for levels in _LEVELS:
            rule = sqs_jax.Rule(
                pattern=".*(kernel|embedding)",
                components=levels // windows.count,
                windows=windows,
            )
            sqs = sqs_jax.spike_slab_gmm([rule, sqs_jax.Rule(components=None)], prior=_PRIOR)
            compressed = jax.device_get(sqs.compress(sqs.init(network.params)))
            sizes.append(8 * file_bytes(compressed) / weights)
            losses.append(divergence(network, sqs_jax.materialize(compressed)))
        order = np.argsort(sizes)
        log_losses = np.interp(
            _BITS, np.asarray(sizes)[order], np.log(np.asarray(losses)[order]), np.nan, np.nan
        )
        interpolated = np.exp(log_losses)
        print(f"{name:20} " + "".join(f"{loss:15.4f}" for loss in interpolated), flush=True)
        rows.append({"windows": name, "bits": list(_BITS), "divergence": interpolated.tolist()})
    print(f"figure: {_draw_tails(network.params, workdir / 'windows.png')}")
    return rows


def _draw_tails(params: Any, path: Path) -> Path:
    """Plot histograms of weights and levels for the tensor with the longest tails."""
    tensors = {name: w for name, w in flat_leaves(params).items() if w.ndim > 1}

    def kurtosis(w: np.ndarray) -> float:
        return float(np.mean((w - w.mean()) ** 4) / w.var() ** 2)

    name = max(tensors, key=lambda name: kurtosis(tensors[name]))
    weights = tensors[name].ravel()
    unit, most = weights.std(), 1.05 * np.abs(weights).max() / weights.std()
    kinds = ("one", "3, outlier")
    with matplotlib.rc_context({"font.size": 10}):
        figure = Figure((11, 4.2), layout="constrained")
        figure.suptitle(f"{name}, kurtosis {kurtosis(weights):.1f}; {_DRAWN} levels in all")
        axes = figure.subplots(2, 3, sharey=True, sharex="col", width_ratios=(2, 3, 2))
        for row, kind in zip(axes, kinds, strict=True):
            leaf = sqs_jax.SubDistribution.init(
                weights, components=_DRAWN // _KINDS[kind].count, windows=_KINDS[kind]
            )
            levels, counts = np.unique(np.asarray(leaf.mode()), return_counts=True)
            for plot, (low, high) in zip(row, ((-most, -2), (-3, 3), (2, most)), strict=True):
                plot.hist(weights / unit, np.linspace(low, high, 80), color="#c9d2db")
                inside = (levels / unit >= low) & (levels / unit <= high)
                plot.vlines(levels[inside] / unit, 0.7, counts[inside], color="#0a5a9c", lw=1.4)
                plot.set(yscale="log", xlim=(low, high))
            row[0].set_ylabel(f"{kind}\nweights")
        for plot, title in zip(axes[0], ("lower tail", "body", "upper tail"), strict=True):
            plot.set_title(title)
        axes[0][0].set_ylim(0.7, weights.size / 2)  # all axes share it
        axes[1][1].set_xlabel("standard deviations; grey: full precision, blue: compressed")
        figure.savefig(path, metadata={"Software": None})
    return path
