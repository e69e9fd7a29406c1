"""Monotonicity of errors in the budget, and number of coded files."""

import numpy as np
import pytest

import sqs_jax
from sqs_jax import compress_to_budget
from sqs_jax.budget import budget as budget_module

MOST_RISE = 1.05
SAMPLERS = {
    "gaussian": lambda rng, shape: rng.standard_normal(shape),
    "laplace": lambda rng, shape: rng.laplace(size=shape),
    "student": lambda rng, shape: rng.standard_t(3, size=shape),
}


def random_tree(kind, count, dtype="float32", scales=1.0, size=64):
    rng = np.random.default_rng(1)
    factors = np.geomspace(1, 1 / scales, count)
    return {
        f"l{i}": (factor * SAMPLERS[kind](rng, (size, size))).astype("f4").astype(np.dtype(dtype))
        for i, factor in enumerate(factors)
    }


def errors(tree, compressed):
    """Relative errors: worst tensor, all weights, outputs of the worst tensor."""
    dense = sqs_jax.materialize(compressed)
    inputs = np.random.default_rng(2).standard_normal((32, 64))
    squares, parts, outputs = np.zeros(2), [], []
    for name in tree:
        weights, values = (np.asarray(x[name], np.float64) for x in (tree, dense))
        off, size = np.linalg.norm(weights - values), np.linalg.norm(weights)
        parts.append(off / size)
        squares += off**2, size**2
        out = np.linalg.norm(inputs @ (weights - values)) / np.linalg.norm(inputs @ weights)
        outputs.append(out)
    return np.array([max(parts), np.sqrt(squares[0] / squares[1]), max(outputs)])


def assert_monotone(tree, ratios):
    before = np.full(3, np.inf)
    for ratio in ratios:
        after = errors(tree, compress_to_budget(tree, target_ratio=ratio))
        assert (after <= MOST_RISE * before).all(), f"ratio {ratio}: {before} to {after}"
        before = after


@pytest.mark.parametrize(
    ("kind", "count", "dtype", "scales"),
    [
        ("gaussian", 1, "float32", 1),
        ("laplace", 1, "bfloat16", 1),
        ("student", 2, "float32", 10),
        ("gaussian", 2, "bfloat16", 10),
        ("laplace", 4, "float32", 1000),
        ("student", 4, "bfloat16", 1000),
        ("gaussian", 8, "float32", 1),
        ("student", 8, "float32", 1000),
    ],
)
def test_the_error_falls_with_the_budget(kind, count, dtype, scales):
    least = 16 if dtype == "bfloat16" and count == 1 else 30  # the smallest file is mostly headers
    tree = random_tree(kind, count, dtype, scales)
    assert_monotone(tree, np.geomspace(least, 1.1, 12))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
def test_between_16_and_32_bits_per_weight_errors_do_not_rise(kind, count):
    assert_monotone(random_tree(kind, count, scales=3), (3, 2.1, 1.95, 1.9, 1.7, 1.4, 1.2, 1.05))


def test_fine_steps_of_the_budget_keep_the_order():
    tree = random_tree("gaussian", 2, "bfloat16", 10)
    assert_monotone(tree, np.geomspace(12, 8, 12))


@pytest.mark.parametrize("kind", SAMPLERS)
def test_no_budget_is_worse_than_pruning_everything(kind):
    tree = random_tree(kind, 2)
    for ratio in (28, 40, 55):
        assert errors(tree, compress_to_budget(tree, target_ratio=ratio)).max() < 1.02


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_spare_bits_of_a_tensor_of_few_values_reduce_the_error(dtype):
    values = np.array([-0.5, 0.125, 0.25, 0.75], "f4").astype(np.dtype(dtype))
    tree = {"c": np.random.default_rng(0).choice(values, (64, 64))}
    assert_monotone(tree, np.geomspace(24, 4, 9))


# --- many tensors -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "dtype", "ratio", "twice"),
    [
        ((8, 8), "float32", 4, True),
        ((16, 12), "bfloat16", 6, False),
        ((16, 16), "float32", 12, False),
    ],
)
def test_many_small_tensors_need_few_coded_files(shape, dtype, ratio, twice, monkeypatch):
    rng = np.random.default_rng(0)
    count = 4 * budget_module._SAMPLE + 6  # the smallest number that is sampled
    tree = {
        f"experts.{i}": rng.standard_normal(shape).astype("f4").astype(np.dtype(dtype))
        for i in range(count)
    }
    sizes = []
    summarize = budget_module.summarize

    def counted(leaves, **options):
        sizes.append(len(leaves))
        return summarize(leaves, **options)

    monkeypatch.setattr(budget_module, "summarize", counted)
    compressed = compress_to_budget(tree, target_ratio=ratio)
    assert sizes.count(len(tree)) <= 2
    budget = int(sum(leaf.nbytes for leaf in tree.values()) / ratio)
    assert 0.98 * budget <= summarize(compressed).file_bytes <= budget
    again = compress_to_budget(tree, target_ratio=ratio) if twice else compressed
    for name in tree:
        first, second = (sqs_jax.materialize(x[name]) for x in (compressed, again))
        np.testing.assert_array_equal(np.asarray(first), np.asarray(second))


@pytest.mark.parametrize("ratio", [6, 12, 20])
def test_tensors_of_equal_distribution_have_equal_distortion(ratio):
    rng = np.random.default_rng(3)
    sizes = np.geomspace(48, 160, 12).astype(int)
    tree = {str(n): rng.standard_normal((n, n)).astype(np.float32) for n in sizes}
    norms = {name: np.linalg.norm(weights) for name, weights in tree.items()}
    # Equal sensitivities instead of errors over the norm.
    ones = dict.fromkeys(tree, np.float32(1))
    compressed = compress_to_budget(tree, target_ratio=ratio, sensitivity=ones)
    dense = sqs_jax.materialize(compressed)
    errors = [np.linalg.norm(tree[name] - dense[name]) / norms[name] for name in tree]
    assert max(errors) < 1.12 * min(errors)
