"""SpQR: which weights are outliers, by brute force; rounded scales; what it gains."""

import jax.numpy as jnp
import numpy as np
import pytest

import sqs_jax
from sqs_jax import GridLeaf, InputMoments, OverlayLeaf
from sqs_jax.baselines import gptq, spqr

RNG = np.random.default_rng(0)
KERNEL = (RNG.standard_normal((32, 6)) * 0.1).astype(np.float32)
KERNEL[5, 2], KERNEL[20, 4] = 1.5, -2.0
X = RNG.standard_normal((300, 32)) @ RNG.standard_normal((32, 32))
MOMENTS = {"kernel": InputMoments(jnp.asarray(X.T @ X / 300, jnp.float32))}


def compressed(**settings):
    given = {"levels": 8, "calibration": MOMENTS, "group": 16, **settings}
    return spqr.compress({"kernel": KERNEL}, **given)["kernel"]


def lost(leaf):
    return np.square(X @ (sqs_jax.materialize(leaf) - KERNEL)).sum()


def grid_error(column, counted, levels):
    """The squared errors of a group on a grid of what is counted, as float64."""
    low, high = min(0.0, column[counted].min()), max(0.0, column[counted].max())
    scale = (high - low) / (levels - 1) or 1.0
    zero = np.clip(np.round(-low / scale), 0, levels - 1)
    codes = np.clip(np.round(column / scale + zero), 0, levels - 1)
    return np.where(counted, (column - (codes - zero) * scale) ** 2, 0.0).sum()


def test_outliers_are_those_of_a_brute_force():
    leaf = compressed(calibration={}, threshold=0.5)
    assert isinstance(leaf, OverlayLeaf)
    whole = np.zeros((2, 6))
    gain = np.zeros((32, 6))
    for g, o in np.ndindex(2, 6):
        column = KERNEL[16 * g : 16 * g + 16, o].astype(float)
        whole[g, o] = grid_error(column, np.ones(16, bool), 8)
        for i in range(16):
            counted = np.arange(16) != i
            gain[16 * g + i, o] = whole[g, o] - grid_error(column, counted, 8)
    marked = gain > 0.5 * KERNEL.var(axis=1).mean()
    assert marked[5, 2] and marked[20, 4] and marked.sum() < 8
    np.testing.assert_array_equal(leaf.places, marked)


def test_outliers_are_exact_and_the_others_on_their_grids(tmp_path):
    leaf = compressed(calibration={})
    found, kept = sqs_jax.materialize(leaf), leaf.places > 0
    np.testing.assert_array_equal(found[kept], leaf.values)
    # nothing is made good where inputs are alike, so that they are what they were
    np.testing.assert_allclose(leaf.values, KERNEL[kept], rtol=1e-3)
    steps = np.repeat(sqs_jax.materialize(leaf.leaf.scales), 16, axis=0)
    inside = ~kept & (leaf.leaf.codes > 0) & (leaf.leaf.codes < 7)
    assert (np.abs(found - KERNEL)[inside] <= 0.501 * steps[inside]).all()
    sqs_jax.save(tmp_path / "m.sqs", {"kernel": leaf})
    again = sqs_jax.materialize(sqs_jax.load(tmp_path / "m.sqs"))["kernel"]
    np.testing.assert_array_equal(again, found)


def test_scales_are_rounded_and_none_to_nothing():
    leaf = compressed()
    scales = leaf.leaf.scales
    assert isinstance(scales, GridLeaf) and scales.levels == 16
    assert scales.codes.shape == (2, 6) and scales.codes.min() >= 1
    assert len(np.unique(sqs_jax.materialize(scales))) <= 2 * 6


def test_a_few_outliers_gain_more_than_they_cost():
    leaf, plain = compressed(), gptq.compress(
        {"kernel": KERNEL}, levels=8, calibration=MOMENTS, group=16
    )["kernel"]  # fmt: skip
    assert 2 <= leaf.values.size <= 16  # of 192
    assert lost(leaf) < 0.7 * lost(plain)
    assert lost(compressed(threshold=1e9)) > lost(leaf)
    assert compressed(threshold=1e9).values.size == 0


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="threshold is 0; it must be positive"):
        compressed(threshold=0)
    with pytest.raises(ValueError, match="groups of 7 do not divide its 32 rows"):
        compressed(group=7)
