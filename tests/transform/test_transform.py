import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import KEY, PRIOR, generic, leaf, params, reference_kl, reference_mean, transform

import sqs_jax
from sqs_jax import Rule, SubDistribution, Windows


def shapes(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def test_init_copies_every_leaf_so_that_a_step_may_donate():
    p = params() | {"n": jnp.arange(3)}
    q = transform().init(p)
    pairs = [(leaf(p), leaf(q).loc), (p["a"]["bias"], q["a"]["bias"]), (p["n"], q["n"])]
    for original, copied in pairs:
        np.testing.assert_array_equal(original, copied)
        assert original.unsafe_buffer_pointer() != copied.unsafe_buffer_pointer()


def test_integer_leaves_and_keys_that_no_rule_compresses_pass_through():
    p = params() | {"n": jnp.arange(3), "flag": jnp.array(True), "key": jax.random.key(3)}
    t = transform()
    q = t.mean(t.init(p))
    assert q["n"].dtype == jnp.int32 and q["flag"].dtype == jnp.bool_
    assert q["key"] == p["key"]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_abstract_and_traced_init_give_what_eager_init_gives(dtype):
    t, p = transform(windows=Windows(kind="outlier", count=4)), params(dtype=dtype)
    eager, abstract = t.init(p), jax.eval_shape(t.init, p)
    assert jax.tree.structure(eager) == jax.tree.structure(abstract)
    assert shapes(eager) == shapes(abstract)
    chex.assert_trees_all_equal(eager, jax.jit(t.init)(p))


def test_numpy_weights_are_taken_as_they_are():
    w = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    q = transform().init({"a": {"kernel": w}})
    assert isinstance(leaf(q).loc, jax.Array)
    np.testing.assert_array_equal(leaf(q).loc, w)


def test_verbs_keep_paths_shapes_and_dtypes():
    t, p = transform(), params(dtype=jnp.bfloat16)
    q = t.init(p)
    for out in (t.mean(q), t.mode(q), t.sample(q, KEY), t.sample(q, KEY, hard=True)):
        assert shapes(out) == shapes(p)
    assert sqs_jax.materialize(t.compress(q))["a"]["kernel"].dtype == jnp.bfloat16


def test_mean_and_kl_match_float64_and_compress_is_the_mode():
    t = transform(windows=Windows(kind="equal", count=2))
    q = generic(t.init(params()))
    np.testing.assert_allclose(
        leaf(t.mean(q, temperature=0.4)), reference_mean(leaf(q), 0.4), atol=1e-4
    )
    assert float(t.kl(q, temperature=0.4)) == pytest.approx(reference_kl(leaf(q), 0.4).sum(), 1e-4)
    np.testing.assert_array_equal(leaf(sqs_jax.materialize(t.compress(q))), leaf(t.mode(q)))


@pytest.mark.parametrize("windows", [Windows(), Windows(kind="outlier", count=4)])
def test_mode_and_kl_are_the_mode_and_the_limit_of_the_kl(windows):
    t = transform(windows=windows)
    q = generic(t.init(params((40, 30))))
    weights, kl = t.mode_and_kl(q)
    chex.assert_trees_all_equal(weights, t.mode(q))
    assert float(kl) == pytest.approx(reference_kl(leaf(q), 1e-9).sum(), rel=1e-5)


def test_the_kl_at_the_mode_has_a_gradient_in_the_means_alone():
    t = transform()
    q = generic(t.init(params((40, 30))))
    gradient = leaf(jax.grad(lambda q: t.mode_and_kl(q)[1], allow_int=True)(q))
    d = leaf(q)
    inclusions = np.asarray(d.kept) / (1 + np.exp(-np.asarray(d.gate_logits, np.float64)))
    sums = np.bincount(np.ravel(d.codes()), inclusions.ravel(), minlength=5)[1:]
    want = sums * np.asarray(d.means)[0] / PRIOR.scale**2
    np.testing.assert_allclose(gradient.means[0], want, rtol=1e-4)
    for name in ("loc", "gate_logits", "log_scales", "mixture_logits"):
        assert not np.any(getattr(gradient, name)), name


def test_a_replaced_function_is_not_bypassed_by_a_pass_for_two():
    t = transform()
    assert t._replace(compress=None).mean_and_kl == t.mean_and_kl
    for name, gone in (
        ("mean", {"mean_and_kl"}),
        ("mode", {"mode_and_kl"}),
        ("kl", {"mean_and_kl", "mode_and_kl"}),
    ):
        other = t._replace(**{name: t.compress})
        for pass_ in ("mean_and_kl", "mode_and_kl"):
            assert (getattr(other, pass_) is None) == (pass_ in gone), (name, pass_)
    assert t._replace(kl=t.mean, mode_and_kl=t.mode).mode_and_kl == t.mode


def test_leaves_draw_noise_of_their_own():
    w = params()["a"]["kernel"]
    t = sqs_jax.spike_slab_gmm([Rule(components=4)], prior=PRIOR)
    q = t.init({"x": w, "y": w})
    for hard in (False, True):
        drawn = t.sample(q, KEY, temperature=20.0, hard=hard)
        assert (np.asarray(drawn["x"]) != np.asarray(drawn["y"])).any()


def test_kl_of_leaves_of_two_precisions_is_summed_in_the_wider():
    with jax.enable_x64(True):
        t = sqs_jax.spike_slab_gmm([Rule(components=4)], prior=PRIOR)
        p = {"x": params()["a"]["kernel"], "y": params(dtype=jnp.float64)["a"]["kernel"]}
        assert t.kl(t.init(p)).dtype == jnp.float64


MADE = transform().init(params())


@pytest.mark.parametrize(
    "rule",
    [
        {"components": 8},
        {"windows": Windows(kind="equal", count=2)},
        {"prunable": False},
        {"structure": (2, 4)},
        {"components": None},
        {"min_ndim": 3},
    ],
    ids=str,
)
def test_a_posterior_of_other_rules_is_refused_by_every_verb(rule):
    t = transform(**rule)
    for verb in (t.mean, t.mode, t.kl, t.compress, lambda q: t.sample(q, KEY)):
        with pytest.raises(ValueError, match=r"a/kernel: .*other rules.*transform that made it"):
            verb(MADE)


def test_plain_params_are_refused_where_a_posterior_belongs():
    with pytest.raises(ValueError, match=r"a/kernel: .*plain array.*transform.init\(params\)"):
        transform().mean(params())


def test_a_posterior_is_refused_where_params_belong():
    with pytest.raises(ValueError, match="a/kernel: already a SubDistribution"):
        transform().init(MADE)


@pytest.mark.parametrize("train", ["loc", "gate", "means", "spread"])
def test_a_part_of_a_posterior_is_refused(train):
    for part in sqs_jax.partition(MADE, train=(train,)):
        with pytest.raises(ValueError, match=r"a/kernel: one part.*combine"):
            transform().mean(part)


def test_a_posterior_of_another_tree_is_refused():
    with pytest.raises(ValueError, match=r"'\.\*kernel' matches no leaf.*b/weight"):
        transform().mean({"b": {"weight": jnp.ones((3, 3))}})


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"prior": 0.3}, TypeError, "SpikeSlabPrior, not 0.3"),
        ({"prior": PRIOR, "initialiser": "random"}, ValueError, "'random'"),
    ],
)
def test_a_transform_refuses_what_it_cannot_use(options, error, named):
    with pytest.raises(error, match=named):
        sqs_jax.spike_slab_gmm([Rule()], **options)


def test_the_prior_is_required_and_keyword_only():
    with pytest.raises(TypeError):
        sqs_jax.spike_slab_gmm([Rule()])


def test_stacked_leaves_get_a_codebook_per_slice():
    t = transform(stacked=1)
    q = t.init({"a": {"kernel": params((3, 6, 5))["a"]["kernel"]}})
    assert leaf(q).means.shape == (3, 1, 4) and leaf(t.compress(q)).codebook.shape == (3, 1, 4)
    np.testing.assert_array_equal(leaf(sqs_jax.materialize(t.compress(q))), leaf(t.mode(q)))
    assert isinstance(leaf(q), SubDistribution)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan")])
def test_temperature_and_relaxation_must_be_positive(bad):
    t = transform()
    q = t.init(params())
    for call in (
        lambda: t.mean(q, temperature=bad),
        lambda: t.kl(q, temperature=bad),
        lambda: t.sample(q, KEY, temperature=bad),
        lambda: t.sample(q, KEY, relaxation=bad),
    ):
        with pytest.raises(ValueError, match="must be > 0"):
            call()


def test_float64_weights_of_numpy_become_what_jax_makes_of_them():
    w = np.random.default_rng(0).normal(size=(6, 5))
    assert leaf(transform().init({"a": {"kernel": w}})).loc.dtype == jnp.float32


def test_weights_that_went_bad_are_named_before_they_ship():
    t = transform()
    q = t.init(params())
    bad = leaf(q).replace(loc=leaf(q).loc.at[0, 0].set(jnp.nan))
    q["a"]["kernel"] = bad
    with pytest.raises(ValueError, match=r"a/kernel: 1 of \d+ weights are not finite"):
        t.compress(q)


def test_a_stack_of_no_slices_is_named():
    t = sqs_jax.spike_slab_gmm([Rule(components=4, stacked=1)], prior=PRIOR)
    with pytest.raises(ValueError, match=r"a: no slice of shape \(0, 5, 6\)"):
        t.init({"a": jnp.zeros((0, 5, 6))})


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float8_e4m3fn])
def test_gates_of_few_bits_go_through_every_verb(dtype):
    rules = [Rule(components=4)]
    wide = sqs_jax.spike_slab_gmm(rules, prior=PRIOR)
    t = sqs_jax.spike_slab_gmm(rules, prior=PRIOR, gate_dtype=dtype)
    q, reference = t.init(params()), wide.init(params())
    assert leaf(q).gate_logits.dtype == dtype
    for estimator in ("mode", "mean", "sample"):
        loss = sqs_jax.elbo(
            t, lambda p, _: (jnp.sum(p["a"]["kernel"] ** 2), None), num_data=10, estimator=estimator
        )
        trainable, fixed = sqs_jax.partition(q, train=("loc", "means"))
        gradient = jax.grad(lambda part, fixed=fixed, loss=loss: loss(
            sqs_jax.combine(part, fixed), None, KEY, 0)[0])(trainable)  # fmt: skip
        assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(gradient))
    for scores in (sqs_jax.saliency.magnitude, sqs_jax.saliency.gate):
        pruned = sqs_jax.refit(sqs_jax.revive(sqs_jax.prune(q, 0.5, scores=scores(q))))
        assert leaf(pruned).gate_logits.dtype == dtype
        assert jnp.isfinite(t.kl(pruned))
    codes = [leaf(x.compress(sqs_jax.prune(y, 0.5))).codes for x, y in ((t, q), (wide, reference))]
    np.testing.assert_array_equal(*codes)


@pytest.mark.parametrize("scale", [1e-12, 1e-16, 1e-24, 1e-33, 1e12, 1e24])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_scale_of_the_weights_has_no_effect_on_codes(scale, dtype):
    """Codes do not depend on the scale, also after pruning and M-steps."""
    sqs = sqs_jax.spike_slab_gmm(
        [sqs_jax.Rule(components=4)], prior=sqs_jax.SpikeSlabPrior(inclusion=0.5, scale=1.0)
    )
    weights = np.random.default_rng(0).standard_normal((40, 30))
    power = 2.0 ** round(np.log2(scale))  # a power of two changes no digit

    def codes(unit):
        start = sqs.init({"w": jnp.asarray(weights * unit, dtype)})
        revived = sqs_jax.refit(sqs_jax.revive(sqs_jax.prune(start, 0.5)))
        trees = start, sqs_jax.refit(start), revived, sqs_jax.at_price(start, 1.0)
        assert all(np.isfinite(np.asarray(tree["w"].log_scales)).all() for tree in trees)
        return [np.asarray(sqs.compress(tree)["w"].codes) for tree in trees]

    for small, usual in zip(codes(power), codes(1.0), strict=True):
        assert np.mean(small != usual) < 0.01  # a weight between two levels may go to either
