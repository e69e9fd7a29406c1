"""Texts that a language model writes itself, to be trained on beside a text that is short."""

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.data.dataset import Dataset
from experiments.models.decoder import Decoder
from experiments.models.generation import generate_tokens
from sqs_jax.progress import track

_BATCH = 64


def with_generated(
    train: Dataset, model: Any, params: Any, count: int, seed: int, path: Path
) -> Dataset:
    """Return a dataset with sequences that a network has drawn, token by token, after its own.

    A teacher's own texts are as good as others to learn its predictions from (Liu et al. 2023,
    LLM-QAT, arXiv:2305.17888).

    Args:
      train: of sequences; they begin with the first tokens of some of these.
      model: a `Decoder`.
      params: of it.
      count: of sequences, as long as those of `train`.
      seed: of all that is drawn.
      path: .npy, where they are kept; if it is there, it is what is returned.

    Raises:
      ValueError: if the model is none that writes.
    """
    if not isinstance(model, Decoder):
        raise ValueError(
            f"config.sqs.generated is {count}, but a {type(model).__name__} writes no text: use 0, "
            "or a language model."
        )
    length = train.labels.shape[1]
    if not path.is_file():
        keys = jax.random.split(jax.random.key(seed), -(-count // _BATCH))
        chosen = np.random.default_rng(seed).integers(len(train.labels), size=(len(keys), _BATCH))
        starts = train.examples[chosen, 0]
        parts = [
            np.asarray(generate_tokens(model, params, start[:, None], length, key))
            for start, key in track(zip(starts, keys, strict=True), "writing texts", len(keys))
        ]
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            np.save(file, np.concatenate(parts)[:count])
        os.replace(part, path)
    tokens = np.load(path)
    return train._replace(
        examples=np.concatenate([train.examples, tokens[:, :-1]]),
        labels=np.concatenate([train.labels, tokens[:, 1:]]),
    )
