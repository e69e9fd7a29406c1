"""Codebooks per slice of stacked layers and experts, but not of convolutions."""

import numpy as np
import pytest

import sqs_jax
from sqs_jax import Rule, compress_to_budget
from sqs_jax.budget.stacked_axes import stacked_axes


def stack(shape, scales, axes=1, seed=0):
    """Gaussian weights with geometric scales of the slices; `scales` is the largest ratio."""
    slices = int(np.prod(shape[:axes]))
    factors = np.geomspace(1, 1 / scales, slices).reshape(shape[:axes])
    noise = np.random.default_rng(seed).standard_normal(shape)
    return (noise * factors.reshape(*shape[:axes], *[1] * (len(shape) - axes))).astype(np.float32)


@pytest.mark.parametrize(
    ("weights", "axes"),
    [
        (stack((6, 96, 64), 20), 1),  # layers under scan, experts
        (stack((12, 64, 8, 32), 30), 1),  # layers of attention with an axis of heads
        (stack((4, 4, 64, 64), 1e5, axes=2), 2),  # layers of experts
        (stack((5, 3, 3, 32, 32), 30), 1),  # layers of convolutions
        (stack((6, 96, 64), 1), 0),
        (stack((6, 96, 64), 1.3), 0),
        (stack((2000, 8, 8), 20), 0),  # levels per slice would cost more than they save
        (stack((1, 64, 64), 1), 0),
        (stack((256, 8, 32), 30), 0),  # one layer of eight heads
        (stack((3, 3, 64, 64), 30, axes=2), 0),  # kernels of convolutions
        (stack((64, 64, 3, 3), 30), 0),
        (stack((64, 64, 3), 30), 0),
        (stack((16, 16, 3, 192), 30, axes=2), 0),  # patches
        (stack((192, 3, 16, 16), 30), 0),
        (stack((128, 64), 30), 0),
        (np.zeros((4, 64, 64), np.float32), 0),
    ],
    ids=lambda x: "x".join(map(str, x.shape)) if isinstance(x, np.ndarray) else str(x),
)
def test_stacks_are_detected(weights, axes):
    assert stacked_axes(weights, 2, 2.5) == axes
    assert stacked_axes(1e-12 * weights, 2, 2.5) == axes  # the scale has no effect


def slice_errors(weights, compressed):
    dense = sqs_jax.materialize(compressed)
    squares = ((dense - weights) ** 2).reshape(len(weights), -1).sum(1)
    return np.sqrt(squares / (weights**2).reshape(len(weights), -1).sum(1))


@pytest.mark.parametrize("scales", [8, 60])
def test_slices_are_as_accurate_as_separate_tensors(scales):
    weights = stack((6, 96, 96), scales)
    apart = {str(i): w for i, w in enumerate(weights)}
    together = compress_to_budget({"w": weights}, target_ratio=12)["w"]
    assert together.codebook.shape[:2] == (6, 1)
    alone = compress_to_budget(apart, target_ratio=12)
    errors = [slice_errors(weights[i][None], alone[str(i)])[0] for i in range(6)]
    assert slice_errors(weights, together).max() < 1.15 * max(errors)
    shared = compress_to_budget({"w": weights}, target_ratio=12, stacked=0)["w"]
    assert shared.codebook.shape == (1, shared.codebook.shape[-1])
    assert slice_errors(weights, shared).max() > 1.3 * max(errors)


def test_the_argument_and_the_rule_override():
    weights = {"w": stack((6, 96, 96), 1), "v": stack((128, 32), 1)}
    forced = compress_to_budget(weights, target_ratio=8, stacked=1)
    assert forced["w"].codebook.shape[0] == 6 and forced["v"].codebook.ndim == 2
    rules = [Rule(pattern="w", stacked=1), Rule()]
    kept = compress_to_budget(weights, target_ratio=8, stacked=0, rules=rules)
    assert kept["w"].codebook.shape[0] == 6 and kept["v"].codebook.ndim == 2
    with pytest.raises(ValueError, match="stacked is -1"):
        compress_to_budget(weights, target_ratio=8, stacked=-1)
    stacked = {rule.pattern: rule.stacked for rule in sqs_jax.rules_for(forced)}
    assert stacked == {"v": 0, "w": 1}


def test_leaves_with_a_sensitivity_share_a_codebook():
    weights = stack((6, 96, 96), 20)
    sensitivity = {"w": np.ones((6, 1, 1))}
    compressed = compress_to_budget({"w": weights}, target_ratio=8, sensitivity=sensitivity)
    assert compressed["w"].codebook.ndim == 2
