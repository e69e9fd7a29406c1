import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import (
    FIELDS,
    KEY,
    PRIOR,
    differences,
    generic,
    inclusion,
    leaf,
    params,
    reference,
    reference_mean,
    transform,
)

from sqs_jax import SubDistribution, Windows
from sqs_jax.distribution.codebook import RELATIVE_FLOOR

OUTLIER = Windows(kind="outlier", count=4)


def start(shape=(12, 8), dtype=jnp.float32, **rule):
    return leaf(generic(transform(**rule).init(params(shape, dtype=dtype))))


def floating(tree):
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]


def test_a_start_keeps_every_weight_at_inclusion_099_and_copies():
    loc = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32)
    d = SubDistribution.init(loc, components=3)
    np.testing.assert_array_equal(d.loc, loc)
    assert d.loc is not loc and d.loc.unsafe_buffer_pointer() != loc.unsafe_buffer_pointer()
    np.testing.assert_allclose(jax.nn.sigmoid(d.gate_logits), 0.99, rtol=1e-5)
    assert d.kept.all()


@pytest.mark.parametrize("windows", [Windows(), OUTLIER], ids=["single", "outlier"])
@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_mean_matches_float64(windows, temperature):
    d = start(windows=windows)
    np.testing.assert_allclose(d.mean(temperature), reference_mean(d, temperature), atol=1e-4)


@pytest.mark.parametrize(
    ("output", "windows"),
    [
        ("mean", Windows()),
        ("mean", OUTLIER),
        ("kl", Windows()),
        ("kl", OUTLIER),
        ("sample", OUTLIER),
    ],
    ids=["mean", "mean-windows", "kl", "kl-windows", "sample-windows"],
)
def test_gradients_are_the_finite_differences(output, windows):
    with jax.enable_x64(True):
        d = start((5, 3), jnp.float64, components=3, windows=windows)
        weights = jnp.asarray(np.random.default_rng(2).normal(size=d.loc.shape))

        def value(fields, temperature):
            moved = d.replace(**fields)
            if output == "kl":
                return moved.kl(PRIOR, temperature)
            if output == "mean":
                return jnp.sum(weights * moved.mean(temperature))
            return jnp.sum(weights * moved.sample(KEY, temperature, 0.7))

        fields, temperature = {name: getattr(d, name) for name in FIELDS}, jnp.float64(0.6)
        gradient, slope = jax.jit(jax.grad(value, argnums=(0, 1)))(fields, temperature)
        compiled = jax.jit(value)
        for name in FIELDS:
            want = differences(lambda x, n=name: compiled(fields | {n: x}, 0.6), fields[name])
            np.testing.assert_allclose(gradient[name], want, rtol=1e-4, atol=1e-6, err_msg=name)
            assert np.abs(want).max() > 0, name
        want = differences(lambda t: compiled(fields, t), 0.6)
        np.testing.assert_allclose(slope, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("windows", [Windows(), OUTLIER], ids=["single", "outlier"])
def test_mean_tends_to_mode_as_temperature_falls_and_gates_saturate(windows):
    d = start(windows=windows)
    d = d.replace(gate_logits=jnp.where(d.kept, 100.0, -100.0))
    joint = np.sort(np.log(np.maximum(reference(d)[0], 1e-300)), axis=1)
    clear = (joint[:, -1] - joint[:, -2] > 0.05).reshape(d.loc.shape)  # no near tie
    assert clear.mean() > 0.9
    np.testing.assert_allclose(d.mean(1e-3)[clear], d.mode()[clear], rtol=1e-5)
    gradient = jax.grad(lambda x: jnp.sum(x.mean(1e-3)), allow_int=True)(d)
    assert all(np.isfinite(x).all() for x in floating(gradient))


@pytest.mark.parametrize("windows", [Windows(), OUTLIER], ids=["single", "outlier"])
def test_mode_is_straight_through(windows):
    d = start(windows=windows)
    weights = jax.random.normal(KEY, d.loc.shape)
    gradient = jax.grad(lambda x: jnp.sum(weights * x.mode()), allow_int=True)(d)
    np.testing.assert_allclose(gradient.loc, weights, rtol=1e-6)  # pruned weights too
    codes, weights = np.asarray(d.codes()).ravel(), np.asarray(weights, np.float64).ravel()
    assert (codes == 0).sum() == (~np.asarray(d.kept)).sum() > 0
    want = np.bincount(codes, weights, minlength=d.means.size + 1)[1:]  # kept weights alone
    np.testing.assert_allclose(gradient.means.ravel(), want, rtol=1e-4, atol=1e-5)
    for name in ("gate_logits", "log_scales", "mixture_logits", "boundaries"):
        assert not np.any(getattr(gradient, name)), name


def test_mode_is_the_codebook_at_the_codes():
    d = start(windows=OUTLIER)
    table = np.append(0.0, np.asarray(d.means).ravel()).astype(np.float32)
    np.testing.assert_array_equal(d.mode(), table[np.asarray(d.codes())])
    assert d.codes().dtype == jnp.uint8
    wide = SubDistribution.init(d.loc, components=256)
    assert (
        wide.codes().dtype == jnp.uint16
        and SubDistribution.init(d.loc, components=255).codes().dtype == jnp.uint8
    )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
def test_parameters_keep_their_dtype_and_arithmetic_has_at_least_float32(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        d = start(dtype=dtype)
        arithmetic = jnp.float64 if dtype == jnp.float64 else jnp.float32
        for name in ("gate_logits", "means", "log_scales", "mixture_logits", "boundaries"):
            assert getattr(d, name).dtype == arithmetic, name
        assert d.latent.dtype == d.kl(PRIOR, 0.5).dtype == arithmetic
        verbs = (d.mean, d.mode, lambda: d.sample(KEY), lambda: d.sample_hard(KEY))
        for weights in (jax.eval_shape(verb) for verb in verbs):
            assert weights.dtype == dtype and weights.shape == d.loc.shape
        tolerance = 2 * float(jnp.finfo(dtype).eps)  # one rounding, at the end
        want = reference_mean(d, 0.5)
        np.testing.assert_allclose(
            np.asarray(d.mean(0.5), np.float64), want, rtol=tolerance, atol=max(1e-5, tolerance / 9)
        )
        slope = jax.grad(lambda x: jnp.sum(x.mode()) + jnp.sum(x.mean()), allow_int=True)
        gradient = jax.eval_shape(slope, d)
        assert gradient.loc.dtype == dtype and gradient.means.dtype == arithmetic
        assert d.refit().log_scales.dtype == arithmetic


def test_samples_are_unbiased_at_a_small_relaxation():
    d, draws = start(), 4000
    keys = jax.random.split(KEY, draws)
    drawn = jax.jit(jax.vmap(lambda k: d.sample(k, 1.0, 1e-3)))(keys)
    drawn = np.asarray(drawn, np.float64)
    error = drawn.std(axis=0) / np.sqrt(draws)
    assert (np.abs(drawn.mean(axis=0) - reference_mean(d)) <= 5 * error + 1e-6).all()
    phi, means, log_scales = reference(d)
    second = (phi * (means**2 + np.exp(2 * log_scales))).sum(axis=1)
    want = (inclusion(d) * second).reshape(d.loc.shape)  # E[w^2]: scales and gates are drawn too
    error = (drawn**2).std(axis=0) / np.sqrt(draws)
    assert (np.abs((drawn**2).mean(axis=0) - want) <= 6 * error + 1e-6).all()


def test_hard_draws_are_k_level_with_frequencies_phi():
    d, draws = start(), 4000
    drawn = jax.jit(jax.vmap(d.sample_hard))(jax.random.split(KEY, draws))
    phi, means = reference(d)[0], np.asarray(d.means)[0]
    kept = np.asarray(d.kept)
    assert set(np.unique(drawn)) <= {0.0, *means}
    assert not np.asarray(drawn)[:, ~kept].any()
    for k in range(4):
        share = np.mean(np.asarray(drawn) == means[k], axis=0)[kept]
        want = phi[:, k].reshape(kept.shape)[kept]
        assert (np.abs(share - want) <= 5 * np.sqrt(want * (1 - want) / draws) + 2e-3).all()


def test_the_same_key_draws_the_same_and_another_key_another():
    d, other = start(), jax.random.key(8)
    for draw in (d.sample, d.sample_hard):
        np.testing.assert_array_equal(draw(KEY), draw(KEY))
        assert (np.asarray(draw(KEY)) != np.asarray(draw(other))).any()


def test_a_sample_has_a_gradient_in_every_parameter_but_none_where_pruned():
    d = start()
    gradient = jax.grad(lambda x: jnp.sum(jnp.sin(x.sample(KEY))), allow_int=True)(d)
    for name in FIELDS:
        assert np.isfinite(getattr(gradient, name)).all() and np.any(getattr(gradient, name)), name
    for name in ("loc", "gate_logits"):
        assert not np.any(np.asarray(getattr(gradient, name))[~np.asarray(d.kept)])


@pytest.mark.parametrize("logit", [-100.0, 100.0])
def test_saturated_gates_stay_finite_in_mean_and_sample(logit):
    d = start()
    d = d.replace(gate_logits=jnp.full_like(d.gate_logits, logit))

    def total(x):
        return jnp.sum(x.mean(0.1)) + jnp.sum(x.sample(KEY, 0.1, 0.1))

    value, gradient = jax.jit(jax.value_and_grad(total, allow_int=True))(d)
    assert np.isfinite(value) and all(np.isfinite(x).all() for x in floating(gradient))


@pytest.mark.parametrize("windows", [Windows(), OUTLIER], ids=["single", "outlier"])
def test_refit_gives_each_component_the_spread_and_share_of_its_kept_weights(windows):
    d = start((60, 50), windows=windows)
    new = d.refit()
    codes, theta = np.asarray(d.codes()).ravel(), np.asarray(d.loc, np.float64).ravel()
    means = np.asarray(d.means, np.float64).ravel()
    held = np.bincount(codes, minlength=means.size + 1)[1:]
    share = np.maximum(held, 0.5).reshape(d.means.shape)
    np.testing.assert_allclose(
        jax.nn.softmax(new.mixture_logits), share / share.sum(axis=1, keepdims=True), rtol=1e-4
    )
    several = 0
    for k in np.flatnonzero(held > 1):
        spread = np.sqrt(np.mean((theta[codes == k + 1] - means[k]) ** 2))
        assert float(jnp.exp(new.log_scales.ravel()[k])) == pytest.approx(spread, rel=1e-3)
        several += 1
    assert several >= 4
    for name in ("loc", "gate_logits", "kept", "means", "boundaries"):
        np.testing.assert_array_equal(getattr(new, name), getattr(d, name))


@pytest.mark.parametrize("shape", [(12, 8), (0, 3), (1, 1)])
def test_refit_without_weights_is_finite_and_keeps_to_its_floor(shape):
    d = SubDistribution.init(jnp.full(shape, 0.5), components=4)
    for kept in (True, False):
        new = d.replace(kept=jnp.full(shape, kept)).refit()
        assert all(np.isfinite(x).all() for x in floating(new))
        assert (np.exp(new.log_scales) >= 0.99 * RELATIVE_FLOOR * (0.5 if d.loc.size else 0)).all()


def test_stacked_slices_are_independent_sub_distributions():
    loc = jnp.asarray(np.random.default_rng(4).normal(size=(3, 10, 6)), jnp.float32)
    loc = loc * jnp.array([1.0, 10.0, 0.1])[:, None, None]
    stack = SubDistribution.init(loc, components=4, windows=OUTLIER, stacked=1)
    ones = [SubDistribution.init(x, components=4, windows=OUTLIER) for x in loc]

    def verbs(d):
        return d.mean(), d.mode(), d.codes(), d.refit()

    want = jax.tree.map(lambda *x: np.stack(x), *(jax.jit(verbs)(d) for d in ones))
    for a, b in zip(jax.tree.leaves(jax.jit(verbs)(stack)), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert float(stack.kl(PRIOR)) == pytest.approx(sum(float(d.kl(PRIOR)) for d in ones), rel=1e-5)
    slope = jax.jit(jax.grad(lambda s: s.kl(PRIOR), allow_int=True))
    np.testing.assert_allclose(slope(stack).means[1], slope(ones[1]).means, rtol=1e-3, atol=1e-4)
    same = SubDistribution.init(jnp.stack([loc[0]] * 2), components=4, stacked=1)
    for draw in (same.sample(KEY), same.sample_hard(KEY, 30.0)):
        assert (np.asarray(draw[0]) != np.asarray(draw[1])).any()  # each slice has its own noise


def test_two_stacked_axes():
    loc = jnp.asarray(np.random.default_rng(4).normal(size=(2, 3, 5, 4)), jnp.float32)
    d = SubDistribution.init(loc, components=2, stacked=2)
    assert d.means.shape == (2, 3, 1, 2) and d.stacked == 2
    assert d.mean().shape == d.mode().shape == d.sample(KEY).shape == loc.shape
    assert d.refit().means.shape == d.means.shape and np.isfinite(d.kl(PRIOR))
