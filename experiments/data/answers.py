"""Questions whose answers stand in a text: SQuAD v1.1's format, features and official metric.

Rajpurkar et al. 2016, arXiv:1606.05250. A text longer than a sequence is read in windows that
overlap; an answer is the best span of all windows of its question.
"""

import collections
import json
import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_MOST_QUESTION = 64  # tokens
_MOST_ANSWER = 30  # tokens
_BEST = 20  # starts and ends of a window that are looked at


class Question(NamedTuple):
    """A question on a text.

    Attributes:
      name: its id.
      question, context: as they are written.
      answers: (text, first character in the context) of each answer that people gave.
    """

    name: str
    question: str
    context: str
    answers: list[tuple[str, int]]


class Features(NamedTuple):
    """Windows of questions and texts, as a network reads them.

    Attributes:
      tokens: int32 [n, length].
      labels: int32 [n, 2], the first and last token of the first answer; 0, the first token, where
        a window has none of it.
      owners: the question of each window, int32 [n].
      spans: characters of the text that a token stands for, int32 [n, length, 2]; -1 where it is of
        no text.
    """

    tokens: np.ndarray
    labels: np.ndarray
    owners: np.ndarray
    spans: np.ndarray


def read_questions(path: Path) -> list[Question]:
    """Read a file in SQuAD's format.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if it is not in that format, or an answer does not stand where it says.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There are no questions {path}.")
    found = []
    try:
        articles = json.loads(path.read_text(encoding="utf-8"))["data"]
        for paragraph in (part for article in articles for part in article["paragraphs"]):
            for asked in paragraph["qas"]:
                answers = [(a["text"], int(a["answer_start"])) for a in asked["answers"]]
                name, context = str(asked["id"]), paragraph["context"]
                found.append(Question(name, asked["question"], context, answers))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not in SQuAD's format: {error!r}") from error
    return usable(found, str(path))


def usable(questions: list[Question], source: str) -> list[Question]:
    """Return the questions, if their answers stand where they say.

    Raises:
      ValueError: naming the source, if an answer does not, or there is nothing.
    """
    problems = [
        f"{q.name}: {text!r} does not stand at character {start}"
        for q in questions
        for text, start in q.answers
        if q.context[start : start + len(text)] != text
    ]
    problems += [f"{q.name}: no answer" for q in questions if not q.answers]
    if problems or not questions:
        raise ValueError(
            f"{source} has {len(questions)} questions and {len(problems)} answers that cannot be "
            f"used: {'; '.join(problems[:5])}"
        )
    return questions


def encode(
    questions: Sequence[Question], tokenizer: Any, length: int, stride: int, padding: int = 0
) -> Features:
    """Cut questions and their texts into windows.

    Args:
      questions: what is asked.
      tokenizer: tokenizers.Tokenizer of a BERT.
      length: of a window, tokens.
      stride: tokens from one window of a text to the next.
      padding: the token behind the last one.
    """
    asker, reader = (type(tokenizer).from_str(tokenizer.to_str()) for _ in range(2))
    asker.enable_truncation(_MOST_QUESTION)
    room = length - 3 - _MOST_QUESTION  # [CLS] question [SEP] text [SEP]
    overlap = max(room - stride, 0)
    reader.enable_truncation(length, stride=overlap, strategy="only_second")
    asked = asker.encode_batch([q.question for q in questions], add_special_tokens=False)
    shortened = [
        q.question if len(e.ids) < _MOST_QUESTION else q.question[: e.offsets[-1][1]]
        for q, e in zip(questions, asked, strict=True)
    ]
    tokens, labels, owners, spans = [], [], [], []
    pairs = [(question, q.context) for question, q in zip(shortened, questions, strict=True)]
    for owner, whole in enumerate(reader.encode_batch(pairs)):
        for window in [whole, *whole.overflowing]:
            span = np.full((length, 2), -1, np.int32)
            row = np.full(length, padding, np.int32)
            row[: len(window.ids)] = window.ids
            for i, part in enumerate(window.sequence_ids):
                if part == 1:
                    span[i] = window.offsets[i]
            tokens.append(row)
            spans.append(span)
            owners.append(owner)
            labels.append(_label(span, *questions[owner].answers[0]))
    arrays = (np.asarray(each, np.int32) for each in (tokens, labels, owners, spans))
    return Features(*arrays)


def _label(span: np.ndarray, text: str, start: int) -> tuple[int, int]:
    end = start + len(text)
    inside = np.flatnonzero((span[:, 0] < end) & (span[:, 1] > start) & (span[:, 0] >= 0))
    if not len(inside) or span[inside[0], 0] > start or span[inside[-1], 1] < end:
        return 0, 0
    return int(inside[0]), int(inside[-1])


def best_answers(
    questions: Sequence[Question], features: Features, probabilities: np.ndarray
) -> dict[str, str]:
    """Return the most probable span of each question, by its id.

    Args:
      questions: what is asked.
      features: their windows.
      probabilities: of starts and ends, [n, 2, length].
    """
    best = {question.name: (-np.inf, "") for question in questions}
    for owner, span, (starts, ends) in zip(
        features.owners, features.spans, np.log(np.maximum(probabilities, 1e-30)), strict=True
    ):
        question = questions[owner]
        for start in np.argsort(-starts)[:_BEST]:
            for end in np.argsort(-ends)[:_BEST]:
                real = span[start, 0] >= 0 and span[end, 0] >= 0
                if not real or not 0 <= end - start < _MOST_ANSWER:
                    continue
                score = float(starts[start] + ends[end])
                if score > best[question.name][0]:
                    text = question.context[span[start, 0] : span[end, 1]]
                    best[question.name] = score, text
    return {name: text for name, (_, text) in best.items()}


def score(questions: Sequence[Question], answers: Mapping[str, str]) -> dict[str, float]:
    """Compute SQuAD's exact match and F1, percent, as its official evaluation does."""
    exact, overlap = [], []
    for question in questions:
        given = answers.get(question.name, "")
        truths = [text for text, _ in question.answers]
        exact.append(max(float(normalise(given) == normalise(truth)) for truth in truths))
        overlap.append(max(f1(given, truth) for truth in truths))
    return {"exact_match": 100 * float(np.mean(exact)), "f1": 100 * float(np.mean(overlap))}


def normalise(text: str) -> str:
    """Lower-case a text, without punctuation, articles and more than one space."""
    text = "".join(char for char in text.lower() if char not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def f1(given: str, truth: str) -> float:
    """Return the harmonic mean of precision and recall of an answer's words."""
    ours, theirs = normalise(given).split(), normalise(truth).split()
    shared = sum((collections.Counter(ours) & collections.Counter(theirs)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(ours), shared / len(theirs)
    return 2 * precision * recall / (precision + recall)
