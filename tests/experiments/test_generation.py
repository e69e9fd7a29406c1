"""Tests of generation without a cache as reference, and as training data."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.configs import digits
from experiments.data import Dataset
from experiments.importers.huggingface import decoder_config
from experiments.models import build_model
from experiments.models.decoder import Decoder
from experiments.models.generation import generate_tokens
from experiments.training.generated import with_generated
from tests.experiments.language_models import CONFIGS, tokens

TOKENS = tokens("llama")


@pytest.fixture(scope="module")
def network() -> tuple[Decoder, Any]:
    model = Decoder(decoder_config(CONFIGS["llama"]))
    initial = jax.jit(model.init)(jax.random.key(0), TOKENS)
    # Initial weights give nearly equal logits, so that the weights are enlarged.
    return model, jax.tree.map(lambda w: w * (1 if w.ndim == 1 else 8), initial["params"])


def test_greedy_generation_chooses_the_most_probable_tokens(network: tuple[Decoder, Any]) -> None:
    model, params = network
    generated = generate_tokens(model, params, TOKENS[:, :3], 5, jax.random.key(0), temperature=0.0)
    assert generated.shape == (len(TOKENS), 8)
    np.testing.assert_array_equal(generated[:, :3], TOKENS[:, :3])
    logits: Any = model.apply({"params": params}, generated)
    np.testing.assert_array_equal(jnp.argmax(logits[:, 2:-1], -1), generated[:, 3:])


def test_draws_have_the_predicted_frequencies(network: tuple[Decoder, Any]) -> None:
    model, params = network
    prompts = jnp.tile(TOKENS[:1, :4], (4000, 1))
    generated = generate_tokens(model, params, prompts, 1, jax.random.key(1), temperature=2.0)
    logits: Any = model.apply({"params": params}, TOKENS[:1, :4])
    expected = np.asarray(jax.nn.softmax(logits[0, -1] / 2))
    share = np.bincount(np.asarray(generated[:, -1]), minlength=expected.size) / len(prompts)
    assert (np.abs(share - expected) <= 5 * np.sqrt(expected * (1 - expected) / 4000) + 1e-3).all()


def test_generated_texts_are_cached_and_appended(
    network: tuple[Decoder, Any], tmp_path: Path
) -> None:
    model, params = network
    train = Dataset(TOKENS, np.roll(TOKENS, -1, axis=1), None, None)
    path = tmp_path / "generated.npy"
    extended = with_generated(train, model, params, 5, seed=3, path=path)
    assert extended.examples.shape == (len(TOKENS) + 5, TOKENS.shape[1])
    np.testing.assert_array_equal(extended.examples[: len(TOKENS)], TOKENS)
    new, labels = extended.examples[len(TOKENS) :], extended.labels[len(TOKENS) :]
    np.testing.assert_array_equal(new[:, 1:], labels[:, :-1])
    assert set(new[:, 0]) <= set(TOKENS[:, 0]) and len(np.unique(new, axis=0)) == 5
    again = with_generated(train, model, None, 5, seed=3, path=path)
    np.testing.assert_array_equal(again.examples, extended.examples)


def test_networks_that_are_no_decoder_cannot_generate(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sqs\.generated is 2, but a ConvNet writes no text"):
        model = build_model(digits.get_config().model, 10)
        with_generated(Dataset(TOKENS, TOKENS), model, {}, 2, seed=0, path=tmp_path / "x.npy")
