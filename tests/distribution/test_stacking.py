"""Tensors that are evaluated in one program give what each gives alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import generic, leaf, params, transform

from sqs_jax import SpikeSlabPrior, Windows
from sqs_jax.distribution import (
    code_lengths,
    codes,
    means_and_kls,
    modes,
    modes_and_kls,
    stacking,
)
from sqs_jax.distribution.stacking import by_shape, per_slice

PRIOR = SpikeSlabPrior(inclusion=0.2, scale=0.5)


def tensors():
    """Two of one shape and K, one of that shape and another K, one of another shape, windows."""
    made = []
    for seed, (shape, components, windows) in enumerate(
        [
            ((6, 8), 3, Windows()),
            ((6, 8), 3, Windows()),
            ((4, 5), 3, Windows()),
            ((6, 8), 9, Windows()),
            ((6, 8), 4, Windows(kind="equal", count=2)),
            ((6, 8), 4, Windows(kind="equal", count=2)),
        ]
    ):
        weights = params(shape, seed=seed)
        made.append(leaf(generic(transform(windows=windows, components=components).init(weights))))
    return made


@pytest.mark.parametrize("one_by_one", [True, False])
def test_trees_of_equal_shapes_are_one_call_and_results_keep_their_order(one_by_one):
    trees = [{"a": jnp.full(shape, i), "b": jnp.arange(3)} for i, shape in enumerate([2, 4, 2, 2])]
    calls = []

    def function(tree):
        calls.append(tree["a"].shape)
        return tree["a"] + 1, jnp.sum(tree["a"], axis=-1)

    results = by_shape(function, trees, one_by_one=one_by_one)
    assert sorted(calls) == [(2,) if one_by_one else (3, 2), (4,)]
    for i, (tree, (plus, total)) in enumerate(zip(trees, results, strict=True)):
        np.testing.assert_array_equal(plus, tree["a"] + 1)
        assert int(total) == i * len(tree["a"])


def test_large_tensors_have_programs_of_their_own_and_stacks_are_bounded(monkeypatch):
    monkeypatch.setattr(stacking, "_LARGE", 4)
    monkeypatch.setattr(stacking, "_SHARED", 6)
    shapes = []
    trees = [jnp.ones(n) for n in (4, 4, 3, 3, 3)]
    by_shape(lambda x: shapes.append(x.shape) or x, trees, one_by_one=False)
    assert sorted(shapes) == [(2, 3), (3,), (4,), (4,)]


@pytest.mark.parametrize("at_once", [True, False])
def test_every_slice_of_stacked_axes_is_evaluated_alone(at_once):
    x, empty = jnp.arange(24.0).reshape(2, 3, 4), jnp.zeros((2, 3, 0))
    total, order = per_slice(
        lambda x, e: (jnp.sum(x) + e.size, jnp.sort(-x)), 2, x, empty, at_once=at_once
    )
    np.testing.assert_array_equal(total, np.sum(x, axis=2))
    np.testing.assert_array_equal(order, np.sort(-np.asarray(x), axis=2))


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_values_and_gradients_are_those_of_each_alone(temperature):
    def loss(leaves, one_by_one):
        if one_by_one:
            parts = [means_and_kls([d], PRIOR, temperature, evaluation="loop") for d in leaves]
            weights, bounds = zip(*((w, k) for (w,), (k,) in parts), strict=True)
        else:
            weights, bounds = means_and_kls(leaves, PRIOR, temperature, evaluation="loop")
        total = sum(jnp.sum(jnp.sin(7 * w)) for w in weights) + sum(bounds) / 50
        return total, (list(weights), list(bounds))

    grad = jax.value_and_grad(loss, has_aux=True, allow_int=True)
    leaves = tensors()
    (_, alone), alone_gradient = grad(leaves, True)
    (_, found), gradient = grad(leaves, False)
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    for a, b in zip(jax.tree.leaves(alone_gradient), jax.tree.leaves(gradient), strict=True):
        if a.dtype != jax.dtypes.float0:
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_codes_and_gradients_of_means_are_those_of_each_alone():
    leaves = tensors()

    def loss(leaves):
        return sum(jnp.sum(jnp.sin(d.loc) * w) for d, w in zip(leaves, modes(leaves), strict=True))

    gradients = jax.grad(loss, allow_int=True)(leaves)
    for d, code, gradient in zip(leaves, codes(leaves), gradients, strict=True):
        np.testing.assert_array_equal(code, d.codes())
        assert code.dtype == jnp.uint8
        upstream, sizes = np.sin(np.asarray(d.loc)).ravel(), d.means.size + 1
        wanted = np.bincount(np.ravel(code), weights=upstream, minlength=sizes)[1:]
        np.testing.assert_allclose(np.ravel(gradient.means), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("at_once", [True, False])
def test_what_accelerators_run_is_what_cpus_run(monkeypatch, at_once):
    def all_of(leaves):
        weights, bounds = means_and_kls(leaves, PRIOR, 0.5)
        lengths = code_lengths(leaves, 0.5)
        gradients = jax.grad(lambda d: sum(jnp.sum(jnp.sin(w)) for w in modes(d)), allow_int=True)(
            leaves
        )
        pruned = [d.replace(kept=d.kept & (jnp.abs(d.loc) > 0.3)) for d in leaves]
        refitted = [d.revive().refit() for d in pruned]
        exact = codes(leaves), codes(refitted)
        close = (
            weights,
            bounds,
            lengths,
            modes_and_kls(leaves, PRIOR),
            [(g.loc, g.means) for g in gradients],
            refitted,
        )
        return exact, close

    leaves = tensors()
    here = all_of(leaves)
    monkeypatch.setattr(
        jax.lax, "platform_dependent", lambda *args, default, **platforms: default(*args)
    )
    monkeypatch.setattr(stacking, "AT_ONCE", 1 << 24 if at_once else 0)
    jax.clear_caches()  # of what was traced for CPUs
    there = all_of(leaves)
    jax.clear_caches()
    for a, b in zip(jax.tree.leaves(here[0]), jax.tree.leaves(there[0]), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(jax.tree.leaves(here[1]), jax.tree.leaves(there[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("at_once", [True, False])
def test_a_program_for_accelerators_does_not_grow_with_the_components(monkeypatch, at_once):
    """What was unrolled compiled for minutes on a GPU: here, its lines before it is compiled."""
    monkeypatch.setattr(stacking, "AT_ONCE", 1 << 24 if at_once else 0)

    def lines(components):
        leaves = [
            leaf(transform(components=components).init(params(shape, seed=seed)))
            for seed, shape in enumerate([(40, 30), (40, 30), (64, 16)])
        ]

        def loss(leaves):
            weights, bounds = means_and_kls(leaves, PRIOR, 0.5)
            deployed = modes(leaves)
            return sum(jnp.sum(jnp.sin(w)) for w in [*weights, *deployed]) + sum(bounds)

        jax.clear_caches()
        lowered = jax.jit(jax.grad(loss, allow_int=True)).trace(leaves)
        return lowered.lower(lowering_platforms=("cuda",)).as_text().count("\n")

    assert lines(33) == lines(5) < 3000
