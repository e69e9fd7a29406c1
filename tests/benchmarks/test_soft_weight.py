"""Equality of the peers and the transform, without which times are not comparable."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sqs_jax
from benchmarks import dense_softmax, soft_weight, training

NAMES = ("loc", "gate_logits", "means")
TEMPERATURE = 0.5


@pytest.fixture(scope="module")
def problem():
    """Fields of a posterior, the mean and the gradients."""
    rng = np.random.default_rng(0)
    weights = jnp.asarray(0.02 * rng.standard_t(5.0, (24, 16)), jnp.float32)
    sqs = training.transform(16)
    posterior = sqs.init({"kernel": weights})
    gates = jnp.asarray(rng.normal(size=weights.shape), jnp.float32)
    posterior = {"kernel": posterior["kernel"].replace(gate_logits=gates)}
    trained, fixed = sqs_jax.partition(posterior, train=("loc", "gate", "means"))

    @jax.jit
    def both(trained):
        mean, pull = jax.vjp(
            lambda part: sqs.mean(sqs_jax.combine(part, fixed), temperature=TEMPERATURE)["kernel"],
            trained,
        )
        return mean, pull(jnp.ones_like(mean))[0]["kernel"]

    mean, gradients = both(trained)
    flat_gradients = {name: getattr(gradients, name).reshape(-1) for name in NAMES}
    fields = {name: getattr(posterior["kernel"], name) for name in soft_weight._FIELDS}
    fields |= {name: fields[name][0] for name in soft_weight._FIELDS[2:]}
    return fields, mean, flat_gradients


def assert_close(expected, actual):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, atol=1e-5 * scale, rtol=1e-4)


def test_the_dense_softmax_equals_the_mean(problem):
    fields, mean, gradients = problem

    def dense_mean(trained):
        return dense_softmax.mean(**fields | trained, temperature=jnp.float32(TEMPERATURE))

    @jax.jit
    def both(trained):
        weights, pull = jax.vjp(dense_mean, trained)
        return weights, pull(jnp.ones_like(weights))[0]

    weights, dense_gradients = both({name: fields[name] for name in NAMES})
    np.testing.assert_allclose(weights, mean, atol=1e-5 * np.abs(mean).max())
    for name, gradient in dense_gradients.items():
        assert_close(gradients[name], gradient.reshape(-1))


@pytest.mark.torch
def test_the_layer_in_pytorch_equals_the_mean(problem):
    from benchmarks import torch_layer

    fields, mean, gradients = problem
    layer = torch_layer.SoftWeight(fields)
    weights = layer(TEMPERATURE)
    np.testing.assert_allclose(weights.detach(), mean, atol=1e-5 * np.abs(mean).max())
    weights.sum().backward()
    for name in NAMES:
        assert_close(gradients[name], getattr(layer, name).grad.reshape(-1).numpy())


def test_a_row_has_times_and_bars(problem):
    forward, both = soft_weight.dense_runs(problem[0], TEMPERATURE)
    timings = soft_weight.measure(16, forward, both, pairs=2)
    row = {"way": "table", "components": 16, "temperature": 1.0, "of_bandwidth": 0.1, **timings}
    row["bars"] = soft_weight._bars(row, [])
    assert row["bars"] == {"forward": 8.0, "both": 40.0}
    assert soft_weight._line(row)
    at_64 = soft_weight._bars({**row, "components": 64}, [row])
    assert at_64["forward"] == pytest.approx(1.5 * timings["forward"]["ratio"])
