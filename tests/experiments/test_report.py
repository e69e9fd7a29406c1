"""Tests of the report: valid, self-contained, deterministic and correct."""

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest

import sqs_jax
from experiments.configs import digits, digits_paper
from experiments.pages.panels import spread
from experiments.report import write_report
from sqs_jax import CompressedLeaf

VOID = {"br", "hr", "img", "input", "link", "meta", "wbr"}
ARXIV = "https://arxiv.org/abs/2510.08999"


def leaf(rng, shape, windows=1, components=4):
    values = windows * components
    codes = rng.integers(1, values + 1, shape) * (rng.random(shape) < 0.3)
    book = np.sort(rng.normal(size=values)).astype(np.float32).reshape(windows, components)
    return CompressedLeaf(codes.astype(np.uint8), book)


def describe(leaf):
    """Return the distribution of a tensor, with deployed weights as latent weights."""
    weights = np.asarray(sqs_jax.materialize(leaf)).ravel()
    counts, edges = np.histogram(weights, 20)
    kept, _ = np.histogram(weights[weights != 0], edges)
    windows, components = leaf.codebook.shape
    return {
        "edges": edges.tolist(),
        "all": counts.tolist(),
        "kept": kept.tolist(),
        "means": leaf.codebook.ravel().tolist(),
        "scales": [0.1] * leaf.codebook.size,
        "shares": [1 / components] * (windows * components),
    }


def scores(correct, file_bytes, count=540, **changes):
    return {
        "accuracy": correct / count,
        "correct": correct,
        "count": count,
        "nll": 0.1,
        "calibration_error": 0.01,
        "bytes": file_bytes,
        "passes": 1,
        **changes,
    }


def lines(phase, steps, sparsity=0.0):
    return [
        {
            "phase": phase,
            "step": step,
            "accuracy": 0.5,
            "kl_per_example": 1.0,
            "loss": 1.0 / step,
            "nll": 1.0 / step,
            "temperature": 1.0,
            "sparsity": sparsity,
        }
        for step in range(10, steps + 1, 10)
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of a synthetic finished run, whose report is `page`."""
    workdir = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    leaves = {
        "Conv_0": leaf(rng, (3, 3, 1, 8)),
        "Dense_0": leaf(rng, (40, 20), windows=3, components=8),
    }
    params = {
        name: {"kernel": kernel, "bias": np.zeros(kernel.codes.shape[-1], np.float32)}
        for name, kernel in leaves.items()
    }
    size = sqs_jax.save(workdir / "model.sqs", {"params": params}, dense_dtype="float16")
    config = digits.get_config()
    config.seed = 7
    config.data.holdout = "validation"
    evaluation = {
        "dense": scores(530, 4000),
        "finetune": scores(535, 4001),
        "mean": scores(533, 2000),
        "mode": scores(534, size),
        "averaged": scores(534, 3000, passes=8),
    }
    described = {f"{name}/kernel": describe(kernel) for name, kernel in leaves.items()}
    metrics = lines("dense", 100) + lines("finetune", 60) + lines("sqs", 60, sparsity=0.7)
    write(workdir, "config", json.loads(config.to_json_best_effort()))
    write(workdir, "evaluation", evaluation)
    write(workdir, "distributions", described)
    text = "".join(json.dumps(line) + "\n" for line in metrics)
    (workdir / "metrics.jsonl").write_text(text)
    return workdir


@pytest.fixture
def workdir(finished, tmp_path):
    """Copy of the run that a test may change."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (tmp_path / "report.html").unlink(missing_ok=True)
    return tmp_path


def read(workdir, name):
    return json.loads((workdir / f"{name}.json").read_text())


def write(workdir, name, value):
    (workdir / f"{name}.json").write_text(json.dumps(value))


class Page(HTMLParser):
    """Parsed page that checks its tags and collects ids, references and texts."""

    def __init__(self, text):
        super().__init__()
        self.source = text
        self.open, self.ids, self.references, self.text = [], [], [], {}
        self.feed(text)
        self.close()
        assert not self.open, f"unclosed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)
            self.text.setdefault(tag, []).append("")

    def handle_startendtag(self, tag, attributes):
        assert tag not in ("script", "iframe", "object"), tag
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            elif name in ("src", "href", "srcset", "data", "xlink:href"):
                self.references.append((tag, value))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data):
        for tag in set(self.open):
            self.text[tag][-1] += data.replace("\N{NO-BREAK SPACE}", " ")


def report(workdir):
    return Page(write_report(workdir).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(finished):
    return report(finished)


def test_the_headline_states_the_files_numbers(finished, page):
    weights = 3 * 3 * 1 * 8 + 8 + 40 * 20 + 20
    size = (finished / "model.sqs").stat().st_size
    (headline,) = page.text["h1"]
    assert headline == (
        f"{100 * 534 / 540:.1f} % accuracy in {size:,} bytes: {4 * weights / size:.1f} times "
        f"smaller than the dense network’s {4 * weights:,} bytes of float32, "
        f"{100 * 1 / 540:.1f} points below it."
    )
    assert "one trained on (finetuned), the better of the two" in page.text["header"][0]
    assert "Mean to mode: +0.2 points (1 image)" in page.text["main"][0]


@pytest.mark.parametrize(
    ("dense", "finetune", "words"),
    [
        (scores(534, 1), scores(530, 1), ["at the same accuracy.", "trained from scratch, the"]),
        (scores(531, 1), scores(531, 1, nll=0.2), ["0.6 points above it.", "scratch, with the"]),
        (scores(531, 1, nll=0.2), scores(531, 1), ["0.6 points above it.", "(finetuned), with"]),
    ],
)
def test_the_reference_is_the_better_dense_network(workdir, dense, finetune, words):
    evaluation = read(workdir, "evaluation")
    write(workdir, "evaluation", evaluation | {"dense": dense, "finetune": finetune})
    top = report(workdir).text["header"][0]
    assert all(word in top for word in words), top


def test_the_tables_list_every_leaf_and_network(finished, page):
    networks, leaves = page.text["table"][:2]
    size = sqs_jax.inspect(finished / "model.sqs")
    for leaf in size.leaves:
        assert leaf.path in leaves
        assert f"{leaf.file_bits_per_weight:.3f}" in leaves
    rest = size.file_bytes - sum(leaf.file_bits for leaf in size.leaves) // 8
    assert f"header and index{rest:,}" in leaves
    for result in read(finished, "evaluation").values():
        assert f"{result['correct']}/540" in networks
        assert f"{result['bytes']:,}" in networks


def test_the_page_is_self_contained_and_references_have_targets(page):
    links = [value for tag, value in page.references if tag == "a"]
    assert links == [ARXIV]
    targets = {value for tag, value in page.references if tag != "a"}
    targets = {value for value in targets if not value.startswith("data:")}
    targets |= set(re.findall(r"url\(([^)]*)\)", page.source))
    assert targets and targets == {f"#{name}" for name in page.ids}
    hosts = set(re.findall(r"https?://[^'\")\s<>]+", page.source))
    assert hosts <= {ARXIV, "http://www.w3.org/2000/svg"}
    assert "@import" not in page.source


def test_ids_are_unique(page):
    assert page.ids and len(page.ids) == len(set(page.ids))


def test_equal_files_give_equal_bytes(finished, page):
    again = write_report(finished).read_bytes()
    assert again == page.source.encode()
    assert len(again) < 400_000
    assert not list(finished.glob("*.part"))


def test_validation_numbers_have_a_notice(workdir, page):
    assert "Validation, not test." in page.text["header"][0]
    config = read(workdir, "config")
    config["data"]["holdout"] = "test"
    write(workdir, "config", config)
    top = report(workdir).text["header"][0]
    assert "Validation" not in top and "540 test images" in top


def test_the_command_reproduces_the_config(finished, page):
    (command,) = page.text["pre"]
    assert command.replace(" \\\n   ", "") == (
        "python -m experiments.train --config=experiments/configs/digits.py --config.seed=7 "
        f"--config.data.holdout=validation --workdir=runs/{finished.name}"
    )


def test_the_command_uses_the_nearest_config_and_lists_unknown_fields(workdir):
    config = json.loads(digits_paper.get_config().to_json_best_effort())
    config["model"]["features"] = [8, 16]
    config["invented"] = 1
    write(workdir, "config", config)
    page = report(workdir)
    assert "digits_paper.py \\\n    '--config.model.features=(8, 16)' \\\n" in page.text["pre"][0]
    assert "the fields that differ: invented." in page.text["section"][-1]


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("config.json", "experiments.train"),
        ("metrics.jsonl", "experiments.train"),
        ("model.sqs", "experiments.train"),
        ("distributions.json", "experiments.train"),
        ("evaluation.json", "experiments.evaluate"),
    ],
)
def test_the_error_of_a_missing_file_names_the_command(workdir, name, remedy):
    (workdir / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"has no {name}.*python -m {remedy}"):
        write_report(workdir)
    assert not (workdir / "report.html").exists()


def test_the_error_of_a_damaged_file_names_the_file(workdir):
    with open(workdir / "metrics.jsonl", "a") as log:
        log.write('{"phase": "sq')
    with pytest.raises(ValueError, match=r"metrics\.jsonl is damaged.*experiments\.train"):
        write_report(workdir)


def test_networks_without_scores_are_refused(workdir):
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    (workdir / "evaluation.json").write_text(json.dumps({"mode": evaluation["mode"]}))
    with pytest.raises(ValueError, match=r"has no dense, mean\. Evaluate .*experiments\.evaluate"):
        write_report(workdir)


def test_labels_are_spread_with_the_least_displacement():
    np.testing.assert_allclose(
        spread(np.array([10.0, 80, 90, 200]), 30, 0, 300), [10, 70, 100, 200]
    )
    crowded = spread(np.array([5.0, 5, 6, 290, 299]), 40, 8, 292)
    assert np.diff(crowded).min() >= 40 and crowded[0] >= 8 and crowded[-1] <= 292
