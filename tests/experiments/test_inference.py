"""Averages against the deployed network, on images as they are and corrupted."""

import numpy as np
import pytest

from experiments.data import Dataset
from experiments.data.corruptions import CORRUPTIONS, corrupt
from experiments.inference import counts
from experiments.scores import calibration, judge, metrics


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_corruption_changes_images_within_their_range(name, dtype):
    images = np.random.default_rng(0).integers(0, 200, (20, 8, 8, 3)).astype(dtype)
    dataset = Dataset(images, np.arange(20), np.float32(100), np.float32(50))
    found = corrupt(dataset, name, seed=3)
    assert found.examples.shape == images.shape and found.examples.dtype == np.float32
    assert 3 < np.abs(found.examples - images).mean() < 80
    assert found.examples.min() >= 0 and found.examples.max() <= (255 if dtype == np.uint8 else 199)
    np.testing.assert_array_equal(corrupt(dataset, name, seed=3).examples, found.examples)
    np.testing.assert_array_equal(dataset.examples, images)


def test_corruptions_have_their_closed_forms():
    ramp = np.broadcast_to(np.arange(8, dtype=np.uint8)[:, None, None] * 16, (1, 8, 8, 1))
    dataset = Dataset(ramp, np.zeros(1))
    blurred = corrupt(dataset, "blur", 0).examples[0, :, :, 0]
    np.testing.assert_allclose(blurred[1:-1], ramp[0, 1:-1, :, 0], atol=1e-3)  # linear: its mean
    np.testing.assert_allclose(blurred[0], 16 / 3, atol=1e-3)
    contrast = corrupt(dataset, "contrast", 0).examples
    assert np.ptp(contrast) == pytest.approx(0.4 * np.ptp(ramp), rel=1e-4)
    assert contrast.mean() == pytest.approx(ramp.mean(), rel=1e-4)


def test_calibration_bins_make_up_the_error():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(5), 500)
    labels = rng.integers(0, 5, 500)
    judged = judge(probabilities.astype(np.float32), labels)
    bins = np.asarray(calibration(judged))
    assert bins[:, 2].sum() == pytest.approx(1)
    found = metrics(judged)
    assert np.sum(bins[:, 1] * bins[:, 2]) == pytest.approx(found["accuracy"])
    gap = np.abs(bins[:, 0] - bins[:, 1]) @ bins[:, 2]
    assert gap == pytest.approx(found["calibration_error"])


def test_averages_are_judged_at_powers_of_two_and_at_the_most():
    assert counts(1) == [1] and counts(8) == [1, 2, 4, 8] and counts(50)[-2:] == [32, 50]
