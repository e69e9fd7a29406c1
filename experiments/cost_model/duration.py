"""Seconds that an experiment takes on a device of this machine."""

import math
import time
from typing import Any

import jax
import jax.numpy as jnp

from experiments.cost_model.shapes import network_shapes
from experiments.cost_model.stage_costs import StageCost, stage_costs

# Fitted to a Llama of 6.3 M weights, see docs/results.md.
_SLOWDOWN = 2.0  # time of a model's products over that of equally many in large square matrices
_GROUPS = 4  # groups of layers of a block with equal inputs
_PASSES = 6  # passes over a kernel that choose its codes
_FISHER_BATCHES = 16
_LONGEST = 65_536  # most inputs of a kernel; an embedding has more
_HOST_SECONDS = 8e-6  # seconds per weight of allocation and coding
_POSTERIOR_SECONDS = 1e-7  # seconds per weight of a step's posterior


def predict_seconds(config: Any) -> dict[str, float]:
    """Predict seconds of a calibration and of a training step on a device of this machine.

    Args:
      config: Config of the experiment, `described`.
    """
    model, variables, examples = network_shapes(config)
    stages, rate = stage_costs(model, variables, examples), products_per_second()
    return {
        "calibration": _calibration_seconds(config, variables, stages, rate),
        "training step": _step_seconds(variables, stages, rate),
    }


def products_per_second() -> float:
    """Measure multiplications per second in a product of two square matrices."""
    side = 1024
    square = jnp.ones((side, side), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(square, square).block_until_ready()
    fastest = math.inf
    for _ in range(5):
        started = time.perf_counter()
        product(square, square).block_until_ready()
        fastest = min(fastest, time.perf_counter() - started)
    return side**3 / fastest


def _calibration_seconds(
    config: Any, variables: Any, stages: list[StageCost], rate: float
) -> float:
    """Estimate the seconds of experiments.calibrate."""
    batches = max(config.calibration.examples // config.batch_size, 1)
    rows = batches * config.batch_size
    if config.data.kind != "images":
        rows *= config.data.length
    forward = sum(stage.products for stage in stages)
    # The inputs of each group of layers come from a run of its stage, in both networks.
    products = 2 * (_GROUPS + 1) * batches * forward
    products += 2 * batches * sum(stage.moments for stage in stages)
    if config.sqs.sensitivity == "fisher":
        products += 3 * _FISHER_BATCHES * forward
    weights = 0
    for leaf in jax.tree.leaves(variables["params"]):
        weights += leaf.size
        inputs, outputs = math.prod(leaf.shape[:-1]), leaf.shape[-1]
        if leaf.ndim > 1 and inputs < _LONGEST:  # An embedding is a gather, not a product.
            products += _PASSES * inputs**2 * outputs
            if leaf.ndim == 2:
                products += 2 * rows * inputs**2
    return _SLOWDOWN * products / rate + _HOST_SECONDS * weights


def _step_seconds(variables: Any, stages: list[StageCost], rate: float) -> float:
    """Estimate the seconds of a step: forward, backward, teacher and posterior."""
    weights = sum(leaf.size for leaf in jax.tree.leaves(variables))
    products = 4 * sum(stage.products for stage in stages)
    return _SLOWDOWN * products / rate + _POSTERIOR_SECONDS * weights
