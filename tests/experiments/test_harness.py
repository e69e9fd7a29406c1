"""Tests of the lm-eval adapter: likelihoods, answers and a local task."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sqs_jax
from experiments.configs import base
from experiments.data import text
from experiments.importers.huggingface import decoder_config
from experiments.language_run import LanguageRun
from experiments.models.decoder import Decoder
from experiments.models.generation import generate_tokens
from experiments.models.lm_eval_adapter import HarnessModel
from experiments.problem import TOKENIZER
from experiments.training.workdir import claim_workdir
from tests.experiments.language_models import CONFIGS
from tests.experiments.test_text import STORY

SHAPE = CONFIGS["llama"] | {"vocab_size": 300}
TASK = """
task: cats
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{begin}}}}"
doc_to_choice: "{{{{ends}}}}"
doc_to_target: label
metric_list: [{{metric: acc}}]
"""


@pytest.fixture(scope="module")
def run() -> LanguageRun:
    model = Decoder(decoder_config(SHAPE))
    initial = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))
    # Initial weights give nearly equal logits, so that the weights are enlarged.
    params = jax.tree.map(lambda w: w * (1 if w.ndim == 1 else 8), initial["params"])
    config = base.experiment()
    config.data.kind = "language"
    with config.unlocked():
        config.model.shape = SHAPE
    return LanguageRun(model, text.train_tokenizer(STORY, 300), params, config)


def log_probabilities(run: LanguageRun, tokens: list[int]) -> np.ndarray:
    """Return the log-probability of each token after the first."""
    logits: Any = run.model.apply({"params": run.params}, jnp.asarray([tokens[:-1]]))
    log_softmax = jax.nn.log_softmax(logits)[0]
    return np.asarray(log_softmax[jnp.arange(len(tokens) - 1), jnp.asarray(tokens[1:])])


def requests(*arguments: Any) -> list[Any]:
    return [SimpleNamespace(args=args) for args in arguments]


def test_likelihoods_are_those_of_the_continuations(run: LanguageRun) -> None:
    judge = HarnessModel(run, batch=2)
    pairs = [("One day, a cat", " sat on a mat"), ("", "a mat"), ("a cat sat", " on"), ("a", " b")]
    results = judge.loglikelihood(requests(*pairs), disable_tqdm=True)
    for (begin, end), (total, _) in zip(pairs, results, strict=True):
        before = judge.tok_encode(begin) or [judge.eot_token_id]
        whole = judge.tok_encode(begin + end) if begin else before + judge.tok_encode(end)
        before = judge.begin + before if begin else before
        whole = judge.begin + whole if begin else whole
        expected = log_probabilities(run, whole)[len(before) - 1 :].sum()
        assert total == pytest.approx(expected, rel=1e-4)
    # Only the model's own greedy continuation is greedy.
    begin = judge.tok_encode("One day")
    prompt = jnp.asarray([judge.begin + begin])
    whole = generate_tokens(run.model, run.params, prompt, 4, jax.random.key(0), temperature=0.0)
    generated = np.asarray(whole)[0, prompt.shape[1] :].tolist()
    other = [(generated[0] + 1) % 300, *generated[1:]]
    continuations = [(None, begin, generated), (None, begin, other)]
    assert [greedy for _, greedy in judge._loglikelihood_tokens(continuations)] == [True, False]


def test_a_long_text_is_scored_token_by_token_once(run: LanguageRun) -> None:
    judge = HarnessModel(run, batch=4)
    tokens = judge.tok_encode(STORY[:700])
    context = run.model.config.context
    assert len(tokens) > 2 * context
    (total,) = judge.loglikelihood_rolling(requests((STORY[:700],)))
    first = [judge.eot_token_id, *tokens[: context - 1]]
    assert total < log_probabilities(run, first).sum() < 0
    (short,) = judge.loglikelihood_rolling(requests((STORY[:40],)))
    whole = [judge.eot_token_id, *judge.tok_encode(STORY[:40])]
    assert short == pytest.approx(float(log_probabilities(run, whole).sum()), rel=1e-4)


def test_answers_end_at_the_stop_string(run: LanguageRun) -> None:
    judge = HarnessModel(run, batch=1)
    options = {"until": [], "max_gen_toks": 12}
    (whole,) = judge.generate_until(requests(("One day", options)))
    end = whole[len(whole) // 2 :][:2]
    (cut,) = judge.generate_until(requests(("One day", {**options, "until": [end]})))
    assert cut == whole.split(end)[0]


def test_the_command_runs_a_local_task_on_a_compressed_model(
    run: LanguageRun, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    claim_workdir(workdir, run.config)
    run.tokenizer.save(str(workdir / TOKENIZER))
    sqs_jax.save(workdir / "model.sqs", {"params": jax.tree.map(np.asarray, run.params)})
    examples = [{"begin": "One day, a", "ends": [" cat", " mat"], "label": i % 2} for i in range(4)]
    data = tmp_path / "cats.json"
    data.write_text("\n".join(map(json.dumps, examples)))
    (tmp_path / "cats.yaml").write_text(TASK.format(data=data))
    command = [sys.executable, "-m", "experiments.harness", f"--workdir={workdir}"]
    command += ["--tasks=cats", f"--include={tmp_path}"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **offline})
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = json.loads((workdir / "harness_model.json").read_text())
    assert metrics["cats"]["acc,none"] == 0.5  # the same question has either label twice
    assert "cats" in done.stdout
    refused = subprocess.run([*command, "--tasks=dogs"], capture_output=True, text=True)
    assert refused.returncode and "knows no task dogs" in refused.stderr
