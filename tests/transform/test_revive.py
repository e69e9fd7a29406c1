"""Re-seeding of components that pruning emptied."""

import jax
import jax.numpy as jnp
import numpy as np

import sqs_jax

SQS = sqs_jax.spike_slab_gmm(
    [sqs_jax.Rule(components=4)], prior=sqs_jax.SpikeSlabPrior(inclusion=0.2, scale=1.0)
)


def pruned_posterior() -> dict[str, sqs_jax.SubDistribution]:
    weights = np.random.default_rng(0).laplace(size=(100, 60)).astype(np.float32)
    return sqs_jax.prune(SQS.init({"kernel": jnp.asarray(weights)}), 0.8)


def used(posterior: dict[str, sqs_jax.SubDistribution]) -> np.ndarray:
    return np.bincount(np.asarray(posterior["kernel"].codes()).ravel(), minlength=5)[1:]


def squared_error(posterior: dict[str, sqs_jax.SubDistribution]) -> float:
    leaf = posterior["kernel"]
    return float(jnp.sum(jnp.where(leaf.kept, leaf.loc - leaf.mode(), 0.0) ** 2))


def test_an_emptied_component_splits_the_widest_one() -> None:
    before = pruned_posterior()
    assert (used(before) == 0).any()
    after = before
    for _ in range(3):  # as in training, at every update of the mask
        after = sqs_jax.refit(sqs_jax.revive(after))
    assert (used(after) > 0).all()
    assert squared_error(after) < 0.6 * squared_error(before)
    mixture = after["kernel"].mixture
    assert all(bool(jnp.isfinite(field).all()) for field in mixture)


def test_components_with_weights_do_not_change() -> None:
    weights = np.random.default_rng(0).normal(size=(50, 40)).astype(np.float32)
    before = SQS.init({"kernel": jnp.asarray(weights), "bias": jnp.ones(3)})
    after = sqs_jax.revive(before)
    assert jax.tree.structure(before) == jax.tree.structure(after)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(a, b)


def test_equal_weights_cannot_be_split() -> None:
    before = sqs_jax.refit(SQS.init({"kernel": jnp.ones((8, 8))}))
    after = sqs_jax.revive(before)
    np.testing.assert_array_equal(after["kernel"].means, before["kernel"].means)
    np.testing.assert_array_equal(after["kernel"].mode(), jnp.ones((8, 8)))


def test_only_windows_with_empty_components_change_and_stacks_are_independent() -> None:
    weights = np.random.default_rng(0).laplace(size=(2, 60, 50)).astype(np.float32)
    rule = sqs_jax.Rule(components=3, stacked=1, windows=sqs_jax.Windows(kind="outlier", count=3))
    sqs = sqs_jax.spike_slab_gmm([rule], prior=sqs_jax.SpikeSlabPrior(inclusion=0.2, scale=1.0))
    before = sqs_jax.prune(sqs.init({"kernel": jnp.asarray(weights)}), 0.6)["kernel"]
    after = sqs_jax.revive({"kernel": before})["kernel"]
    codes = np.asarray(before.codes()).reshape(2, -1)
    for layer in range(2):
        counts = np.bincount(codes[layer], minlength=10)[1:].reshape(3, 3)
        moved = np.asarray(after.means != before.means)[layer]
        for window in range(3):
            assert moved[window].any() == (counts[window] == 0).any()
