"""AWQ: comparison with round to nearest, the search for exponents, stored scales."""

import jax.numpy as jnp
import numpy as np
import pytest

import sqs_jax
from sqs_jax import InputMoments, ScaledLeaf
from sqs_jax.baselines import awq, round_to_nearest

RNG = np.random.default_rng(0)
KERNEL = (RNG.standard_normal((24, 10)) * 0.1).astype(np.float32)
SIZES = np.exp(RNG.standard_normal(24) * 1.5)
SECOND = np.diag(SIZES**2).astype(np.float32)


def lost(leaf, second=SECOND):
    error = sqs_jax.materialize(leaf).reshape(24, 10) - KERNEL
    return float(np.einsum("io,ij,jo->", error, second, error))


def test_inputs_of_one_size_are_not_scaled():
    """And grids are clipped only where that loses less."""
    alike = {"kernel": InputMoments(jnp.eye(24))}
    leaf = awq.compress({"kernel": KERNEL}, levels=8, calibration=alike, group=8)["kernel"]
    assert isinstance(leaf, ScaledLeaf)
    np.testing.assert_allclose(leaf.scales, np.ones(24), rtol=1e-3)
    nearest = round_to_nearest.compress({"kernel": KERNEL}, levels=8, group=8)["kernel"]
    assert lost(leaf, np.eye(24)) <= lost(nearest, np.eye(24))
    alone = awq.compress({"kernel": KERNEL}, levels=8, calibration={}, group=8)["kernel"]
    np.testing.assert_array_equal(alone.leaf.codes, leaf.leaf.codes)


def test_zero_inputs_leave_every_weight_finite():
    never = {"kernel": InputMoments(jnp.zeros((24, 24)))}
    leaf = awq.compress({"kernel": KERNEL}, levels=8, calibration=never, group=8)["kernel"]
    np.testing.assert_allclose(leaf.scales, np.ones(24), rtol=1e-3)
    steps = np.repeat(leaf.leaf.scales, 8, axis=0)
    assert (np.abs(sqs_jax.materialize(leaf) - KERNEL) <= 1.01 * steps).all()


@pytest.mark.parametrize("group", [None, 8])
def test_large_inputs_have_fine_weights(group):
    moments = {"kernel": InputMoments(jnp.asarray(SECOND))}
    leaf = awq.compress({"kernel": KERNEL}, levels=8, calibration=moments, group=group)["kernel"]
    nearest = round_to_nearest.compress({"kernel": KERNEL}, levels=8, group=group)["kernel"]
    assert lost(leaf) < 0.6 * lost(nearest)
    # The scales are 1 / |x|^a for an exponent a of the search.
    a = -np.polyfit(np.log(SIZES), np.log(leaf.scales), 1)[0]
    assert 0 < a < 1 and abs(a * 20 - round(a * 20)) < 0.02
    assert leaf.leaf.codes.max() < 8
    steps = np.repeat(leaf.leaf.scales, 24 // len(leaf.leaf.scales), axis=0)
    inside = (leaf.leaf.codes > 0) & (leaf.leaf.codes < 7)
    error = np.abs(sqs_jax.materialize(leaf) - KERNEL) / leaf.scales[:, None]
    assert (error[inside] <= 0.51 * steps[inside]).all()  # each at the nearest point of its grid


def test_channels_of_a_convolution_share_a_scale(tmp_path):
    kernel = KERNEL.reshape(2, 3, 4, 10)
    moments = {"kernel": InputMoments(jnp.asarray(SECOND))}
    leaf = awq.compress({"kernel": kernel}, levels=8, calibration=moments)["kernel"]
    assert leaf.scales.shape == (4,) and leaf.leaf.codes.shape == kernel.shape
    sizes = np.sqrt(np.mean(SIZES.reshape(6, 4) ** 2, axis=0))
    order = np.argsort(sizes)
    assert (np.diff(leaf.scales[order]) <= 0).all()
    sqs_jax.save(tmp_path / "m.sqs", {"kernel": leaf})
    again = sqs_jax.materialize(sqs_jax.load(tmp_path / "m.sqs"))["kernel"]
    np.testing.assert_array_equal(again, sqs_jax.materialize(leaf))
