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


def compress(**given):
    return deep_compression.compress(PARAMS, **given)


@pytest.mark.parametrize("order", ["prune_first", "quantise_first"])
@pytest.mark.parametrize("sparsity", [0.0, 0.4, 0.9])
def test_as_many_are_pruned_as_asked_and_the_rest_has_k_values(order, sparsity, tmp_path):
    found = compress(sparsity=sparsity, components=5, order=order)
    codes = [found[name]["kernel"].codes for name in "ab"]
    pruned = sum((each == 0).sum() for each in codes)
    assert pruned == round(sparsity * (600 + 360))
    assert found["a"]["bias"] is PARAMS["a"]["bias"]
    # one threshold in each tensor's own deviation: alike from both, whose scales differ
    shares = [(each == 0).mean() for each in codes]
    # (values that stand for many weights are pruned together)
    assert abs(shares[0] - shares[1]) < (0.1 if order == "prune_first" else 0.3)
    assert max(each.max() for each in codes) <= 5
    sqs_jax.save(tmp_path / "m.sqs", found)


def test_pruning_first_leaves_the_largest_at_the_means_of_their_cells():
    found = compress(sparsity=0.5, components=3)["a"]["kernel"]
    weights, codes = PARAMS["a"]["kernel"], found.codes
    assert np.abs(weights[codes == 0]).max() <= np.abs(weights[codes > 0]).min()
    for k, level in enumerate(found.codebook.ravel(), start=1):
        assert level == pytest.approx(weights[codes == k].mean(), rel=1e-3)
    distance = np.abs(weights[codes > 0][:, None] - found.codebook.ravel())
    np.testing.assert_array_equal(distance.argmin(1), codes[codes > 0] - 1)


def test_quantising_first_wastes_levels():
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
    found = deep_compression.compress(zeros, sparsity=0.9, components=4)
    assert not sqs_jax.materialize(found)["w"].any()
    biases = {"b": np.ones(3, "f4")}
    assert deep_compression.compress(biases, sparsity=0.5, components=4)["b"] is biases["b"]
