"""Size of files against bounds and other compressors, and speed of the coder.

The first table compresses real networks without data, at several K and sparsities that all tensors
share. It compares the file with the order-0 entropy of the codes plus the raw bytes of codebooks
and dense leaves, with bitmap packing, and with zstd and xz of the codes. The second table has the
speed of save and load for a large tensor, in one process and in two, by both models of the codes.
"""

import lzma
import math
import statistics
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import zstandard

import sqs_jax
from benchmarks.networks import NAMES, load_network

_SETTINGS = [(k, sparsity) for k in (2, 4, 16) for sparsity in (0.5, 0.8, 0.9)]
_SPEEDS = ((16, 0.5), (4, 0.8))
_SIDE = 4096  # 16.8 M weights
_REPEATS = 5


def run(workdir: Path, data: Path) -> dict[str, Any]:
    """Print both tables; return the rows."""
    path = workdir / "file.sqs"
    return {"sizes": _sizes(path, data), "speeds": _speeds(path)}


def compress(weights: dict[str, Any], components: int, sparsity: float) -> Any:
    """Compress all tensors of two or more axes at equal K and sparsity, by magnitude."""
    sqs = sqs_jax.spike_slab_gmm(
        [sqs_jax.Rule(components=components)],
        prior=sqs_jax.SpikeSlabPrior(inclusion=0.2, scale=1.0),
    )
    posterior = sqs_jax.prune(
        sqs.init({name: jnp.asarray(array) for name, array in weights.items()}),
        sparsity,
        scope="tensor",
    )
    return jax.device_get(sqs.compress(sqs_jax.refit(sqs_jax.revive(posterior))))


def _sizes(path: Path, data: Path) -> list[dict[str, Any]]:
    rows = []
    columns = ("file", "bound", "file/bound", "bitmap", "zstd -19", "xz -9e", "float32")
    print(f"{'network':>18} {'K':>3} {'pruned':>6} " + " ".join(f"{c:>10}" for c in columns))
    networks: dict[str, Any] = {name: load_network(name, data).weights for name in NAMES}
    networks["heavy tails, 16.8 M"] = _heavy_tails()
    for name, weights in networks.items():
        for components, sparsity in _SETTINGS if len(weights) > 1 else _SPEEDS:
            compressed = compress(weights, components, sparsity)
            row: dict[str, Any] = {"network": name, "components": components, "sparsity": sparsity}
            row |= _size(path, compressed)
            rows.append(row)
            figures = [row[c] for c in columns]
            cells = [f"{x:>10.4f}" if isinstance(x, float) else f"{x:>10,}" for x in figures]
            print(f"{name:>18} {components:>3} {sparsity:>6} " + " ".join(cells), flush=True)
    small = [row for row in rows if row["file"] < 40_000]
    large = [row for row in rows if row["file"] >= 40_000]
    print(f"files of 40 kB and more: at most {max(r['file/bound'] for r in large):.4f} of the "
          f"bound, mean {statistics.mean(r['file/bound'] for r in large):.4f}")  # fmt: skip
    print(f"smaller files: at most {max(r['file'] - r['bound'] for r in small):,} bytes above it")
    return rows


def _size(path: Path, compressed: Any) -> dict[str, Any]:
    """Return the bytes of a file and of the alternatives."""
    file_bytes = sqs_jax.save(path, compressed)
    report = sqs_jax.inspect(path)
    leaves = [x for x in compressed.values() if isinstance(x, sqs_jax.CompressedLeaf)]
    dense = [x for x in compressed.values() if not isinstance(x, sqs_jax.CompressedLeaf)]
    raw = b"".join(x.tobytes() for x in [*(leaf.codebook for leaf in leaves), *dense])
    entropy = sum(leaf.entropy_bits for leaf in report.leaves if leaf.compressed) / 8
    bound = math.ceil(entropy + len(raw))
    codes = b"".join(leaf.codes.tobytes() for leaf in leaves)
    return {
        "file": file_bytes,
        "bound": bound,
        "file/bound": file_bytes / bound,
        "bitmap": math.ceil(report.fixed_bits / 8),
        "zstd -19": len(zstandard.compress(codes, 19)) + len(raw),
        "xz -9e": len(lzma.compress(codes, preset=9 | lzma.PRESET_EXTREME)) + len(raw),
        "float32": report.original_bytes,
    }


def _heavy_tails() -> dict[str, np.ndarray]:
    weights = np.random.default_rng(0).standard_t(3, size=(_SIDE, _SIDE))
    return {"kernel": weights.astype(np.float32)}


def _speeds(path: Path) -> list[dict[str, Any]]:
    print("\nM weights/s, median of five, and how much faster two processes are")
    print(f"{'tensor':>22} {'coder':>8} {'save 1':>7} {'save 2':>7} {'ratio':>6} "
          f"{'load 1':>7} {'load 2':>7} {'ratio':>6} {'peak of load':>13} "
          f"{'leaf + file, MB':>16}")  # fmt: skip
    # Rows of very different scales, which the context model uses.
    rng = np.random.default_rng(1)
    scales = np.exp(rng.normal(size=(_SIDE, 1)))
    uneven = (rng.laplace(size=(_SIDE, _SIDE)) * scales).astype(np.float32)
    cases = [("heavy tails", _heavy_tails(), k, s) for k, s in _SPEEDS]
    cases += [("uneven rows", {"kernel": uneven}, k, s) for k, s in _SPEEDS]
    rows = []
    for name, weights, components, sparsity in cases:
        compressed = compress(weights, components, sparsity)
        size = compressed["kernel"].codes.size
        row: dict[str, Any] = {"tensor": name, "components": components, "sparsity": sparsity}
        for workers in (1, 2):
            save, load = _saver(path, compressed, workers), _loader(path, workers)
            row[f"save {workers}"] = size / _seconds(save) / 1e6
            row[f"load {workers}"] = size / _seconds(load) / 1e6
        (leaf,) = sqs_jax.inspect(path).leaves
        row["below entropy"] = 1 - leaf.file_bits / leaf.entropy_bits
        row["load peak MB"] = _peak(path)
        row["leaf and file MB"] = (size + path.stat().st_size) / 1e6
        rows.append(row)
        coder = "context" if row["below entropy"] > 0 else "static"
        print(f"{f'{name}, K {components}, {sparsity}':>22} {coder:>8} "
              f"{row['save 1']:>7.1f} {row['save 2']:>7.1f} {row['save 2'] / row['save 1']:>6.2f} "
              f"{row['load 1']:>7.1f} {row['load 2']:>7.1f} {row['load 2'] / row['load 1']:>6.2f} "
              f"{row['load peak MB']:>13.1f} {row['leaf and file MB']:>16.1f}",
              flush=True)  # fmt: skip
    return rows


def _saver(path: Path, compressed: Any, workers: int) -> Callable[[], Any]:
    return lambda: sqs_jax.save(path, compressed, workers=workers)


def _loader(path: Path, workers: int) -> Callable[[], Any]:
    return lambda: sqs_jax.load(path, workers=workers)


def _seconds(function: Callable[[], Any]) -> float:
    """Return the median seconds of a call, after a first call that starts processes."""
    function()
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _peak(path: Path) -> float:
    """Return the peak memory of Python and numpy while loading a file, MB."""
    tracemalloc.start()
    sqs_jax.load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6
