"""Batch normalization as shipped: statistics of the deployed weights, folded."""

from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

import sqs_jax

EPSILON, MOMENTUM = 1e-5, 0.9  # of the networks' flax.linen.BatchNorm


def estimate_statistics(
    model: nn.Module, params: Any, model_state: Any, batches: Iterable[Any]
) -> Any:
    """Estimate batch statistics as plain means over batches, for fixed weights.

    The running statistics of a training average about ten batches, under weights that change.

    Args:
      model: Network.
      params: Params of the network, arrays.
      model_state: Other collections; returned unchanged if "batch_stats" is not among them.
      batches: Images, float [batch, height, width, channels], standardized and augmented as in the
        training.

    Returns:
      The model state with new batch statistics, float32 on the host.

    Raises:
      ValueError: The statistics are already folded into scales and biases.
    """
    if "batch_stats" not in model_state:
        return model_state
    if _is_folded(model_state["batch_stats"]):
        raise ValueError(
            "The statistics of this network are folded into its scales and biases already: means "
            "are 0 and variances 1 - epsilon. Estimate them before fold_statistics, from dense.sqs "
            "and the compressed params, not from model.sqs."
        )

    @jax.jit
    def of_batch(images: jax.Array) -> Any:
        zeros = jax.tree.map(jnp.zeros_like, model_state["batch_stats"])
        variables = {"params": params, **model_state, "batch_stats": zeros}
        _, moved = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return jax.tree.map(lambda mean: mean / (1 - MOMENTUM), moved["batch_stats"])

    parts = [jax.tree.map(np.asarray, of_batch(images)) for images in batches]
    mean = jax.tree.map(lambda *leaves: np.mean(leaves, 0, np.float64).astype(np.float32), *parts)
    return {**model_state, "batch_stats": mean}


def fold_statistics(params: Any, model_state: Any) -> tuple[Any, Any]:
    """Fold running statistics into scales and biases, so that they take no bytes.

    The outputs of the network stay the same. The new scale is scale / sqrt(var + epsilon), the new
    bias is bias - mean * new scale. The mean becomes 0 and the variance 1 - epsilon, which a file
    codes as constants. Kernels do not change: a factor per channel would undo their K values.

    Args:
      params: Dicts of arrays and `CompressedLeaf`.
      model_state: Other collections; returned unchanged if "batch_stats" is not among them. Its
        layers are dicts with "mean" and "var".

    Returns:
      (params, model_state).
    """
    if "batch_stats" not in model_state:
        return params, model_state
    flat, stats = flatten_dict(params), flatten_dict(model_state["batch_stats"])
    layers = {path[:-1] for path in stats}
    folded = {}
    for layer in layers:
        mean, variance = (jnp.asarray(stats[*layer, name]) for name in ("mean", "var"))
        # Folded into a kernel of ones, the statistics give the factor of each channel.
        flat[*layer, "scale"], flat[*layer, "bias"] = sqs_jax.fold_batch_norm(
            jnp.ones_like(mean),
            scale=flat[*layer, "scale"],
            bias=flat[*layer, "bias"],
            mean=mean,
            variance=variance,
            epsilon=EPSILON,
        )
        folded[*layer, "mean"] = _constant(mean, 0.0)
        folded[*layer, "var"] = _constant(mean, 1 - EPSILON)
    return unflatten_dict(flat), {**model_state, "batch_stats": unflatten_dict(folded)}


def _is_folded(stats: Any) -> bool:
    """Return whether statistics are a result of `fold_statistics`."""
    constants = {"mean": np.float32(0), "var": np.float32(1 - EPSILON)}
    flat = flatten_dict(sqs_jax.materialize(stats))
    return all(bool((np.asarray(x) == constants[path[-1]]).all()) for path, x in flat.items())


def _constant(like: jax.Array, value: float) -> sqs_jax.CompressedLeaf:
    codes = np.full(like.shape, int(value != 0), np.uint8)
    return sqs_jax.CompressedLeaf(codes, np.full((1, 1), value, np.float32))
