"""Text files and tokenization, for language models and sentence classification.

A text is NAME.txt, or NAME_train.txt and NAME_test.txt. Sentences with labels are tab-separated
files as in GLUE, NAME_train.tsv and NAME_dev.tsv; the header has "label" and "sentence".
"""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

Arrays = tuple[np.ndarray, np.ndarray]

_TEST_SHARE = 0.1  # test part of a text in one file


def read_texts(directory: Path, name: str) -> tuple[str, str]:
    """Return (train, test) from two files, or from a single file cut near its end.

    Args:
      directory: Folder of the files.
      name: NAME of the files.

    Raises:
      FileNotFoundError: If there is neither the one file nor the two.
      ValueError: If a file is empty or not UTF-8, or the one file cannot be cut.
    """
    single, *parts = (directory / f"{name}{part}.txt" for part in ("", "_train", "_test"))
    if all(part.is_file() for part in parts):
        train, test = map(_read, parts)
        return train, test
    if not single.is_file():
        raise FileNotFoundError(
            f"There is no text {single}, nor {parts[0].name} and {parts[1].name} beside it; "
            "config.data.directory and config.data.name say where to look."
        )
    return cut(_read(single))


def cut(text: str) -> tuple[str, str]:
    """Cut a text in two at the first blank line of its last tenth.

    Raises:
      ValueError: If the last tenth has no blank line.
    """
    position = text.find("\n\n", int(len(text) * (1 - _TEST_SHARE)))
    if position < 0:
        raise ValueError(
            "The text has no blank line in its last tenth, where it could be cut in two; give "
            "NAME_train.txt and NAME_test.txt."
        )
    return text[: position + 2], text[position + 2 :]


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from error
    if not text.strip():
        raise ValueError(f"{path} is empty.")
    return text


def windows(tokens: np.ndarray, length: int, stride: int, first: int | None) -> Arrays:
    """Cut a text into windows for next-token prediction.

    Tokens at the end that do not fill a window are left out.

    Args:
      tokens: Token ids of the text, int [n].
      length: Length of a window, tokens.
      stride: Distance between the starts of neighboring windows, in [1, length] tokens. Tokens
        that the previous window predicts are only context in the next.
      first: Id of the token that begins each window, such as <s>. None: windows begin with a token
        of the text, so that the first token of the text is never a label.

    Returns:
      (tokens, labels), both int32 [windows, length]; a label is the next token, or -1 if the
      previous window predicts it.

    Raises:
      ValueError: If the text is shorter than a window, or the stride is not in [1, length].
    """
    if not 1 <= stride <= length:
        raise ValueError(f"config.data.stride is {stride}; it must lie in [1, {length}].")
    start = [] if first is None else [first]
    span = length + 1 - len(start)  # tokens of the text per window, the last label included
    if len(tokens) < span:
        raise ValueError(f"{len(tokens)} tokens are less than one sequence of {length}.")
    examples, labels = [], []
    for begin in range(0, len(tokens) - span + 1, stride):
        window = np.concatenate([start, tokens[begin : begin + span]]).astype(np.int32)
        examples.append(window[:-1])
        labels.append(window[1:].copy())
        if begin:
            labels[-1][: length - stride] = -1
    return np.stack(examples), np.stack(labels)


def read_sentences(path: Path) -> tuple[list[str], np.ndarray]:
    """Read sentences and their labels from a tab-separated file.

    Args:
      path: Path of the file.

    Returns:
      (sentences, labels int32 [n]).

    Raises:
      FileNotFoundError: If the file does not exist.
      ValueError: If the header lacks a column, or lines are malformed; the message lists them.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There are no sentences {path}.")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    header = rows[0] if rows else []
    text = next((name for name in ("sentence", "content", "text") if name in header), None)
    if text is None or "label" not in header:
        raise ValueError(f"{path} begins with {header}; it needs the columns label and sentence.")
    text_column, label_column = header.index(text), header.index("label")
    sentences, labels, problems = [], [], []
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(header) or not row[label_column].isdecimal():
            problems.append(f"line {number}: {row}")
            continue
        sentences.append(row[text_column])
        labels.append(int(row[label_column]))
    if problems or not sentences:
        raise ValueError(
            f"{path} has {len(problems)} lines that are no label and sentence, and "
            f"{len(sentences)} that are: {'; '.join(problems[:5])}"
        )
    return sentences, np.asarray(labels, np.int32)


def padded(encoded: Iterable[list[int]], length: int, padding: int) -> np.ndarray:
    """Pad or truncate token sequences to a common length.

    Truncation keeps the last token, which marks the end of a sequence for the model.

    Args:
      encoded: Token ids of each sequence.
      length: Length of the result, tokens.
      padding: Id of the padding token.

    Returns:
      Token ids, int32 [n, length].
    """
    sequences = list(encoded)
    rows = np.full((len(sequences), length), padding, np.int32)
    for row, ids in zip(rows, sequences, strict=True):
        row[: len(ids)] = ids if len(ids) <= length else [*ids[: length - 1], ids[-1]]
    return rows


def train_tokenizer(text: str, vocabulary: int) -> Any:
    """Learn a byte-level BPE tokenizer, as in Llama 3 and Qwen.

    Args:
      text: Training text.
      vocabulary: Number of tokens, including <s> and </s>.

    Returns:
      tokenizers.Tokenizer that begins each text with <s>.
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
