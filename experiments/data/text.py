"""Texts as tokens: language modelling, sentences with labels.

Files are plain: NAME.txt, or NAME_train.txt and NAME_test.txt; sentences are tab-separated with a
header that has "label" and "sentence", NAME_train.tsv and NAME_dev.tsv, as GLUE has them.
"""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

Arrays = tuple[np.ndarray, np.ndarray]

_TEST_SHARE = 0.1  # of a text that is one file


def read_texts(directory: Path, name: str) -> tuple[str, str]:
    """Return (train, test) of a text; of one file the last tenth, from a paragraph on, is the test.

    Raises:
      FileNotFoundError: if it is not there.
      ValueError: for files that are no text or empty.
    """
    whole, *parts = (directory / f"{name}{part}.txt" for part in ("", "_train", "_test"))
    if all(part.is_file() for part in parts):
        train, test = map(_read, parts)
        return train, test
    if not whole.is_file():
        raise FileNotFoundError(
            f"There is no text {whole}, nor {parts[0].name} and {parts[1].name} beside it; "
            "config.data.directory and config.data.name say where to look."
        )
    return cut(_read(whole))


def cut(text: str) -> tuple[str, str]:
    """Cut a text in two at the first blank line of its last tenth.

    Raises:
      ValueError: if it has none there.
    """
    at = text.find("\n\n", int(len(text) * (1 - _TEST_SHARE)))
    if at < 0:
        raise ValueError(
            "The text has no blank line in its last tenth, where it could be cut in two; give "
            "NAME_train.txt and NAME_test.txt."
        )
    return text[: at + 2], text[at + 2 :]


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from error
    if not text.strip():
        raise ValueError(f"{path} is empty.")
    return text


def windows(tokens: np.ndarray, length: int, stride: int, first: int | None) -> Arrays:
    """Cut a text into windows in which each token is predicted from those before it.

    Args:
      tokens: int [n].
      length: of a window, tokens.
      stride: from one window to the next; what the one before has asked for is context alone.
      first: the token that begins a window, <s>; None: the first token of the text is no label.

    Tokens at the end that make no whole window are left out.

    Returns:
      (tokens, labels), int32 [windows, length]; a label is the next token, -1 where none is asked
      for.

    Raises:
      ValueError: if there is not one window of text, or a stride would leave tokens out.
    """
    if not 1 <= stride <= length:
        raise ValueError(f"config.data.stride is {stride}; it must lie in [1, {length}].")
    start = [] if first is None else [first]
    room = length + 1 - len(start)  # tokens of a window, its first label's included
    if len(tokens) < room:
        raise ValueError(f"{len(tokens)} tokens are less than one sequence of {length}.")
    examples, labels = [], []
    for begin in range(0, len(tokens) - room + 1, stride):
        window = np.concatenate([start, tokens[begin : begin + room]]).astype(np.int32)
        examples.append(window[:-1])
        labels.append(window[1:].copy())
        if begin:
            labels[-1][: length - stride] = -1
    return np.stack(examples), np.stack(labels)


def read_sentences(path: Path) -> tuple[list[str], np.ndarray]:
    """Read sentences and their labels.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: listing lines that are no sentence and label.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There are no sentences {path}.")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    header = rows[0] if rows else []
    text = next((name for name in ("sentence", "content", "text") if name in header), None)
    if text is None or "label" not in header:
        raise ValueError(f"{path} begins with {header}; it needs the columns label and sentence.")
    at, label_at = header.index(text), header.index("label")
    sentences, labels, problems = [], [], []
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(header) or not row[label_at].isdecimal():
            problems.append(f"line {number}: {row}")
            continue
        sentences.append(row[at])
        labels.append(int(row[label_at]))
    if problems or not sentences:
        raise ValueError(
            f"{path} has {len(problems)} lines that are no label and sentence, and "
            f"{len(sentences)} that are: {'; '.join(problems[:5])}"
        )
    return sentences, np.asarray(labels, np.int32)


def padded(encoded: Iterable[list[int]], length: int, padding: int) -> np.ndarray:
    """Return token sequences of one length, int32 [n, length]; longer ones lose their middle.

    The last token stays: it ends the sequence for the model.
    """
    rows = list(encoded)
    found = np.full((len(rows), length), padding, np.int32)
    for row, ids in zip(found, rows, strict=True):
        row[: len(ids)] = ids if len(ids) <= length else [*ids[: length - 1], ids[-1]]
    return found


def train_tokenizer(text: str, vocabulary: int) -> Any:
    """Learn byte pairs from a text, as Llama 3 and Qwen have them.

    Args:
      text: to learn from.
      vocabulary: number of tokens, <s> and </s> included.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    start = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", None, [start])
    return tokenizer
