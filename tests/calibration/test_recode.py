"""`recode` on trees: changed leaves, convolutions, moments of other inputs, errors."""

import jax
import numpy as np
import pytest

import sqs_jax
from sqs_jax import CompressedLeaf, InputMoments

RNG = np.random.default_rng(0)
PARAMS = {
    "a": {"kernel": RNG.laplace(0, 0.1, (32, 24)).astype(np.float32), "bias": np.zeros(24, "f4")},
    "b": {"kernel": RNG.laplace(0, 0.1, (24, 40)).astype(np.float32)},
}
X = RNG.standard_normal((500, 32)) @ RNG.standard_normal((32, 32))


def second(x):
    return (x.T @ x / len(x)).astype(np.float32)


@pytest.fixture(scope="module")
def compressed():
    ones = jax.tree.map(lambda _: np.float32(1), PARAMS)
    return sqs_jax.compress_to_budget(PARAMS, target_bytes=1500, sensitivity=ones)


def test_only_kernels_with_inputs_change_and_the_file_does_not_grow(compressed):
    recoded = sqs_jax.recode(compressed, PARAMS, {"a": {"kernel": InputMoments(second(X))}})
    assert recoded["b"]["kernel"] is compressed["b"]["kernel"]
    assert recoded["a"]["bias"] is compressed["a"]["bias"]
    before, after = (sqs_jax.materialize(t["a"]["kernel"]) for t in (compressed, recoded))
    target = X @ PARAMS["a"]["kernel"]
    assert np.square(X @ after - target).sum() < 0.7 * np.square(X @ before - target).sum()
    sizes = [sqs_jax.summarize(t).file_bytes for t in (compressed, recoded)]
    assert sizes[1] <= 1.01 * sizes[0]


def test_a_convolution_is_a_matrix_of_its_patches():
    kernel = PARAMS["a"]["kernel"].reshape(2, 2, 8, 24)
    compressed = sqs_jax.compress_to_budget({"kernel": kernel}, target_bytes=500)
    recoded = sqs_jax.recode(compressed, {"kernel": kernel}, {"kernel": InputMoments(second(X))})
    flat = {"kernel": kernel.reshape(32, 24)}
    leaf = compressed["kernel"]
    matrix = {"kernel": CompressedLeaf(np.asarray(leaf.codes).reshape(32, 24), leaf.codebook)}
    target = sqs_jax.recode(matrix, flat, {"kernel": InputMoments(second(X))})["kernel"]
    assert recoded["kernel"].codes.shape == kernel.shape
    np.testing.assert_array_equal(recoded["kernel"].codes.reshape(32, 24), target.codes)
    np.testing.assert_array_equal(recoded["kernel"].codebook, target.codebook)


def test_cross_moments_reduce_the_error_of_the_target_outputs(compressed):
    seen = X * 0.9 + 0.3 * RNG.standard_normal(X.shape)  # inputs of the compressed network
    cross = (seen.T @ X / len(X)).astype(np.float32)
    target = X @ PARAMS["a"]["kernel"]
    errors = []
    for moments in (InputMoments(second(seen)), InputMoments(second(seen), cross)):
        recoded = sqs_jax.recode(compressed, PARAMS, {"a": {"kernel": moments}})
        errors.append(np.square(seen @ sqs_jax.materialize(recoded["a"]["kernel"]) - target).sum())
    assert errors[1] < errors[0]


def test_missing_moments_compensate_for_a_residual_sum(compressed):
    lack = 0.3 * X[:, :1] * PARAMS["a"]["kernel"][:1]  # error of the other summand
    missing = (X.T @ lack / len(X)).astype(np.float32)
    target = X @ PARAMS["a"]["kernel"] + lack
    errors = []
    for moments in (InputMoments(second(X)), InputMoments(second(X), missing=missing)):
        recoded = sqs_jax.recode(compressed, PARAMS, {"a": {"kernel": moments}})
        errors.append(np.square(X @ sqs_jax.materialize(recoded["a"]["kernel"]) - target).sum())
    assert errors[1] < errors[0]


def test_cross_moments_are_equivalent_to_missing_moments(compressed):
    seen = X * 0.9 + 0.3 * RNG.standard_normal(X.shape)
    cross = (seen.T @ X / len(X)).astype(np.float32)
    missing = (cross - second(seen)) @ PARAMS["a"]["kernel"]
    recoded = [
        sqs_jax.recode(compressed, PARAMS, {"a": {"kernel": moments}})["a"]["kernel"]
        for moments in (
            InputMoments(second(seen), cross),
            InputMoments(second(seen), missing=missing),
        )
    ]
    np.testing.assert_array_equal(recoded[0].codes, recoded[1].codes)


def test_bad_moments_are_refused(compressed):
    for inputs, message in (
        ({"a": {"bias": InputMoments(second(X))}}, "a/bias.*not compressed"),
        ({"c": {"kernel": InputMoments(second(X))}}, "c/kernel, where nothing is compressed"),
        ({"b": {"kernel": InputMoments(second(X))}}, r"b/kernel.*\(32, 32\).*\(24, 24\)"),
        ({"a": {"kernel": InputMoments(np.full((32, 32), np.nan, "f4"))}}, "a/kernel.*not finite"),
        (
            {"a": {"kernel": InputMoments(second(X), np.ones(32, "f4"))}},
            r"a/kernel: cross has shape \(32,\); it must have \(32, 32\)",
        ),
        (
            {"a": {"kernel": InputMoments(second(X), missing=np.ones((32, 1), "f4"))}},
            r"a/kernel: missing has shape \(32, 1\); it must have \(32, 24\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            sqs_jax.recode(compressed, PARAMS, inputs)
