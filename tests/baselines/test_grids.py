"""Round to nearest and GPTQ: bounds, closed forms, and refused inputs."""

import jax.numpy as jnp
import numpy as np
import pytest

import sqs_jax
from sqs_jax import InputMoments
from sqs_jax.baselines import gptq, round_to_nearest

RNG = np.random.default_rng(0)
KERNEL = (RNG.standard_t(4, (24, 10)) * 0.1).astype(np.float32)
X = RNG.standard_normal((300, 24)) @ RNG.standard_normal((24, 24))
MOMENTS = {"kernel": InputMoments(jnp.asarray(X.T @ X / 300, jnp.float32))}


@pytest.mark.parametrize("group", [None, 8, 24])
@pytest.mark.parametrize("levels", [2, 5, 16, 300])
def test_every_weight_is_at_its_nearest_point(levels, group):
    leaf = round_to_nearest.compress({"kernel": KERNEL}, levels=levels, group=group)["kernel"]
    groups = 24 // (group or 24)
    assert leaf.scales.shape == leaf.zeros.shape == (groups, 10)
    assert leaf.codes.max() < levels and leaf.codes.dtype == (np.uint8 if levels < 257 else "u2")
    weights = sqs_jax.materialize(leaf)
    scales = np.repeat(leaf.scales, 24 // groups, axis=0)
    # Half a step, and another half at the ends, which move with the rounding of zero and scale.
    assert (np.abs(weights - KERNEL) <= 1.01 * scales).all()
    inside = (leaf.codes > 0) & (leaf.codes < levels - 1)
    assert (np.abs(weights - KERNEL)[inside] <= 0.5001 * scales[inside]).all()


def test_zero_is_on_every_grid_and_constant_groups_are_exact():
    kernel = np.stack([np.zeros(6), np.full(6, 2.0), np.full(6, -3.0)], axis=1).astype("f4")
    leaf = round_to_nearest.compress({"k": kernel}, levels=4)["k"]
    np.testing.assert_allclose(sqs_jax.materialize(leaf), kernel, rtol=1e-3)


def test_a_convolution_is_a_matrix_of_its_rows(tmp_path):
    kernel = KERNEL.reshape(2, 3, 4, 10)
    matrix = gptq.compress({"kernel": KERNEL}, levels=6, calibration=MOMENTS, group=8)["kernel"]
    leaf = gptq.compress({"kernel": kernel}, levels=6, calibration=MOMENTS, group=8)["kernel"]
    assert leaf.codes.shape == kernel.shape and leaf.scales.shape == (3, 10)
    np.testing.assert_array_equal(leaf.codes.reshape(24, 10), matrix.codes)
    sqs_jax.save(tmp_path / "m.sqs", {"kernel": leaf})
    again = sqs_jax.materialize(sqs_jax.load(tmp_path / "m.sqs"))["kernel"]
    np.testing.assert_array_equal(again.reshape(24, 10), sqs_jax.materialize(matrix))


def test_gptq_without_correlation_is_round_to_nearest():
    nearest = round_to_nearest.compress({"kernel": KERNEL}, levels=7, group=8)["kernel"]
    alone = gptq.compress({"kernel": KERNEL}, levels=7, group=8, calibration={})["kernel"]
    for a, b in zip((nearest.codes, nearest.scales, nearest.zeros),
                    (alone.codes, alone.scales, alone.zeros), strict=True):  # fmt: skip
        np.testing.assert_array_equal(a, b)


def test_gptq_against_its_definition():
    """Round row by row with the inverse Hessian, equations (2) and (3) of the paper."""
    leaf = gptq.compress({"kernel": KERNEL}, levels=6, calibration=MOMENTS)["kernel"]
    hessian = np.asarray(MOMENTS["kernel"].second, np.float64)
    hessian = hessian + 0.01 * np.diagonal(hessian).mean() * np.eye(24)
    rows = KERNEL.astype(np.float64).copy()
    codes = np.zeros((24, 10), int)
    for i in range(24):
        inverse = np.linalg.inv(hessian[i:, i:])
        raw = np.round(rows[i] / leaf.scales[0] + leaf.zeros[0].astype(float))
        codes[i] = np.clip(raw, 0, 5)
        error = rows[i] - (codes[i] - leaf.zeros[0].astype(float)) * leaf.scales[0]
        rows[i:] -= np.outer(inverse[:, 0] / inverse[0, 0], error)
    assert (codes == leaf.codes).mean() > 0.98  # float32 against float64: a tie may differ


def test_gptq_loses_less_of_the_outputs():
    def lost(leaf):
        return np.square(X @ (sqs_jax.materialize(leaf["kernel"]) - KERNEL)).sum()

    for group in (None, 8):
        nearest = round_to_nearest.compress({"kernel": KERNEL}, levels=6, group=group)
        compensated = gptq.compress({"kernel": KERNEL}, levels=6, group=group, calibration=MOMENTS)
        assert lost(compensated) < 0.7 * lost(nearest)


def test_what_cannot_be_rounded_is_refused():
    bad = {"kernel": np.full((4, 4), np.nan, "f4")}
    with pytest.raises(ValueError, match="groups of 7 do not divide its 24 rows"):
        round_to_nearest.compress({"kernel": KERNEL}, levels=4, group=7)
    with pytest.raises(ValueError, match="levels is 1"):
        round_to_nearest.compress({"kernel": KERNEL}, levels=1)
    with pytest.raises(ValueError, match="kernel: weights are not finite"):
        round_to_nearest.compress(bad, levels=4)
    with pytest.raises(ValueError, match="calibration has kernal, where no kernel"):
        gptq.compress({"kernel": KERNEL}, levels=4, calibration={"kernal": MOMENTS["kernel"]})
    whole = {"kernel": KERNEL, "steps": np.ones((3, 3), np.int32)}
    assert round_to_nearest.compress(whole, levels=4)["steps"] is whole["steps"]
    with pytest.raises(ValueError, match=r"kernel: second moments have shape \(3, 3\)"):
        moments = {"kernel": InputMoments(jnp.eye(3))}
        gptq.compress({"kernel": KERNEL}, levels=4, calibration=moments)


def test_the_file_holds_them(tmp_path):
    tree = {"kernel": KERNEL, "bias": np.ones(10, "f4")}
    compressed = round_to_nearest.compress(tree, levels=9, group=8)
    written = sqs_jax.save(tmp_path / "m.sqs", compressed)
    again = sqs_jax.load(tmp_path / "m.sqs")
    np.testing.assert_array_equal(again["kernel"].codes, compressed["kernel"].codes)
    assert again["kernel"].levels == 9
    loaded_weights, weights = (sqs_jax.materialize(t)["kernel"] for t in (again, compressed))
    np.testing.assert_array_equal(loaded_weights, weights)
    report = sqs_jax.inspect(tmp_path / "m.sqs")
    assert report.file_bytes == written == sqs_jax.summarize(compressed).file_bytes
    (_, kernel) = report.leaves
    assert (kernel.windows, kernel.components, kernel.weights) == (3, 9, 240)
    assert kernel.paper_bits == pytest.approx(240 * np.log2(9))
    assert kernel.fixed_bits == 240 * 4 + 30 * (4 + 16)
    leaf = compressed["kernel"]
    for broken, message in (
        (sqs_jax.GridLeaf(leaf.codes[:20], leaf.scales, leaf.zeros, 9), "G must divide the rows"),
        (sqs_jax.GridLeaf(leaf.codes, leaf.scales, leaf.zeros, 4), "of 4 levels"),
        (sqs_jax.GridLeaf(leaf.codes, leaf.scales, leaf.zeros, 400), "they must be uint16"),
        (sqs_jax.GridLeaf(leaf.codes, leaf.scales, leaf.zeros, 1), "a grid of 1 levels"),
    ):
        with pytest.raises(ValueError, match=f"'kernel': .*{message}"):
            sqs_jax.save(tmp_path / "x.sqs", {"kernel": broken})
