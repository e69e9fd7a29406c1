"""Tests of the comparison's methods that train."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import sqs_jax
from experiments.comparison import compression_aware_training as trained
from experiments.comparison.measurement import run_point
from tests.experiments.test_comparison import small_network


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Any:
    problem, variables, config = small_network(tmp_path_factory.mktemp("text"))
    # Only two leaves, because each compressed leaf adds to the compile time of a step.
    config.sqs.pattern = ".*(up_proj/kernel|embedding)"
    return problem, variables, config


@pytest.mark.parametrize(
    "method", ["dgms-trained", "codeq-trained", "ours-trained", "kmeans-prune-trained"]
)
def test_a_method_trains_with_the_configs_steps_and_its_file_is_measured(
    method: str, network: Any, tmp_path: Path
) -> None:
    problem, variables, config = network
    config = config.copy_and_resolve_references()
    problem.tokenizer.save(str(tmp_path / "tokenizer.json"))
    sqs_jax.save(tmp_path / "dense.sqs", variables)
    config.model.weights, config.sqs.epochs = str(tmp_path / "dense.sqs"), 1
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam needs it
        result = run_point(config, method, tmp_path / "run", 3)
    assert result["bytes"] == (tmp_path / "run" / "model.sqs").stat().st_size
    assert result["scores"]["perplexity"] == pytest.approx(np.exp(result["scores"]["nll"]))
    assert result["bits_per_weight"]["file"] < 16
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["sqs"]
    if method in trained.SETTINGS:
        expected = trained.SETTINGS[method][3].fields["sqs.components"]
        assert settings["components"] == result["settings"]["components"] == expected
        penalty = result["settings"].get("penalty")
        own = penalty and penalty * problem.splits.train.units  # otherwise the config's weight
        assert settings["kl_weight"] == pytest.approx(own or config.sqs.kl_weight)
        assert (penalty is not None) == (method == "codeq-trained")
    else:
        assert result["bytes"] <= result["budget"] == 7_000
        assert settings["start"] == ("weights" if method == "ours-trained" else "kmeans-prune")


@pytest.mark.parametrize("method", ["ours-trained", "prune-kmeans-trained", "obc-allocated"])
def test_a_method_without_a_file_of_the_size_has_no_bytes(
    method: str, network: Any, tmp_path: Path
) -> None:
    problem, variables, config = network
    config = config.copy_and_resolve_references()
    config.sqs.target_bytes, config.sqs.epochs = 600, 1
    problem.tokenizer.save(str(tmp_path / "tokenizer.json"))
    sqs_jax.save(tmp_path / "dense.sqs", variables)
    config.model.weights = str(tmp_path / "dense.sqs")
    (tmp_path / "run").mkdir()
    result = run_point(config, method, tmp_path / "run")
    assert (result["budget"], result["bytes"]) == (600, None)
