import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import KEY, generic, leaf, params, reference, transform

from sqs_jax import Windows
from sqs_jax.distribution import hard
from sqs_jax.distribution.mixture import Mixture, responsibilities
from sqs_jax.distribution.soft_average import Draw, average, highest
from sqs_jax.distribution.windows import window_index

WINDOWS = [Windows(), Windows(kind="equal", count=3), Windows(kind="outlier", count=4)]


def problem(windows=WINDOWS[0], shape=(12, 8), dtype=jnp.float32, number=4):
    init = transform(windows=windows, components=number).init
    return leaf(generic(init(params(shape, dtype=dtype))))


def relaxed_component(key, loc, mixture, temperature, relaxation):
    """The means and scales of relaxed draws."""
    values = jnp.stack([mixture.means, jnp.exp(mixture.log_scales)])
    draw = Draw(key, jnp.asarray(relaxation, loc.dtype))
    return average(loc, mixture, values, temperature, draw=draw)


def most_probable(loc, mixture):
    component, mean = hard.most_probable(loc, mixture)
    np.testing.assert_array_equal(mean, np.asarray(mixture.means).ravel()[component])
    return component


def draw_component(key, loc, mixture, temperature):
    return highest(loc, mixture, temperature, key=key)[0]


@pytest.mark.parametrize("temperature", [1e-4, 1.0, 30.0])
def test_the_most_probable_component_does_not_depend_on_the_temperature(temperature):
    d = problem(WINDOWS[2])
    phi = responsibilities(d.loc.ravel(), d.mixture, temperature)
    best = np.asarray(most_probable(d.loc, d.mixture)).ravel()
    assert (np.argmax(phi, axis=1) == best % 4).all()
    assert (np.argmax(reference(d)[0], axis=1) == best % 4).all()


@pytest.mark.parametrize(
    ("number", "shape"),
    [
        (1, (40, 30)),
        (64, (40, 30)),
        (65, (40, 30)),
        (200, (40, 30)),
        (4, (90, 80)),
        (64, (300, 200)),
    ],
)
def test_the_most_probable_of_however_many_components(number, shape):
    d = problem(number=number, shape=shape)
    best = np.asarray(most_probable(d.loc, d.mixture)).ravel()
    phi = reference(d)[0]
    gap = phi.max(axis=1) - phi[np.arange(phi.shape[0]), best]
    assert gap.max() < 1e-4  # float32 may decide a tie in another way than float64


def test_a_tie_goes_to_the_lower_component():
    table = jnp.zeros((1, 3))
    even = Mixture(jnp.array([[1.0, -1.0, 3.0]]), table, table, jnp.zeros(0))
    assert int(most_probable(jnp.zeros(1), even)[0]) == 0


def by_definition(loc, mixture, values, temperature):
    """The averages from the [N, K] responsibilities, for autodiff."""
    phi = responsibilities(loc.ravel(), mixture, temperature)
    window = window_index(loc.ravel(), mixture.boundaries)
    return tuple(jnp.sum(phi * v[window], axis=-1).reshape(loc.shape) for v in values)


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize(
    ("number", "windows"), [(1, WINDOWS[0]), (4, WINDOWS[2]), (20, WINDOWS[1]), (20, WINDOWS[0])]
)
def test_averages_and_their_gradients_are_those_of_the_definition(number, windows, at_once):
    with jax.enable_x64(True):
        d = problem(windows, (13, 17), jnp.float64, number)
        values = jnp.stack([d.means, d.log_scales])
        upstream = jax.random.normal(KEY, (2, *d.loc.shape), d.loc.dtype)

        def total(*inputs):
            found = by_definition(*inputs)
            return sum(jnp.sum(g * f) for g, f in zip(upstream, found, strict=True)), found

        def exactly(*inputs):
            found = average(*inputs, at_once=at_once)
            return sum(jnp.sum(g * f) for g, f in zip(upstream, found, strict=True)), tuple(found)

        inputs = (d.loc, d.mixture, values, jnp.float64(0.6))
        want, got = (
            jax.value_and_grad(function, argnums=(0, 1, 2, 3), has_aux=True)(*inputs)
            for function in (total, exactly)
        )
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_drawn_components_have_the_frequencies_phi(temperature):
    d = problem()
    size, draws = d.loc.size, 4000
    keys = jax.random.split(KEY, draws)
    drawn = jax.vmap(lambda k: draw_component(k, d.loc, d.mixture, temperature))(keys)
    phi = reference(d, temperature)[0]
    for k in range(4):
        share = np.mean(np.asarray(drawn) == k, axis=0).ravel()
        error = np.sqrt(phi[:, k] * (1 - phi[:, k]) / draws)
        assert (np.abs(share - phi[:, k]) <= 5 * error + 2 / draws).all(), (k, size)


def test_every_weight_and_component_draws_noise_of_its_own():
    table = jnp.zeros((1, 4))
    flat = Mixture(jnp.arange(4.0)[None], table + 50.0, table, jnp.zeros(0))
    loc = jnp.zeros((8, 16))  # equal weights
    drawn = np.asarray(draw_component(KEY, loc, flat, 1.0))
    relaxed = np.asarray(relaxed_component(KEY, loc, flat, 1.0, 0.5)[0])
    assert len(np.unique(drawn, axis=0)) == len(np.unique(relaxed, axis=0)) == 8
    assert len(np.unique(drawn)) == 4


def test_relaxed_components_match_the_formula_and_tend_to_one_hot():
    d = problem()
    mean, scale = relaxed_component(KEY, d.loc, d.mixture, 1.0, 1e-4)
    nearest = np.abs(np.asarray(mean)[..., None] - np.asarray(d.means)[0]).argmin(axis=-1)
    np.testing.assert_allclose(mean, np.asarray(d.means)[0][nearest], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(scale, np.exp(d.log_scales)[0][nearest], rtol=1e-3, atol=1e-4)


def test_a_relaxed_draw_averages_to_a_draw_from_phi():
    d = problem()
    keys = jax.random.split(KEY, 2000)
    draws = jax.vmap(lambda k: relaxed_component(k, d.loc, d.mixture, 1.0, 0.01)[0])(keys)
    phi, means, _ = reference(d)
    want = (phi * means).sum(axis=1).reshape(d.loc.shape)
    np.testing.assert_allclose(np.mean(draws, axis=0), want, atol=6 * np.ptp(means) / 2000**0.5)


def test_sums_by_component_are_numpys():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(50, 33)), jnp.float32)
    component = jnp.asarray(rng.integers(0, 7, x.shape), jnp.int32)  # 6 is outside
    want = np.bincount(np.ravel(component), np.ravel(x), 7)[:6]
    np.testing.assert_allclose(hard.sum_by_component(x, component, 6), want, atol=1e-5)
    assert hard.sum_by_component(jnp.zeros((0, 3)), jnp.zeros((0, 3), jnp.int32), 2).sum() == 0


def test_many_equal_terms_are_counted_exactly():
    ones = jnp.ones((1 << 9, 1 << 16))  # 2^25 terms: a running float32 sum stops at 2^24
    held = jnp.zeros(ones.shape, jnp.int32)
    assert int(hard.sum_by_component(ones, held, 2)[0]) == ones.size


def test_an_empty_tensor_has_empty_results():
    d = problem()
    loc = jnp.zeros((0, 3))
    assert average(loc, d.mixture, d.means[None], 1.0)[0].shape == (0, 3)
    assert most_probable(loc, d.mixture).shape == (0, 3)
    assert relaxed_component(KEY, loc, d.mixture, 1.0, 0.5)[1].shape == (0, 3)


@pytest.mark.parametrize("temperature", [1.0, 1e-3])
@pytest.mark.parametrize("relaxation", [1.0, 0.05])
def test_weights_that_are_far_from_every_component_have_the_nearest_ones_values(
    temperature, relaxation
):
    means = jnp.array([-0.4, -0.1, 0.05, 0.3])
    mixture = Mixture(means[None], jnp.full((1, 4), jnp.log(2e-5)), jnp.zeros((1, 4)), jnp.zeros(0))
    loc = jnp.linspace(-1.5, 1.5, 3001)  # up to 75,000 deviations away
    distance = np.abs(np.asarray(loc)[:, None] - np.asarray(means))
    two = np.sort(distance, axis=1)[:, :2]
    clear = two[:, 1] - two[:, 0] > 1e-3
    nearest = np.asarray(means)[np.argmin(distance, axis=1)]

    def averages(loc, means, key):
        moved = mixture._replace(means=means)
        draw = None if key is None else Draw(key, jnp.float32(relaxation))
        return average(loc, moved, means[None], temperature, draw=draw)[0]

    for key in (None, KEY):
        for function in (averages, jax.jit(averages)):
            values, pull = jax.vjp(lambda *x: function(*x, key), loc, mixture.means)  # noqa: B023
            np.testing.assert_allclose(values[clear], nearest[clear], atol=1e-5)
            assert jnp.isfinite(values).all()
            assert all(bool(jnp.isfinite(x).all()) for x in pull(jnp.ones_like(loc)))
