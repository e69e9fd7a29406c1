"""Rounding to a tolerance of the outputs."""

import jax.numpy as jnp
import numpy as np
import pytest

import sqs_jax


def model(seed=0):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 5, (30, 20)).astype(np.uint8)
    return {
        "kernel": sqs_jax.CompressedLeaf(codes, rng.normal(size=(1, 4)).astype(np.float32)),
        "bias": rng.normal(size=20).astype(np.float32),
        "steps": np.arange(3),
    }


INPUTS = np.random.default_rng(1).normal(size=(16, 30)).astype(np.float32)


def predict(params):
    return jnp.asarray(INPUTS) @ params["kernel"] + params["bias"][None]


def change(tree):
    before, after = (predict(sqs_jax.materialize(x)) for x in (model(), tree))
    return float(jnp.linalg.norm(after - before) / jnp.linalg.norm(before))


@pytest.mark.parametrize("tolerance", [0.0, 1e-4, 1e-3, 1e-2, 0.1])
def test_outputs_are_within_the_tolerance_and_bytes_decrease(tolerance):
    tree = model()
    rounded = sqs_jax.round_to_tolerance(tree, predict, tolerance=tolerance)
    assert change(rounded) <= tolerance
    np.testing.assert_array_equal(rounded["kernel"].codes, tree["kernel"].codes)
    assert rounded["kernel"].codebook.dtype == rounded["bias"].dtype == np.float32
    np.testing.assert_array_equal(rounded["steps"], tree["steps"])
    sizes = [leaf.file_bits for leaf in sqs_jax.summarize(rounded).leaves]
    before = [leaf.file_bits for leaf in sqs_jax.summarize(tree).leaves]
    if tolerance == 0:
        assert sizes == before
    if tolerance == 0.1:
        assert sizes[0] == before[0] / 4  # the bias in float8


def test_more_tolerance_never_adds_bytes():
    sizes = [
        sqs_jax.summarize(sqs_jax.round_to_tolerance(model(), predict, tolerance=t)).file_bytes
        for t in (0, 1e-4, 1e-3, 1e-2, 0.1)
    ]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < sizes[0]


def test_values_that_would_overflow_are_not_rounded():
    tree = {**model(), "bias": np.full(20, 1e6, np.float32)}
    rounded = sqs_jax.round_to_tolerance(tree, predict, tolerance=1.0)
    assert np.isfinite(rounded["bias"]).all()


@pytest.mark.parametrize("tolerance", [-1.0, float("nan")])
def test_bad_tolerances_are_refused(tolerance):
    with pytest.raises(ValueError, match="tolerance"):
        sqs_jax.round_to_tolerance(model(), predict, tolerance=tolerance)


def test_a_network_with_outputs_that_are_not_finite_is_refused():
    tree = {**model(), "bias": np.full(20, np.nan, np.float32)}
    with pytest.raises(ValueError, match="not finite"):
        sqs_jax.round_to_tolerance(tree, predict, tolerance=0.1)
