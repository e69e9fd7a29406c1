"""Predicted loss: closed forms, dtypes, and the slope in bits."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import sqs_jax
from sqs_jax.budget import distortion
from sqs_jax.budget.distortion import HARMLESS_LOSS, bits_below

A, B = np.array([[3.0, 4.0]]), np.array([[0.6, 0.0, 0.8]], np.float32)


def test_unchanged_weights_have_no_loss():
    tree = {"a": A, "b": B, "steps": np.array(3)}
    assert sqs_jax.predicted_loss(tree, tree) == 0
    assert sqs_jax.predicted_loss({}, {}) == 0
    zeros = {"a": np.zeros((2, 2))}
    assert sqs_jax.predicted_loss(zeros, zeros) == 0


def test_pruning_everything_has_loss_1():
    tree = {"a": A, "b": B}
    zeros = {name: np.zeros_like(array) for name, array in tree.items()}
    assert sqs_jax.predicted_loss(tree, zeros) == pytest.approx(1, rel=1e-12)


def test_tensors_count_by_their_norms():
    # Norms are 5 and 1, and the tensor of norm 1 is pruned: the squared loss is 1 / 6.
    pruned = {"a": A, "b": sqs_jax.CompressedLeaf(np.zeros((1, 3), np.uint8), np.ones((1, 1)))}
    assert sqs_jax.predicted_loss({"a": A, "b": B}, pruned) == pytest.approx(6**-0.5, rel=1e-6)


def test_biases_and_integers_do_not_count():
    tree = {"a": A, "bias": np.ones(4), "ids": np.array([[3, 4]])}
    changed = {"a": A, "bias": np.zeros(4), "ids": np.array([[0, 0]])}
    assert sqs_jax.predicted_loss(tree, changed) == 0


def test_half_precision_and_parts_of_a_long_tensor(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((40, 25)).astype(ml_dtypes.bfloat16)
    rounded = (np.round(weights.astype(np.float64) * 4) / 4).astype(ml_dtypes.bfloat16)
    exact, approximate = (x.astype(np.float64) for x in (weights, rounded))
    expected = np.linalg.norm(exact - approximate) / np.linalg.norm(exact)
    whole = sqs_jax.predicted_loss([weights], [rounded])
    assert whole == pytest.approx(expected, rel=1e-12)
    monkeypatch.setattr(distortion, "_CHUNK", 77)
    assert sqs_jax.predicted_loss([jnp.asarray(weights)], [rounded]) == pytest.approx(whole)


def test_tensors_with_non_finite_weights_do_not_count():
    broken = np.array([[np.nan, 1.0], [np.inf, 2.0]])
    pruned = {"a": np.zeros_like(A), "x": broken}
    assert sqs_jax.predicted_loss({"a": A, "x": broken}, pruned) == pytest.approx(1)


def test_trees_of_different_structures_are_refused():
    with pytest.raises(ValueError, match="mismatch"):
        sqs_jax.predicted_loss({"a": A}, {"b": A})


@pytest.mark.parametrize("ratio", [10, 20])
@pytest.mark.parametrize("kind", ["normal", "laplace"])
def test_one_bit_per_weight_halves_the_error(kind: str, ratio: float):
    rng = np.random.default_rng(0)
    tree = {str(i): getattr(rng, kind)(size=(96, 96)).astype(np.float32) for i in range(4)}

    def loss(ratio: float) -> float:
        compressed = sqs_jax.compress_to_budget(tree, target_ratio=ratio, stacked=0)
        return sqs_jax.predicted_loss(tree, compressed)

    bits = 32 / ratio + bits_below(loss(ratio))
    assert loss(32 / bits) == pytest.approx(HARMLESS_LOSS, rel=0.1)
