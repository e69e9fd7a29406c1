import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import KEY, generic, leaf, params, reference, transform

from sqs_jax import Windows
from sqs_jax.distribution import mixture

WINDOWS = [Windows(), Windows(kind="equal", count=3), Windows(kind="outlier", count=4)]


def problem(windows=WINDOWS[0], shape=(12, 8), dtype=jnp.float32):
    return leaf(generic(transform(windows=windows).init(params(shape, dtype=dtype))))


@pytest.mark.parametrize("windows", WINDOWS, ids=lambda w: w.kind)
@pytest.mark.parametrize("temperature", [1.0, 0.3, 0.05])
def test_responsibilities_match_float64(windows, temperature):
    d = problem(windows)
    phi = mixture.responsibilities(d.loc.ravel(), d.mixture, temperature)
    np.testing.assert_allclose(phi.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(phi, reference(d, temperature)[0], atol=2e-4)


@pytest.mark.parametrize("temperature", [1e-4, 1.0, 30.0])
def test_the_most_probable_component_does_not_depend_on_the_temperature(temperature):
    d = problem(WINDOWS[2])
    phi = mixture.responsibilities(d.loc.ravel(), d.mixture, temperature)
    best = np.asarray(mixture.most_probable(d.loc, d.mixture)).ravel()
    assert (np.argmax(phi, axis=1) == best % 4).all()
    assert (np.argmax(reference(d)[0], axis=1) == best % 4).all()


def test_a_tie_goes_to_the_lower_component():
    table = jnp.zeros((1, 3))
    even = mixture.Mixture(jnp.array([[1.0, -1.0, 3.0]]), table, table, jnp.zeros(0))
    assert int(mixture.most_probable(jnp.zeros(1), even)[0]) == 0


@pytest.mark.parametrize("windows", WINDOWS, ids=lambda w: w.kind)
def test_blocks_and_the_whole_agree_in_value_and_gradient(windows, monkeypatch):
    with jax.enable_x64(True):
        whole, blocks = both_ways(windows, monkeypatch)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(blocks), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def both_ways(windows, monkeypatch):
    d = problem(
        windows, shape=(13, 7), dtype=jnp.float64
    )  # 91 weights: blocks of 8, the last one padded
    weights = jax.random.normal(KEY, d.loc.shape, d.loc.dtype)

    def total(loc, mix, values):
        return jnp.sum(weights * mixture.expectation(loc, mix, values, 0.5))

    def evaluate():
        return jax.value_and_grad(total, argnums=(0, 1, 2))(d.loc, d.mixture, d.log_scales)

    whole = evaluate()
    monkeypatch.setattr(mixture, "_BLOCK_ELEMENTS", 32)
    return whole, evaluate()


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_drawn_components_have_the_frequencies_phi(temperature):
    d = problem()
    size, draws = d.loc.size, 4000
    keys = jax.random.split(KEY, draws)
    drawn = jax.vmap(lambda k: mixture.draw_component(k, d.loc, d.mixture, temperature))(keys)
    phi = reference(d, temperature)[0]
    for k in range(4):
        share = np.mean(np.asarray(drawn) == k, axis=0).ravel()
        error = np.sqrt(phi[:, k] * (1 - phi[:, k]) / draws)
        assert (np.abs(share - phi[:, k]) <= 5 * error + 2 / draws).all(), (k, size)


def test_every_block_draws_noise_of_its_own(monkeypatch):
    monkeypatch.setattr(mixture, "_BLOCK_ELEMENTS", 64)
    table = jnp.zeros((1, 4))
    flat = mixture.Mixture(jnp.arange(4.0)[None], table + 50.0, table, jnp.zeros(0))
    loc = jnp.zeros((8, 16))  # 8 blocks of 16 equal weights
    drawn = np.asarray(mixture.draw_component(KEY, loc, flat, 1.0))
    relaxed = np.asarray(mixture.relaxed_component(KEY, loc, flat, 1.0, 0.5)[0])
    assert len(np.unique(drawn, axis=0)) == len(np.unique(relaxed, axis=0)) == 8


def test_relaxed_components_match_the_formula_and_tend_to_one_hot():
    d = problem()
    mean, scale = mixture.relaxed_component(KEY, d.loc, d.mixture, 1.0, 1e-4)
    nearest = np.abs(np.asarray(mean)[..., None] - np.asarray(d.means)[0]).argmin(axis=-1)
    np.testing.assert_allclose(mean, np.asarray(d.means)[0][nearest], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(scale, np.exp(d.log_scales)[0][nearest], rtol=1e-3, atol=1e-4)


def test_an_empty_tensor_has_empty_results():
    d = problem()
    loc = jnp.zeros((0, 3))
    assert mixture.expectation(loc, d.mixture, d.means, 1.0).shape == (0, 3)
    assert mixture.most_probable(loc, d.mixture).shape == (0, 3)
    assert mixture.relaxed_component(KEY, loc, d.mixture, 1.0, 0.5)[1].shape == (0, 3)
