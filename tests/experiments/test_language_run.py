"""Test of a language model from a text to its file and a Hugging Face folder."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import sqs_jax
from experiments.evaluate import evaluate, predict
from experiments.export import deployed, export
from experiments.generate import generate
from experiments.scores import fingerprint
from experiments.to_huggingface import convert
from experiments.training.run import run_trainings
from tests.experiments.test_text import STORY, experiment


def test_a_language_model_is_trained_exported_and_converted(tmp_path: Path) -> None:
    (tmp_path / "story.txt").write_text(STORY)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "head_dim": 8}
    config = experiment(tmp_path, "language", "qwen3", num_attention_heads=2, **size)
    config.batch_size, config.dense.epochs, config.sqs.epochs = 4, 6, 2
    config.dense.learning_rate = 1e-2
    config.finetune, config.evaluation.average_samples = False, 0
    config.sqs.pattern, config.sqs.sparsity = ".*(kernel|embedding)", 0.5
    config.sqs.generated, config.sqs.saliency = 6, "activation"
    config.accumulate, config.model.remat = 2, True
    workdir = tmp_path / "run"
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam needs it
        trained = run_trainings(config, workdir)
        export(workdir, trained.phase, None, trained.state, trained.mean_state, config)
    scores = evaluate(workdir)
    assert scores["dense"]["perplexity"] < 60  # of 300 tokens
    assert scores["mode"]["perplexity"] == pytest.approx(np.exp(scores["mode"]["nll"]))
    assert scores["mode"]["count"] == trained.splits.holdout.units
    assert evaluate(workdir, ["mode"]) == {"mode": scores["mode"]}
    with pytest.raises(ValueError, match=r"no \['model'\]; there are \['averaged', 'dense'"):
        evaluate(workdir, ["model"])
    judged = predict(
        trained.model,
        [deployed(trained.phase, trained.state, config)],
        trained.splits.holdout,
    )
    assert scores["mode"]["fingerprint"] == fingerprint(judged.correct)
    tree = sqs_jax.load(workdir / "model.sqs")["params"]
    assert isinstance(tree["embed_tokens"]["embedding"], sqs_jax.CompressedLeaf)

    assert len(np.load(workdir / "generated.npy")) == 6
    options: Any = {"file": "model.sqs", "batch": 2, "temperature": 0.5, "seed": 1}
    result = generate(workdir, "Once", 7, **options)
    assert result["text"].startswith("Once") and len(result["text"]) > 6
    assert result["bytes"] == (workdir / "model.sqs").stat().st_size
    assert result["tokens_per_second"] > 0 and result["host_bytes"] > 1e7
    with pytest.raises(ValueError, match="longer than the context of 64"):
        generate(workdir, "Once", 64, **options)
    with pytest.raises(FileNotFoundError, match=r"has no other\.sqs"):
        generate(workdir, "Once", 7, **{**options, "file": "other.sqs"})

    convert(workdir, tmp_path / "folder")
    names = load_file(tmp_path / "folder" / "model.safetensors")
    expected = sqs_jax.materialize(tree["layers_0"]["mlp"]["up_proj"]["kernel"])
    np.testing.assert_array_equal(names["model.layers.0.mlp.up_proj.weight"], expected.T)
    assert {path.name for path in (tmp_path / "folder").iterdir()} == {
        "config.json", "model.safetensors", "tokenizer.json",
    }  # fmt: skip
    with pytest.raises(FileNotFoundError, match="holds no finished run"):
        convert(tmp_path, tmp_path / "other")
