"""Prune and compress on a single device and on eight devices; print results as JSON.

The test is in test_selection.py.

Run with --xla_force_host_platform_device_count=8.
"""

import json
import re
import sys
from pathlib import Path

import jax
import numpy as np

import sqs_jax
from sqs_jax.transform import selection


def main(folder: Path) -> None:
    rng = np.random.default_rng(0)
    params = {
        "wide": rng.standard_t(4, (96, 256)).astype(np.float32),
        "tall": rng.normal(size=(512, 40)).astype(np.float32),
        # Multiples of 1/4 give thousands of scores equal to the threshold.
        "tied": (rng.integers(-8, 9, (128, 64)) / 4).astype(np.float32),
        "small": rng.normal(size=(3, 5)).astype(np.float32),
    }
    sqs = sqs_jax.spike_slab_gmm(
        [sqs_jax.Rule(components=4)], prior=sqs_jax.SpikeSlabPrior(inclusion=0.3, scale=1.0)
    )
    start = sqs.init(params)
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(start, sqs_jax.fully_sharded(start, mesh, axis="fsdp"))

    results = {}
    for name, posterior in (("one", start), ("eight", sharded)):
        for sparsity in (0.3, 0.55, 0.9):
            pruned = sqs_jax.prune(posterior, sparsity)
            path = folder / f"{name}-{sparsity}.sqs"
            sqs_jax.save(path, sqs.compress(pruned))
            results[f"{name} {sparsity}"] = [
                path.read_bytes().hex(),
                {key: np.packbits(np.asarray(leaf.kept)).tobytes().hex()
                 for key, leaf in pruned.items()},
                sum(int(leaf.kept.size - leaf.kept.sum()) for leaf in pruned.values()),
            ]  # fmt: skip
            split = all(not pruned[k].kept.is_fully_replicated for k in ("wide", "tall", "tied"))
            assert name == "one" or split, "the mask was gathered"

    scores = tuple(sqs_jax.saliency.magnitude(sharded)[key] for key in params)
    text = selection._keep_highest.lower(scores, (0, 20_000)).compile().as_text()
    gathered = re.findall(r"= \w+\[([\d,]*)\][^=]* (?:all-gather|all-to-all)\(", text)
    largest = max((int(np.prod([int(n) for n in s.split(",") if n])) for s in gathered), default=0)
    count = sum(leaf.size for leaf in params.values())
    print(json.dumps({"results": results, "largest_gathered": largest, "count": count}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
