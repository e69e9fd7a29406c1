"""Tests of Bayesian averaging: corruptions, calibration bins and counts."""

import numpy as np
import pytest

from experiments.data import Dataset
from experiments.data.corruptions import CORRUPTIONS, corrupt
from experiments.scores import calibration, judge, metrics
from experiments.studies.bayesian_averaging import counts


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_corruption_keeps_the_range_of_the_images(name, dtype):
    images = np.random.default_rng(0).integers(0, 200, (20, 8, 8, 3)).astype(dtype)
    dataset = Dataset(images, np.arange(20), np.float32(100), np.float32(50))
    corrupted = corrupt(dataset, name, seed=3)
    assert corrupted.examples.shape == images.shape and corrupted.examples.dtype == np.float32
    assert 3 < np.abs(corrupted.examples - images).mean() < 80
    assert corrupted.examples.min() >= 0 and corrupted.examples.max() <= (
        255 if dtype == np.uint8 else 199
    )
    np.testing.assert_array_equal(corrupt(dataset, name, seed=3).examples, corrupted.examples)
    np.testing.assert_array_equal(dataset.examples, images)


def test_blur_and_contrast_match_their_closed_forms():
    ramp = np.broadcast_to(np.arange(8, dtype=np.uint8)[:, None, None] * 16, (1, 8, 8, 1))
    dataset = Dataset(ramp, np.zeros(1))
    blurred = corrupt(dataset, "blur", 0).examples[0, :, :, 0]
    # The mean of a linear ramp over 3x3 pixels is the ramp.
    np.testing.assert_allclose(blurred[1:-1], ramp[0, 1:-1, :, 0], atol=1e-3)
    np.testing.assert_allclose(blurred[0], 16 / 3, atol=1e-3)
    contrast = corrupt(dataset, "contrast", 0).examples
    assert np.ptp(contrast) == pytest.approx(0.4 * np.ptp(ramp), rel=1e-4)
    assert contrast.mean() == pytest.approx(ramp.mean(), rel=1e-4)


def test_calibration_bins_sum_to_the_calibration_error():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(5), 500)
    labels = rng.integers(0, 5, 500)
    judged = judge(probabilities.astype(np.float32), labels)
    bins = np.asarray(calibration(judged))
    assert bins[:, 2].sum() == pytest.approx(1)
    scores = metrics(judged)
    assert np.sum(bins[:, 1] * bins[:, 2]) == pytest.approx(scores["accuracy"])
    gap = np.abs(bins[:, 0] - bins[:, 1]) @ bins[:, 2]
    assert gap == pytest.approx(scores["calibration_error"])


def test_counts_are_powers_of_two_and_the_largest():
    assert counts(1) == [1] and counts(8) == [1, 2, 4, 8] and counts(50)[-2:] == [32, 50]
