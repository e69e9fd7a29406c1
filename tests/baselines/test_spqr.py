"""SpQR: outliers against brute force, rounded scales, and the gain over GPTQ."""

import jax.numpy as jnp
import numpy as np
import pytest

import sqs_jax
from sqs_jax import GridLeaf, InputMoments, OverlayLeaf, TransposedLeaf
from sqs_jax.baselines import gptq, spqr
from sqs_jax.baselines.grids import lay_grids

RNG = np.random.default_rng(0)
KERNEL = (RNG.standard_normal((32, 6)) * 0.1).astype(np.float32)
KERNEL[5, 2], KERNEL[20, 4] = 1.5, -2.0
X = RNG.standard_normal((300, 32)) @ RNG.standard_normal((32, 32))
MOMENTS = {"kernel": InputMoments(jnp.asarray(X.T @ X / 300, jnp.float32))}


def compressed(**settings):
    options = {"levels": 8, "calibration": MOMENTS, "group": 16, **settings}
    return spqr.compress({"kernel": KERNEL}, **options)["kernel"]


def lost(leaf):
    return np.square(X @ (sqs_jax.materialize(leaf) - KERNEL)).sum()


def grid_error(column, counted, levels):
    """Return the squared error of a group on a grid of the counted weights, float64."""
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
    weights, kept = sqs_jax.materialize(leaf), leaf.places > 0
    np.testing.assert_array_equal(weights[kept], leaf.values)
    # Without correlated inputs there is no error compensation: outliers keep their values.
    np.testing.assert_allclose(leaf.values, KERNEL[kept], rtol=1e-3)
    steps = np.repeat(sqs_jax.materialize(leaf.leaf.scales), 16, axis=0)
    inside = ~kept & (leaf.leaf.codes > 0) & (leaf.leaf.codes < 7)
    assert (np.abs(weights - KERNEL)[inside] <= 0.501 * steps[inside]).all()
    sqs_jax.save(tmp_path / "m.sqs", {"kernel": leaf})
    again = sqs_jax.materialize(sqs_jax.load(tmp_path / "m.sqs"))["kernel"]
    np.testing.assert_array_equal(again, weights)


def test_scales_of_sixteen_outputs_of_a_group_share_a_grid_and_stay_positive():
    wide = (RNG.standard_normal((32, 48)) * np.geomspace(1, 9, 48)).astype(np.float32)
    options = {"levels": 8, "calibration": {}, "group": 16, "threshold": 1e9}
    leaf = spqr.compress({"kernel": wide}, **options)["kernel"]
    scales = leaf.leaf.scales
    assert isinstance(scales, TransposedLeaf) and isinstance(scales.leaf, GridLeaf)
    assert scales.leaf.codes.shape == (48, 2) and scales.leaf.scales.shape == (3, 2)
    assert scales.leaf.levels == 16 and scales.leaf.codes.min() >= 1
    exact = lay_grids(jnp.asarray(wide), 8, 16)[0]  # [2, 48]
    rounded = sqs_jax.materialize(scales)
    # half a step of each grid, which goes from 0 to the largest of its sixteen scales
    half = np.repeat(exact.reshape(2, 3, 16).max(-1) / 15 / 2, 16).reshape(2, 48)
    assert (np.abs(rounded - exact) <= half * 1.001 + 1e-6)[rounded > 2.1 * half].all()


def test_a_few_outliers_gain_more_than_they_cost():
    leaf, plain = compressed(), gptq.compress(
        {"kernel": KERNEL}, levels=8, calibration=MOMENTS, group=16
    )["kernel"]  # fmt: skip
    assert 2 <= leaf.values.size <= 16  # of 192
    assert lost(leaf) < 0.7 * lost(plain)
    assert lost(compressed(threshold=1e9)) > lost(leaf)
    assert compressed(threshold=1e9).values.size == 0


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="threshold is 0; it must be positive"):
        compressed(threshold=0)
    with pytest.raises(ValueError, match="groups of 7 do not divide its 32 rows"):
        compressed(group=7)
