import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sqs_jax
from sqs_jax import SubDistribution, Windows
from sqs_jax.distribution.windows import init_boundaries, window_index

HEAVY = np.random.default_rng(0).standard_t(2, 1200).astype(np.float32)


def occupancy(weights, windows):
    edges = init_boundaries(np.sort(np.asarray(weights, np.float64)), windows)
    index = np.asarray(window_index(jnp.asarray(weights), jnp.asarray(edges, jnp.float32)))
    return edges, np.bincount(index, minlength=windows.count)


def test_single_has_no_edge():
    edges, count = occupancy(HEAVY, Windows())
    assert edges.shape == (0,) and count.tolist() == [1200]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_equal_windows_have_equal_occupancy(count):
    _, held = occupancy(HEAVY, Windows(kind="equal", count=count))
    assert held.sum() == 1200 and held.max() - held.min() <= 1


@pytest.mark.parametrize("count", [3, 4, 6])
@pytest.mark.parametrize("factor", [0.5, 1.5, 3.0])
def test_outlier_windows_are_the_tails_of_tukeys_fences_and_an_equal_body(count, factor):
    edges, held = occupancy(HEAVY, Windows(kind="outlier", count=count, iqr_factor=factor))
    q1, q3 = np.quantile(HEAVY.astype(np.float64), [0.25, 0.75])
    assert held[0] == np.sum(q1 - factor * (q3 - q1) > HEAVY) > 0
    assert held[-1] == np.sum(q3 + factor * (q3 - q1) < HEAVY) > 0
    assert held[1:-1].max() - held[1:-1].min() <= 1
    assert held.sum() == 1200 and (np.diff(edges) >= 0).all()


def test_an_empty_tail_keeps_its_row_with_its_edge_at_infinity():
    edges, held = occupancy(np.linspace(-1, 1, 100), Windows(kind="outlier", count=4))
    assert edges[0] == -np.inf and edges[-1] == np.inf
    assert held[0] == held[-1] == 0 and held.sum() == 100
    d = SubDistribution.init(
        jnp.linspace(-1, 1, 100), components=4, windows=Windows(kind="outlier", count=4)
    )
    assert d.means.shape == (4, 4)
    assert all(np.isfinite(x).all() for x in (d.means, d.log_scales, d.mean(), d.mode()))


def test_a_window_holds_its_lower_edge_and_not_its_upper():
    edges = jnp.array([-1.0, 2.0])
    inside = window_index(jnp.array([-1.5, -1.0, 1.9, 2.0, 3.0]), edges)
    assert inside.tolist() == [0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    "weights", [np.zeros(20), np.array([0.5]), np.repeat([0.0, 1.0], [90, 10])]
)
@pytest.mark.parametrize(
    "windows", [Windows(kind="equal", count=5), Windows(kind="outlier", count=5)]
)
def test_ties_put_every_weight_in_exactly_one_window(weights, windows):
    edges, held = occupancy(weights, windows)
    assert held.sum() == weights.size and (np.diff(edges[np.isfinite(edges)]) >= 0).all()


@pytest.mark.parametrize(
    "windows", [Windows(kind="equal", count=3), Windows(kind="outlier", count=4)]
)
def test_a_window_has_at_most_k_values_and_pruned_weights_are_exactly_zero(windows):
    rule = sqs_jax.Rule(components=4, windows=windows)
    t = sqs_jax.spike_slab_gmm(rule, prior=sqs_jax.SpikeSlabPrior(inclusion=0.5, scale=1.0))
    q = sqs_jax.prune(t.init({"w": jnp.asarray(HEAVY).reshape(40, 30)}), 0.5)
    weights, d = np.asarray(t.mode(q)["w"]), q["w"]
    assert (weights == 0).sum() == 600 and not weights[~np.asarray(d.kept)].any()
    index = np.asarray(window_index(d.loc, d.boundaries))
    for w in range(windows.count):
        inside = weights[(index == w) & np.asarray(d.kept)]
        assert set(np.unique(inside)) <= set(np.asarray(d.means[w]))


def test_tails_get_components_of_their_own():
    d = SubDistribution.init(
        jnp.asarray(HEAVY), components=4, windows=Windows(kind="outlier", count=3)
    )
    lower, upper = np.asarray(d.boundaries)
    means = np.asarray(d.means)
    assert (means[0] < lower).all() and (means[2] >= upper).all()
    one = SubDistribution.init(jnp.asarray(HEAVY), components=4)
    far = np.abs(HEAVY) > 20
    assert far.any()
    error = [np.square(np.asarray(x.mode())[far] - HEAVY[far]).sum() for x in (d, one)]
    assert error[0] <= error[1]


def test_window_index_is_traceable_and_int32():
    out = jax.eval_shape(window_index, jnp.zeros((3, 4)), jnp.zeros(2))
    assert out.shape == (3, 4) and out.dtype == jnp.int32


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"kind": "log"}, "kind is 'log'"),
        ({"kind": "single", "count": 2}, "count is 2"),
        ({"kind": "equal", "count": 0}, "count is 0"),
        ({"kind": "equal", "count": 2.0}, "count is 2.0"),
        ({"kind": "outlier", "count": 2}, "count is 2"),
        ({"kind": "outlier", "count": 3, "iqr_factor": 0.0}, "iqr_factor is 0.0"),
        ({"kind": "outlier", "count": 3, "iqr_factor": float("nan")}, "iqr_factor is nan"),
    ],
)
def test_windows_refuse_what_is_out_of_range(options, named):
    with pytest.raises(ValueError, match=named):
        Windows(**options)


def test_windows_are_frozen_and_hashable():
    assert hash(Windows(kind="equal", count=2)) == hash(Windows(kind="equal", count=2))
    with pytest.raises(AttributeError):
        Windows().count = 3
