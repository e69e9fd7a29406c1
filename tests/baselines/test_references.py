"""Compare the methods with the errors and codes of their public implementations."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import sqs_jax
from sqs_jax import InputMoments
from sqs_jax.baselines import awq, gptq, obc, round_to_nearest
from tests.baselines.references import layers

REFERENCES = json.loads((Path(__file__).parent / "references/references.json").read_text())


def moments(inputs: np.ndarray) -> np.ndarray:
    return (inputs.T @ inputs / len(inputs)).astype(np.float32)


@pytest.mark.parametrize("name", layers.OBC_SHAPES)
def test_obc_loses_what_its_public_code_loses(name: str) -> None:
    weights, inputs = layers.layer(layers.OBC_SHAPES[name])
    second = moments(inputs).astype(np.float64)
    damped = second + layers.DAMPING * np.diag(second).mean() * np.eye(len(second))
    kernel, hessian = jnp.asarray(weights), jnp.asarray(damped, jnp.float32)

    def lost(values: Any) -> float:
        error = np.asarray(values, np.float64) - weights
        return float(np.sum(error * (damped @ error)))

    def refitted(kept: Any) -> np.ndarray:
        columns = zip(weights.T, np.asarray(kept).T, strict=True)
        return np.stack([obc.reconstruct(w, hessian, jnp.asarray(k))[0] for w, k in columns], 1)

    errors = {}
    for sparsity in layers.SPARSITIES:
        for setting, block in (("unstructured", 1), ("blocks", 4)):
            number = int(np.ceil(sparsity * weights.size / block))
            kept = obc.prune(kernel, hessian, number, block)
            errors[f"{setting} {sparsity}"] = lost(refitted(kept))
    errors["2:4"] = lost(refitted(obc.prune_in_groups(kernel, hessian, 2, 4)))
    for bits in layers.BITS:
        calibration = {"kernel": InputMoments(second.astype(np.float32))}
        compressed = obc.compress({"kernel": weights}, levels=2**bits, calibration=calibration)
        errors[f"{bits} bits"] = lost(sqs_jax.materialize(compressed["kernel"]))
    assert errors.keys() == REFERENCES["obc"][name].keys()
    for setting, published in REFERENCES["obc"][name].items():
        assert errors[setting] == pytest.approx(published, rel=0.01), setting


def test_gptq_chooses_what_qwix_chooses() -> None:
    weights, inputs = layers.symmetric_layer()
    calibration = {"kernel": InputMoments(moments(inputs))}
    leaf = gptq.compress({"kernel": weights}, levels=16, calibration=calibration)["kernel"]
    codes = np.array([[int(digit, 16) for digit in row] for row in REFERENCES["qwix"]["codes"]])
    assert (leaf.scales == 0.5).all() and (leaf.zeros == 8).all()
    differ = np.asarray(leaf.codes).astype(int) - codes
    assert np.mean(differ != 0) <= 0.01 and np.abs(differ).max() <= 1  # differences of rounding


def test_awq_loses_no_more_than_qwix_loses() -> None:
    weights, inputs = layers.symmetric_layer()
    second = moments(inputs)

    def lost(method: Any, **options: Any) -> float:
        leaf = method.compress({"kernel": weights}, levels=16, **options)["kernel"]
        return float(np.mean((inputs @ (sqs_jax.materialize(leaf) - weights)) ** 2))

    error = lost(awq, calibration={"kernel": InputMoments(second)})
    assert error <= REFERENCES["qwix"]["awq_error"] <= 1.05 * lost(round_to_nearest)
