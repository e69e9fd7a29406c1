"""Closed forms of entropy-constrained quantization, its descent, and plain k-means beside it."""

from itertools import pairwise

import numpy as np
import pytest

from sqs_jax.budget.power_diagram import cells, side_by_side
from sqs_jax.budget.quantizer import (
    LEVEL_BITS,
    assign,
    entropy_bits,
    lossless,
    quantize,
    quantize_all,
    split,
    thin,
)
from sqs_jax.budget.sorted_weights import read_sources


def laplace(*shape, seed=0):
    weights = np.random.default_rng(seed).laplace(size=shape)
    return (weights / np.sqrt(np.mean(weights**2))).astype(np.float32)


def measure(weights, sources, quantizer, sensitivity=None):
    """D and bits of codes from scratch: nothing of what the quantizer says of itself."""
    codes = assign(weights, sources, quantizer, sensitivity)
    values = np.take_along_axis(
        np.concatenate([np.zeros((len(weights), 1)), quantizer.levels], 1), codes.astype(int), 1
    )
    s = 1.0 if sensitivity is None else sensitivity
    counts = np.bincount(codes.ravel(), minlength=quantizer.levels.shape[1] + 1)
    return float(np.sum(s * (weights - values) ** 2)), entropy_bits(counts.astype(float))


def test_a_low_slope_recovers_distinct_values():
    values = np.array([-0.5, -0.125, 0.25, 0.75], np.float32)
    weights = np.random.default_rng(0).choice(values, size=(1, 1000))
    sources = read_sources(weights)
    found = quantize(sources, 1e-12)
    np.testing.assert_array_equal(found.levels[0].astype(np.float32), values)
    assert measure(weights, sources, found)[0] == pytest.approx(0, abs=1e-20)


def test_a_high_slope_prunes_everything():
    weights = laplace(1, 1000)
    sources = read_sources(weights)
    found = quantize(sources, 1e3)
    assert found.levels.shape == (1, 0)
    assert not assign(weights, sources, found).any()
    assert found.distortion == pytest.approx(float(np.sum(weights.astype(np.float64) ** 2)))


def test_a_high_slope_without_zero_gives_the_mean():
    weights = laplace(1, 1000) + np.float32(3)
    sources = read_sources(weights)
    found = quantize(sources, 1e3, prunable=False)
    np.testing.assert_allclose(found.levels, [[np.mean(weights, dtype=np.float64)]])
    assert (assign(weights, sources, found) == 1).all()


@pytest.mark.parametrize("slope", [1.0, 0.1, 1e-2, 1e-4, 1e-6])
def test_what_it_says_is_what_the_codes_have(slope):
    weights = laplace(1, 5000)
    sources = read_sources(weights)
    found = quantize(sources, slope)
    distortion, bits = measure(weights, sources, found)
    assert distortion == pytest.approx(found.distortion, rel=0.02)
    table = (LEVEL_BITS - 16) * found.levels.shape[1]
    assert bits == pytest.approx(found.bits - table, rel=0.02)
    assert (np.diff(found.levels) > 0).all()


@pytest.mark.parametrize("slope", [0.3, 1e-2, 1e-4])
def test_no_small_change_of_levels_lowers_the_objective(slope):
    weights = laplace(1, 4000)
    sources = read_sources(weights)
    found = quantize(sources, slope)
    least, _ = measure(weights, sources, found)
    rng = np.random.default_rng(1)
    codes = assign(weights, sources, found)
    for _ in range(20):
        levels = found.levels * (1 + 0.02 * rng.normal(size=found.levels.shape))
        moved = np.append(0.0, levels)[codes]
        assert np.sum((weights - moved) ** 2) > least * (1 - 1e-3)


def test_its_codes_minimise_distortion_and_rate_of_each_weight():
    weights = laplace(1, 3000)
    sources = read_sources(weights)
    slope = 0.05
    found = quantize(sources, slope)
    levels = np.append(0.0, found.levels)
    cost = (weights[0, :, None] - levels) ** 2 + slope * found.lengths
    chosen = np.take_along_axis(cost, assign(weights, sources, found).T.astype(int), 1)[:, 0]
    np.testing.assert_allclose(chosen, cost.min(1), rtol=1e-12)


def test_steps_lower_the_objective(monkeypatch):
    weights = laplace(1, 20_000)
    sources = read_sources(weights)
    slope = 0.02
    objectives = []
    for steps in (1, 2, 4, 8, 16, 100):
        monkeypatch.setattr("sqs_jax.budget.quantizer._STEPS", steps)
        found = quantize(sources, slope)
        whole = found.bits + 16 * found.levels.shape[1]
        objectives.append(found.distortion + slope * whole)
    assert all(b <= a * (1 + 1e-3) for a, b in pairwise(objectives))
    assert objectives[-1] < objectives[0]


@pytest.mark.parametrize(("source", "factor"), [("uniform", 1.0), ("laplace", np.e**2 / 6)])
def test_high_rates_meet_the_theory(source, factor):
    # D = 2^(2h - 2R) / 12 for a source of differential entropy h (Gish and Pierce 1968)
    rng = np.random.default_rng(0)
    weights = rng.uniform(-(3**0.5), 3**0.5, (1, 200_000)) if source == "uniform" else None
    weights = laplace(1, 200_000) if weights is None else weights.astype(np.float32)
    sources = read_sources(weights)
    found = quantize(sources, 1e-3)
    distortion, bits = measure(weights, sources, found)
    rate = bits / weights.size
    assert distortion / weights.size * 4**rate == pytest.approx(factor, rel=0.02)


@pytest.mark.parametrize("components", [2, 4, 8, 16])
def test_it_beats_k_means_on_the_survivors_at_the_same_entropy(components):
    weights = laplace(1, 50_000)
    flat = weights[0].astype(np.float64)
    kept = np.abs(flat) > np.quantile(np.abs(flat), 0.5)
    levels = np.quantile(flat[kept], (np.arange(components) + 0.5) / components)
    for _ in range(200):
        nearest = np.searchsorted((levels[1:] + levels[:-1]) / 2, flat[kept])
        levels = np.array([flat[kept][nearest == k].mean() for k in range(components)])
    codes = np.zeros(flat.size, int)
    codes[kept] = 1 + nearest
    plain = np.sum((flat - np.append(0.0, levels)[codes]) ** 2)
    entropy = entropy_bits(np.bincount(codes).astype(float))

    sources = read_sources(weights)
    low, high = 1e-8, 1e2
    for _ in range(60):
        slope = np.sqrt(low * high)
        distortion, bits = measure(weights, sources, quantize(sources, slope))
        low, high = (slope, high) if bits > entropy else (low, slope)
    assert bits == pytest.approx(entropy, rel=0.02)
    assert distortion < 0.9 * plain


def test_many_weights_as_points_cost_nothing_measurable():
    weights = laplace(1, 1_000_000)
    weights[0, :3] = 40, -50, 60  # tails are points of their own
    sources = read_sources(weights)
    assert sources[0].values.size < 40_000
    assert {40, -50, 60} <= set(sources[0].values.tolist())
    found = quantize(sources, 1e-4)
    distortion, _ = measure(weights, sources, found)
    assert distortion == pytest.approx(found.distortion, rel=0.01)


def test_slices_share_code_lengths_and_have_their_own_levels():
    weights = np.stack([laplace(5000), 100 * laplace(5000, seed=1)])
    sources = read_sources(weights)
    scaled = [
        s._replace(sensitivity=1 / np.mean(w**2)) for s, w in zip(sources, weights, strict=True)
    ]
    found = quantize(scaled, 0.05)
    assert found.levels.shape[0] == 2
    assert found.lengths.shape == (found.levels.shape[1] + 1,)
    np.testing.assert_allclose(100 * found.levels[0, [1, -2]], found.levels[1, [1, -2]], rtol=0.2)


def test_sensitivity_moves_precision_to_where_it_counts():
    weights = laplace(1, 10_000)
    sensitivity = np.where(np.arange(10_000) < 1000, 100.0, 1.0)[None]
    sources = read_sources(weights, sensitivity)
    found = quantize(sources, 0.5)
    plain_sources = read_sources(weights)
    plain = quantize(plain_sources, 0.05)
    codes = assign(weights, sources, found, sensitivity)
    error = (weights - np.append(0.0, found.levels)[codes]) ** 2
    assert error[0, :1000].mean() < 0.3 * error[0, 1000:].mean()
    with_s, bits = measure(weights, sources, found, sensitivity)
    codes = assign(weights, plain_sources, plain)
    without = np.sum(sensitivity * (weights - np.append(0.0, plain.levels)[codes]) ** 2)
    plain_bits = entropy_bits(np.bincount(codes[0]).astype(float))
    assert with_s + 0.5 * bits < without + 0.5 * plain_bits


def test_equal_sensitivities_are_none():
    weights = laplace(1, 2000)
    one, same = read_sources(weights), read_sources(weights, np.full((1, 2000), 1.0))
    np.testing.assert_array_equal(quantize(one, 0.1).levels, quantize(same, 0.1).levels)


def test_weights_of_no_sensitivity_are_cheap():
    weights = laplace(1, 2000)
    sensitivity = np.zeros((1, 2000))
    sensitivity[0, 0] = 1
    sources = read_sources(weights, sensitivity)
    codes = assign(weights, sources, quantize(sources, 1e-3), sensitivity)
    assert entropy_bits(np.bincount(codes[0]).astype(float)) < 50


@pytest.mark.parametrize("prunable", [True, False])
def test_lossless_has_every_value(prunable):
    values = np.array([-1, 0, 0.5, 3], np.float32)
    weights = np.random.default_rng(0).choice(values, size=(2, 300))
    weights[1] *= 2
    sources = read_sources(weights)
    found = lossless(sources, prunable=prunable)
    codes = assign(weights, sources, found)
    levels = np.concatenate([np.zeros((2, 1)), found.levels], 1)
    np.testing.assert_array_equal(np.take_along_axis(levels, codes.astype(int), 1), weights)
    assert (codes == 0).any() == prunable


@pytest.mark.parametrize("kind", ["laplace", "few values", "equal shares"])
@pytest.mark.parametrize("share", [0.9, 0.5, 0.2, 0.05])
def test_thinning_reaches_any_size(kind, share):
    weights = laplace(1, 20_000)
    if kind == "few values":
        weights = np.random.default_rng(0).choice(np.float32([-1, 1, 2]), (1, 20_000))
    if kind == "equal shares":
        weights = np.tile(np.float32([-1, 1, 2, 3]), 5000)[None]
    sources = read_sources(weights)
    found = quantize(sources, 1e-3)
    _, bits = measure(weights, sources, found)
    thinned = thin(sources, found, (1 - share) * bits)
    _, fewer = measure(weights, sources, thinned)
    assert fewer == pytest.approx(share * bits, rel=0.05)
    assert thin(sources, found, 2 * bits) is None


def batch_of(weights):
    return side_by_side([read_sources(w) for w in weights])


@pytest.mark.parametrize("prunable", [True, False])
def test_a_batch_has_what_its_tensors_have_alone(prunable):
    tensors = [laplace(1, 700), laplace(1, 40, seed=1), np.stack([laplace(300), 9 * laplace(300)])]
    tensors.append(np.zeros((1, 50), np.float32))
    together = quantize_all(batch_of(tensors), 0.03, np.full(len(tensors), prunable))
    for weights, found in zip(tensors, together, strict=True):
        alone = quantize(read_sources(weights), 0.03, prunable=prunable)
        np.testing.assert_allclose(found.levels, alone.levels, rtol=1e-9)
        np.testing.assert_allclose(found.lengths, alone.lengths, rtol=1e-9)
        assert found.bits == pytest.approx(alone.bits, rel=1e-9)
        assert found.distortion == pytest.approx(alone.distortion, rel=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_cells_are_those_of_the_cheapest_codes(seed):
    rng = np.random.default_rng(seed)
    levels = np.sort(rng.normal(size=(3, 9)), axis=1)
    penalties = rng.exponential(0.3, size=(3, 10))
    penalties[rng.random(penalties.shape) < 0.2] = np.inf
    penalties[:, 3] = 0.1  # one code at least is usable
    points = rng.normal(size=500)
    order, edges, used = cells(levels, penalties)
    for row in range(3):
        inner = edges[row, : used[row] - 1]
        assert (np.diff(inner) > 0).all()
        found = order[row][np.searchsorted(inner, points)]
        cost = (points[:, None] - np.append(0.0, levels[row])) ** 2 + penalties[row]
        np.testing.assert_allclose(cost[np.arange(points.size), found], cost.min(1), rtol=1e-9)


@pytest.mark.parametrize("kind", ["laplace", "uniform", "two sensitivities"])
@pytest.mark.parametrize("spare", [40, 500, 3000])
def test_splitting_spends_bits_on_a_smaller_error(kind, spare):
    weights, sensitivity = laplace(1, 8000), None
    if kind == "uniform":
        weights = np.random.default_rng(0).uniform(-1, 1, (1, 8000)).astype(np.float32)
    if kind == "two sensitivities":
        sensitivity = np.where(np.arange(8000) < 2000, 20.0, 1.0)[None]
    sources = read_sources(weights, sensitivity)
    found = quantize(sources, 0.03)
    finer = split(sources, found, spare)
    before, _ = measure(weights, sources, found, sensitivity)
    after, bits = measure(weights, sources, finer, sensitivity)
    assert after == pytest.approx(finer.distortion, rel=0.01)
    assert after < before
    new = finer.levels.shape[1] - found.levels.shape[1]
    assert finer.bits + 16 * new <= found.bits + spare
    assert bits == pytest.approx(finer.bits - (LEVEL_BITS - 16) * finer.levels.shape[1], rel=0.01)
    if spare > 100:
        assert finer.bits + 16 * new >= found.bits + 0.6 * spare


@pytest.mark.parametrize("kind", ["laplace", "few values"])
@pytest.mark.parametrize("share", [0.95, 0.6])
def test_thinning_says_what_it_costs(kind, share):
    weights = laplace(1, 20_000)
    if kind == "few values":
        weights = np.random.default_rng(0).choice(np.float32([-1, 1, 2]), (1, 20_000))
    sources = read_sources(weights)
    found = quantize(sources, 1e-3)
    before, bits = measure(weights, sources, found)
    thinned = thin(sources, found, (1 - share) * bits)
    after, _ = measure(weights, sources, thinned)
    assert after == pytest.approx(thinned.distortion, rel=0.03)
    assert after > before
