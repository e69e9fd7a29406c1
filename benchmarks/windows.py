"""Windows for long tails, at equal bytes: one, equal and outlier windows on stories260K.

Nothing is trained: levels by k-means in each window, nothing pruned. Bytes are the file's; the loss
is KL(dense || compressed) of the next token on the second half of tinystories_cased_a.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np

import sqs_jax
from benchmarks.calibration import divergence, file_bytes, load

_PRIOR = sqs_jax.SpikeSlabPrior(inclusion=0.5, scale=1.0)
# levels in all; a window has its share of them
_LEVELS = (6, 9, 12, 15, 18, 24, 30, 36, 48, 60)
_KINDS = {
    "one": sqs_jax.Windows(),
    "3, equal": sqs_jax.Windows(kind="equal", count=3),
    "3, outlier": sqs_jax.Windows(kind="outlier", count=3),
    "3, outlier, 3 IQR": sqs_jax.Windows(kind="outlier", count=3, iqr_factor=3.0),
}
_BITS = (3.0, 3.5, 4.0, 4.5, 5.0)  # per weight of the whole file, at which curves are compared


def run(workdir: Path, data: Path) -> list[dict[str, Any]]:
    """Print and return what each kind loses at each size, interpolated between measured ones."""
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
        at = np.interp(
            _BITS, np.asarray(sizes)[order], np.log(np.asarray(losses)[order]), np.nan, np.nan
        )
        found = np.exp(at)
        print(f"{name:20} " + "".join(f"{loss:15.4f}" for loss in found), flush=True)
        rows.append({"windows": name, "bits": list(_BITS), "divergence": found.tolist()})
    return rows
