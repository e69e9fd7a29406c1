"""The command experiments.train: processes, files, interruptions, user errors."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors

import sqs_jax
from experiments.configs import base, cifar10_resnet20, digits
from experiments.data.corruptions import CORRUPTIONS
from experiments.export import recipe
from experiments.training.pipeline import run_trainings
from sqs_jax.cli import main as sqs_command

SHORT = (
    "--config=experiments/configs/digits.py",
    "--config.dense.epochs=3",
    "--config.sqs.epochs=8",
    "--config.checkpoint_every=7",
    "--config.evaluation.average_samples=2",
    "--config.sqs.dense_dtype=",
)


def command(workdir: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "experiments.train", *SHORT, f"--workdir={workdir}", *options]


def succeed(workdir: Path) -> None:
    result = subprocess.run(command(workdir), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("run") / "whole"
    succeed(workdir)
    return workdir


def lines(workdir: Path, phase: str) -> list[dict[str, float]]:
    path = workdir / "metrics.jsonl"
    texts = path.read_text().splitlines(keepends=True) if path.exists() else []
    actual = [json.loads(text) for text in texts if text.endswith("\n")]
    return [line for line in actual if line["phase"] == phase]


def test_run_ends_with_a_small_file_and_a_report(finished: Path) -> None:
    report = sqs_jax.inspect(finished / "model.sqs")
    assert report.file_bytes == os.path.getsize(finished / "model.sqs")
    assert report.original_bytes / report.file_bytes > 20
    assert report.kept == report.compressed_weights - round(0.81 * report.compressed_weights)
    assert (finished / "report.html").stat().st_size > 10_000
    with safetensors.safe_open(finished / "model.sqs", "numpy") as file:
        assert file.metadata() == {"format": "sqs", "version": "1.0"}
    said = sqs_jax.read_metadata(finished / "model.sqs")["recipe"]
    assert said == {
        "dense.epochs": 3,
        "sqs.epochs": 8,
        "evaluation.average_samples": 2,
        "sqs.dense_dtype": "",
        "data.shift": 1,
    }
    assert sqs_command(["verify", str(finished / "model.sqs")]) == 0


def test_a_file_says_how_it_was_trained_and_nothing_of_the_machine() -> None:
    config = cifar10_resnet20.get_config()
    config.data.directory = "/home/me/data"
    config.model.weights = "/home/me/data/cifar10_resnet20.npz"
    config.mesh.fsdp = 2
    said = recipe(config)
    assert said["model.weights"] == "cifar10_resnet20.npz" and "/home" not in json.dumps(said)
    assert said["sqs.target_bytes"] == 44_950 and said["sqs.learning_rate.loc"] == 7e-4
    again = base.experiment()
    again.update_from_flattened_dict(said)
    for settings in (again, config):  # what is not said is as in the defaults
        settings.data.directory, settings.model.weights, settings.mesh.fsdp = "", "", 1
    assert again.to_json_best_effort() == config.to_json_best_effort()


def test_second_process_sees_the_deployed_weights(finished: Path) -> None:
    evaluation = json.loads((finished / "evaluation.json").read_text())
    assert set(evaluation) == {"dense", "finetune", "mean", "mode", "averaged"}
    assert evaluation["mode"]["bytes"] == os.path.getsize(finished / "model.sqs")
    params = sqs_jax.materialize(sqs_jax.load(finished / "model.sqs"))["params"]
    for leaf in (layer["kernel"] for layer in params.values()):
        assert np.unique(leaf[leaf != 0]).size <= 4


def test_draws_for_averaging_are_whole_code_streams(finished: Path) -> None:
    draws = sqs_jax.load(finished / "average.sqs")["draws"]
    deployed = sqs_jax.load(finished / "model.sqs")["params"]
    for draw in draws:
        for name, layer in draw.items():
            np.testing.assert_array_equal(
                layer["kernel"].codes == 0, deployed[name]["kernel"].codes == 0
            )
            # a file leaves out the levels that none of its weights has
            levels = deployed[name]["kernel"].codebook
            assert np.isin(levels, layer["kernel"].codebook).all()
    first, second = (draw["Dense_0"]["kernel"].codes for draw in draws)
    assert (first != second).any()


def test_averages_of_a_finished_run_are_judged(finished: Path) -> None:
    options = ["--samples=3", "--temperatures=0.0001,1", "--images=100", f"--workdir={finished}"]
    subprocess.run([sys.executable, "-m", "experiments.inference", *options], check=True)
    rows = json.loads((finished / "inference.json").read_text())["rows"]
    assert len(rows) == (1 + 2 * 3) * (1 + len(CORRUPTIONS))
    clean = {(r["network"], r["passes"]): r for r in rows if r["condition"] == "clean"}
    mode, cold = clean["mode", 1], clean["averaged at 0.0001", 1]
    assert mode["bytes"] == (finished / "model.sqs").stat().st_size and mode["count"] == 100
    # at a low temperature a draw is the deployed network, but for ties
    assert abs(cold["correct"] - mode["correct"]) <= 2
    sizes = [clean["averaged at 1", m]["bytes"] for m in (1, 2, 3)]
    assert 1.6 * sizes[0] < sizes[1] and 2.4 * sizes[0] < sizes[2] < 3.1 * sizes[0]
    assert "<svg" in (finished / "inference.html").read_text()


def test_a_peer_trains_and_is_reported(tmp_path: Path) -> None:
    options = "method=dgms", "estimator=mean", "learning_rate.spread=2e-3", "epochs=2"
    given = [f"--config.sqs.{each}" for each in options]
    given += ["--config.dense.epochs=1", "--config.finetune=False"]
    result = subprocess.run(command(tmp_path, *given), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    report = sqs_jax.inspect(tmp_path / "model.sqs")
    assert report.sparsity > 0.1  # what the component at zero holds
    assert {leaf.components for leaf in report.leaves if leaf.compressed} == {4}
    assert "<svg" in (tmp_path / "report.html").read_text()
    study = [sys.executable, "-m", "experiments.inference", f"--workdir={tmp_path}"]
    refused = subprocess.run(study, capture_output=True, text=True)
    assert refused.returncode and "nothing to draw from" in refused.stderr


@pytest.mark.scale
def test_kill_and_start_again_gives_the_same_file(finished: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "killed"
    process = subprocess.Popen(command(workdir), stdout=subprocess.DEVNULL)
    while not (seen := lines(workdir, "sqs")) or seen[-1]["step"] < 40:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (workdir / "model.sqs").exists()

    succeed(workdir)
    digests = [
        hashlib.sha256((folder / "model.sqs").read_bytes()).hexdigest()
        for folder in (finished, workdir)
    ]
    assert digests[0] == digests[1]
    for phase in ("dense", "finetune", "sqs"):
        assert lines(workdir, phase) == lines(finished, phase)


def test_finished_run_is_not_trained_again(finished: Path) -> None:
    before = (finished / "model.sqs").read_bytes()
    written = (finished / "metrics.jsonl").read_text()
    succeed(finished)
    assert (finished / "model.sqs").read_bytes() == before
    assert (finished / "metrics.jsonl").read_text() == written


@pytest.mark.parametrize(
    ("option", "said"),
    [("--config.sqs.sparsty=0.5", "sparsty"), ("--config.sqs.sparsity=much", "sparsity")],
)
def test_mistakes_of_a_command_are_named(tmp_path: Path, option: str, said: str) -> None:
    result = subprocess.run(command(tmp_path / "run", option), capture_output=True, text=True)
    assert result.returncode != 0
    assert said in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sqs.saliency": "gate"}, "config.sqs.learning_rate.gate is 0"),
        ({"batch_size": 99999}, "batch_size"),
        ({"sqs.sparsity": 1.5}, "config.sqs.sparsity is 1.5"),
        ({"sqs.prune_every": 0}, "config.sqs.prune_every is 0"),
        ({"data.holdout": "both"}, "config.data.holdout"),
        ({"data.name": "no_such_data"}, "Prepare it"),
        ({"sqs.pattern": "nothing_here"}, "nothing_here"),
        ({"sharding": (("no_leaf", ()),)}, "'no_leaf' matches no leaf"),
    ],
)
def test_mistakes_of_a_config_are_named(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    config = digits.get_config()
    config.update_from_flattened_dict(settings)
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        run_trainings(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()  # a config that cannot run claims no folder


@pytest.mark.parametrize("content", ["", "{"])
def test_damaged_config_of_a_run_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    result = subprocess.run(command(tmp_path), capture_output=True, text=True)
    assert result.returncode != 0 and "config.json is damaged" in result.stderr
    assert (tmp_path / "config.json").read_text() == content


def test_workdir_that_is_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    result = subprocess.run(command(path), capture_output=True, text=True)
    assert result.returncode != 0 and "is a file" in result.stderr
    assert path.read_text() == "mine"


def test_workdir_of_another_config_is_left_alone(finished: Path) -> None:
    before = (finished / "config.json").read_bytes()
    result = subprocess.run(
        command(finished, "--config.sqs.sparsity=0.5"), capture_output=True, text=True
    )
    assert result.returncode != 0
    assert "config.sqs.sparsity: 0.81 there, 0.5 now" in result.stderr
    assert (finished / "config.json").read_bytes() == before
