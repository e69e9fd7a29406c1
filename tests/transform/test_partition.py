import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import generic, leaf, params, transform

import sqs_jax
from sqs_jax import combine, param_labels, partition
from sqs_jax.transform.partition import TRAINABLE

T = transform()
Q = generic(T.init(params() | {"n": jnp.arange(3)} | {"none": None}))
Q = {**T.init(params() | {"n": jnp.arange(3), "none": None}), "a": Q["a"]}


def loss(q):
    return jnp.sum(T.mean(q)["a"]["kernel"] ** 2) + jnp.sum(q["a"]["bias"] ** 2) + T.kl(q)


def test_labels_name_the_role_of_every_array():
    labels = param_labels(Q)
    d = labels["a"]["kernel"]
    assert (d.loc, d.gate_logits, d.means) == ("loc", "gate", "means")
    assert (d.log_scales, d.mixture_logits) == ("spread", "spread")
    assert (d.kept, d.boundaries) == ("fixed", "fixed")
    assert labels["a"]["bias"] == "dense" and labels["n"] == "fixed"
    assert jax.tree.structure(labels) == jax.tree.structure(Q)


@pytest.mark.parametrize("train", [(), ("loc",), ("dense", "spread"), TRAINABLE, "means"])
def test_the_parts_are_disjoint_and_combine_to_the_whole(train):
    trainable, fixed = partition(Q, train=train)
    whole = combine(trainable, fixed)
    assert jax.tree.structure(whole) == jax.tree.structure(Q)
    chex.assert_trees_all_equal(whole, Q)
    chosen = (train,) if isinstance(train, str) else train
    assert set(jax.tree.leaves(param_labels(trainable))) == set(chosen)
    assert not set(jax.tree.leaves(param_labels(fixed))) & set(chosen)
    assert len(jax.tree.leaves(trainable)) + len(jax.tree.leaves(fixed)) == len(jax.tree.leaves(Q))


def test_the_default_trains_all_but_spreads_and_is_floating():
    trainable, _ = partition(Q)
    assert set(jax.tree.leaves(param_labels(trainable))) == {"loc", "gate", "means", "dense"}
    assert all(jnp.issubdtype(x.dtype, jnp.floating) for x in jax.tree.leaves(trainable))


def test_grad_and_optax_partition_train_each_role_by_its_own_rule():
    trainable, fixed = partition(Q, train=TRAINABLE)
    rates = {"loc": 0.0, "gate": 0.3, "means": 0.1, "spread": 0.2, "dense": 1.0}
    tx = optax.partition({role: optax.sgd(rate) for role, rate in rates.items()}, param_labels)

    @jax.jit
    def step(part, state):
        gradient = jax.grad(lambda p: loss(combine(p, fixed)))(part)
        updates, state = tx.update(gradient, state, part)
        return optax.apply_updates(part, updates), gradient

    new, gradient = step(trainable, tx.init(trainable))
    for field, role in (("loc", "loc"), ("gate_logits", "gate"), ("means", "means"),
                        ("log_scales", "spread"), ("mixture_logits", "spread")):  # fmt: skip
        before, slope = getattr(leaf(trainable), field), getattr(leaf(gradient), field)
        want = np.asarray(before) - rates[role] * np.asarray(slope)
        np.testing.assert_allclose(getattr(leaf(new), field), want, rtol=1e-5, atol=1e-7)
    assert np.any(np.asarray(new["a"]["bias"]) != np.asarray(Q["a"]["bias"]))


def test_a_frozen_theta_has_no_optimizer_state():
    sizes = {}
    for train in (("means",), ("loc", "means")):
        state = optax.adam(1e-3).init(partition(Q, train=train)[0])
        sizes[train] = sum(x.size for x in jax.tree.leaves(state))
    assert sizes["loc", "means"] - sizes["means",] == 2 * leaf(Q).loc.size


def test_unknown_roles_are_named():
    with pytest.raises(ValueError, match=r"\['kept'\].*'loc'"):
        partition(Q, train=("loc", "kept"))


def test_combine_names_arrays_that_both_parts_or_neither_have():
    trainable, fixed = partition(Q)
    with pytest.raises(ValueError, match=r"a/bias: both parts have this array.*partition"):
        combine(trainable, trainable)
    with pytest.raises(ValueError, match=r"n: both parts|a/kernel: both parts"):
        combine(fixed, fixed)
    only_loc, _ = partition(Q, train=("loc",))
    with pytest.raises(ValueError, match=r"neither part has.*means"):
        combine(only_loc, fixed)


@pytest.mark.parametrize(
    "verb", [sqs_jax.refit, sqs_jax.revive, lambda part: sqs_jax.prune(part, 0.5)]
)
def test_verbs_refuse_one_part_by_path(verb):
    trainable, fixed = sqs_jax.partition(transform().init(params()))
    for part in (trainable, fixed):
        with pytest.raises(ValueError, match=r"a/kernel: one part of a partitioned.*combine"):
            verb(part)
