"""Codes that cost their length: the most probable of K levels and zero, shares from the codes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sqs_jax

SHAPE = (60, 50)


def start(*, stacked: int = 0, prunable: bool = True, seed: int = 0) -> sqs_jax.SubDistribution:
    """Return a tensor's posterior whose weights have the nearest of seven levels, or zero."""
    shape = (3,) * stacked + SHAPE
    weights = np.random.default_rng(seed).laplace(size=shape).astype(np.float32)
    leaf = sqs_jax.SubDistribution.init(
        weights, components=7, stacked=stacked, prunable=prunable, initialiser="quantile"
    )
    means = jnp.broadcast_to(jnp.array([-4.0, -2, -1, 0.5, 1, 2, 4]), leaf.means.shape)
    leaf = leaf.replace(
        means=means,
        log_scales=jnp.full_like(means, jnp.log(0.3)),
        mixture_logits=jnp.zeros_like(means),
    )
    return leaf.replace(kept=abs(leaf.loc) > abs(leaf.loc - leaf.mode())) if prunable else leaf


def shares(codes: np.ndarray) -> np.ndarray:
    return np.bincount(np.asarray(codes).ravel(), minlength=8) / codes.size


def entropy(leaf: sqs_jax.SubDistribution) -> float:
    p = shares(leaf.codes())
    return float(-np.sum(p[p > 0] * np.log2(p[p > 0])))


def test_codes_are_the_most_probable_of_all_levels_and_zero() -> None:
    """Against a sum over all of them, with the shares that the round before ends with."""
    leaf, widening = start(), 1.7
    levels = np.append(0, np.asarray(leaf.means).ravel())
    width = 0.3 * widening
    codes = np.asarray(leaf.codes())
    distance = (np.asarray(leaf.loc)[..., None] - levels) ** 2 / (2 * width**2)
    for _ in range(2):
        count = np.maximum(np.bincount(codes.ravel(), minlength=8), 0.5)
        codes = np.argmin(distance - np.log(count), axis=-1)
    found = leaf.at_price(widening)
    assert (codes != np.asarray(leaf.codes())).mean() > 0.01
    np.testing.assert_array_equal(found.codes(), codes)
    np.testing.assert_allclose(found.log_scales, np.log(width), rtol=1e-5)
    pi = jax.nn.softmax(found.mixture_logits.ravel())
    np.testing.assert_allclose(pi, count[1:] / count[1:].sum(), rtol=1e-5)


def test_the_wider_the_fewer_bits_and_the_larger_error() -> None:
    leaf, rows = start(), []
    for widening in (1e-3, 0.5, 1.0, 2.0, 4.0, 16.0):
        found = leaf.at_price(widening)
        rows.append((entropy(found), float(jnp.mean((found.mode() - leaf.loc) ** 2))))
    bits, errors = zip(*rows, strict=True)
    assert list(bits) == sorted(bits, reverse=True) and list(errors) == sorted(errors)
    assert bits[0] > 2 * bits[-1]
    np.testing.assert_array_equal(leaf.at_price(1e-3).codes(), leaf.codes())  # the nearest


def test_error_and_bits_together_are_less_than_at_the_nearest_level() -> None:
    leaf, price = start(), 2 * 0.3**2 * np.log(2)  # per bit

    def lagrangian(found: sqs_jax.SubDistribution) -> float:
        return float(jnp.mean((found.mode() - leaf.loc) ** 2)) + price * entropy(found)

    assert lagrangian(leaf.at_price()) < 0.99 * lagrangian(leaf)


def test_slices_are_priced_on_their_own() -> None:
    leaf = start(stacked=1)
    leaf = leaf.replace(loc=leaf.loc.at[1].multiply(0.5), kept=leaf.kept.at[1].set(True))
    found = jax.jit(sqs_jax.SubDistribution.at_price)(leaf, 1.3)
    for i in range(3):
        alone = jax.tree.map(lambda x, i=i: x[i], leaf).at_price(1.3)
        jax.tree.map(lambda x, y, i=i: np.testing.assert_allclose(x[i], y, rtol=1e-6), found, alone)


@pytest.mark.parametrize("structure", [None, (2, 4)])
def test_what_may_not_be_pruned_and_patterns_keep_their_zeros(structure) -> None:
    leaf = start(prunable=False)
    if structure:
        leaf = start()
        tree = {"a": leaf.replace(structure=structure, kept=jnp.ones_like(leaf.kept))}
        leaf = sqs_jax.prune(tree, 0.0)["a"]
    found = sqs_jax.at_price({"a": leaf, "b": jnp.ones(3)}, 8.0)
    np.testing.assert_array_equal(found["a"].kept, leaf.kept)
    assert entropy(found["a"]) < entropy(leaf)
    np.testing.assert_array_equal(found["b"], 1)


@pytest.mark.parametrize("widening", [0.0, -1.0, float("nan")])
def test_a_price_is_positive(widening) -> None:
    with pytest.raises(ValueError, match="widening"):
        sqs_jax.at_price({"a": start()}, widening)
