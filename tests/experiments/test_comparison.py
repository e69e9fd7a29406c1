"""Tests of the comparison: budgets, settings, points and the page."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import sqs_jax
from experiments.calibration.statistics import outputs_lost
from experiments.comparison import compression_aware_training as trained
from experiments.comparison.page import lost, write_comparison
from experiments.comparison.points import Point, compare
from experiments.comparison.post_training import METHODS, PEERS, compress, file_bytes
from experiments.problem import load_problem, starting_variables
from tests.experiments.test_text import STORY, experiment


def small_network(folder: Path) -> tuple[Any, Any, Any]:
    """Return problem, weights and config of a language model with a single layer."""
    (folder / "story.txt").write_text(STORY)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "head_dim": 8}
    config = experiment(folder, "language", "qwen3", num_attention_heads=2, **size)
    config.batch_size, config.calibration.examples = 4, 8
    config.sqs.pattern, config.sqs.target_bytes = ".*(kernel|embedding)", 7_000
    problem = load_problem(config, folder)
    return problem, jax.tree.map(np.asarray, starting_variables(problem, config)), config


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return small_network(tmp_path_factory.mktemp("text"))


@pytest.mark.parametrize(
    "method", ["ours", "rtn-groups", "gptq", "obc-16", "obc-allocated", "prune-kmeans"]
)
def test_a_method_uses_most_of_its_budget_and_no_more(
    method: str, network: Any, tmp_path: Path
) -> None:
    problem, variables, config = network
    result = compress(method, problem, variables, config, tmp_path)
    assert result is not None
    params, settings = result
    size = file_bytes(params, variables, config)
    least = 0.5 if method in ("obc-16", "prune-kmeans") else 0.85  # few levels limit the size
    assert least * 7_000 < size <= 7_000
    assert (settings is None) == (method in ("ours", "obc-allocated"))
    kernel = params["layers_0"]["mlp"]["up_proj"]["kernel"]
    assert isinstance(kernel, sqs_jax.CompressedLeaf | sqs_jax.GridLeaf)
    assert not isinstance(params["norm"]["scale"], sqs_jax.CompressedLeaf | sqs_jax.GridLeaf)


def test_a_size_gets_the_best_of_all_ladders(
    network: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best candidate has the outputs nearest to the dense network's outputs."""
    problem, variables, config = network
    peer = PEERS["prune-kmeans"]
    losses, sizes = {}, {}
    for ladder in peer.ladders:
        monkeypatch.setitem(PEERS, "alone", peer._replace(ladders=(ladder,)))
        alone = compress("alone", problem, variables, config, tmp_path)
        if alone is not None:
            components = alone[1]["components"]
            losses[components] = outputs_lost(
                problem.model, alone[0], variables, problem.splits.train, config
            )
            sizes[components] = file_bytes(alone[0], variables, config)
    assert len(losses) > 1 and len(set(losses.values())) == len(losses)
    chosen = compress("prune-kmeans", problem, variables, config, tmp_path)
    assert chosen is not None
    assert chosen[1]["components"] == min(losses, key=lambda k: losses[k])
    assert max(sizes.values()) <= 7_000


def test_a_size_without_a_fitting_setting_gives_none(network: Any, tmp_path: Path) -> None:
    problem, variables, config = network
    config = config.copy_and_resolve_references()
    config.sqs.target_bytes = 1_200
    assert compress("rtn", problem, variables, config, tmp_path) is None


def test_ladders_go_from_large_files_to_small_files() -> None:
    for ladder in (ladder for peer in PEERS.values() for ladder in peer.ladders):
        first, last = ladder[0], ladder[-1]
        assert first.get("levels", 0) >= last.get("levels", 0)
        assert first.get("sparsity", 0) <= last.get("sparsity", 0) < 1
    assert len(set(METHODS)) == len(METHODS) == 18


def result(method: str, budget: int, accuracy: float | None, **scores: float) -> dict[str, Any]:
    row: dict[str, Any] = {"method": method, "budget": budget, "seed": 0, "bytes": None}
    if accuracy is not None:
        row |= {
            "bytes": budget - 10, "seconds": 1.0, "peak_bytes": 1e8, "settings": {"levels": 4},
            "bits_per_weight": dict.fromkeys(("paper", "fixed", "entropy", "file"), 2.0),
            "layer_errors": {"a/kernel": 0.25}, "scores": {"accuracy": accuracy, **scores},
        }  # fmt: skip
    return row


def test_the_page_has_a_row_per_result_with_the_best_first(tmp_path: Path) -> None:
    dense = result("dense", 0, 0.95) | {"command": "python dense"}
    results = [
        dense,
        *(
            row | {"command": f"python {row['method']}"}
            for row in (
                result("rtn", 1000, 0.90), result("ours", 1000, 0.94), result("ours", 500, 0.91),
                result("rtn", 500, None), result("ours-trained", 500, 0.93),
                result("dgms-trained", 500, 0.94),
            )
        ),
    ]  # fmt: skip
    page = write_comparison(tmp_path / "comparison.html", results).read_text()
    body = page[page.index("<tbody>") :]
    # The larger budget comes first, then the trained methods.
    names = ("ours", "rtn", "dgms-trained", "ours-trained")
    order = [body.index(f"<code>python {name}</code>") for name in names]
    assert order == sorted(order)
    assert "no setting is so small" in body and "1.00" in body and page.count('class="best"') == 3
    for name in ("untrained", "trained"):
        picture = (tmp_path / f"comparison_{name}.svg").read_text()
        assert ("dgms-trained</text>" in picture) == (name == "trained")
    before = page, picture
    again = write_comparison(tmp_path / "comparison.html", results).read_text()
    assert (again, (tmp_path / "comparison_trained.svg").read_text()) == before
    text = (tmp_path / "comparison.md").read_text()
    assert "| 1,000 | `ours` | 990 | 94.00 | 1.00 | levels 4 | 1 |" in text
    assert "| 500 | `rtn` | no setting is so small |" in text and "### Trained alike" in text
    assert lost(result("x", 1, 0.9, perplexity=11.0), result("d", 1, 0.9, perplexity=10.0)) == (
        pytest.approx(10.0)
    )


def test_seeds_share_a_row_with_a_confidence_interval(tmp_path: Path) -> None:
    """The standard deviation of 90, 91 and 92 % is 1; the interval is 4.303 / sqrt(3)."""
    results = [result("dense", 0, 0.95), result("rtn", 1000, 0.905)]
    for seed, accuracy in enumerate((0.90, 0.91, 0.92)):
        results.append(result("ours", 1000, accuracy) | {"seed": seed, "bytes": 980 + seed})
    write_comparison(tmp_path / "comparison.html", [r | {"command": "python"} for r in results])
    first, second = (tmp_path / "comparison.md").read_text().splitlines()[4:6]
    assert first == "| 1,000 | `ours` | 982 | 91.00 ± 2.48 | 4.00 | 3 seeds; levels 4 | 1 |"
    assert second.startswith("| 1,000 | `rtn` | 990 | 90.50 |")


def test_the_name_of_a_folder_identifies_the_point() -> None:
    points = [
        Point("obc-8", 900, 1), Point("codeq_mixed-trained", 0, 0, 3),
    ]  # fmt: skip
    assert [Point.named(point.name) for point in points] == points


def test_finished_points_are_not_run_again(tmp_path: Path, monkeypatch: Any) -> None:
    points = [Point("dense", 0, 0), Point("ours", 900, 0)]
    for point in points:
        (tmp_path / point.name).mkdir()
        content = json.dumps(result(point.method, point.size, 0.9))
        (tmp_path / point.name / "result.json").write_text(content)
    monkeypatch.setattr("sys.argv", ["compare", "--config=c.py", "--workdir=w"])
    assert compare(tmp_path, points, [900]).is_file()
    results = json.loads((tmp_path / "results.json").read_text())
    assert [row["method"] for row in results] == ["dense", "ours"]
    assert "--method=ours" in results[1]["command"] and "--config=c.py" in results[1]["command"]
    with pytest.raises(RuntimeError, match=r"rtn ended with 1; see .*log\.txt"):
        compare(tmp_path, [*points, Point("rtn", 900, 0)], [900])
    assert "No such file" in (tmp_path / "rtn_900_0" / "log.txt").read_text()


def test_a_size_gets_the_best_run_of_a_peer_that_fits() -> None:
    runs = [
        result("dgms-trained", 0, 0.9, nll=nll) | {"bytes": size}
        for size, nll in ((900, 0.3), (700, 0.5), (600, 0.4), (500, 0.9))
    ]
    for budget, size in ((1000, 900), (899, 600), (599, 500)):
        chosen = trained.chosen(runs, budget)
        assert (chosen["bytes"], chosen["budget"]) == (size, budget)
    assert trained.chosen(runs, 400)["bytes"] is None
