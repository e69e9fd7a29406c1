"""Bytes of files and of devices that an experiment takes."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType

import sqs_jax
from experiments.cost_model.shapes import network_shapes
from experiments.cost_model.stage_costs import stage_costs
from experiments.training.phases import phases
from experiments.training.sharding import AXES, lay_out
from experiments.training.step import init_state
from experiments.trees import flat_leaves


def predict(config: Any, devices: int) -> dict[str, int]:
    """Predict bytes of files and devices, and count the weights; nothing is computed.

    Args:
      config: Config of the experiment, `described`.
      devices: Number of devices of the training.

    Returns:
      Bytes by description; the entry "weights" is a number.

    Raises:
      ValueError: The mesh does not fit, or a language model has no shape.
    """
    parts = devices * config.accumulate
    if devices % config.mesh.fsdp or config.batch_size % parts:
        raise ValueError(
            f"--devices={devices} must be a multiple of config.mesh.fsdp={config.mesh.fsdp}, and, "
            f"times config.accumulate={config.accumulate}, divide "
            f"config.batch_size={config.batch_size}."
        )
    model, variables, examples = network_shapes(config)
    weights = sum(leaf.size for leaf in jax.tree.leaves(variables))
    part = jax.ShapeDtypeStruct((config.batch_size // parts, *examples.shape[1:]), examples.dtype)
    stages = stage_costs(model, variables, part)
    activations = sum(stage.intermediates for stage in stages)
    if config.model.remat:
        largest = max(stage.intermediates for stage in stages)
        activations = sum(stage.output for stage in stages) + largest
    calibrated = stage_costs(model, variables, examples)
    return {
        "weights": weights,
        "dense file": 4 * weights,
        "compressed file": config.sqs.target_bytes or _file_bytes(config, variables),
        "training, per device": _trained(config, variables, devices) + activations,
        "calibration, one device": max(stage.intermediates for stage in calibrated)
        + 2 * max(stage.weights for stage in calibrated),
    }


def _file_bytes(config: Any, variables: Any) -> int:
    """Estimate the file of a training towards a sparsity, from the entropy of its codes."""
    rule, sparsity = sqs_jax.Rule(pattern=config.sqs.pattern), config.sqs.sparsity
    entropy = sum(-p * math.log2(p) for p in (sparsity, 1 - sparsity) if p)
    bits = entropy + (1 - sparsity) * math.log2(config.sqs.components)
    dense = jnp.dtype(config.sqs.dense_dtype or jnp.float32).itemsize
    total = 0.0
    for path, leaf in flat_leaves(variables["params"]).items():
        compressed = rule.matches(path) and rule.compresses(leaf)
        total += leaf.size * (bits / 8 if compressed else dense)
    return round(total)


def _trained(config: Any, variables: Any, devices: int) -> int:
    """Count bytes of state, gradient and teacher of the compression on a device."""
    fsdp = config.mesh.fsdp
    axis_types = (AxisType.Auto,) * len(AXES)
    mesh: Any = AbstractMesh((devices // fsdp, fsdp), AXES, axis_types=axis_types)
    phase = phases(config, config.batch_size)[-1]
    state = jax.eval_shape(lambda v: init_state(phase, v), variables)
    layout = lay_out(state, state.posterior, mesh, config)
    trainable, _ = sqs_jax.partition(state.posterior, train=phase.learning_rate)
    gradient = lay_out(trainable, state.posterior, mesh, config)
    teacher = lay_out(variables, variables["params"], mesh, config)
    return _bytes(state, layout) + _bytes(trainable, gradient) + _bytes(variables, teacher)


def _bytes(tree: Any, layout: Any) -> int:
    """Count the bytes of sharded arrays on a device."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(layout), strict=True)
    return sum(math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize for x, s in pairs)
