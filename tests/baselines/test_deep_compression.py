"""Magnitude pruning and k-means, in both orders."""

import numpy as np
import pytest

import sqs_jax
from sqs_jax.baselines import deep_compression

RNG = np.random.default_rng(0)
PARAMS = {
    "a": {"kernel": RNG.normal(0, 1.0, (20, 30)).astype(np.float32), "bias": np.ones(30, "f4")},
    "b": {"kernel": RNG.normal(0, 0.01, (3, 3, 4, 10)).astype(np.float32)},
}


def compress(**options):
    return deep_compression.compress(PARAMS, **options)


@pytest.mark.parametrize("order", ["prune_first", "quantise_first"])
@pytest.mark.parametrize("sparsity", [0.0, 0.4, 0.9])
def test_as_many_are_pruned_as_asked_and_the_rest_has_k_values(order, sparsity, tmp_path):
    compressed = compress(sparsity=sparsity, components=5, order=order)
    codes = [compressed[name]["kernel"].codes for name in "ab"]
    pruned = sum((leaf_codes == 0).sum() for leaf_codes in codes)
    assert pruned == round(sparsity * (600 + 360))
    assert compressed["a"]["bias"] is PARAMS["a"]["bias"]
    # The threshold is in units of each tensor's deviation: equal shares, whatever the scales.
    shares = [(leaf_codes == 0).mean() for leaf_codes in codes]
    # With "quantise_first" all weights with the same value are pruned together.
    assert abs(shares[0] - shares[1]) < (0.1 if order == "prune_first" else 0.3)
    assert max(leaf_codes.max() for leaf_codes in codes) <= 5
    sqs_jax.save(tmp_path / "m.sqs", compressed)


def test_pruning_first_leaves_the_largest_at_the_means_of_their_cells():
    leaf = compress(sparsity=0.5, components=3)["a"]["kernel"]
    weights, codes = PARAMS["a"]["kernel"], leaf.codes
    assert np.abs(weights[codes == 0]).max() <= np.abs(weights[codes > 0]).min()
    for k, level in enumerate(leaf.codebook.ravel(), start=1):
        assert level == pytest.approx(weights[codes == k].mean(), rel=1e-3)
    distance = np.abs(weights[codes > 0][:, None] - leaf.codebook.ravel())
    np.testing.assert_array_equal(distance.argmin(1), codes[codes > 0] - 1)


def test_quantizing_first_wastes_levels():
    def error(order):
        tree = sqs_jax.materialize(compress(sparsity=0.7, components=8, order=order))
        return np.square(tree["a"]["kernel"] - PARAMS["a"]["kernel"]).sum()

    assert error("prune_first") < error("quantise_first")


def test_bad_input_is_refused_and_odd_input_is_not():
    with pytest.raises(ValueError, match=r"sparsity is 1\.5"):
        compress(sparsity=1.5, components=4)
    with pytest.raises(ValueError, match="components is 0"):
        compress(sparsity=0.5, components=0)
    with pytest.raises(ValueError, match="order is 'both'"):
        compress(sparsity=0.5, components=4, order="both")
    with pytest.raises(ValueError, match="w: weights are not finite"):
        bad = {"w": np.full((3, 3), np.inf, "f4")}
        deep_compression.compress(bad, sparsity=0.5, components=2)
    zeros = {"w": np.zeros((4, 4), "f4"), "v": PARAMS["a"]["kernel"]}
    compressed = deep_compression.compress(zeros, sparsity=0.9, components=4)
    assert not sqs_jax.materialize(compressed)["w"].any()
    biases = {"b": np.ones(3, "f4")}
    assert deep_compression.compress(biases, sparsity=0.5, components=4)["b"] is biases["b"]
