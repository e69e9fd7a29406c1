"""Going on with a text: against the network without a cache, and as data to train on."""

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
from experiments.models.generation import go_on
from experiments.training.synthetic_data import with_generated
from tests.experiments.language_models import CONFIGS, tokens

TOKENS = tokens("llama")


@pytest.fixture(scope="module")
def network() -> tuple[Decoder, Any]:
    model = Decoder(decoder_config(CONFIGS["llama"]))
    drawn = jax.jit(model.init)(jax.random.key(0), TOKENS)
    # far from its start, where all tokens are equally likely
    return model, jax.tree.map(lambda w: w * (1 if w.ndim == 1 else 8), drawn["params"])


def test_greedily_each_token_is_the_most_probable_one(network: tuple[Decoder, Any]) -> None:
    model, params = network
    actual = go_on(model, params, TOKENS[:, :3], 5, jax.random.key(0), temperature=0.0)
    assert actual.shape == (len(TOKENS), 8)
    np.testing.assert_array_equal(actual[:, :3], TOKENS[:, :3])
    logits: Any = model.apply({"params": params}, actual)
    np.testing.assert_array_equal(jnp.argmax(logits[:, 2:-1], -1), actual[:, 3:])


def test_draws_have_the_predicted_frequencies(network: tuple[Decoder, Any]) -> None:
    model, params = network
    prompts = jnp.tile(TOKENS[:1, :4], (4000, 1))
    actual = go_on(model, params, prompts, 1, jax.random.key(1), temperature=2.0)
    logits: Any = model.apply({"params": params}, TOKENS[:1, :4])
    expected = np.asarray(jax.nn.softmax(logits[0, -1] / 2))
    share = np.bincount(np.asarray(actual[:, -1]), minlength=expected.size) / len(prompts)
    assert (np.abs(share - expected) <= 5 * np.sqrt(expected * (1 - expected) / 4000) + 1e-3).all()


def test_written_texts_are_kept_and_follow_the_others(
    network: tuple[Decoder, Any], tmp_path: Path
) -> None:
    model, params = network
    train = Dataset(TOKENS, np.roll(TOKENS, -1, axis=1), None, None)
    path = tmp_path / "generated.npy"
    actual = with_generated(train, model, params, 5, seed=3, path=path)
    assert actual.examples.shape == (len(TOKENS) + 5, TOKENS.shape[1])
    np.testing.assert_array_equal(actual.examples[: len(TOKENS)], TOKENS)
    new, labels = actual.examples[len(TOKENS) :], actual.labels[len(TOKENS) :]
    np.testing.assert_array_equal(new[:, 1:], labels[:, :-1])
    assert set(new[:, 0]) <= set(TOKENS[:, 0]) and len(np.unique(new, axis=0)) == 5
    again = with_generated(train, model, None, 5, seed=3, path=path)
    np.testing.assert_array_equal(again.examples, actual.examples)


def test_other_networks_write_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sqs\.generated is 2, but a ConvNet writes no text"):
        model = build_model(digits.get_config().model, 10)
        with_generated(Dataset(TOKENS, TOKENS), model, {}, 2, seed=0, path=tmp_path / "x.npy")
