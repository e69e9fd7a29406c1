"""Entropy-coded bytes against their order-0 entropy, on heavy-tailed weights of known seeds."""

import itertools
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import sqs_jax

_SIZES = (50_000, 1_000_000)
_SETTINGS = ((2, 0.9), (4, 0.8), (16, 0.5), (256, 0.0))  # K, sparsity


def run(workdir: Path) -> list[dict[str, Any]]:
    """Print file bytes, the bytes of its streams, and how far those are above the entropy."""
    rows = []
    print(f"{'weights':>9} {'K':>4} {'sparsity':>8} {'streams':>9} {'entropy':>9} {'over':>7} "
          f"{'save':>7} {'load':>7}  (M weights/s)")  # fmt: skip
    for size, (components, sparsity) in itertools.product(_SIZES, _SETTINGS):
        weights = np.random.default_rng(0).laplace(size=(size // 100, 100)).astype(np.float32)
        sqs = sqs_jax.spike_slab_gmm(
            [sqs_jax.Rule(components=components)],
            prior=sqs_jax.SpikeSlabPrior(inclusion=0.2, scale=1.0),
        )
        posterior = sqs_jax.prune(sqs.init({"kernel": jnp.asarray(weights)}), sparsity)
        compressed = jax.device_get(sqs.compress(posterior))
        path = workdir / "streams.sqs"
        started = time.perf_counter()
        file_bytes = sqs_jax.save(path, compressed)
        saved = time.perf_counter()
        sqs_jax.load(path)
        loaded = time.perf_counter()
        (leaf,) = sqs_jax.inspect(path).leaves
        # a leaf's bytes are its codes and its codebook; the entropy counts the codes alone
        codebook = compressed["kernel"].codebook.nbytes
        streams, entropy = leaf.file_bits / 8 - codebook, leaf.entropy_bits / 8
        row = {
            "weights": size, "components": components, "sparsity": sparsity,
            "file_bytes": file_bytes, "stream_bytes": streams, "entropy_bytes": entropy,
            "over_entropy": streams / entropy - 1,
            "save_mweights_per_s": size / (saved - started) / 1e6,
            "load_mweights_per_s": size / (loaded - saved) / 1e6,
        }  # fmt: skip
        rows.append(row)
        print(f"{size:>9,} {components:>4} {sparsity:>8.2f} {streams:>9,.0f} {entropy:>9,.0f} "
              f"{100 * row['over_entropy']:>5.2f} % {row['save_mweights_per_s']:>7.1f} "
              f"{row['load_mweights_per_s']:>7.1f}", flush=True)  # fmt: skip
    return rows
