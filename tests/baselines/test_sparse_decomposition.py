"""Sparse decompositions: constraints of the factors, limits, and refused inputs."""

import numpy as np
import pytest

import sqs_jax
from sqs_jax import ProductLeaf
from sqs_jax.baselines import sparse_decomposition

RNG = np.random.default_rng(0)
KERNEL = RNG.standard_normal((24, 10)).astype(np.float32)


def compressed(kernel=KERNEL, **settings):
    options = {"sparsity": 0.5, "levels": 16, **settings}
    return sparse_decomposition.compress({"kernel": kernel}, **options)["kernel"]


def error(leaf, kernel=KERNEL):
    return float(np.square(sqs_jax.materialize(leaf) - kernel).sum() / np.square(kernel).sum())


@pytest.mark.parametrize(("sparsity", "levels", "rank"), [(0.5, 16, 1.0), (0.8, 4, 0.5)])
def test_factors_are_sparse_and_on_grids(sparsity, levels, rank, tmp_path):
    leaf = compressed(sparsity=sparsity, levels=levels, rank=rank)
    assert isinstance(leaf, ProductLeaf)
    size = round(rank * 10)
    assert leaf.left.codes.shape == (24, size) and leaf.right.codes.shape == (size, 10)
    for factor in (leaf.left, leaf.right):
        weights = sqs_jax.materialize(factor)
        assert np.mean(weights == 0) >= sparsity - 0.5 / weights.size
        assert factor.codes.max() < levels
        assert all(len(np.unique(column)) <= levels for column in weights.T)
    product = sqs_jax.materialize(leaf.left) @ sqs_jax.materialize(leaf.right)
    np.testing.assert_allclose(sqs_jax.materialize(leaf), product, rtol=1e-5, atol=1e-6)
    sqs_jax.save(tmp_path / "m.sqs", {"kernel": leaf})
    again = sqs_jax.materialize(sqs_jax.load(tmp_path / "m.sqs"))["kernel"]
    np.testing.assert_array_equal(again, sqs_jax.materialize(leaf))


def test_with_all_entries_it_is_the_singular_value_decomposition():
    s = np.linalg.svd(KERNEL, compute_uv=False)
    expected = np.square(s[4:]).sum() / np.square(s).sum()
    leaf = compressed(sparsity=0.0, levels=256, rank=0.4)
    assert error(leaf) == pytest.approx(expected, rel=0.01)
    assert error(compressed(sparsity=0.0, levels=256)) < 1e-4


def test_descent_finds_better_factors_than_the_cut_start():
    assert error(compressed(steps=400)) < 0.5 * error(compressed(steps=0))
    errors = [error(compressed(sparsity=s)) for s in (0.2, 0.5, 0.8)]
    assert errors == sorted(errors)


def test_a_convolution_is_a_matrix_of_its_rows():
    kernel = KERNEL.reshape(2, 3, 4, 10)
    leaf = compressed(kernel)
    assert leaf.shape == (2, 3, 4, 10)
    np.testing.assert_array_equal(leaf.left.codes, compressed().left.codes)
    zeros = compressed(np.zeros((6, 4), np.float32))
    np.testing.assert_array_equal(sqs_jax.materialize(zeros), 0)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"rank is 0; it must lie in \(0, 1\]"):
        compressed(rank=0)
    with pytest.raises(ValueError, match="sparsity is 1"):
        compressed(sparsity=1)
    with pytest.raises(ValueError, match="levels is 300"):
        compressed(levels=300)
