"""Extractive question answering: SQuAD v1.1's format, features and official metric.

Rajpurkar et al. 2016, arXiv:1606.05250. A context that is longer than a sequence is cut into
overlapping windows. The answer to a question is the best span of all its windows.
"""

import collections
import json
import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_MAX_QUESTION_TOKENS = 64
_MAX_ANSWER_TOKENS = 30
_CANDIDATES = 20  # start tokens of a window, and end tokens, that are combined to spans


class Question(NamedTuple):
    """A question about a context, with its reference answers.

    Attributes:
      name: Id of the question in the dataset.
      question: Text of the question.
      context: Text that contains the answers.
      answers: Reference answers, each as (text, position of its first character in the context).
    """

    name: str
    question: str
    context: str
    answers: list[tuple[str, int]]


class Features(NamedTuple):
    """Windows of questions and contexts as a network's inputs.

    Attributes:
      tokens: Token ids, int32 [n, length].
      labels: First and last token of the first reference answer, int32 [n, 2]. Both are 0, the
        first token, if the window does not contain the whole answer.
      owners: Index of each window's question, int32 [n].
      spans: First and past-the-end character of each token in the context, int32 [n, length, 2];
        -1 for tokens outside the context.
    """

    tokens: np.ndarray
    labels: np.ndarray
    owners: np.ndarray
    spans: np.ndarray


def read_questions(path: Path) -> list[Question]:
    """Read a file in SQuAD's format.

    Args:
      path: Path of the JSON file.

    Returns:
      Questions in the order of the file.

    Raises:
      FileNotFoundError: If the file does not exist.
      ValueError: If the file is not in SQuAD's format, or an answer is not at its position.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There are no questions {path}.")
    questions = []
    try:
        articles = json.loads(path.read_text(encoding="utf-8"))["data"]
        for paragraph in (part for article in articles for part in article["paragraphs"]):
            for entry in paragraph["qas"]:
                answers = [(a["text"], int(a["answer_start"])) for a in entry["answers"]]
                name, context = str(entry["id"]), paragraph["context"]
                questions.append(Question(name, entry["question"], context, answers))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not in SQuAD's format: {error!r}") from error
    return check_questions(questions, str(path))


def check_questions(questions: list[Question], source: str) -> list[Question]:
    """Check that every question has answers at their stated positions in the context.

    Args:
      questions: Questions to check.
      source: Name of the file or dataset, for the error message.

    Returns:
      The same questions.

    Raises:
      ValueError: If an answer is not at its position, or there are no questions.
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
    """Tokenize questions and contexts and cut them into windows.

    Args:
      questions: Questions with their contexts.
      tokenizer: tokenizers.Tokenizer of a BERT model.
      length: Length of a window, tokens.
      stride: Distance between the starts of neighboring windows of a context, tokens.
      padding: Id of the padding token.

    Returns:
      One row per window; the windows of a question are neighbors.
    """
    question_tokenizer, pair_tokenizer = (
        type(tokenizer).from_str(tokenizer.to_str()) for _ in range(2)
    )
    question_tokenizer.enable_truncation(_MAX_QUESTION_TOKENS)
    context_length = length - 3 - _MAX_QUESTION_TOKENS  # [CLS] question [SEP] context [SEP]
    overlap = max(context_length - stride, 0)
    pair_tokenizer.enable_truncation(length, stride=overlap, strategy="only_second")
    encodings = question_tokenizer.encode_batch(
        [q.question for q in questions], add_special_tokens=False
    )
    shortened = [
        q.question if len(e.ids) < _MAX_QUESTION_TOKENS else q.question[: e.offsets[-1][1]]
        for q, e in zip(questions, encodings, strict=True)
    ]
    tokens, labels, owners, spans = [], [], [], []
    pairs = [(question, q.context) for question, q in zip(shortened, questions, strict=True)]
    for owner, encoding in enumerate(pair_tokenizer.encode_batch(pairs)):
        for window in [encoding, *encoding.overflowing]:
            span = np.full((length, 2), -1, np.int32)
            row = np.full(length, padding, np.int32)
            row[: len(window.ids)] = window.ids
            for i, sequence in enumerate(window.sequence_ids):
                if sequence == 1:  # the context; 0 is the question, None a special token
                    span[i] = window.offsets[i]
            tokens.append(row)
            spans.append(span)
            owners.append(owner)
            labels.append(_label(span, *questions[owner].answers[0]))
    return Features(*(np.asarray(rows, np.int32) for rows in (tokens, labels, owners, spans)))


def _label(span: np.ndarray, text: str, start: int) -> tuple[int, int]:
    """Return the first and last token of an answer, (0, 0) if the window cuts the answer."""
    end = start + len(text)
    inside = np.flatnonzero((span[:, 0] < end) & (span[:, 1] > start) & (span[:, 0] >= 0))
    if not len(inside) or span[inside[0], 0] > start or span[inside[-1], 1] < end:
        return 0, 0
    return int(inside[0]), int(inside[-1])


def best_answers(
    questions: Sequence[Question], features: Features, probabilities: np.ndarray
) -> dict[str, str]:
    """Return the text of the most probable span of each question.

    Args:
      questions: Questions with their contexts.
      features: Windows of the questions.
      probabilities: Probabilities of start and end tokens, [n, 2, length].

    Returns:
      Answers by the question's id; "" if no span of allowed length lies in the context.
    """
    best = {question.name: (-np.inf, "") for question in questions}
    for owner, span, (starts, ends) in zip(
        features.owners, features.spans, np.log(np.maximum(probabilities, 1e-30)), strict=True
    ):
        question = questions[owner]
        for start in np.argsort(-starts)[:_CANDIDATES]:
            for end in np.argsort(-ends)[:_CANDIDATES]:
                in_context = span[start, 0] >= 0 and span[end, 0] >= 0
                if not in_context or not 0 <= end - start < _MAX_ANSWER_TOKENS:
                    continue
                score = float(starts[start] + ends[end])
                if score > best[question.name][0]:
                    text = question.context[span[start, 0] : span[end, 1]]
                    best[question.name] = score, text
    return {name: text for name, (_, text) in best.items()}


def score(questions: Sequence[Question], answers: Mapping[str, str]) -> dict[str, float]:
    """Compute exact match and F1 in percent as SQuAD's official evaluation does.

    Args:
      questions: Questions with reference answers.
      answers: Predicted answers by the question's id; a missing answer counts as "".

    Returns:
      Means over the questions of the best score against any reference answer.
    """
    exact, overlap = [], []
    for question in questions:
        answer = answers.get(question.name, "")
        references = [text for text, _ in question.answers]
        exact.append(
            max(float(normalize(answer) == normalize(reference)) for reference in references)
        )
        overlap.append(max(f1(answer, reference) for reference in references))
    return {"exact_match": 100 * float(np.mean(exact)), "f1": 100 * float(np.mean(overlap))}


def normalize(text: str) -> str:
    """Lower-case a text, remove punctuation and articles, and collapse spaces."""
    text = "".join(char for char in text.lower() if char not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def f1(answer: str, reference: str) -> float:
    """Return the harmonic mean of precision and recall of an answer's words, 0 to 1."""
    words, reference_words = normalize(answer).split(), normalize(reference).split()
    shared = (collections.Counter(words) & collections.Counter(reference_words)).total()
    if not shared:
        return 0.0
    precision, recall = shared / len(words), shared / len(reference_words)
    return 2 * precision * recall / (precision + recall)
