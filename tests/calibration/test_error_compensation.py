"""Codes chosen input by input: the factor against its definition, errors against those before."""

import jax.numpy as jnp
import numpy as np
import pytest

from sqs_jax.calibration.error_compensation import code_bits, inverse_factor, recode_kernel


def correlated(inputs, seed=0, samples=400):
    """Second moments of inputs that have much in common."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((samples, inputs)) @ rng.standard_normal((inputs, inputs))
    x += 3 * rng.standard_normal((samples, 1))
    return (x.T @ x / samples).astype(np.float32)


def rounded(weights, levels):
    """Codes of the nearest of zero and the levels."""
    values = np.concatenate([[0.0], levels])
    return np.abs(weights[..., None] - values).argmin(-1).astype(np.uint8)


def loss(weights, codes, levels, moments):
    error = weights - np.concatenate([[0.0], levels])[codes]
    return float(np.trace(error.T @ moments @ error))


LEVELS = np.array([-1.8, -1.2, -0.6, 0.6, 1.2, 1.8], np.float32)


@pytest.mark.parametrize("in_order", [False, True])
def test_the_factor_is_that_of_the_damped_inverse(in_order):
    moments = correlated(9)
    found = inverse_factor(jnp.asarray(moments), in_order=in_order)
    order = np.asarray(found.order)
    if in_order:
        assert (order == np.arange(9)).all()
    else:
        assert (np.diff(np.diagonal(moments)[order]) <= 0).all()
    damped = moments + 0.01 * np.diagonal(moments).mean() * np.eye(9)
    factor = np.asarray(found.factor, np.float64)
    assert (np.tril(factor, -1) == 0).all()
    inverse = np.linalg.inv(damped.astype(np.float64))[order][:, order]
    np.testing.assert_allclose(factor.T @ factor, inverse, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found.moments, damped, rtol=1e-6)


@pytest.mark.parametrize(("inputs", "outputs"), [(20, 30), (150, 8)])  # one block, and two
def test_outputs_are_nearer_at_no_more_bits(inputs, outputs):
    rng = np.random.default_rng(1)
    weights = rng.laplace(0, 0.6, (inputs, outputs)).astype(np.float32)
    codes, moments = rounded(weights, LEVELS), correlated(inputs)
    feedback = inverse_factor(jnp.asarray(moments))
    again, levels = recode_kernel(jnp.asarray(weights), codes, LEVELS, feedback)
    before = loss(weights, codes, LEVELS, moments)
    assert loss(weights, again, levels, moments) < 0.7 * before
    assert code_bits(np.bincount(again.ravel())) <= code_bits(np.bincount(codes.ravel()))
    assert again.dtype == codes.dtype and levels.dtype == LEVELS.dtype
    twice = recode_kernel(jnp.asarray(weights), codes, LEVELS, feedback)
    assert (twice[0] == again).all() and (twice[1] == levels).all()


def test_inputs_without_correlation_leave_nothing_to_make_good():
    rng = np.random.default_rng(2)
    weights = rng.laplace(0, 0.6, (40, 50)).astype(np.float32)
    codes = rounded(weights, LEVELS)
    feedback = inverse_factor(jnp.eye(40))
    again, levels = recode_kernel(jnp.asarray(weights), codes, LEVELS, feedback)
    before = loss(weights, codes, LEVELS, np.eye(40))
    # the same trade of error against length, by levels that have moved a little
    assert loss(weights, again, levels, np.eye(40)) < 1.1 * before


def test_what_loses_nothing_or_is_all_pruned_stays():
    values = np.concatenate([[0.0], LEVELS])
    codes = np.random.default_rng(3).integers(0, 7, (12, 10)).astype(np.uint8)
    feedback = inverse_factor(jnp.asarray(correlated(12)))
    weights = jnp.asarray(values[codes], jnp.float32)
    same, levels = recode_kernel(weights, codes, LEVELS, feedback)
    assert (same == codes).all() and (levels == LEVELS).all()
    none = np.zeros_like(codes)
    same, _ = recode_kernel(weights, none, LEVELS, feedback)
    assert (same == 0).all()


def test_inputs_that_are_never_seen_do_no_harm():
    weights = np.random.default_rng(4).laplace(0, 0.6, (10, 20)).astype(np.float32)
    codes, moments = rounded(weights, LEVELS), correlated(10)
    moments[:, 3:5] = moments[3:5] = 0
    feedback = inverse_factor(jnp.asarray(moments))
    again, levels = recode_kernel(jnp.asarray(weights), codes, LEVELS, feedback)
    assert np.isfinite(levels).all()
    assert loss(weights, again, levels, moments) <= loss(weights, codes, LEVELS, moments)
