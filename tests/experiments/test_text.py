"""Tests of text data: windows, labels, tokenizers, and loading of problems."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from experiments.configs import base
from experiments.data import text
from experiments.importers import huggingface
from experiments.models.decoder import Decoder
from experiments.models.verbalizer import VerbalizerClassifier
from experiments.problem import TOKENIZER, described, load_problem
from tests.experiments.language_models import CONFIGS, tokens, write_folder

STORY = "One day, a cat sat on a mat.\n\n" * 40


@pytest.mark.parametrize("stride", [16, 8, 5])
@pytest.mark.parametrize("first", [None, 1])
def test_windows_predict_every_token_once(stride: int, first: int | None) -> None:
    ids = np.random.default_rng(0).permutation(200) + 10  # distinct tokens identify their position
    examples, labels = text.windows(ids, 16, stride, first)
    assert examples.shape == labels.shape and examples.shape[1] == 16
    predicted = labels[labels >= 0]
    start = 0 if first else 1
    np.testing.assert_array_equal(predicted, ids[start : start + len(predicted)])
    assert len(predicted) > 200 - 16 - stride
    scored = labels[:, :-1] >= 0
    # A label is the next token.
    np.testing.assert_array_equal(examples[:, 1:][scored], labels[:, :-1][scored])
    assert (examples[:, 0] == 1).all() if first else True
    assert ((labels >= 0).sum(1)[1:] == stride).all()


def test_a_text_shorter_than_a_window_is_refused() -> None:
    with pytest.raises(ValueError, match="10 tokens are less than one sequence of 16"):
        text.windows(np.arange(10), 16, 16, 1)


@pytest.mark.parametrize("stride", [0, -3, 17])
def test_a_stride_outside_the_window_is_refused(stride: int) -> None:
    with pytest.raises(ValueError, match=rf"stride is {stride}; it must lie in \[1, 16\]"):
        text.windows(np.arange(100), 16, stride, 1)


def test_a_text_is_split_at_a_paragraph(tmp_path: Path) -> None:
    (tmp_path / "story.txt").write_text(STORY)
    train, test = text.read_texts(tmp_path, "story")
    assert train + test == STORY and train.endswith("\n\n") and 0 < len(test) <= len(STORY) / 10
    (tmp_path / "story_train.txt").write_text("a")
    (tmp_path / "story_test.txt").write_text("b")
    assert text.read_texts(tmp_path, "story") == ("a", "b")


def test_unusable_texts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no text .*story\.txt, nor story_train\.txt"):
        text.read_texts(tmp_path, "story")
    (tmp_path / "story.txt").write_bytes(b"\xff\xfe\xfa" * 100)
    with pytest.raises(ValueError, match="no text in UTF-8"):
        text.read_texts(tmp_path, "story")
    (tmp_path / "story.txt").write_text(" \n")
    with pytest.raises(ValueError, match="is empty"):
        text.read_texts(tmp_path, "story")
    (tmp_path / "story.txt").write_text("a word " * 100)
    with pytest.raises(ValueError, match="no blank line in its last tenth"):
        text.read_texts(tmp_path, "story")


def test_sentences_are_read_in_either_order_of_columns(tmp_path: Path) -> None:
    path = tmp_path / "s.tsv"
    path.write_text('label\tsentence\n1\tIt is "good\n0\tbad\n')
    sentences, labels = text.read_sentences(path)
    assert sentences == ['It is "good', "bad"] and labels.tolist() == [1, 0]
    path.write_text("content\tlabel\nfine\t1\n")
    assert text.read_sentences(path)[0] == ["fine"]
    path.write_text("label\tsentence\n1\tgood\nx\tbad\n1\n")
    with pytest.raises(ValueError, match=r"2 lines .* 1 that are: line 3: .*; line 4"):
        text.read_sentences(path)
    path.write_text("a\tb\n")
    with pytest.raises(ValueError, match="needs the columns label and sentence"):
        text.read_sentences(path)


def test_long_sequences_keep_their_last_token() -> None:
    padded = text.padded([[1, 2, 3], [1, 4, 5, 6, 7, 2]], 4, 0)
    assert padded.tolist() == [[1, 2, 3, 0], [1, 4, 5, 2]]


def test_a_trained_tokenizer_decodes_any_text_exactly() -> None:
    tokenizer = text.train_tokenizer(STORY, 280)
    original = "A cat,\n\n naïve ☃ "
    ids = tokenizer.encode(original).ids
    assert ids[0] == tokenizer.token_to_id("<s>")
    assert tokenizer.decode(ids) == original and tokenizer.get_vocab_size() <= 280
    again = text.train_tokenizer(STORY, 280)
    assert again.to_str() == tokenizer.to_str()


def test_a_verbalizers_logits_are_the_decoders_after_the_text() -> None:
    decoder = Decoder(huggingface.decoder_config(CONFIGS["llama"]))
    ids = tokens("llama")
    ids[0, 30:] = 0
    variables = jax.jit(decoder.init)(jax.random.key(0), ids)
    model = VerbalizerClassifier(decoder, (5, 9), padding=0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), ids)
    assert jax.tree.structure(shapes) == jax.tree.structure(variables)
    all_logits = jax.jit(decoder.apply)(variables, ids)
    logits = jax.jit(model.apply)(variables, ids)
    expected = np.stack([all_logits[0, 29, [5, 9]], all_logits[1, 47, [5, 9]]])
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def experiment(directory: Path, kind: str, model: str, **shape: Any) -> Any:
    config = base.experiment()
    config.data.kind, config.data.name, config.data.directory = kind, "story", str(directory)
    config.data.length = 16
    with config.unlocked():
        config.model.shape = CONFIGS[model] | {"vocab_size": 300} | shape
    return config


def test_sentences_are_classified_by_a_head_or_a_verbalizer(tmp_path: Path) -> None:
    rows = "".join(f"{i % 2}\tthe cat is {('bad', 'good')[i % 2]}\n" for i in range(40))
    for part in ("train", "dev"):
        (tmp_path / f"story_{part}.tsv").write_text("label\tsentence\n" + rows)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "is", "bad", "good"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    config = experiment(tmp_path, "sentences", "bert_classifier")
    config.data.tokenizer = str(tmp_path / "vocab.txt")
    model, splits, *_ = load_problem(config, tmp_path)
    assert splits.train.examples[0].tolist() == [2, 5, 6, 7, 8, 3] + [0] * 10
    assert splits.num_classes == 2 and splits.holdout.labels.tolist() == [0, 1] * 20
    example = splits.train.inputs(slice(4))
    logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), example)
    assert logits.shape == (4, 2)

    config = experiment(tmp_path, "sentences", "llama")
    config.data.words = (" bad", " good")
    model, splits, tokenizer, _ = load_problem(config, tmp_path)
    prompt = tokenizer.decode(splits.train.examples[0].tolist())
    assert prompt.startswith("the cat is bad It was")
    config.data.words = (" bad", " splendid")
    with pytest.raises(ValueError, match="needs a word that is one token"):
        load_problem(config, tmp_path)
    with pytest.raises(ValueError, match=r"no token \[SEP\], which BERT needs"):
        load_problem(experiment(tmp_path, "sentences", "bert_classifier"), tmp_path)


def test_a_language_models_folder_determines_its_architecture(tmp_path: Path) -> None:
    (tmp_path / "story.txt").write_text(STORY)
    config = experiment(tmp_path, "language", "llama")
    model, splits, tokenizer, _ = load_problem(config, tmp_path)
    assert model.config.heads == 4 and splits.train.units == splits.train.labels.size
    with pytest.raises(ValueError, match=r"length is 65, but the model's context is 64"):
        config.data.length = 65
        load_problem(config, tmp_path)
    write_folder(tmp_path / "model", "qwen2")
    config = experiment(tmp_path, "language", "llama")
    config.model.weights = str(tmp_path / "model")
    assert described(config).model.shape.model_type == "qwen2"
    with pytest.raises(FileNotFoundError, match=r"model has no tokenizer\.json; name the one"):
        load_problem(described(config), tmp_path)
    (tmp_path / "run").mkdir()
    tokenizer.save(str(tmp_path / "run" / TOKENIZER))
    with pytest.raises(ValueError, match=r"tokens, the model an embedding of 96"):
        load_problem(described(config), tmp_path / "run")
    config.data.kind = "sounds"
    with pytest.raises(ValueError, match="it must be 'images', 'language'"):
        load_problem(described(config), tmp_path)
    empty = base.experiment()
    empty.data.kind = "language"
    with pytest.raises(ValueError, match=r"config\.model\.shape is empty"):
        load_problem(empty, tmp_path)
