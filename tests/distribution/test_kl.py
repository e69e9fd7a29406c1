import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import PRIOR, generic, inclusion, leaf, params, reference, reference_kl, transform

from sqs_jax import SpikeSlabPrior, SubDistribution, Windows
from sqs_jax.distribution.kl import bernoulli_kl, gaussian_kl, kl_bound
from sqs_jax.distribution.mixture import responsibilities
from sqs_jax.distribution.windows import window_index

LOGIT = math.log(PRIOR.inclusion / (1 - PRIOR.inclusion))


def one_component(logit, mean=0.0, scale=PRIOR.scale, shape=(5, 4)):
    start = SubDistribution.init(jnp.ones(shape), components=1)
    return start.replace(
        gate_logits=jnp.full(shape, logit),
        means=jnp.full((1, 1), mean),
        log_scales=jnp.full((1, 1), math.log(scale)),
    )


def bound_of(d, temperature=1.0):
    phi = responsibilities(d.latent.ravel(), d.mixture, temperature)
    window = window_index(d.latent.ravel(), d.boundaries)
    slab = jnp.sum(phi * gaussian_kl(d.means, d.log_scales, PRIOR.scale)[window], axis=-1)
    return kl_bound(slab.reshape(d.loc.shape), d.gate_logits, d.kept, PRIOR)


def test_bound_is_zero_where_posterior_equals_prior():
    d = one_component(LOGIT)
    np.testing.assert_allclose(bound_of(d), 0, atol=1e-6)
    gradient = jax.grad(lambda x: x.kl(PRIOR), allow_int=True)(d)
    for name in ("gate_logits", "means", "log_scales"):
        np.testing.assert_allclose(getattr(gradient, name), 0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("logit", [-3.0, 0.0, 4.0])
def test_one_component_has_the_closed_form(logit):
    d, rho = one_component(logit, mean=0.4, scale=0.2), 1 / (1 + math.exp(-logit))
    slab = math.log(0.7 / 0.2) + (0.2**2 + 0.4**2) / (2 * 0.7**2) - 0.5
    want = rho * math.log(rho / 0.3) + (1 - rho) * math.log((1 - rho) / 0.7) + rho * slab
    np.testing.assert_allclose(bound_of(d), want, rtol=1e-5)


def test_both_bernoulli_terms_count():
    # Certain to be in, and certain to be out: each leaves one term, and both cost.
    assert float(bernoulli_kl(jnp.float32(60.0), 0.3)) == pytest.approx(-math.log(0.3))
    assert float(bernoulli_kl(jnp.float32(-60.0), 0.3)) == pytest.approx(-math.log(0.7))
    assert float(bernoulli_kl(jnp.float32(0.0), 0.3)) == pytest.approx(
        0.5 * math.log(0.5 / 0.3) + 0.5 * math.log(0.5 / 0.7)
    )


@pytest.mark.parametrize("windows", [Windows(), Windows(kind="outlier", count=4)])
@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_bound_matches_float64(windows, temperature):
    d = leaf(generic(transform(windows=windows).init(params())))
    want = reference_kl(d, temperature)
    np.testing.assert_allclose(bound_of(d, temperature).ravel(), want, rtol=1e-3, atol=1e-4)
    assert float(d.kl(PRIOR, temperature)) == pytest.approx(want.sum(), rel=1e-4)


def test_bound_is_never_below_monte_carlo_and_the_gap_at_most_rho_times_entropy():
    d = leaf(generic(transform().init(params((6, 5))), spread=1.0))
    rng, draws = np.random.default_rng(3), 20_000
    phi, means, log_scales = reference(d)
    rho, bound = inclusion(d), reference_kl(d)
    entropy = -(phi * np.log(np.maximum(phi, 1e-300))).sum(axis=1)
    gaps = []
    for i in range(phi.shape[0]):
        k = rng.choice(4, draws, p=phi[i])
        w = rng.normal(means[i, k], np.exp(log_scales[i, k]))
        z = (w[:, None] - means[i]) / np.exp(log_scales[i])
        log_q = np.log((phi[i] * np.exp(-0.5 * z**2 - log_scales[i])).sum(axis=1))
        log_ratio = log_q + 0.5 * (w / PRIOR.scale) ** 2 + math.log(PRIOR.scale)
        exact = phi[i] @ gaussian_float64(means[i], log_scales[i])
        error = 4 * rho[i] * log_ratio.std() / math.sqrt(draws) + 1e-9
        gap = rho[i] * (exact - log_ratio.mean())
        assert -error <= gap <= rho[i] * entropy[i] + error
        assert entropy[i] <= math.log(4)
        gaps.append(gap)
    assert max(gaps) > 0.1  # the mixtures overlap: this is no test of one-hot responsibilities
    np.testing.assert_allclose(bound_of(d).ravel(), bound, rtol=1e-4, atol=1e-5)


def gaussian_float64(means, log_scales):
    square = np.exp(2 * log_scales) + means**2
    return math.log(PRIOR.scale) - log_scales + square / (2 * PRIOR.scale**2) - 0.5


def test_gaussian_kl_matches_numerical_integration():
    w = np.linspace(-4, 4, 400_001)
    log_q = -0.5 * ((w - 0.3) / 0.25) ** 2 - math.log(0.25) - 0.5 * math.log(2 * math.pi)
    log_p = -0.5 * (w / 0.7) ** 2 - math.log(0.7) - 0.5 * math.log(2 * math.pi)
    want = np.sum(np.exp(log_q) * (log_q - log_p)) * (w[1] - w[0])
    got = gaussian_kl(jnp.float32(0.3), jnp.float32(math.log(0.25)), 0.7)
    assert float(got) == pytest.approx(want, rel=1e-4)


def test_a_pruned_weight_costs_a_constant_and_has_no_gradient():
    d = leaf(generic(transform().init(params())))
    d = d.replace(kept=jnp.zeros(d.loc.shape, bool))
    np.testing.assert_allclose(bound_of(d), -math.log(0.7), rtol=1e-6)
    gradient = jax.grad(lambda x: x.kl(PRIOR), allow_int=True)(d)
    for name in ("loc", "gate_logits", "means", "log_scales", "mixture_logits"):
        assert not np.any(getattr(gradient, name)), name


@pytest.mark.parametrize("logit", [-1e4, -100.0, 100.0, 1e4])
def test_saturated_gates_stay_finite_in_value_and_gradient(logit):
    d = leaf(transform().init(params()))
    d = d.replace(gate_logits=jnp.full_like(d.gate_logits, logit))
    value, gradient = jax.value_and_grad(lambda x: x.kl(PRIOR), allow_int=True)(d)
    assert np.isfinite(value)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient) if x.dtype == jnp.float32)


@pytest.mark.parametrize("bad", [0.0, 1.0, -0.1, float("nan")])
def test_prior_refuses_an_inclusion_out_of_range(bad):
    with pytest.raises(ValueError, match=f"inclusion is {bad}"):
        SpikeSlabPrior(inclusion=bad, scale=1.0)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("inf"), float("nan")])
def test_prior_refuses_a_scale_out_of_range(bad):
    with pytest.raises(ValueError, match=f"scale is {bad}"):
        SpikeSlabPrior(inclusion=0.5, scale=bad)
