"""What the public code of a method makes of a layer, ours makes too."""

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

FOUND = json.loads((Path(__file__).parent / "references/references.json").read_text())


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

    ours = {}
    for sparsity in layers.SPARSITIES:
        for way, block in (("unstructured", 1), ("blocks", 4)):
            number = int(np.ceil(sparsity * weights.size / block))
            kept = obc.prune(kernel, hessian, number, block)
            ours[f"{way} {sparsity}"] = lost(refitted(kept))
    ours["2:4"] = lost(refitted(obc.prune_in_groups(kernel, hessian, 2, 4)))
    for bits in layers.BITS:
        calibration = {"kernel": InputMoments(second.astype(np.float32))}
        found = obc.compress({"kernel": weights}, levels=2**bits, calibration=calibration)
        ours[f"{bits} bits"] = lost(sqs_jax.materialize(found["kernel"]))
    assert ours.keys() == FOUND["obc"][name].keys()
    for way, wanted in FOUND["obc"][name].items():
        assert ours[way] == pytest.approx(wanted, rel=0.01), way


def test_gptq_chooses_what_qwix_chooses() -> None:
    weights, inputs = layers.symmetric_layer()
    calibration = {"kernel": InputMoments(moments(inputs))}
    found = gptq.compress({"kernel": weights}, levels=16, calibration=calibration)["kernel"]
    wanted = np.array([[int(digit, 16) for digit in row] for row in FOUND["qwix"]["codes"]])
    assert (found.scales == 0.5).all() and (found.zeros == 8).all()
    differ = np.asarray(found.codes).astype(int) - wanted
    assert np.mean(differ != 0) <= 0.01 and np.abs(differ).max() <= 1  # one in rounding, at most


def test_awq_loses_no_more_than_qwix_loses() -> None:
    weights, inputs = layers.symmetric_layer()
    second = moments(inputs)

    def lost(method: Any, **given: Any) -> float:
        found = method.compress({"kernel": weights}, levels=16, **given)["kernel"]
        return float(np.mean((inputs @ (sqs_jax.materialize(found) - weights)) ** 2))

    ours = lost(awq, calibration={"kernel": InputMoments(second)})
    assert ours <= FOUND["qwix"]["awq_error"] <= 1.05 * lost(round_to_nearest)
