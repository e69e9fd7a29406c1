"""The Fisher information of a linear classifier, against its closed form."""

import flax.linen as nn
import jax
import numpy as np

from experiments.calibration.sensitivity import fisher_information
from experiments.data import Dataset


def test_fisher_information_of_a_linear_classifier() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((2048, 6)).astype(np.float32) * np.arange(1, 7, dtype=np.float32)
    dataset = Dataset(inputs, np.zeros(2048, np.int32))  # labels that say nothing
    model = nn.Dense(4)
    variables = model.init(jax.random.key(0), inputs[:1])
    variables = jax.tree.map(lambda w: np.asarray(w) + 0.3, variables)
    logits = np.asarray(model.apply(variables, inputs), np.float64)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    expected = {
        "kernel": np.mean(np.square(inputs)[:, :, None] * (p * (1 - p))[:, None]),
        "bias": np.mean(p * (1 - p)),
    }
    actual = fisher_information(model, variables, dataset, batch_size=256, seed=1)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=0.25)
    again = fisher_information(model, variables, dataset, batch_size=256, seed=1)
    assert again == actual
    small = fisher_information(model, variables, dataset, batch_size=32, seed=1)
    np.testing.assert_allclose(small["kernel"], expected["kernel"], rtol=0.5)
