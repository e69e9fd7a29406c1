"""A larger budget never has much worse outputs: of real networks, on real inputs."""

from functools import partial

import jax
import numpy as np
import pytest

import sqs_jax
from benchmarks.networks import load_network
from sqs_jax import compress_to_budget
from tests.conftest import REAL_DATA
from tests.transform.test_budget_monotone import MOST_RISE


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["cifar10_resnet20", "stories260K"])
def test_the_outputs_of_a_real_network_get_no_worse(name):
    network = load_network(name, REAL_DATA)
    inputs = network.outputs.keywords["inputs"]  # a quarter of them: a thousand tokens, 64 images
    outputs_of = partial(network.outputs, inputs=inputs[: len(inputs) // 4])
    before = np.inf
    with jax.numpy_rank_promotion("allow"):
        outputs = outputs_of(network.weights)
        for ratio in (24, 14, 8, 4.5, 2.6, 1.5, 1.1):
            compressed = compress_to_budget(network.weights, target_ratio=ratio)
            after = np.linalg.norm(outputs_of(sqs_jax.materialize(compressed)) - outputs)
            assert after <= MOST_RISE * before, ratio
            before = after
