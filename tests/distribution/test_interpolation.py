"""The interpolated averages against the float64 definition, and the bound that guards them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import KEY, PRIOR, reference, reference_kl, reference_mean

import sqs_jax
from sqs_jax import SubDistribution, Windows
from sqs_jax.distribution import blocks, table
from sqs_jax.distribution.expectation import expectation

SHAPE = (128, 192)
OUTLIER = Windows(kind="outlier", count=4)
EQUAL = Windows(kind="equal", count=3)


def heavy(shape=SHAPE, *, seed=0, dtype=jnp.float32, scale=0.05):
    """Weights with the tails of a language model's."""
    return jnp.asarray(np.random.default_rng(seed).standard_t(4, shape) * scale, dtype)


def start(loc=None, *, components=16, windows=None):
    return SubDistribution.init(
        heavy() if loc is None else loc, components=components, windows=windows
    )


def soft(d, temperature, evaluation="table"):
    evaluate = jax.jit(expectation, static_argnames="evaluation")
    (value,) = evaluate(d.latent, d.mixture, d.means[None], temperature, evaluation=evaluation)
    return np.asarray(value)


def exact(d, temperature):
    phi, means, _ = reference(d, temperature)
    return (phi * means).sum(axis=1).reshape(d.loc.shape)


def reach(d):
    return float(np.ptp(np.asarray(d.means)))


def bound(d, temperature):
    windows, components = d.means.shape
    count = table.intervals(d.loc.size, components, windows)
    values = d.means[None]
    return float(
        table.plan(d.latent, d.mixture, values, jnp.float32(temperature), count).fitted_error
    )


@pytest.mark.parametrize(
    ("components", "windows"),
    [(2, None), (16, OUTLIER), (16, EQUAL), (64, None), (256, None)],
)
def test_soft_weights_are_within_the_tolerance_of_float64(components, windows):
    d = start(components=components, windows=windows)
    for temperature in (1.0, 0.5, 0.1, 0.03, 0.01, 1e-3):
        error = np.abs(soft(d, temperature) - exact(d, temperature)).max() / reach(d)
        assert error < table.TOLERANCE, (temperature, error)


@pytest.mark.parametrize("components", [2, 16])
def test_the_bound_holds_and_is_not_idle(components):
    d = start(components=components)
    count = table.intervals(d.loc.size, components, 1)
    used = 0
    for temperature in (1.0, 0.3, 0.1, 0.05, 0.02):
        inputs = d.latent, d.mixture, d.means[None], jnp.float32(temperature)
        plan = table.plan(*inputs, count)
        limit = float(plan.fitted_error)
        (value,) = table.look_up(*inputs, plan=plan, count=count, even=False)
        error = np.abs(np.asarray(value) - exact(d, temperature)).max() / reach(d)
        assert error < limit + 2e-6  # and float32's own
        used += limit < table.TOLERANCE
    assert used >= 2  # a bound that always says no would be of no use


def test_where_the_table_is_too_coarse_the_exact_way_takes_over():
    d = start()
    assert bound(d, 1e-3) > table.TOLERANCE > bound(d, 1.0)
    for temperature, taken_over in ((1e-3, True), (1.0, False)):
        mix = jax.jit(blocks.mix)
        (value,) = mix(d.latent, d.mixture, d.means[None], jnp.float32(temperature))
        same = np.isclose(soft(d, temperature), value, rtol=1e-6, atol=1e-7 * reach(d))
        assert (np.mean(same) > 0.999) == taken_over


def test_a_needle_is_not_missed():
    # a third of the weights are one value: its component is far narrower than any table's step
    loc = jnp.where(jax.random.uniform(KEY, SHAPE) < 1 / 3, 0.0123, heavy())
    d = start(loc)
    assert np.abs(soft(d, 1.0) - exact(d, 1.0)).max() < table.TOLERANCE * reach(d)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_weights_are_averaged_in_float32(dtype):
    d = start(heavy(dtype=dtype))
    assert np.abs(soft(d, 0.5) - exact(d, 0.5)).max() < table.TOLERANCE * reach(d)
    mean = d.mean(0.5, "table")
    assert mean.dtype == dtype
    np.testing.assert_allclose(
        np.asarray(mean, np.float32), reference_mean(d, 0.5), rtol=2**-7, atol=1e-3 * reach(d)
    )


@pytest.mark.parametrize("scale", [1e-18, 1e15])
def test_extreme_scales(scale):
    d = start(heavy(scale=scale))
    assert np.abs(soft(d, 0.5) - exact(d, 0.5)).max() < table.TOLERANCE * reach(d)


def test_extreme_weights():
    for value in (0.0, 0.3, -1e30):
        np.testing.assert_allclose(soft(start(jnp.full(SHAPE, value)), 1.0), value, rtol=1e-6)
    outlier = start(heavy().at[3, 5].set(1e4))
    assert np.abs(soft(outlier, 1.0) - exact(outlier, 1.0)).max() < table.TOLERANCE * reach(outlier)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_not_hidden(bad):
    d = start()
    d = d.replace(loc=d.loc.at[0, 0].set(bad))
    assert not np.isfinite(soft(d, 1.0)[0, 0])


def gradients(d, temperature, evaluation):
    upstream = jax.random.normal(KEY, d.loc.shape)

    def total(d):
        weight, bound = d.mean_and_kl(PRIOR, temperature, evaluation)
        return jnp.sum(upstream * weight) + 1e-3 * bound

    return jax.jit(jax.grad(total, allow_int=True))(d)


@pytest.mark.parametrize(
    ("components", "temperature", "windows"),
    [(4, 0.2, OUTLIER), (16, 0.3, None)],
)
def test_gradients_are_those_of_the_loop(components, temperature, windows):
    d = start(components=components, windows=windows)
    # overlapping components, as in training; the gradient at the start is nearly one-hot
    d = d.replace(log_scales=d.log_scales + 0.7)
    assert bound(d, temperature) < table.TOLERANCE
    got, want = (gradients(d, temperature, way) for way in ("table", "loop"))
    for field in ("loc", "gate_logits", "means", "log_scales", "mixture_logits"):
        a, b = np.asarray(getattr(got, field)), np.asarray(getattr(want, field))
        error = np.sqrt(np.mean((a - b) ** 2) / np.mean(b**2))
        assert error < 1e-2, (field, error)


def test_the_gradient_is_that_of_float64_by_differences():
    d = start(components=8)
    d = d.replace(log_scales=d.log_scales + 0.7)
    gradient = gradients(d, 0.5, "table")
    upstream = np.asarray(jax.random.normal(KEY, d.loc.shape), np.float64)

    def total(**changes):
        moved = d.replace(**changes)
        return (upstream * reference_mean(moved, 0.5)).sum() + 1e-3 * reference_kl(moved, 0.5).sum()

    for field in ("means", "log_scales", "mixture_logits"):
        value = np.asarray(getattr(d, field), np.float64)
        want = np.zeros_like(value)
        step = 1e-6 * (reach(d) if field == "means" else 1)
        for index in np.ndindex(value.shape):
            up, down = value.copy(), value.copy()
            up[index] += step
            down[index] -= step
            want[index] = (total(**{field: up}) - total(**{field: down})) / (2 * step)
        error = np.abs(np.asarray(getattr(gradient, field)) - want).max() / np.abs(want).max()
        assert error < 1e-2, (field, error)


def test_values_share_the_pass_and_agree_with_it_apart():
    d = start()
    weight, kl = d.mean_and_kl(PRIOR, 0.5, "table")
    alone = d.mean(0.5, "table")  # perhaps by another grid: each has its own bound
    np.testing.assert_allclose(weight, alone, atol=table.TOLERANCE * reach(d))
    np.testing.assert_allclose(kl, d.kl(PRIOR, 0.5, "table"), rtol=1e-4)
    np.testing.assert_allclose(kl, reference_kl(d, 0.5).sum(), rtol=1e-4)


def test_the_platform_chooses_and_the_caller_may():
    prior = sqs_jax.SpikeSlabPrior(inclusion=0.3, scale=0.7)
    by = {
        way: sqs_jax.spike_slab_gmm(prior=prior, evaluation=way)
        for way in ("auto", "table", "loop")
    }
    posterior = by["auto"].init({"kernel": heavy()})
    mean = {way: np.asarray(t.mean(posterior)["kernel"]) for way, t in by.items()}
    np.testing.assert_array_equal(mean["auto"], mean["table"])  # on a CPU
    assert (mean["auto"] != mean["loop"]).any()
    with pytest.raises(ValueError, match="evaluation is 'fast'"):
        sqs_jax.spike_slab_gmm(prior=prior, evaluation="fast")


@pytest.mark.parametrize("size", [0, 1, 100, 4000, 70_000, 10**7, 10**9])
@pytest.mark.parametrize("components", [1, 16, 256, 20_000])
def test_a_table_is_small_beside_its_tensor(size, components):
    for windows in (1, 4):
        count = table.intervals(size, components, windows)
        assert count * windows * components <= 4 * size and count * windows * 8 <= size
