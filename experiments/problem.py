"""What an experiment is about: a network, its data, and the weights that it starts from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments import data
from experiments.data import Dataset, Splits, question_answering, text, text_datasets
from experiments.importers import huggingface, import_weights, language_model
from experiments.models import build_model
from experiments.models.decoder import Decoder, DecoderConfig
from experiments.models.encoder import Encoder, EncoderConfig
from experiments.models.verbalizer import VerbalizerClassifier
from sqs_jax.progress import progress

TOKENIZER = "tokenizer.json"


class Problem(NamedTuple):
    """A network and its data.

    Attributes:
      model: the network.
      splits: what it is trained and evaluated on.
      tokenizer: tokenizers.Tokenizer; None for images.
      score: (probabilities of all held-out examples) -> metrics of the task's own; or None.
    """

    model: nn.Module
    splits: Splits
    tokenizer: Any = None
    score: Callable[[np.ndarray], dict[str, float]] | None = None


def described(config: Any) -> Any:
    """Return the config with the shape of its language model, which a folder's config.json says."""
    if config.data.kind == "images" or not config.model.weights:
        return config
    path = Path(config.model.weights)
    found = config.copy_and_resolve_references()
    if path.suffix != ".sqs":
        with found.unlocked():
            found.model.shape = language_model.open_language_model(path).config
    return found


@progress("reading the data")
def load_problem(config: Any, workdir: Path) -> Problem:
    """Return what an experiment is about.

    Args:
      config: the experiment, `described`.
      workdir: of the run; a tokenizer in it is the run's.

    Raises:
      FileNotFoundError, ValueError: for data, a model or a tokenizer that is not there, cannot be
        read, or does not fit the others.
    """
    if config.data.kind == "images":
        splits = data.load(config.data, config.seed)
        return Problem(build_model(config.model, splits.num_classes), splits)
    shape = config.model.shape.to_dict()
    if not shape:
        raise ValueError(
            "config.model.shape is empty; give the fields of a config.json, or a folder of Hugging "
            "Face as config.model.weights."
        )
    loaders = {"language": _texts, "sentences": _sentences, "answers": _answers}
    load = loaders.get(config.data.kind)
    if load is None:
        raise ValueError(
            f"config.data.kind is {config.data.kind!r}; it must be 'images', 'language', "
            "'sentences' or 'answers'."
        )
    context = shape.get("max_position_embeddings", 0)
    if config.data.length > context:
        raise ValueError(
            f"config.data.length is {config.data.length}, but the model's context is {context} "
            "tokens; give a smaller length."
        )
    return load(config, workdir, shape)


@progress("reading the weights")
def initial_weights(problem: Problem, config: Any) -> Any:
    """Return the variables that `config.model.weights` holds, on the host or still in their files.

    Raises:
      FileNotFoundError, ModuleNotFoundError, ValueError: if they are not there or do not fit.
    """
    path, model = Path(config.model.weights), problem.model
    example = problem.splits.train.inputs(slice(1))
    if config.data.kind == "images" or path.suffix == ".sqs":
        return import_weights(path, model, example)
    init = jax.jit(lambda: model.init(jax.random.key(config.seed), jnp.asarray(example)))
    source = language_model.open_language_model(path)
    return {"params": language_model.weights_of(source, jax.eval_shape(init)["params"], fresh=init)}


def starting_variables(problem: Problem, config: Any) -> Any:
    """Return the weights that a config names, or, if it names none, such as its seed draws."""
    if config.model.weights:
        return initial_weights(problem, config)
    example = jnp.asarray(problem.splits.train.inputs(slice(1)))
    drawn = jax.jit(problem.model.init)(jax.random.key(config.seed), example)
    return jax.tree.map(np.asarray, drawn)


def _texts(config: Any, workdir: Path, shape: dict[str, Any]) -> Problem:
    """Load a text, of which each token is predicted from those before it."""
    train, test = text_datasets.texts(config.data)
    if config.data.holdout == "validation":
        train, test = text.cut(train)
    tokenizer = _tokenizer(config, workdir, train)
    start = next(iter(tokenizer.encode("").ids), None)
    length = config.data.length

    def dataset(part: str, stride: int) -> Dataset:
        tokens = np.asarray(tokenizer.encode(part, add_special_tokens=False).ids)
        return Dataset(*text.windows(tokens, length, stride, start), None, None)

    splits = Splits(
        dataset(train, length), dataset(test, config.data.stride or length), shape["vocab_size"]
    )
    return Problem(Decoder(_decoder(shape), **_options(config)), splits, tokenizer)


def _sentences(config: Any, workdir: Path, shape: dict[str, Any]) -> Problem:
    """Load sentences with labels: for a head, or for words that a language model may go on with."""
    parts = list(text_datasets.sentences(config.data))
    if config.data.holdout == "validation":
        sentences, labels = parts[0]
        cut = len(labels) - len(labels) // 10
        parts = [(sentences[:cut], labels[:cut]), (sentences[cut:], labels[cut:])]
    tokenizer = _tokenizer(config, workdir, "\n".join(parts[0][0]))
    classes = int(max(labels.max() for _, labels in parts)) + 1
    encoder = shape["model_type"] == "bert"
    padding = shape.get("pad_token_id") or 0

    def dataset(sentences: list[str], labels: np.ndarray) -> Dataset:
        prompts = sentences if encoder else [config.data.prompt.format(x) for x in sentences]
        encoded = [each.ids for each in tokenizer.encode_batch(prompts)]
        return Dataset(text.padded(encoded, config.data.length, padding), labels, None, None)

    train, holdout = (dataset(*part) for part in parts)
    splits = Splits(train, holdout, classes)
    if encoder:
        found = _encoder(shape, tokenizer)
        return Problem(Encoder(found, classes, **_options(config)), splits, tokenizer)
    words = [tokenizer.encode(word, add_special_tokens=False).ids for word in config.data.words]
    if len(words) != classes or any(len(ids) != 1 for ids in words):
        raise ValueError(
            f"config.data.words is {config.data.words}, which are the tokens {words}; each of the "
            f"{classes} classes needs a word that is one token."
        )
    decoder = Decoder(_decoder(shape), **_options(config))
    return Problem(
        VerbalizerClassifier(decoder, tuple(ids[0] for ids in words), padding), splits, tokenizer
    )


def _answers(config: Any, workdir: Path, shape: dict[str, Any]) -> Problem:
    """Load questions whose answers stand in a text, for BERT."""
    if shape["model_type"] != "bert":
        raise ValueError(f"config.data.kind 'answers' is for 'bert', not {shape['model_type']!r}.")
    train, holdout = text_datasets.questions(config.data)
    if config.data.holdout == "validation":
        cut = len(train) - len(train) // 10
        train, holdout = train[:cut], train[cut:]
    tokenizer = _tokenizer(config, workdir, "\n".join(q.context for q in train))
    length = config.data.length

    def features(questions: list[question_answering.Question]) -> question_answering.Features:
        stride, padding = config.data.stride or length // 3, shape.get("pad_token_id") or 0
        return question_answering.encode(questions, tokenizer, length, stride, padding)

    asked = features(holdout)
    first, last = (Dataset(x.tokens, x.labels, None, None) for x in (features(train), asked))
    splits = Splits(first, last, num_classes=length)
    encoder = _encoder(shape, tokenizer)

    def score(probabilities: np.ndarray) -> dict[str, float]:
        return question_answering.score(
            holdout, question_answering.best_answers(holdout, asked, probabilities)
        )

    return Problem(Encoder(encoder, None, **_options(config)), splits, tokenizer, score)


def _decoder(shape: dict[str, Any]) -> DecoderConfig:
    huggingface.prefix_of(shape)
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


def _tokenizer(config: Any, workdir: Path, train: str) -> Any:
    """Return the run's tokenizer: its own, the named one, the weights', or a trained one."""
    weights, named = config.model.weights, config.data.tokenizer
    folder = Path(weights).parent if weights.endswith(".sqs") else Path(weights)  # a run's file
    if (workdir / TOKENIZER).is_file():
        found = language_model.read_tokenizer(workdir / TOKENIZER)
    elif named:
        found = language_model.read_tokenizer(Path(named))
    elif weights and (folder / TOKENIZER).is_file():
        found = language_model.read_tokenizer(folder / TOKENIZER)
    elif weights:  # which know one tokenizer's tokens, and no other's
        raise FileNotFoundError(
            f"{folder} has no {TOKENIZER}; name the one it was trained with, as "
            "config.data.tokenizer."
        )
    else:
        found = text.train_tokenizer(train, config.model.shape.vocab_size)
    size, room = found.get_vocab_size(), config.model.shape.vocab_size
    if size > room:
        raise ValueError(
            f"The tokenizer has {size} tokens, the model an embedding of {room}: they do not "
            "belong together. config.data.tokenizer names another."
        )
    return found
