import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import PRIOR, leaf, params, transform

import sqs_jax
from sqs_jax import Rule, SubDistribution, prune, refit, saliency
from sqs_jax.transform import selection
from sqs_jax.transform.selection import keep_highest


def posterior(shapes, *rules, seed=0):
    rng = np.random.default_rng(seed)
    tree = {
        name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()
    }
    return sqs_jax.spike_slab_gmm([*rules, Rule(components=4)], prior=PRIOR).init(tree)


Q = posterior({"x": (10, 7), "y": (4, 9, 3)})


def kept(q):
    return {k: np.asarray(d.kept) for k, d in q.items() if isinstance(d, SubDistribution)}


def keep_reference(scores, number):
    """Return masks without the first `number` of a stable sort, by float64 numpy."""
    flat = np.concatenate([np.asarray(s, np.float64).ravel() for s in scores])
    mask = np.ones(flat.size, bool)
    mask[np.argsort(flat, kind="stable")[:number]] = False
    cuts = np.cumsum([s.size for s in scores])[:-1]
    return [m.reshape(s.shape) for m, s in zip(np.split(mask, cuts), scores, strict=True)]


def test_keep_highest_agrees_with_a_stable_sort():
    rng = np.random.default_rng(0)
    special = [0.0, -0.0, np.inf, -np.inf, 1e-30, -1e-30, 3e38]
    for trial in range(60):
        dtype = [jnp.float32, jnp.bfloat16, jnp.float16][trial % 3]
        shapes = [(7, 5), (11,)] if trial % 2 else [(7, 5)]
        raw = [rng.normal(size=s) * 10.0 ** rng.integers(-3, 3) for s in shapes]
        if trial % 4 < 2:
            raw = [np.round(r) for r in raw]  # heavy ties
        if trial % 5 == 0:
            raw = [
                np.where(rng.random(r.shape) < 0.4, rng.choice(special, r.shape), r) for r in raw
            ]
        with np.errstate(over="ignore"):
            scores = [jnp.asarray(r, jnp.float32).astype(dtype) for r in raw]
        total = sum(s.size for s in scores)
        for number in (0, 1, int(rng.integers(total)), total - 1, total):
            got = keep_highest(tuple(scores), number)
            for a, b in zip(got, keep_reference(scores, number), strict=True):
                np.testing.assert_array_equal(a, b, err_msg=f"trial {trial}, number {number}")


def test_minus_zero_equals_zero():
    scores = (jnp.array([0.0, -0.0, -0.0, 1.0]),)
    assert keep_highest(scores, 1)[0].tolist() == [False, True, True, True]
    with jax.enable_x64(True):
        wide = (scores[0].astype(jnp.float64),)
        assert keep_highest(wide, 1)[0].tolist() == [False, True, True, True]


def test_scores_of_two_precisions_share_one_threshold():
    with jax.enable_x64(True):
        narrow, wide = jnp.arange(6, dtype=jnp.float32), jnp.arange(6, dtype=jnp.float64) + 0.5
        got = keep_highest((narrow, wide), 6)
        assert [int(m.sum()) for m in got] == [3, 3]


@pytest.mark.parametrize("scope", ["global", "tensor"])
@pytest.mark.parametrize("sparsity", [0.0, 0.123, 0.5, 0.999, np.float32(0.25), np.float64(0.75)])
@pytest.mark.parametrize("tied", [False, True])
def test_the_number_of_pruned_weights_is_exact(scope, sparsity, tied):
    scores = {k: jnp.ones(d.loc.shape) for k, d in Q.items()} if tied else None
    off = {k: (~m).sum() for k, m in kept(prune(Q, sparsity, scores=scores, scope=scope)).items()}
    if scope == "global":
        assert sum(off.values()) == round(float(sparsity) * (70 + 108))
    else:
        assert off == {"x": round(float(sparsity) * 70), "y": round(float(sparsity) * 108)}


def test_equal_scores_are_pruned_in_order_of_position():
    scores = {k: jnp.zeros(d.loc.shape) for k, d in Q.items()}
    masks = kept(prune(Q, 0.5, scores=scores))
    flat = np.concatenate([masks["x"].ravel(), masks["y"].ravel()])
    assert not flat[:89].any() and flat[89:].all()


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, np.float64])
def test_scores_may_have_any_float_dtype_and_sign(dtype):
    rng = np.random.default_rng(1)
    raw = {k: rng.normal(size=d.loc.shape) - 2 for k, d in Q.items()}
    scores = {k: np.asarray(s, dtype) if dtype == np.float64 else jnp.asarray(s, dtype)
              for k, s in raw.items()}  # fmt: skip
    exact = [np.asarray(jnp.asarray(s), np.float64) for s in scores.values()]
    for got, want in zip(
        kept(prune(Q, 0.4, scores=scores)).values(), keep_reference(exact, 71), strict=True
    ):
        np.testing.assert_array_equal(got, want)


def test_infinite_scores_order_at_the_ends():
    scores = {"x": jnp.full((10, 7), jnp.inf), "y": jnp.full((4, 9, 3), -jnp.inf)}
    masks = kept(prune(Q, 108 / 178, scores=scores))
    assert masks["x"].all() and not masks["y"].any()


def test_weights_pruned_earlier_return():
    deep = prune(Q, 0.8)
    for q in (prune(deep, 0.2), prune(prune(deep, 0.0), 0.2)):
        chex.assert_trees_all_equal(kept(q), kept(prune(Q, 0.2)))
    assert sum((~m).sum() for m in kept(prune(deep, 0.2)).values()) == round(0.2 * 178)


def test_magnitude_is_the_default_score():
    default, named = prune(Q, 0.5), prune(Q, 0.5, scores=saliency.magnitude(Q))
    chex.assert_trees_all_equal(kept(default), kept(named))
    size = np.abs(np.concatenate([np.asarray(Q[k].loc).ravel() for k in "xy"]))
    mask = np.concatenate([kept(default)[k].ravel() for k in "xy"])
    assert size[~mask].max() < size[mask].min()


def test_leaves_that_are_not_prunable_are_neither_touched_nor_counted():
    q = posterior({"x": (10, 7), "y": (5, 4)}, Rule(pattern="y", components=4, prunable=False))
    masks = kept(prune(q, 0.5))
    assert masks["y"].all() and (~masks["x"]).sum() == 35
    assert kept(prune({"y": q["y"]}, 0.5))["y"].all()


@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_n_of_m_keeps_the_best_of_every_group_along_axis_minus_two(scope):
    rules = [Rule(pattern="x", components=4, structure=(2, 4)),
             Rule(pattern="z", components=4, structure=(1, 3), stacked=1)]  # fmt: skip
    q = posterior({"x": (8, 5), "y": (10, 6), "z": (2, 6, 3)}, *rules)
    masks = kept(prune(q, 0.3, scope=scope))
    assert (~masks["y"]).sum() == 18  # the structured leaves do not count
    for name, n, m in (("x", 2, 4), ("z", 1, 3)):
        score = np.abs(np.asarray(q[name].loc))
        groups = score.reshape(*score.shape[:-2], -1, m, score.shape[-1])
        mask = masks[name].reshape(groups.shape)
        assert (mask.sum(axis=-2) == n).all()
        assert (np.where(mask, groups, np.inf).min(-2) >= np.where(mask, -1, groups).max(-2)).all()


@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_a_tree_of_structured_leaves_alone_can_be_pruned(scope):
    q = transform(structure=(2, 4)).init(params((8, 5)))
    assert (~np.asarray(leaf(prune(q, 0.9, scope=scope)).kept)).sum() == 20


def test_ties_in_a_group_keep_exactly_n():
    q = transform(structure=(2, 4)).init(params((8, 5)))
    scores = {"a": {"kernel": jnp.zeros((8, 5)).at[0].set(-0.0), "bias": None}}
    mask = np.asarray(leaf(prune(q, 0.0, scores=scores)).kept).reshape(2, 4, 5)
    assert mask[:, :2].all() and not mask[:, 2:].any()


def test_another_count_does_not_recompile():
    selection._keep_highest.clear_cache()
    for sparsity in (0.0, 0.1, 0.35, 0.9):
        prune(Q, sparsity)
    assert selection._keep_highest._cache_size() == 1


def test_pruning_under_jit_with_a_static_sparsity_is_the_same():
    traced = jax.jit(prune, static_argnums=1)(Q, 0.37)
    chex.assert_trees_all_equal(kept(traced), kept(prune(Q, 0.37)))


def test_a_traced_sparsity_is_refused_with_a_remedy():
    with pytest.raises(TypeError, match=r"traced.*static_argnums"):
        jax.jit(prune)(Q, 0.5)


def test_sharded_leaves_give_the_identical_set():
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    q = transform().init(params((16, 10)))
    tied = {"a": {"kernel": jnp.round(leaf(q).loc * 3), "bias": None}}
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d", None))
    d = leaf(q)
    placed = {n: jax.device_put(getattr(d, n), split) for n in ("loc", "gate_logits", "kept")}
    sharded = {"a": {**q["a"], "kernel": d.replace(**placed)}}
    for scores in (None, tied):
        want, got = prune(q, 0.55, scores=scores), prune(sharded, 0.55, scores=scores)
        np.testing.assert_array_equal(leaf(got).kept, leaf(want).kept)
        assert (~np.asarray(leaf(got).kept)).sum() == 88


@pytest.mark.parametrize("bad", [-0.1, 1.0, 2.0, float("nan"), float("inf")])
def test_a_sparsity_out_of_range_is_named(bad):
    with pytest.raises(ValueError, match=f"sparsity is {bad}"):
        prune(Q, bad)


def test_an_unknown_scope_is_named():
    with pytest.raises(ValueError, match=r"scope is 'layer'.*'global' or 'tensor'"):
        prune(Q, 0.5, scope="layer")


@pytest.mark.parametrize(
    ("scores", "named"),
    [
        ({"x": jnp.ones((10, 7))}, r"missing: \['y'\]"),
        ({k: jnp.ones(d.loc.shape) for k, d in Q.items()} | {"z": jnp.ones(3)}, r"\['z'\]"),
        ({"x": jnp.ones((7, 10)), "y": jnp.ones((4, 9, 3))}, r"x: scores have shape \(7, 10\)"),
        ({"x": jnp.full((10, 7), jnp.nan), "y": jnp.ones((4, 9, 3))}, "x: scores contain NaN"),
    ],
    ids=["missing", "unexpected", "shape", "nan"],
)
def test_scores_that_do_not_fit_are_named(scores, named):
    with pytest.raises(ValueError, match=named):
        prune(Q, 0.5, scores=scores)


def test_a_tree_with_nothing_compressed_is_refused():
    with pytest.raises(ValueError, match="no compressed leaf"):
        prune({"w": jnp.ones((3, 3))}, 0.5)


def test_refit_changes_the_spreads_of_compressed_leaves_alone():
    q = transform().init(params())
    q = {"a": {**q["a"], "kernel": leaf(q).replace(log_scales=leaf(q).log_scales + 2)}}
    new = refit(q)
    np.testing.assert_array_equal(new["a"]["bias"], q["a"]["bias"])
    np.testing.assert_array_equal(leaf(new).means, leaf(q).means)
    chex.assert_trees_all_equal(leaf(new), leaf(q).refit())
    assert (np.asarray(leaf(new).log_scales) < np.asarray(leaf(q).log_scales)).any()
