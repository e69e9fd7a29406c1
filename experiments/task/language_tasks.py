"""Language tasks: next tokens, labels of sentences, answers to questions."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.data import Dataset, Splits, question_answering, text, text_datasets
from experiments.importers import huggingface
from experiments.models.decoder import Decoder, DecoderConfig
from experiments.models.encoder import Encoder, EncoderConfig
from experiments.models.verbalizer import VerbalizerClassifier
from experiments.task.task import Task
from experiments.task.tokenizer import load_tokenizer


def load_texts(config: Any, workdir: Path, shape: dict[str, Any]) -> Task:
    """Load a text and a decoder, which predicts each token from the previous tokens.

    Args:
      config: Config of the experiment.
      workdir: Folder of the run.
      shape: Fields of config.json of the model.
    """
    train, test = text_datasets.texts(config.data)
    if config.data.holdout == "validation":
        train, test = text.cut(train)
    tokenizer = load_tokenizer(config, workdir, train)
    start = next(iter(tokenizer.encode("").ids), None)
    length = config.data.length

    def dataset(part: str, stride: int) -> Dataset:
        tokens = np.asarray(tokenizer.encode(part, add_special_tokens=False).ids)
        return Dataset(*text.windows(tokens, length, stride, start), None, None)

    splits = Splits(
        dataset(train, length), dataset(test, config.data.stride or length), shape["vocab_size"]
    )
    return Task(Decoder(_decoder(shape), **_options(config)), splits, tokenizer)


def load_sentences(config: Any, workdir: Path, shape: dict[str, Any]) -> Task:
    """Load labeled sentences, for an encoder or for the next word of a decoder.

    Arguments are those of `load_texts`.
    """
    parts = list(text_datasets.sentences(config.data))
    if config.data.holdout == "validation":
        sentences, labels = parts[0]
        cut = len(labels) - len(labels) // 10
        parts = [(sentences[:cut], labels[:cut]), (sentences[cut:], labels[cut:])]
    tokenizer = load_tokenizer(config, workdir, "\n".join(parts[0][0]))
    classes = int(max(labels.max() for _, labels in parts)) + 1
    encoder = shape["model_type"] == "bert"
    padding = shape.get("pad_token_id") or 0

    def dataset(sentences: list[str], labels: np.ndarray) -> Dataset:
        prompts = sentences if encoder else [config.data.prompt.format(x) for x in sentences]
        encoded = [encoding.ids for encoding in tokenizer.encode_batch(prompts)]
        return Dataset(text.padded(encoded, config.data.length, padding), labels, None, None)

    train, holdout = (dataset(*part) for part in parts)
    splits = Splits(train, holdout, classes)
    if encoder:
        encoder_config = _encoder(shape, tokenizer)
        return Task(Encoder(encoder_config, classes, **_options(config)), splits, tokenizer)
    words = [tokenizer.encode(word, add_special_tokens=False).ids for word in config.data.words]
    if len(words) != classes or any(len(ids) != 1 for ids in words):
        raise ValueError(
            f"config.data.words is {config.data.words}, which are the tokens {words}; each of the "
            f"{classes} classes needs a word that is one token."
        )
    decoder = Decoder(_decoder(shape), **_options(config))
    return Task(
        VerbalizerClassifier(decoder, tuple(ids[0] for ids in words), padding), splits, tokenizer
    )


def load_answers(config: Any, workdir: Path, shape: dict[str, Any]) -> Task:
    """Load questions and texts with their answers, for a BERT that points at the answer.

    Arguments are those of `load_texts`.
    """
    if shape["model_type"] != "bert":
        raise ValueError(f"config.data.kind 'answers' is for 'bert', not {shape['model_type']!r}.")
    train, holdout = text_datasets.questions(config.data)
    if config.data.holdout == "validation":
        cut = len(train) - len(train) // 10
        train, holdout = train[:cut], train[cut:]
    tokenizer = load_tokenizer(config, workdir, "\n".join(q.context for q in train))
    length = config.data.length

    def features(questions: list[question_answering.Question]) -> question_answering.Features:
        stride, padding = config.data.stride or length // 3, shape.get("pad_token_id") or 0
        return question_answering.encode(questions, tokenizer, length, stride, padding)

    holdout_features = features(holdout)
    train_part, holdout_part = (
        Dataset(x.tokens, x.labels, None, None) for x in (features(train), holdout_features)
    )
    splits = Splits(train_part, holdout_part, num_classes=length)
    encoder = _encoder(shape, tokenizer)

    def score(probabilities: np.ndarray) -> dict[str, float]:
        best = question_answering.best_answers(holdout, holdout_features, probabilities)
        return question_answering.score(holdout, best)

    return Task(Encoder(encoder, None, **_options(config)), splits, tokenizer, score)


def _decoder(shape: dict[str, Any]) -> DecoderConfig:
    huggingface.prefix_of(shape)  # raises for other architectures
    return huggingface.decoder_config(shape)


def _encoder(shape: dict[str, Any], tokenizer: Any) -> EncoderConfig:
    separator = tokenizer.token_to_id("[SEP]")
    if separator is None:
        raise ValueError(
            "The tokenizer has no token [SEP], which BERT needs; config.data.tokenizer names "
            "another, such as a vocab.txt of WordPiece."
        )
    return huggingface.encoder_config(shape, separator)


def _options(config: Any) -> dict[str, Any]:
    return {"dtype": jnp.dtype(config.model.dtype), "remat": config.model.remat}
