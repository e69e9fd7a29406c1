"""Texts, sentences and questions of plain files or, where there are none, of tensorflow-datasets.

A dataset is named as there, "glue/sst2", "squad/v1.1"; `config.data.directory` is where it was
prepared, and `config.data.test_split` its part that is evaluated, often "validation".
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data import answers, text, tfds


def texts(data: Any) -> tuple[str, str]:
    """Return (train, test) of NAME.txt, NAME_train.txt and NAME_test.txt, or a dataset of "text".

    Args:
      data: `config.data`.

    Raises:
      FileNotFoundError: if there is neither.
      ValueError: for what cannot be used.
    """

    def joined(examples: list[dict[str, Any]]) -> str:
        return "\n\n".join(example["text"] for example in examples)

    directory = Path(data.directory)
    return _either(data, lambda: text.read_texts(directory, data.name), ["text"], joined)


def sentences(data: Any) -> tuple[Any, Any]:
    """Return (train, dev), each (sentences, labels), of NAME_train.tsv and NAME_dev.tsv.

    Or of a dataset with "sentence" and "label"; arguments and errors as `texts`.
    """
    paths = [Path(data.directory) / f"{data.name}_{part}.tsv" for part in ("train", "dev")]

    def found(examples: list[dict[str, Any]]) -> tuple[list[str], np.ndarray]:
        labels = np.asarray([example["label"] for example in examples], np.int32)
        if (labels < 0).any():
            raise ValueError(
                f"Dataset {data.name!r} has {int((labels < 0).sum())} sentences without a label; "
                "config.data.test_split names a part that has them, such as 'validation'."
            )
        return [example["sentence"] for example in examples], labels

    def files() -> tuple[Any, ...]:
        return tuple(map(text.read_sentences, paths))

    return _either(data, files, ["sentence", "label"], found)


def questions(data: Any) -> tuple[list[answers.Question], list[answers.Question]]:
    """Return (train, dev) of train-NAME.json and dev-NAME.json, as SQuAD has them.

    Or of a dataset with its features; arguments and errors as `texts`.
    """
    paths = [Path(data.directory) / f"{part}-{data.name}.json" for part in ("train", "dev")]

    def found(examples: list[dict[str, Any]]) -> list[answers.Question]:
        asked = []
        for each in examples:
            pairs = zip(each["answers"]["text"], each["answers"]["answer_start"], strict=True)
            given = [(found, int(start)) for found, start in pairs]
            asked.append(
                answers.Question(str(each["id"]), each["question"], each["context"], given)
            )
        return answers.usable(asked, f"Dataset {data.name!r}")

    def files() -> tuple[Any, ...]:
        return tuple(map(answers.read_questions, paths))

    return _either(data, files, ["id", "question", "context", "answers"], found)


def _either(
    data: Any, files: Callable[[], Any], features: Sequence[str], found: Callable[[Any], Any]
) -> Any:
    """Read the two parts from files, or make them of a dataset's examples."""
    try:
        return files()
    except FileNotFoundError as error:
        missing = error
    try:
        parts = tfds.read_examples(data.name, data.directory or None, data.test_split, features)
    except (FileNotFoundError, ModuleNotFoundError) as error:
        raise FileNotFoundError(f"{missing} {error}") from error
    return tuple(map(found, parts))
