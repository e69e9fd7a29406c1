"""A residual network from published weights to the file, as a user compresses one."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sqs_jax
from tests.experiments.test_importers import network, state_dict

TARGET = 60_000


@pytest.mark.scale
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_published_weights_end_as_a_small_file_that_runs(tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 192), ("test", 64)):
        arrays[f"{part}_images"] = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
        arrays[f"{part}_labels"] = rng.integers(0, 10, count)
    np.savez(tmp_path / "cifar10.npz", **arrays)
    np.savez(tmp_path / "weights.npz", **state_dict(network("resnet20", 10)))
    workdir = tmp_path / "run"
    settings = {
        "data.directory": tmp_path,
        "model.weights": tmp_path / "weights.npz",
        "model.dtype": dtype,
        "sqs.target_bytes": TARGET,
        "sqs.epochs": 2,
        "sqs.reestimate": 2,
        "evaluation.average_samples": 1,
    }
    command = [sys.executable, "-m", "experiments.train", f"--workdir={workdir}"]
    command += ["--config=experiments/configs/cifar10_resnet20.py"]
    command += [f"--config.{field}={value}" for field, value in settings.items()]
    # it ends well only if the file classifies the very images that the trained network does
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    report = sqs_jax.inspect(workdir / "model.sqs")
    assert 0.98 * TARGET <= report.file_bytes <= TARGET
    statistics = [leaf for leaf in report.leaves if leaf.path.startswith("batch_stats/")]
    assert len(statistics) == 38 and sum(leaf.file_bits for leaf in statistics) < 8 * 300
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    assert set(evaluation) == {"dense", "finetune", "mean", "mode", "averaged"}
    assert all(np.isfinite(row["nll"]) for row in evaluation.values())
