"""Texts, sentences and questions from files, or else from tensorflow-datasets.

`config.data.name` is the name in tensorflow-datasets, such as "glue/sst2" or "squad/v1.1";
`config.data.directory` is its data folder, and `config.data.test_split` the part for evaluation,
often "validation".
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data import question_answering, text, tfds


def texts(data: Any) -> tuple[str, str]:
    """Return (train, test) texts.

    Files are those of `experiments.data.text.read_texts`; a dataset needs the feature "text".

    Args:
      data: `config.data`.

    Raises:
      FileNotFoundError: If there are neither files nor a prepared dataset.
      ValueError: If the files or the dataset cannot be used.
    """

    def joined(examples: list[dict[str, Any]]) -> str:
        return "\n\n".join(example["text"] for example in examples)

    directory = Path(data.directory)
    return _either(data, lambda: text.read_texts(directory, data.name), ["text"], joined)


def sentences(data: Any) -> tuple[Any, Any]:
    """Return (train, dev), each as (sentences, labels).

    Files are NAME_train.tsv and NAME_dev.tsv; a dataset needs the features "sentence" and "label".
    Arguments and errors are those of `texts`.
    """
    paths = [Path(data.directory) / f"{data.name}_{part}.tsv" for part in ("train", "dev")]

    def labeled(examples: list[dict[str, Any]]) -> tuple[list[str], np.ndarray]:
        labels = np.asarray([example["label"] for example in examples], np.int32)
        if (labels < 0).any():
            raise ValueError(
                f"Dataset {data.name!r} has {int((labels < 0).sum())} sentences without a label; "
                "config.data.test_split names a part that has them, such as 'validation'."
            )
        return [example["sentence"] for example in examples], labels

    def files() -> tuple[Any, ...]:
        return tuple(map(text.read_sentences, paths))

    return _either(data, files, ["sentence", "label"], labeled)


def questions(
    data: Any,
) -> tuple[list[question_answering.Question], list[question_answering.Question]]:
    """Return (train, dev) questions.

    Files are train-NAME.json and dev-NAME.json in SQuAD's format; a dataset needs SQuAD's features.
    Arguments and errors are those of `texts`.
    """
    paths = [Path(data.directory) / f"{part}-{data.name}.json" for part in ("train", "dev")]

    def convert(examples: list[dict[str, Any]]) -> list[question_answering.Question]:
        result = []
        for example in examples:
            answers = example["answers"]
            references = [
                (reference, int(start))
                for reference, start in zip(answers["text"], answers["answer_start"], strict=True)
            ]
            name, context = str(example["id"]), example["context"]
            result.append(
                question_answering.Question(name, example["question"], context, references)
            )
        return question_answering.check_questions(result, f"Dataset {data.name!r}")

    def files() -> tuple[Any, ...]:
        return tuple(map(question_answering.read_questions, paths))

    return _either(data, files, ["id", "question", "context", "answers"], convert)


def _either(
    data: Any, files: Callable[[], Any], features: Sequence[str], convert: Callable[[Any], Any]
) -> Any:
    """Read both parts from files or, if files are missing, convert a dataset's examples."""
    try:
        return files()
    except FileNotFoundError as error:
        missing = error
    try:
        parts = tfds.read_examples(data.name, data.directory or None, data.test_split, features)
    except (FileNotFoundError, ModuleNotFoundError) as error:
        raise FileNotFoundError(f"{missing} {error}") from error
    return tuple(map(convert, parts))
