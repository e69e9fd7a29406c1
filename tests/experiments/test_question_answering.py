"""Tests of question answering: SQuAD's format, windows, spans and metric."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.data import question_answering
from experiments.data.question_answering import Question, read_questions
from experiments.importers.language_model import read_tokenizer
from experiments.problem import load_problem
from tests.experiments.test_text import experiment

CONTEXT = "The cat sat on the red mat. A dog, big and bad, saw the cat. " * 12
WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] the cat sat on red mat . a dog , big and bad saw who what ?"
QUESTIONS = [
    Question("1", "What sat?", CONTEXT, [("The cat", 0), ("cat", 4)]),
    Question("2", "What, a dog?", CONTEXT, [("big and bad", CONTEXT.index("big"))]),
]


def write(path: Path, questions: list[Question]) -> None:
    entries = [
        {
            "id": q.name,
            "question": q.question,
            "answers": [{"text": text, "answer_start": start} for text, start in q.answers],
        }
        for q in questions
    ]
    paragraphs = [{"context": CONTEXT, "qas": entries}]
    path.write_text(json.dumps({"version": "1.1", "data": [{"paragraphs": paragraphs}]}))


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS.split()))
    return read_tokenizer(tmp_path / "vocab.txt")


def certain(features: question_answering.Features) -> np.ndarray:
    """Return probabilities of 1 for the labels."""
    length = features.tokens.shape[1]
    return np.eye(length)[features.labels]


def test_reading_a_file_lists_its_errors(tmp_path: Path) -> None:
    path = tmp_path / "train-tiny.json"
    write(path, QUESTIONS)
    assert read_questions(path) == QUESTIONS
    write(path, [QUESTIONS[0]._replace(answers=[("dog", 1)]), QUESTIONS[1]._replace(answers=[])])
    with pytest.raises(ValueError, match=r"1: 'dog' does not stand at character 1; 2: no answer"):
        read_questions(path)
    path.write_text('{"data": [{"paragraphs": [{}]}]}')
    with pytest.raises(ValueError, match="not in SQuAD's format"):
        read_questions(path)
    with pytest.raises(FileNotFoundError, match="There are no questions"):
        read_questions(tmp_path / "none.json")


def test_windows_overlap_and_their_labels_give_the_answers(tokenizer: Any) -> None:
    features = question_answering.encode(QUESTIONS, tokenizer, 90, 5)
    assert (np.bincount(features.owners) > 3).all()
    for row, span, owner in zip(features.tokens, features.spans, features.owners, strict=True):
        assert row[0] == 2 and row[len(row[row != 0]) - 1] == 3
        assert (span[row == 0] == -1).all()
        text = [CONTEXT[a:b] for a, b in span if a >= 0]
        assert "".join(text).lower() in CONTEXT.replace(" ", "").lower()
        assert owner in (0, 1)
    answers = question_answering.best_answers(QUESTIONS, features, certain(features))
    assert answers == {"1": "The cat", "2": "big and bad"}
    assert question_answering.score(QUESTIONS, answers) == {"exact_match": 100.0, "f1": 100.0}


def test_spans_out_of_order_or_in_the_question_are_not_answers(
    tokenizer: Any,
) -> None:
    features = question_answering.encode(QUESTIONS[:1], tokenizer, 90, 5)
    probabilities = np.full((len(features.tokens), 2, 90), 1e-6)
    probabilities[0, 0, [1, 12]] = 0.5, 0.3  # in the question; in the context
    probabilities[0, 1, [10, 13]] = 0.6, 0.2  # before the start in the context; after it
    answers = question_answering.best_answers(QUESTIONS[:1], features, probabilities)
    (begin, _), (_, end) = features.spans[0, 12], features.spans[0, 13]
    assert answers["1"] == CONTEXT[begin:end]


@pytest.mark.parametrize(
    ("answer", "references", "exact", "f1"),
    [
        ("1976", ["1976"], 100, 100),
        ("The Denver Broncos!", ["denver broncos", "Broncos"], 100, 100),
        ("Santa Clara", ["Santa Clara, California"], 0, 80),
        ("", ["Broncos"], 0, 0),
        (
            "an a the",
            ["the"],
            100,
            0,
        ),  # both normalize to "", where the official script gives F1 = 0
        ("one two two", ["two two three"], 0, 200 / 3),
    ],
)
def test_scores_match_the_official_metric(
    answer: str, references: list[str], exact: float, f1: float
) -> None:
    question = Question("q", "?", "", [(text, 0) for text in references])
    scores = question_answering.score([question], {"q": answer})
    assert scores == {"exact_match": pytest.approx(exact), "f1": pytest.approx(f1)}


def test_a_problem_scores_answers(tmp_path: Path, tokenizer: Any) -> None:
    for part in ("train", "dev"):
        write(tmp_path / f"{part}-story.json", QUESTIONS)
    config = experiment(tmp_path, "answers", "bert_answers", max_position_embeddings=128)
    config.data.length, config.data.stride = 90, 5
    config.data.tokenizer = str(tmp_path / "vocab.txt")
    problem = load_problem(config, tmp_path)
    features = question_answering.encode(QUESTIONS, tokenizer, 90, 5)
    np.testing.assert_array_equal(problem.splits.holdout.examples, features.tokens)
    assert problem.score is not None
    assert problem.score(certain(features)) == {"exact_match": 100.0, "f1": 100.0}
    config.model.shape.model_type = "llama"
    with pytest.raises(ValueError, match="'answers' is for 'bert', not 'llama'"):
        load_problem(config, tmp_path)
