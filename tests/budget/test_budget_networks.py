"""Monotonicity of the output errors of real networks in the budget."""

from functools import partial

import jax
import numpy as np
import pytest

import sqs_jax
from benchmarks.networks import load_network
from sqs_jax import compress_to_budget
from tests.budget.test_budget_monotone import MOST_RISE
from tests.conftest import REAL_DATA


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["cifar10_resnet20", "stories260K"])
def test_output_errors_of_a_real_network_do_not_rise(name):
    network = load_network(name, REAL_DATA)
    inputs = network.outputs.keywords["inputs"]
    # A quarter of the inputs: a thousand tokens, or 64 images.
    outputs_of = partial(network.outputs, inputs=inputs[: len(inputs) // 4])
    before = np.inf
    with jax.numpy_rank_promotion("allow"):
        outputs = outputs_of(network.weights)
        for ratio in (24, 14, 8, 4.5, 2.6, 1.5, 1.1):
            compressed = compress_to_budget(network.weights, target_ratio=ratio)
            after = np.linalg.norm(outputs_of(sqs_jax.materialize(compressed)) - outputs)
            assert after <= MOST_RISE * before, ratio
            before = after
