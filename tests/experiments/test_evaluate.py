"""Tests of scores against closed forms."""

import numpy as np
import pytest

from experiments.scores import judge, metrics


def test_certain_correct_predictions_have_perfect_scores() -> None:
    labels = np.arange(4) % 3
    result = metrics(judge(np.eye(3, dtype=np.float32)[labels], labels))
    assert result["accuracy"] == 1 and result["nll"] == 0 and result["calibration_error"] == 0


def test_calibration_error_is_the_gap_of_confidence_and_accuracy() -> None:
    # Seven of ten predictions at confidence 0.9 are correct, a gap of 0.2 in a single bin.
    probabilities = np.tile([0.9, 0.1], (10, 1))
    labels = np.array([0] * 7 + [1] * 3)
    result = metrics(judge(probabilities.astype(np.float32), labels))
    assert result["calibration_error"] == pytest.approx(0.2)
    assert result["correct"] == 7 and result["count"] == 10
    assert result["nll"] == pytest.approx(-(7 * np.log(0.9) + 3 * np.log(0.1)) / 10)


def test_uniform_prediction_has_the_entropy_of_its_classes() -> None:
    result = metrics(judge(np.full((6, 5), 0.2, np.float32), np.zeros(6, int)))
    assert result["nll"] == pytest.approx(np.log(5))


def test_negative_labels_are_ignored() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(7), (4, 9)).astype(np.float32)
    labels = rng.integers(0, 7, (4, 9))
    labels[:, ::3] = -1
    judged = judge(probabilities, labels)
    expected = judge(probabilities[labels >= 0], labels[labels >= 0])
    assert len(judged.correct) == 24
    for actual, reference in zip(judged, expected, strict=True):
        np.testing.assert_array_equal(actual, reference)
