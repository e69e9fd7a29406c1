"""Compression of folders of many small tensors by the command line.

Each folder has the names and the shards of a published mixture of experts: 94 layers of 128 experts
of three matrices. A separate process compresses each folder, to measure its peak memory.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from sqs_jax.checkpoints import write_safetensors

_LAYERS, _EXPERTS, _SHARDS = 94, 128, 8
_MATRICES = ("down_proj", "gate_proj", "up_proj")
_ALL = _LAYERS * _EXPERTS * len(_MATRICES)
_FOLDERS: list[tuple[int, tuple[int, ...], Any, tuple[float, ...]]] = [
    (_ALL, (3,), np.float32, (0.1,)),
    (_ALL, (16, 16), np.float32, (4, 8)),
    (_ALL, (16, 16), ml_dtypes.bfloat16, (4, 8)),
    (5000, (64, 64), np.float32, (8,)),
]


def run(workdir: Path, _: Path) -> list[dict[str, Any]]:
    """Print and return seconds and peak memory by folder and ratio."""
    rows: list[dict[str, Any]] = []
    print(f"{'tensors':>8} {'shape':>9} {'dtype':>9} {'ratio':>5} {'seconds':>8} {'ms/tensor':>9} "
          f"{'peak MB':>8} {'file/budget':>11}")  # fmt: skip
    for count, shape, dtype, ratios in _FOLDERS:
        with tempfile.TemporaryDirectory(dir=workdir) as name:
            original = _write(Path(name) / "moe", count, shape, dtype)
            for ratio in ratios:
                output = Path(name) / "compressed"
                seconds, peak = _compress(Path(name) / "moe", output, ratio)
                size = sum(path.stat().st_size for path in output.glob("*.sqs"))
                row = {
                    "tensors": count, "shape": shape, "dtype": np.dtype(dtype).name,
                    "ratio": ratio, "seconds": seconds, "peak_bytes": peak,
                    "of_budget": size / int(original / ratio),
                }  # fmt: skip
                rows.append(row)
                print(f"{count:>8} {'x'.join(map(str, shape)):>9} {row['dtype']:>9} {ratio:>5} "
                      f"{seconds:>8.1f} {1e3 * seconds / count:>9.2f} {peak / 1e6:>8.0f} "
                      f"{row['of_budget']:>11.4f}", flush=True)  # fmt: skip
                for path in output.iterdir():
                    path.unlink()
                output.rmdir()
    return rows


def _write(folder: Path, count: int, shape: tuple[int, ...], dtype: Any) -> int:
    """Write a folder in shards; return the bytes of the weights."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    names = [
        f"model.layers.{layer}.mlp.experts.{expert}.{matrix}.weight"
        for layer in range(_LAYERS)
        for expert in range(_EXPERTS)
        for matrix in _MATRICES
    ][:count]
    weight_map: dict[str, str] = {}
    per_shard = -(-count // _SHARDS)
    for shard in range(_SHARDS):
        file = f"model-{shard + 1:05d}-of-{_SHARDS:05d}.safetensors"
        part = names[shard * per_shard : (shard + 1) * per_shard]
        tensors = {name: rng.standard_normal(shape).astype(dtype) for name in part}
        write_safetensors(folder / file, tensors, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return count * int(np.prod(shape)) * np.dtype(dtype).itemsize


def _compress(folder: Path, output: Path, ratio: float) -> tuple[float, int]:
    """Run the command; return the seconds and the peak memory, bytes."""
    command = [sys.executable, "-m", "sqs_jax.cli", "compress", str(folder), "-o", str(output)]
    command += ["--target-ratio", str(ratio)]
    measured = subprocess.run(
        [sys.executable, "-m", __name__, *command],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    seconds, kilobytes = measured.stdout.splitlines()[-1].split()
    return float(seconds), 1024 * int(kilobytes)


def _measure(command: list[str]) -> None:
    """Run a command; print its seconds and peak memory, kilobytes."""
    started = time.perf_counter()
    subprocess.run(command, check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(time.perf_counter() - started, peak)


if __name__ == "__main__":
    _measure(sys.argv[1:])
