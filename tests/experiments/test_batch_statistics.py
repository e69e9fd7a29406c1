"""Batch statistics of networks that are compressed without training."""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.calibration.batch_statistics import outputs_lost, training_batches, with_statistics
from experiments.configs import base
from experiments.data import Dataset
from experiments.training.batch_norm import estimate_statistics, fold_statistics


class Network(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        x = nn.Conv(8, (3, 3), use_bias=False)(images)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(4)(x.mean((1, 2)))


MODEL = Network()


@pytest.fixture(scope="module")
def train() -> Dataset:
    images = np.random.default_rng(0).integers(1, 256, (96, 8, 8, 3), np.uint8)
    return Dataset(images, np.zeros(96, np.int32), np.float32(128), np.float32(64))


@pytest.fixture
def config() -> Any:
    config = base.experiment()
    config.batch_size, config.calibration.examples = 16, 48
    config.data.shift, config.data.flip = 2, True
    return config


@pytest.fixture(scope="module")
def dense(train: Dataset) -> Any:
    """Make a network with the batch statistics of its training images."""
    config = base.experiment()
    config.batch_size, config.data.shift, config.data.flip = 16, 2, True
    variables = dict(MODEL.init(jax.random.key(0), jnp.asarray(train.inputs(slice(1)))))
    params = variables.pop("params")
    state = estimate_statistics(MODEL, params, variables, training_batches(train, config, 6))
    return jax.tree.map(np.asarray, {"params": params, **state})


def _scaled(params: Any, factor: float) -> Any:
    return {**params, "Conv_0": {"kernel": factor * params["Conv_0"]["kernel"]}}


def test_statistics_are_estimated_anew_where_weights_have_moved(train, config, dense):
    """Kernels of a third of the size need statistics that are a third as large."""
    small = _scaled(dense["params"], np.float32(1 / 3))
    state, which = with_statistics(MODEL, small, dense, train, config)
    assert which == "reestimated"
    batches = training_batches(train, config, 3)
    whole = estimate_statistics(
        MODEL, dense["params"], {"batch_stats": dense["batch_stats"]}, batches
    )
    for name, power in (("mean", 1), ("var", 2)):
        actual, large = (tree["batch_stats"]["BatchNorm_0"][name] for tree in (state, whole))
        np.testing.assert_allclose(actual, np.asarray(large) / 3**power, rtol=1e-4, atol=1e-6)


def test_statistics_stay_where_they_fit_better(train, config, dense):
    state, which = with_statistics(MODEL, dense["params"], dense, train, config)
    assert which == "kept"
    chex.assert_trees_all_equal(state, {"batch_stats": dense["batch_stats"]})
    config.calibration.statistics = "reestimated"
    state, which = with_statistics(MODEL, dense["params"], dense, train, config)
    assert which == "reestimated"
    assert (state["batch_stats"]["BatchNorm_0"]["mean"]
            != dense["batch_stats"]["BatchNorm_0"]["mean"]).any()  # fmt: skip


def test_a_difference_within_chance_is_none(train, config, dense):
    """Kernels of 0.95 are a little better with statistics anew, on which few images agree."""
    near = _scaled(dense["params"], np.float32(0.95))
    losses = {}
    for choice in ("kept", "reestimated"):
        config.calibration.statistics = choice
        losses[choice] = outputs_lost(MODEL, near, dense, train, config)
    assert losses["reestimated"] < losses["kept"]
    config.calibration.statistics = "best"
    assert with_statistics(MODEL, near, dense, train, config)[1] == "kept"


def test_a_choice_that_cannot_be_made_is_refused(train, config, dense):
    config.calibration.statistics = "both"
    with pytest.raises(ValueError, match="statistics is 'both'; it must be one of 'kept'"):
        with_statistics(MODEL, dense["params"], dense, train, config)


@pytest.mark.parametrize("examples", [64, 96, 400])
def test_a_small_training_part_is_looked_at_again(examples, train, config, dense):
    """A training part of 96 images leaves none to hold out, and still gives a choice."""
    config.calibration.examples = examples
    small = _scaled(dense["params"], np.float32(1 / 3))
    assert with_statistics(MODEL, small, dense, train, config)[1] == "reestimated"
    lost = outputs_lost(MODEL, small, dense, train, config)
    config.calibration.statistics = "kept"
    assert 0 < lost < outputs_lost(MODEL, small, dense, train, config)


def test_folded_statistics_are_not_estimated_again(train, config, dense):
    """Statistics estimated after folding would be applied twice."""
    params, state = fold_statistics(dense["params"], {"batch_stats": dense["batch_stats"]})
    batches = training_batches(train, config, 1)
    with pytest.raises(ValueError, match="folded into its scales and biases already"):
        estimate_statistics(MODEL, params, state, batches)


def test_a_network_without_statistics_keeps_what_it_has(train, config, dense):
    assert with_statistics(MODEL, {}, {"params": {}}, train, config) == ({}, "kept")
