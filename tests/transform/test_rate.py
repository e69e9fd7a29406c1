"""Rate: comparison with the codes' entropy, and descent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sqs_jax

PRIOR = sqs_jax.SpikeSlabPrior(inclusion=0.2, scale=1.0)


def refitted(rule: sqs_jax.Rule, shape: tuple[int, ...], sparsity: float):
    transform = sqs_jax.spike_slab_gmm([rule], prior=PRIOR)
    weights = np.random.default_rng(0).laplace(size=shape).astype(np.float32)
    posterior = sqs_jax.prune(transform.init({"kernel": jnp.asarray(weights)}), sparsity)
    return transform, sqs_jax.refit(posterior)


@pytest.mark.parametrize(
    "rule",
    [
        sqs_jax.Rule(components=1),
        sqs_jax.Rule(components=4),
        sqs_jax.Rule(components=16),
        sqs_jax.Rule(components=3, windows=sqs_jax.Windows(kind="outlier", count=4)),
    ],
)
@pytest.mark.parametrize("sparsity", [0.0, 0.7])
def test_at_a_low_temperature_the_rate_is_the_code_length(rule, sparsity):
    transform, posterior = refitted(rule, (90, 70), sparsity)
    leaf, codes = posterior["kernel"], transform.compress(posterior)["kernel"].codes
    counts = np.bincount(np.asarray(codes).ravel(), minlength=1 + leaf.means.size)
    pruned, windows = counts[0], counts[1:].reshape(leaf.means.shape)
    mask = np.array([pruned, *windows.sum(-1)])
    choices = -np.sum(mask * np.log(np.maximum(mask, 1) / codes.size))
    within = -np.sum(windows * np.asarray(jax.nn.log_softmax(leaf.mixture_logits, axis=-1)))
    rate = float(sqs_jax.code_length(posterior, temperature=1e-4))
    assert rate == pytest.approx(choices + within, rel=1e-3, abs=1e-3)
    assert rate >= entropy_of(codes) - 1e-3 * rate


def entropy_of(codes: jax.Array) -> float:
    """Return the order-0 entropy of all codes, nats."""
    share = np.unique(np.asarray(codes), return_counts=True)[1] / codes.size
    return float(-codes.size * np.sum(share * np.log(share)))


def test_mixed_precision_is_added_and_a_temperature_of_zero_is_refused():
    _, posterior = refitted(sqs_jax.Rule(components=4), (30, 20), 0.5)
    with jax.enable_x64(True):
        weights = {"a": jnp.ones((4, 5), jnp.float64), "b": jnp.ones((4, 5), jnp.float32)}
        both = sqs_jax.spike_slab_gmm([sqs_jax.Rule(components=1)], prior=PRIOR).init(weights)
        assert sqs_jax.code_length(both).dtype == jnp.float64
    with pytest.raises(ValueError, match="temperature is 0"):
        sqs_jax.code_length(posterior, temperature=0)


def test_slices_of_a_stack_are_coded_separately():
    _, both = refitted(sqs_jax.Rule(components=4, stacked=1), (2, 60, 50), 0.5)
    alone = sum(
        sqs_jax.code_length(jax.tree.map(lambda array, i=i: array[i], both)) for i in range(2)
    )
    assert float(sqs_jax.code_length(both)) == pytest.approx(float(alone), rel=1e-5)


def test_descent_makes_the_codes_shorter():
    transform, posterior = refitted(sqs_jax.Rule(components=8), (64, 64), 0.3)

    def length(loc: jax.Array) -> jax.Array:
        leaf = posterior["kernel"].replace(loc=loc)
        return sqs_jax.code_length({"kernel": leaf}, temperature=1.0)

    loc = posterior["kernel"].loc
    before = float(length(loc))
    for _ in range(20):
        loc -= 0.02 * jax.grad(length)(loc)
    assert float(length(loc)) < 0.97 * before

    def entropy(loc: jax.Array) -> float:
        leaf = posterior["kernel"].replace(loc=loc)
        return entropy_of(transform.compress({"kernel": leaf})["kernel"].codes)

    assert entropy(loc) < entropy(posterior["kernel"].loc)


def test_without_compressed_leaves_the_rate_is_zero():
    assert float(sqs_jax.code_length({"bias": jnp.ones(3)})) == 0.0
