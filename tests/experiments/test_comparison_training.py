"""Methods that train, beside each other: by the config's loop, to a file that is told of."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import sqs_jax
from experiments import compare
from experiments.comparison import trained
from tests.experiments.test_comparison import small_network


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Any:
    problem, variables, config = small_network(tmp_path_factory.mktemp("text"))
    # two leaves: every one that is compressed makes a step longer to compile
    config.sqs.pattern = ".*(up_proj/kernel|embedding)"
    return problem, variables, config


@pytest.mark.parametrize(
    "method", ["dgms-trained", "codeq-trained", "ours-trained", "kmeans-prune-trained"]
)
def test_a_method_trains_by_the_configs_loop_and_its_file_is_told_of(
    method: str, network: Any, tmp_path: Path
) -> None:
    problem, variables, config = network
    config = config.copy_and_resolve_references()
    problem.tokenizer.save(str(tmp_path / "tokenizer.json"))
    sqs_jax.save(tmp_path / "dense.sqs", variables)
    config.model.weights, config.sqs.epochs = str(tmp_path / "dense.sqs"), 1
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam needs it
        found = compare.run_point(config, method, tmp_path / "run", 3)
    assert found["bytes"] == (tmp_path / "run" / "model.sqs").stat().st_size
    assert found["scores"]["perplexity"] == pytest.approx(np.exp(found["scores"]["nll"]))
    assert found["bits_per_weight"]["file"] < 16
    told = json.loads((tmp_path / "run" / "config.json").read_text())["sqs"]
    if method in trained.SETTINGS:
        wanted = trained.SETTINGS[method][3].fields["sqs.components"]
        assert told["components"] == found["settings"]["components"] == wanted
        penalty = found["settings"].get("penalty")
        own = penalty and penalty * problem.splits.train.units  # of a method without, the config's
        assert told["kl_weight"] == pytest.approx(own or config.sqs.kl_weight)
        assert (penalty is not None) == (method == "codeq-trained")
    else:
        assert found["bytes"] <= found["budget"] == 7_000
        assert told["start"] == ("weights" if method == "ours-trained" else "kmeans-prune")


@pytest.mark.parametrize("method", ["ours-trained", "prune-kmeans-trained", "obc-allocated"])
def test_a_method_that_makes_no_file_so_small_says_so_in_its_row(
    method: str, network: Any, tmp_path: Path
) -> None:
    problem, variables, config = network
    config = config.copy_and_resolve_references()
    config.sqs.target_bytes, config.sqs.epochs = 600, 1
    problem.tokenizer.save(str(tmp_path / "tokenizer.json"))
    sqs_jax.save(tmp_path / "dense.sqs", variables)
    config.model.weights = str(tmp_path / "dense.sqs")
    (tmp_path / "run").mkdir()
    found = compare.run_point(config, method, tmp_path / "run")
    assert (found["budget"], found["bytes"]) == (600, None)
