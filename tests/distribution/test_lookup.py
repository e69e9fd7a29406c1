"""The looked-up averages against the float64 definition, and the checks that guard them."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import FIELDS, KEY, PRIOR, reference_kl, reference_mean

import sqs_jax
from sqs_jax import SubDistribution, Windows
from sqs_jax.distribution import lookup, means_and_kls, modes
from sqs_jax.distribution.grid import grid_over, locate

SHAPE = (192, 256)
OUTLIER = Windows(kind="outlier", count=4)
EQUAL = Windows(kind="equal", count=3)


def heavy(shape=SHAPE, *, seed=0, dtype=jnp.float32, scale=0.05):
    """Weights with the tails of a language model's."""
    return jnp.asarray(np.random.default_rng(seed).standard_t(4, shape) * scale, dtype)


def start(loc=None, *, components=16, windows=None, wider=0.0):
    """A start whose components may overlap, as in training: at the start phi is nearly one-hot."""
    loc = heavy() if loc is None else loc
    d = SubDistribution.init(loc, components=components, windows=windows)
    return d.replace(gate_logits=jax.random.normal(KEY, loc.shape), log_scales=d.log_scales + wider)


def error(d, temperature):
    """The largest error of the soft weights, in ranges of the means."""
    got = np.asarray(d.mean(temperature, "table"), np.float64)
    return np.abs(got - reference_mean(d, temperature)).max() / np.ptp(np.asarray(d.means))


@jax.jit
def is_looked_up(d, temperature):
    """Whether the table of a tensor of one slice is accurate enough to be used."""
    windows, components = d.means.shape
    cells = lookup.cell_count(d.loc.size, components, windows)
    grid, points = grid_over(d.latent, d.mixture, cells)
    inputs = d.mixture, d.means[None], temperature
    table = lookup.Table(lookup.entries(points, *inputs), grid, d.boundaries)
    return lookup.is_accurate(table, points, *inputs)


@pytest.mark.parametrize(
    ("components", "windows"),
    [(2, None), (4, None), (16, OUTLIER), (16, EQUAL), (64, None), (128, None)],
)
def test_soft_weights_are_within_the_tolerance_of_float64(components, windows):
    for wider in (0.0, 0.7):
        d = start(components=components, windows=windows, wider=wider)
        for temperature in (1.0, 0.5, 0.1, 0.03, 0.01, 1e-3):
            assert error(d, temperature) < lookup.TOLERANCE, (wider, temperature)


@pytest.mark.parametrize(
    ("components", "temperature", "expected"),
    [(4, 1.0, True), (16, 0.5, True), (16, 0.05, True), (64, 1.0, True), (16, 1e-3, False)],
)
def test_tables_that_would_err_are_not_used(components, temperature, expected):
    d = start(components=components, wider=0.7)
    assert bool(is_looked_up(d, temperature)) == expected
    assert error(d, temperature) < (lookup.TOLERANCE if expected else 1e-5)


def test_a_needle_is_not_missed():
    # a third of the weights are one value: its component is far narrower than any cell
    needle = jnp.where(jax.random.uniform(KEY, SHAPE) < 1 / 3, 0.0123, heavy())
    for temperature in (1.0, 0.1, 1e-3):
        assert error(start(needle), temperature) < lookup.TOLERANCE


@pytest.mark.parametrize("width", [1e-2, 1e-4, 1e-6])
def test_a_narrow_component_anywhere_is_not_missed(width):
    rng = np.random.default_rng(3)
    for _ in range(8):
        d = start(components=8)
        at = jnp.asarray(rng.choice(np.asarray(d.loc).ravel()), jnp.float32)
        d = d.replace(
            means=d.means.at[0, 3].set(at), log_scales=d.log_scales.at[0, 3].set(np.log(width))
        )
        assert error(d, 1.0) < lookup.TOLERANCE


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_weights_are_averaged_in_float32(dtype):
    d = start(heavy(dtype=dtype))
    soft = d.mean(0.5, "table")
    assert soft.dtype == dtype
    np.testing.assert_allclose(
        np.asarray(soft, np.float32), reference_mean(d, 0.5), rtol=2**-7, atol=1e-4
    )
    gates = d.replace(gate_logits=d.gate_logits.astype(dtype))
    np.testing.assert_allclose(
        gates.kl(PRIOR, 0.5, "table"), reference_kl(gates, 0.5).sum(), rtol=1e-5
    )


@pytest.mark.parametrize("scale", [1e-18, 1e15])
def test_extreme_scales(scale):
    d = start(heavy(scale=scale))
    for temperature in (1.0, 0.01):
        assert error(d, temperature) < lookup.TOLERANCE


def test_extreme_weights():
    for value in (0.0, 0.3, -1e30):
        d = start(jnp.full(SHAPE, value))
        np.testing.assert_allclose(d.mean(1.0, "table"), reference_mean(d), rtol=1e-5)
    assert error(start(heavy().at[3, 5].set(1e4)), 1.0) < lookup.TOLERANCE


def test_a_single_component():
    d = start(components=1)
    np.testing.assert_allclose(d.mean(1.0, "table"), reference_mean(d), rtol=1e-5, atol=1e-7)
    found, want = (gradients(d, 0.5, way) for way in ("table", "loop"))
    np.testing.assert_allclose(found.means, want.means, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [1.0, 0.01])
def test_what_is_not_finite_is_not_hidden(bad, temperature):
    d = start()
    d = d.replace(loc=d.loc.at[0, 0].set(bad))
    assert not np.isfinite(d.mean(temperature, "table")[0, 0])


def apart(a, b):
    """The difference of two arrays, root mean square, relative to the second."""
    return np.sqrt(np.mean((a - b) ** 2) / np.mean(b**2))


@partial(jax.jit, static_argnames="evaluation")
def gradients(d, temperature, evaluation):
    upstream = jax.random.normal(KEY, d.loc.shape)

    def total(d):
        (weight,), (bound,) = means_and_kls([d], PRIOR, temperature, evaluation)
        return jnp.sum(upstream * weight) + 1e-3 * bound

    return jax.grad(total, allow_int=True)(d)


@pytest.mark.parametrize(("components", "windows"), [(4, OUTLIER), (16, None)])
def test_gradients_are_those_of_the_loop(components, windows):
    for wider, temperature in itertools.product((0.0, 0.7), (1.0, 0.3, 0.05, 1e-3)):
        d = start(components=components, windows=windows, wider=wider)
        got, want = (gradients(d, temperature, way) for way in ("table", "loop"))
        for field in FIELDS:
            a, b = np.asarray(getattr(got, field)), np.asarray(getattr(want, field))
            # the slope of a linear table jumps between cells
            bound = 3e-2 if field == "loc" else 1e-2
            assert apart(a, b) < bound, (wider, temperature, field)


@pytest.mark.parametrize("windows", [None, OUTLIER])
@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.05])
def test_a_component_far_away_does_not_blur_the_others(windows, temperature):
    weights = np.random.default_rng(0).normal(size=(200, 200)) * 0.05
    weights[0, 0] = 20.0
    d = start(jnp.asarray(weights, jnp.float32), components=5, windows=windows)
    means = jnp.asarray([-0.05, 0.0, 0.0005, 0.05, 20.0])
    scales = jnp.log(jnp.asarray([0.02, 0.02, 0.02, 0.02, 1.0]))
    shape = d.means.shape
    d = d.replace(
        means=jnp.broadcast_to(means, shape),
        log_scales=jnp.broadcast_to(scales, shape),
        mixture_logits=jnp.zeros(shape),
    )
    found = np.asarray(d.mean(temperature, "table"), np.float64)
    off = np.abs(found - reference_mean(d, temperature))
    assert off[np.abs(weights) < 0.5].max() < 1e-3 * 0.1  # of the range of the others
    got, want = (gradients(d, temperature, way) for way in ("table", "loop"))
    for field in FIELDS:
        a, b = np.asarray(getattr(got, field)), np.asarray(getattr(want, field))
        assert apart(a, b) < 1e-2, field


def test_the_gradient_is_that_of_float64_by_differences():
    d = start(components=8, wider=0.7)
    gradient = gradients(d, 0.5, "table")
    upstream = np.asarray(jax.random.normal(KEY, d.loc.shape), np.float64)

    def total(**changes):
        moved = d.replace(**changes)
        return (upstream * reference_mean(moved, 0.5)).sum() + 1e-3 * reference_kl(moved, 0.5).sum()

    for field in ("means", "log_scales", "mixture_logits"):
        value = np.asarray(getattr(d, field), np.float64)
        want = np.zeros_like(value)
        step = 1e-6 * (np.ptp(value) if field == "means" else 1)
        for index in np.ndindex(value.shape):
            up, down = value.copy(), value.copy()
            up[index] += step
            down[index] -= step
            want[index] = (total(**{field: up}) - total(**{field: down})) / (2 * step)
        off = np.abs(np.asarray(getattr(gradient, field)) - want).max() / np.abs(want).max()
        assert off < 5e-3, (field, off)


def test_only_what_is_asked_for_is_the_same_as_with_everything():
    d, upstream = start(), jax.random.normal(KEY, SHAPE)
    every = gradients(d, 0.5, "table")
    for fields in (("gate_logits",), ("means", "log_scales"), ("loc", "mixture_logits")):

        def total(some, fields=fields):
            moved = d.replace(**dict(zip(fields, some, strict=True)))
            (weight,), (bound,) = means_and_kls([moved], PRIOR, 0.5, "table")
            return jnp.sum(upstream * weight) + 1e-3 * bound

        some = jax.jit(jax.grad(total))([getattr(d, field) for field in fields])
        for field, got in zip(fields, some, strict=True):
            # two programs round the place of a weight at a cell's end to either cell
            assert apart(np.asarray(got), np.asarray(getattr(every, field))) < 1e-4, field


def test_values_share_the_pass_and_agree_with_it_apart():
    d = start()
    (weight,), (bound,) = means_and_kls([d], PRIOR, 0.5, "table")
    alone = d.mean(0.5, "table")
    np.testing.assert_allclose(weight, alone, atol=lookup.TOLERANCE * np.ptp(np.asarray(d.means)))
    np.testing.assert_allclose(bound, d.kl(PRIOR, 0.5, "table"), rtol=1e-4)
    np.testing.assert_allclose(bound, reference_kl(d, 0.5).sum(), rtol=1e-4)


def test_tensors_together_and_slices_are_as_alone():
    alone = [start(heavy(seed=i, scale=0.05 * 10**i), components=8) for i in range(3)]
    others = [start(heavy((40, 50), seed=5)), start(heavy((3, 2), seed=6), components=2)]
    stack = jax.tree.map(lambda *x: jnp.stack(x), *alone)
    weights, bounds = means_and_kls([*alone, stack, *others], PRIOR, 0.3, "table")
    np.testing.assert_allclose(weights[3], jnp.stack(weights[:3]), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(bounds[3], sum(bounds[:3]), rtol=1e-5)
    for d, weight in zip([*alone, *others], [*weights[:3], *weights[4:]], strict=True):
        np.testing.assert_allclose(weight, d.mean(0.3, "table"), rtol=1e-4, atol=1e-7)
    deployed = modes([*alone, stack])
    np.testing.assert_array_equal(deployed[3], jnp.stack(deployed[:3]))


def test_under_vmap_over_temperatures():
    d, temperatures = start(components=4), jnp.array([1.0, 0.1, 0.01])
    together = jax.vmap(lambda t: d.mean(t, "table"))(temperatures)
    for weight, temperature in zip(together, temperatures, strict=True):
        np.testing.assert_allclose(weight, d.mean(temperature, "table"), rtol=1e-4, atol=1e-6)


def test_the_platform_chooses_and_the_caller_may():
    prior = sqs_jax.SpikeSlabPrior(inclusion=0.3, scale=0.7)
    by = {
        way: sqs_jax.spike_slab_gmm(prior=prior, evaluation=way)
        for way in ("auto", "table", "loop")
    }
    posterior = by["auto"].init({"kernel": heavy()})
    soft = {way: np.asarray(t.mean(posterior)["kernel"]) for way, t in by.items()}
    np.testing.assert_array_equal(soft["auto"], soft["table"])  # on a CPU
    assert (soft["auto"] != soft["loop"]).any()
    with pytest.raises(ValueError, match="evaluation is 'fast'"):
        sqs_jax.spike_slab_gmm(prior=prior, evaluation="fast")


@pytest.mark.parametrize("size", [0, 1, 100, 4000, 70_000, 10**7, 10**9])
@pytest.mark.parametrize("components", [1, 16, 256, 20_000])
def test_a_table_is_small_beside_its_tensor(size, components):
    for windows in (1, 4):
        count = lookup.cell_count(size, components, windows)
        assert 4 * count * windows <= size and count <= min(2048 * components, 1 << 15)


@pytest.mark.parametrize("windows", [None, OUTLIER])
def test_cells_cover_the_weights_and_are_narrow_where_components_are_dense(windows):
    d = start(windows=windows)
    grid, points = jax.jit(grid_over, static_argnums=2)(d.latent, d.mixture, 512)
    place = jax.jit(locate, static_argnums=2)(grid, d.boundaries, 512, d.latent)
    window = np.zeros(SHAPE, int) if place.window is None else np.asarray(place.window)
    start_, end = (np.asarray(points)[window, np.asarray(place.cell) + i] for i in (0, 1))
    at = start_ + np.asarray(place.fraction) * (end - start_)
    spread = float(np.ptp(np.asarray(d.loc)))
    # in u = z / (1 + |z|) the place is exact; a cell is nearly linear in the weights
    np.testing.assert_allclose(at, d.loc, atol=1e-3 * spread)
    assert place.fraction.min() > -1e-2 and place.fraction.max() < 1 + 1e-2
    if windows is None:
        widths = np.diff(np.asarray(points)[0])
        assert widths[256:].max() > 5 * np.min(widths) > 0


def test_the_rate_is_the_derivative_of_the_place():
    d = start()
    grid, _ = grid_over(d.latent, d.mixture, 512)

    def position(x):
        place = locate(grid, d.boundaries, 512, x)
        return jnp.sum(place.fraction)

    rate = locate(grid, d.boundaries, 512, d.latent).rate
    np.testing.assert_allclose(jax.grad(position)(d.latent), rate, rtol=1e-5)
