"""Tests of text datasets from tensorflow-datasets and from files."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath

from experiments.configs import base
from experiments.data import text_datasets
from experiments.data.question_answering import Question

_SIZES = {"train": 6, "validation": 3}
CONTEXT = "Ein Käse lag auf dem Tisch."


class Tiny(tfds.core.GeneratorBasedBuilder):
    """Small prepared dataset, whose examples a subclass defines."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = epath.Path(__file__).parent
    skip_registration = True
    features: ClassVar[Any]
    example: Any  # function of (name of the split, index)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(self.features))

    def _split_generators(self, dl_manager: object) -> dict[str, object]:
        return {name: self._generate_examples(name) for name in _SIZES}

    def _generate_examples(self, name: str) -> object:
        for i in range(_SIZES[name]):
            yield i, self.example(name, i)


class TinySentences(Tiny):
    features: ClassVar = {
        "sentence": tfds.features.Text(),
        "label": tfds.features.ClassLabel(names=["bad", "good"]),
    }

    def example(self, name: str, i: int) -> dict[str, Any]:
        return {"sentence": f"{name} {i}: schön", "label": i % 2}


class TinyQuestions(Tiny):
    features: ClassVar = {
        "id": np.str_,
        "question": tfds.features.Text(),
        "context": tfds.features.Text(),
        "answers": tfds.features.Sequence({"text": tfds.features.Text(), "answer_start": np.int32}),
    }

    def example(self, name: str, i: int) -> dict[str, Any]:
        answers = {"text": ["Käse", "Ein Käse"][: i + 1], "answer_start": [4, 0][: i + 1]}
        return {"id": f"{i}", "question": "Was?", "context": CONTEXT, "answers": answers}


class TinyTexts(Tiny):
    features: ClassVar = {"text": tfds.features.Text()}

    def example(self, name: str, i: int) -> dict[str, Any]:
        return {"text": f"{name} {i}"}


def data(name: str, folder: Path) -> Any:
    section = base.experiment().data
    section.update(name=name, directory=str(folder), test_split="validation")
    return section


def prepare(builder: Any, folder: Path) -> None:
    builder(data_dir=str(folder), file_format="array_record").download_and_prepare()


def in_order(rows: list[Any]) -> list[Any]:
    return sorted(rows)  # preparation shuffles a dataset


def test_sentences_come_from_files_or_a_prepared_dataset(tmp_path: Path) -> None:
    prepare(TinySentences, tmp_path)
    for part, (rows, labels) in zip(
        _SIZES, text_datasets.sentences(data("tiny_sentences", tmp_path)), strict=True
    ):
        expected = [(f"{part} {i}: schön", i % 2) for i in range(_SIZES[part])]
        assert in_order(list(zip(rows, labels.tolist(), strict=True))) == expected
    # Files have precedence over a prepared dataset.
    for part, label in (("train", 0), ("dev", 1)):
        (tmp_path / f"tiny_sentences_{part}.tsv").write_text(f"sentence\tlabel\nfile\t{label}\n")
    assert text_datasets.sentences(data("tiny_sentences", tmp_path))[1][0] == ["file"]


def test_questions_come_from_a_prepared_dataset(tmp_path: Path) -> None:
    prepare(TinyQuestions, tmp_path)
    train, dev = text_datasets.questions(data("tiny_questions", tmp_path))
    assert len(train) == 6
    both = [("Käse", 4), ("Ein Käse", 0)]
    assert in_order(dev) == [
        Question(str(i), "Was?", CONTEXT, both[: min(i + 1, 2)]) for i in range(3)
    ]


def test_texts_come_from_a_prepared_dataset(tmp_path: Path) -> None:
    prepare(TinyTexts, tmp_path)
    train, test = text_datasets.texts(data("tiny_texts", tmp_path))
    assert in_order(test.split("\n\n")) == [f"validation {i}" for i in range(3)]
    assert len(train.split("\n\n")) == 6


def test_an_error_for_missing_data_names_the_file_and_the_dataset(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no sentences .*none_train\.tsv.*No dataset 'non"):
        text_datasets.sentences(data("none", tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no text .*none\.txt.*download_and_prepare"):
        text_datasets.texts(data("none", tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no questions .*train-none\.json.*No dataset"):
        text_datasets.questions(data("none", tmp_path))


def test_a_dataset_without_the_features_or_damaged_is_refused(tmp_path: Path) -> None:
    prepare(TinyTexts, tmp_path)
    with pytest.raises(ValueError, match=r"lacks .*'label', 'sentence'.*needs 'train', 'val"):
        text_datasets.sentences(data("tiny_texts", tmp_path))
    damaged = next((tmp_path / "tiny_texts" / "1.0.0").glob("*train*array_record*"))
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"tiny_texts.*'train', cannot be used.*prepare it again"):
        text_datasets.texts(data("tiny_texts", tmp_path))
