"""Tensors that are evaluated in one program give what each gives alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import generic, leaf, params, transform

from sqs_jax import SpikeSlabPrior, Windows
from sqs_jax.distribution import groups, together
from sqs_jax.distribution.alike import alike, widen
from sqs_jax.distribution.mixture import responsibilities

PRIOR = SpikeSlabPrior(inclusion=0.2, scale=0.5)


def tensors():
    """Three of one shape and different K, one of another shape, two with windows."""
    made = []
    for seed, (shape, components, windows) in enumerate(
        [
            ((6, 8), 3, Windows()),
            ((6, 8), 17, Windows()),
            ((4, 5), 3, Windows()),
            ((6, 8), 9, Windows()),
            ((6, 8), 4, Windows(kind="equal", count=2)),
            ((6, 8), 4, Windows(kind="equal", count=2)),
        ]
    ):
        weights = params(shape, seed=seed)
        made.append(leaf(generic(transform(windows=windows, components=components).init(weights))))
    return made


def test_groups_are_tensors_of_one_shape():
    leaves = tensors()
    found = alike([d.loc for d in leaves], [d.mixture for d in leaves], [None] * len(leaves))
    assert found == [[0, 1, 3], [2], [4, 5]]
    apart = alike([d.loc for d in leaves], [d.mixture for d in leaves], [0, 1, 0, 0, 0, 0])
    assert [0, 3] in apart and [1] in apart


def test_components_that_fill_up_are_never_responsible():
    d = tensors()[0]
    for temperature in (1e-3, 1.0, 5.0):
        phi = responsibilities(d.loc.ravel() * 30, widen(d.mixture, 8), temperature)
        np.testing.assert_array_less(np.asarray(phi)[:, 3:], 1e-15)


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_values_and_gradients_are_those_of_each_alone(temperature):
    def loss(leaves, one_by_one):
        if one_by_one:
            parts = [
                together.means_and_kls([d], PRIOR, temperature, evaluation="loop") for d in leaves
            ]
            weights, bounds = zip(*((w, k) for (w,), (k,) in parts), strict=True)
        else:
            weights, bounds = together.means_and_kls(leaves, PRIOR, temperature, evaluation="loop")
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


def test_codes_and_sums_are_those_of_each_alone():
    leaves = tensors()
    locs, mixtures = [d.latent for d in leaves], [d.mixture for d in leaves]
    kept = [(d.kept,) for d in leaves]
    found = together.most_probable_by_shape(together._codes, locs, mixtures, kept)
    for code, (mine, _) in zip(together.codes(leaves), found, strict=True):
        np.testing.assert_array_equal(code, mine)
        assert code.dtype == mine.dtype
    more = [(d.kept, jnp.cos(d.loc)) for d in leaves]
    sums = together.most_probable_by_shape(together._by_mean, locs, mixtures, more)
    for d, (_, mine) in zip(leaves, sums, strict=True):
        codes = np.asarray(together.codes([d])[0]).ravel()
        wanted = np.bincount(
            codes, weights=np.cos(np.asarray(d.loc)).ravel(), minlength=d.means.size + 1
        )
        np.testing.assert_allclose(np.asarray(mine).ravel(), wanted[1:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("at_once", [True, False])
def test_what_accelerators_run_is_what_cpus_run(monkeypatch, at_once):
    def all_of(leaves):
        weights, bounds = together.means_and_kls(leaves, PRIOR, 0.5)
        lengths = together.code_lengths(leaves, 0.5)
        gradients = jax.grad(
            lambda d: sum(jnp.sum(jnp.sin(w)) for w in together.modes(d)), allow_int=True
        )(leaves)
        pruned = [d.replace(kept=d.kept & (jnp.abs(d.loc) > 0.3)) for d in leaves]
        refitted = [d.revive().refit() for d in pruned]
        exact = together.codes(leaves), together.codes(refitted)
        close = weights, bounds, lengths, [(g.loc, g.means) for g in gradients], refitted
        return exact, close

    leaves = tensors()
    here = all_of(leaves)
    monkeypatch.setattr(
        jax.lax, "platform_dependent", lambda *args, default, **platforms: default(*args)
    )
    monkeypatch.setattr(groups, "AT_ONCE", 1 << 24 if at_once else 0)
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
    monkeypatch.setattr(groups, "AT_ONCE", 1 << 24 if at_once else 0)

    def lines(components):
        leaves = [
            leaf(transform(components=components).init(params(shape, seed=seed)))
            for seed, shape in enumerate([(40, 30), (40, 30), (64, 16)])
        ]

        def loss(leaves):
            weights, bounds = together.means_and_kls(leaves, PRIOR, 0.5)
            modes = together.modes(leaves)
            return sum(jnp.sum(jnp.sin(w)) for w in [*weights, *modes]) + sum(bounds)

        jax.clear_caches()
        lowered = jax.jit(jax.grad(loss, allow_int=True)).trace(leaves)
        return lowered.lower(lowering_platforms=("cuda",)).as_text().count("\n")

    assert lines(33) == lines(5) < 3000
