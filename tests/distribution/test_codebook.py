import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sqs_jax import SubDistribution, Windows
from sqs_jax.distribution.codebook import RELATIVE_FLOOR, init_mixture

KINDS = ["kmeans", "quantile"]


def fit(weights, components, initialiser="kmeans", **options):
    options.setdefault("windows", Windows())
    return init_mixture(
        jnp.asarray(weights, jnp.float32), components=components, initialiser=initialiser, **options
    )


def laplace(size):
    """Laplace quantiles of variance 1: no sampling error."""
    u = (np.arange(size) + 0.5) / size - 0.5
    return -np.sign(u) * np.log1p(-2 * np.abs(u)) / math.sqrt(2)


@pytest.mark.parametrize(("components", "optimum"), [(4, 0.1762), (16, 0.0154)])
def test_kmeans_reaches_the_lloyd_max_distortion_of_laplace_weights(components, optimum):
    weights = laplace(200_000)
    means = np.asarray(fit(weights, components).means, np.float64)[0]
    nearest = means[np.searchsorted((means[1:] + means[:-1]) / 2, weights)]
    distortion = np.mean((weights - nearest) ** 2) / np.mean(weights**2)
    assert distortion == pytest.approx(optimum, rel=0.02)


def test_quantile_cells_have_equal_occupancy_and_their_own_mean_and_spread():
    weights = np.random.default_rng(0).normal(size=4096)
    mixture = fit(weights, 16, "quantile")
    cells = np.sort(weights).reshape(16, 256)
    np.testing.assert_allclose(jax.nn.softmax(mixture.mixture_logits)[0], 1 / 16, rtol=1e-5)
    np.testing.assert_allclose(mixture.means[0], cells.mean(axis=1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.exp(mixture.log_scales)[0], cells.std(axis=1), rtol=1e-3)


def test_kmeans_shares_and_spreads_are_those_of_the_cells():
    weights = np.random.default_rng(0).laplace(size=5000)
    mixture = fit(weights, 8)
    means = np.asarray(mixture.means, np.float64)[0]
    cell = np.searchsorted((means[1:] + means[:-1]) / 2, weights)
    share = np.bincount(cell, minlength=8) / 5000
    spread = np.array([weights[cell == k].std() for k in range(8)])
    np.testing.assert_allclose(jax.nn.softmax(mixture.mixture_logits)[0], share, atol=2e-3)
    np.testing.assert_allclose(np.exp(mixture.log_scales)[0], spread, rtol=0.05)


rng = np.random.default_rng(5)
HARD = {
    "constant": np.full(50, 0.25),
    "zero": np.zeros(50),
    "one weight": np.array([0.3]),
    "empty": np.zeros(0),
    "two values": np.repeat([-1.0, 1.0], 30),
    "as many values as components": np.repeat(np.arange(16.0), 3),
    "one outlier": np.append(rng.normal(size=300), 1e4),
    "negative outlier": np.append(rng.normal(size=300), -1e4),
    "heavy ties": np.append(np.zeros(500), rng.normal(size=40)),
    "rounded": np.round(rng.normal(size=400), 1),
    "tiny": rng.normal(size=100) * 1e-20,
    "large": rng.normal(size=100) * 1e15,
}
SPLITS = [
    Windows(),
    Windows(kind="equal", count=4),
    Windows(kind="outlier", count=3),
    Windows(kind="outlier", count=5),
]


@pytest.mark.parametrize("initialiser", KINDS)
@pytest.mark.parametrize("name", HARD)
def test_no_cell_is_empty_and_no_width_zero(name, initialiser):
    for windows in SPLITS:
        for components in (1, 2, 16, 256):
            mixture = jax.tree.map(
                np.asarray, fit(HARD[name], components, initialiser, windows=windows)
            )
            assert mixture.means.shape == (windows.count, components)
            for table in mixture[:3]:
                assert np.isfinite(table).all(), (windows, components)
            assert (np.exp(mixture.log_scales) > 0).all()
            np.testing.assert_allclose(np.exp(mixture.mixture_logits).sum(axis=1), 1, rtol=1e-4)
            assert (np.diff(mixture.means, axis=1) >= 0).all()


@pytest.mark.parametrize("initialiser", KINDS)
@pytest.mark.parametrize("distinct", [1, 2, 3, 15, 16])
def test_fewer_distinct_values_than_components_are_represented_exactly(distinct, initialiser):
    rng = np.random.default_rng(distinct)
    values = rng.permutation(np.arange(-8, 8))[:distinct] * 0.37
    weights = jnp.asarray(rng.choice(values, (40, 10)), jnp.float32)
    d = SubDistribution.init(weights, components=16, initialiser=initialiser)
    assert set(np.unique(d.means)) == set(np.unique(weights))
    np.testing.assert_array_equal(d.mode(), weights)


@pytest.mark.parametrize("initialiser", KINDS)
def test_every_cell_holds_a_weight_when_values_suffice(initialiser):
    for name in ("one outlier", "heavy ties", "rounded"):
        mixture = fit(HARD[name], 16, initialiser)
        assert len(np.unique(mixture.means)) == 16, name


def test_an_extreme_outlier_takes_one_level_and_leaves_the_others_their_own():
    rng = np.random.default_rng(0)
    body = rng.normal(size=20_000)
    weights = jnp.asarray(np.append(body, 1e5), jnp.float32)
    d = SubDistribution.init(weights, components=4)
    assert float(d.mode()[-1]) == 1e5
    error = np.mean((np.asarray(d.mode())[:-1] - body) ** 2)
    assert error < 0.21  # three levels of a normal: 0.190 at best


def test_scales_have_a_floor_relative_to_the_weights():
    for scale in (1.0, 1e-3):
        mixture = fit(np.repeat([-scale, scale], 100), 4)
        floor = RELATIVE_FLOOR * scale
        np.testing.assert_allclose(np.exp(mixture.log_scales), floor, rtol=0.02)


@pytest.mark.parametrize("windows", SPLITS[:3])
def test_traced_equals_eager(windows):
    weights = jnp.asarray(np.random.default_rng(1).standard_t(3, (3, 20, 5)), jnp.float32)

    def one(x):
        return fit(x, 4, windows=windows)

    eager = [one(x) for x in weights]
    stacked = init_mixture(weights, components=4, windows=windows, stacked=1)
    chex.assert_trees_all_equal(jax.jit(one)(weights[0]), eager[0])
    jax.tree.map(
        np.testing.assert_array_equal, jax.tree.map(lambda *x: np.stack(x), *eager), stacked
    )
    mapped = jax.vmap(one)(weights)
    chex.assert_trees_all_equal(mapped, stacked)
    shapes = jax.eval_shape(one, weights[0])
    assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(
        lambda x: (x.shape, x.dtype), eager[0]
    )


def test_the_fit_does_not_depend_on_the_order_of_the_weights():
    weights = np.random.default_rng(2).standard_t(3, 1000)
    shuffled = np.random.default_rng(3).permutation(weights)
    chex.assert_trees_all_equal(fit(weights, 8), fit(shuffled, 8))
